// Sentences for whoever listens or looks: what went wrong stays until it is dismissed, what went well passes.

import { h, iconButton } from "../core/dom.js";

const polite = h("div", { class: "notices", role: "status", "aria-live": "polite" });
const urgent = h("div", { class: "notices", role: "alert" });
const PASSES = 5000;

/** Where notices appear; once on the page. */
export const noticeArea = () => h("div", { class: "notice-area" }, urgent, polite);

/** Says that something was done; with `action` ({key, act}), how to take it back. */
export function say(sentence, action) {
  show(polite, sentence, "said", action);
}

/** Says what went wrong and, with `action` ({key, act}), offers the way out. */
export function complain(problem, action) {
  if (problem?.code === "cancelled") return;
  show(urgent, problem?.message ?? String(problem), "problem", action);
}

function show(area, sentence, kind, action) {
  for (const notice of area.children) if (notice.dataset.sentence === sentence) notice.remove();
  const close = () => notice.remove();
  const button = action && h("button", { type: "button", t: action.key, onclick: () => (close(), action.act()) });
  const notice = h("div", { class: `notice ${kind}`, "data-sentence": sentence }, h("p", {}, sentence), button, iconButton("close", "dismiss", close));
  area.append(notice);
  if (area.children.length > 3) area.firstElementChild.remove();
  if (kind === "said") setTimeout(close, PASSES);
}
