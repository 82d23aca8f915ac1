// The queue in figures.

import {bars} from "../../page/charts.js";
import {$, duration, make} from "../../page/dom.js";

function age(seconds) {
  if (seconds < 120) return duration(1000 * seconds);
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

export function showFigures(stats) {
  const {people, bulk, redis, seconds} = stats;
  const oldest = lane => lane.waiting === 0 ? "nobody waits"
    : lane.oldest_waiting_seconds === null ? "the oldest does not tell for how long" : `the oldest for ${age(lane.oldest_waiting_seconds)}`;
  const limit = redis.limit_bytes === null ? "no limit" : `of ${bytes(redis.limit_bytes)}`;
  $("figures").replaceChildren(
    figure("People waiting", people.waiting, oldest(people), bars(seconds, "waiting", "People waiting, second by second")),
    figure("Asynchronous waiting", bulk.waiting, oldest(bulk)),
    figure("In flight", people.in_flight + bulk.in_flight, `${people.in_flight} of people, ${bulk.in_flight} asynchronous`),
    figure("Answered a second", round(stats.answered_per_second), timesOf(stats.last_minute), bars(seconds, "answered", "Answered, second by second")),
    figure("Dead letters", stats.dead_letters, stats.dead_letters ? "jobs that were given up" : "no job was given up"),
    figure("Redis's memory", redis.used_bytes === null ? "–" : bytes(redis.used_bytes), redis.version === null ? "it does not tell" : `${limit} · Redis ${redis.version}`),
  );
}

function timesOf({p50_ms: half, p99_ms: most}) {
  return half === null ? "nothing in the last minute" : `half within ${duration(half)}, 99 of 100 within ${duration(most)}`;
}

function figure(name, value, more, ...chart) {
  return make("div", {class: "figure"}, make("p", {}, name), make("p", {class: "value"}, String(value)), make("p", {}, more), ...chart);
}

const round = value => value < 10 ? Number(value.toFixed(1)) : Math.round(value);
const bytes = number => number < 1e6 ? `${Math.round(number / 1e3)} kB` : number < 1e9 ? `${(number / 1e6).toFixed(1)} MB` : `${(number / 1e9).toFixed(2)} GB`;
