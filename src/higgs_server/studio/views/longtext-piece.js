// One piece of a long text: whether it is spoken, its words as the model reads them, and its sound.

import { fill, h, icon, iconButton } from "../core/dom.js";
import { clock, t } from "../core/i18n.js";
import { server } from "../core/server.js";
import { playButton } from "../parts/take-card.js";
import { waveform } from "../parts/waveform.js";

/**
 * @param {import("../core/reading.js").Reading} reading
 * @param {{make: (piece: any) => void, playFrom: (piece: any) => void}} acts
 */
export function pieceTools(reading, { make, playFrom }) {
  /** @type {any} */
  let piece = null;
  let seen = "";
  const heading = h("h2", {});
  const spoken = h("input", { type: "checkbox", id: "piece-spoken", onchange: () => reading.setPiece(piece, { skip: !spoken.checked }) });
  const words = h("textarea", { id: "piece-words", class: "piece-words", rows: 3, oninput: () => reading.setPiece(piece, { text: words.value }) });
  const status = h("p", { class: "help" });
  const sound = h("div", { class: "row" });
  const again = h("button", { type: "button", onclick: () => make(piece) }, icon("again"), h("span", { t: "dialogue.again" }));
  const from = h("button", { type: "button", onclick: () => playFrom(piece) }, icon("play"), h("span", { t: "longtext.from_here" }));
  const element = h(
    "section",
    { class: "tools", hidden: true, "t:aria-label": "longtext.piece.tools", onkeydown: ({ key }) => key === "Escape" && close() },
    h("div", { class: "row" }, heading, iconButton("close", "dismiss", close, { class: "quiet square tools-close" })),
    h("label", { class: "check" }, spoken, h("span", { t: "longtext.piece.spoken" })),
    h("label", { for: "piece-words", class: "help", t: "longtext.piece.words" }),
    words,
    status,
    sound,
    h("div", { class: "row wrap" }, again, from),
  );

  function close() {
    element.classList.remove("open");
  }

  function draw() {
    element.hidden = !piece;
    if (!piece) return;
    const state = reading.stateOf(piece);
    const take = reading.takeOf(piece);
    const same = state === "ready" && !server.can("sampling");
    const number = reading.pieces.indexOf(piece) + 1;
    heading.textContent = t("longtext.piece", { number, count: reading.pieces.length });
    spoken.checked = !piece.skip;
    if (words.value !== piece.text) words.value = piece.text;
    status.textContent = t(`longtext.${state}`, { seconds: clock(piece.seconds) });
    again.disabled = state === "skipped" || state === "making" || same;
    again.title = same ? t("cannot.sampling") : "";
    const is = `${piece.id} ${take?.kept.id}`;
    if (is === seen) return;
    seen = is;
    fill(sound, take && [playButton(take.sound), waveform(take.sound, { expected: () => piece.seconds })]);
  }

  reading.addEventListener("piece", ({ detail }) => detail === piece && draw());
  document.addEventListener("languagechange", draw);
  server.addEventListener("change", draw);
  return {
    element,
    show(other, { open = false } = {}) {
      piece = other;
      element.classList.toggle("open", open && piece !== null);
      draw();
    },
  };
}
