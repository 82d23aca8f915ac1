// Which of several models answers: people choose it, and the page's address keeps it, so that a link leads to it.

import {$, make} from "./dom.js";

const WORDS = {no_model_server: "not ready", paused: "paused", draining: "draining"};

// The name that the address asks for, as in ?model=flowers; null: the service's default answers.
export function asked() {
  const name = new URLSearchParams(location.search).get("model");
  return /^\.*$/.test(name ?? "") ? null : name;  // dots alone would lead to another path
}

// Writes the name into the address; null: none.
export function ask(name) {
  const address = new URL(location.href);
  if (name === null) address.searchParams.delete("model"); else address.searchParams.set("model", name);
  history.replaceState(null, "", address);
}

// Where pictures for a model go; null: for the default.
export const pathOf = model => model === null ? "predict" : `predict/${encodeURIComponent(model)}`;

// Tells of a choice by the event "choice".
export class Models extends EventTarget {
  #told = [];  // what /state said last of each

  constructor(live) {
    super();
    $("model").onchange = () => {
      const chosen = this.#told.find(({name}) => name === $("model").value);
      ask(chosen?.default ? null : $("model").value);
      live.look();
      this.dispatchEvent(new Event("choice"));
    };
    live.addEventListener("state", () => { if (live.latest) this.#show(live.latest.models); });
  }

  get areSeveral() { return this.#told.length > 1; }

  // What /state said of a model; null stands for the default.
  of(model) { return this.#told.find(one => model === null ? one.default : one.name === model) ?? null; }

  nameOf(model) { return model ?? this.of(null)?.name ?? "the default"; }

  #show(told) {
    this.#told = Array.isArray(told) ? told.filter(one => typeof one?.name === "string" || told.length === 1) : [];
    $("choice").hidden = !this.areSeveral;
    if (!this.areSeveral) return;
    const options = this.#told.map(({name, status}) => make("option", {value: name}, status in WORDS ? `${name}, ${WORDS[status]}` : name));
    const texts = list => [...list].map(({textContent}) => textContent).join("\n");
    // Only what has changed is written: a list that is open stays as it is.
    if (texts($("model").options) !== texts(options)) $("model").replaceChildren(...options);
    if ($("model").value !== this.nameOf(asked())) $("model").value = this.nameOf(asked());
  }
}
