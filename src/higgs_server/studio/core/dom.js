// Elements from one function, with texts that follow the language. Knows no view and no server.

import { bind } from "./i18n.js";

/**
 * An element. Among `props`: `on…` functions listen; `t` is the key of its text and `t:NAME` of the attribute NAME
 * (a key, or [key, values]); `class`, `aria-…`, `data-…` and `role` are attributes; everything else is a property.
 * Children may be nodes, strings, arrays and null.
 * @param {string} tag
 * @param {Record<string, any>} [props]
 * @param {...any} children
 * @returns {any}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "t") bind(element, "", ...[value].flat());
    else if (name.startsWith("t:")) bind(element, name.slice(2), ...[value].flat());
    else if (name in element && !name.includes("-") && name !== "list") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Gives an element other children. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(9).filter(Boolean));
  return element;
}

/** Gives an element these children in this order, and touches only those that are not in their place. */
export function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  let at = parent.firstElementChild;
  for (const child of children) {
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
}

/** What listens on behalf of an element: it lives as long as the element does. */
const listeners = new WeakMap();

/** Listens on behalf of an element, on the page or off it, and does not keep it in memory. */
export function listen(element, target, type, listener) {
  listeners.set(element, [...(listeners.get(element) ?? []), listener]);
  const weak = new WeakRef(listener);
  target.addEventListener(type, function act(event) {
    const alive = weak.deref();
    if (alive) alive(event);
    else target.removeEventListener(type, act);
  });
}

const ICONS = {
  play: "M7 5v14l12-7z",
  pause: "M7 5h4v14H7zM13 5h4v14h-4z",
  stop: "M6 6h12v12H6z",
  again: "M12 5V1L7 6l5 5V7a5 5 0 1 1-5 5H5a7 7 0 1 0 7-7z",
  plus: "M11 5h2v6h6v2h-6v6h-2v-6H5v-2h6z",
  download: "M11 4h2v8l3-3 1.4 1.4L12 15.8l-5.4-5.4L8 9l3 3zM5 18h14v2H5z",
  copy: "M8 3h11v13h-2V5H8zM5 7h10v14H5zm2 2v10h6V9z",
  trash: "M9 3h6v2h5v2H4V5h5zM6 9h12l-1 12H7z",
  pen: "M4 16.5V20h3.5L18 9.5 14.5 6zM16 4.5 19.5 8l1.3-1.3-3.5-3.5z",
  mic: "M9 4a3 3 0 0 1 6 0v7a3 3 0 0 1-6 0zm-4 7h2a5 5 0 0 0 10 0h2a7 7 0 0 1-6 6.9V21h-2v-3.1A7 7 0 0 1 5 11z",
  close: "m6.4 5 5.6 5.6L17.6 5 19 6.4 13.4 12l5.6 5.6-1.4 1.4-5.6-5.6L6.4 19 5 17.6l5.6-5.6L5 6.4z",
  theme: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18v-2a7 7 0 0 0 0-14z",
  brand: "M3 10h2v4H3zM7 6h2v12H7zM11 2h2v20h-2zM15 7h2v10h-2zM19 10h2v4h-2z",
  check: "m9.5 16.2-4-4L4 13.7l5.5 5.5L20 8.7l-1.5-1.5z",
  up: "m12 6 7 7-1.4 1.4L13 9.8V20h-2V9.8l-4.6 4.6L5 13z",
  down: "m12 18-7-7 1.4-1.4 4.6 4.6V4h2v10.2l4.6-4.6L19 11z",
  undo: "M9 5 3.5 10.5 9 16v-4h5a4 4 0 0 1 0 8H8v-2h6a2 2 0 0 0 0-4H9z",
  file: "M6 3h8l5 5v13H6zm7 1.5V9h4.5z",
  upload: "M11 20h2v-9l3 3 1.4-1.4L12 7.2l-5.4 5.4L8 14l3-3zM5 4h14v2H5z",
};

/** A picture of ours, for the eye alone: the button around it has the words. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button with a picture, and the words under `key` beside it or, `bare`, for screen readers and the pointer only. */
export function iconButton(name, key, onclick, { bare = true, ...props } = {}) {
  return bare
    ? h("button", { type: "button", class: "quiet square", "t:aria-label": key, "t:title": key, onclick, ...props }, icon(name))
    : h("button", { type: "button", onclick, ...props }, icon(name), h("span", { t: key }));
}
