// The model lives here, apart from the page, which stays quick while it computes. One message asks, one or more answer.

import { hex } from "./basis.mjs";
import { checkFrame } from "./frame.mjs";
import { Model } from "./model.mjs";

let model = null;
let active = null; // R of the active vector, Float32Array; null for the base
let stopped = false;

/** Let messages in: a loop that only waits for the engine hears none. */
const breath = () =>
  new Promise((go) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = go;
    port2.postMessage(null);
  });

const tasks = {
  async load({ folder }, tell) {
    model = await Model.load(new URL(folder), (bytes) => tell({ bytes }));
    return { bytes: model.bytes, factors: hex(model.bases.factors) };
  },

  /** Check a frame first, and touch the vector last: whatever is refused, the model stays as it was. */
  async swap({ data, options }) {
    const { basis, ...found } = await checkFrame(data, model.bases, options);
    active = basis.R(found.values, model.bases.rank);
    return { ...found, descriptor: basis.descriptor };
  },

  async clear() {
    active = null;
  },

  /** Answer before and after: by the base, and by the active vector where there is one. */
  async ask({ question, most }, tell) {
    stopped = false;
    const base = new Float32Array(model.width);
    const several = active ? [base, active] : [base];
    const answers = several.map(() => []);
    const start = performance.now();
    let first = null;
    for await (const tokens of model.generate(model.encode(question), several, most)) {
      first ??= performance.now();
      tokens.forEach((token, row) => token !== null && answers[row].push(token));
      tell({ texts: answers.map((answer) => model.decode(answer)) });
      await breath();
      if (stopped) break;
    }
    const steps = Math.max(...answers.map((answer) => answer.length)) - 1;
    return {
      texts: answers.map((answer) => model.decode(answer)),
      tokens: answers,
      prompt: first && (first - start) / 1000,
      perSecond: steps > 0 ? (steps / (performance.now() - first)) * 1000 : null,
    };
  },
};

addEventListener("message", async ({ data: { id, task, ...rest } }) => {
  if (task === "stop") {
    stopped = true;
    return;
  }
  const tell = (news) => postMessage({ id, news });
  try {
    postMessage({ id, result: await tasks[task](rest, tell) });
  } catch (error) {
    postMessage({ id, error: error.message });
  }
});
