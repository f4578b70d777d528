// A waveform that grows with its Sound, shows where the player is, and is where one goes to another second.

import { h, listen } from "../core/dom.js";
import { clock } from "../core/i18n.js";
import { player } from "../core/player.js";

const BAR = 2;
const GAP = 1;
const STEP_SECONDS = 1;

/**
 * The waveform of a sound, a slider for the keyboard. `expected()` says how many seconds a growing sound will have,
 * `selection()` which seconds of it count; dispatch `draw` on the element when that has changed.
 * @param {import("../core/sound.js").Sound} sound
 * @param {{expected?: () => number, selection?: () => [number, number]}} [options]
 */
export function waveform(sound, { expected = () => 0, selection = () => [0, Infinity] } = {}) {
  const canvas = h("canvas", {
    class: "waveform",
    role: "slider",
    tabIndex: 0,
    "t:aria-label": "waveform.position",
    "aria-valuemin": 0,
    "aria-valuenow": 0,
    onkeydown: key,
    onclick: ({ offsetX }) => go((offsetX / canvas.clientWidth) * total()),
  });
  let frame = 0;

  const total = () => Math.max(sound.seconds, sound.ended ? 0 : expected(), 0.01);
  const position = () => (player.sound === sound ? player.position : 0);

  function go(seconds) {
    const to = Math.max(0, Math.min(seconds, sound.seconds));
    if (player.sound === sound) player.seek(to);
    else if (sound.length) player.play(sound, to);
  }

  function key(event) {
    const to = {
      ArrowLeft: position() - STEP_SECONDS,
      ArrowRight: position() + STEP_SECONDS,
      PageDown: position() - 10,
      PageUp: position() + 10,
      Home: 0,
      End: sound.seconds,
    }[event.key];
    if (event.key === " " || event.key === "Enter") player.toggle(sound);
    else if (to !== undefined) go(to);
    else return;
    event.preventDefault();
  }

  function draw() {
    frame = 0;
    if (!canvas.isConnected) return;
    const { clientWidth: width, clientHeight: height } = canvas;
    const scale = devicePixelRatio;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    const played = (position() / total()) * width;
    const perPixel = (total() * 100) / width; // peaks are 10 ms each
    const [first, last] = selection().map((seconds) => (seconds / total()) * width);
    for (let x = 0; x < width; x += BAR + GAP) {
      const from = Math.floor(x * perPixel);
      const to = Math.max(from + 1, Math.floor((x + BAR + GAP) * perPixel));
      const there = from < sound.peaks.length;
      let peak = 0;
      for (let i = from; i < to && i < sound.peaks.length; i++) peak = Math.max(peak, sound.peaks[i]);
      const size = there ? Math.max(2, (peak / 32768) ** 0.7 * height) : 1;
      pen.fillStyle = x < played ? style.caretColor : style.color;
      pen.globalAlpha = there && x >= first && x <= last ? 1 : 0.35;
      pen.fillRect(x, (height - size) / 2, BAR, size);
    }
    canvas.setAttribute("aria-valuemax", total().toFixed(1));
    canvas.setAttribute("aria-valuenow", position().toFixed(1));
    canvas.setAttribute("aria-valuetext", `${clock(position())} / ${clock(sound.seconds)}`);
    if (player.sound === sound && player.playing) later();
  }

  function later() {
    frame ||= requestAnimationFrame(draw);
  }

  if (!sound.ended) {
    // Sounds outlive their pictures.
    sound.addEventListener("grow", later);
    sound.addEventListener("end", () => (sound.removeEventListener("grow", later), later()), { once: true });
  }
  canvas.addEventListener("draw", later);
  listen(canvas, player, "change", later);
  listen(canvas, document, "themechange", later);
  new ResizeObserver(later).observe(canvas);
  return canvas;
}
