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
const PAGE = 24;
const gallery = { search: "", size: PAGE, refresh: null };
let refreshing = 0;
let sending = false;

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
    field("fps").value = model.fps;
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
    fps: field("fps").valueAsNumber,
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
  for (const name of ["seed", "steps", "guidance_scale", "scheduler", "size", "fps", ...(video.frames > 1 ? ["frames"] : [])]) {
    sideA.querySelector(`[name=${name}]`).value = video[name];
  }
  const solver = sideA.querySelector("[name=scheduler]");
  if (!solver.value) solver.value = model.scheduler; // the clip is another model's
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

function complain(problem, where = "problem", before = "") {
  $(where).hidden = !problem;
  $(where).textContent = problem ? `${before}${problem.message}${problem.wait ? `; try again in ${problem.wait} s` : ""}` : "";
}

async function make(requests) {
  if (sending) return;
  const send = form.querySelector("[type=submit]");
  const focused = document.activeElement === send;
  sending = send.disabled = true;
  complain(null);
  const videos = [];
  try {
    for (const request of requests) videos.push(await api.createVideo(request));
  } catch (problem) {
    complain(problem, "problem", videos.length ? "The second was not taken: " : "");
  } finally {
    sending = send.disabled = false;
    if (focused) send.focus();
  }
  if (!videos.length) return;
  stage(videos);
  tell("Waiting");
  refreshGallery();
}

const actions = {
  reuse,
  again,
  ended: () => refreshGallery(),
  removed: (video, words) => {
    tell(words);
    for (const item of $("tiles").children) if (item.dataset.id === video.id) item.remove(); // before it gets the focus
    if ($("viewer").querySelector(".card")?.dataset.id === video.id) $("viewer").close();
    for (const card of $("stage").children) {
      if (card.dataset.id !== video.id) continue;
      card.stop();
      card.remove();
    }
    $("stage").hidden = !$("stage").children.length;
    api.forgetContent(video.id);
    if (words !== "Deleted") complain({ message: `${words}.` }, "gallery-problem");
    refreshGallery();
  },
};

function cardOf(video) {
  const card = makeCard(video, actions);
  card.dataset.id = video.id;
  return card;
}

function stage(videos) {
  for (const card of $("stage").children) card.stop();
  const cards = videos.map(cardOf);
  $("stage").replaceChildren(...cards);
  $("stage").hidden = false;
  Promise.all(cards.map((card) => card.done)).then(() => { // two clips run in step
    const players = [...$("stage").querySelectorAll("video")];
    if (players.length > 1) for (const player of players) player.currentTime = 0;
  });
}

// ---- the gallery

const stateOf = (video) => JSON.stringify([video.id, video.status, video.progress]);

function tile(video) {
  const picture = element("span", { className: "picture" });
  const button = element("button", { type: "button" }, picture, element("span", { className: "name", textContent: video.prompt }));
  button.onclick = () => open(video);
  if (video.status === "completed") {
    const shown = element("img", { alt: "", loading: "lazy" });
    let wanted = "";
    const load = async (variant) => {
      wanted = variant;
      const address = await api.contentUrl(video.id, variant).catch(() => "");
      if (address && wanted === variant) shown.src = address;
    };
    load("thumbnail");
    picture.append(shown);
    if (video.frames > 1 && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
      for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => load("webp"));
      for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => load("thumbnail"));
    }
  } else {
    picture.textContent = unfinished(video) ? (video.status === "queued" ? "Waiting" : `${video.progress} %`) : "Failed";
  }
  const item = Object.assign(element("li", {}, button), { state: stateOf(video) });
  item.dataset.id = video.id;
  return item;
}

async function open(video) {
  complain(null, "gallery-problem");
  let now;
  try {
    now = await api.getVideo(video.id);
  } catch (problem) {
    if (problem.status === 404) actions.removed(video, "It was deleted elsewhere");
    else complain(problem, "gallery-problem");
    return;
  }
  const card = cardOf(now);
  $("viewer").querySelector("div").replaceChildren(card);
  $("viewer").onclose = () => {
    card.stop();
    card.remove();
  };
  $("viewer").showModal();
}

// As many jobs as the gallery shows.
async function listShown() {
  const jobs = [];
  for (;;) {
    const query = { limit: Math.min(100, gallery.size - jobs.length), search: gallery.search };
    const page = await api.listVideos(jobs.length ? { ...query, after: jobs.at(-1).id } : query);
    jobs.push(...page.data);
    if (!page.has_more || jobs.length >= gallery.size) return { jobs, more: page.has_more };
  }
}

// Ends with the newest call's problem, or null: one that is overtaken waits for it.
function refreshGallery() {
  clearTimeout(gallery.timer);
  gallery.refresh = refreshTiles(++refreshing);
  return gallery.refresh;
}

// Tiles that did not change stay as they are, so that focus and pictures do.
async function refreshTiles(number) {
  let shown;
  try {
    shown = await listShown();
  } catch (problem) {
    if (number !== refreshing) return gallery.refresh;
    gallery.timer = setTimeout(refreshGallery, 3000);
    return problem;
  }
  if (number !== refreshing) return gallery.refresh;
  const before = [...$("tiles").children];
  const known = new Map(before.map((item) => [item.state, item]));
  const tiles = shown.jobs.filter((video) => video.error?.code !== "cancelled").map((video) => known.get(stateOf(video)) ?? tile(video));
  if (tiles.length !== before.length || tiles.some((item, index) => item !== before[index])) {
    const focused = tiles.indexOf(document.activeElement?.closest("li"));
    $("tiles").replaceChildren(...tiles);
    if (focused >= 0) tiles[focused].querySelector("button").focus();
  }
  $("more").hidden = !shown.more;
  $("empty").hidden = tiles.length > 0;
  $("empty").textContent = gallery.search ? "No sentence holds this." : "Clips that you make appear here.";
  if (shown.jobs.some(unfinished)) gallery.timer = setTimeout(refreshGallery, 3000);
  return null;
}

$("more").onclick = async () => {
  const last = $("tiles").lastElementChild;
  gallery.size += PAGE;
  const problem = await refreshGallery();
  complain(problem, "gallery-problem");
  if (problem) gallery.size -= PAGE;
  else if (last?.isConnected) last.nextElementSibling?.querySelector("button").focus();
};

$("search").addEventListener("input", () => {
  gallery.search = $("search").value;
  gallery.size = PAGE;
  clearTimeout(gallery.typing);
  gallery.typing = setTimeout(refreshGallery, 200);
});

$("tiles").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const item = event.target.closest("li");
  if (!step || !item) return;
  (step > 0 ? item.nextElementSibling : item.previousElementSibling)?.querySelector("button").focus();
});

window.addEventListener("focus", () => refreshGallery());

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
  const problem = await refreshGallery();
  if (problem) throw problem;
} catch (problem) {
  complain(problem);
}
document.body.dataset.ready = "";
