// A decoder in onnxruntime-web: its graph, its tokenizer, and greedy decoding with a KV cache, where every row of a
// batch has an R of its own.

import { Template } from "./node_modules/@huggingface/jinja/dist/index.js";
import { Tokenizer } from "./node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs";
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { hex, readBases } from "./basis.mjs";
import { readGraph } from "./graph.mjs";

const R = "tinylora_r";

/** Fetch a file, and say how many bytes came so far. */
async function fetched(address, progress = () => {}) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address.pathname}: ${answer.status} ${answer.statusText}`);
  const parts = [];
  let size = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    progress((size += value.length));
  }
  const bytes = new Uint8Array(size);
  for (let at = 0, part; (part = parts.shift()); at += part.length) bytes.set(part, at);
  return bytes;
}

const json = async (address) => JSON.parse(new TextDecoder().decode(await fetched(address)));

/** The token of the largest logit. */
function likeliest(logits) {
  let best = -1, top = -Infinity;
  for (let i = 0; i < logits.length; i++) if (logits[i] > top) top = logits[(best = i)];
  if (best < 0 || top === Infinity) throw new Error("the logits are not finite: the vector is too large for the model");
  return best;
}

const whole = (values, dims) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);

export class Model {
  /**
   * Fetch a bundle's graph and all that belongs to it, its side tensors among them.
   *
   * folder: URL of the bundle's `onnx/`, with a slash at its end. progress: is called with the bytes of weights so far.
   */
  static async load(folder, progress) {
    const at = (name) => new URL(name, folder);
    const [config, tokenizer, words, graph, basis, template] = await Promise.all([
      json(at("genai_config.json")),
      json(at("tokenizer.json")),
      json(at("tokenizer_config.json")),
      fetched(at("model.onnx")),
      fetched(at("../basis.gguf")),
      fetch(at("chat_template.jinja")).then((answer) => (answer.ok ? answer.text() : null)),
    ]);
    const { metadata, files } = readGraph(graph);
    const version = metadata.get("tinylora.version");
    if (version !== "2") throw new Error(`model.onnx has version ${version}, expected 2: export the model again`);
    const bases = await readBases(basis);
    if (metadata.get("tinylora.factors") !== hex(bases.factors)) {
      throw new Error("model.onnx and basis.gguf are of different exports");
    }
    if (metadata.get("tinylora.flavour") !== "required") {
      throw new Error("the graph is not for the web: export it again with --onnx-input required");
    }
    const externalData = [];
    let before = graph.length + basis.length;
    for (const path of files) {
      const data = await fetched(at(path), (bytes) => progress(before + bytes));
      before += data.length;
      externalData.push({ path, data });
    }
    const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], externalData });
    const model = new Model();
    model.bytes = before;
    model.bases = bases;
    model.width = bases.modules.length * bases.rank ** 2;
    model.session = session;
    model.context = config.model.context_length;
    model.ends = new Set([config.model.eos_token_id].flat());
    model.decoder = config.model.decoder;
    model.tokenizer = new Tokenizer(tokenizer, words);
    model.words = words;
    const chat = template ?? words.chat_template;
    model.template = chat ? new Template(chat) : null;
    return model;
  }

  /** The tokens of what a person asks, in the words of the model's chat template. */
  encode(question) {
    if (!this.template) return this.tokenizer.encode(question).ids;
    const text = (token) => token?.content ?? token; // a token is written as a string, or as an object
    const prompt = this.template.render({
      messages: [{ role: "user", content: question }],
      add_generation_prompt: true,
      bos_token: text(this.words.bos_token),
      eos_token: text(this.words.eos_token),
    });
    return this.tokenizer.encode(prompt, { add_special_tokens: false }).ids; // the template has them
  }

  decode(tokens) {
    return tokens.length ? this.tokenizer.decode(tokens, { skip_special_tokens: true }) : "";
  }

  /**
   * Generate greedily, once with each R, all in one batch.
   *
   * prompt: token ids. several: each R, a Float32Array of `width` entries; zeros are the base. most: tokens an answer.
   * Yields at each step an array with the next token of each row, or null where its answer is over.
   */
  async *generate(prompt, several, most) {
    const rows = several.length;
    const all = new Float32Array(rows * this.width);
    several.forEach((r, row) => all.set(r, row * this.width));
    const feeds = { [R]: new ort.Tensor("float32", all, [rows, this.width]), ...this.#emptyCache(rows) };
    const over = several.map(() => false);
    let next = several.map(() => prompt);
    let length = 0; // tokens whose keys and values are in the cache
    for (let step = 0; step < most && length + next[0].length < this.context; step++) {
      const count = next[0].length;
      const each = (value) => Array.from({ length: rows * count }, (_, i) => value(i % count));
      const own = {
        input_ids: whole(next.flat(), [rows, count]),
        attention_mask: whole(new Array(rows * (length + count)).fill(1), [rows, length + count]),
        position_ids: whole(each((i) => length + i), [rows, count]),
      };
      for (const name in own) if (this.session.inputNames.includes(name)) feeds[name] = own[name];
      const found = await this.session.run(feeds);
      length += count;
      for (const name in feeds) {
        if (name.startsWith("past_key_values")) feeds[name] = found[name.replace("past_key_values", "present")];
      }
      const [, width, words] = found.logits.dims;
      const tokens = over.map((_, row) => {
        const end = (row * width + width) * words;
        return likeliest(found.logits.data.subarray(end - words, end));
      });
      tokens.forEach((token, row) => (over[row] ||= this.ends.has(token)));
      if (over.every(Boolean)) return;
      yield tokens.map((token, row) => (over[row] ? null : token));
      next = tokens.map((token) => [token]); // a row that is over goes on beside the others, unheard
    }
  }

  #emptyCache(rows) {
    const { num_key_value_heads: heads, head_size: width } = this.decoder;
    const names = this.session.inputNames.filter((name) => name.startsWith("past_key_values"));
    return Object.fromEntries(
      names.map((name) => [name, new ort.Tensor("float32", new Float32Array(0), [rows, heads, 0, width])]),
    );
  }
}
