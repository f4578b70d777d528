// A dialogue: speakers with their voices, lines in order, the takes of each line. Kept as it changes; shows nothing.

import { server } from "./server.js";
import { keeper, store } from "./store.js";
import { Take, newId } from "./takes.js";

export const VIEW = "dialogue";
/** As Speak cuts long texts. */
const CUT = { chunk_method: "word", chunk_max_word_num: 100 };
const MOST_UNDONE = 50;
export const USUAL_PAUSE = 0.3;

/**
 * @typedef {{id: string, name: string, voice: string | null}} Speaker
 * @typedef {{id: string, speaker: string, text: string, pause: number, chosen: string | null}} Line
 *   `pause` is in seconds, after the line; `chosen` the take that counts, null for the newest
 */

/** @returns {Line} */
const newLine = ({ speaker, text = "", pause = USUAL_PAUSE }) => ({ id: newId(), speaker, text, pause, chosen: null });

/**
 * Dispatches `lines` when lines come, go or move, `speakers` when a speaker changes, and `line` (its `detail`) when the
 * words or the takes of one line do.
 */
export class Dialogue extends EventTarget {
  /** @type {Speaker[]} */
  speakers = [];
  /** @type {Line[]} */
  lines = [];
  /** Sampling parameters of new takes. @type {Record<string, any>} */
  values = {};
  /** @type {Map<string, Take[]>} by line, oldest first */
  #takes = new Map();
  /** @type {Line[][]} */
  #before = [];
  /** Speakers of lines that may come back. @type {Speaker[]} */
  #gone = [];
  /** Keeps all but the takes, which keep themselves. */
  save = keeper(VIEW, () => ({ speakers: this.speakers, lines: this.lines, values: this.values }));

  /** Reads what was kept. Takes of lines that no tab has any more go too. */
  async open() {
    const [kept, elsewhere, takes] = await Promise.all([store.draft(VIEW), store.draftsElsewhere(VIEW), Take.all(VIEW)]);
    if (kept) Object.assign(this, kept);
    const known = new Set([this, ...elsewhere].flatMap(({ lines }) => lines.map(({ id }) => id)));
    for (const take of takes) {
      if (!known.has(take.kept.line)) take.delete();
      else this.takesOf({ id: take.kept.line }).push(take);
    }
    this.#tell("speakers");
    this.#tell("lines");
  }

  // --- lines --------------------------------------------------------------------------------------------------------

  /** Puts new lines before the one at `index`, in place of `replaced` old ones, and returns them. */
  insert(index, turns, replaced = 0) {
    this.#remember();
    const lines = turns.map(newLine);
    this.lines = this.lines.toSpliced(index, replaced, ...lines);
    this.#changed("lines");
    return lines;
  }

  remove(line) {
    this.#remember();
    this.lines = this.lines.filter((other) => other !== line);
    this.#changed("lines");
  }

  /** Moves a line to where the one at `index` is. */
  move(line, index) {
    const from = this.lines.indexOf(line);
    const to = Math.max(0, Math.min(index, this.lines.length - 1));
    if (from === to) return;
    this.#remember();
    this.lines = this.lines.toSpliced(from, 1).toSpliced(to, 0, line);
    this.#changed("lines");
  }

