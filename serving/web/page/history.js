// The last twenty answers, kept in this browser's own storage: nothing of it reaches the service.

import {$, make, percent, readable} from "./dom.js";

const MOST = 20, THUMB_PIXELS = 104;
const KEY = `answers of ${location.pathname}`;  // another service may live at another path of the same address

export class History {
  #kept = [];
  #canKeep = true;

  constructor() {
    this.#kept = this.#read();
    this.#show();
    $("clear-history").onclick = () => { this.#write([]); $("file").focus(); };
    addEventListener("storage", ({key}) => { if (key === KEY || key === null) { this.#kept = this.#read(); this.#show(); } });
  }

  // `model`: its name, where there are several.
  async add({file, at, predictions, warning, model, picture}) {
    const thumb = await thumbOf(picture);
    const labels = predictions.slice(0, 5).map(({label, probability}) => ({label, probability}));
    // Another tab may have added something meanwhile.
    const kept = this.#canKeep ? this.#read() : this.#kept;
    this.#write([{file, at, labels, thumb, isRandom: Boolean(warning), model}, ...kept].slice(0, MOST));
  }

  #read() {
    try {
      const kept = JSON.parse(localStorage.getItem(KEY) ?? "[]");
      return Array.isArray(kept) ? kept.filter(isEntry).slice(0, MOST) : [];
    } catch { return []; }  // forbidden, or something else wrote there
  }

  #write(kept) {
    this.#kept = kept;
    // A full storage takes fewer entries, perhaps.
    for (let fit = kept.length; ; fit = Math.floor(fit / 2)) {
      try {
        if (fit) localStorage.setItem(KEY, JSON.stringify(kept.slice(0, fit)));
        else localStorage.removeItem(KEY);
        this.#canKeep = fit === kept.length;
        break;
      } catch {
        this.#canKeep = false;
        if (!fit) break;
      }
    }
    this.#show();
  }

  #show() {
    $("history").hidden = !this.#kept.length;
    $("history-note").textContent = this.#canKeep ? "The last twenty, kept in this browser alone."
      : "This browser's storage is full or forbidden: these are gone when the page closes.";
    $("earlier").replaceChildren(...this.#kept.map(row));
  }
}

function row({file, at, labels, thumb, isRandom, model}) {
  const picture = thumb ? make("img", {src: thumb, alt: ""}) : make("span", {class: "blank"});
  const [first, ...rest] = labels.map(({label, probability}) => `${readable(label)} ${percent(probability)}`);
  const when = new Date(at).toLocaleString(undefined, {dateStyle: "medium", timeStyle: "short"});
  const more = isRandom ? "from random weights" : rest.slice(0, 2).join(", ");
  const about = make("p", {class: "fine"}, make("time", {datetime: at}, when), `${typeof model === "string" ? ` · ${model}` : ""} · ${file}`);
  return make("li", {}, picture, make("div", {}, make("p", {class: "first"}, first), make("p", {class: "fine"}, more), about));
}

function isEntry(entry) {
  return entry && typeof entry.file === "string" && !Number.isNaN(Date.parse(entry.at)) && Array.isArray(entry.labels)
    && entry.labels.length > 0 && entry.labels.every(one => typeof one?.label === "string" && Number.isFinite(one.probability))
    && (entry.thumb === null || (typeof entry.thumb === "string" && entry.thumb.startsWith("data:image/")));
}

// The middle of a picture as a small JPEG; null for one that the browser cannot show.
async function thumbOf(picture) {
  try {
    await picture.decode();
    const canvas = make("canvas", {width: THUMB_PIXELS, height: THUMB_PIXELS});
    const side = Math.min(picture.naturalWidth, picture.naturalHeight);
    const left = (picture.naturalWidth - side) / 2, upper = (picture.naturalHeight - side) / 2;
    canvas.getContext("2d").drawImage(picture, left, upper, side, side, 0, 0, THUMB_PIXELS, THUMB_PIXELS);
    return canvas.toDataURL("image/jpeg", .75);
  } catch { return null; }
}
