// Runs a graph in onnxruntime-web (WebAssembly, as a browser does) and prints its outputs as JSON.
//
//   node run.mjs JOB.json
//
// JOB: {model, data: [{path, file}], feeds: {name: {type, dims, data}}, outputs: [name],
//       adapter?: file whose bytes go into activeLoraAdapters}
// Prints {outputs: {name: {dims, data}}}, or {error: message} where the run was refused.

import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

const ARRAYS = {
  float32: (data) => Float32Array.from(data),
  int64: (data) => BigInt64Array.from(data, BigInt),
};

const job = JSON.parse(await readFile(process.argv[2], "utf8"));
const externalData = await Promise.all(
  job.data.map(async ({ path, file }) => ({ path, data: new Uint8Array(await readFile(file)) })),
);
const model = new Uint8Array(await readFile(job.model));
const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"], externalData });

const feeds = {};
for (const [name, { type, dims, data }] of Object.entries(job.feeds)) {
  feeds[name] = new ort.Tensor(type, ARRAYS[type](data), dims);
}
const options = {};
if (job.adapter) {
  options.activeLoraAdapters = [new Uint8Array(await readFile(job.adapter))];
}

let answer;
try {
  const found = await session.run(feeds, job.outputs, options);
  const outputs = {};
  for (const name of job.outputs) {
    outputs[name] = { dims: found[name].dims, data: Array.from(found[name].data) };
  }
  answer = { outputs };
} catch (error) {
  answer = { error: String(error.message ?? error) };
}
process.stdout.write(JSON.stringify(answer));
