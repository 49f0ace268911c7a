// The page: a prompt, the answers of base and personalized model beside each other, and the vector as sliders.

import { send, ServerError, stream } from "./server.js";

/** @typedef {import("./server.js").Vector} Vector */

const STATUS_MS = 8_000; // how long the status shows what went well; an error stays
const PAUSE_MS = 300; // after the last move of a slider, until the personalized model answers again
const SNAP = 0.012; // a value nearer to 0 than this share of the reach becomes 0

/** @type {import("./server.js").About} */
let about;
/** @type {Vector} */
let vector; // that answers
/** @type {number[] | null} */
let values; // of the sliders; null where the vector is of another size, and none moves
/** @type {{input: HTMLInputElement, bar: HTMLElement, output: HTMLOutputElement, root: HTMLElement}[]} */
let rows;
let reach = 1; // of the sliders
let question = ""; // the prompt of the present answers
let answered = ""; // the frame of the vector under which the personalized answer was made
let asking = false; // until both answers are there: the base's may be before the other's vector is made
let edits = 0; // how often the vector was changed, so that a late reply is not taken for the newest
let learning = false; // from a click
let pause = 0; // the timer of `PAUSE_MS`
let hiding = 0; // the timer of `STATUS_MS`

/** @param {string} id */
const part = (id) => /** @type {HTMLElement} */ (document.getElementById(id));
/** @param {string} id */
const input = (id) => /** @type {HTMLInputElement} */ (part(id));
/** @param {number} value */
const written = (value) => value.toFixed(3).replace(/^-0\.000$/, "0.000").replace("-", "−");

/** A pane: an answer as it comes in, how fast it came, and the buttons that say what the reader thinks of it. */
class Pane {
  /** @param {string} id */
  constructor(id) {
    this.place = /** @type {HTMLElement} */ (part(id).querySelector(".answer"));
    this.speed = /** @type {HTMLElement} */ (part(id).querySelector(".speed"));
    this.buttons = /** @type {NodeListOf<HTMLButtonElement>} */ (part(id).querySelectorAll("[data-reward]"));
    this.id = ""; // of the answer, once it is whole and until it is rated
    for (const button of this.buttons) {
      button.addEventListener("click", () => attempt(() => tell(this, button)));
    }
  }

  /**
   * Show an answer as it comes. One that is still coming ends.
   *
   * @param {Vector | null} own the vector that answers; null for the base.
   */
  async run(own) {
    this.stop();
    const running = (this.running = new AbortController());
    this.id = this.place.textContent = this.speed.textContent = "";
    this.place.setAttribute("aria-busy", "true");
    for (const button of this.buttons) button.removeAttribute("aria-pressed");
    refresh();
    const body = {
      model: about.model,
      messages: [{ role: "user", content: question }],
      max_tokens: Number(input("length").value),
      temperature: Number(input("temperature").value),
      seed: Number(input("seed").value),
      ...(own ? { vector: own.vector } : {}),
    };
    let first = 0;
    try {
      for await (const chunk of stream(body, running.signal)) {
        const text = chunk.choices[0]?.delta.content;
        if (text) {
          first ||= performance.now();
          this.place.append(text);
          this.place.scrollTop = this.place.scrollHeight;
        }
        if (chunk.usage) {
          const tokens = chunk.usage.completion_tokens;
          const rate = tokens > 1 ? ((tokens - 1) * 1000) / (performance.now() - first) : 0;
          this.speed.textContent = `${tokens} tokens, ${rate.toFixed(1)} tokens/s`;
          this.id = chunk.id;
        }
      }
    } catch (error) {
      if (!running.signal.aborted) throw error;
    } finally {
      if (this.running === running) {
        this.running = undefined;
        this.place.setAttribute("aria-busy", "false");
      }
      refresh();
    }
  }

  /** End an answer that is coming; what is there stays. */
  stop() {
    this.running?.abort();
  }
}

const base = new Pane("base");
const personal = new Pane("personal");

/**
 * Say something to the reader.
 *
 * @param {string} text
 * @param {boolean} [bad] whether it is an error.
 */
