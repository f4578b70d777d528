// The server's public endpoints over fetch: the key, the language, errors as sentences, and speech as it is made.
// Knows no view.

import { hasWords, language, t } from "./i18n.js";

/** What went wrong, as a sentence to show. `code` is the server's, or `unreachable`, `cut_off`, `cancelled`. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "unreachable", retryAfter = null, body = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter, body });
  }
}

const KEY = "studio.key";
let askForKey = async () => false;
let asking = null;

const storedKey = () => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "";

/** Whether the server was given a key by this page. */
export const hasKey = () => storedKey() !== "";

/** Keeps the key for this tab, or on this computer. */
export function keepKey(key, onThisComputer) {
  forgetKey();
  (onThisComputer ? localStorage : sessionStorage).setItem(KEY, key);
}

export function forgetKey() {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
}

/** `ask(refused)` shows the prompt and resolves to whether a key was given; `refused`: one was, and it is wrong. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/**
 * Asks the server. Raises ApiError for every answer but 2xx and for none at all; asks for the key where one is missing.
 * @param {string} path relative to the page
 * @param {{method?: string, json?: any, form?: FormData, headers?: Record<string, string>, signal?: AbortSignal}} [options]
 */
export async function ask(path, { method, json, form, headers = {}, signal } = {}) {
  const key = storedKey();
  const sent = { "Accept-Language": language() === "zh" ? "zh-CN" : "en", ...headers };
  if (key) sent.Authorization = `Bearer ${key}`;
  if (json !== undefined) sent["Content-Type"] = "application/json";
  const body = json === undefined ? form : JSON.stringify(json);
  let response;
  try {
    response = await fetch(path, { method: method ?? (body ? "POST" : "GET"), headers: sent, body, signal });
  } catch (error) {
    throw asApiError(error, "unreachable");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    const entered = hasKey() && storedKey() !== key; // while this was on its way
    if (!entered) asking ??= askForKey(key !== "" && key === storedKey()).finally(() => (asking = null));
    if (entered || (await asking)) return ask(path, { method, json, form, headers, signal });
  }
  throw await refusal(response);
}

/** The JSON of an answer. */
export async function askJson(path, options) {
  return (await ask(path, options)).json();
}

function asApiError(error, code) {
  if (error instanceof ApiError) return error;
  if (error.name === "AbortError") return new ApiError(t("error.cancelled"), { code: "cancelled" });
  return new ApiError(t(`error.${code}`), { code });
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  const own = `error.${body?.error?.code}`;
  const english = body?.error?.message; // of /v1, in whatever language it is asked; our own endpoints have `message`
  const message = body?.message ?? (hasWords(own) ? t(own) : (english ?? t("error.status", { status: response.status })));
  const seconds = Number(response.headers.get("retry-after"));
  return new ApiError(message, { status: response.status, code: body?.error?.code ?? "", retryAfter: seconds || null, body });
}

/**
 * Speaks a request (the body of POST /generate-stream) and hands the sound on as it is made.
 * @param {object} request
 * @param {{signal?: AbortSignal, onsamples: (samples: Int16Array) => void, onprogress?: (progress: any) => void}} hear
 * @returns {Promise<any>} the `done` event: seed, duration, generated_text, finish_reason
 */
export async function speak(request, { signal, onsamples, onprogress = () => {} }) {
  const response = await ask("generate-stream", { json: request, signal });
  let answer = null;
  try {
    for await (const event of events(response.body)) {
      if (event.type === "audio") onsamples(decodeSamples(event.audio_base64));
      else if (event.type === "progress") onprogress(event);
      else if (event.type === "done") answer = event;
      else if (event.type === "error") throw new ApiError(event.message, { status: 200, code: event.error.code, body: event });
    }
  } catch (error) {
    throw asApiError(error, "cut_off");
  }
  if (!answer) throw new ApiError(t("error.cut_off"), { code: "cut_off" });
  return answer;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** @returns {Int16Array} of s16le in base64 */
export function decodeSamples(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Int16Array(bytes.buffer);
}
