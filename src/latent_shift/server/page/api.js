// Calls of the HTTP API. The key, where the server asks for one, lives as long as the tab.

let key = sessionStorage.getItem("key") ?? "";
let askForKey = async () => "";

export const hasKey = () => key !== "";
export const onKeyNeeded = (ask) => { askForKey = ask; };

export function setKey(given) {
  key = given;
  sessionStorage.setItem("key", key);
}

async function send(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    setKey(await askForKey());
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

// The address of a file for <img>, <video> and links; these cannot send a key, so with one it is fetched first.
export async function contentUrl(id, variant) {
  const path = `/v1/videos/${id}/content?variant=${variant}`;
  return key ? URL.createObjectURL(await (await send(path)).blob()) : path;
}

// Calls `show` with the job at every change until it ends, and gives its last state. A broken stream is taken up again.
export async function follow(id, show, signal) {
  for (;;) {
    try {
      const answer = await send(`/v1/videos/${id}/events`, { signal });
      let last = null;
      for await (const event of events(answer.body)) {
        last = event;
        show(event);
      }
      if (last && last.status !== "queued" && last.status !== "in_progress") return last;
    } catch (problem) {
      if (signal.aborted || problem.status) throw problem;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
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