function say(text, bad = false) {
  const status = part("status");
  status.textContent = text;
  status.classList.toggle("bad", bad);
  status.classList.toggle("shown", text !== "");
  clearTimeout(hiding);
  if (!bad && !learning) hiding = setTimeout(() => status.classList.remove("shown"), STATUS_MS);
}

/** @param {() => Promise<void>} action whose error the status shows. */
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    say(message.charAt(0).toUpperCase() + message.slice(1), true);
  }
}

/** Show what can be done now. */
function refresh() {
  part("send").textContent = asking || base.running || personal.running ? "Stop" : "Ask";
  for (const pane of [base, personal]) {
    for (const button of pane.buttons) {
      button.hidden = !about.feedback || !values || (about.under && pane === base);
      button.disabled = learning || !pane.id;
    }
  }
}

async function ask() {
  if (base.running || personal.running) return stop();
  if (!input("prompt").value.trim()) return part("prompt").focus();
  clearTimeout(pause);
  question = input("prompt").value;
  say("");
  const own = async () => {
    const made = await remake();
    answered = made.vector;
    await personal.run(made);
  };
  asking = true;
  try {
    await Promise.all([base.run(null), own()]);
  } finally {
    asking = false;
    refresh();
  }
}

function stop() {
  base.stop();
  personal.stop();
}

/**
 * Make a frame of the sliders' values. It answers from now on, unless a slider has moved meanwhile.
 *
 * @returns {Promise<Vector>}
 */
async function remake() {
  if (!values) return vector;
  const own = ++edits;
  const made = await (await send("/v1/page/vector", { values })).json();
  if (own === edits) take(made);
  return made;
}

/** @param {Vector} made the vector that answers from now on. */
function take(made) {
  vector = made;
  part("bytes").textContent = `${vector.bytes.toLocaleString("en")} bytes`;
  if (made.values) return;
  part("norm").textContent = made.norm.toFixed(2);
  part("hint").textContent = `No slider moves these ${made.numbers.toLocaleString("en")} numbers. Set to 0 to move ${about.sliders}.`;
}

async function again() {
  const made = await remake();
  say("");
  if (!question || made !== vector || made.vector === answered) return;
  answered = made.vector;
  await personal.run(made);
}

/**
 * Show another vector, and let the personalized model answer with it.
 *
 * @param {Vector} made
 */
async function adopt(made) {
  clearTimeout(pause);
  edits += 1;
  show(made.values);
  take(made);
  answered = vector.vector;
  if (question) await personal.run(vector);
}

/**
 * Rate an answer: the sliders move from where they are by what the click taught.
 *
 * @param {Pane} pane
 * @param {HTMLButtonElement} button
 */
async function tell(pane, button) {
  const id = pane.id;
  button.setAttribute("aria-pressed", "true");
  setLearning(true);
  say("Learning from your click. It takes some seconds.");
  try {
    await send("/v1/feedback", { id, reward: Number(button.dataset.reward) });
    if (pane.id === id) pane.id = "";
  } catch (error) {
    if (pane.id === id) button.removeAttribute("aria-pressed"); // it can be clicked again
    throw error;
  } finally {
    setLearning(false);
  }
  const before = about.learned.values;
  about = await (await send("/v1/page")).json();
  const change = about.learned.values.map((value, i) => value - before[i]);
  const made = await (await send("/v1/page/vector", { values: values.map((value, i) => value + change[i]) })).json();
  rows.forEach((row, i) => row.root.classList.toggle("moved", Math.abs(change[i]) >= 0.0005));
  const sizes = change.map(Math.abs);
  const most = sizes.indexOf(Math.max(...sizes));
  say(`Learned: v${most + 1} moved most, by ${written(change[most])}.`);
  await adopt(made);
}

/** @param {boolean} on */
function setLearning(on) {
  learning = on;
  for (const id of ["sliders", "load", "reset"]) input(id).disabled = on;
  refresh();
}

