// The one loudspeaker of the page: plays a Sound, also one that still grows. Knows no view and no server.
//
// Pieces are scheduled to the sample, one behind the other, as buffer sources. An AudioWorklet would do it too, but
// browsers have none on pages that came over plain http from another computer, and that is how a studio on the home
// network is opened.

import { RATE } from "./sound.js";

const PIECE = 4 * RATE;
/** Scheduled ahead: a hidden page's timers are slow. */
const AHEAD_SECONDS = 8;
const TICK = 250;

/** Dispatches `change` when a sound starts, pauses, waits for more, or is over. */
class Player extends EventTarget {
  #context = null;
  #nodes = new Set();
  /** 0 until its pieces are scheduled: the loudspeaker may still have to wake, or the samples to be read. */
  #timer = 0;
  /** Where the schedule begins: this sample sounds at this time of the context. */
  #startSample = 0;
  #startTime = 0;
  /** First sample not scheduled yet, and the one before which it ends. */
  #next = 0;
  #to = Infinity;
  /** Seconds that must be there before a sound that ran dry goes on; more each time. */
  #cushion = 0;
  #grow = () => this.#pump();

  /** @type {import("./sound.js").Sound | null} what plays or is paused */
  sound = null;
  playing = false;
  /** Whether it plays but has run ahead of a sound that is still being made. */
  waiting = false;

  /** Plays a sound from one second to another; whatever played before stops. */
  play(sound, from = 0, to = Infinity) {
    this.stop();
    this.sound = sound;
    this.#startSample = this.#next = Math.round(from * RATE);
    this.#to = Math.round(to * RATE);
    this.#cushion = 0;
    return this.resume();
  }

  pause() {
    if (!this.playing) return;
    this.#startSample = this.#next = Math.round(this.position * RATE);
    this.#silence();
    this.playing = this.waiting = false;
    this.#changed();
  }

  /** Goes on; resolves once it does. It counts as playing from now on, so a pause that follows is one. */
  async resume() {
    const { sound } = this;
    if (!sound || this.playing) return;
    this.playing = this.waiting = true;
    this.#changed();
    // Made, or woken, here: browsers allow it only as the answer to a click.
    this.#context ??= new AudioContext({ sampleRate: RATE });
    try {
      await Promise.all([this.#context.resume(), sound.ready()]);
    } catch (error) {
      if (this.sound === sound) this.pause();
      throw error;
    }
    if (this.sound === sound && this.playing && !this.#timer) this.#start();
  }

  /** Plays this sound, or pauses it, or goes on: what a play button means. */
  toggle(sound) {
    if (this.sound !== sound) return this.play(sound);
    return this.playing ? this.pause() : this.resume();
  }

  /** Goes to a second of the sound that plays or is paused. */
  seek(seconds) {
    if (!this.sound) return;
    const started = this.#timer;
    this.#silence();
    this.#startSample = this.#next = Math.round(Math.max(0, Math.min(seconds, this.sound.seconds)) * RATE);
    if (started) this.#start();
    else this.#changed();
  }

  stop() {
    if (!this.sound) return;
    this.#silence();
    this.sound = null;
    this.playing = this.waiting = false;
    this.#changed();
  }

  /** Seconds into the sound. */
  get position() {
    const sample = this.playing && !this.waiting ? this.#sample() : this.#startSample;
    return Math.max(0, sample) / RATE;
  }

  #sample() {
    const heard = (this.#context.currentTime - this.#startTime) * RATE;
    return Math.min(this.#next, this.#startSample + Math.max(0, heard));
  }

  #start() {
    this.waiting = true;
    this.sound.addEventListener("grow", this.#grow);
    this.sound.addEventListener("end", this.#grow);
    this.#timer = setInterval(this.#grow, TICK);
    this.#pump();
    this.#changed();
  }

  #silence() {
    clearInterval(this.#timer);
    this.#timer = 0;
    this.sound.removeEventListener("grow", this.#grow);
    this.sound.removeEventListener("end", this.#grow);
    for (const node of this.#nodes) {
      node.onended = null;
      node.stop();
    }
    this.#nodes.clear();
  }

  /** Schedules what is there; notices that it ran dry, and that it is over. */
  #pump() {
    const { sound } = this;
    const now = this.#context.currentTime;
    const length = Math.min(sound.length, this.#to);
    const complete = sound.ended || length === this.#to;
    if (!this.waiting && this.#endTime() <= now) {
      if (this.#next >= length && complete) return this.#over();
      this.waiting = true;
      this.#startSample = this.#next;
      this.#cushion = Math.min(8, Math.max(0.5, this.#cushion * 2));
      this.#changed();
    }
    if (this.waiting) {
      const there = length - this.#next;
      if (there <= 0 && complete) return this.#over();
      if (there <= 0 || (there < this.#cushion * RATE && !complete)) return;
      this.waiting = false;
      this.#startTime = now + 0.02;
      this.#changed();
    }
    while (this.#next < length && this.#endTime() - now < AHEAD_SECONDS) this.#schedule(Math.min(length, this.#next + PIECE));
  }

  #schedule(to) {
    const samples = this.sound.slice(this.#next, to);
    const buffer = this.#context.createBuffer(1, samples.length, RATE);
    const channel = buffer.getChannelData(0);
    for (let i = 0; i < samples.length; i++) channel[i] = samples[i] / 32768;
    const node = this.#context.createBufferSource();
    node.buffer = buffer;
    node.connect(this.#context.destination);
    node.onended = () => {
      this.#nodes.delete(node);
      this.#pump();
    };
    node.start(this.#endTime());
    this.#nodes.add(node);
    this.#next += samples.length;
  }

  /** When the last scheduled sample is over. */
  #endTime() {
    return this.#startTime + (this.#next - this.#startSample) / RATE;
  }

  #over() {
    const { sound } = this;
    this.stop();
    this.dispatchEvent(new CustomEvent("over", { detail: sound }));
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

export const player = new Player();
