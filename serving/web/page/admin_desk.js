// What the operator's page asks the service: every request carries the key, which stays in this tab alone.

import {asked} from "../../page/models.js";

const STORED = `operator's key of ${location.pathname}`, GIVE_UP_MS = 10_000;

// A request that was refused, or got no answer. The message is a sentence for people; status 0: there was no answer.
export class Refused extends Error {
  constructor(sentence, status = 0) {
    super(sentence);
    this.status = status;
  }
}

export class Desk {
  #key = read();

  get hasKey() { return Boolean(this.#key); }

  use(key) { this.#key = key; write(key); }

  forget() { this.#key = ""; write(""); }

  // JSON of a path below /admin/; `body` is sent as JSON, and `model` is whose queue it is about.
  async ask(path, {method = "GET", body, model} = {}) {
    const response = await this.#fetch(path, {model, method, body: body && JSON.stringify(body), headers: body && {"Content-Type": "application/json"}});
    return response.json().catch(() => { throw new Refused("The service has sent an answer that cannot be read."); });
  }

  // The address, in this page, of a picture below /admin/; URL.revokeObjectURL frees it.
  async picture(path) {
    return URL.createObjectURL(await (await this.#fetch(path)).blob());
  }

  async #fetch(path, {model, headers, ...options} = {}) {
    let response;
    try {
      response = await fetch(`admin/${ofModel(path, model)}`, {...options, cache: "no-store", credentials: "omit", redirect: "error",
        headers: {...headers, Authorization: `Bearer ${bytes(this.#key)}`}, signal: AbortSignal.timeout(GIVE_UP_MS)});
    } catch {
      throw new Refused("The service cannot be reached. This page tries again by itself.");
    }
    if (response.ok) return response;
    const told = await response.json().catch(() => null);
    throw new Refused(typeof told?.error === "string" ? told.error : `The service has answered with ${response.status}.`, response.status);
  }
}

// A path with a model, by default the one that the page's address asks for.
function ofModel(path, model = asked()) {
  return model === null ? path : `${path}${path.includes("?") ? "&" : "?"}model=${encodeURIComponent(model)}`;
}

// A header takes bytes: those of the key in UTF-8, each as a character.
const bytes = key => String.fromCharCode(...new TextEncoder().encode(key));

function read() {
  try { return sessionStorage.getItem(STORED) ?? ""; } catch { return ""; }  // forbidden: it is kept until the page is left
}

function write(key) {
  try {
    if (key) sessionStorage.setItem(STORED, key); else sessionStorage.removeItem(STORED);
  } catch { /* as above */ }
}
