// Long text: a text or a file, the pieces it is spoken in, and the speech, followed in the text as it is heard.
// Knows nothing of how pieces are drawn (longtext-reader.js) or kept (core/reading.js).

import { h, icon, iconButton } from "../core/dom.js";
import { fileName, save } from "../core/files.js";
import { clock, t } from "../core/i18n.js";
import { library, speakable } from "../core/library.js";
import { decodeText, withoutMarkdown } from "../core/plain.js";
import { player } from "../core/player.js";
import { Reading, VIEW } from "../core/reading.js";
import { Series } from "../core/series.js";
import { server } from "../core/server.js";
import { wav } from "../core/sound.js";
import { delivery } from "../parts/delivery.js";
import { complain, say } from "../parts/notices.js";
import { voiceSelect } from "../parts/voice-select.js";
import { pieceTools } from "./longtext-piece.js";
import { reader } from "./longtext-reader.js";
import "./longtext.words.js";
import "./speak.words.js"; // Stop, progress

const LARGEST_FILE = 20e6;
const SIZES = [30, 60, 120, 200];

const reading = new Reading();
const series = new Series();

const text = h("textarea", { id: "longtext-text", rows: 12, "t:placeholder": "longtext.placeholder", "t:aria-label": "longtext.text", oninput: () => reading.set({ text: text.value }) });
const tools = pieceTools(reading, { make: (piece) => speak([piece], { again: true }), playFrom });
const page = reader(reading, { choose: (piece) => tools.show(piece, { open: document.activeElement?.closest(".reader") !== null }), playFrom });
const sheet = h("div", { class: "sheet" }, text, page.element);

const speakButton = h("button", { type: "button", class: "primary", onclick: () => speakOn() }, icon("play"), h("span"));
const stopButton = h("button", { type: "button", hidden: true, onclick: () => series.stop() }, icon("stop"), h("span", { t: "cancel" }));
const planButton = h("button", { type: "button", onclick: () => attempt(plan) }, icon("check"), h("span", { t: "longtext.plan" }));
const editButton = h("button", { type: "button", onclick: edit }, icon("pen"), h("span", { t: "longtext.edit" }));
const exportButton = iconButton("download", "dialogue.export", () => attempt(exportWav), { bare: false });
const file = h("input", { type: "file", hidden: true, accept: ".txt,.md,.markdown,text/plain,text/markdown", onchange: () => openFile(file.files[0]) });
const progress = h("progress", { max: 1, value: 0, hidden: true, "t:aria-label": "speak.progress" });
const status = h("span", { class: "time", role: "status" });
const voice = voiceSelect({ value: null, change: (choice) => reading.set({ voice: choice }), "t:aria-label": "voice" });
const size = h("select", { id: "longtext-size", onchange: () => reading.set({ words: Number(size.value) }) }, SIZES.map((words) => h("option", { value: words, t: ["longtext.words", { words }] })));
const sliders = delivery({ change: (values) => reading.set({ values }), prefix: "longtext-" });

const attempt = (act) => act().catch(complain);
const ready = (piece) => reading.stateOf(piece) === "ready";
const spoken = () => reading.pieces.filter((piece) => reading.stateOf(piece) !== "skipped");

// --- pieces -----------------------------------------------------------------------------------------------------------

async function plan() {
  if (!reading.text.trim()) {
    text.focus();
    return say(t("speak.nothing"));
  }
  planButton.disabled = true;
  try {
    await reading.plan();
  } finally {
    planButton.disabled = false;
  }
}

/** Back to the text; its pieces stay until they are asked for again. */
function edit() {
  series.stop();
  reading.set({ planned: false });
  text.focus();
}

function drawPlan() {
  const { planned } = reading;
  text.hidden = planned;
  page.element.hidden = !planned;
  planButton.hidden = planned;
  editButton.hidden = !planned;
  if (planned) page.draw();
  else tools.show(null);
  if (text.value !== reading.text) text.value = reading.text;
  size.value = reading.words;
  drawStatus();
}

function drawStatus() {
  const all = reading.planned ? spoken() : [];
  const made = all.filter(ready);
  const key = !made.length ? "speak" : made.length < all.length ? "dialogue.go_on" : "dialogue.play";
  speakButton.lastElementChild.textContent = t(key);
  speakButton.setAttribute("aria-disabled", String(series.running));
  if (!series.running && document.activeElement === stopButton) speakButton.focus(); // before that hides
  stopButton.hidden = progress.hidden = !series.running;
  exportButton.disabled = !made.length;
  progress.value = all.length ? made.length / all.length : 0;
  const seconds = made.reduce((sum, piece) => sum + reading.takeOf(piece).sound.seconds, 0);
  const expected = seconds + all.filter((piece) => !ready(piece)).reduce((sum, piece) => sum + piece.seconds, 0);
  status.textContent = all.length ? t("longtext.status", { made: made.length, count: all.length, seconds: clock(seconds), expected: clock(expected) }) : "";
}

// --- speaking ---------------------------------------------------------------------------------------------------------

