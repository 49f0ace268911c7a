// Reads a list of jobs in JSON on stdin, and writes what the reader says of each on stdout.

import { readFileSync } from "node:fs";
import { VectorError, readFrame } from "../../examples/browser/vector.mjs";

const bytes = (hex) => Uint8Array.from(Buffer.from(hex ?? "", "hex"));
const hex = (data) => Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("hex");

async function said(job) {
  const keys = { hmac: job.hmac && bytes(job.hmac), ed25519: job.ed25519 && bytes(job.ed25519) };
  try {
    const options = { stream: job.stream, keys, today: job.today };
    const found = await readFrame(bytes(job.data), job.n, bytes(job.digest), options);
    return { ...found, values: hex(found.values) };
  } catch (error) {
    if (error instanceof VectorError) return { refused: error.message };
    throw error;
  }
}

const jobs = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(await Promise.all(jobs.map(said))));
