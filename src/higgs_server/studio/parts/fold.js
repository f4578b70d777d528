// A part of a view that can be folded away: open where there is room, closed on small screens.

import { h } from "../core/dom.js";

const ROOM = matchMedia("(min-width: 60rem)");

/** @param {string} key of its name @param {Node | null} chosen what is chosen in it, seen while it is closed */
export function fold(key, chosen, content) {
  return h(
    "details",
    { class: "fold", open: ROOM.matches },
    h("summary", {}, h("h2", { t: key }), chosen),
    h("div", { class: "fold-content" }, content),
  );
}
