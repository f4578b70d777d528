// Sound as it grows: mono samples at 24 kHz with the peaks a waveform draws, and WAV files of it. Plays nothing.

export const RATE = 24000;
/** Samples to a peak: 10 ms. */
const STEP = 240;

/** Dispatches `grow` with new samples and `end` once there will be no more. */
export class Sound extends EventTarget {
  /** @type {Int16Array[] | null} null while they are still in the store */
  #pieces = [];
  #load = null;
  /** @type {number[]} the largest |sample| of each 10 ms, 0 to 32768 */
  peaks = [];
  length = 0;
  ended = false;

  /** A finished sound of these samples. */
  static of(...pieces) {
    const sound = new Sound();
    pieces.forEach((piece) => sound.append(piece));
    sound.end();
    return sound;
  }

  /** A finished sound whose samples `load` fetches once they are needed. */
  static stored(length, peaks, load) {
    const sound = new Sound();
    Object.assign(sound, { length, peaks: Array.from(peaks), ended: true });
    sound.#pieces = null;
    sound.#load = load;
    return sound;
  }

  get seconds() {
    return this.length / RATE;
  }

  /** @param {Int16Array} samples */
  append(samples) {
    if (!samples.length) return;
    for (let i = 0; i < samples.length; i++) {
      const slot = Math.floor((this.length + i) / STEP);
      const size = Math.abs(samples[i]);
      if (!(this.peaks[slot] >= size)) this.peaks[slot] = size;
    }
    this.#pieces.push(samples);
    this.length += samples.length;
    this.dispatchEvent(new Event("grow"));
  }

  end() {
    this.ended = true;
    this.dispatchEvent(new Event("end"));
  }

  /** Resolves once the samples are in memory. */
  async ready() {
    if (this.#pieces) return;
    this.#load = Promise.resolve(typeof this.#load === "function" ? this.#load() : this.#load);
    this.#pieces = await this.#load;
    this.length = this.#pieces.reduce((sum, piece) => sum + piece.length, 0);
  }

  /** Samples from one index to another. Only once they are ready. @returns {Int16Array} */
  slice(from = 0, to = this.length) {
    const samples = new Int16Array(Math.max(0, Math.min(to, this.length) - from));
    let start = 0;
    for (const piece of this.#pieces) {
      const part = piece.subarray(Math.max(0, from - start), Math.max(0, to - start));
      if (part.length) samples.set(part, Math.max(0, start - from));
      start += piece.length;
      if (start >= to) break;
    }
    return samples;
  }
}

/** Silence, as samples. */
export const silence = (seconds) => new Int16Array(Math.round(seconds * RATE));

/** Float samples, -1 to 1, as 16 bit. */
export function toInt16(floats) {
  const samples = new Int16Array(floats.length);
  for (let i = 0; i < floats.length; i++) samples[i] = Math.max(-1, Math.min(1, floats[i])) * 32767;
  return samples;
}

/** A file's sound in 24 kHz mono. Raises what the browser's decoder raises. @param {ArrayBuffer} data */
export async function decode(data) {
  const buffer = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(data);
  const mono = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const samples = buffer.getChannelData(channel);
    for (let i = 0; i < mono.length; i++) mono[i] += samples[i] / buffer.numberOfChannels;
  }
  return Sound.of(toInt16(mono));
}

/** A WAV file of 16 bit mono samples, one piece behind the other. @param {...Int16Array} pieces */
export function wav(...pieces) {
  const size = pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
  const header = new DataView(new ArrayBuffer(44));
  const text = (at, word) => [...word].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  header.setUint32(4, 36 + size, true);
  text(8, "WAVEfmt ");
  [16, 0x10001, RATE, RATE * 2, 0x100002].forEach((value, i) => header.setUint32(16 + 4 * i, value, true));
  text(36, "data");
  header.setUint32(40, size, true);
  return new Blob([header, ...pieces], { type: "audio/wav" });
}
