// Voices: the library as cards, each with its clip; one's own can be renamed, corrected and deleted.

import { ask } from "../core/api.js";
import { fill, h, icon, iconButton } from "../core/dom.js";
import { clock, t } from "../core/i18n.js";
import { library, speakable } from "../core/library.js";
import { server } from "../core/server.js";
import { confirmDelete } from "../parts/dialogs.js";
import { fold } from "../parts/fold.js";
import { complain, say } from "../parts/notices.js";
import { playButton } from "../parts/take-card.js";
import { clipButton } from "../parts/voice-picker.js";
import { waveform } from "../parts/waveform.js";
import { addVoice, startAddVoice } from "./add-voice.js";
import "./voices.words.js";

const list = h("div", { class: "voice-list" });
const filter = h("input", { type: "search", id: "voice-filter", "t:placeholder": "voices.filter", "t:aria-label": "voices.filter", oninput: draw });

/** Clips are fetched when their card comes into sight. */
const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    sight.unobserve(target);
    target.dispatchEvent(new Event("seen"));
  }
});

/** @type {Map<string, HTMLElement>} cards that are forms at present, by the voice's name */
const editing = new Map();

const path = (name) => `v1/audio/voices/${encodeURIComponent(name)}`;

function card(voice) {
  const { name, language, duration, transcript, read_only: fixed } = voice;
  const sound = h("div", { class: "row voice-sound", onseen: draw }, clipButton(name), h("span", { class: "waveform" }));
  async function draw() {
    const clip = await library.clip(name).catch(() => null);
    if (clip) fill(sound, playButton(clip), waveform(clip));
  }
  const words = h("p", { class: "take-text", lang: language ?? "" }, transcript || h("span", { t: "voices.no_transcript" }));
  const able = speakable(voice);
  const element = h(
    "article",
    { class: "card voice", "t:aria-label": ["voices.label", { name }] },
    h(
      "div",
      { class: "row" },
      h("h3", {}, name),
      language && h("span", { class: "tag", t: `language.${language}` }),
      h("span", { class: "tag", t: fixed ? "voices.shipped" : "voices.yours" }),
      duration && h("span", { class: "time push" }, clock(duration)),
    ),
    sound,
    words,
    h(
      "div",
      { class: "row wrap take-actions" },
      h("button", { type: "button", t: "voices.use", disabled: !able, "t:title": able ? undefined : "cannot.described", onclick: () => library.use(name) }),
      fixed ? null : h("button", { type: "button", onclick: () => edit(element, voice) }, icon("pen"), h("span", { t: "voices.edit" })),
      fixed ? null : iconButton("trash", "delete", () => remove(name)),
    ),
  );
  sight.observe(sound);
  return element;
}

/** The card as a form; what is typed stays when the list is read anew. */
function edit(element, { name, transcript }) {
  const close = () => editing.delete(name);
  editing.set(name, element);
  const id = `edit-${name}`;
  const nameInput = h("input", { type: "text", id, value: name, maxLength: 64 });
  const words = h("textarea", { id: `${id}-words`, rows: 4, value: transcript ?? "" });
  const keep = async (event) => {
    event.preventDefault();
    try {
      await ask(path(name), { method: "PATCH", json: { name: nameInput.value.trim(), ref_text: words.value.trim() } });
      close();
      library.forget(name);
      say(t("voices.changed"));
      await library.refresh();
    } catch (error) {
      complain(error);
    }
  };
  fill(
    element,
    h(
      "form",
      { class: "stack", onsubmit: keep },
      h("label", { htmlFor: id, t: "voices.name" }),
      nameInput,
      h("label", { htmlFor: `${id}-words`, t: "voices.transcript" }),
      words,
      h("div", { class: "row" }, h("button", { type: "submit", class: "primary", t: "voices.keep" }), h("button", { type: "button", t: "no", onclick: () => (close(), draw()) })),
    ),
  );
  nameInput.focus();
}

async function remove(name) {
  if (!(await confirmDelete("voices.delete.sure", { name }))) return;
  try {
    await ask(path(name), { method: "DELETE" });
    library.forget(name);
    say(t("voices.deleted", { name }));
    await library.refresh();
  } catch (error) {
    complain(error);
  }
}

function draw() {
  const sought = filter.value.trim().toLowerCase();
  const found = library.voices.filter(({ name, transcript }) => `${name} ${transcript ?? ""}`.toLowerCase().includes(sought));
  // One's own come first.
  found.sort((a, b) => Number(Boolean(a.read_only)) - Number(Boolean(b.read_only)));
  fill(list, found.length ? found.map((voice) => editing.get(voice.name) ?? card(voice)) : h("p", { class: "empty", t: "voices.none" }));
  filter.hidden = library.voices.length < 9 && !sought;
}

/** @type {import("../main.js").View} */
export const voicesView = {
  id: "voices",
  title: "nav.voices",
  element: h(
    "div",
    { class: "columns voices" },
    h("aside", { class: "side", "t:aria-label": "voices.add" }, fold("voices.add", null, addVoice)),
    h("div", { class: "desk" }, h("div", { class: "row" }, h("h2", { t: "voices.list" }), filter), list),
  ),
  async start() {
    library.addEventListener("change", draw);
    server.addEventListener("ability", draw);
    draw();
    await startAddVoice();
  },
};