/** From where the sound ends to the end of the text; all of it once everything is there. */
async function speakOn() {
  if (series.running) return;
  await attempt(async () => {
    if (!reading.planned) await plan();
    const pieces = spoken();
    const first = pieces.findIndex((piece) => !ready(piece));
    if (pieces.length) await speak(pieces.slice(Math.max(first, 0)));
  });
}

async function playFrom(piece) {
  const pieces = spoken();
  const first = pieces.findIndex((other) => reading.pieces.indexOf(other) >= reading.pieces.indexOf(piece));
  if (first < 0) return;
  while (series.running) await series.stop();
  await speak(pieces.slice(first));
}

/** Plays pieces in a row and makes those that are missing, or all of them `again`. */
async function speak(pieces, { again = false } = {}) {
  if (series.running) return say(t("dialogue.busy"));
  try {
    const run = series.run(pieces, { made: (piece) => (!again && ready(piece) ? reading.takeOf(piece) : null), make: (piece) => reading.newTake(piece) });
    player.play(series.sound);
    await run;
  } catch (problem) {
    const failed = pieces.find((piece) => !ready(piece));
    const refused = failed && problem.status >= 400 && problem.status < 500;
    const leaveOut = () => (reading.setPiece(failed, { skip: true }), speakOn());
    const goOn = failed ? { key: "dialogue.go_on", act: speakOn } : { key: "speak.retry", act: () => speak(pieces, { again }) };
    complain(problem, refused ? { key: "longtext.leave_out", act: leaveOut } : goOn);
  }
}

async function exportWav() {
  const pieces = spoken();
  const sounds = pieces.filter(ready).map((piece) => reading.takeOf(piece).sound);
  await Promise.all(sounds.map((sound) => sound.ready()));
  save(wav(...sounds.map((sound) => sound.slice())), `${fileName(reading.name || t("nav.longtext"))}.wav`);
  const left = pieces.length - sounds.length;
  if (left) say(t("longtext.left_out", { count: left }));
}

// --- files ------------------------------------------------------------------------------------------------------------

async function openFile(chosen) {
  file.value = "";
  if (!chosen) return;
  if (chosen.size > LARGEST_FILE) return complain(new Error(t("longtext.large")));
  series.stop();
  const words = decodeText(await chosen.arrayBuffer());
  const plain = /\.(md|markdown)$/i.test(chosen.name) ? withoutMarkdown(words) : words.replace(/\r\n?/g, "\n");
  const { text: before, name } = reading;
  reading.set({ text: plain, name: chosen.name.replace(/\.\w+$/, "") });
  text.focus();
  if (plain !== before) say(t("project.opened", { name: chosen.name }), { key: "dialogue.undo", act: () => reading.set({ text: before, name }) });
}

function drop(event) {
  const [dropped] = event.dataTransfer.files;
  if (!dropped) return;
  event.preventDefault();
  openFile(dropped).catch(complain);
}

/** A voice for all pieces: each is a request of its own, and any voice would be another one each time. */
function giveVoice() {
  const voices = library.voices.filter(speakable);
  if (reading.voice !== undefined || !voices.length) return;
  const language = document.documentElement.lang.slice(0, 2);
  reading.set({ voice: (voices.find((known) => known.language === language) ?? voices[0]).name });
  voice.value = reading.voice;
}

/** @type {import("../main.js").View} */
export const longtextView = {
  id: VIEW,
  title: "nav.longtext",
  element: h(
    "div",
    { class: "columns longtext", inert: true, ondragover: (event) => event.dataTransfer.types.includes("Files") && event.preventDefault(), ondrop: drop },
    h(
      "div",
      { class: "desk" },
      h("div", { class: "row wrap deck" }, speakButton, stopButton, planButton, editButton, iconButton("file", "longtext.open", () => file.click(), { bare: false }), exportButton, file),
      h("div", { class: "row" }, progress, status),
      sheet,
      h("p", { class: "help", t: "longtext.keys" }),
    ),
    h(
      "aside",
      { class: "side", "t:aria-label": "speak.settings" },
      tools.element,
      h("section", {}, h("h2", { t: "voice" }), voice.element),
      h("section", {}, h("h2", {}, h("label", { for: "longtext-size", t: "longtext.size" })), size, h("p", { class: "help", t: "longtext.size.help" })),
      h("details", { class: "more" }, h("summary", { t: "delivery" }), sliders.element),
    ),
  ),
  async start() {
    reading.addEventListener("plan", drawPlan);
    reading.addEventListener("piece", drawStatus);
    reading.addEventListener("problem", ({ detail }) => complain(detail));
    series.addEventListener("change", () => {
      server.busy = series.running;
      drawStatus();
    });
    series.follow(page.heard);
    document.addEventListener("languagechange", drawStatus);
    // Nothing is written into what has not been read yet.
    await reading.open().finally(() => (this.element.inert = false));
    library.addEventListener("change", giveVoice);
    voice.value = reading.voice ?? null;
    sliders.value = reading.values;
    giveVoice();
  },
};
