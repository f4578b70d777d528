// Questions that hold everything else up: the key, and whether something may be deleted. Native <dialog>s.

import { forgetKey, keepKey } from "../core/api.js";
import { h } from "../core/dom.js";

/** Shows a dialog with a form and resolves to whether it was confirmed. */
function dialog(titleKey, content, confirmKey, { danger = false } = {}) {
  return new Promise((resolve) => {
    const box = h("dialog", { "aria-labelledby": "dialog-title" });
    const finish = (answer) => {
      box.close();
      box.remove();
      resolve(answer);
    };
    box.append(
      h(
        "form",
        { method: "dialog", onsubmit: (event) => (event.preventDefault(), finish(true)) },
        h("h2", { id: "dialog-title", t: titleKey }),
        content,
        h(
          "div",
          { class: "row end" },
          h("button", { type: "button", t: "no", onclick: () => finish(false) }),
          h("button", { type: "submit", class: danger ? "danger" : "primary", t: confirmKey }),
        ),
      ),
    );
    box.addEventListener("cancel", (event) => (event.preventDefault(), finish(false)));
    document.body.append(box);
    box.showModal();
  });
}

/** Asks for the server's key; `refused`: the last one was wrong. Resolves to whether one was given. */
export async function askForKey(refused) {
  const input = h("input", { type: "password", id: "key", required: true, autocomplete: "current-password" });
  const keep = h("input", { type: "checkbox", id: "keep-key" });
  const content = [
    h("p", { t: refused ? "key.refused" : "key.why" }),
    h("label", { for: "key", t: "key.label" }),
    input,
    h("label", { class: "check" }, keep, h("span", { t: "key.keep" })),
  ];
  if (refused) forgetKey();
  if (!(await dialog("key.title", content, "key.use"))) return false;
  keepKey(input.value.trim(), keep.checked);
  return true;
}

/** Asks whether to go on with what cannot be undone. */
export const confirmDelete = (sentenceKey, values) =>
  dialog("delete.title", h("p", { t: [sentenceKey, values] }), "delete", { danger: true });
