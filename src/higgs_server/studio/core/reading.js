// A long text: the pieces in which it is spoken, where each stands in the text, and the take of each. Kept as it
// changes; shows nothing.

import { askJson } from "./api.js";
import { server } from "./server.js";
import { keeper, store } from "./store.js";
import { Take, newId } from "./takes.js";

export const VIEW = "longtext";
/** Characters planned in one request; a server takes 100,000 unless it is told otherwise. */
const PART = 20_000;

/**
 * @typedef {object} Piece
 * @property {string} id
 * @property {string} text as the model reads it, or as it was changed here
 * @property {string} [planned] as the server planned it; drafts from before this was kept lack it
 * @property {[number, number]} span `[start, end)` in the text, counted as JavaScript does
 * @property {number} seconds that it takes to say, roughly
 * @property {boolean} skip left out
 */

/** Dispatches `plan` when the pieces are others, and `piece` (its `detail`) when one changes. */
export class Reading extends EventTarget {
  text = "";
  /** Its file's name, for the file that comes of it. */
  name = "";
  /** @type {string | null | undefined} undefined until one was chosen; null is any voice */
  voice;
  /** Most words in a piece. */
  words = 60;
  values = {};
  /** @type {Piece[]} */
  pieces = [];
  /** Whether the pieces are those of the text as it is. */
  planned = false;
  /** @type {Map<string, Take>} by piece */
  #takes = new Map();
  /** Keeps all but the takes, which keep themselves. */
  save = keeper(VIEW, () => {
    const { text, name, voice, words, values, pieces, planned } = this;
    return { text, name, voice, words, values, pieces, planned };
  });

  /** Reads what was kept. Of several takes of a piece one counts: the page may have closed before the others went. */
  async open() {
    const [kept, takes] = await Promise.all([store.draft(VIEW), Take.all(VIEW)]);
    if (kept) Object.assign(this, kept);
    for (const take of takes) {
      const id = take.kept.piece;
      this.#takes.set(id, better(take, this.#takes.get(id)));
    }
    await this.#discard(takes.filter((take) => this.#takes.get(take.kept.piece) !== take));
    await this.#drop();
    this.#tell("plan");
  }

  /** Sets text, voice, words or values. */
  set(values) {
    const cut = ["text", "words"].some((name) => name in values && values[name] !== this[name]);
    Object.assign(this, values);
    if (cut) this.planned = false;
    this.#changed("plan");
  }

  /** Asks the server for the pieces. Those that are planned as before stay as they were. Raises ApiError. */
  async plan() {
    const { text, words } = this;
    const pieces = [];
    for (const [start, part] of parts(text)) {
      // The part as it is: spans count its white space too.
      const request = { ...this.request({ text: part }), text: part, chunk_method: "word", chunk_max_word_num: words };
      const { chunks } = await askJson("plan", { json: request });
      const at = offsets(part, start);
      for (const chunk of chunks) {
        const [from, to] = chunk.span;
        pieces.push({ id: newId(), text: chunk.text, planned: chunk.text, span: [at[from], at[to]], seconds: chunk.seconds, skip: false });
      }
    }
    if (text !== this.text || words !== this.words) return; // changed while the server thought
    const before = Map.groupBy(this.pieces, ({ planned, text }) => planned ?? text);
    for (const piece of pieces) {
      const same = before.get(piece.planned)?.shift();
      if (same) Object.assign(piece, { id: same.id, text: same.text, skip: same.skip });
    }
    Object.assign(this, { pieces, planned: true });
    this.#changed("plan");
    await this.#drop();
  }

  setPiece(piece, values) {
    Object.assign(piece, values);
    this.#changed("piece", piece);
  }

  /** @returns {Take | null} */
  takeOf(piece) {
    return this.#takes.get(piece.id) ?? null;
  }

  /** skipped; missing: no take; unfinished: one that was cut off; changed: it says other words or has another voice. */
  stateOf(piece) {
    if (piece.skip || !piece.text.trim()) return "skipped";
    const take = this.takeOf(piece);
    if (!take) return "missing";
    if (take.running) return "making";
    if (!take.kept.answer) return "unfinished";
    const { text, ref_audio } = this.request(piece);
    return take.kept.request.text === text && take.kept.request.ref_audio === ref_audio ? "ready" : "changed";
  }

  /** The body of POST /generate-stream for a piece. */
  request({ text }) {
    return { text: text.trim(), ref_audio: this.voice ?? null, ...(server.can("scenes") ? {} : { scene_prompt: null }), ...this.values };
  }

  /** A new take of a piece; the one before goes once this one is whole. Whoever asked makes it. */
  newTake(piece) {
    const before = this.takeOf(piece);
    const request = this.request(piece);
    const take = new Take({ view: VIEW, piece: piece.id, request, name: request.text.slice(0, 48) });
    this.#takes.set(piece.id, take);
    take.addEventListener("change", () => {
      if (!take.running && this.takeOf(piece) === take) this.#settle(piece, take, before);
      this.#tell("piece", piece);
    });
    return take;
  }

  /** A new take is over, well or not: one of the two remains, or none. */
  #settle(piece, take, before) {
    const kept = better(take, before);
    if (kept) this.#takes.set(piece.id, kept);
    else this.#takes.delete(piece.id);
    const rest = [take, before].filter((one) => one && one !== kept);
    this.#discard(rest).catch((problem) => this.#tell("problem", problem));
  }

  /** Takes of pieces that are gone go too. */
  async #drop() {
    const known = new Set(this.pieces.map(({ id }) => id));
    const gone = [...this.#takes].filter(([id]) => !known.has(id));
    for (const [id, take] of gone) {
      this.#takes.delete(id);
      take.cancel();
    }
    await this.#discard(gone.map(([, take]) => take));
  }

  /** Deletes takes, but for those of pieces that another tab has too. */
  async #discard(takes) {
    if (!takes.length) return;
    const elsewhere = new Set((await store.draftsElsewhere(VIEW)).flatMap(({ pieces }) => pieces.map(({ id }) => id)));
    await Promise.all(takes.filter((take) => !elsewhere.has(take.kept.piece)).map((take) => take.delete()));
  }

  #changed(type, detail) {
    this.save().catch((problem) => this.#tell("problem", problem));
    this.#tell(type, detail);
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** Which of two takes of a piece counts: the newer one, unless that broke off and the other did not. */
function better(newer, older) {
  if (newer.kept.answer || (newer.sound.length && !older?.kept.answer)) return newer;
  return older ?? null;
}

/** A text in parts of at most PART characters, each with where it starts: cut at paragraphs, else lines, else words. */
export function* parts(text) {
  let start = 0;
  while (start < text.length) {
    const reach = text.slice(start, start + PART);
    let length = reach.length;
    if (start + length < text.length) {
      const cut = ["\n\n", "\n", "。", ". ", " "].map((mark) => [reach.lastIndexOf(mark), mark.length]).find(([at]) => at > PART / 2);
      if (cut) length = cut[0] + cut[1];
      else if (/[\ud800-\udbff]$/.test(reach)) length--; // half a character
    }
    const part = text.slice(start, start + length);
    if (part.trim()) yield [start, part];
    start += length;
  }
}

/** For each code point, as the server counts, where it begins as JavaScript counts, and where the last one ends. */
export function offsets(text, start = 0) {
  const at = [];
  for (const character of text) {
    at.push(start);
    start += character.length;
  }
  at.push(start);
  return at;
}