/** @param {number[] | null} next the values of the sliders from now on. */
function show(next) {
  values = next;
  part("sliders").hidden = !values;
  refresh();
  if (!values) return;
  reach = Math.max(reach, Math.ceil(Math.max(...values.map(Math.abs)) * 10) / 10);
  rows.forEach(({ input, bar, output }, number) => {
    const value = values[number];
    input.min = String(-reach);
    input.max = String(reach);
    input.value = String(value);
    input.setAttribute("aria-valuetext", written(value));
    bar.style.setProperty("--share", String(value / reach));
    bar.classList.toggle("below", value < 0);
    output.value = written(value);
  });
  const norm = Math.hypot(...values);
  part("norm").textContent = norm.toFixed(2);
  part("hint").textContent = norm ? "" : "All values are 0, so both models are the same. Move one.";
}

/** @param {number} number of the value, from 0. */
function makeRow(number) {
  const root = document.createElement("div");
  const label = document.createElement("label");
  const rail = document.createElement("div");
  const bar = document.createElement("span");
  const slider = document.createElement("input");
  const output = document.createElement("output");
  root.className = "axis";
  rail.className = "rail";
  bar.className = "bar";
  slider.id = label.htmlFor = `value-${number + 1}`;
  slider.type = "range";
  slider.step = "any"; // a value that came from elsewhere stays what it is
  label.textContent = `v${number + 1}`;
  output.setAttribute("aria-live", "off"); // the slider itself says its value
  const set = (/** @type {number} */ value) => {
    show(values.with(number, Math.abs(value) < SNAP * reach ? 0 : Math.round(value * 1000) / 1000));
    clearTimeout(pause); // the personalized model answers again, and the base's answer stays
    pause = setTimeout(() => attempt(again), PAUSE_MS);
  };
  slider.addEventListener("input", () => set(Number(slider.value)));
  slider.addEventListener("keydown", (event) => {
    if (!["0", "Backspace", "Delete"].includes(event.key)) return;
    event.preventDefault();
    set(0);
  });
  rail.append(bar, slider);
  root.append(label, rail, output);
  return { root, bar, input: slider, output };
}

/** Give the vector to the reader as a file. */
async function save() {
  const made = await remake();
  const binary = atob(made.vector.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
  link.download = `${about.user}.bin`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  say(`Saved ${made.bytes} bytes as ${link.download}.`);
}

/** @param {File} file */
async function load(file) {
  const made = await (await send("/v1/page/vector", file)).json();
  say(`Loaded a vector of norm ${made.norm.toFixed(2)}.`);
  await adopt(made);
}

function listen() {
  part("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(ask);
  });
  part("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    attempt(ask);
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") stop();
  });
  part("reset").addEventListener("click", () => {
    show(rows.map(() => 0));
    attempt(again);
  });
  part("save").addEventListener("click", () => attempt(save));
  part("load").addEventListener("click", () => part("file").click());
  part("file").addEventListener("change", () => {
    const [chosen] = input("file").files ?? [];
    if (chosen) attempt(() => load(chosen));
    input("file").value = "";
  });
}

/** Say what the server has, and begin. */
async function begin() {
  try {
    about = await (await send("/v1/page")).json();
  } catch (error) {
    if (!(error instanceof ServerError) || error.code !== "invalid_api_key") throw error;
    throw new Error("this page has no token, or an old one: open the address that the server printed");
  }
  input("send").disabled = false;
  part("model").textContent = `${about.model}, ${about.sliders} values, basis ${about.basis}`;
  document.title = `${about.model} – tinylora-edge`;
  input("length").max = String(about.max_tokens);
  part("clicks-note").textContent = about.feedback
    ? "Likes and dislikes move the bars, each by a little: to where what you like is likelier."
    : "This server learns from no clicks. That of tinylora-edge play does.";
  reach = about.reach;
  rows = Array.from({ length: about.sliders }, (_, number) => makeRow(number));
  part("sliders").append(...rows.map((row) => row.root));
  show(about.vector.values);
  take(about.vector);
  listen();
  document.body.dataset.ready = "true";
}

attempt(begin);
