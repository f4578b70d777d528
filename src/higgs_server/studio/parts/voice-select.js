// A voice from a list that opens, where there is no room for cards; with a button that plays its clip.

import { fill, h, listen } from "../core/dom.js";
import { library, speakable } from "../core/library.js";
import { server } from "../core/server.js";
import { clipButton } from "./voice-picker.js";

/**
 * `change(ref_audio)` is told of each choice: a voice's name, `profile:NAME`, or null for any voice.
 * @param {{value: string | null, change: (choice: string | null) => void} & Record<string, any>} options other fields
 *   are the select's
 */
export function voiceSelect({ value, change, ...props }) {
  let chosen = value;
  const select = h("select", { class: "voice-select", onchange, ...props });
  const clip = h("span", { class: "voice-clip" });

  function onchange() {
    chosen = select.value || null;
    drawClip();
    change(chosen);
  }

  function draw() {
    const described = server.can("scenes");
    const option = (name, shown = name, disabled = false) => h("option", { value: name, disabled }, shown);
    const known = [...library.voices.map(({ name }) => name), ...library.profiles.map(({ name }) => `profile:${name}`)];
    fill(
      select,
      h("option", { value: "", t: "voice.any" }),
      library.voices.map((voice) => (speakable(voice) ? option(voice.name) : h("option", { value: voice.name, disabled: true, t: ["voice.cannot", voice] }))),
      library.profiles.length > 0 &&
        h("optgroup", { "t:label": described ? "voice.described" : "voice.described.cannot" }, library.profiles.map(({ name }) => option(`profile:${name}`, name.replaceAll("_", " "), !described))),
      chosen && !known.includes(chosen) && option(chosen), // until the list has come, or where the voice is gone
    );
    select.value = chosen ?? "";
    drawClip();
  }

  function drawClip() {
    fill(clip, library.voices.some(({ name }) => name === chosen) && clipButton(chosen));
  }

  const element = h("div", { class: "row" }, select, clip);
  listen(element, library, "change", draw);
  listen(element, server, "ability", draw);
  draw();
  return {
    element,
    set value(choice) {
      chosen = choice;
      draw();
    },
  };
}
