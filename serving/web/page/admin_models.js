// The models, where there are several: a link each, that says whether the model is well, whichever is chosen.

import {$, make} from "../../page/dom.js";

// What stands beside a model; a problem that is not here is told by its code.
const WORDS = {
  paused: "paused", draining: "draining", no_model_server: "no model server", all_quiet: "all quiet", oldest_waiting: "people wait too long",
  oldest_bulk_waiting: "asynchronous jobs wait too long", redis_full: "Redis is full",
};

export function showModels(models, chosen) {
  $("models").hidden = models.length < 2;
  if (models.length < 2) return;
  const list = $("models").firstElementChild;
  // A link stays the same element as long as the models are the same, so that the focus stays too.
  const names = of => [...of].map(({dataset}) => dataset.name).join("\n");
  const fresh = models.map(({name}) => {
    const link = make("a", {href: `?model=${encodeURIComponent(name)}`}, make("span", {class: "who"}, name), make("span", {class: "how"}));
    return make("li", {"data-name": name}, link);
  });
  if (names(list.children) !== names(fresh)) list.replaceChildren(...fresh);
  models.forEach((model, index) => show(list.children[index].firstElementChild, model, model.name === chosen));
}

function show(link, {well, problems}, isChosen) {
  if (isChosen) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  link.classList.toggle("odd", !well);
  const how = link.querySelector(".how"), text = well ? "well" : problems.map(({code}) => WORDS[code] ?? code).join(", ");
  if (how.textContent !== text) how.textContent = text;
  link.title = problems.map(({text}) => text).join(" ");
}
