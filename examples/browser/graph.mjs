// What an ONNX file says about itself: its metadata, and which files hold its weights. onnxruntime-web tells neither.
// An ONNX file is a protobuf message; what is not asked for is skipped by its length.

const GRAPH = 7, METADATA = 14; // field numbers of onnx.proto: of a model,
const INITIALIZER = 5, EXTERNAL = 13; // of its graph, and of a tensor
const KEY = 1, VALUE = 2;
const text = new TextDecoder();

/** The fields of a message: pairs of a number, and a number or bytes. */
function* fields(bytes) {
  let at = 0;
  const whole = () => {
    for (let value = 0, scale = 1; at < bytes.length; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    throw new Error("model.onnx is cut short");
  };
  while (at < bytes.length) {
    const tag = whole(), form = tag % 8;
    if (form === 0) {
      yield [Math.floor(tag / 8), whole()];
    } else if (form === 1 || form === 2 || form === 5) {
      const end = { 1: 8, 5: 4 }[form] ?? whole();
      if (at + end > bytes.length) throw new Error("model.onnx is cut short");
      yield [Math.floor(tag / 8), bytes.subarray(at, (at += end))];
    } else {
      throw new Error("model.onnx is not an ONNX model");
    }
  }
}

const entry = (bytes) => {
  const found = new Map(fields(bytes));
  return [text.decode(found.get(KEY)), text.decode(found.get(VALUE))];
};

/**
 * Read what a baked graph says.
 *
 * bytes: Uint8Array, of model.onnx. Returns {metadata, files}: a Map of its properties, and a Set of the names of the
 * files with its weights, which lie beside it.
 */
export function readGraph(bytes) {
  const metadata = new Map(), files = new Set();
  for (const [number, value] of fields(bytes)) {
    if (number === METADATA) {
      metadata.set(...entry(value));
    } else if (number === GRAPH) {
      for (const [part, tensor] of fields(value)) {
        if (part !== INITIALIZER) continue;
        for (const [kind, pair] of fields(tensor)) {
          if (kind !== EXTERNAL) continue;
          const [key, name] = entry(pair);
          if (key === "location") files.add(name);
        }
      }
    }
  }
  return { metadata, files };
}
