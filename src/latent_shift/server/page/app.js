// The page: a form, what is being made, and the gallery.

import * as api from "./api.js";
import { element, makeCard, tell, unfinished } from "./card.js";

const $ = (id) => document.getElementById(id);
const form = $("compose");
const settings = $("settings");
const sideA = $("side-a");
const sideB = sideA.cloneNode(true);
sideB.id = "side-b";

let model = null;
let gallery = { search: "", last: null };
let refreshing = 0;

// ---- the form

function fillForm() {
  $("model").textContent = `model ${model.id}`;
  $("prompt").maxLength = model.max_prompt_chars;
  for (const side of [sideA, sideB]) {
    const field = (name) => side.querySelector(`[name=${name}]`);
    field("scheduler").replaceChildren(...Object.keys(model.schedulers).map((name) => element("option", { value: name, textContent: name })));
    field("scheduler").value = model.scheduler;
    const sizes = [];
    for (let pixels = model.size_factor; pixels <= model.max_side; pixels += model.size_factor) sizes.push(`${pixels}x${pixels}`);
    const usual = `${model.width}x${model.height}`;
    if (!sizes.includes(usual)) sizes.unshift(usual);
    field("size").replaceChildren(...sizes.map((size) => element("option", { value: size, textContent: size.replace("x", " × ") })));
    field("size").value = usual;
    Object.assign(field("steps"), { value: model.steps, max: model.max_steps });
    Object.assign(field("frames"), { value: model.frames, max: model.max_frames });
    field("guidance_scale").value = model.guidance_scale;
    side.querySelector(".loop").hidden = model.loops;
  }
}

function adaptForm() {
  const comparing = $("compare").checked;
  const image = form.elements.mode.value === "image";
  if (comparing && !sideB.isConnected) {
    for (const { name, type, value, checked } of sideA.querySelectorAll("input, select")) {
      Object.assign(sideB.querySelector(`[name=${name}]`), type === "checkbox" ? { checked } : { value });
    }
    sideA.after(sideB);
    settings.open = true;
  }
  if (!comparing) sideB.remove();
  sideA.querySelector("legend").textContent = comparing ? "First" : "Settings";
  sideB.querySelector("legend").textContent = "Second";
  for (const label of form.querySelectorAll(".clips")) {
    label.hidden = image || (label.matches(".loop") && model?.loops);
    label.querySelector("input").disabled = image;
  }
}

const randomSeed = () => Math.floor(Math.random() * 2 ** 31);

function requestOf(side, seed) {
  const field = (name) => side.querySelector(`[name=${name}]`);
  const request = {
    prompt: $("prompt").value,
    negative_prompt: form.elements.negative_prompt.value,
    model: model.id,
    seed: field("seed").value === "" ? seed : field("seed").valueAsNumber,
    steps: field("steps").valueAsNumber,
    guidance_scale: field("guidance_scale").valueAsNumber,
    scheduler: field("scheduler").value,
    size: field("size").value,
    frames: form.elements.mode.value === "image" ? 1 : field("frames").valueAsNumber,
    loop: field("loop").checked,
  };
  return Object.fromEntries(Object.entries(request).filter(([, value]) => !Number.isNaN(value)));
}

function fill(video) {
  $("prompt").value = video.prompt;
  form.elements.negative_prompt.value = video.negative_prompt;
  form.elements.mode.value = video.frames === 1 ? "image" : "clip";
  const size = sideA.querySelector("[name=size]");
  if (![...size.options].some((option) => option.value === video.size)) {
    size.append(element("option", { value: video.size, textContent: video.size.replace("x", " × ") }));
  }
  for (const name of ["seed", "steps", "guidance_scale", "scheduler", "size", ...(video.frames > 1 ? ["frames"] : [])]) {
    sideA.querySelector(`[name=${name}]`).value = video[name];
  }
  sideA.querySelector("[name=loop]").checked = video.loop;
  $("viewer").close();
}

function reuse(video) {
  fill(video);
  settings.open = true;
  adaptForm();
  $("prompt").focus();
}

function again(video) {
  fill(video);
  $("compare").checked = false;
  adaptForm();
  sideA.querySelector("[name=seed]").value = randomSeed();
  form.requestSubmit();
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const seed = randomSeed(); // the same for both sides, so that only what was changed differs
  const sides = $("compare").checked ? [sideA, sideB] : [sideA];
  await make(sides.map((side) => requestOf(side, seed)));
});

$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

form.addEventListener("click", (event) => {
  if (event.target.matches(".dice")) event.target.parentElement.querySelector("input").value = randomSeed();
});
form.addEventListener("change", adaptForm);
form.addEventListener("invalid", () => { settings.open = true; }, true); // else the wrong field could not be shown

// ---- what is being made

function complain(problem) {
  $("problem").hidden = !problem;
  $("problem").textContent = problem ? `${problem.message}${problem.wait ? `; try again in ${problem.wait} s` : ""}` : "";
}

