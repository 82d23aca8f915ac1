// Small charts of the last minute, as SVG: a column or a point for each second; those that nobody told of are left out.

import {draw} from "./dom.js";

const SECONDS = 60, WIDTH = 180, HEIGHT = 40, STEP = WIDTH / SECONDS;

export function bars(seconds, field, title) {
  const points = placed(seconds, field), most = highest(points);
  return chart(title, points, most, points.filter(({value}) => value > 0).map(({x, value}) => {
    const height = Math.max(1, HEIGHT * value / most);
    return draw("rect", {x: x.toFixed(1), y: (HEIGHT - height).toFixed(1), width: STEP - .7, height: height.toFixed(1), rx: .7});
  }));
}

export function line(seconds, field, title) {
  const points = placed(seconds, field), most = highest(points);
  return chart(title, points, most, [draw("path", {d: path(points, most)})]);
}

// The values of a field, each where its second stands; the newest at the right.
function placed(seconds, field) {
  const last = seconds.at(-1)?.at ?? 0;
  return seconds.filter(second => second[field] != null && last - second.at < SECONDS)
    .map(second => ({at: second.at, x: WIDTH - STEP * (last - second.at + 1), value: second[field]}));
}

const highest = points => Math.max(1e-9, ...points.map(({value}) => value));

// A second without a value breaks the line.
function path(points, most) {
  return points.map(({at, x, value}, index) => {
    const goesOn = index > 0 && at - points[index - 1].at === 1;
    const here = `${(x + STEP / 2).toFixed(1)} ${(HEIGHT - HEIGHT * value / most).toFixed(1)}`;
    return goesOn ? `L${here}` : `M${here}h.01`;
  }).join("");
}

function chart(title, points, most, shapes) {
  const last = points.at(-1)?.value, short = value => Number(value.toPrecision(3));
  const said = last === undefined ? "nothing yet" : `now ${short(last)}, at most ${short(most)}`;
  const ground = draw("line", {x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT});
  return draw("svg", {class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `${title}: ${said}`}, ground, ...shapes);
}
