// The lines of a dialogue as a list that is written in: a row a line, kept light enough for hundreds of them.

import { arrange, fill, h, icon } from "../core/dom.js";
import { USUAL_PAUSE } from "../core/dialogue.js";
import { clock, t } from "../core/i18n.js";
import { player } from "../core/player.js";
import { parseTurns } from "../core/turns.js";

const NEW_SPEAKER = "+";
/** Other browsers than Chromium do not grow a textarea with its words yet. */
const GROWS = CSS.supports("field-sizing", "content");
const LETTERS_A_ROW = 56;

/**
 * @param {import("../core/dialogue.js").Dialogue} dialogue
 * @param {{activate: (line: any) => void, tools: () => void, make: (line: any) => void, stop: () => void, making: () => any,
 *   newSpeaker: (name?: string) => any}} acts `tools` moves the focus to the tools of the active line
 */
export function scriptList(dialogue, { activate, tools, make, stop, making, newSpeaker }) {
  const list = h("ol", {
    class: "script", "t:aria-label": "dialogue.script",
    oninput, onchange, onkeydown, onpaste, onclick, onfocusin, ondragstart, ondragover, ondragend, ondrop,
  });
  /** @type {Map<string, any>} */
  const rows = new Map();
  const lineOf = (node) => dialogue.lines.find(({ id }) => id === node.closest?.(".line")?.dataset.line);
  const textOf = (line) => rows.get(line.id).querySelector("textarea");
  let dragged = null;

  function row(line) {
    return h(
      "li",
      { class: "line", "data-line": line.id },
      h("button", { type: "button", class: "quiet line-number", draggable: true }),
      h("select", { class: "line-speaker" }),
      h("textarea", { class: "line-text", rows: 1, value: line.text, spellcheck: true }),
      h("span", { class: "time line-note" }),
      h("button", { type: "button", class: "square round line-play" }),
    );
  }

  function drawLines() {
    const focused = document.activeElement;
    dialogue.lines.forEach((line, index) => {
      if (!rows.has(line.id)) {
        rows.set(line.id, row(line));
        drawSpeaker(line);
        drawLine(line);
      }
      label(rows.get(line.id), index + 1);
    });
    const known = new Set(dialogue.lines.map(({ id }) => id));
    for (const id of rows.keys()) if (!known.has(id)) rows.delete(id);
    arrange(list, dialogue.lines.map(({ id }) => rows.get(id)));
    if (focused?.isConnected && list.contains(focused) && focused !== document.activeElement) focused.focus();
  }

  function label(item, number) {
    if (item.dataset.number === String(number)) return;
    item.dataset.number = number;
    const [handle, speaker, text] = item.children;
    handle.textContent = number;
    handle.setAttribute("aria-label", t("dialogue.tools_of", { number }));
    handle.title = t("dialogue.drag");
    speaker.setAttribute("aria-label", t("dialogue.speaker_of", { number }));
    text.setAttribute("aria-label", t("dialogue.line", { number }));
    text.placeholder = t(number === 1 ? "dialogue.placeholder.first" : "dialogue.placeholder");
  }

  /** The state of a line, its length and its button. */
  function drawLine(line) {
    const item = rows.get(line.id);
    if (!item) return;
    const [, , text, note, button] = item.children;
    const state = making() === line ? "making" : dialogue.stateOf(line);
    const sound = dialogue.takeOf(line)?.sound;
    const playing = state === "ready" && player.playing && player.sound === sound;
    const act = state === "making" ? "stop" : playing ? "pause" : state === "ready" ? "play" : "mic";
    item.dataset.state = state;
    note.textContent = state === "ready" ? clock(sound.seconds) : ["changed", "unfinished", "making"].includes(state) ? t(`dialogue.${state}`) : "";
    const key = `dialogue.${act}_line`;
    const words = t(key, { number: item.dataset.number ?? "" });
    if (button.dataset.act !== act) fill(button, icon(act));
    button.dataset.act = act;
    button.setAttribute("aria-label", words);
    button.title = words;
    button.disabled = state === "empty";
    if (text.value !== line.text) text.value = line.text;
    if (!GROWS) text.rows = Math.max(1, line.text.split("\n").reduce((sum, part) => sum + Math.ceil((part.length + 1) / LETTERS_A_ROW), 0));
  }

  function drawSpeaker(line) {
    const select = rows.get(line.id).children[1];
    const options = dialogue.speakers.map(({ id, name }) => new Option(name, id));
    fill(select, options, new Option(t("dialogue.speaker.new"), NEW_SPEAKER));
    select.value = line.speaker;
    const index = dialogue.speakers.findIndex(({ id }) => id === line.speaker);
    rows.get(line.id).dataset.speaker = index % 6;
  }

  function drawAll() {
    rows.forEach((item) => delete item.dataset.number);
    drawLines();
    for (const line of dialogue.lines) {
      drawSpeaker(line);
      drawLine(line);
    }
  }

  // --- what is done in it -------------------------------------------------------------------------------------------

  function oninput({ target }) {
    if (target.matches("textarea")) dialogue.set(lineOf(target), { text: target.value });
  }

  function onchange({ target }) {
    if (!target.matches("select")) return;
    const line = lineOf(target);
    const speaker = target.value === NEW_SPEAKER ? newSpeaker().id : target.value;
    dialogue.set(line, { speaker });
    drawSpeaker(line);
  }

  function onfocusin({ target }) {
    const line = lineOf(target);
    if (line) activate(line);
  }

  function onclick({ target }) {
    const line = lineOf(target);
    const button = target.closest("button");
    if (!line || !button) return;
    if (button.matches(".line-number")) tools();
    else if (button.dataset.act === "stop") stop();
    else if (button.dataset.act === "mic") make(line);
    else player.toggle(dialogue.takeOf(line).sound);
  }

  function onkeydown(event) {
    const { target, key } = event;
    if (event.isComposing) return;
    const line = lineOf(target);
    if (!line) return;
    const index = dialogue.lines.indexOf(line);
    if (event.altKey && (key === "ArrowUp" || key === "ArrowDown")) {
      event.preventDefault();
      dialogue.move(line, index + (key === "ArrowUp" ? -1 : 1));
      rows.get(line.id).scrollIntoView({ block: "nearest" });
      return;
    }
    if (!target.matches("textarea")) return;
    const alone = target.selectionStart === target.selectionEnd;
    if (key === "Enter" && (event.ctrlKey || event.metaKey)) make(line);
    else if (key === "Enter" && !event.shiftKey) write(index + 1);
    else if (key === "Backspace" && !target.value && dialogue.lines.length > 1) remove(line);
    else if (key === "ArrowUp" && alone && target.selectionStart === 0 && index > 0) focus(dialogue.lines[index - 1]);
    else if (key === "ArrowDown" && alone && target.selectionEnd === target.value.length && index + 1 < dialogue.lines.length) focus(dialogue.lines[index + 1]);
    else return;
    event.preventDefault();
  }

  /** A new line to write in; the speaker is whoever spoke before the last one. */
  function write(index) {
    const { speaker } = dialogue.lines[index - 2] ?? dialogue.lines[index - 1] ?? { speaker: newSpeaker().id };
    focus(dialogue.insert(index, [{ speaker, pause: dialogue.lines[index - 1]?.pause }])[0]);
  }

  function onpaste(event) {
    const line = lineOf(event.target);
    if (!line || !event.target.matches("textarea")) return;
    const turns = parseTurns(event.clipboardData.getData("text/plain"));
    if (turns.length < 2 && !turns[0]?.speaker) return;
    event.preventDefault();
    paste(turns, line);
  }

  /** Lines of a script after a line, in its place where it has no words. */
  function paste(turns, line) {
    const index = line ? dialogue.lines.indexOf(line) : dialogue.lines.length - 1;
    const empty = !dialogue.lines[index]?.text.trim();
    const { speaker, pause } = dialogue.lines[index] ?? { speaker: newSpeaker().id, pause: USUAL_PAUSE };
    const lines = turns.map((turn) => ({ ...turn, pause, speaker: turn.speaker === null ? speaker : newSpeaker(turn.speaker).id }));
    const made = dialogue.insert(empty ? Math.max(index, 0) : index + 1, lines, empty && dialogue.lines.length ? 1 : 0);
    const silent = dialogue.speakers.find(({ id }) => id === speaker);
    if (made.length === dialogue.lines.length && !dialogue.speaks(silent)) dialogue.removeSpeaker(silent);
    focus(made.at(-1));
  }

  function remove(line) {
    const index = dialogue.lines.indexOf(line);
    dialogue.remove(line);
    const near = dialogue.lines[Math.max(0, index - 1)];
    if (near) focus(near);
    else write(0);
  }

  function focus(line) {
    const text = textOf(line);
    text.focus();
    text.setSelectionRange(text.value.length, text.value.length);
  }

  // --- dragging -----------------------------------------------------------------------------------------------------

  function ondragstart(event) {
    dragged = lineOf(event.target);
    if (!dragged) return;
    event.dataTransfer.effectAllowed = "move";
    event.dataTransfer.setData("text/plain", dragged.text);
    event.dataTransfer.setDragImage(rows.get(dragged.id), 0, 0);
  }

  function ondragover(event) {
    if (!dragged) return;
    event.preventDefault();
    mark(lineOf(event.target));
  }

  function ondrop(event) {
    if (!dragged) return;
    event.preventDefault();
    const target = lineOf(event.target);
    if (target) dialogue.move(dragged, dialogue.lines.indexOf(target));
    ondragend();
  }

  function ondragend() {
    dragged = null;
    mark(null);
  }

  function mark(line) {
    list.querySelector(".drop")?.classList.remove("drop");
    if (line && line !== dragged) rows.get(line.id).classList.add("drop");
  }

  /** The line that is heard, or none. */
  function heard(line) {
    list.querySelector(".heard")?.classList.remove("heard");
    const item = line && rows.get(line.id);
    item?.classList.add("heard");
    item?.scrollIntoView({ block: "nearest" });
  }

  function show(line) {
    rows.get(line.id).scrollIntoView({ block: "nearest" });
    activate(line);
  }

  function active(line) {
    list.querySelector(".active")?.classList.remove("active");
    rows.get(line?.id)?.classList.add("active");
  }

  dialogue.addEventListener("lines", drawLines);
  dialogue.addEventListener("line", ({ detail }) => drawLine(detail));
  dialogue.addEventListener("speakers", drawAll);
  document.addEventListener("languagechange", drawAll);
  player.addEventListener("change", () => {
    for (const item of list.querySelectorAll('[data-state="ready"]')) drawLine(lineOf(item));
  });
  return { element: list, focus, show, paste, remove, write, heard, active, drawLine, textOf };
}
