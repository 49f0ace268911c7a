// A reader of tinylora-edge's frames, written from docs/FORMAT.md alone. It runs in browsers and in
// Node: nothing but WebCrypto is used, so checks are asynchronous.

const CRC32 = 0, HMAC = 1, ED25519 = 2;
const TAG_BYTES = [4, 8, 64];
const DTYPES = ["fp32", "bf16", "fp16", "int8"];
const subtle = globalThis.crypto.subtle;

/** What is wrong with bytes. */
export class VectorError extends Error {}

function refuse(why) {
  throw new VectorError(why);
}

function joined(...parts) {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

async function sha256(data) {
  return new Uint8Array(await subtle.digest("SHA-256", data));
}

/** The 32 bytes that bind a message to a stream. */
function bound(word, stream) {
  return sha256(new TextEncoder().encode(`${word}\n${stream}`));
}

function crc32(data) {
  let crc = ~0;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}

/** Whether a tag is that of a message. `keys`: {hmac, ed25519}, the secret and the public key, as far as there are. */
async function checkTag(kind, message, tag, keys) {
  if (kind === CRC32) {
    if (crc32(message) !== new DataView(tag.buffer, tag.byteOffset, 4).getUint32(0, true)) refuse("checksum");
  } else if (kind === HMAC) {
    if (!keys.hmac) refuse("no key");
    const algorithm = { name: "HMAC", hash: "SHA-256" };
    const key = await subtle.importKey("raw", keys.hmac, algorithm, false, ["sign"]);
    const mac = new Uint8Array(await subtle.sign("HMAC", key, message));
    let differ = 0;
    for (let i = 0; i < 8; i++) differ |= mac[i] ^ tag[i];
    if (differ) refuse("mac");
  } else {
    if (!keys.ed25519) refuse("no key");
    const key = await subtle.importKey("raw", keys.ed25519, { name: "Ed25519" }, false, ["verify"]);
    if (!(await subtle.verify({ name: "Ed25519" }, key, tag, message))) refuse("signature");
  }
}

function payloadBytes(n, dtype) {
  if (dtype === "int8") return 3 + n + (n % 2 === 0 ? 1 : 0);
  return n * (dtype === "fp32" ? 4 : 2);
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 0x3ff;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return (sign * fraction) / 2 ** 24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function single(bits) {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint32(0, bits);
  return view.getFloat32(0);
}

function decodeValues(payload, n, dtype) {
  const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
  const values = new Float32Array(n);
  const scale = dtype === "int8" ? single((payload[0] << 8) | (payload[1] << 16) | (payload[2] << 24)) : 0;
  for (let i = 0; i < n; i++) {
    if (dtype === "fp32") values[i] = view.getFloat32(4 * i, true);
    else if (dtype === "bf16") values[i] = single(view.getUint16(2 * i, true) << 16);
    else if (dtype === "fp16") values[i] = half(view.getUint16(2 * i, true));
    else values[i] = scale * view.getInt8(3 + i) + 0; // no zero has a sign
    if (!Number.isFinite(values[i])) refuse("not finite");
  }
  return values;
}

/**
 * Read a frame, or refuse it.
 *
 * data: Uint8Array. bases: of the model (basis.mjs), with find(id) -> {digest, size, R} or undefined. stream: its name.
 * keys: see checkTag. today: days since 2026-01-01. maxNorm: of R. The sequence is for the caller to compare, with those
 * of the same factors. Raw payloads are not read.
 */
export async function readFrame(data, bases, { stream = "", keys = {}, today = 0, maxNorm = 1000 } = {}) {
  if (data.length % 2 === 0 || data.length < 7) refuse("length");
  const version = data[0] >> 4, dtype = DTYPES[data[0] & 3], kind = (data[0] >> 2) & 3;
  if (version < 2 || version > 3) refuse("version");
  if (kind > ED25519) refuse("dtype or tag");
  const basis = bases.find(data.subarray(1, 5)) ?? refuse("basis"), n = basis.size;
  const header = version === 3 ? 9 : 7;
  const end = header + payloadBytes(n, dtype);
  if (data.length !== end + TAG_BYTES[kind]) refuse("length");
  if (dtype === "int8" && n % 2 === 0 && data[end - 1]) refuse("filling");
  const body = data.slice(0, end);
  const prefix = await bound("tinylora stream 2", stream);
  await checkTag(kind, joined(prefix, basis.digest, body), data.slice(end), keys);
  const until = version === 3 ? data[7] | (data[8] << 8) : null;
  if (until !== null && today > until) refuse("expired");
  const values = decodeValues(body.slice(header), n, dtype);
  const norm = Math.sqrt(basis.R(values).reduce((sum, entry) => sum + entry * entry, 0));
  if (!Number.isFinite(norm)) refuse("not finite");
  if (norm > maxNorm) refuse("norm");
  return { basis, version, dtype, kind, sequence: data[5] | (data[6] << 8), until, values };
}
