// Takes: a request, the sound that came of it, and where both are kept. Shows nothing and plays nothing.

import { ApiError, speak } from "./api.js";
import { t } from "./i18n.js";
import { Sound } from "./sound.js";
import { onOtherTab, store } from "./store.js";

const PIECE = 24000;

/**
 * What is kept of a take beside its sound.
 * @typedef {object} Kept
 * @property {string} id
 * @property {string} view the view it belongs to
 * @property {string} name
 * @property {number} created milliseconds since 1970
 * @property {object} request the body of POST /generate-stream
 * @property {object | null} answer the `done` event; null for one that was cancelled, cut off, or is not finished
 * @property {string} problem why it ended early, a sentence, or ""
 * @property {number} length samples
 * @property {Uint16Array} peaks
 */

/** Dispatches `change` when what is kept changes, and `progress` while it is made. */
export class Take extends EventTarget {
  /** @param {Partial<Kept> & {view: string, request: object, name: string}} kept */
  constructor(kept) {
    super();
    /** @type {Kept} */
    this.kept = { id: newId(), created: Date.now(), answer: null, problem: "", length: 0, peaks: new Uint16Array(), ...kept };
    this.sound = new Sound();
    /** @type {{chunk: number, chunks: number, seconds: number} | null} */
    this.progress = null;
    this.#pieces = 0;
  }

  #pieces;
  /** @type {AbortController | null} */
  #running = null;

  /** The takes of a view, oldest first. */
  static async all(view) {
    return (await store.takes(view)).map((kept) => {
      const take = new Take(kept);
      take.sound = Sound.stored(kept.length, kept.peaks, () => store.pieces(kept.id));
      return take;
    });
  }

  get running() {
    return this.#running !== null;
  }

  cancel() {
    this.#running?.abort();
  }

  /**
   * Speaks the request; sound and progress arrive in `sound` and `progress`. Resolves once all is kept. Raises ApiError:
   * what came until then stays, and a take that has no sound yet is as if it had never been.
   */
  async make() {
    this.#running = new AbortController();
    this.started = performance.now();
    this.dispatchEvent(new Event("change"));
    let unsaved = [];
    let saving = Promise.resolve();
    const save = () => {
      const samples = Sound.of(...unsaved).slice();
      unsaved = [];
      const index = this.#pieces++;
      saving = saving.then(() => store.savePiece(this.kept.id, index, samples)).then(() => this.#save());
    };
    try {
      this.kept.answer = await speak(this.kept.request, {
        signal: this.#running.signal,
        onsamples: (samples) => {
          unsaved.push(samples);
          this.sound.append(samples);
          if (unsaved.reduce((sum, piece) => sum + piece.length, 0) >= PIECE) save();
        },
        onprogress: (progress) => {
          this.progress = progress;
          this.dispatchEvent(new Event("progress"));
        },
      });
    } catch (error) {
      this.kept.problem = error.message;
      throw error instanceof ApiError ? error : new ApiError(String(error));
    } finally {
      if (unsaved.length) save();
      this.sound.end();
      try {
        await saving;
        if (this.sound.length) await this.#save();
      } catch {
        throw new ApiError(t("error.not_kept"), { code: "not_kept" });
      } finally {
        this.#running = null;
        this.dispatchEvent(new Event("change"));
      }
    }
  }

  /** Keeps a finished sound that came from elsewhere. */
  async adopt(sound) {
    this.sound = sound;
    await store.savePiece(this.kept.id, this.#pieces++, sound.slice());
    await this.#save();
  }

  async rename(name) {
    this.kept.name = name;
    await this.#save();
    this.dispatchEvent(new Event("change"));
  }

  async delete() {
    this.cancel();
    await store.deleteTake(this.kept);
  }

  #save() {
    const { length, peaks } = this.sound;
    Object.assign(this.kept, { length, peaks: Uint16Array.from(peaks) });
    return store.saveTake(this.kept);
  }
}

/** Calls back when another tab has changed takes of a view. */
export { onOtherTab };

/** Random, also where the page is not in a secure context and randomUUID does not exist. */
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
