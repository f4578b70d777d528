// A dialogue as one file: JSON with the sound inside. Whatever is read is checked piece by piece and built anew;
// a file that is no such dialogue is refused with a sentence.

import { decodeSamples } from "./api.js";
import { VIEW } from "./dialogue.js";
import { t } from "./i18n.js";
import { Sound } from "./sound.js";
import { store } from "./store.js";
import { Take, newId } from "./takes.js";

const FORMAT = "higgs-studio-dialogue";
const VERSION = 1;
const MOST = { bytes: 500e6, speakers: 200, lines: 10_000, takes: 100, text: 100_000, name: 200, pause: 60, finish: 20 };

/** The file. @param {import("./dialogue.js").Dialogue} dialogue @returns {Promise<Blob>} */
export async function projectFile(dialogue) {
  const { speakers, lines, values } = dialogue;
  const parts = [JSON.stringify({ format: FORMAT, version: VERSION, speakers, values }).slice(0, -1), ',"lines":['];
  for (const [index, line] of lines.entries()) {
    const { speaker, text, pause } = line;
    parts.push(index ? ",\n" : "\n", JSON.stringify({ speaker, text, pause }).slice(0, -1), ',"takes":[');
    let first = true;
    for (const take of dialogue.takesOf(line)) {
      if (take.running || !take.sound.length) continue;
      const { name, request, answer } = take.kept;
      const kept = { name, request, answer: answer && pick(answer, ANSWER), chosen: take === dialogue.takeOf(line) };
      parts.push(first ? "" : ",", JSON.stringify(kept).slice(0, -1), ',"audio":"', await base64(take.sound), '"}');
      first = false;
    }
    parts.push("]}");
  }
  return new Blob([...parts, "\n]}\n"], { type: "application/json" });
}

/**
 * What a file holds, its takes kept in the store under new ids. Raises an Error with a sentence.
 * @param {File} file
 */
export async function readProject(file) {
  if (file.size > MOST.bytes) throw new Error(t("project.large"));
  let data;
  try {
    data = JSON.parse(await file.text());
  } catch {
    throw new Error(t("project.foreign"));
  }
  if (data?.format !== FORMAT) throw new Error(t("project.foreign"));
  if (data.version !== VERSION) throw new Error(t("project.version"));
  try {
    return await keep(read(data));
  } catch (error) {
    if (error instanceof Damage) throw new Error(t("project.damaged", { where: error.message }));
    throw error;
  }
}

class Damage extends Error {}

const PARAMETERS = ["temperature", "top_p", "top_k", "max_new_tokens", "seed", "ras_win_len", "ras_win_max_num_repeat"];
const VALUES = Object.fromEntries(PARAMETERS.map((name) => [name, orNull(number(-1, Number.MAX_SAFE_INTEGER))]));
const REQUEST = {
  text: string(MOST.text), ref_audio: orNull(string(MOST.name)), scene_prompt: orNull(string(MOST.name)), ...VALUES,
  chunk_method: orNull(string(10)), chunk_max_word_num: number(1, 10_000),
};
const ANSWER = { seed: number(0, 2 ** 63), duration: number(0, 1e6), generated_text: string(2 * MOST.text), finish_reason: string(MOST.finish) };

/** Everything there is in the file, and nothing else. Raises Damage. */
function read({ speakers, lines, values }) {
  const ids = new Map();
  const cast = list(MOST.speakers)(speakers, "speakers").map((speaker, index) => {
    const where = `speakers[${index}]`;
    const id = newId();
    ids.set(string(MOST.name)(speaker?.id, where), id);
    return { id, name: string(MOST.name)(speaker.name, where), voice: orNull(string(MOST.name))(speaker.voice, where) };
  });
  const script = list(MOST.lines)(lines, "lines").map((line, index) => {
    const where = `lines[${index}]`;
    if (!ids.has(line?.speaker)) throw new Damage(`${where}.speaker`);
    return {
      line: { id: newId(), speaker: ids.get(line.speaker), text: string(MOST.text)(line.text, where), pause: number(0, MOST.pause)(line.pause, where), chosen: null },
      takes: list(MOST.takes)(line.takes, `${where}.takes`).map((take) => readTake(take, `${where}.takes`)),
    };
  });
  return { speakers: cast, script, values: pick(values, VALUES, "values") };
}

function readTake(take, where) {
  if (typeof take !== "object" || take === null) throw new Damage(where);
  const request = pick(take.request, REQUEST, where);
  string(MOST.text)(request.text, where);
  let samples;
  try {
    samples = decodeSamples(string(MOST.bytes)(take.audio, where));
  } catch {
    throw new Damage(`${where}.audio`);
  }
  return {
    name: string(MOST.name)(take.name, where),
    request,
    answer: take.answer === null ? null : pick(take.answer, ANSWER, where),
    chosen: take.chosen === true,
    samples,
  };
}

async function keep({ speakers, script, values }) {
  const takes = new Map();
  for (const { line, takes: read } of script) {
    const made = [];
    for (const { name, request, answer, chosen, samples } of read) {
      const take = new Take({ view: VIEW, line: line.id, name, request, answer });
      await take.adopt(Sound.of(samples));
      if (chosen) line.chosen = take.kept.id;
      made.push(take);
    }
    if (made.length) takes.set(line.id, made);
  }
  return { speakers, values, lines: script.map(({ line }) => line), takes };
}

// --- what a value may be ----------------------------------------------------------------------------------------------

function string(most) {
  return (value, where) => {
    if (typeof value !== "string" || value.length > most) throw new Damage(where);
    return value;
  };
}

function number(least, most) {
  return (value, where) => {
    if (typeof value !== "number" || !(value >= least && value <= most)) throw new Damage(where);
    return value;
  };
}

function orNull(check) {
  return (value, where) => (value === null ? null : check(value, where));
}

function list(most) {
  return (value, where) => {
    if (!Array.isArray(value) || value.length > most) throw new Damage(where);
    return value;
  };
}

/** The fields that are known, each checked; others are left out. */
function pick(value, checks, where = "") {
  if (typeof value !== "object" || value === null) throw new Damage(where);
  const known = Object.keys(checks).filter((name) => Object.hasOwn(value, name) && value[name] !== undefined);
  return Object.fromEntries(known.map((name) => [name, checks[name](value[name], `${where}.${name}`)]));
}

async function base64(sound) {
  await sound.ready();
  const reader = new FileReader();
  return new Promise((resolve, reject) => {
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(new Blob([sound.slice()]));
  });
}
