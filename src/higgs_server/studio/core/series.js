// Many takes in a row: what is there is taken, what is missing is made, and all of it is one sound that grows.
// Knows not what the items are, and plays nothing.

import { player } from "./player.js";
import { Sound, silence } from "./sound.js";

/**
 * @typedef {object} How
 * @property {(item: any) => import("./takes.js").Take | null} made the take of an item, null where it is missing
 * @property {((item: any) => import("./takes.js").Take) | null} make begins a take; null leaves out what is missing
 * @property {(item: any) => number} [pause] seconds of silence after an item
 * @property {boolean} [join] whether all of it is wanted as one `sound`
 */

/** Dispatches `change` when it begins, goes on to another item, or is over, and `progress` while a take is made. */
export class Series extends EventTarget {
  running = false;
  /** @type {any} the item that is being made */
  item = null;
  /** @type {import("./takes.js").Take | null} the take that is being made */
  take = null;
  /** Items that are there by now, and all of them. */
  done = 0;
  total = 0;
  sound = new Sound();
  /** @type {{item: any, from: number}[]} */
  #parts = [];
  #stopped = false;
  #over = Promise.resolve();

  /**
   * Goes through the items in order and resolves once all are in `sound`, or it was stopped. Raises what the first take
   * raises that fails: items after it are not begun, and another run takes up there.
   * @param {any[]} items
   * @param {How} how
   */
  run(items, how) {
    if (this.running) throw new Error("A series is run once at a time.");
    const run = this.#run(items, how);
    this.#over = run.catch(() => {});
    return run;
  }

  /** Cancels what is being made; resolves once it is over. */
  stop() {
    this.#stopped = true;
    this.take?.cancel();
    return this.#over;
  }

  async #run(items, { made, make, pause = () => 0, join = true }) {
    Object.assign(this, { running: true, done: 0, total: items.length, sound: new Sound() });
    this.#parts = [];
    this.#stopped = false;
    try {
      for (const item of items) {
        if (this.#stopped) break;
        let take = made(item);
        let making = null;
        if (!take && make) {
          this.item = item;
          this.take = take = make(item);
          take.addEventListener("progress", () => this.dispatchEvent(new Event("progress")));
          making = take.make();
        }
        this.#changed();
        if (take) await Promise.all([making, join && this.#join(item, take.sound, pause(item))]);
        this.item = this.take = null;
        this.done++;
      }
    } finally {
      Object.assign(this, { running: false, item: null, take: null });
      this.sound.end();
      this.#changed();
    }
  }

  /** Which item is heard at a second of `sound`. */
  at(seconds) {
    return this.#parts.findLast(({ from }) => from <= seconds)?.item;
  }

  /** Calls back with each item as it comes to be heard, and with undefined once none is. */
  follow(heard) {
    let last;
    let frame = 0;
    const look = () => {
      const mine = player.sound === this.sound;
      const item = mine ? this.at(player.position) : undefined;
      if (item !== last) heard((last = item));
      frame = mine && player.playing ? requestAnimationFrame(look) : 0;
    };
    player.addEventListener("change", () => frame || look());
  }

  async #join(item, part, pause) {
    await part.ready();
    this.#parts.push({ item, from: this.sound.seconds });
    let taken = 0;
    const grow = () => {
      this.sound.append(part.slice(taken));
      taken = part.length;
    };
    grow();
    if (!part.ended) {
      part.addEventListener("grow", grow);
      await new Promise((resolve) => part.addEventListener("end", resolve, { once: true }));
    }
    if (pause) this.sound.append(silence(pause));
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
