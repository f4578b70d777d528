// The state of the server, asked for again and again: which model, what it can do, whether it is there. Shows nothing.

import { ApiError, askJson } from "./api.js";

const EVERY = { ready: 10_000, busy: 2_000, away: 2_000 };
/** Sounds have no name on the wire: the model that follows scenes makes them. */
const FEATURES = { cloning: "语音克隆", scenes: "场景描述", sounds: "场景描述", several: "多说话人音频生成" };

/** Dispatches `change` when something about the server has changed, and `ability` when what can() says may have. */
class Server extends EventTarget {
  /** @type {"unknown" | "ready" | "loading" | "failed" | "away" | "locked"} */
  status = "unknown";
  /** @type {any} what GET /info says */
  info = null;
  /** @type {any} what GET /ready says while there is no model */
  readiness = null;
  /** Whether this page has something running: then the queue is looked at more often. */
  busy = false;
  #timer = 0;
  #seen = "";
  #able = "";

  start() {
    document.addEventListener("visibilitychange", () => !document.hidden && this.look());
    return this.look();
  }

  /** Asks now, and from now on in time. */
  async look() {
    clearTimeout(this.#timer);
    try {
      this.info = await askJson("info");
      this.status = this.info.status;
      this.readiness = this.status === "ready" ? null : await this.#ready();
    } catch (error) {
      this.status = error.status === 401 ? "locked" : "away";
    }
    const seen = JSON.stringify([this.status, this.info, this.readiness]);
    if (seen !== this.#seen) {
      this.#seen = seen;
      this.dispatchEvent(new Event("change"));
    }
    const able = JSON.stringify([this.info?.is_loaded, this.info?.model_name, this.info?.supported_features]);
    if (able !== this.#able) {
      this.#able = able;
      this.dispatchEvent(new Event("ability"));
    }
    clearTimeout(this.#timer);
    const pace = this.status === "ready" ? (this.busy ? "busy" : "ready") : "away";
    if (!document.hidden && this.status !== "locked") this.#timer = setTimeout(() => this.look(), EVERY[pace]);
  }

  /** Whether the loaded model has a feature: cloning, scenes, several, sampling (parameters and seed), or sounds. */
  can(feature) {
    if (!this.info?.is_loaded) return true; // not known yet; nothing is greyed on suspicion
    if (feature === "sampling") return this.info.model_name !== "embedded";
    return this.info.supported_features.includes(FEATURES[feature]);
  }

  async #ready() {
    try {
      return await askJson("ready");
    } catch (error) {
      if (error instanceof ApiError && error.body) return error.body;
      throw error;
    }
  }
}

export const server = new Server();
