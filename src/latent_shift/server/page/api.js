// Calls of the HTTP API. The key, where the server asks for one, lives as long as the tab.

let key = sessionStorage.getItem("key") ?? "";
let askForKey = async () => "";
let asking = null; // one question for all calls that the old key did not open the door to

export const hasKey = () => key !== "";
export const onKeyNeeded = (ask) => { askForKey = ask; };

export function setKey(given) {
  key = given;
  sessionStorage.setItem("key", key);
}

async function send(path, options = {}) {
  const used = key;
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    if (used === key) await (asking ??= askForKey().then(setKey).finally(() => { asking = null; }));
    return send(path, options);
  }
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({ error: { message: `the server answered ${answer.status}` } }));
  throw Object.assign(new Error(error.message), { status: answer.status, wait: answer.headers.get("Retry-After") });
}

const json = async (path, options) => (await send(path, options)).json();

export const models = async () => (await json("/v1/models")).data;
export const getVideo = (id) => json(`/v1/videos/${id}`);
export const deleteVideo = (id) => json(`/v1/videos/${id}`, { method: "DELETE" });
export const listVideos = (query) => json(`/v1/videos?${new URLSearchParams(query)}`);
export const createVideo = (request) =>
  json("/v1/videos", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request) });

// The address of a file for <img>, <video> and links; these cannot send a key, so with one it is fetched first, and kept.
const kept = new Map(); // of "id/variant" the promise of its address, what was asked for last at the end
const MOST_KEPT = 60;

export async function contentUrl(id, variant) {
  const path = `/v1/videos/${id}/content?variant=${variant}`;
  if (!key) return path;
  const name = `${id}/${variant}`;
  const address = kept.get(name) ?? send(path).then((answer) => answer.blob()).then((blob) => URL.createObjectURL(blob));
  kept.delete(name);
  kept.set(name, address);
  address.then(dropUnseen, () => kept.delete(name));
  return address;
}

function drop(name) {
  kept.get(name)?.then(URL.revokeObjectURL, () => {});
  kept.delete(name);
}

// Lets the oldest go that are not on the page.
async function dropUnseen() {
  for (const [name, address] of kept) {
    if (kept.size <= MOST_KEPT) return;
    const url = await address.catch(() => "");
    if (!document.querySelector(`[src="${url}"]`)) drop(name);
  }
}

export function forgetContent(id) {
  for (const name of [...kept.keys()]) if (name.startsWith(`${id}/`)) drop(name);
}

// A browser has six connections to a server, for all tabs together. So one stream is held while the page is seen and has
// one job to follow; otherwise each is asked again and again.
const streams = new Set();
let followed = 0;
const takesTurns = () => document.hidden || followed > 1;

function letGo() {
  if (takesTurns()) for (const stream of streams) stream.abort();
}
document.addEventListener("visibilitychange", letGo);

// Calls `show` with the job at every change until it ends, and gives its last state. A broken stream is taken up again.
export async function follow(id, show, signal) {
  followed += 1;
  letGo();
  try {
    for (;;) {
      const last = await listen(id, show, signal);
      if (last && last.status !== "queued" && last.status !== "in_progress") return last;
      await new Promise((resolve) => setTimeout(resolve, 1000));
      signal.throwIfAborted();
    }
  } finally {
    followed -= 1;
  }
}

// Until the stream ends, breaks, or has to be let go.
async function listen(id, show, signal) {
  const stream = new AbortController();
  streams.add(stream);
  let last = null;
  try {
    const answer = await send(`/v1/videos/${id}/events`, { signal: AbortSignal.any([signal, stream.signal]) });
    for await (const event of events(answer.body)) {
      last = event;
      show(event);
      if (takesTurns()) break;
    }
  } catch (problem) {
    if (signal.aborted || problem.status < 500) throw problem; // others pass: a proxy's, while the server starts again
  } finally {
    streams.delete(stream);
    stream.abort();
  }
  return last;
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}