  /** Another dialogue in place of this one; can be undone. */
  replace({ speakers, lines, values = this.values }, takes = new Map()) {
    this.#remember();
    this.#gone.push(...this.speakers);
    Object.assign(this, { speakers, lines, values });
    takes.forEach((made, id) => this.#takes.set(id, made));
    this.#tell("speakers");
    this.#changed("lines");
  }

  /** An empty line of one speaker in place of everything; can be undone. */
  clear(name, voice) {
    const speaker = { id: newId(), name, voice };
    this.replace({ speakers: [speaker], lines: [newLine({ speaker: speaker.id })] });
  }

  get undoable() {
    return this.#before.length > 0;
  }

  /** Lines are again those, and in the order, from before the last that came, went or moved. Their words stay. */
  undo() {
    this.lines = this.#before.pop() ?? this.lines;
    const back = this.#gone.filter((speaker) => this.speaks(speaker) && !this.speakers.includes(speaker));
    this.speakers = [...this.speakers, ...new Set(back)];
    this.#tell("speakers");
    this.#changed("lines");
  }

  set(line, values) {
    Object.assign(line, values);
    this.#changed("line", line);
  }

  // --- speakers -----------------------------------------------------------------------------------------------------

  /** The speaker of that name, a new one if there is none. `voice` is for a new one. @returns {Speaker} */
  speakerNamed(name, voice) {
    let found = this.speakers.find((speaker) => speaker.name === name);
    if (!found) {
      found = { id: newId(), name, voice };
      this.speakers = [...this.speakers, found];
      this.#changed("speakers");
    }
    return found;
  }

  setSpeaker(speaker, values) {
    Object.assign(speaker, values);
    this.#changed("speakers");
  }

  /** Only one who says nothing. */
  removeSpeaker(speaker) {
    this.#gone.push(speaker);
    this.speakers = this.speakers.filter((other) => other !== speaker);
    this.#changed("speakers");
  }

  speaks(speaker) {
    return this.lines.some((line) => line.speaker === speaker.id);
  }

  speakerOf(line) {
    return this.speakers.find(({ id }) => id === line.speaker);
  }

  setValues(values) {
    this.values = values;
    this.#changed("values");
  }

  // --- takes --------------------------------------------------------------------------------------------------------

  /** @returns {Take[]} oldest first */
  takesOf({ id }) {
    if (!this.#takes.has(id)) this.#takes.set(id, []);
    return this.#takes.get(id);
  }

  /** The take that counts. @returns {Take | null} */
  takeOf(line) {
    const takes = this.takesOf(line);
    return takes.find(({ kept }) => kept.id === line.chosen) ?? takes.at(-1) ?? null;
  }

  /** empty: no words; missing: no take; unfinished: one that was cut off; changed: the take says other words or has another voice. */
  stateOf(line) {
    if (!line.text.trim()) return "empty";
    const take = this.takeOf(line);
    if (!take) return "missing";
    if (!take.kept.answer) return "unfinished";
    const { text, ref_audio } = this.request(line);
    return take.kept.request.text === text && take.kept.request.ref_audio === ref_audio ? "ready" : "changed";
  }

  /** The body of POST /generate-stream for a line. */
  request(line) {
    return { text: line.text.trim(), ref_audio: this.speakerOf(line)?.voice ?? null, ...(server.can("scenes") ? {} : { scene_prompt: null }), ...this.values, ...CUT };
  }

  /** A new take of a line, which is then the one that counts, unless it fails; whoever asked makes it. */
  newTake(line) {
    const before = this.takeOf(line)?.kept.id ?? null;
    const request = this.request(line);
    const take = new Take({ view: VIEW, line: line.id, request, name: request.text.slice(0, 48) });
    this.takesOf(line).push(take);
    take.addEventListener("change", () => {
      const failed = !take.running && !take.kept.answer;
      if (failed && !take.sound.length) this.#takes.set(line.id, this.takesOf(line).filter((other) => other !== take));
      if (failed && line.chosen === take.kept.id) line.chosen = before;
      this.#changed("line", line);
    });
    line.chosen = take.kept.id;
    this.#changed("line", line);
    return take;
  }

  async deleteTake(line, take) {
    this.#takes.set(line.id, this.takesOf(line).filter((other) => other !== take));
    this.#tell("line", line);
    await take.delete();
  }

  #remember() {
    this.#before = [...this.#before.slice(1 - MOST_UNDONE), this.lines];
  }

  #changed(type, detail) {
    this.save().catch((problem) => this.#tell("problem", problem));
    this.#tell(type, detail);
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
