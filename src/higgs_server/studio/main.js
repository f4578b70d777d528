// The studio's shell: header, views, the state of the server. The only module that knows which views there are.
//
// Seams
//   A view     is a module in views/ that exports a View (below) and is named in VIEWS; its words are in
//              NAME.words.js, a module that calls addWords({en, zh}) and is imported for that; its style is
//              styles/NAME.css, linked in index.html.
//   core/      knows no element of the page: api (ask, askJson, speak, ApiError), server (status, info, can()), library
//              (voices, scenes, profiles, clip(); speakable), sound (Sound, silence, wav, decode), player (one
//              loudspeaker), takes (Take: request + sound, kept in IndexedDB), series (many takes in a row as one sound,
//              and which of them is heard), store (drafts, takes), storage (where the browser keeps nothing), files
//              (download, save, copy, as curl and Python), turns and plain (scripts and Markdown into words), i18n (t,
//              addWords, clock), dom (h, fill, arrange, icon, iconButton, listen).
//   parts/     elements that views share: waveform(sound), takeCard(take), playButton(sound), voicePicker(),
//              voiceSelect(), clipButton(), delivery(), menu(), fold(), notices (say what went well, complain of what did
//              not), dialogs (confirmDelete).
//   A view's state that is more than a form is a class of its own in core/: dialogue (and project, its file), reading.
//   A take     `new Take({view, request, name})`, `await take.make()`: sound grows in `take.sound`, raises ApiError.
//   A sound    `player.play(sound)` at once, also while it grows; `Sound.of(samples, silence(0.5), samples)` joins.
//   Text       `h("button", {t: "key"})` follows the language; text that is computed is redone on `languagechange`.

import { onKeyNeeded } from "./core/api.js";
import { fill, h, icon } from "./core/dom.js";
import { chooseLanguage, language, setLanguage, t } from "./core/i18n.js";
import { library } from "./core/library.js";
import { server } from "./core/server.js";
import { askForKey } from "./parts/dialogs.js";
import { complain, noticeArea, say } from "./parts/notices.js";
import { dialogueView } from "./views/dialogue.js";
import { longtextView } from "./views/longtext.js";
import { speakView } from "./views/speak.js";
import { voicesView } from "./views/voices.js";

/**
 * @typedef {object} View
 * @property {string} id the part of the address behind #
 * @property {string} title the key of its name
 * @property {HTMLElement} element
 * @property {() => Promise<void>} start called once, when the page opens
 * @property {() => void} [show] called each time it comes to the front
 */

/** @type {View[]} */
const VIEWS = [speakView, dialogueView, longtextView, voicesView];
const THEMES = ["auto", "light", "dark"];

function router() {
  const links = VIEWS.map(({ id, title }) => h("a", { href: `#${id}`, t: title }));
  const main = h("main", { id: "main", tabIndex: -1 });
  for (const view of VIEWS) main.append(h("section", { id: `view-${view.id}`, class: "view", "t:aria-label": view.title, hidden: true }, view.element));
  function show() {
    const found = VIEWS.find(({ id }) => `#${id}` === location.hash) ?? VIEWS[0];
    VIEWS.forEach((view, index) => {
      view.element.parentElement.hidden = view !== found;
      links[index].toggleAttribute("aria-current", view === found);
      if (view === found) links[index].setAttribute("aria-current", "page");
    });
    found.show?.();
  }
  addEventListener("hashchange", show);
  show();
  return { nav: h("nav", { "t:aria-label": "page.views" }, links), main };
}

/** The server's name and state; what stops everything is said in a bar of its own below the header. */
function serverState() {
  const light = h("span", { class: "light" });
  const model = h("span", { class: "model" });
  const queue = h("span", { class: "queue" });
  const chip = h("div", { class: "server", role: "group", "t:aria-label": "server.label" }, light, model, queue);
  const bar = h("div", { class: "bar", role: "status", hidden: true });
  let before = "unknown";

  function draw() {
    const { status, info, readiness } = server;
    chip.dataset.status = status;
    model.textContent = info ? `${info.model_name.split("/").pop()} · ${info.device}` : "";
    queue.textContent = status === "ready" && info.queue ? t("server.queue", info.queue) : "";
    bar.hidden = status === "ready";
    if (status !== "ready") {
      const progress = Math.round((readiness?.progress ?? 0) * 100);
      const words = h("p", {}, t(`server.${status}`, { progress }), " ", status === "failed" && readiness?.message);
      fill(bar, words, status === "locked" && h("button", { type: "button", t: "server.unlock", onclick: () => server.look() }));
    }
    if (status === "ready" && before !== "ready") {
      if (before !== "unknown") say(t("server.back"));
      library.refresh().catch(complain);
    }
    before = status;
  }

  server.addEventListener("change", draw);
  document.addEventListener("languagechange", () => (draw(), server.look()));
  draw();
  return { chip, bar };
}

function themeButton() {
  let theme = localStorage.getItem("studio.theme") ?? "auto";
  const button = h("button", { type: "button", class: "quiet square", "t:aria-label": "page.theme", "t:title": "page.theme", onclick: next }, icon("theme"));
  function next() {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    localStorage.setItem("studio.theme", theme);
    apply();
  }
  function apply() {
    document.documentElement.dataset.theme = theme;
    document.dispatchEvent(new Event("themechange"));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  apply();
  return button;
}

function languageButton() {
  return h("button", {
    type: "button", class: "quiet", t: "page.language", "t:aria-label": "page.language.label",
    onclick: () => chooseLanguage(language() === "zh" ? "en" : "zh"),
  });
}

async function open() {
  const { nav, main } = router();
  const { chip, bar } = serverState();
  const title = () => (document.title = t("page.title"));
  document.addEventListener("languagechange", title);
  setLanguage(language());
  document.body.replaceChildren(
    h("a", { class: "skip", href: "#main", t: "page.skip", onclick: (event) => (event.preventDefault(), main.focus()) }),
    h("header", {}, h("a", { class: "brand", href: "#speak" }, icon("brand"), "Studio"), nav, chip, languageButton(), themeButton()),
    bar,
    main,
    noticeArea(),
  );
  onKeyNeeded(askForKey);
  for (const view of VIEWS) view.start().catch(complain);
  performance.mark("ready");
  await server.start();
}

open();
