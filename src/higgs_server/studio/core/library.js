// What there is to choose from: the server's voices, described voices and scenes, and the clip of each voice.
// Shows nothing.

import { ask, askJson } from "./api.js";
import { server } from "./server.js";
import { decode } from "./sound.js";

/**
 * @typedef {object} Voice
 * @property {string} name
 * @property {string} [language] en or zh
 * @property {number} [duration] seconds
 * @property {string | null} [transcript]
 * @property {boolean} [read_only] shipped, or not to be changed from here
 */

/** Dispatches `change` when the lists have been read anew, and `use` when somebody wants to speak with a voice. */
class Library extends EventTarget {
  /** @type {Voice[]} */
  voices = [];
  /** @type {{name: string, content: string}[]} */
  scenes = [];
  /** @type {{name: string, description: string}[]} */
  profiles = [];
  #clips = new Map();

  /** Reads the lists. Raises ApiError. */
  async refresh() {
    const lists = ["v1/audio/voices", "scenes", "profiles"].map((path) => askJson(path));
    const [{ voices }, { scenes }, { profiles }] = await Promise.all(lists);
    Object.assign(this, { voices, scenes, profiles });
    this.dispatchEvent(new Event("change"));
  }

  /** The clip of a voice as a Sound, fetched once. Raises ApiError. */
  clip(name) {
    if (!this.#clips.has(name)) {
      const fetched = ask(`v1/audio/voices/${encodeURIComponent(name)}/sample`).then(async (answer) =>
        decode(await answer.arrayBuffer()),
      );
      fetched.catch(() => this.#clips.delete(name));
      this.#clips.set(name, fetched);
    }
    return this.#clips.get(name);
  }

  /** Speaks with this voice from now on: for the view that speaks. */
  use(name) {
    this.dispatchEvent(new CustomEvent("use", { detail: name }));
  }

  /** A voice was changed or is gone: its clip is fetched anew. */
  forget(name) {
    this.#clips.delete(name);
  }
}

export const library = new Library();

/** Whether the loaded model can speak with a voice: its own it always can, others it clones. @param {Voice} voice */
export const speakable = ({ read_only }) => read_only || server.can("cloning");