async function make(requests) {
  complain(null);
  try {
    const videos = [];
    for (const request of requests) videos.push(await api.createVideo(request));
    stage(videos);
    tell("Waiting");
    refreshGallery();
  } catch (problem) {
    complain(problem);
  }
}

const actions = {
  reuse,
  again,
  ended: () => refreshGallery(),
  removed: (video) => {
    tell("Deleted");
    for (const item of $("tiles").children) if (item.dataset.id === video.id) item.remove(); // before it gets the focus
    $("viewer").close();
    for (const card of $("stage").children) if (card.dataset.id === video.id) card.remove();
    $("stage").hidden = !$("stage").children.length;
    refreshGallery();
  },
};

function stage(videos) {
  for (const card of $("stage").children) card.stop();
  const cards = videos.map((video) => makeCard(video, actions));
  cards.forEach((card, index) => { card.dataset.id = videos[index].id; });
  $("stage").replaceChildren(...cards);
  $("stage").hidden = false;
  Promise.all(cards.map((card) => card.done)).then(() => { // two clips run in step
    const players = [...$("stage").querySelectorAll("video")];
    if (players.length > 1) for (const player of players) player.currentTime = 0;
  });
}

// ---- the gallery

function tile(video) {
  const picture = element("span", { className: "picture" });
  const button = element("button", { type: "button" }, picture, element("span", { className: "name", textContent: video.prompt }));
  button.onclick = () => open(video);
  if (video.status === "completed") {
    const shown = element("img", { alt: "", loading: "lazy" });
    const load = async (variant) => { shown.src = await api.contentUrl(video.id, variant); };
    load("thumbnail");
    picture.append(shown);
    if (video.frames > 1 && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
      for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => load("webp"));
      for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => load("thumbnail"));
    }
  } else {
    picture.textContent = unfinished(video) ? (video.status === "queued" ? "Waiting" : `${video.progress} %`) : "Failed";
  }
  const item = Object.assign(element("li", {}, button), { state: JSON.stringify([video.id, video.status, video.progress]) });
  item.dataset.id = video.id;
  return item;
}

async function open(video) {
  const card = makeCard(await api.getVideo(video.id), actions);
  $("viewer").querySelector("div").replaceChildren(card);
  $("viewer").onclose = () => {
    card.stop();
    card.remove();
  };
  $("viewer").showModal();
}

// Shows the first page; tiles that did not change stay as they are, so that focus and pictures do.
async function refreshGallery() {
  const number = ++refreshing;
  const page = await api.listVideos({ limit: 24, search: gallery.search }).catch(() => null);
  if (page === null || number !== refreshing) return;
  const before = [...$("tiles").children];
  const known = new Map(before.map((item) => [item.state, item]));
  const tiles = page.data.filter((video) => video.error?.code !== "cancelled").map(tile);
  const kept = tiles.map((item) => known.get(item.state) ?? item);
  if (kept.length !== before.length || kept.some((item, index) => item !== before[index])) {
    const focused = kept.indexOf(document.activeElement?.closest("li"));
    $("tiles").replaceChildren(...kept);
    if (focused >= 0) kept[focused].querySelector("button").focus();
  }
  showEnd(page);
  $("empty").hidden = tiles.length > 0;
  $("empty").textContent = gallery.search ? "No sentence holds this." : "Clips that you make appear here.";
  clearTimeout(gallery.timer);
  if (page.data.some(unfinished)) gallery.timer = setTimeout(refreshGallery, 3000);
}

function showEnd(page) {
  gallery.last = page.last_id;
  $("more").hidden = !page.has_more;
}

$("more").onclick = async () => {
  clearTimeout(gallery.timer); // a refresh would fold the pages together again
  const page = await api.listVideos({ limit: 24, search: gallery.search, after: gallery.last });
  const tiles = page.data.filter((video) => video.error?.code !== "cancelled").map(tile);
  $("tiles").append(...tiles);
  tiles[0]?.querySelector("button").focus();
  showEnd(page);
};

$("search").addEventListener("input", () => {
  gallery.search = $("search").value;
  clearTimeout(gallery.typing);
  gallery.typing = setTimeout(refreshGallery, 200);
});

$("tiles").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const item = event.target.closest("li");
  if (!step || !item) return;
  (step > 0 ? item.nextElementSibling : item.previousElementSibling)?.querySelector("button").focus();
});

window.addEventListener("focus", refreshGallery);

// ---- the key

api.onKeyNeeded(() => new Promise((resolve) => {
  const dialog = $("key");
  $("change-key").hidden = false;
  dialog.onclose = () => resolve(dialog.querySelector("input").value);
  if (!dialog.open) dialog.showModal();
}));

$("change-key").onclick = () => {
  api.setKey("");
  location.reload();
};

// ---- the beginning

try {
  [model] = await api.models();
  $("change-key").hidden = !api.hasKey();
  fillForm();
  adaptForm();
  await refreshGallery();
} catch (problem) {
  complain(problem);
}
document.body.dataset.ready = "";
