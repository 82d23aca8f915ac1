// The operator's page: asks for the key, looks every two seconds while somebody sees it, and does what its buttons say.

import {$, announce, note} from "../../page/dom.js";
import {ask, asked} from "../../page/models.js";
import {Desk} from "./admin_desk.js";
import {Letters} from "./admin_letters.js";
import {showModels} from "./admin_models.js";
import {Servers} from "./admin_servers.js";
import {showFigures} from "./admin_figures.js";

const TITLES = {"queue-title": "The queue", "servers-title": "Model servers", "letters-title": "Dead letters"};
const EVERY_MS = 2000, AT_MOST_EVERY_MS = 30_000;

const desk = new Desk(), letters = new Letters(desk, act), servers = new Servers(act);
let timer = 0, pause = EVERY_MS, isAsking = false, isWanted = false;
let shown = null, whose = "";  // where there are several models, the one that is shown: flowers, " of flowers"

// Looks.

async function look() {
  clearTimeout(timer);
  if (isAsking) { isWanted = true; return; }  // what is under way may be older than what was just done
  if (document.hidden || !desk.hasKey) return;
  isAsking = true;
  try {
    const stats = await desk.ask("stats");
    if (desk.hasKey) {  // which may have been forgotten meanwhile
      show(stats);
      await letters.show(stats.dead_letters, stats.read_only);
    }
    pause = EVERY_MS;
  } catch (error) {
    if (error.status === 401) close(error.message);
    else if (error.status === 404 && asked() !== null) {  // a link of yesterday, say
      ask(null);
      note(error.message);
      isWanted = true;
    } else if (desk.hasKey) lost(error.message);
    pause = Math.min(2 * pause, AT_MOST_EVERY_MS);
  }
  isAsking = false;
  if (isWanted) { isWanted = false; look(); return; }
  if (!document.hidden && desk.hasKey) timer = setTimeout(look, pause);
}

function lookNow() { pause = EVERY_MS; return look(); }

function lost(sentence) {
  $("pulse").dataset.state = "away";
  $("pulse-text").textContent = "What you see is not of now";
  tell(sentence);
}

// A sentence at the head of the page; "" for none. Not said again while it stays.
function tell(sentence) { if ($("banner").textContent !== sentence) $("banner").textContent = sentence; $("banner").hidden = !sentence; }

function show(stats) {
  $("door").hidden = true;
  $("desk").hidden = $("signed").hidden = false;
  $("who").textContent = stats.read_only ? `You look as ${stats.operator}; this desk changes nothing.` : `You act as ${stats.operator}.`;
  $("pulse").dataset.state = stats.draining || stats.paused || !stats.model_servers.length ? "wanting" : "ready";
  $("pulse-text").textContent = stats.draining ? "Draining" : stats.paused ? "Paused" : stats.model_servers.length ? "Working" : "No model server";
  tell([
    stats.draining && `Draining${since(stats.draining_at)}: new requests are refused with 503, and model servers empty the queue.`,
    stats.paused && `Paused${since(stats.paused_at)}: model servers take nothing. Requests wait, and those that wait too long get 504.`,
  ].filter(Boolean).join(" "));
  shown = stats.models.length > 1 ? stats.model : null;
  whose = shown === null ? "" : ` of ${shown}`;
  for (const [id, title] of Object.entries(TITLES)) if ($(id).textContent !== title + whose) $(id).textContent = title + whose;
  showModels(stats.models, stats.model);
  showVerbs(stats);
  showFigures(stats);
  servers.show(stats.model_servers, stats.read_only);
}

// " since 14:03:22": a time that stays, or a screen reader would say the whole sentence every two seconds.
function since(began) { return began === null ? "" : ` since ${new Date(1000 * began).toLocaleTimeString()}`; }

// Whichever verb goes, the focus stays among the verbs.
function showVerbs({paused, draining, read_only: isReadOnly}) {
  const focused = $("verbs").contains(document.activeElement) ? document.activeElement : null;
  $("verbs").hidden = isReadOnly;
  $("resume").hidden = !(paused || draining);
  $("pause").hidden = paused || draining;
  $("drain").hidden = draining;
  if (focused?.hidden) [...$("verbs").children].find(button => !button.hidden)?.focus();
}

// Acts: asks first if there is a title, tells what came of it, and looks at once.

async function act({title, text, yes, path, method, body, done}) {
  const model = shown ?? undefined;  // another one may be shown by the time that the dialog is answered
  if (title && !await confirmed(title, text, yes)) return;
  note("");
  try {
    const {changed} = await desk.ask(path, {method, body, model});
    announce(changed ? done : "It was so already.");
  } catch (error) {
    if (error.status === 401) { close(error.message); return; }
    note(error.message);
  }
  if (path.startsWith("dead-letters")) await letters.refresh().catch(() => {});
  await lookNow();
}

function confirmed(title, text, yes) {
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  const dialog = $("confirm");
  $("confirm-yes").onclick = () => dialog.close("yes");
  $("confirm-no").onclick = () => dialog.close("");
  dialog.returnValue = "";
  dialog.showModal();
  $("confirm-no").focus();
  return new Promise(resolve => { dialog.onclose = () => resolve(dialog.returnValue === "yes"); });
}

function verb(id, body, title, text, done) {
  const asks = () => whose ? `${$(id).textContent} the queue${whose}?` : title;
  $(id).onclick = () => act({title: asks(), text, yes: $(id).textContent, path: "queue", method: "POST", body, done});
}
verb("pause", {paused: true}, "Pause the queue?",
  "Model servers end what they have in hand, and take no more. Requests wait on, until their time is over or the queue is full.", "Paused.");
verb("drain", {draining: true}, "Drain the queue?",
  "Web servers refuse every new request with 503, while model servers empty both lanes. It stays so until you resume.", "Draining.");
verb("resume", {paused: false}, "Resume?", "Model servers take jobs again, and web servers accept them.", "Resumed.");

// The key.

function close(sentence = "") {
  clearTimeout(timer);
  desk.forget();
  letters.clear();
  servers.show([], true);
  tell("");
  note(sentence);
  $("pulse").dataset.state = $("pulse-text").textContent = "";
  $("desk").hidden = $("signed").hidden = true;
  $("door").hidden = false;
  $("key").focus();
}

$("ask").onsubmit = event => {
  event.preventDefault();
  note("");
  desk.use($("key").value.trim());
  $("key").value = "";
  lookNow();
};
$("forget").onclick = () => close();
document.addEventListener("visibilitychange", () => document.hidden ? clearTimeout(timer) : lookNow());
addEventListener("online", lookNow);
if (desk.hasKey) look(); else close();
