import { Player } from "./player.js";

const QUESTIONS = ["quality", "faithfulness"];
const SECTIONS = ["welcome", "rating", "wait", "ready", "finished", "full"];
const WORKER_NAMES = ["worker", "PROLIFIC_PID", "workerId"]; // how crowd platforms call it in the address
const POLL_MS = 5000;
const worker = WORKER_NAMES.map((name) => new URLSearchParams(location.search).get(name)).find(Boolean);
const KEY = `latent-shift-study:${worker ?? ""}`; // one of each worker: several may share a browser

const $ = (id) => document.getElementById(id);
const player = new Player($("left"), $("right"));
let token = location.hash.slice(1);
let study = null;
let state = null;
let item = null; // what is on the screen; differs from state.item after going back
let timer = 0;

class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(method, path, body) {
  const headers = { ...(token && { Authorization: `Bearer ${token}` }), ...(body && { "Content-Type": "application/json" }) };
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Refusal(0, "The study cannot be reached. Check your connection and try again.");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refusal(answer.status, content.error ?? `The study answered ${answer.status}.`);
  return content;
}

function say(problem) {
  $("problem").textContent = problem;
  $("problem").hidden = !problem;
}

function only(name) {
  clearTimeout(timer);
  for (const section of SECTIONS) $(section).hidden = section !== name;
  if (name !== "rating") {
    player.stop();
    item = null;
  }
  document.body.dataset.view = name;
}

// --- where the rater stands -------------------------------------------------------------------------------------

async function look() {
  await enter(await call("GET", "/api/state"));
}

async function enter(next) {
  state = next;
  $("progress").hidden = state.total === 0;
  $("resume").hidden = false;
  $("bar").max = state.total;
  $("bar").value = state.done;
  $("count").textContent = `${state.done} of ${state.total}`;
  if (state.item) {
    await show(state.item);
    return;
  }
  only(state.status);
  showCode();
  if (state.status === "finished" || state.status === "full") $("resume").hidden = true;
  if (state.status === "wait") {
    $("or-finish").hidden = $("wait").querySelector(".finish").hidden = state.done === 0;
    timer = setTimeout(() => act(look), POLL_MS);
  }
  $(state.status).querySelector("h2").tabIndex = -1;
  $(state.status).querySelector("h2").focus();
}

// What a crowd platform wants to see, from those too who came too late.
function showCode() {
  const place = $(state.status).querySelector(".code-place");
  $("completion").hidden = !place || !state.code;
  if ($("completion").hidden) return;
  place.append($("completion"));
  $("or-leave").hidden = false;
  $("code").textContent = state.code;
  $("completion-link").hidden = !state.link;
  if (state.link) $("completion-link").href = state.link;
}

async function show(shown) {
  only("rating");
  item = shown;
  const example = item.position === 0;
  $("example").hidden = !example;
  $("prompt").textContent = item.prompt;
  $("back").disabled = item.position <= 1;
  for (const question of QUESTIONS) {
    for (const input of $(question).querySelectorAll("input")) {
      input.checked = item.answers?.[question] === input.value;
      input.disabled = true;
    }
  }
  $("loading").textContent = "Loading the clips …";
  $("loading").hidden = false;
  setPaused(false);
  ready();
  $("prompt").focus({ preventScroll: true });
  $("news").textContent = example ? "The example" : `Pair ${item.position}`;
  try {
    if (!await player.show(item.left, item.right)) return;
  } catch {
    $("loading").textContent = "A clip could not be loaded. Load this page again.";
    return;
  }
  $("loading").hidden = true;
  for (const input of $("answers").querySelectorAll("input")) input.disabled = false;
  ready();
}

const chosen = (question) => $(question).querySelector("input:checked")?.value;
const isAnswered = () => QUESTIONS.every(chosen) && $("loading").hidden;

function ready() {
  $("next").disabled = !isAnswered();
  for (const question of QUESTIONS) $(question).classList.toggle("answered", Boolean(chosen(question)));
}

// --- what the rater does ----------------------------------------------------------------------------------------

let busy = false;

// One action at a time; a refusal is said, and the study asked where the rater stands.
async function act(action) {
  if (busy) return;
  busy = true;
  say("");
  try {
    await action();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    say(error.message);
    if (error.status === 409 && token) await look().catch(() => {});
    const passes = error.status === 0 || error.status >= 500; // a proxy's, while the server starts again
    if (passes && state?.status === "wait") timer = setTimeout(() => act(look), POLL_MS);
  } finally {
    busy = false;
  }
}

async function join() {
  token = (await call("POST", "/api/raters", { consent: true, ...(worker && { worker }) })).token;
  remember();
  await look();
}

