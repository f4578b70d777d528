// The microphone: samples as they are spoken, untouched by the browser's telephone filters. Shows nothing.

import { RATE, Sound, toInt16 } from "./sound.js";

/** Browsers give the microphone to https pages and to localhost alone. */
export const canRecord = () => Boolean(navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode);

/**
 * Starts to record. Raises what getUserMedia raises (NotAllowedError, NotFoundError …), and what audio worklets do.
 * @returns {Promise<{live: Sound, stop: () => Promise<Sound>}>} `live` grows, roughly resampled, for the eye;
 *   `stop()` ends it and resolves to the recording at 24 kHz
 */
export async function record() {
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
  });
  let context;
  let node;
  async function release() {
    stream.getTracks().forEach((track) => track.stop());
    await context?.close();
  }
  try {
    context = new AudioContext();
    await context.audioWorklet.addModule(new URL("recorder-worklet.js", import.meta.url));
    node = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
  } catch (error) {
    await release();
    throw error;
  }
  const live = new Sound();
  const pieces = [];
  let heard = 0;
  node.port.onmessage = ({ data }) => {
    pieces.push(data);
    const from = heard;
    heard += data.length;
    const count = Math.floor((heard * RATE) / context.sampleRate) - live.length;
    const step = context.sampleRate / RATE;
    live.append(toInt16(Float32Array.from({ length: count }, (_, i) => data[Math.min(data.length - 1, Math.max(0, Math.round((live.length + i) * step - from)))])));
  };
  context.createMediaStreamSource(stream).connect(node);

  async function stop() {
    node.port.onmessage = null;
    live.end();
    const { sampleRate } = context;
    await release();
    return heard ? resample(pieces, heard, sampleRate) : Sound.of();
  }
  return { live, stop };
}

/** Pieces at another rate as a Sound. The browser's own resampling is good; it is made for music. */
async function resample(pieces, length, rate) {
  const offline = new OfflineAudioContext(1, Math.ceil((length * RATE) / rate), RATE);
  const buffer = offline.createBuffer(1, length, rate);
  let at = 0;
  for (const piece of pieces) {
    buffer.copyToChannel(piece, 0, at);
    at += piece.length;
  }
  const source = offline.createBufferSource();
  source.buffer = buffer;
  source.connect(offline.destination);
  source.start();
  return Sound.of(toInt16((await offline.startRendering()).getChannelData(0)));
}
