// A card for each picture: it waits, is sent, shows its labels or why there are none, and sends itself again.

import {$, announce, count, download, duration, make, percent, readable} from "./dom.js";
import {asked, pathOf} from "./models.js";
import {send} from "./send.js";

const MOST_IN_FLIGHT = 4;  // a browser keeps six connections to a service; two are left for its state
const MOST_BY_ITSELF = 5;  // times that a card sends itself again
const LONGEST_BY_ITSELF_SECONDS = 120;  // for longer nobody looks at a countdown
const SHOW_PLACE_AFTER_MS = 1000;
const MOST_CARDS = 100;

export class Cards {
  #cards = [];  // as they stand on the page
  #line = [];   // those that are not sent yet
  #inFlight = 0;

  // `live` knows the service's state, `models` which there are, `history` keeps answers, `ask` holds the key, `top()` tells
  // how many labels.
  constructor(live, models, history, ask, top) {
    Object.assign(this, {live, models, history, ask, top});
    $("download-all").onclick = () => download("predictions.json", this.#cards.map(card => card.told()));
    $("remove-all").onclick = () => { [...this.#cards].forEach(card => this.remove(card)); $("file").focus(); };
    $("ask-chosen").onclick = () => { this.#ofOthers().forEach(card => card.askChosen()); this.#show(); $("remove-all").focus(); };
    live.addEventListener("state", () => { this.#cards.forEach(card => card.showWaiting()); this.#showOffer(); });
    models.addEventListener("choice", () => this.#showOffer());
    ask.onSubmit = () => this.#cards.filter(card => card.answer?.status === 401).forEach(card => card.enqueue());
  }

  take(files) {
    const taken = [...files].map(file => new Card(file, this));  // they stand in their order, before those that came earlier
    this.#cards.unshift(...taken);
    $("cards").prepend(...taken.map(card => card.element));
    taken.forEach(card => card.enqueue());
    this.#cards.slice(MOST_CARDS).filter(card => !card.isBusy).forEach(card => this.remove(card));
    this.#show();
  }

  enqueue(card) {
    this.#line.push(card);
    this.#next();
  }

  remove(card) {
    this.#cards = this.#cards.filter(other => other !== card);
    this.#line = this.#line.filter(other => other !== card);
    card.end();
    this.#show();
  }

  async #next() {
    if (this.#inFlight >= MOST_IN_FLIGHT || !this.#line.length) return;
    this.#inFlight += 1;
    try { await this.#line.shift().send(); } finally { this.#inFlight -= 1; }
    this.#show();
    this.#next();
  }

  // Those that another model than the chosen one has been asked about.
  #ofOthers() {
    const chosen = this.models.nameOf(asked());
    return this.models.areSeveral ? this.#cards.filter(card => this.models.nameOf(card.model) !== chosen && !card.isBusy) : [];
  }

  #showOffer() {
    $("ask-chosen").hidden = !this.#ofOthers().length;
    $("ask-chosen").textContent = `Ask ${this.models.nameOf(asked())} about these`;
  }

  #show() {
    this.#showOffer();
    $("results").hidden = !this.#cards.length;
    $("download-all").hidden = !this.#cards.some(card => card.answer?.predictions);
    this.#cards.forEach(card => card.element.classList.toggle("alone", this.#cards.length === 1));
  }
}

class Card {
  answer = null;
  model = asked();  // that answers; null: the default
  #tries = 0;
  #turn = new AbortController();
  #countdown = 0;

  constructor(file, cards) {
    this.file = file;
    this.cards = cards;
    this.element = $("card-template").content.firstElementChild.cloneNode(true);
    this.find("h3").textContent = file.name;
    this.find(".remove").setAttribute("aria-label", `Remove ${file.name}`);
    this.find(".remove").onclick = () => { cards.remove(this); $("file").focus(); };
    this.find(".again").onclick = () => { this.#tries = 0; this.enqueue(); };
    this.find(".download").onclick = () => download(`${file.name.replace(/\.[^.]*$/, "")}.json`, this.told());
    const picture = this.find("img");
    picture.alt = file.name;
    picture.onerror = () => picture.replaceWith(make("span", {class: "fine"}, "No preview"));
    this.address = picture.src = URL.createObjectURL(file);
    this.picture = picture;
  }

  find(selector) { return this.element.querySelector(selector); }

  get isBusy() { return this.answer === null; }

  askChosen() {
    this.model = asked();
    this.#tries = 0;
    this.enqueue();
  }

  // Has the card sent when its turn comes.
  enqueue() {
    clearInterval(this.#countdown);
    this.answer = this.sentAt = this.ahead = null;
    this.#show();
    this.cards.enqueue(this);
  }

  async send() {
    const {live, ask, top} = this.cards;
    this.#turn = new AbortController();
    this.sentAt = performance.now();
    this.ahead = live.placeNow(this.model);
    setTimeout(() => this.showWaiting(), SHOW_PLACE_AFTER_MS);
    const {signal} = this.#turn;
    const answer = await send(this.file, {path: pathOf(this.model), key: ask.key, top: top(), signal});
    if (signal.aborted) return;  // the card is gone
    this.answer = {...answer, at: new Date().toISOString()};
    ask.answered(answer);
    this.#show();
    if (answer.predictions) {
      const [first] = answer.predictions;
      announce(`${this.file.name}: ${readable(first.label)}, ${percent(first.probability)}`);
      this.cards.history.add({...this.told(), picture: this.picture});
    } else {
      announce(`${this.file.name}: ${answer.error}`);
      this.#tryAgainLater(answer.retryAfter);
    }
  }

  // Counts down to the time that the service has named, then sends again; a person may be quicker.
  #tryAgainLater(seconds) {
    if (seconds === null || seconds === undefined || seconds > LONGEST_BY_ITSELF_SECONDS || this.#tries >= MOST_BY_ITSELF) return;
    this.#tries += 1;
    // A little more, each page and card another: those that were refused together do not come back together.
    const until = performance.now() + 1000 * (seconds + Math.random() / 2);
    const tick = () => {
      const left = Math.ceil((until - performance.now()) / 1000);
      if (left <= 0) return this.enqueue();
      this.find(".countdown").textContent = `Sends itself again in ${left} s.`;
    };
    this.#countdown = setInterval(tick, 250);
    tick();
  }

  end() {
    this.#turn.abort();
    clearInterval(this.#countdown);
    URL.revokeObjectURL(this.address);
    this.element.remove();
  }

  // What a download says of this picture.
  told() {
    const {predictions, warning, model, took, times, error, status, at} = this.answer ?? {error: "not answered yet"};
    const about = {file: this.file.name, at, model: this.modelName};
    if (!predictions) return {...about, error, status};
    return {...about, predictions, warning, model_version: model ?? undefined, milliseconds: {answered: Math.round(took), ...times}};
  }

  // The name of the model, where there are several.
  get modelName() { return this.cards.models.areSeveral ? this.cards.models.nameOf(this.model) : undefined; }

  showWaiting() {
    if (!this.isBusy || this.sentAt === null) return;
    const {live} = this.cards, isLate = performance.now() - this.sentAt >= SHOW_PLACE_AFTER_MS - 50;
    if (!isLate) return;
    this.ahead ??= live.placeNow(this.model);
    this.find(".wait-text").textContent = live.reasonToWait(this.model) ?? placeText(live.before(this.ahead, this.model), live.latest);
  }

  #show() {
    const {answer} = this, predictions = answer?.predictions;
    this.find(".waits").hidden = !this.isBusy;
    this.find(".wait-text").textContent = "Looking …";
    this.find(".labels").replaceChildren(...(predictions ?? []).map(bar));
    const isIndependent = predictions?.length > 1 && this.cards.models.of(this.model)?.independent;
    this.find(".independent").textContent = isIndependent ? "Each label by itself: they need not add up to 100 %." : "";
    this.find(".warning").textContent = answer?.warning ?? "";
    const request = answer?.request && answer.status >= 500 ? ` (Request ${answer.request})` : "";
    this.find(".refusal").textContent = answer?.error ? answer.error + request : "";
    this.find(".countdown").textContent = "";
    this.find(".again").hidden = !answer?.error;
    this.find(".time").hidden = !predictions;
    if (predictions) this.find(".time-text").textContent = timeText(answer, this.modelName);
  }
}

function placeText(before, state) {
  if (!before) return "Looking …";
  const seconds = state.answered_per_second > 0 ? Math.ceil(before / state.answered_per_second) : null;
  return `About ${count(before, "picture")} before this one${seconds ? `, some ${seconds} s` : ""} …`;
}

function bar({label, probability}) {
  const meter = make("meter", {min: 0, max: 1, value: probability});
  const name = make("span", {class: "name"}, readable(label)), share = make("span", {class: "percent"}, percent(probability));
  return make("li", {}, make("label", {}, name, share, meter));
}

function timeText({took, times, model: version}, name) {
  const by = name ? ` by ${name}${version ? ` (${version})` : ""}` : "";
  const parts = [["queue", "waiting"], ["model", "predicting"]]
    .filter(([name]) => times[name] !== undefined)
    .map(([name, verb]) => `${duration(times[name])} ${verb}`);
  return `Answered${by} in ${duration(took)}${parts.length ? `: ${parts.join(", ")}` : ""}.`;
}
