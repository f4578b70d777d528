// English and Chinese: words by key, and elements that change with the language. Knows no view: each brings its words.

import "./storage.js"; // before anybody needs them
import { WORDS as SHELL } from "./words.js";

/** @type {{en: Record<string, string | Function>, zh: Record<string, string | Function>}} */
const WORDS = { en: { ...SHELL.en }, zh: { ...SHELL.zh } };
const bindings = new WeakMap();
const CHOICE = "studio.language";

let current = localStorage.getItem(CHOICE) ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

/** Adds words of both languages: strings with {value} in them, or functions of the values. */
export function addWords({ en, zh }) {
  Object.assign(WORDS.en, en);
  Object.assign(WORDS.zh, zh);
}

/** @returns {"en" | "zh"} */
export const language = () => current;

/** The words under a key in the language of the page. */
export function t(key, values = {}) {
  const words = WORDS[current][key];
  if (words === undefined) throw new Error(`No words for ${key}`);
  if (typeof words === "function") return words(values);
  return words.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** The keys of both languages, for those who compare them. */
export const keys = () => ({ en: Object.keys(WORDS.en), zh: Object.keys(WORDS.zh) });

/** Whether there are words under a key. */
export const hasWords = (key) => key in WORDS[current];

/** Gives an element (or one of its attributes) the words under a key, in whatever language the page is in. */
export function bind(element, attribute, key, values = {}) {
  if (!bindings.has(element)) bindings.set(element, new Map());
  bindings.get(element).set(attribute, [key, values]);
  element.dataset.t = "";
  write(element, attribute, key, values);
}

function write(element, attribute, key, values) {
  if (attribute) element.setAttribute(attribute, t(key, values));
  else element.textContent = t(key, values);
}

/** The user's choice, kept; without one the browser's language counts. */
export function chooseLanguage(chosen) {
  localStorage.setItem(CHOICE, chosen);
  setLanguage(chosen);
}

/** Changes the language of everything on the page; listeners of `languagechange` on `document` do what is left. */
export function setLanguage(chosen) {
  current = chosen;
  document.documentElement.lang = chosen === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-t]")) {
    for (const [attribute, [key, values]] of bindings.get(element) ?? []) write(element, attribute, key, values);
  }
  document.dispatchEvent(new Event("languagechange"));
}

/** Seconds for people: 7.4 s, 2:05. */
export function clock(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
