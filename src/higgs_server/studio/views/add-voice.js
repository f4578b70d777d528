// Adding a voice: a file or the microphone, the part of it that counts, what it says, the check's advice, and keeping it.
// Knows nothing of the list of voices but that it has to be read anew.

import { ask } from "../core/api.js";
import { fill, h, icon } from "../core/dom.js";
import { hasWords, language, t } from "../core/i18n.js";
import { library } from "../core/library.js";
import { player } from "../core/player.js";
import { canRecord, record } from "../core/recorder.js";
import { server } from "../core/server.js";
import { Sound, decode, wav } from "../core/sound.js";
import { keeper, store } from "../core/store.js";
import { complain, say } from "../parts/notices.js";
import { trimmer } from "../parts/trimmer.js";
import { waveform } from "../parts/waveform.js";
import { SENTENCES } from "./voices.words.js";

const DRAFT = "voices";
const LONGEST = 120; // seconds; a recorder left running must not fill the memory

const stage = h("div", { class: "stage" });
const reason = h("p", { class: "cannot", t: "cannot.cloning" });
const panel = h("fieldset", { class: "add-voice", "t:aria-label": "voices.add" }, stage);

/** The panel, and the reason why it is greyed where it is. */
export const addVoice = [reason, panel];

let sentence = 0;
/** Whether the microphone was asked for: the browser's question may stand for long. */
let asking = false;
/** What is kept of the clip in hand, null while there is none. */
let state = () => null;
const keepDraft = keeper(DRAFT, () => state());

export async function startAddVoice() {
  const grey = () => {
    panel.disabled = !server.can("cloning");
    reason.hidden = server.can("cloning");
  };
  server.addEventListener("ability", grey);
  grey();
  // The sentence to read is in the language of the page.
  document.addEventListener("languagechange", () => stage.querySelector(".drop") && choose());
  const draft = await store.draft(DRAFT);
  if (draft?.samples) edit(Sound.of(draft.samples), draft);
  else choose();
}

/** First: where the sound comes from. */
function choose() {
  const file = h("input", { type: "file", class: "sr", id: "voice-file", accept: "audio/*,video/*,.opus,.flac,.m4a", onchange: () => take(file.files[0]) });
  const words = h("blockquote", { class: "sentence" }, SENTENCES[language()][sentence]);
  const zone = h(
    "div",
    {
      class: "drop",
      ondragover: (event) => (event.preventDefault(), zone.classList.add("over")),
      ondragleave: () => zone.classList.remove("over"),
      ondrop: (event) => {
        event.preventDefault();
        zone.classList.remove("over");
        if (!panel.disabled) take(event.dataTransfer.files[0]);
      },
    },
    icon("upload"),
    h("p", { t: "voices.drop" }),
    file,
    h("label", { class: "button", htmlFor: "voice-file", t: "voices.choose_file" }),
  );
  const next = () => {
    sentence = (sentence + 1) % SENTENCES[language()].length;
    fill(words, SENTENCES[language()][sentence]);
  };
  fill(
    stage,
    zone,
    h("p", { class: "or", t: "voices.or" }),
    h("p", { class: "help", t: "voices.read_this" }),
    words,
    h(
      "div",
      { class: "row wrap" },
      h("button", { type: "button", disabled: !canRecord(), onclick: capture }, icon("mic"), h("span", { t: "voices.record" })),
      h("button", { type: "button", class: "quiet", t: "voices.other_sentence", onclick: next }),
    ),
    canRecord() ? null : h("p", { class: "cannot", t: "cannot.microphone" }),
  );
}

async function take(file) {
  if (!file) return;
  try {
    const sound = await decode(await file.arrayBuffer());
    edit(sound, { name: nameOf(file.name), transcript: "" }, file);
  } catch {
    complain(t("voices.unreadable", { name: file.name }));
  }
}

const nameOf = (file) => file.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}_-]+/gu, "_").replace(/^_+|_+$/g, "").slice(0, 40);

/** The microphone, with the sentence to read in sight. */
async function capture() {
  if (asking) return;
  asking = true;
  let recording;
  try {
    player.stop();
    recording = await record();
  } catch (error) {
    const key = { NotFoundError: "voices.no_microphone", NotAllowedError: "voices.microphone_refused" }[error.name];
    complain(t(key ?? "voices.cannot_record", { reason: error.message }));
    return;
  } finally {
    asking = false;
  }
  const said = SENTENCES[language()][sentence];
  const time = h("span", { class: "time" }, "0.0 s");
  let over = false;
  async function finish() {
    if (over) return;
    over = true;
    edit(await recording.stop(), { name: "", transcript: said });
  }
  recording.live.addEventListener("grow", () => {
    time.textContent = t("voices.recording", { seconds: recording.live.seconds.toFixed(1) });
    if (recording.live.seconds > LONGEST) finish();
  });
  const stop = h("button", { type: "button", class: "primary", onclick: finish }, icon("stop"), h("span", { t: "voices.stop" }));
  fill(
    stage,
    h("p", { class: "help", t: "voices.read_this" }),
    h("blockquote", { class: "sentence large" }, said),
    waveform(recording.live, { expected: () => 10 }),
    h("div", { class: "row" }, stop, time),
  );
  stop.focus();
}

