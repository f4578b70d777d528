// Speak: a text, a voice and how it is said, and the takes that came of it.
// Knows nothing of how sound is fetched, kept or played.

import { arrange, fill, h, icon, listen } from "../core/dom.js";
import { bind, clock, t } from "../core/i18n.js";
import { library } from "../core/library.js";
import { player } from "../core/player.js";
import { server } from "../core/server.js";
import { store } from "../core/store.js";
import { Take, onOtherTab } from "../core/takes.js";
import { delivery } from "../parts/delivery.js";
import { fold } from "../parts/fold.js";
import { complain, say } from "../parts/notices.js";
import { expectedSeconds, takeCard } from "../parts/take-card.js";
import { voicePicker } from "../parts/voice-picker.js";
import "./speak.words.js";

const VIEW = "speak";
/** As /v1/audio/speech cuts long texts: a download in another format is then the same speech. */
const CUT = { chunk_method: "word", chunk_max_word_num: 100 };

const text = h("textarea", { id: "text", rows: 7, "t:placeholder": "speak.placeholder", oninput: keep, onkeydown: shortcut });
const count = h("span", { class: "help push" });
const voices = voicePicker({ change: keep });
const scene = h("select", { "t:aria-label": "scene", onchange: keep });
const sceneReason = h("p", { class: "cannot", t: "cannot.scenes" });
const sceneWords = h("p", { class: "help", lang: "en" });
const sliders = delivery({ change: keep });
const speakButton = h("button", { type: "button", class: "primary", onclick: speak }, icon("play"), h("span", { t: "speak" }));
const cancelButton = h("button", { type: "button", hidden: true, onclick: () => running?.cancel() }, icon("stop"), h("span", { t: "cancel" }));
const progress = h("progress", { max: 1, value: 0, hidden: true, "t:aria-label": "speak.progress" });
const left = h("span", { class: "time", role: "status" });
const list = h("div", { class: "takes" });
const empty = h("p", { class: "empty", t: "speak.empty" });

/** @type {Take[]} newest first */
let takes = [];
/** @type {WeakMap<Take, HTMLElement>} */
const cards = new WeakMap();
/** @type {Take | null} */
let running = null;
/** @type {string | null} the draft's scene, until the list of scenes has come */
let wantedScene = "quiet_indoor";

const chosenScene = () => (library.scenes.length ? scene.value : wantedScene);

function draft() {
  return { text: text.value, voice: voices.value, scene: chosenScene(), values: sliders.value };
}

function keep() {
  wantedScene = chosenScene();
  showCount();
  showScene();
  store.saveDraft(VIEW, draft()).catch(complain);
}

function load({ text: words, voice, scene: place, values }) {
  text.value = words;
  voices.value = voice;
  wantedScene = place;
  sliders.value = values;
  drawScenes();
  showCount();
}

function showCount() {
  count.textContent = text.value.trim() ? t("speak.count", { seconds: clock(expectedSeconds(text.value)) }) : "";
}

function showScene() {
  sceneWords.textContent = server.can("scenes") ? (library.scenes.find(({ name }) => name === scene.value)?.content ?? "") : "";
}

/** The request as the page stands. */
function request() {
  const { text: words, voice, scene: place, values } = draft();
  return { text: words.trim(), ref_audio: voice, scene_prompt: server.can("scenes") ? place || null : null, ...values, ...CUT };
}

function shortcut(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) speak();
}

async function speak() {
  if (!text.value.trim()) {
    text.focus();
    say(t("speak.nothing"));
    return;
  }
  await make(request());
}

/** Makes a take of a request, unless one is being made: a second click changes nothing. */
async function make(asked) {
  if (running) return;
  const take = (running = new Take({ view: VIEW, request: asked, name: title(asked.text) }));
  takes.unshift(take);
  drawTakes();
  busy(true);
  player.play(take.sound);
  take.addEventListener("progress", showProgress);
  showProgress();
  try {
    await take.make();
    say(t("speak.done", { seconds: clock(take.sound.seconds) }));
  } catch (error) {
    complain(error, { key: "speak.retry", act: () => make(asked) });
    if (!take.sound.length) takes = takes.filter((other) => other !== take);
  } finally {
    running = null;
    busy(false);
    drawTakes();
  }
}

function busy(is) {
  server.busy = is;
  server.look();
  speakButton.setAttribute("aria-disabled", String(is));
  if (!is && document.activeElement === cancelButton) speakButton.focus(); // before that hides
  cancelButton.hidden = progress.hidden = !is;
  if (!is) left.textContent = "";
}

function showProgress() {
  if (!running) return;
  const { seconds } = running.sound;
  const elapsed = (performance.now() - running.started) / 1000;
  const expected = Math.max(expectedSeconds(running.kept.request.text), seconds * 1.05);
  const { chunk, chunks } = running.progress ?? { chunk: 1, chunks: 1 };
  if (!seconds) {
    progress.removeAttribute("value");
    left.textContent = t("speak.waiting");
    return;
  }
  progress.value = Math.max((chunk - 1) / chunks, seconds / expected);
  const remaining = ((expected - seconds) * elapsed) / seconds;
  left.textContent = t("speak.left", { made: clock(seconds), left: clock(Math.max(remaining, 0.1)) });
}

