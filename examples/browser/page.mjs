// What a person sees and does. The model is in worker.mjs.
//
//     index.html?bundle=/bundle/&frame=/vector.bin
//
// bundle: folder of the bundle, which has `onnx/` in it. frame: address that is asked for a vector at first.

const at = (id) => document.getElementById(id);
const parameters = new URLSearchParams(location.search);
const worker = new Worker("worker.mjs", { type: "module" });
const waiting = new Map();
const BARS = 60;
let factors = "";
let count = 0;

worker.addEventListener("error", ({ message }) => say("model", `The page cannot start: ${message}`));
worker.addEventListener("message", ({ data: { id, news, result, error } }) => {
  const { done, failed, hear } = waiting.get(id);
  if (news) return hear(news);
  waiting.delete(id);
  return error === undefined ? done(result) : failed(new Error(error));
});

/** Have the worker do something. hear: is called with what it says before it is done. */
function worked(task, what = {}, hear = () => {}) {
  return new Promise((done, failed) => {
    waiting.set(++count, { done, failed, hear });
    worker.postMessage({ id: count, task, ...what });
  });
}

function say(id, text) {
  at(id).textContent = text;
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

async function load() {
  const folder = new URL(parameters.get("bundle") ?? "/bundle/", location);
  const start = performance.now();
  const hear = ({ bytes }) => say("model", `Loading the model… ${megabytes(bytes)}`);
  const found = await worked("load", { folder: new URL("onnx/", folder).href }, hear);
  factors = found.factors;
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  say("model", `${megabytes(found.bytes)} in ${seconds} s · factors ${factors.slice(0, 8)}`);
  at("go").disabled = false;
}

// A frame is checked before the model is touched, and its sequence is remembered, so that no older one is taken later.

async function take(data) {
  const stream = at("stream").value;
  const memory = `tinylora ${factors} ${stream}`;
  const last = localStorage.getItem(memory);
  const options = { stream, key: at("key").value, last: last === null ? null : Number(last) };
  const found = await worked("swap", { data, options });
  localStorage.setItem(memory, found.sequence);
  const { sequence, version, dtype, tag, bytes, values, descriptor } = found;
  const what = `${values.length} numbers (${descriptor.split(" ")[0]}) in ${bytes} bytes`;
  say("vector", `Active: ${what}, ${dtype}, ${tag}, frame version ${version}, sequence ${sequence}.`);
  draw(values);
  at("clear").disabled = false;
}

async function attempt(get) {
  at("refused").hidden = true;
  try {
    await take(await get());
  } catch (error) {
    say("refused", `Refused: ${error.message}. The model is as it was.`);
    at("refused").hidden = false;
  }
}

/** Draw a bar a number; of more than there is room for, one for the largest of each share. */
function draw(values) {
  const count = Math.min(values.length, BARS), most = values.reduce((a, b) => Math.max(a, Math.abs(b)), 0) || 1;
  const bars = Array.from({ length: count }, (_, i) => {
    const [start, end] = [i, i + 1].map((part) => Math.floor((part * values.length) / count));
    const value = values.subarray(start, end).reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a));
    const bar = document.createElement("span");
    bar.style.setProperty("--share", Math.abs(value) / most);
    bar.className = value < 0 ? "minus" : "";
    return bar;
  });
  at("bars").replaceChildren(...bars);
}

const fetchFrame = async (address) => {
  const answer = await fetch(address, { cache: "no-store" });
  if (!answer.ok) throw new Error(`the server says ${answer.status} ${answer.statusText}`);
  return new Uint8Array(await answer.arrayBuffer());
};

at("fetch").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(() => fetchFrame(at("address").value));
});

at("file").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  if (file) attempt(async () => new Uint8Array(await file.arrayBuffer()));
});

at("clear").addEventListener("click", async () => {
  await worked("clear");
  at("clear").disabled = true;
  at("refused").hidden = true;
  at("bars").replaceChildren();
  say("vector", "None: the model is the base.");
});

function show(texts) {
  say("before", texts[0]);
  say("after", texts[1] ?? "There is no vector yet.");
}

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  at("go").disabled = true;
  at("stop").disabled = false;
  say("speed", "");
  show(["…", "…"]);
  try {
    const what = { question: at("question").value, most: at("most").valueAsNumber };
    const found = await worked("ask", what, ({ texts }) => show(texts));
    show(found.texts);
    ["before", "after"].forEach((id, row) => (at(id).dataset.tokens = (found.tokens[row] ?? []).join(" ")));
    const speed = found.perSecond === null ? "" : `, then ${found.perSecond.toFixed(1)} tokens/s each`;
    say("speed", `first token after ${found.prompt.toFixed(1)} s${speed}`);
  } catch (error) {
    show([`The model failed: ${error.message}.`, ""]);
  }
  at("go").disabled = false;
  at("stop").disabled = true;
});

at("stop").addEventListener("click", () => worker.postMessage({ task: "stop" }));

try {
  await load();
  at("address").value = parameters.get("frame") ?? "/vector.bin";
  if (parameters.has("frame")) await attempt(() => fetchFrame(parameters.get("frame")));
} catch (error) {
  say("model", `The model cannot be loaded: ${error.message}.`);
}
