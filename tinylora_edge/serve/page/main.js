// The page: a prompt, the answers of base and personalized model beside each other, and the vector between them.

import { Picture, save } from "./frames.js";
import { Pane } from "./pane.js";
import { Server, ServerError } from "./server.js";
import { takeToken, watchToken } from "./session.js";
import { Sliders } from "./sliders.js";

/** @typedef {import("./server.js").Vector} Vector */

const SAID_MS = 8_000; // how long the reader is told what went well; what went wrong stays
const PAUSE_MS = 300; // after the last move of a slider, until the personalized model answers again

const server = new Server(takeToken());
watchToken();

const prompt = /** @type {HTMLTextAreaElement} */ (part("prompt"));
const send = /** @type {HTMLButtonElement} */ (part("send"));
const base = new Pane(part("base"), clicked);
const personal = new Pane(part("personal"), clicked);
const picture = new Picture(/** @type {HTMLDialogElement} */ (part("qr")));

/** @type {import("./server.js").About} */
let about;
/** @type {Sliders} */
let sliders;
/** @type {Vector} */
let vector; // that answers
/** @type {Vector} */
let learned; // what clicks made, whatever the sliders say
let asked = ""; // the prompt that the answers are to
let answered = ""; // the frame that the personalized answer is of
let pause = 0;
let said = 0;
let edits = 0; // of the vector, so that what is late is not taken for the newest
let learning = false;

/**
 * @param {string} id
 * @returns {HTMLElement}
 */
function part(id) {
  return /** @type {HTMLElement} */ (document.getElementById(id));
}

/** @param {string} id */
function number(id) {
  return Number(/** @type {HTMLInputElement} */ (part(id)).value);
}

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
  clearTimeout(said);
  if (!bad && !learning) said = setTimeout(() => status.classList.remove("shown"), SAID_MS);
}

/**
 * Do something, and say what went wrong.
 *
 * @param {() => Promise<void>} action
 */
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    say(message.charAt(0).toUpperCase() + message.slice(1), true);
  }
}

/** @param {Vector | null} own the vector that answers; null for the base. */
function request(own) {
  return {
    model: about.model,
    messages: [{ role: "user", content: asked }],
    max_tokens: number("length"),
    temperature: number("temperature"),
    seed: number("seed"),
    ...(own ? { vector: own.vector } : {}),
  };
}

async function ask() {
  if (base.running || personal.running) {
    stop();
    return;
  }
  if (!prompt.value.trim()) {
    prompt.focus();
    return;
  }
  clearTimeout(pause);
  asked = prompt.value;
  say("");
  const own = sliders.values.some((value, i) => value !== vector.values[i]) ? await remake() : vector;
  await Promise.all([answer(base, null), answer(personal, own)]);
}

/**
 * @param {Pane} pane
 * @param {Vector | null} own
 */
async function answer(pane, own) {
  if (own) answered = own.vector;
  const done = pane.run(server, request(own));
  refresh();
  try {
    await done;
  } finally {
    refresh();
  }
}

function stop() {
  base.stop();
  personal.stop();
}

/** Show what can be done now. */
function refresh() {
  const busy = Boolean(base.running || personal.running);
  send.textContent = busy ? "Stop" : "Ask";
  const comparable = Boolean(base.id && personal.id) && base.text !== personal.text;
  for (const pane of [base, personal]) {
    pane.offer(about.feedback && !learning && Boolean(pane.id), comparable);
  }
}

/**
 * Make a frame of what the sliders say. It answers from now on, unless they have said something newer meanwhile.
 *
 * @returns {Promise<Vector>}
 */
async function remake() {
  const own = ++edits;
  const made = await server.make(sliders.values);
  if (own === edits) take(made);
  return made;
}

/** @param {Vector} made */
function take(made) {
  vector = made;
  describe();
}

function describe() {
  part("norm").textContent = sliders.norm.toFixed(2);
  part("bytes").textContent = `${vector.bytes} bytes`;
  const nothing = sliders.norm === 0;
  part("recall").hidden = !about.feedback || learned.norm === 0;
  part("hint").textContent = nothing ? "All values are 0, so both models are the same. Move one." : "";
}

/** The reader has moved a slider: the personalized model answers again, and the base's answer stays. */
function moved() {
  describe();
  part("drift").textContent = "";
  clearTimeout(pause);
  pause = setTimeout(() => attempt(again), PAUSE_MS);
}

async function again() {
  const made = await remake();
  say("");
  if (asked && made === vector && made.vector !== answered) await answer(personal, made);
}

/**
 * Take another vector over, and let the personalized model answer with it.
 *
 * @param {Vector} made
 */
async function adopt(made) {
  clearTimeout(pause);
  edits += 1;
  part("drift").textContent = "";
  await sliders.glide(made.values);
  take(made);
  if (asked) await answer(personal, vector);
}

