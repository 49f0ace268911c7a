// tinylora-edge in JavaScript: from a frame to R, which the graph is fed. Written from docs/FORMAT.md; it needs
// WebCrypto alone, and runs in browsers and in Node.
//
//     const basis = await readBasis(bytesOfBasisGguf);
//     const vector = await readFrame(bytesOfTheFrame, basis, { user: "alice", ed25519: publicKey, last: 6 });
//     feeds.tinylora_r = new ort.Tensor("float32", vector.r, [1, vector.r.length]);
//
// What is wrong with a file or a frame is an Error that says so.

const DTYPES = ["fp32", "bf16", "fp16", "int8"], BITS = [2, 4], TAGS = ["CRC-32", "HMAC", "Ed25519"], TAG_BYTES = [4, 8, 64];
const LEARNED = /^learned rank=([1-9]\d*) ([0-9a-f]{64})$/;
const RANDOM = /^random rank=([1-9]\d*) seed=42 groups=([1-9]\d*) u=1 tying=tiled$/, SEED = 42n;
const KEY_BYTES = [1, 1, 2, 2, 4, 4, 4, 1, , , 8, 8, 8]; // by GGUF's type
const GOLDEN = 0x9e3779b97f4a7c15n;
const LARGEST = 500_000; // n, and M P Q

const u64 = (z) => BigInt.asUintN(64, z);
const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
const encoded = (text) => new TextEncoder().encode(text);
const sha256 = async (...parts) => new Uint8Array(await crypto.subtle.digest("SHA-256", joined(...parts)));

/** The bytes of texts and typed arrays, joined. */
function joined(...parts) {
  const arrays = parts.map((part) => (typeof part === "string" ? encoded(part) : part));
  const out = new Uint8Array(arrays.reduce((sum, each) => sum + each.byteLength, 0));
  let at = 0;
  for (const { buffer, byteOffset, byteLength } of arrays) {
    out.set(new Uint8Array(buffer, byteOffset, byteLength), at);
    at += byteLength;
  }
  return out;
}

function fail(why) {
  throw new Error(why);
}

/* Projections: what the numbers of a vector mean. */

