// Dialogue: a script with a line a turn and a voice a speaker; lines are made one after another and joined.
// Knows nothing of how a line is drawn (dialogue-script.js) or kept (core/dialogue.js).

import { Dialogue } from "../core/dialogue.js";
import { h, iconButton, icon } from "../core/dom.js";
import { copy, save } from "../core/files.js";
import { clock, t } from "../core/i18n.js";
import { decodeText, withoutMarkdown } from "../core/plain.js";
import { player } from "../core/player.js";
import { projectFile, readProject } from "../core/project.js";
import { Series } from "../core/series.js";
import { server } from "../core/server.js";
import { silence, wav } from "../core/sound.js";
import { asTags, parseTurns } from "../core/turns.js";
import { delivery } from "../parts/delivery.js";
import { menu } from "../parts/menu.js";
import { complain, say } from "../parts/notices.js";
import { cast } from "./dialogue-cast.js";
import { lineTools } from "./dialogue-line.js";
import { scriptList } from "./dialogue-script.js";
import "./dialogue.words.js";
import "./speak.words.js"; // Stop, progress

const dialogue = new Dialogue();
const maker = new Series();
const speech = new Series();

const { element: castElement, newSpeaker } = cast(dialogue);
const script = scriptList(dialogue, {
  activate, newSpeaker,
  tools: () => tools.enter(),
  make: (line) => make([line]),
  stop: () => maker.stop(),
  making: () => maker.item,
});
const tools = lineTools(dialogue, {
  playFrom, remove,
  make: (line) => make([line]),
  textOf: script.textOf,
  write: script.write,
  focus: script.focus,
});
const sliders = delivery({ change: (values) => dialogue.setValues(values), prefix: "dialogue-" });

const makeButton = h("button", { type: "button", class: "primary", onclick: makeMissing }, icon("mic"), h("span", { t: "dialogue.make" }));
const stopButton = h("button", { type: "button", hidden: true, onclick: () => maker.stop() }, icon("stop"), h("span", { t: "cancel" }));
const playAll = h("button", { type: "button", onclick: () => playFrom(dialogue.lines[0]) }, icon("play"), h("span", { t: "dialogue.play" }));
const undoButton = iconButton("undo", "dialogue.undo", undo);
const progress = h("progress", { max: 1, value: 0, hidden: true, "t:aria-label": "speak.progress" });
const status = h("span", { class: "time", role: "status" });
const file = h("input", { type: "file", hidden: true, accept: ".json,.txt,.md,application/json,text/plain", onchange: () => openFile(file.files[0]) });
const project = menu(
  [icon("file"), h("span", { t: "dialogue.project" })],
  [
    { t: "project.save", act: () => attempt(saveProject) },
    { t: "project.open", act: () => file.click() },
    { t: "project.copy", act: () => attempt(copyScript) },
    { t: "project.new", act: startAnew },
  ],
);

const attempt = (act) => act().catch(complain);
const ready = (line) => dialogue.stateOf(line) === "ready";
const missing = () => dialogue.lines.filter((line) => !["ready", "empty"].includes(dialogue.stateOf(line)));
const sounding = (line) => (dialogue.takeOf(line)?.sound.length ? dialogue.takeOf(line) : null);

function activate(line) {
  script.active(line);
  tools.show(line);
}

// --- making and playing -----------------------------------------------------------------------------------------------

function makeMissing() {
  const lines = missing();
  if (lines.length) make(lines);
  else say(t(dialogue.lines.some(ready) ? "dialogue.all_made" : "speak.nothing"));
}

/** Makes these lines in turn. What fails stops it there, and the rest can be gone on with. */
async function make(lines) {
  if (maker.running) return say(t("dialogue.busy"));
  try {
    await maker.run(lines, { made: () => null, make: (line) => dialogue.newTake(line), join: false });
    if (lines.length > 1 && maker.done === lines.length) say(t("dialogue.made", { count: lines.length }));
    if (lines.length === 1 && sounding(lines[0])) player.play(sounding(lines[0]).sound);
  } catch (problem) {
    const rest = lines.filter((line) => dialogue.lines.includes(line) && !ready(line));
    if (rest.length && problem.code !== "cancelled") script.show(rest[0]);
    complain(problem, rest.length ? { key: "dialogue.go_on", act: () => make(rest) } : { key: "speak.retry", act: () => make(lines) });
  }
}

function drawProgress() {
  const made = dialogue.lines.filter(ready);
  const seconds = dialogue.lines.reduce((sum, line) => sum + (sounding(line) ? sounding(line).sound.seconds + line.pause : 0), 0);
  const words = dialogue.lines.filter(({ text }) => text.trim()).length;
  if (!maker.running && document.activeElement === stopButton) makeButton.focus(); // before that hides
  stopButton.hidden = progress.hidden = !maker.running;
  makeButton.setAttribute("aria-disabled", String(maker.running));
  if (maker.total) progress.value = maker.done / maker.total;
  status.textContent = words ? t("dialogue.status", { made: made.length, lines: words, length: clock(seconds) }) : "";
  undoButton.disabled = !dialogue.undoable;
}