/**
 * The reader says what he thinks of an answer.
 *
 * @param {Pane} pane
 * @param {string} click `like`, `dislike` or `better`.
 */
function clicked(pane, click) {
  const other = pane === base ? personal : base;
  /** @type {[string, 1 | -1][]} */
  const told = [[pane.id, click === "dislike" ? -1 : 1]];
  if (click === "better") told.push([other.id, -1]);
  return attempt(async () => {
    learn(true);
    pane.press(click);
    if (click === "better") other.press("");
    refresh();
    say("Learning from your click. It takes some seconds.");
    try {
      for (const [id, reward] of told) await server.tell(id, reward);
    } finally {
      learn(false);
    }
    const before = learned;
    learned = (await server.about()).learned;
    // The bars move by what the click taught, from where the reader has put them.
    const values = sliders.values.map((value, i) => value + learned.values[i] - before.values[i]);
    const made = await server.make(values);
    const most = await sliders.learn(made.values);
    say(`Learned: ${most}.`);
    await adopt(made);
  });
}

/** @param {boolean} on */
function learn(on) {
  learning = on;
  for (const id of ["sliders", "load", "paste-load", "reset", "recall"]) {
    /** @type {HTMLFieldSetElement | HTMLButtonElement} */ (part(id)).disabled = on;
  }
  part("vector").setAttribute("aria-busy", String(on));
  refresh();
}

/** @param {BodyInit} data of a file. */
async function load(data) {
  const made = await server.open(data);
  say(`Loaded a vector of norm ${made.norm.toFixed(2)}.`);
  await adopt(made);
}

/**
 * Do something while a button is disabled.
 *
 * @param {string} id
 * @param {() => Promise<void>} action
 */
function press(id, action) {
  const button = /** @type {HTMLButtonElement} */ (part(id));
  button.addEventListener("click", () =>
    attempt(async () => {
      button.disabled = true;
      try {
        await action();
      } finally {
        button.disabled = false;
      }
    }),
  );
}

function listen() {
  part("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(ask);
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    attempt(ask);
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !picture.dialog.open) stop();
  });
  press("reset", async () => {
    clearTimeout(pause);
    await adopt(await server.make(sliders.values.map(() => 0)));
  });
  press("recall", () => adopt(learned));
  press("measure", async () => {
    const of = (await remake()).vector;
    part("drift").textContent = "measuring …";
    try {
      const found = await server.drift(of);
      part("drift").textContent = of === vector.vector ? `${found.kl.toFixed(2)} ± ${found.standard_error.toFixed(2)}` : "";
      say(`Drift: ${found.kl.toFixed(3)} nats a token from the base, on ${found.prompts} general prompts.`);
    } catch (error) {
      part("drift").textContent = "";
      throw error;
    }
  });
  press("save", async () => {
    const made = await remake();
    save(made.vector, `${about.user}.bin`);
    say(`Saved ${made.bytes} bytes as ${about.user}.bin.`);
  });
  press("show", async () => {
    const made = await remake();
    picture.show(await server.picture(made.vector), made.vector);
  });
  const file = /** @type {HTMLInputElement} */ (part("file"));
  part("load").addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    const [chosen] = file.files ?? [];
    if (chosen) attempt(() => load(chosen));
    file.value = "";
  });
  part("paste").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = /** @type {HTMLInputElement} */ (part("text")).value.trim();
    if (text) attempt(() => load(text));
  });
}

/** Say what the server has, and begin. */
async function begin() {
  try {
    about = await server.about();
  } catch (error) {
    if (!(error instanceof ServerError) || error.code !== "invalid_api_key") throw error;
    throw new Error("this page has no token, or an old one: open the address that the server printed");
  }
  send.disabled = false;
  part("model").textContent = `${about.model}, ${about.axes.length} values, basis ${about.basis}`;
  document.title = `${about.model} – tinylora-edge`;
  const length = /** @type {HTMLInputElement} */ (part("length"));
  length.max = String(about.max_tokens);
  part("command").textContent =
    `tinylora-edge run ${about.model} --vector ${about.user}.bin --stream ${about.user} "${prompt.value}"`;
  part("clicks-note").textContent = about.feedback
    ? "Likes and dislikes move the bars, each by a little: to where what you like is likelier."
    : "This server learns from no clicks. That of tinylora-edge play does.";
  const root = /** @type {HTMLFieldSetElement} */ (part("sliders"));
  sliders = new Sliders(root, about.axes, about.reach, moved);
  sliders.set(about.vector.values);
  learned = about.learned;
  take(about.vector);
  listen();
  refresh();
  document.body.dataset.ready = "true";
}

attempt(begin);
