// The service's state, of several models the chosen one's: asked every two seconds while somebody looks, and shown.

import {bars, line} from "./charts.js";
import {$, count, duration, make, note} from "./dom.js";
import {ask, asked} from "./models.js";

const EVERY_MS = 2000, AT_MOST_EVERY_MS = 30_000, GIVE_UP_MS = 10_000;
const FRESH_MS = 3000;  // a state that is older tells nothing about the place of a picture sent now

const BANNERS = {
  no_model_server: "No model server is ready. A picture that is sent now waits for one, and may wait in vain.",
  paused: "The operator has paused the service. A picture that is sent now waits until it goes on.",
  draining: "The operator lets the service finish what it has. It takes no pictures until it goes on.",
  redis_away: "The service has lost its queue (Redis is away). It takes no pictures until the queue is back.",
  unreachable: "The service cannot be reached. This page tries again by itself.",
};
const OF_ONE = {  // of several models
  no_model_server: "is not ready: no model server serves it. A picture that is sent now waits for one, and may wait in vain.",
  paused: "is paused by the operator. A picture that is sent now waits until it goes on.",
  draining: "finishes what it has, as the operator wants. It takes no pictures until it goes on.",
};
const PULSES = {
  ready: ["ready", "Ready"], no_model_server: ["wanting", "No model server"], paused: ["wanting", "Paused"],
  draining: ["wanting", "Draining"], redis_away: ["away", "Redis is away"], unreachable: ["away", "Unreachable"],
};
const REASONS = {
  no_model_server: "No model server is ready: this picture waits for one …",
  paused: "The service is paused: this picture waits …",
};

export class Live extends EventTarget {
  latest = null;  // what /state said last; null while that is unknown
  #of = null;  // of which model: see models.js
  #seenAt = 0;
  #pause = EVERY_MS;
  #timer = 0;
  #isAsking = false;

  start() {
    document.addEventListener("visibilitychange", () => document.hidden ? clearTimeout(this.#timer) : this.look());
    addEventListener("online", () => this.look());
    this.#ask();
  }

  // Looks at once.
  look() {
    this.#pause = EVERY_MS;
    this.#ask();
  }

  // Where a picture for `model` that is sent now stands: so many wait, and so many were answered so far.
  placeNow(model) {
    const {waiting, answered_total} = this.latest ?? {};
    if (model !== this.#of || performance.now() - this.#seenAt > FRESH_MS || waiting == null || answered_total == null) return null;
    return {waiting, answered_total};
  }

  // How many are still before a picture for `model` that was sent at `place`; null if nobody knows.
  before(place, model) {
    if (!place || model !== this.#of || this.latest?.answered_total == null) return null;
    return Math.max(0, Math.min(place.waiting - (this.latest.answered_total - place.answered_total), this.latest.waiting ?? Infinity));
  }

  reasonToWait(model) { return model === this.#of ? REASONS[this.latest?.status] : undefined; }

  async #ask() {
    clearTimeout(this.#timer);
    if (this.#isAsking || document.hidden) return;
    this.#isAsking = true;
    const model = asked();
    let status;
    try {
      const path = model === null ? "state" : `state?model=${encodeURIComponent(model)}`;
      const response = await fetch(path, {cache: "no-store", signal: AbortSignal.timeout(GIVE_UP_MS)});
      const state = await response.json().catch(() => null);
      if (model !== null && response.status === 404) {  // a link of yesterday, say
        ask(null);
        note(typeof state?.error === "string" ? state.error : "There is no such model.");
      }
      this.latest = response.ok && isState(state) ? state : null;
      // An older web server has no such page, which is no reason to worry anybody.
      status = this.latest?.status ?? (response.status < 500 ? "" : "unreachable");
    } catch {
      this.latest = null;
      status = "unreachable";
    }
    this.#isAsking = false;
    if (asked() !== model) return this.look();  // another one was chosen meanwhile
    this.#of = model;
    this.#seenAt = performance.now();
    this.#pause = this.latest ? EVERY_MS : Math.min(2 * this.#pause, AT_MOST_EVERY_MS);
    this.#show(status);
    this.dispatchEvent(new Event("state"));
    if (!document.hidden) this.#timer = setTimeout(() => this.#ask(), this.#pause);
  }

  #show(status) {
    const state = this.latest, [look, word] = PULSES[status] ?? ["", ""];
    const of = state?.models?.length > 1 ? state.model : null;  // of several
    const banner = [of && OF_ONE[status] ? `${of} ${OF_ONE[status]}` : BANNERS[status], state?.warning].filter(Boolean).join(" ");
    if ($("banner").textContent !== banner) $("banner").textContent = banner;  // else a screen reader says it again
    $("banner").hidden = !banner;
    $("pulse").dataset.state = look;
    const rate = state?.answered_per_second ? ` · ${number(state.answered_per_second)} answers a second` : "";
    const servers = state?.model_servers.length ? ` · ${count(state.model_servers.length, "model server")}` : "";
    $("pulse-text").textContent = word && word + servers + rate;
    $("live").hidden = !state;
    $("live-title").textContent = of ? `${of} now` : "The service now";
    if (state) showFigures(state);
    if (state) showModelServers(state.model_servers);
  }
}

const isState = state => typeof state?.status === "string" && Array.isArray(state.seconds) && Array.isArray(state.model_servers);

const number = value => value == null ? "–" : value < 10 ? Number(value.toFixed(1)).toString() : Math.round(value).toString();
const time = ms => ms == null ? "–" : duration(ms);

function showFigures(state) {
  const minute = state.last_minute ?? {}, {seconds} = state;
  const oldest = state.oldest_waiting_seconds == null ? "nobody waits" : `the oldest for ${time(1000 * state.oldest_waiting_seconds)}`;
  const bulk = state.bulk_waiting ? `, and ${state.bulk_waiting} without hurry` : "";
  const failed = minute.failed ? `, ${minute.failed} failed` : "";
  $("figures").replaceChildren(
    figure("Answered a second", number(state.answered_per_second), `${minute.answered ?? "–"} in a minute${failed}`,
      bars(seconds, "answered", "Answered, second by second")),
    figure("Waiting", number(state.waiting), oldest + bulk, bars(seconds, "waiting", "Waiting, second by second")),
    figure("Time to answer", time(minute.p50_ms), `99 of 100 within ${time(minute.p99_ms)}`,
      line(seconds, "p50_ms", "Median time to answer in milliseconds, second by second")),
    figure("Images a batch", number(minute.batch_images_mean), `${minute.batches ?? "–"} batches in a minute`,
      bars(seconds, "batch_images", "Images a batch, second by second")),
  );
}

function figure(name, value, more, chart) {
  const told = make("p", {class: "value"}, value);
  return make("div", {class: "figure"}, make("p", {}, name), told, make("p", {}, more), chart);
}

function showModelServers(servers) {
  const rows = servers.map(server => make("tr", {},
    ...["name", "model", "version", "precision", "runtime"].map(field => make("td", {}, String(server[field] ?? "–")))));
  $("model-servers").hidden = !rows.length;
  $("model-servers").tBodies[0].replaceChildren(...rows);
}
