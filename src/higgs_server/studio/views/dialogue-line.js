// The tools of one line of a dialogue: its takes and which of them counts, sounds to put in, the pause after it, its place.

import { fill, h, icon, iconButton } from "../core/dom.js";
import { clock, t } from "../core/i18n.js";
import { player } from "../core/player.js";
import { server } from "../core/server.js";
import { menu } from "../parts/menu.js";
import { complain } from "../parts/notices.js";
import { playButton } from "../parts/take-card.js";
import { waveform } from "../parts/waveform.js";

/** What the model makes besides words, as the server's text/normalize.py knows them. */
const SOUNDS = [
  "[laugh]", "[cough]", "[applause]", "[cheering]", "[music]", "[music start]", "[music end]", "[humming start]",
  "[humming end]", "[sing start]", "[sing end]",
];

/**
 * @param {import("../core/dialogue.js").Dialogue} dialogue
 * @param {{make: (line: any) => void, playFrom: (line: any) => void, remove: (line: any) => void, textOf: (line: any) => HTMLTextAreaElement,
 *   write: (index: number) => void, focus: (line: any) => void}} acts
 */
export function lineTools(dialogue, { make, playFrom, remove, textOf, write, focus }) {
  /** @type {any} */
  let line = null;
  let seen = "";

  const heading = h("h2", { tabIndex: -1 });
  const takes = h("ul", { class: "line-takes" });
  const again = h("button", { type: "button", onclick: () => make(line) }, icon("again"), h("span", { t: "dialogue.again" }));
  const from = h("button", { type: "button", onclick: () => playFrom(line) }, icon("play"), h("span", { t: "dialogue.play_from" }));
  const pause = h("input", {
    type: "number", id: "line-pause", min: 0, max: 60, step: 0.1,
    onchange: () => dialogue.set(line, { pause: Math.max(0, Math.min(60, Number(pause.value) || 0)) }),
  });
  const sounds = h("div");
  const reason = h("p", { class: "cannot", id: "sounds-reason", t: "cannot.sounds" });
  const element = h(
    "section",
    { class: "tools", onkeydown: ({ key }) => key === "Escape" && leave() },
    h("div", { class: "row" }, heading, iconButton("close", "dismiss", leave, { class: "quiet square tools-close" })),
    takes,
    h("div", { class: "row wrap" }, again, from),
    h("div", { class: "row wrap" }, sounds),
    reason,
    h("div", { class: "row" }, h("label", { for: "line-pause", t: "dialogue.pause" }), pause, h("button", { type: "button", class: "quiet", t: "dialogue.pause.all", onclick: pauseAll })),
    h(
      "div",
      { class: "row wrap line-moves" },
      iconButton("up", "dialogue.up", () => move(-1)),
      iconButton("down", "dialogue.down", () => move(1)),
      iconButton("plus", "dialogue.insert", () => write(dialogue.lines.indexOf(line) + 1), { bare: false }),
      iconButton("trash", "dialogue.remove", () => remove(line)),
    ),
  );

  function leave() {
    element.classList.remove("open");
    focus(line);
  }

  function move(by) {
    dialogue.move(line, dialogue.lines.indexOf(line) + by);
  }

  function pauseAll() {
    const seconds = line.pause;
    for (const other of dialogue.lines) if (other.pause !== seconds) dialogue.set(other, { pause: seconds });
  }

  function putIn(sound) {
    const text = textOf(line);
    const before = text.value.slice(0, text.selectionStart);
    text.setRangeText(`${before && !/\s$/.test(before) ? " " : ""}${sound} `, text.selectionStart, text.selectionEnd, "end");
    text.dispatchEvent(new Event("input", { bubbles: true }));
    text.focus();
  }

  function take(made, index) {
    const id = `take-${made.kept.id}`;
    const counts = made === dialogue.takeOf(line);
    const voice = made.kept.request.ref_audio?.replace("profile:", "") ?? t("voice.any");
    const remains = { class: "quiet square", disabled: made.running };
    return h(
      "li",
      { class: "line-take" },
      h("input", {
        type: "radio", name: "line-take", id, checked: counts, disabled: made.running,
        onchange: () => dialogue.set(line, { chosen: made.kept.id }),
      }),
      h("label", { for: id }, h("b", {}, t("dialogue.take", { number: index + 1 })), h("span", { class: "help" }, `${voice} · ${clock(made.sound.seconds)}`)),
      iconButton("trash", "dialogue.take.delete", () => removeTake(made), remains),
      h("div", { class: "row" }, playButton(made.sound), waveform(made.sound, { expected: () => 3 })),
      made.kept.request.text !== line.text.trim() && h("p", { class: "take-text" }, made.kept.request.text),
    );
  }

  async function removeTake(made) {
    if (player.sound === made.sound) player.stop();
    await dialogue.deleteTake(line, made).catch(complain);
    heading.focus();
  }

  /** Draws what is not drawn yet; typing in the line changes nothing here. */
  function draw() {
    if (!line) return;
    const all = dialogue.takesOf(line);
    const number = dialogue.lines.indexOf(line) + 1;
    const state = dialogue.stateOf(line);
    const is = JSON.stringify([line.id, number, state, line.pause, server.can("sounds"), dialogue.takeOf(line)?.kept.id, all.map(({ kept, running }) => [kept.id, running])]);
    if (is === seen) return;
    seen = is;
    heading.textContent = t("dialogue.line", { number });
    element.setAttribute("aria-label", t("dialogue.tools_of", { number }));
    fill(takes, all.map(take).reverse());
    const same = state === "ready" && !server.can("sampling");
    again.disabled = state === "empty" || same;
    again.title = same ? t("cannot.sampling") : "";
    pause.value = line.pause;
  }

  function drawSounds() {
    const can = server.can("sounds");
    reason.hidden = can;
    fill(
      sounds,
      menu([icon("plus"), h("span", { t: "dialogue.sounds" })], SOUNDS.map((text) => ({ text, disabled: !can, act: () => putIn(text), "t:title": can ? undefined : "cannot.sounds" })), {
        "aria-describedby": can ? undefined : "sounds-reason",
      }),
    );
  }

  function redraw() {
    seen = "";
    drawSounds();
    draw();
  }

  dialogue.addEventListener("line", ({ detail }) => detail === line && draw());
  dialogue.addEventListener("lines", draw);
  dialogue.addEventListener("speakers", draw);
  document.addEventListener("languagechange", redraw);
  server.addEventListener("ability", redraw);
  drawSounds();
  return {
    element,
    show(other) {
      if (other !== line) element.classList.remove("open");
      line = other;
      draw();
    },
    enter() {
      element.classList.add("open"); // on a narrow page they lie over the script
      heading.focus();
    },
  };
}
