// Scripts as people write them -> who says what. Knows no voices.
// Tags are those of the server (text/dialogue.py); besides them plain `Name: …` lines are understood.

const TAG = /[[【][ \t]*SPEAKER[ \t]*(\d{1,4})[ \t]*[\]】]/giu;
// Anna: …   **Anna:** …   - Anna: …   安娜：…   but not https://… or 10:30
const NAMED = /^\s*(?:[-*]\s+)?[*_]{0,2}(\p{L}[^:：*_[\]【】"“”.!?。！？]{0,29}?)[*_]{0,2}\s*[:：](?!\/\/|(?<=\d:)\d)[*_]{0,2}\s*(.*)$/u;
const MOST_WORDS_IN_A_NAME = 4;

/**
 * @typedef {object} Turn
 * @property {string | null} speaker the name, `SPEAKER0` for a tag; null where the script does not say
 * @property {string} text
 */

/** The turns of a script in order, none of them empty: tagged, named, or else a line each. @returns {Turn[]} */
export function parseTurns(text) {
  const clean = text.replace(/\r\n?/g, "\n");
  const [before, ...rest] = clean.split(TAG);
  const turns = rest.length ? tagged(before, rest) : (named(clean) ?? clean.split("\n").map((line) => ({ speaker: null, text: line })));
  return turns.map((turn) => ({ ...turn, text: turn.text.trim() })).filter((turn) => turn.text);
}

function tagged(before, rest) {
  const turns = [{ speaker: null, text: before }];
  for (let i = 0; i < rest.length; i += 2) turns.push({ speaker: `SPEAKER${Number(rest[i])}`, text: rest[i + 1] });
  return turns;
}

/** null where most lines have no name: then a colon is only a colon. */
function named(text) {
  const lines = text.split("\n").filter((line) => line.trim());
  const found = lines.map((line) => line.match(NAMED)).map((match) => (match && match[1].split(/\s+/).length <= MOST_WORDS_IN_A_NAME ? match : null));
  const count = found.filter(Boolean).length;
  if (count < 2 || 2 * count < lines.length) return null;
  const turns = [{ speaker: null, text: "" }];
  found.forEach((match, index) => {
    if (match) turns.push({ speaker: match[1].trim(), text: match[2] });
    else turns.at(-1).text += `\n${lines[index].trim()}`;
  });
  return turns;
}

/** The script as tagged text, as the server and other programs read it. @param {{speaker: number, text: string}[]} turns */
export const asTags = (turns) => turns.map(({ speaker, text }) => `[SPEAKER${speaker}] ${text.trim()}`).join("\n");
