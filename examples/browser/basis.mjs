// The bases of a model: which one a frame is of, and R of its numbers. Written from docs/FORMAT.md alone; it runs in
// browsers and in Node.

const MASK = (1n << 64n) - 1n, GOLDEN = 0x9e3779b97f4a7c15n;
const RANDOM = /^random rank=(\d+) seed=(\d+) groups=(\d+) u=(\d+) tying=(tiled|structured|full)$/;
const ITEM_BYTES = [1, 1, 2, 2, 4, 4, 4, 1, , , 8, 8, 8], U32 = 4, STRING = 8, ARRAY = 9; // types of keys
const F32 = 0, F16 = 1; // and of tensors
const encoder = new TextEncoder();

export const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

async function sha256(...parts) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", await new Blob(parts).arrayBuffer()));
}

function fail(why) {
  throw new Error(`basis: ${why}`);
}

/* Random projections */

function mix(z) {
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return z ^ (z >> 31n);
}

/** P of a module: Float32Array of u * k * k. seed: BigInt. */
export function project(seed, module, u, k) {
  let hash = 0xcbf29ce484222325n;
  for (const byte of encoder.encode(module)) hash = ((hash ^ BigInt(byte)) * 0x100000001b3n) & MASK;
  const scale = Math.fround(1 / Math.fround(Math.sqrt(k)));
  const p = new Float32Array(u * k * k);
  let at = mix(seed ^ hash);
  for (let c = 0; c < p.length; c++) {
    let s = -393210;
    for (let step = 0; step < 3; step++) {
      at = (at + GOLDEN) & MASK;
      for (let word = mix(at); word; word >>= 16n) s += Number(word & 0xffffn);
    }
    p[c] = (s / 65536) * scale; // a product of two f32 is exact before it is rounded
  }
  return p;
}

/** The group of each module. */
function tie(modules, tying, groups) {
  const tile = (count, among) => Array.from({ length: count }, (_, j) => Math.floor((j * among) / count));
  if (groups < 1 || groups > modules.length) fail("groups");
  if (tying === "tiled") return tile(modules.length, groups);
  if (tying === "full") return groups === 1 ? modules.map(() => 0) : fail("groups");
  const members = new Map();
  modules.forEach((name, j) => {
    const kind = name.split(".")[2];
    members.set(kind, [...(members.get(kind) ?? []), j]);
  });
  const found = new Array(modules.length);
  let order = 0;
  for (const places of members.values()) {
    const first = Math.floor((order * groups) / members.size), end = Math.floor((++order * groups) / members.size);
    if (end === first || end - first > places.length) fail("groups");
    tile(places.length, end - first).forEach((group, q) => (found[places[q]] = first + group));
  }
  return found;
}

/* Bases */

/** n numbers and what they mean: {descriptor, rank, size, digest}. */
class Basis {
  constructor(descriptor, modules, digest, stored) {
    Object.assign(this, { descriptor, modules, digest, stored });
    const [kind, rank] = descriptor.split(/ (?:rank=)?/);
    const random = RANDOM.exec(descriptor), square = (this.rank = Number(rank)) ** 2;
    if (kind === "entries") {
      this.size = modules.length * square;
    } else if (kind === "learned") {
      this.size = this.u = stored.length / modules.length / square;
    } else {
      this.u = Number(random[4]);
      this.size = Number(random[3]) * this.u;
      this.seed = BigInt(random[2]);
      this.tying = tie(modules, random[5], Number(random[3]));
    }
    if (this.size > 250_000) fail("a basis of that many numbers");
  }

  /** R of n numbers: Float32Array [M, width, width], zeros beyond the rank of the basis. Sums are in binary64. */
  R(values, width = this.rank) {
    const { modules, rank, u, stored } = this, square = rank * rank;
    const out = new Float32Array(modules.length * width * width);
    modules.forEach((module, m) => {
      const p = u && !stored ? project(this.seed, module, u, rank) : null;
      for (let entry = 0; entry < square; entry++) {
        let sum = 0;
        for (let i = 0; i < u; i++) {
          if (p) sum += values[this.tying[m] * u + i] * p[i * square + entry];
          else sum += values[i] * stored[(i * modules.length + m) * square + entry];
        }
        const place = (m * width + Math.floor(entry / rank)) * width + (entry % rank);
        out[place] = u ? sum : values[m * square + entry];
      }
    });
    return out;
  }
}

export class Bases {
  /**
   * All bases of factors.
   *
   * factors: Uint8Array, their digest. modules: their names, in order. rank: theirs. projections: [{descriptor, p}], of
   * those that the side tensors store or name; p is a Float32Array [n, M, k, k] of a learned one.
   */
  static async of({ factors, modules, rank, projections = [] }) {
    const found = Object.assign(new Bases(), { factors, modules, rank, byId: new Map() });
    const ranks = Array.from({ length: rank }, (_, i) => ({ descriptor: `entries rank=${i + 1}` }));
    const tiled = rank < 2 ? [] : modules.map((_, i) => ({
      descriptor: `random rank=2 seed=42 groups=${i + 1} u=1 tying=tiled`,
    }));
    const listed = [...ranks, ...projections];
    const digests = await Promise.all([...listed, ...tiled].map(({ descriptor }) => (
      sha256("tinylora basis 2\n", factors, descriptor)
    )));
    [...listed, ...tiled].forEach(({ descriptor, p }, i) => {
      const id = hex(digests[i].subarray(0, 4));
      if (found.byId.has(id)) return i < listed.length && fail("two projections of one id");
      found.byId.set(id, { descriptor, p, digest: digests[i] });
    });
    projections.forEach((_, i) => found.find(digests[rank + i])); // what is wrong with one is said here
    return found;
  }

