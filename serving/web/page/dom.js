// Small helpers that the other modules share.

export const $ = id => document.getElementById(id);

// An element with attributes and children. No style attributes: the page's policy forbids them.
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Egyptian_cat -> Egyptian cat, tabby -> Tabby
export function readable(label) {
  const words = label.replaceAll("_", " ").trim();
  return words.charAt(0).toUpperCase() + words.slice(1);
}

export const percent = probability => `${(100 * probability).toFixed(1)} %`;


// 8.2 ms, 41 ms, 12.3 s
export function duration(ms) {
  if (ms < 9.95) return `${ms.toFixed(1)}\u00a0ms`;
  return ms < 9950 ? `${Math.round(ms)}\u00a0ms` : `${(ms / 1000).toFixed(1)}\u00a0s`;
}

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

// Has a screen reader say what has changed, without moving the focus.
export function announce(text) {
  const line = make("p", {}, text);
  $("announce").append(line);
  setTimeout(() => line.remove(), 10_000);
}

export function note(text) { $("note").textContent = text; }

export function download(name, value) {
  const address = URL.createObjectURL(new Blob([JSON.stringify(value, null, 2) + "\n"], {type: "application/json"}));
  make("a", {href: address, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
