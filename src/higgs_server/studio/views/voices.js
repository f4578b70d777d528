// Voices: the library, and how a voice is added to it.

import { h } from "../core/dom.js";

/** @type {import("../main.js").View} */
export const voicesView = {
  id: "voices",
  title: "nav.voices",
  element: h("div", {}),
  async start() {},
};