/** Then: what of it counts, what it says and what it is called. `file` is sent as it is while nothing is cut off. */
function edit(sound, { name, transcript, from = 0, to = sound.seconds }, file = null) {
  const trim = trimmer(sound, { from, to, change: keep });
  const nameInput = h("input", { type: "text", id: "voice-name", value: name, maxLength: 64, autocomplete: "off", oninput: keep, "aria-describedby": "voice-name-help" });
  const words = h("textarea", { id: "voice-words", rows: 3, value: transcript, oninput: keep, "aria-describedby": "voice-words-help" });
  const advice = h("div", { class: "advice", role: "status" });
  const saveButton = h("button", { type: "button", class: "primary", t: "voices.save", onclick: () => save(false) });
  const tryButton = h("button", { type: "button", t: "voices.try", "t:title": "voices.try.help", onclick: hear });
  const clip = () => (file && !trim.trimmed ? file : wav(trim.samples()));
  const samples = sound.slice();
  state = () => ({ samples, name: nameInput.value, transcript: words.value, ...trim.limits });

  function keep() {
    fill(advice);
    keepDraft().catch(complain);
  }

  async function busy(button, act) {
    if (button.ariaDisabled === "true") return;
    button.ariaDisabled = "true";
    try {
      await act();
    } catch (error) {
      if (error.body?.error?.problems) advise(error.body.error.problems);
      else complain(error);
    } finally {
      button.ariaDisabled = null;
    }
  }

  function save(force) {
    return busy(saveButton, async () => {
      if (!nameInput.value.trim()) {
        nameInput.focus();
        say(t("voices.name_first"));
        return;
      }
      const form = new FormData();
      form.append("name", nameInput.value.trim());
      form.append("audio_sample", clip(), file?.name ?? "recording.wav");
      if (words.value.trim()) form.append("ref_text", words.value.trim());
      await ask(`v1/audio/voices${force ? "?force=true" : ""}`, { form });
      say(t("voices.saved", { name: nameInput.value.trim() }));
      restart();
      await library.refresh();
    });
  }

  /** A sentence with the voice as it would be; nothing is saved. */
  function hear() {
    return busy(tryButton, async () => {
      const form = new FormData();
      form.append("text", t("voices.try.text"));
      form.append("ref_audio_file", clip(), file?.name ?? "recording.wav");
      if (words.value.trim()) form.append("ref_text", words.value.trim());
      const answer = await ask("generate-upload", { form, headers: { Accept: "audio/wav" } });
      await player.play(await decode(await answer.arrayBuffer()));
    });
  }

  /** What the check found, in the page's language, with the way to keep the clip all the same. */
  function advise(problems) {
    const own = (problem, part) => (hasWords(`check.${problem.code}.${part}`) ? t(`check.${problem.code}.${part}`) : problem[part]);
    fill(
      advice,
      h("h3", { t: "voices.check" }),
      h("ul", {}, problems.map((problem) => h("li", {}, h("b", {}, own(problem, "message")), " ", own(problem, "advice")))),
      h("button", { type: "button", t: "voices.save_anyway", onclick: () => save(true) }),
    );
  }

  function restart() {
    if (player.sound === sound) player.stop();
    state = () => null;
    keepDraft().catch(complain);
    choose();
  }

  fill(
    stage,
    trim.element,
    h(
      "div",
      { class: "row wrap" },
      h("button", { type: "button", onclick: trim.play }, icon("play"), h("span", { t: "voices.listen" })),
      tryButton,
    ),
    h("label", { htmlFor: "voice-name", t: "voices.name" }),
    nameInput,
    h("p", { class: "help", id: "voice-name-help", t: "voices.name.help" }),
    h("label", { htmlFor: "voice-words", t: "voices.transcript" }),
    words,
    h("p", { class: "help", id: "voice-words-help", t: "voices.transcript.help" }),
    advice,
    h("div", { class: "row wrap" }, saveButton, h("button", { type: "button", class: "quiet", t: "voices.start_over", onclick: restart })),
  );
  keep();
  nameInput.focus({ preventScroll: true });
}
