// The same request from a program: in three languages, with this page's own address.

import {$, announce} from "./dom.js";
import {asked, pathOf} from "./models.js";

const TEXTS = {
  curl: (address, key) => `curl -F image=@photo.jpg ${key ? "-H 'Authorization: Bearer <key>' " : ""}${quoted(address)}`,
  python: (address, key) => `import requests

with open("photo.jpg", "rb") as photo:
    answer = requests.post(
        "${address}",
        files={"image": photo},${key ? '\n        headers={"Authorization": "Bearer <key>"},' : ""}
        timeout=60,
    )
answer.raise_for_status()
for one in answer.json()["predictions"]:
    print(f'{one["probability"]:6.1%}  {one["label"]}')
`,
  javascript: (address, key) => `const form = new FormData();
form.append("image", file);  // of an <input type="file">; in Node: await fs.openAsBlob("photo.jpg")
const response = await fetch("${address}", {method: "POST", body: form${key ? ', headers: {Authorization: "Bearer <key>"}' : ""}});
const answer = await response.json();
if (!response.ok) throw new Error(answer.error);
for (const {label, probability} of answer.predictions) console.log(label, probability);
`,
};

// A shell takes ? and & for its own.
const quoted = address => /[?&]/.test(address) ? `'${address}'` : address;

export class Code {
  #language = "curl";
  #tabs = [...$("tabs").children];

  // `top()` tells how many labels a request asks for, `live` whether the service asks for a key, `models` of a choice.
  constructor(live, models, top) {
    Object.assign(this, {live, top});
    this.#tabs.forEach((tab, index) => {
      tab.onclick = () => this.#choose(tab);
      tab.onkeydown = ({key}) => {
        const step = {ArrowRight: 1, ArrowLeft: -1}[key];
        if (step) this.#choose(this.#tabs.at((index + step) % this.#tabs.length)).focus();
      };
    });
    $("copy").onclick = () => this.#copy();
    live.addEventListener("state", () => this.show());
    models.addEventListener("choice", () => this.show());
    this.show();
  }

  show() {
    const path = pathOf(asked());
    const address = new URL(this.top() ? `${path}?top=${this.top()}` : path, location.href);
    const text = TEXTS[this.#language](address.href, Boolean(this.live.latest?.asks_for_key));
    if ($("code").textContent !== text) $("code").textContent = text;  // keeps what is selected
  }

  #choose(chosen) {
    for (const tab of this.#tabs) {
      tab.setAttribute("aria-selected", tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
    }
    this.#language = chosen.id.replace("tab-", "");
    $("code").setAttribute("aria-labelledby", chosen.id);
    this.show();
    return chosen;
  }

  async #copy() {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText($("code").textContent);  // secure pages alone have it
    } catch {
      getSelection().selectAllChildren($("code"));
      said = "Selected: press Ctrl+C";
    }
    announce(said);
    $("copy").textContent = said;
    setTimeout(() => { $("copy").textContent = "Copy"; }, 2000);
  }
}
