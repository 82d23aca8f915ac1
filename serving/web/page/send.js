// One picture -> one request -> what came of it.

const UNREADABLE = "This cannot be read: it is a folder, or a file that has changed. Choose a picture again.";
const NO_KEY = "This is no key of this service: no header can carry it.";
const UNREACHABLE = "The service cannot be reached. Is it running?";

// `path`: of the model that is asked. {predictions, warning, times, model, took} of an answer. {error, status, retryAfter, request} of a refusal; without a
// status the service itself has said nothing.
export async function send(file, {path, key, top, signal}) {
  const headers = {}, form = new FormData();
  form.append("image", file);
  if (key) headers.Authorization = `Bearer ${key}`;
  try { new Headers(headers); } catch { return {status: 401, error: NO_KEY}; }
  // A request whose file cannot be read fails as if there were no service, or never ends.
  try { await file.slice(0, 1).arrayBuffer(); } catch { return {error: UNREADABLE}; }
  const began = performance.now();
  let response, text;
  try {
    response = await fetch(top ? `${path}?top=${top}` : path, {method: "POST", body: form, headers, signal});
    text = await response.text();
  } catch { return {error: UNREACHABLE}; }
  const took = performance.now() - began, status = response.status;
  const retryAfter = secondsToWait(response.headers.get("Retry-After"));
  try {
    const answer = JSON.parse(text);
    if (response.ok && Array.isArray(answer.predictions) && answer.predictions.length) {
      const times = timesOf(response.headers.get("Server-Timing"));
      return {...answer, status, took, times, model: response.headers.get("X-Model-Version")};
    }
    if (typeof answer.error === "string") return {error: answer.error, status, retryAfter, request: answer.request_id};
  } catch { /* a proxy's page, say */ }
  const error = status === 413 ? "The picture is too large (HTTP 413). Send a smaller one."
    : `Something other than the service answered, with HTTP ${status}. Try again; if that fails too, reload the page.`;
  return {error, retryAfter, status: status === 401 ? status : undefined};  // of the key, another status tells nothing
}

// "decode;dur=1.2, queue;dur=3.4" -> {decode: 1.2, queue: 3.4}
function timesOf(header) {
  return Object.fromEntries([...(header ?? "").matchAll(/(\w+)\s*;\s*dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]));
}

// Retry-After is seconds, or a date; null where it is missing or neither.
function secondsToWait(header) {
  if (!header) return null;
  const seconds = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : null;
}