const title = (words) => words.replace(/\s+/g, " ").slice(0, 48);

function drawTakes() {
  takes.forEach((take, index) => cards.has(take) || cards.set(take, card(take, takes[index + 1])));
  arrange(list, takes.map((take) => cards.get(take)));
  empty.hidden = takes.length > 0;
}

function card(take, before) {
  const { request: asked } = take.kept;
  const values = (kept) => ({ ...kept.request, voice: kept.request.ref_audio, scene: kept.request.scene_prompt });
  return takeCard(take, {
    differs: (name) => before !== undefined && name !== "seed" && values(take.kept)[name] !== values(before.kept)[name],
    ondelete: () => {
      takes = takes.filter((other) => other !== take);
      drawTakes();
      text.focus();
    },
    actions: [
      anotherButton(asked),
      h("button", {
        type: "button", t: "take.again", "t:title": "take.again.help",
        onclick: () => make({ ...asked, seed: take.kept.answer?.seed ?? asked.seed }),
      }),
      h("button", { type: "button", t: "take.load", "t:title": "take.load.help", onclick: () => restore(take) }),
    ],
  });
}

/** Asks again with a new seed, of a model that then says it differently. */
function anotherButton(asked) {
  const button = h("button", { type: "button", t: "take.another", onclick: () => make({ ...asked, seed: null }) });
  function grey() {
    button.disabled = !server.can("sampling");
    bind(button, "title", button.disabled ? "cannot.sampling" : "take.another.help");
  }
  listen(button, server, "ability", grey);
  grey();
  return button;
}

/** Puts a take's text and settings, its seed too, back into the form; can be undone. */
function restore({ kept: { name, request: asked, answer } }) {
  const { text: words, ref_audio, scene_prompt, seed, ...values } = asked;
  const before = draft();
  load({ text: words, voice: ref_audio, scene: scene_prompt ?? "", values: { ...values, seed: answer?.seed ?? seed } });
  keep();
  text.focus();
  // A second click must not take the way back of the first away.
  if (JSON.stringify(draft()) !== JSON.stringify(before)) say(t("project.opened", { name }), { key: "dialogue.undo", act: () => (load(before), keep()) });
}

function drawScenes() {
  const can = server.can("scenes");
  const options = library.scenes.map(({ name, content }) => h("option", { value: name, title: content }, name.replaceAll("_", " ")));
  fill(scene, h("option", { value: "", t: "scene.none" }), options);
  scene.value = library.scenes.some(({ name }) => name === wantedScene) ? wantedScene : "";
  scene.disabled = !can;
  showScene();
  sceneReason.hidden = can;
}

async function readTakes() {
  const stored = await Take.all(VIEW);
  // What another tab has changed is shown anew, all else stays, with its sound and its place.
  const same = (a, b) => ["id", "name", "problem", "length"].every((field) => a.kept[field] === b.kept[field]) && !a.kept.answer === !b.kept.answer;
  const current = stored.reverse().map((take) => takes.find((known) => known === running ? known.kept.id === take.kept.id : same(known, take)) ?? take);
  takes = running && !current.includes(running) ? [running, ...current] : current;
  drawTakes();
}

/** @type {import("../main.js").View} */
export const speakView = {
  id: VIEW,
  title: "nav.speak",
  element: h(
    "div",
    { class: "columns speak" },
    h(
      "div",
      { class: "desk write" },
      h("label", { class: "sr", for: "text", t: "speak.text" }),
      h("div", { class: "sheet" }, text, h("div", { class: "row" }, h("span", { class: "help keys", t: "speak.shortcut" }), count)),
      h("div", { class: "row wrap deck" }, speakButton, cancelButton, progress, left),
    ),
    h(
      "aside",
      { class: "side", "t:aria-label": "speak.settings" },
      fold("voice", voices.chosen, voices.element),
      fold("scene", null, [sceneReason, scene, sceneWords]),
      fold("delivery", null, sliders.element),
    ),
    h("div", { class: "desk takes-part" }, h("h2", { t: "speak.takes" }), empty, list),
  ),
  async start() {
    library.addEventListener("change", drawScenes);
    server.addEventListener("ability", drawScenes);
    document.addEventListener("languagechange", () => (showCount(), showProgress()));
    library.addEventListener("use", ({ detail }) => {
      voices.value = detail;
      keep();
      location.hash = VIEW;
      text.focus();
    });
    onOtherTab(VIEW, () => readTakes().catch(complain));
    drawScenes();
    const saved = await store.draft(VIEW);
    if (saved && !text.value) load(saved);
    await readTakes();
  },
};
