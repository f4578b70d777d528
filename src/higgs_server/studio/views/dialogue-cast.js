// Who speaks in a dialogue, and with which voice.

import { fill, h, iconButton } from "../core/dom.js";
import { t } from "../core/i18n.js";
import { library, speakable } from "../core/library.js";
import { voiceSelect } from "../parts/voice-select.js";

/** @param {import("../core/dialogue.js").Dialogue} dialogue */
export function cast(dialogue) {
  /** Who came before the list of voices. */
  const voiceless = [];
  const list = h("ul", { class: "cast" });
  const element = h(
    "section",
    {},
    h("h2", { t: "dialogue.speakers" }),
    list,
    h("div", {}, iconButton("plus", "dialogue.speaker.new", () => (newSpeaker(), list.lastElementChild.querySelector("input").select()), { bare: false, class: "quiet" })),
  );

  function row(speaker, index) {
    const name = h("input", {
      type: "text", value: speaker.name, maxLength: 60, "aria-label": t("dialogue.speaker.name", { number: index + 1 }),
      onchange: () => dialogue.setSpeaker(speaker, { name: name.value.trim() || speaker.name }),
    });
    const voice = voiceSelect({
      value: speaker.voice,
      change: (choice) => dialogue.setSpeaker(speaker, { voice: choice }),
      "aria-label": t("dialogue.speaker.voice", { name: speaker.name }),
    });
    const speaks = dialogue.speaks(speaker);
    const remove = iconButton("trash", speaks ? "dialogue.speaker.speaks" : "dialogue.speaker.remove", () => dialogue.removeSpeaker(speaker), { disabled: speaks });
    return h("li", { class: "speaker", "data-speaker": index % 6, "data-id": speaker.id }, h("div", { class: "row" }, name, remove), voice.element);
  }

  /** Draws anew only what is different: the focus stays where it is. */
  function draw() {
    const focused = document.activeElement?.closest?.(".speaker")?.dataset.id;
    const field = document.activeElement?.tagName;
    fill(list, dialogue.speakers.map(row));
    if (focused) list.querySelector(`[data-id="${focused}"] ${field}`)?.focus();
  }

  /** The speaker of that name; a new one gets a voice, once there are any. */
  function newSpeaker(name = nextName()) {
    const speaker = dialogue.speakerNamed(name, freeVoice());
    if (!library.voices.length) voiceless.push(speaker);
    return speaker;
  }

  /** The first voice that nobody has yet, those in the language of the page before others. */
  function freeVoice() {
    const taken = new Set(dialogue.speakers.map(({ voice }) => voice));
    const language = document.documentElement.lang.slice(0, 2);
    const voices = library.voices.filter(speakable).toSorted((a, b) => (b.language === language) - (a.language === language)).map(({ name }) => name);
    return voices.find((voice) => !taken.has(voice)) ?? voices[0] ?? null;
  }

  function giveVoices() {
    for (const speaker of library.voices.length ? voiceless.splice(0) : []) {
      const heard = dialogue.lines.some((line) => line.speaker === speaker.id && dialogue.takeOf(line));
      if (speaker.voice === null && !heard) dialogue.setSpeaker(speaker, { voice: freeVoice() });
    }
  }

  function nextName() {
    const names = new Set(dialogue.speakers.map(({ name }) => name));
    let number = dialogue.speakers.length + 1;
    while (names.has(t("dialogue.speaker", { number }))) number++;
    return t("dialogue.speaker", { number });
  }

  library.addEventListener("change", giveVoices);
  dialogue.addEventListener("speakers", draw);
  dialogue.addEventListener("lines", () => {
    for (const [index, item] of [...list.children].entries()) item.querySelector(".row > button").disabled = dialogue.speaks(dialogue.speakers[index]);
  });
  document.addEventListener("languagechange", draw);
  return { element, newSpeaker };
}