/** Plays what is there, from a line to the end. */
async function playFrom(line) {
  const lines = dialogue.lines.slice(dialogue.lines.indexOf(line)).filter(sounding);
  if (!lines.length) return say(t("dialogue.nothing"));
  while (speech.running) await speech.stop();
  attempt(() => speech.run(lines, { made: sounding, make: null, pause: ({ pause }) => pause }));
  player.play(speech.sound);
}

// --- lines ------------------------------------------------------------------------------------------------------------

function remove(line) {
  const number = dialogue.lines.indexOf(line) + 1;
  script.remove(line);
  say(t("dialogue.removed", { number }), { key: "dialogue.undo", act: undo });
}

function undo() {
  const before = new Set(dialogue.lines);
  dialogue.undo();
  const back = dialogue.lines.find((line) => !before.has(line)) ?? dialogue.lines[0];
  if (back) script.focus(back);
}

function startAnew() {
  dialogue.clear(t("dialogue.speaker", { number: 1 }), dialogue.speakers[0]?.voice ?? null);
  script.focus(dialogue.lines[0]);
  say(t("project.emptied"), { key: "dialogue.undo", act: undo });
}

// --- files ------------------------------------------------------------------------------------------------------------

/** One file of all lines that have a sound, in order, with their pauses. */
async function exportWav() {
  const lines = dialogue.lines.filter(sounding);
  if (!lines.length) return say(t("dialogue.nothing"));
  const pieces = [];
  for (const line of lines) {
    const { sound } = sounding(line);
    await sound.ready();
    pieces.push(sound.slice(), silence(line.pause));
  }
  save(wav(...pieces), "dialogue.wav");
  const left = dialogue.lines.filter((line) => line.text.trim()).length - lines.length;
  if (left) say(t("dialogue.left_out", { count: left }));
}

async function saveProject() {
  save(await projectFile(dialogue), "dialogue.json");
}

async function copyScript() {
  const numbers = new Map(dialogue.speakers.map(({ id }, index) => [id, index]));
  await copy(asTags(dialogue.lines.filter(({ text }) => text.trim()).map(({ speaker, text }) => ({ speaker: numbers.get(speaker), text }))));
  say(t("copied"));
}

/** A project takes the place of the dialogue; a script is put at its end. */
async function openFile(chosen) {
  file.value = "";
  if (!chosen) return;
  try {
    if (/\.json$/i.test(chosen.name)) {
      const { takes, ...read } = await readProject(chosen);
      maker.stop();
      dialogue.replace(read, takes);
      sliders.value = dialogue.values;
      await dialogue.save();
      say(t("project.opened", { name: chosen.name }), { key: "dialogue.undo", act: undo });
    } else {
      const text = decodeText(await chosen.arrayBuffer());
      script.paste(parseTurns(/\.md$/i.test(chosen.name) ? withoutMarkdown(text) : text), dialogue.lines.at(-1));
    }
  } catch (problem) {
    complain(problem);
  }
}

function drop(event) {
  const [dropped] = event.dataTransfer.files;
  if (!dropped) return;
  event.preventDefault();
  openFile(dropped);
}

/** @type {import("../main.js").View} */
export const dialogueView = {
  id: "dialogue",
  title: "nav.dialogue",
  element: h(
    "div",
    { class: "columns dialogue", inert: true, ondragover: (event) => event.dataTransfer.types.includes("Files") && event.preventDefault(), ondrop: drop },
    h(
      "div",
      { class: "desk" },
      h("div", { class: "row wrap deck" }, makeButton, stopButton, playAll, iconButton("download", "dialogue.export", () => attempt(exportWav), { bare: false }), project, undoButton, file),
      h("div", { class: "row" }, progress, status),
      script.element,
      h("p", { class: "help", t: "dialogue.keys" }),
    ),
    h(
      "aside",
      { class: "side", "t:aria-label": "dialogue.side" },
      tools.element,
      castElement,
      h("details", { class: "more" }, h("summary", { t: "delivery" }), sliders.element),
    ),
  ),
  async start() {
    for (const type of ["lines", "line"]) dialogue.addEventListener(type, drawProgress);
    dialogue.addEventListener("problem", ({ detail }) => complain(detail));
    let making = null;
    maker.addEventListener("change", () => {
      server.busy = maker.running;
      const before = making;
      making = maker.item;
      for (const line of [before, making]) if (line) script.drawLine(line);
      drawProgress();
    });
    speech.follow(script.heard);
    document.addEventListener("languagechange", drawProgress);
    // Nothing is written into what has not been read yet.
    await dialogue.open().finally(() => (this.element.inert = false));
    sliders.value = dialogue.values;
    if (!dialogue.lines.length) dialogue.insert(0, [{ speaker: newSpeaker().id }]);
    activate(dialogue.lines[0]);
  },
};
