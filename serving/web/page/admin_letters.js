// The dead letters: a row each, which stays the same element as long as its letter is there, so that the focus stays too.

import {$, announce, count, make} from "../../page/dom.js";

const STEP = 20, MOST = 200, LOOK_AGAIN_MS = 30_000, AT_ONCE = 2;

export class Letters {
  #desk; #act;
  #rows = new Map();  // name -> {element, letter, address of its picture}
  #limit = STEP;
  #told = -1;  // how many there were at the last look
  #lookedAt = -Infinity;
  #queue = [];  // names of letters whose pictures are still to be fetched
  #fetching = 0;
  #seen = new IntersectionObserver(entries => this.#look(entries), {rootMargin: "300px"});

  // `act` does what a button says: see admin.js.
  constructor(desk, act) {
    this.#desk = desk;
    this.#act = act;
    $("more").onclick = () => { this.#limit = Math.min(this.#limit + STEP, MOST); this.#told = -1; this.refresh(); };
  }

  // Fetch the list anew if it may have changed: a full list stays as long while its letters change.
  async show(total, isReadOnly) {
    $("letters").classList.toggle("looking", isReadOnly);
    if (total !== this.#told || performance.now() - this.#lookedAt > LOOK_AGAIN_MS) await this.refresh();
    for (const {element} of this.#rows.values()) element.querySelector(".buttons").hidden = isReadOnly;
  }

  async refresh() {
    const {total, dead_letters: letters} = await this.#desk.ask(`dead-letters?limit=${this.#limit}`);
    if (!this.#desk.hasKey) return;  // it was forgotten meanwhile
    this.#told = total;
    this.#lookedAt = performance.now();
    const names = new Set(letters.map(({name}) => name));
    for (const [name, row] of this.#rows) if (!names.has(name)) this.#remove(name, row);
    letters.forEach((letter, index) => this.#put(letter, index));
    $("letters-note").textContent = total === 0 ? "There are none: no job was given up."
      : total > letters.length ? `The newest ${letters.length} of ${total}.` : `${count(total, "job was", "jobs were")} given up.`;
    $("more").hidden = total <= letters.length || this.#limit === MOST;  // the same letters are shown once
  }

  clear() {
    for (const [name, row] of this.#rows) this.#remove(name, row);
    this.#told = -1;
  }

  #put(letter, index) {
    let row = this.#rows.get(letter.name);
    if (!row) {
      row = {element: $("letter-template").content.cloneNode(true).firstElementChild, address: null};
      this.#rows.set(letter.name, row);
      row.element.dataset.name = letter.name;
      row.element.querySelector(".requeue").onclick = () => this.#requeue(row.letter);
      row.element.querySelector(".drop").onclick = () => this.#drop(row.letter);
      this.#seen.observe(row.element);
    }
    row.letter = letter;
    write(row.element, letter);
    const there = $("letters").children[index];
    if (there !== row.element) $("letters").insertBefore(row.element, there ?? null);
  }

  #remove(name, row) {
    const isFocused = row.element.contains(document.activeElement);
    const next = row.element.nextElementSibling ?? row.element.previousElementSibling;
    this.#seen.unobserve(row.element);
    row.element.remove();
    this.#rows.delete(name);
    if (row.address) URL.revokeObjectURL(row.address);
    if (isFocused) (next?.querySelector(".requeue") ?? $("letters-title")).focus();
  }

  #requeue(letter) {
    return this.#act({
      title: "Requeue this letter?", yes: "Requeue", path: `${pathOf(letter)}/requeue${placeOf(letter)}`, method: "POST",
      text: "Its job goes to the end of the queue as a new one. If the model failed on the picture itself, it fails again. Nobody waits for the answer any more.",
      done: `Requeued ${letter.name}.`,
    });
  }

  #drop(letter) {
    return this.#act({
      title: "Drop this letter?", yes: "Drop", path: `${pathOf(letter)}${placeOf(letter)}`, method: "DELETE",
      text: "Its job is deleted, and the picture with it. Nobody can bring it back.",
      done: `Dropped ${letter.name}.`,
    });
  }

  // Pictures are fetched once they are near the screen, few at a time.

  #look(entries) {
    for (const {isIntersecting, target} of entries.filter(({isIntersecting}) => isIntersecting)) {
      this.#seen.unobserve(target);
      this.#queue.push(target.dataset.name);
    }
    this.#fetchNext();
  }

  async #fetchNext() {
    while (this.#fetching < AT_ONCE && this.#queue.length) {
      const row = this.#rows.get(this.#queue.shift());
      if (!row) continue;
      this.#fetching += 1;
      this.#fetch(row).finally(() => { this.#fetching -= 1; this.#fetchNext(); });
    }
  }

  async #fetch(row) {
    const thumb = row.element.querySelector(".thumb");
    try {
      row.address = await this.#desk.picture(`${pathOf(row.letter)}/thumbnail${placeOf(row.letter)}`);
      if (!row.element.isConnected) URL.revokeObjectURL(row.address);
      thumb.replaceChildren(make("img", {src: row.address, alt: "The picture of this job", width: 128, height: 128}));
    } catch (error) {
      thumb.replaceChildren("No picture");
      thumb.title = error.message;
    }
  }
}

const pathOf = ({name}) => `dead-letters/${encodeURIComponent(name)}`;
const placeOf = ({place}) => `?place=${place}`;

function write(element, {name, at, attempts, reason, lane, size_bytes: size}) {
  const when = at === null ? "at an unknown time" : new Date(1000 * at).toLocaleString(undefined, {dateStyle: "medium", timeStyle: "medium"});
  const from = lane === "bulk" ? "asynchronous" : "of a request";
  element.querySelector("h3").textContent = name;
  element.querySelector(".reason").textContent = reason;
  element.querySelector(".about").textContent = `${when} · came back ${count(attempts, "time")} · ${from} · ${Math.ceil(size / 1000)} kB`;
  for (const verb of ["requeue", "drop"]) element.querySelector(`.${verb}`).setAttribute("aria-describedby", idOf(element, name));
}

// The name beside each button's own, for who hears only one button after the other.
function idOf(element, name) {
  const title = element.querySelector("h3");
  title.id ||= `letter-${name}`;
  return title.id;
}
