// The text with its pieces marked in it: one is chosen, some are left out, and the one that is heard is lit.

import { fill, h } from "../core/dom.js";

/**
 * @param {import("../core/reading.js").Reading} reading
 * @param {{choose: (piece: any) => void, playFrom: (piece: any) => void}} acts
 */
export function reader(reading, { choose, playFrom }) {
  const box = h("div", { class: "reader", role: "listbox", "t:aria-label": "longtext.pieces", onclick, ondblclick, onkeydown });
  /** @type {Map<string, any>} */
  const marks = new Map();
  let chosen = null;

  const pieceOf = (node) => reading.pieces.find(({ id }) => id === node.closest?.(".piece")?.dataset.piece);

  function draw() {
    marks.clear();
    const nodes = [];
    let done = 0;
    for (const piece of reading.pieces) {
      const [start, end] = piece.span;
      const mark = h("span", { class: "piece", role: "option", tabIndex: -1, "data-piece": piece.id }, reading.text.slice(start, end));
      nodes.push(reading.text.slice(done, start), mark);
      marks.set(piece.id, mark);
      done = end;
    }
    fill(box, nodes, reading.text.slice(done));
    reading.pieces.forEach(drawPiece);
    select(reading.pieces.find(({ id }) => id === chosen?.id) ?? reading.pieces[0] ?? null);
  }

  function drawPiece(piece) {
    const mark = marks.get(piece.id);
    if (!mark) return;
    mark.dataset.state = reading.stateOf(piece);
    mark.ariaChecked = String(!piece.skip);
  }

  function select(piece) {
    const before = chosen && marks.get(chosen.id);
    if (before) Object.assign(before, { tabIndex: -1, ariaSelected: "false" });
    chosen = piece;
    const mark = piece && marks.get(piece.id);
    if (mark) Object.assign(mark, { tabIndex: 0, ariaSelected: "true" });
    choose(piece);
  }

  function onclick({ target }) {
    const piece = pieceOf(target);
    if (piece) select(piece);
  }

  function ondblclick({ target }) {
    const piece = pieceOf(target);
    if (piece) playFrom(piece);
  }

  function onkeydown(event) {
    const index = reading.pieces.indexOf(chosen);
    const last = reading.pieces.length - 1;
    const to = { ArrowRight: index + 1, ArrowDown: index + 1, ArrowLeft: index - 1, ArrowUp: index - 1, Home: 0, End: last }[event.key];
    if (to !== undefined) {
      select(reading.pieces[Math.max(0, Math.min(to, last))]);
      marks.get(chosen.id).focus();
    } else if (event.key === " ") reading.setPiece(chosen, { skip: !chosen.skip });
    else if (event.key === "Enter") playFrom(chosen);
    else return;
    event.preventDefault();
  }

  /** The piece that is heard, or none. */
  function heard(piece) {
    box.querySelector(".heard")?.classList.remove("heard");
    const mark = piece && marks.get(piece.id);
    mark?.classList.add("heard");
    if (mark) mark.scrollIntoView({ block: "nearest" });
  }

  reading.addEventListener("piece", ({ detail }) => drawPiece(detail));
  return { element: box, draw, heard, redraw: () => reading.pieces.forEach(drawPiece) };
}