  /** The basis whose digest begins with four bytes, or undefined. */
  find(id) {
    const key = hex(id.subarray(0, 4)), entry = this.byId.get(key);
    if (!entry) return undefined;
    return (entry.basis ??= new Basis(entry.descriptor, this.modules, entry.digest, entry.p));
  }
}

/** Read side tensors: Uint8Array, all of `basis.gguf`. Throws an Error that says what is wrong with them. */
export async function readBases(bytes) {
  try {
    return await read(bytes);
  } catch (error) {
    throw error instanceof RangeError ? new Error("basis: the file is cut") : error;
  }
}

async function read(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let at = 0;
  const u32 = () => view.getUint32((at += 4) - 4, true);
  const u64 = () => Number(view.getBigUint64((at += 8) - 8, true));
  const take = (size) => {
    if (size > bytes.length - at) throw new RangeError();
    return bytes.subarray(at, (at += size));
  };
  const text = () => new TextDecoder("utf-8", { fatal: true }).decode(take(u64()));
  const value = (type) => {
    if (type === STRING) return text();
    if (type === ARRAY) {
      const item = u32(), count = u64();
      if (item === ARRAY || count > bytes.length) throw new RangeError();
      return Array.from({ length: count }, () => value(item));
    }
    const raw = take(ITEM_BYTES[type] ?? fail("type of a key"));
    return type === U32 ? view.getUint32(at - 4, true) : raw;
  };
  if (hex(take(4)) !== "47475546" || ![2, 3].includes(u32())) fail("no GGUF file");
  const tensorCount = u64(), keyCount = u64(), keys = new Map(), tensors = new Map();
  for (let i = 0; i < keyCount; i++) {
    const name = text();
    keys.set(name, value(u32()));
  }
  for (let i = 0; i < tensorCount; i++) {
    const name = text();
    const shape = Array.from({ length: Math.min(u32(), 5) }, u64).reverse(), type = u32(), offset = u64();
    tensors.set(name, { shape, type, offset });
  }
  const alignment = keys.get("general.alignment") ?? 32, start = Math.ceil(at / alignment) * alignment;
  /** The bytes of a tensor of such a shape, where null is any length. */
  const tensor = (name, types, ...shape) => {
    const found = tensors.get(name) ?? fail(`${name} is missing`);
    const fits = found.shape.length === shape.length && shape.every((d, i) => d === null || d === found.shape[i]);
    if (!fits || !types.includes(found.type)) fail(`${name} does not fit`);
    at = start + found.offset;
    const size = found.type === F32 ? 4 : 2;
    return { ...found, size, data: take(found.shape.reduce((product, d) => product * d, size)) };
  };

  const said = (name) => keys.get(`tinylora.${name}`) ?? fail(`there is no tinylora.${name}`);
  if (keys.get("adapter.type") !== "tinylora") fail("no side tensors");
  if (said("version") !== 2) fail(`version ${said("version")}, expected 2`);
  if (said("factorization") !== "left") fail("factorization");
  const rank = said("rank"), modules = said("modules"), architecture = keys.get("general.architecture") ?? "";
  const number = (n, size) => {
    const out = new DataView(new ArrayBuffer(size));
    if (size === 4) out.setUint32(0, n, true);
    else out.setBigUint64(0, BigInt(n), true);
    return out;
  };
  const packed = (words) => {
    const data = encoder.encode(words);
    return [number(data.length, 4), data];
  };
  const packedArray = ({ shape, size, data }) => (
    [number(size, 4), number(shape.length, 4), ...shape.map((d) => number(d, 8)), data]
  );
  const parts = modules.map((module) => {
    const experts = tensors.get(`${module}.tinylora_a`)?.shape.length === 3 ? [null] : [];
    const a = tensor(`${module}.tinylora_a`, [F32, F16], ...experts, rank, null);
    const b = tensor(`${module}.tinylora_b`, [F32, F16], ...(experts.length ? [a.shape[0]] : []), null, rank);
    return sha256(...packed(module), ...packedArray(a), ...packedArray(b));
  });
  const head = ["tinylora factors 2\n", ...packed(architecture), ...packed("left"), number(rank, 4)];
  const factors = await sha256(...head, number(modules.length, 4), ...(await Promise.all(parts)));
  if (hex(factors) !== said("factors")) fail("the factors' digest is another one");

  const projections = (keys.get("tinylora.projections") ?? []).map(async (descriptor, i) => {
    const learned = /^learned rank=([1-9]\d*) ([0-9a-f]{64})$/.exec(descriptor);
    const random = RANDOM.exec(descriptor), k = Number((learned ?? random ?? fail("descriptor"))[1]);
    if (k < 1 || k > rank) fail(`rank ${k} is not among 1 to ${rank}`);
    if (!learned) {
      const canonical = random.slice(1, 5).every((digits) => String(BigInt(digits)) === digits);
      if (!canonical || BigInt(random[2]) > MASK || random[4] === "0") fail("descriptor");
      return { descriptor };
    }
    const { data } = tensor(`tinylora_p.${i}`, [F32], null, modules.length, k, k);
    if (hex(await sha256(data)) !== learned[2]) fail("the digest of a projection is another one");
    const p = new Float32Array(Uint8Array.from(data).buffer);
    return p.every(Number.isFinite) ? { descriptor, p } : fail("a projection is not finite");
  });
  return Bases.of({ factors, modules, rank, projections: await Promise.all(projections) });
}
