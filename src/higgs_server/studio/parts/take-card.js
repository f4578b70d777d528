// One take as a card: its waveform and buttons, what it was made with, what became of it.

import { hasKey } from "../core/api.js";
import { fill, h, icon, iconButton, listen } from "../core/dom.js";
import { clock, t } from "../core/i18n.js";
import { ENCODED, asCurl, asPython, copy, download } from "../core/files.js";
import { player } from "../core/player.js";
import { server } from "../core/server.js";
import { confirmDelete } from "./dialogs.js";
import { menu } from "./menu.js";
import { complain, say } from "./notices.js";
import { waveform } from "./waveform.js";

/** Seconds that a text takes to say, roughly: to show how far a take is, never to time it. */
export function expectedSeconds(text) {
  const characters = (text.match(/[\u3400-\u9fff]/g) ?? []).length;
  const letters = text.replace(/[\u3400-\u9fff\s]/g, "").length;
  return 0.8 + characters * 0.24 + letters * 0.075;
}

/** The button that plays a sound and pauses it. */
export function playButton(sound) {
  const button = iconButton("play", "play", () => player.toggle(sound), { class: "square round" });
  listen(button, player, "change", () => {
    const playing = player.sound === sound && player.playing;
    fill(button, icon(playing ? "pause" : "play"));
    button.setAttribute("aria-label", t(playing ? "pause" : "play"));
  });
  return button;
}

/**
 * @param {import("../core/takes.js").Take} take
 * @param {{actions?: any[], ondelete: () => void, differs?: (name: string) => boolean}} options
 *   `actions` are more buttons; `differs` marks the parameters in which this take is unlike its neighbour
 */
export function takeCard(take, { actions = [], ondelete, differs = () => false }) {
  const { kept } = take;
  const name = h("input", {
    type: "text", class: "take-name", value: kept.name, "t:aria-label": "take.name", maxLength: 120,
    onchange: () => take.rename(name.value.trim() || kept.name).catch(complain),
    onkeydown: (event) => event.key === "Enter" && name.blur(),
  });
  const status = h("p", { class: "take-status" });
  const length = h("span", { class: "time" });
  const expected = () => Math.max(expectedSeconds(kept.request.text), take.sound.seconds * 1.05);

  const chips = h("ul", { class: "chips", "t:aria-label": "take.made_with" });
  const attempt = async (act) => {
    try {
      await act();
    } catch (error) {
      complain(error);
    }
  };
  const copied = async (text) => {
    await copy(text);
    say(t("copied"));
  };
  const files = () =>
    menu(
      icon("download"),
      ["wav", ...ENCODED].map((format) => ({
        text: format.toUpperCase(),
        disabled: format !== "wav" && !kept.answer,
        "t:title": format !== "wav" && !kept.answer ? "take.partial.wav" : undefined,
        act: () => attempt(() => download(take, format)),
      })),
      { class: "button square", "t:aria-label": "take.download", "t:title": "take.download" },
    );
  const code = menu(
    icon("copy"),
    [
      { t: "take.copy.curl", act: () => attempt(() => copied(asCurl(kept, hasKey()))) },
      { t: "take.copy.python", act: () => attempt(() => copied(asPython(kept, hasKey()))) },
      { t: "take.copy.text", act: () => attempt(() => copied(kept.request.text)) },
    ],
    { class: "button square", "t:aria-label": "take.copy", "t:title": "take.copy" },
  );
  const foot = h("div", { class: "row wrap take-actions" });

  function draw() {
    const { request, answer } = kept;
    length.textContent = clock(take.sound.seconds);
    status.textContent = take.running ? "" : kept.problem || (answer ? "" : t("take.unfinished"));
    if (answer && answer.finish_reason !== "stop") status.textContent = t(`finish.${answer.finish_reason}`);
    status.hidden = !status.textContent;
    const shown = { voice: request.ref_audio?.replace("profile:", "") ?? t("voice.any"), scene: request.scene_prompt };
    for (const parameter of ["temperature", "top_p", "top_k"]) shown[parameter] = request[parameter];
    shown.seed = answer?.seed ?? request.seed;
    fill(
      chips,
      Object.entries(shown)
        .filter(([parameter, value]) => (parameter === "voice" || value != null) && (server.can("sampling") || ["voice", "scene"].includes(parameter)))
        .map(([parameter, value]) =>
          h("li", { class: differs(parameter) ? "chip differs" : "chip" }, h("span", { t: `chip.${parameter}` }), " ", h("b", {}, String(value))),
        ),
    );
    fill(foot, take.running ? null : [actions, h("span", { class: "push" }), files(), code, iconButton("trash", "delete", remove)]);
  }

  async function remove() {
    if (!(await confirmDelete("take.delete.sure", { name: kept.name }))) return;
    if (player.sound === take.sound) player.stop();
    await take.delete().catch(complain);
    ondelete();
  }

  const card = h(
    "article",
    { class: "card take", "data-take": kept.id, "t:aria-label": ["take.label", { name: kept.name }] },
    h("div", { class: "row" }, name, length),
    h("div", { class: "row" }, playButton(take.sound), waveform(take.sound, { expected })),
    h("p", { class: "take-text" }, kept.request.text),
    status,
    chips,
    foot,
  );
  take.addEventListener("change", draw);
  take.sound.addEventListener("grow", () => (length.textContent = clock(take.sound.seconds)));
  listen(card, server, "ability", draw);
  listen(card, document, "languagechange", draw);
  draw();
  return card;
}
