// A job on the page: its preview while it is made, then its clip, and what one can do with it.

import { contentUrl, deleteVideo, follow, hasKey } from "./api.js";
import { curlCode, pythonCode } from "./code.js";

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export const tell = (news) => { document.getElementById("news").textContent = news; };
export const unfinished = (video) => video.status === "queued" || video.status === "in_progress";

const still = matchMedia("(prefers-reduced-motion: reduce)");
const FILES = { video: "MP4", webp: "WebP", gif: "GIF", thumbnail: "PNG" };

function describe(video) {
  const what = video.frames === 1 ? "image" : `${video.frames} frames`;
  return `seed ${video.seed}, ${video.steps} steps, guidance ${video.guidance_scale}, ${video.scheduler}, ${video.size}, ${what}`;
}

function progressText(video) {
  if (video.status === "in_progress") return video.step ? `Step ${video.step} of ${video.steps}` : "Starting";
  return video.queue_position ? `Waiting, ${video.queue_position} before it` : "Waiting";
}

// Actions: {reuse(video), again(video), ended(video), removed(video, words)}. The card's `stop()` ends its stream.
export function makeCard(video, actions) {
  const aborter = new AbortController();
  const view = element("div", { className: "view" });
  const facts = element("p", { className: "facts" });
  const bottom = element("div");
  const trouble = element("p", { className: "problem", hidden: true });
  trouble.setAttribute("role", "alert");
  const foot = element("div", {}, bottom, trouble);
  const card = element("article", { className: "card" }, view, element("p", { className: "title", textContent: video.prompt }), facts, foot);
  card.stop = () => aborter.abort();
  const complain = (problem) => Object.assign(trouble, { hidden: false, textContent: problem.message });

  const bar = element("progress", { max: 100 });
  bar.setAttribute("aria-label", "Progress");
  const words = element("span", { className: "quiet" });
  const cancel = element("button", { type: "button", textContent: "Cancel" });
  cancel.onclick = () => {
    cancel.disabled = true;
    words.textContent = "Cancelling";
    deleteVideo(video.id).then(({ deleted }) => deleted && actions.removed(video, "Deleted")).catch((problem) => {
      complain(problem);
      cancel.disabled = false;
    });
  };

  function showMaking(now) {
    facts.textContent = describe(now);
    bar.value = now.progress;
    if (!cancel.disabled) words.textContent = progressText(now);
    if (!cancel.isConnected) {
      view.replaceChildren(element("span", { className: "quiet", textContent: "The first preview comes soon" }));
      bottom.replaceChildren(element("div", { className: "making" }, bar, words, cancel));
    }
    if (now.preview) {
      const shown = view.querySelector("img") ?? element("img", { alt: "Preview" });
      shown.src = now.preview;
      if (!shown.isConnected) view.replaceChildren(shown);
    }
  }

  async function remove() {
    try {
      await deleteVideo(video.id);
      actions.removed(video, "Deleted");
    } catch (problem) {
      if (problem.status === 404) actions.removed(video, "It was deleted before");
      else complain(problem);
    }
  }

  async function showDone(now) {
    facts.textContent = describe(now);
    const links = Object.entries(FILES)
      .filter(([variant]) => now.frames > 1 || variant === "thumbnail")
      .map(([variant, name]) => downloadLink(now, variant, name, complain));
    bottom.replaceChildren(
      row("Download", ...links),
      row("Copy as", button("Python", (made) => copy(pythonCode(now), made)), button("curl", (made) => copy(curlCode(now), made))),
      againRow(now, actions, remove),
    );
    const gone = () => view.replaceChildren(element("p", { className: "problem", textContent: "The file is not there. It may have been deleted." }));
    try {
      view.replaceChildren(...(now.frames === 1 ? await image(now, gone) : await clip(now, gone)));
    } catch {
      gone();
    }
  }

  function showFailed(now) {
    const cancelled = now.error?.code === "cancelled";
    bottom.replaceChildren(againRow(now, actions, remove));
    facts.textContent = describe(now);
    view.replaceChildren(element("p", { className: cancelled ? "quiet" : "problem", textContent: cancelled ? "Cancelled" : now.error?.message }));
  }

  const show = (now) => (unfinished(now) ? showMaking(now) : now.status === "completed" ? showDone(now) : showFailed(now));
  const first = show(video);
  card.done = unfinished(video)
    ? follow(video.id, (now) => unfinished(now) && showMaking(now), aborter.signal).then(async (now) => {
      await show(now);
      tell(now.status === "completed" ? `Ready: ${now.prompt}` : `Ended without a clip: ${now.prompt}`);
      actions.ended(now);
    }).catch((problem) => {
      if (aborter.signal.aborted) return;
      if (problem.status === 404) actions.removed(video, "It was deleted elsewhere");
      else complain(problem);
    })
    : first;
  return card;
}

function row(name, ...children) {
  return element("div", { className: "actions" }, element("span", { className: "quiet", textContent: name }), ...children);
}

function button(label, run) {
  const made = element("button", { type: "button", textContent: label });
  made.onclick = () => run(made);
  return made;
}

function againRow(video, actions, remove) {
  const removal = button("Delete", remove);
  removal.classList.add("danger");
  return row("Again", button("Another seed", () => actions.again(video)), button("Use settings", () => actions.reuse(video)), removal);
}

async function image(video, gone) {
  return [element("img", { src: await contentUrl(video.id, "thumbnail"), alt: video.prompt, onerror: gone })];
}

async function clip(video, gone) {
  const src = await contentUrl(video.id, "video");
  const player = element("video", { src, loop: true, muted: true, playsInline: true, autoplay: !still.matches, onerror: gone });
  player.setAttribute("aria-label", video.prompt);
  const toggle = element("button", { type: "button", className: "play", textContent: still.matches ? "Play" : "Pause" });
  toggle.onclick = () => (player.paused ? player.play() : player.pause());
  player.onplay = () => { toggle.textContent = "Pause"; };
  player.onpause = () => { toggle.textContent = "Play"; };
  return [player, toggle];
}

function downloadLink(video, variant, name, complain) {
  const link = element("a", { className: "button", textContent: name, download: "", href: `/v1/videos/${video.id}/content?variant=${variant}` });
  link.setAttribute("aria-label", `Download as ${name}`);
  link.onclick = async (event) => {
    if (!hasKey()) return;
    event.preventDefault();
    try {
      element("a", { href: await contentUrl(video.id, variant), download: `${video.id}.${name.toLowerCase()}` }).click();
    } catch (problem) {
      complain(problem);
    }
  };
  return link;
}

async function copy(code, button) {
  try {
    await navigator.clipboard.writeText(code);
    const label = button.textContent;
    button.textContent = "Copied";
    tell("Copied");
    setTimeout(() => { button.textContent = label; }, 1500);
  } catch { // no clipboard without HTTPS: show it to be copied by hand
    const dialog = document.getElementById("copy");
    const area = dialog.querySelector("textarea");
    area.value = code;
    dialog.showModal();
    area.select();
    area.scrollTop = 0;
  }
}
