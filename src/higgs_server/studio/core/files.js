// A take as files and as code: downloads in each format, the request as curl and as Python. Shows nothing.

import { ask } from "./api.js";
import { wav } from "./sound.js";

/** Formats of POST /v1/audio/speech that take a new encoding; WAV is written here, from the samples themselves. */
export const ENCODED = ["mp3", "opus", "aac", "flac"];

/** Saves a blob as a file of the user's. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** A name that every file system takes. */
export const fileName = (name) => name.replace(/[\\/:*?"<>|\u0000-\u001f]+/g, " ").trim().slice(0, 80) || "take";

/** The body of POST /v1/audio/speech that gives a take's sound again: same text, voice, parameters and seed. */
export function speechBody({ request, answer }, format) {
  const { text, ref_audio, ...rest } = request;
  if (rest.scene_prompt === null) rest.scene_prompt = ""; // no scene, also where nulls are left out
  return { model: "higgs-audio-v2", input: text, voice: ref_audio, ...rest, seed: answer?.seed ?? request.seed, response_format: format };
}

/** Downloads a take. Raises ApiError where the server has to encode it and cannot. @param {import("./takes.js").Take} take */
export async function download(take, format) {
  const name = `${fileName(take.kept.name)}.${format}`;
  if (format === "wav") {
    await take.sound.ready();
    save(wav(take.sound.slice()), name);
    return;
  }
  const answer = await ask("v1/audio/speech", { json: speechBody(take.kept, format) });
  save(await answer.blob(), name);
}

const ADDRESS = () => new URL("v1/audio/speech", document.baseURI).href;
const compact = (body) => Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null && value !== undefined));

/** A take's request as a command for a shell. */
export function asCurl(kept, withKey) {
  const body = JSON.stringify(compact(speechBody(kept, "mp3")), null, 1).replaceAll("'", "'\\''");
  const key = withKey ? ' -H "Authorization: Bearer $HIGGS_KEY"' : "";
  return `curl -sS --fail-with-body '${ADDRESS()}'${key} \\\n  -H 'Content-Type: application/json' -o take.mp3 -d '${body}'`;
}

/** A take's request as a Python program that needs no package. */
export function asPython(kept, withKey) {
  const body = JSON.stringify(compact(speechBody(kept, "mp3")), null, 4); // without nulls, JSON is Python
  return `import json${withKey ? "\nimport os" : ""}
from urllib.request import Request, urlopen

body = ${body}
headers = {"Content-Type": "application/json"${withKey ? ', "Authorization": "Bearer " + os.environ["HIGGS_KEY"]' : ""}}
with urlopen(Request("${ADDRESS()}", json.dumps(body).encode(), headers)) as answer:
    with open("take.mp3", "wb") as file:
        file.write(answer.read())
`;
}

/** Puts text on the clipboard; over plain http by the old way, which is all that is allowed there. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