function mix(z) {
  z = u64((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = u64((z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  return z ^ (z >> 31n);
}

/** P of a module, [k, k]. */
function randomP(module, k) {
  let hash = 0xcbf29ce484222325n;
  for (const byte of encoded(module)) hash = u64((hash ^ BigInt(byte)) * 0x100000001b3n);
  const scale = Math.fround(1 / Math.fround(Math.sqrt(k)));
  let at = mix(SEED ^ hash);
  return Float32Array.from({ length: k * k }, () => {
    let s = -393210;
    for (let step = 0; step < 3; step++) {
      at = u64(at + GOLDEN);
      for (let word = mix(at); word; word >>= 16n) s += Number(word & 0xffffn);
    }
    return (s / 65536) * scale; // a product of two f32 is exact before it is rounded
  });
}

/**
 * Return what a descriptor means: {size: n, R: the map from Float32Array [n] to Float32Array [M, outputs, rank] with zeros
 * beyond R, columns: q, starts: where each module's numbers begin, in entries}.
 *
 * outputs, rank: of the factors; rows: outputs of each module. p: of a learned projection, Float32Array [n, M, k, k].
 */
function projection(descriptor, { modules, outputs, rank, rows }, p) {
  const random = RANDOM.exec(descriptor), shape = /(?:rank|out)=(\d+)(?: in=(\d+))?/.exec(descriptor);
  const high = Number(shape[1]), k = Number(shape[2] ?? high), square = high * k; // R is high x k
  if (k > rank || high > outputs) fail(`${descriptor}: it is at most ${outputs} x ${rank}`);
  const count = random ? 1 : p ? p.length / modules.length / square : 0; // numbers in a module's sum; 0: entries
  const starts = [0];
  for (const own of rows) starts.push(starts.at(-1) + Math.min(own, high) * k);
  const size = random ? Number(random[2]) : count || starts.at(-1);
  if (random && size > modules.length) fail(`${descriptor}: there are ${modules.length} modules`);
  if (size > LARGEST || modules.length * count * square > 2 ** 26) fail(`${descriptor}: it is too large`);
  const R = (values) => {
    const out = new Float32Array(modules.length * outputs * rank);
    modules.forEach((module, m) => {
      const own = random ? randomP(module, k) : p, step = modules.length * square;
      const [first, start] = random ? [Math.floor((m * size) / modules.length), 0] : [0, m * square];
      for (let c = 0; c < (own ? square : starts[m + 1] - starts[m]); c++) {
        let sum = own ? 0 : values[starts[m] + c]; // in binary64, rounded once
        for (let i = 0; i < count; i++) sum += values[first + i] * own[start + i * step + c];
        out[(m * outputs + Math.floor(c / k)) * rank + (c % k)] = sum;
      }
    });
    return out;
  };
  return { size, R, columns: k, starts };
}

/* Side tensors, a GGUF file. */

/**
 * Read `basis.gguf`, a Uint8Array.
 *
 * Returns {factors: their digest in hexadecimal, modules: names, outputs, rank, rows: outputs of each module, bases: Map
 * from the id in a frame}.
 */
export async function readBasis(bytes) {
  try {
    return await read(bytes);
  } catch (error) {
    throw error instanceof RangeError ? new Error("basis.gguf is cut") : error;
  }
}

async function read(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let at = 0;
  const take = (size) => {
    if (size > bytes.length - at) throw new RangeError();
    return bytes.subarray(at, (at += size));
  };
  const int = () => view.getUint32((at += 4) - 4, true);
  const long = () => Number(view.getBigUint64((at += 8) - 8, true));
  const text = () => new TextDecoder("utf-8", { fatal: true }).decode(take(long()));
  const value = (type) => {
    if (type === 4) return int();
    if (type === 8) return text();
    if (type !== 9) return take(KEY_BYTES[type] ?? fail(`basis.gguf: a key of type ${type}`));
    const item = int(), length = long();
    if (item === 9 || length > bytes.length) throw new RangeError();
    return Array.from({ length }, () => value(item));
  };
  if (hex(take(4)) !== "47475546" || ![2, 3].includes(int())) fail("basis.gguf is no GGUF file");
  const keys = new Map(), tensors = new Map();
  for (let tensorsLeft = long(), keysLeft = long(), left = tensorsLeft + keysLeft; left > 0; left--) {
    const name = text();
    if (left > tensorsLeft) {
      keys.set(name, value(int()));
    } else {
      const shape = Array.from({ length: Math.min(int(), 5) }, long).reverse();
      tensors.set(name, { shape, type: int(), offset: long() });
    }
  }
  const end = ({ shape, type, offset }) => offset + shape.reduce((product, d) => product * d, type === 0 ? 4 : 2);
  const floats = [...tensors.values()].filter(({ type }) => type < 2).sort((one, two) => one.offset - two.offset);
  if (floats.some(({ offset }, i) => i && offset < end(floats[i - 1]))) fail("basis.gguf: tensors over the same bytes");
  const alignment = keys.get("general.alignment") ?? 32, start = Math.ceil(at / alignment) * alignment;
  /** Return a tensor, whose shape must be this, where null is any length: {shape, size of an item, data}. */
  const tensor = (name, shape, types = [0, 1]) => {
    const found = tensors.get(name) ?? fail(`basis.gguf: ${name} is missing`), size = found.type === 0 ? 4 : 2;
    const fits = found.shape.length === shape.length && shape.every((d, i) => d === null || d === found.shape[i]);
    if (!fits || !types.includes(found.type)) fail(`basis.gguf: ${name} is of another shape or type`);
    at = start + found.offset;
    return { shape: found.shape, size, data: take(found.shape.reduce((product, d) => product * d, size)) };
  };
  const key = (name) => keys.get(`tinylora.${name}`) ?? fail(`basis.gguf: there is no tinylora.${name}`);
  const version = key("version"), [rank, modules] = [key("rank"), key("modules")];
  const outputs = keys.get("tinylora.outputs") ?? rank;
  const large = outputs > 256 || modules.length * outputs * rank > LARGEST;
  if (outputs < rank || large) fail(`basis.gguf: rank ${rank} and ${outputs} outputs of ${modules.length} modules`);
  if (version !== 2 || key("factorization") !== "left") fail(`basis.gguf: version ${version}, expected 2`);

  const words = (...numbers) => new Uint32Array(numbers); // little-endian, as all machines that run JavaScript
  const spelled = (word) => [words(encoded(word).length), word];
  const packed = ({ shape, size, data }) => [words(size, shape.length), new BigUint64Array(shape.map(BigInt)), data];
  const rows = [];
  const hashes = modules.map((module) => {
    const experts = tensors.get(`${module}.tinylora_a`)?.shape.length === 3 ? [null] : [];
    const a = tensor(`${module}.tinylora_a`, [...experts, rank, null]);
    const b = tensor(`${module}.tinylora_b`, [...experts.map(() => a.shape[0]), null, null]);
    rows.push(b.shape.at(-1));
    return sha256(...spelled(module), ...packed(a), ...packed(b));
  });
  const head = [...spelled(keys.get("general.architecture")), ...spelled("left"), words(rank, modules.length)];
  const factors = await sha256("tinylora factors 2\n", ...head, ...(await Promise.all(hashes)));
  if (hex(factors) !== key("factors")) fail("basis.gguf: the factors have another digest");
  if (rows.some((own) => own < rank) || Math.max(...rows) !== outputs) fail(`basis.gguf: B has not ${outputs} outputs`);

  const found = { factors: hex(factors), modules, outputs, rank, rows, bases: new Map() };
  const listed = Array.from({ length: rank }, (_, i) => ({ descriptor: `entries rank=${i + 1}` }));
  for (const [i, descriptor] of (keys.get("tinylora.projections") ?? []).entries()) {
    const [, k, digest] = LEARNED.exec(descriptor) ?? RANDOM.exec(descriptor) ?? fail(`projection "${descriptor}"`);
    if (!descriptor.startsWith("learned")) listed.push({ descriptor });
    else {
      const { data } = tensor(`tinylora_p.${i}`, [null, modules.length, Number(k), Number(k)], [0]);
      const p = new Float32Array(Uint8Array.from(data).buffer);
      if (hex(await sha256(data)) !== digest || !p.every(Number.isFinite)) fail(`tinylora_p.${i} is damaged`);
      listed.push({ descriptor, p });
    }
  }
  listed.forEach(({ descriptor, p }) => projection(descriptor, found, p)); // throws where one is wrong
  const tiled = modules.map((_, i) => ({ descriptor: `random rank=2 seed=42 groups=${i + 1} u=1 tying=tiled` }));
  const others = Array.from({ length: outputs * rank }, (_, i) => [Math.floor(i / rank) + 1, (i % rank) + 1])
    .filter(([high, wide]) => high !== wide)
    .map(([high, wide]) => ({ descriptor: `entries out=${high} in=${wide}` }));
  for (const [i, entry] of [...listed, ...(rank < 2 ? [] : tiled), ...others].entries()) {
    entry.digest = await sha256("tinylora basis 2\n", factors, entry.descriptor);
    const id = hex(entry.digest.subarray(0, 4)), known = found.bases.has(id);
    if (known && i < listed.length) fail(`basis.gguf: two projections have the id ${id}`);
    if (!known) found.bases.set(id, entry);
  }
  return found;
}

/* Frames. */

function crc32(data) {
  let crc = ~0;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

async function checkTag(kind, message, tag, { hmac, ed25519 }) {
  if (kind === 0) {
    if (hmac || ed25519) fail("it has no signature, and a key is set");
    const crc = new DataView(tag.buffer).getUint32(0, true);
    if (crc32(message) !== crc) fail("its checksum is wrong: it was damaged, or is of another user");
  } else if (kind === 1) {
    const how = { name: "HMAC", hash: "SHA-256" };
    const key = await crypto.subtle.importKey("raw", hmac ?? fail("it takes an HMAC key"), how, false, ["sign"]);
    const mac = new Uint8Array(await crypto.subtle.sign(how, key, message));
    if (tag.reduce((differ, byte, i) => differ | (byte ^ mac[i]), 0)) fail("its HMAC is not of this key and user");
  } else {
    const how = "Ed25519";
    const key = await crypto.subtle.importKey("raw", ed25519 ?? fail("it takes a public key"), how, false, ["verify"]);
    const right = await crypto.subtle.verify(how, key, tag, message);
    if (!right) fail("its signature is not of this key and user");
  }
}

function half(bits) {
  const exponent = (bits >> 10) & 31, fraction = (bits & 1023) / 1024, sign = bits >> 15 ? -1 : 1;
  if (exponent === 31) return NaN; // or infinite, which is no better
  return sign * (exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14);
}

/** Return the values of a payload: Float32Array [n]. */
function decode(payload, n, dtype) {
  const view = new DataView(payload.buffer), values = new Float32Array(n), bits = new Uint32Array(values.buffer);
  const single = (whole) => new Float32Array(new Uint32Array([whole]).buffer)[0];
  const scale = dtype === "int8" ? single((payload[0] << 8) | (payload[1] << 16) | (payload[2] << 24)) : 0;
  for (let i = 0; i < n; i++) {
    if (dtype === "fp32") bits[i] = view.getUint32(4 * i, true);
    else if (dtype === "bf16") bits[i] = view.getUint16(2 * i, true) << 16;
    else if (dtype === "fp16") values[i] = half(view.getUint16(2 * i, true));
    else values[i] = scale * view.getInt8(3 + i) + 0; // no zero has a sign
  }
  return values;
}

/**
 * Return the values of a payload that has a scale for each column of each module, then n codes of so many bits: Float32Array
 * [n]. `starts` has the place at which each module's values begin.
 */
function decodeColumns(payload, n, bits, starts, columns) {
  const modules = starts.length - 1;
  let m = 0;
  if ((n * bits) % 8 && payload.at(-1) >> ((n * bits) % 8)) fail("its filling bits are not zero");
  return Float32Array.from({ length: n }, (_, i) => {
    if (i === starts[m + 1]) m++;
    const bit = i * bits, code = (payload[modules * columns + (bit >> 3)] >> (bit & 7)) & (2 ** bits - 1);
    const scale = payload[m * columns + (i % columns)];
    if (scale >= 0xf8) fail("it has a scale that is not finite");
    return half(scale << 7) * (code - 2 ** (bits - 1) + 0.5) + 0; // no zero has a sign
  });
}

/**
 * Check a frame, and read it.
 *
 * frame: Uint8Array. basis: of readBasis. Options: user, whose it is; hmac or ed25519, a secret or a public key,
 * Uint8Array: with one, a frame without its tag is refused; last, {sequence, content} of what was taken last for
 * these factors, user and key; today, in days since 2026-01-01; maxNorm, of R, 256 by default.
 * Returns {r: Float32Array [M * outputs * rank], values, descriptor, dtype, tag, sequence, content, until}.
 */
export async function readFrame(frame, basis, options = {}) {
  const { user = "", hmac, ed25519, last = { sequence: -1 }, today = now(), maxNorm = 256 } = options;
  frame = Uint8Array.from(frame); // a copy, as slices of Node's Buffer share its memory
  const version = frame[0] >> 4, kind = (frame[0] >> 2) & 3, low = version > 3, bits = low ? frame[1] : 0;
  const dtype = low ? `q${bits}` : DTYPES[frame[0] & 3], dated = version % 2 === 1, at = low ? 6 : 5;
  if (frame.length < 8) fail("it was cut, or is no frame");
  if (version < 2 || version > 5 || kind > 2) fail("its version or its tag is none that is read here");
  if (low && ((frame[0] & 3) !== 3 || !BITS.includes(bits))) fail("its type is none that is read here");
  const id = hex(frame.subarray(at - 4, at)), entry = basis.bases.get(id);
  if (!entry) fail(`it is for basis ${id}, which is none of this model's`);
  const { size: n, R, columns, starts } = projection(entry.descriptor, basis, entry.p), modules = basis.modules.length;
  if (low && !entry.descriptor.startsWith("entries")) fail(`it is in ${dtype}, which entries alone are`);
  const start = at + 2 + 2 * dated, odd = dtype === "int8" && n % 2 === 0;
  const plain = dtype === "int8" ? 3 + n + odd : n * (dtype === "fp32" ? 4 : 2);
  const end = start + (low ? modules * columns + Math.ceil((n * bits) / 8) : plain);
  if (frame.length !== end + TAG_BYTES[kind]) fail("it was cut, or is no frame");
  if (odd && frame[end - 1]) fail("its filling byte is not zero");
  const bound = await sha256("tinylora stream 2\n", user);
  const message = joined(bound, entry.digest, frame.slice(0, end));
  await checkTag(kind, message, frame.slice(end), { hmac, ed25519 });
  const [sequence, day] = [at, at + 2].map((i) => frame[i] | (frame[i + 1] << 8)), until = dated ? day : null;
  if (until !== null && (today < 0 || today > until)) fail("its last day is over");
  const payload = frame.slice(start, end);
  const values = low ? decodeColumns(payload, n, bits, starts, columns) : decode(payload, n, dtype), r = R(values);
  if (!values.every(Number.isFinite) || !r.every(Number.isFinite)) fail("it has a value that is not finite");
  const norm = Math.sqrt(r.reduce((sum, x) => sum + x * x, 0));
  if (norm > maxNorm) fail(`its numbers are too large: R has the norm ${norm}, at most ${maxNorm}`);
  const content = hex(await sha256(entry.digest, dtype, payload));
  if (sequence < last.sequence) fail(`its sequence is ${sequence}, older than ${last.sequence}, which was taken`);
  if (kind && sequence === last.sequence && content !== last.content) fail(`another one with sequence ${sequence} was taken`);
  return { r, values, descriptor: entry.descriptor, dtype, tag: TAGS[kind], sequence, content, until };
}

const now = () => Math.floor((Date.now() - Date.UTC(2026, 0, 1)) / 86_400_000);
