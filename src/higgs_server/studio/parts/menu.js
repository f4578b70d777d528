// A button that opens a short list of actions below itself.

import { h } from "../core/dom.js";

/**
 * @param {any} summary what the button shows
 * @param {{t?: string, text?: string, act: () => void, disabled?: boolean, "t:title"?: string}[]} items
 * @param {Record<string, any>} [props] of the button
 */
export function menu(summary, items, props = {}) {
  const buttons = items.map(({ t, text, act, disabled = false, ...rest }) =>
    h("button", { type: "button", t, disabled, onclick: () => (close(), act()), ...rest }, text),
  );
  function close() {
    box.open = false;
    box.firstElementChild.focus(); // what had it is hidden now
  }
  const box = h(
    "details",
    {
      class: "menu",
      onkeydown: ({ key }) => key === "Escape" && box.open && close(),
      onfocusout: (event) => event.relatedTarget && !box.contains(event.relatedTarget) && (box.open = false),
    },
    h("summary", { class: "button", ...props }, summary),
    h("div", { class: "menu-items" }, buttons),
  );
  return box;
}

// One click elsewhere closes every menu.
document.addEventListener("click", ({ target }) => {
  for (const open of document.querySelectorAll("details.menu[open]")) if (!open.contains(target)) open.open = false;
});
