// The sampling parameters as sliders in plain words, and the seed. Greyed where the loaded model draws nothing.

import { h } from "../core/dom.js";
import { clock, t } from "../core/i18n.js";
import { server } from "../core/server.js";

const FRAMES_PER_SECOND = 25;
const number = (value) => String(value);

/** Name of the field, its range and default, and how a value reads. The server knows the same defaults. */
const SLIDERS = [
  { name: "temperature", min: 0, max: 1.5, step: 0.05, usual: 0.7, read: (value) => value.toFixed(2) },
  { name: "top_p", min: 0.05, max: 1, step: 0.05, usual: 0.95, read: (value) => `${Math.round(value * 100)} %` },
  { name: "top_k", min: 0, max: 200, step: 5, usual: 50, read: (value) => (value ? number(value) : t("delivery.all")) },
  { name: "ras_win_max_num_repeat", min: 1, max: 10, step: 1, usual: 2, read: number },
  // 0 is ours for the server's limit, which the wire calls null.
  { name: "max_new_tokens", min: 0, max: 4000, step: 25, usual: 0, read: (value) => (value ? clock(value / FRAMES_PER_SECOND) : t("delivery.limit")) },
  { name: "ras_win_len", min: 0, max: 50, step: 1, usual: 7, read: (value) => (value ? clock(value / FRAMES_PER_SECOND) : t("delivery.off")) },
];

export const DEFAULTS = Object.fromEntries(SLIDERS.map(({ name, usual }) => [name, usual]));

/**
 * The group of sliders with its reset. `change(values)` is told of each move; `prefix` keeps ids apart on one page.
 * @param {{change: (values: Record<string, any>) => void, prefix?: string}} options
 */
export function delivery({ change, prefix = "" }) {
  let values = { ...DEFAULTS, seed: null };
  const rows = SLIDERS.map(slider);
  const seed = h("input", {
    type: "text", id: `${prefix}seed`, inputMode: "numeric", pattern: "[0-9]*", maxLength: 15, autocomplete: "off",
    "t:placeholder": "delivery.seed.new", "aria-describedby": `${prefix}seed-help`,
    oninput: () => set("seed", /^\d+$/.test(seed.value) ? Number(seed.value) : null),
  });
  const box = h(
    "fieldset",
    { class: "delivery" },
    h("legend", { class: "sr", t: "delivery" }),
    rows.slice(0, 2).map((row) => row.element),
    h("details", { class: "more" }, h("summary", { t: "delivery.more" }), rows.slice(2).map((row) => row.element)),
    h("div", { class: "slider" }, h("label", { for: `${prefix}seed`, t: "delivery.seed" }), seed, h("p", { class: "help", id: `${prefix}seed-help`, t: "delivery.seed.help" })),
    h("button", { type: "button", class: "quiet", t: "delivery.reset", onclick: () => (write({ ...DEFAULTS, seed: null }), change(values)) }),
  );
  const reason = h("p", { class: "cannot", t: "cannot.sampling" });

  function set(name, value) {
    values = { ...values, [name]: value };
    change(values);
  }

  function slider({ name, min, max, step, read }) {
    const id = prefix + name;
    const output = h("output", { htmlFor: id });
    const input = h("input", {
      type: "range", id, min, max, step, "aria-describedby": `${id}-help`,
      oninput: () => (show(), set(name, Number(input.value))),
    });
    const show = () => {
      output.textContent = read(Number(input.value));
      input.setAttribute("aria-valuetext", output.textContent);
    };
    const element = h(
      "div",
      { class: "slider" },
      h("div", { class: "row" }, h("label", { for: id, t: `delivery.${name}` }), output),
      input,
      h("p", { class: "help", id: `${id}-help`, t: `delivery.${name}.help` }),
    );
    return { element, write: () => ((input.value = values[name] ?? 0), show()) };
  }

  function write(given) {
    values = { ...DEFAULTS, seed: null, ...given };
    rows.forEach((row) => row.write());
    seed.value = values.seed ?? "";
  }

  function grey() {
    box.disabled = !server.can("sampling");
    reason.hidden = server.can("sampling");
  }

  server.addEventListener("ability", grey);
  document.addEventListener("languagechange", () => rows.forEach((row) => row.write()));
  write(values);
  grey();
  return {
    element: h("div", { class: "stack" }, reason, box),
    /** Fields of a request. */
    get value() {
      return { ...values, max_new_tokens: values.max_new_tokens || null };
    },
    set value(given) {
      write(given);
    },
  };
}
