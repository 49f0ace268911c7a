// Reads a list of jobs in JSON on stdin, and writes what the reader says of each on stdout.

import { readFileSync } from "node:fs";
import { readBases } from "../../examples/browser/basis.mjs";
import { VectorError, readFrame } from "../../examples/browser/vector.mjs";

const bytes = (hex) => Uint8Array.from(Buffer.from(hex ?? "", "hex"));
const hex = (data) => Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("hex");

/** Bases of a job: of a file, or one of which the digest and the size are known alone. */
async function basesOf(job) {
  if (job.bases) return readBases(readFileSync(job.bases));
  const digest = bytes(job.digest), own = { digest, size: job.n, R: (values) => values };
  return { find: (id) => (hex(id) === hex(digest.subarray(0, 4)) ? own : undefined) };
}

async function said(job) {
  const keys = { hmac: job.hmac && bytes(job.hmac), ed25519: job.ed25519 && bytes(job.ed25519) };
  const { stream, today } = job;
  try {
    const bases = await basesOf(job);
    if (!job.data) return { factors: hex(bases.factors), ids: [...bases.byId.keys()] };
    const { basis, ...found } = await readFrame(bytes(job.data), bases, { stream, keys, today });
    const about = job.bases && { descriptor: basis.descriptor, digest: hex(basis.digest), r: hex(basis.R(found.values)) };
    return { ...found, ...about, values: hex(found.values) };
  } catch (error) {
    if (error instanceof VectorError || error.message.startsWith("basis: ")) return { refused: error.message };
    throw error;
  }
}

const jobs = JSON.parse(readFileSync(0, "utf8"));
const found = [];
for (const job of jobs) found.push(await said(job));
process.stdout.write(JSON.stringify(found));
