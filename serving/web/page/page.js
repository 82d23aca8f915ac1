// The page: pictures come in (intake), each gets a card (cards), the service's state is shown beside them (live).

import {Cards} from "./cards.js";
import {Code} from "./code.js";
import {$, make} from "./dom.js";
import {History} from "./history.js";
import {listen} from "./intake.js";
import {Live} from "./live.js";
import {Models} from "./models.js";

const TOPS = [1, 3, 5, 10, 20];

// How many labels the address asks for, as in #top=3; null leaves it to the service.
function top() {
  const number = Number(new URLSearchParams(location.hash.slice(1)).get("top"));
  return Number.isInteger(number) && number > 0 ? number : null;
}

function showTop(live) {
  const chosen = top() ?? live.latest?.top ?? 5;
  const tops = [...new Set([...TOPS, chosen])].sort((one, other) => one - other);
  if ($("top").textContent !== tops.join("")) $("top").replaceChildren(...tops.map(number => make("option", {}, String(number))));
  $("top").value = String(chosen);
}

// The key, and the form that asks for it once the service does.
const ask = {
  onSubmit() {},
  get key() { return $("key").value; },
  answered({status}) { if (status) $("ask").hidden = status !== 401; },
};
$("ask").onsubmit = event => { event.preventDefault(); ask.onSubmit(); };

const live = new Live();
const models = new Models(live);
const code = new Code(live, models, top);
$("top").onchange = () => { history.replaceState(null, "", `#top=${$("top").value}`); code.show(); };
addEventListener("hashchange", () => { showTop(live); code.show(); });
live.addEventListener("state", () => { showTop(live); $("docs").hidden = !live.latest?.api_docs; });
showTop(live);
const cards = new Cards(live, models, new History(), ask, top);
listen(files => cards.take(files));
live.start();
