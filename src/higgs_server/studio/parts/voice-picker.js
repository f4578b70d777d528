// Voice cards to choose one from: any voice, the library's, and those described in words.

import { fill, h, icon, listen } from "../core/dom.js";
import { t } from "../core/i18n.js";
import { library, speakable } from "../core/library.js";
import { player } from "../core/player.js";
import { server } from "../core/server.js";
import { complain } from "./notices.js";

let groups = 0;

/** A button that plays, and pauses, the clip of a voice. */
export function clipButton(name) {
  let sound = null;
  const button = h("button", { type: "button", class: "quiet square", "t:aria-label": ["voice.play", { name }], onclick }, icon("play"));
  async function onclick() {
    try {
      sound = await library.clip(name);
      await player.toggle(sound);
    } catch (error) {
      complain(error);
    }
  }
  listen(button, player, "change", () => fill(button, icon(sound && player.sound === sound && player.playing ? "pause" : "play")));
  return button;
}

/**
 * A group of cards. `change(ref_audio)` is told of each choice: a voice's name, `profile:NAME`, or null for any voice.
 * @param {{change: (choice: string | null) => void}} options
 */
export function voicePicker({ change }) {
  const group = `voice-${groups++}`;
  const box = h("div", { class: "voice-cards", role: "radiogroup", "t:aria-label": "voice.choose" });
  const words = h("span", { class: "chosen" });
  let chosen = null;

  function card(value, title, detail, { clip = null, disabled = false, meta = null } = {}) {
    const id = `${group}-${value ?? ""}`;
    const input = h("input", {
      type: "radio", name: group, id, disabled,
      checked: value === chosen,
      onchange: () => {
        chosen = value;
        name();
        change(value);
      },
    });
    const label = h("label", { htmlFor: id }, h("span", { class: "voice-name" }, title, meta && h("span", { class: "tag" }, meta)), detail);
    return h("div", { class: "voice-card" }, input, label, clip && clipButton(clip));
  }

  function name() {
    words.textContent = chosen?.replace("profile:", "").replaceAll("_", " ") ?? t("voice.any");
  }

  function draw() {
    name();
    const described = server.can("scenes");
    const note = (key) => h("span", { class: "voice-detail", t: key });
    fill(
      box,
      card(null, h("span", { t: "voice.any" }), note("voice.any.detail")),
      library.voices.map((voice) => {
        const { name, language: spoken, transcript } = voice;
        const able = speakable(voice);
        const detail = able ? transcript && h("span", { class: "voice-detail", lang: spoken ?? "" }, transcript) : note("cannot.described");
        return card(name, name, detail, {
          clip: name,
          disabled: !able,
          meta: spoken && h("span", { t: `language.${spoken}` }),
        });
      }),
      library.profiles.map(({ name, description }) =>
        card(`profile:${name}`, name.replaceAll("_", " "), h("span", { class: "voice-detail", lang: "en" }, described ? description : h("span", { t: "cannot.described" })), {
          disabled: !described,
          meta: h("span", { t: "voice.described" }),
        }),
      ),
    );
  }

  document.addEventListener("languagechange", name);
  library.addEventListener("change", draw);
  server.addEventListener("ability", draw);
  draw();
  return {
    element: box,
    /** The name of what is chosen. */
    chosen: words,
    get value() {
      return chosen; // of one that is gone, the server says so
    },
    set value(choice) {
      chosen = choice;
      draw();
    },
  };
}
