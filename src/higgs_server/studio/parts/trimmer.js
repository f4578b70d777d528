// A waveform with two handles: which part of a recording counts. Changes no sample.

import { h } from "../core/dom.js";
import { clock, t } from "../core/i18n.js";
import { player } from "../core/player.js";
import { RATE } from "../core/sound.js";
import { waveform } from "./waveform.js";

const STEP = 0.05;
const SHORTEST = 0.2;

/**
 * @param {import("../core/sound.js").Sound} sound a finished one
 * @param {{from?: number, to?: number, change: () => void}} options seconds
 */
export function trimmer(sound, { from = 0, to = sound.seconds, change }) {
  const limits = { from, to };
  const picture = waveform(sound, { selection: () => [limits.from, limits.to] });
  const handles = { from: handle("from", "trim.from"), to: handle("to", "trim.to") };
  const length = h("span", { class: "time", role: "status" });

  function handle(side, key) {
    const input = h("input", { type: "range", min: 0, max: sound.seconds, step: STEP, "t:aria-label": key, class: `handle ${side}` });
    input.value = limits[side];
    input.addEventListener("input", () => {
      const value = Number(input.value);
      limits[side] = side === "from" ? Math.min(value, limits.to - SHORTEST) : Math.max(value, limits.from + SHORTEST);
      show();
      change();
    });
    return input;
  }

  function show() {
    for (const side of ["from", "to"]) {
      handles[side].value = limits[side];
      handles[side].setAttribute("aria-valuetext", clock(limits[side]));
    }
    length.textContent = t("trim.length", { length: clock(limits.to - limits.from) });
    picture.dispatchEvent(new Event("draw"));
  }

  show();
  return {
    element: h("div", { class: "trimmer" }, h("div", { class: "trim-wave" }, picture, handles.from, handles.to), length),
    limits,
    /** Whether anything is cut off. */
    get trimmed() {
      return limits.from > STEP || limits.to < sound.seconds - STEP;
    },
    /** The samples that count. */
    samples: () => sound.slice(Math.round(limits.from * RATE), Math.round(limits.to * RATE)),
    play: () => (player.sound === sound && player.playing ? player.pause() : player.play(sound, limits.from, limits.to)),
  };
}
