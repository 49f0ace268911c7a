// Which frames a page takes, and why not, in sentences. The reader of their bytes is vector.mjs.

import { hex } from "./basis.mjs";
import { VectorError, readFrame } from "./vector.mjs";

const ED25519 = 2;
const TAGS = ["CRC-32", "HMAC", "Ed25519"];
const FIRST_DAY = Date.UTC(2026, 0, 1), DAY = 86_400_000; // what a frame's last day is counted in
const PUBLIC_KEY = "302a300506032b6570032100"; // what DER puts before the 32 bytes of an Ed25519 key

const WHY = {
  length: "it has not the length of a frame of its basis: it was cut, or is no frame",
  version: "it is of a version that this page does not read",
  "dtype or tag": "its first byte says a kind of number or of tag that there is not",
  checksum: "its checksum is wrong: it was damaged on its way, or is of another stream",
  signature: "its signature is not one of this key, for this stream",
  "no key": "its tag needs a key that this page was not given",
  expired: "its last day is over",
  "not finite": "it has a value that is not finite",
  norm: "its numbers are too large",
  filling: "its filling byte is not zero",
};

/** The 32 bytes of an Ed25519 public key, from a PEM as `keygen` writes it, or from 64 hexadecimal digits. */
export function publicKey(text) {
  const bare = text.replace(/-----[A-Z ]+-----|\s/g, "");
  let digits = bare;
  if (text.includes("-----")) {
    digits = hex(Uint8Array.from(atob(bare), (c) => c.charCodeAt(0)));
    if (!digits.startsWith(PUBLIC_KEY)) throw new VectorError("the key is no Ed25519 public key");
    digits = digits.slice(PUBLIC_KEY.length);
  }
  if (!/^[0-9a-f]{64}$/i.test(digits)) throw new VectorError("the key has not 32 bytes");
  return Uint8Array.from(digits.match(/../g), (pair) => parseInt(pair, 16));
}

/**
 * Check a frame, and return what it holds.
 *
 * data: Uint8Array. bases: of the model, see basis.mjs. stream: its name. key: text of a public key; where it is not
 * empty, no frame is taken but one that is signed by it. last: the sequence accepted last with the same factors, or null.
 * Returns {basis, values: Float32Array, sequence, dtype, tag, version, bytes}. Throws VectorError with the reason.
 */
export async function checkFrame(data, bases, { stream = "", key = "", last = null } = {}) {
  const keys = key.trim() ? { ed25519: publicKey(key) } : {};
  const today = Math.floor((Date.now() - FIRST_DAY) / DAY);
  let found;
  try {
    found = await readFrame(data, bases, { stream, keys, today });
  } catch (error) {
    if (!(error instanceof VectorError)) throw error;
    throw new VectorError(
      error.message === "basis"
        ? `it is for basis ${hex(data.slice(1, 5))}, which is none of this model's`
        : WHY[error.message] ?? error.message,
    );
  }
  const { basis, values, sequence, dtype, kind, version } = found;
  if (keys.ed25519 && kind !== ED25519) throw new VectorError("it is not signed, and a key is set");
  if (last !== null && sequence < last) {
    throw new VectorError(`its sequence is ${sequence}, older than ${last}, which was accepted before`);
  }
  return { basis, values, sequence, dtype, version, tag: TAGS[kind], bytes: data.length };
}