async function next() {
  if (!isAnswered()) return;
  const answers = Object.fromEntries(QUESTIONS.map((question) => [question, chosen(question)]));
  if (item.position > 0) {
    await enter(await call("PUT", `/api/items/${item.position}`, answers));
    return;
  }
  if (!(await call("POST", "/api/training", answers)).right) {
    say("Look again: one clip is whole and shows what the sentence says. Choose it for both questions.");
    return;
  }
  await look();
}

async function back() {
  const position = item ? item.position - 1 : state.done;
  if (position >= 1) await show(await call("GET", `/api/items/${position}`));
}

async function finish() {
  await enter(await call("POST", "/api/finish"));
}

function setPaused(paused) {
  player.paused = paused;
  $("pause").setAttribute("aria-pressed", paused);
  $("pause").textContent = paused ? "Play" : "Pause";
}

function choose(side) {
  const inside = document.activeElement?.closest(".question")?.id;
  const question = inside ?? QUESTIONS.find((name) => !chosen(name)) ?? QUESTIONS[0];
  const input = $(question).querySelector(`input[value=${side}]`);
  if (!input || input.disabled) return;
  input.checked = true;
  ready();
  const open = QUESTIONS.find((name) => !chosen(name));
  (open ? $(open) : $("next")).focus(); // the question and not an answer, which Space would choose
}

const SIDE_KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "same" };

document.addEventListener("keydown", (event) => {
  if ($("rating").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const onButton = event.target.closest("button, summary, a");
  const onAnswer = event.target.closest("input");
  if (event.key in SIDE_KEYS && (event.key !== "ArrowDown" || study.allow_ties)) choose(SIDE_KEYS[event.key]);
  else if (event.key === " " && !onButton && !onAnswer) setPaused(!player.paused);
  else if (event.key === "Enter" && !onButton) act(next);
  else if (event.key === "Backspace") act(back);
  else return;
  event.preventDefault();
});

$("join").addEventListener("submit", (event) => { event.preventDefault(); act(join); });
$("answers").addEventListener("submit", (event) => { event.preventDefault(); act(next); });
$("answers").addEventListener("change", ready);
$("back").addEventListener("click", () => act(back));
$("ready-back").addEventListener("click", () => act(back));
$("pause").addEventListener("click", () => setPaused(!player.paused));
$("begin-another").addEventListener("click", forget);
for (const button of document.querySelectorAll(".finish")) button.addEventListener("click", () => act(finish));
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("code").textContent);
    $("copy").textContent = "Copied";
  } catch { // no permission, or no secure page: mark it, so that the rater can copy
    getSelection().selectAllChildren($("code"));
  }
});

// --- the start --------------------------------------------------------------------------------------------------

// The token is behind the # of the address, which browsers do not send: it is in no log.
function remember() {
  history.replaceState(null, "", `#${token}`);
  try { localStorage.setItem(KEY, token); } catch { /* private windows may refuse; the link is enough */ }
  $("link").href = location.href;
  $("another").hidden = Boolean(worker); // whom the address names is somebody already
}

function forget() {
  const left = state?.status !== "finished" && state?.status !== "full";
  if (left && !confirm("Your answers stay, but only your own link leads back to them. Begin as somebody else?")) return;
  try { localStorage.removeItem(KEY); } catch { /* as above */ }
  location.replace(location.pathname + location.search);
}

function fill() {
  document.title = $("title").textContent = study.title;
  for (const text of study.consent.split(/\n\s*\n/)) {
    const paragraph = document.createElement("p");
    paragraph.textContent = text;
    $("consent").append(paragraph);
  }
  $("work").textContent = `You will be asked about up to ${study.pairs + study.checks} pairs of clips. ` +
    "You may go back, and you may stop and go on later.";
  $("same-key").hidden = !study.allow_ties;
  const sides = { left: "Left", ...(study.allow_ties && { same: "No difference" }), right: "Right" };
  for (const question of QUESTIONS) {
    $(question).querySelector("legend").textContent = study[question];
    for (const [value, text] of Object.entries(sides)) {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name: question, value });
      const shown = document.createElement("span");
      shown.textContent = text;
      label.append(input, shown);
      $(question).querySelector(".choice").append(label);
    }
  }
}

async function start() {
  study = await call("GET", "/api/study");
  fill();
  try { token ||= localStorage.getItem(KEY) ?? ""; } catch { /* as above */ }
  if (!token) {
    only("welcome");
    return;
  }
  try {
    const now = await call("GET", "/api/state");
    remember();
    await enter(now);
  } catch (error) {
    if (error.status !== 401) throw error;
    if (location.hash) say("This link belongs to nobody in this study. You may begin anew.");
    token = "";
    history.replaceState(null, "", location.pathname + location.search);
    only("welcome");
  }
}

window.addEventListener("hashchange", () => location.reload());
act(start).finally(() => { document.body.dataset.ready = ""; });
