"""Helpers of the tests that are no fixtures. Import as `import support`.

`random_basis` makes what tests work on. `frame` and `digest` are second implementations of the
formats, written from the specification and sharing no code with the package.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tinylora_edge import Bases, Basis, Factors, MicroVector, Projection
from tinylora_edge.formats.side_tensors import save_bases
from tinylora_edge.modules import KINDS

GOLDEN = Path(__file__).parent / "golden"
DTYPE_CODES = {"fp32": 0, "bf16": 1, "fp16": 2, "int8": 3, "q2": 4, "q4": 5}
TAG_CODES = {"crc32": 0, "hmac": 1, "ed25519": 2}

BAD_DOCUMENTS = {
    "deep": b'{"a":' * 100_000,
    "many digits": b'{"a": ' + b"1" * 5000 + b"}",
    "no UTF-8": b'{"a": "\xff"}',
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
}
"""JSON that no reader takes for what it expects: beyond the limits, no JSON, or another value."""

FACTORS: dict[str, dict[str, Any]] = {
    "one": {},
    "rank 1": {"rank": 1},
    "rank 8": {"rank": 8, "blocks": 5, "architecture": "qwen2"},
    "5 outputs": {"outputs": 5},
    "a column": {"rank": 1, "outputs": 3},
    "experts": {"experts": 3, "rank": 3},
    "experts, 4 outputs": {"experts": 2, "outputs": 4},
    "f16": {"factor_dtype": np.float16, "rank": 8, "blocks": 5},
    "f16, one expert": {"factor_dtype": np.float16, "experts": 1},
    "one module": {"blocks": 1, "kinds": ("ffn_down",)},
}
"""Options of `random_factors`, one of each form that factors have."""


def random_factors(
    blocks: int = 2,
    *,
    kinds: Sequence[str] = ("attn_q", "attn_v", "ffn_down"),
    rank: int = 2,
    outputs: int | None = None,
    experts: int = 0,
    factor_dtype: type[np.floating[Any]] = np.float32,
    n_in: int = 12,
    n_out: int = 10,
    rng: int = 0,
    **fields: Any,
) -> Factors:
    """Return random factors of `blocks` blocks.

    Args:
        kinds: of the modules of a block. A kind's weight is (n_out + 2k) x (n_in + 4k), k being its
            position here, so that modules differ in shape.
        outputs: of B, as many as `rank` where it is not given.
        experts: where positive, each block also has an `ffn_down_exps` of that many experts.
        rng: seed of the random factors.
        fields: of `Factors`, in place of what is made here.
    """
    generator = np.random.default_rng(rng)
    all_kinds = sorted((*kinds, *(["ffn_down_exps"] if experts else [])), key=KINDS.index)
    modules = [f"blk.{block}.{kind}.weight" for block in range(blocks) for kind in all_kinds]
    a, b = [], []
    for module in modules:
        k = all_kinds.index(module.split(".")[2])
        lead = (experts,) if module.endswith("_exps.weight") else ()
        a.append(generator.standard_normal((*lead, rank, n_in + 4 * k)).astype(factor_dtype))
        b.append(generator.standard_normal((*lead, n_out + 2 * k, outputs or rank)).astype(factor_dtype))
    values: dict[str, Any] = {"architecture": "llama", "modules": tuple(modules)}
    return Factors(**values | {"rank": rank, "a": tuple(a), "b": tuple(b)} | fields)


def random_basis(blocks: int = 2, *, groups: int = 2, **fields: Any) -> Basis:
    """Return a basis of `random_factors(blocks, **fields)` and the paper's projection."""
    factors = random_factors(blocks, **fields)
    return Basis(factors, Projection.random(factors.modules, groups, min(2, factors.rank)))


def learned(factors: Factors, n: int = 13, *, prior: bool = True) -> Projection:
    """Return a learned projection of random directions, of rank 2, or of the factors' where that is less."""
    rng, k = np.random.default_rng(n), min(2, factors.rank)
    p = rng.standard_normal((n, len(factors.modules), k, k))
    wanted = (rng.standard_normal(n), np.diag(rng.uniform(0.5, 2, n))) if prior else None
    return Projection.learned(factors.modules, p, wanted)


def each_size(bases: Bases) -> list[Basis]:
    """Return bases of every kind and different sizes: of 13, 50, 210, 840 and 13,440 numbers for SmolLM2."""
    modules, rank = len(bases.factors.modules), bases.factors.rank
    numbers = dict.fromkeys([*(p.size for p in bases.projections), 13, min(50, modules - 3), modules])
    return [*(bases.basis(numbers=n) for n in numbers), bases.basis(rank=2), bases.basis(rank=rank)]


def of_norm(basis: Basis, norm: float, seed: int = 1, **fields: Any) -> MicroVector:
    """Return a random vector whose R has a norm."""
    vector = MicroVector.random(basis, 1.0, seed=seed)
    return replace(vector, values=vector.values * np.float32(norm / basis.norm(vector)), **fields)


def bases_with(basis: Basis) -> Bases:
    """Return the bases of a basis's factors, in which its projection is named or stored."""
    return Bases(basis.factors, (basis.projection,))


def golden_frames() -> list[dict[str, Any]]:
    """Return the frames of tests/golden, of entries of a shape of so many modules."""
    files = (json.loads((GOLDEN / name).read_text("utf-8")) for name in ("frames.json", "low_bits.json"))
    return [{"modules": e["n"], "outputs": 1, "rank": 1} | e for file in files for e in file["frames"]]


def entries(frame: dict[str, Any]) -> tuple[int, int, int]:
    """Return (M, p, q) of a golden frame."""
    return frame["modules"], frame["outputs"], frame["rank"]


def golden_overlaps() -> list[dict[str, Any]]:
    """Return the files of tests/golden/overlaps.json: name, file_hex, and `factors` where it is accepted."""
    found: list[dict[str, Any]] = json.loads((GOLDEN / "overlaps.json").read_text("utf-8"))["files"]
    return found


def golden_models() -> list[tuple[Bases, dict[str, Any]]]:
    """Return the models of tests/golden/bases.json, made by its formulas, and what it says of each.

    Random projections of another seed, u or tying, which are not read any more, are left out.
    """
    found = json.loads((GOLDEN / "bases.json").read_text("utf-8"))["models"]
    for model in found:
        unread = [entry["descriptor"] for entry in model["projections"] if "n" not in entry]
        model["bases"] = [entry for entry in model["bases"] if entry["descriptor"] not in unread]
        model["projections"] = [entry for entry in model["projections"] if "n" in entry]
    return [(_golden(model), model) for model in found]


def _golden(model: dict[str, Any]) -> Bases:
    def factors(m: int, s: int, shape: list[int]) -> np.ndarray[Any, Any]:
        numbers = (7 * np.arange(np.prod(shape)) + 13 * m + 5 * s) % 31 - 15
        return (numbers / 16).astype({"f32": np.float32, "f16": np.float16}[model["dtype"]]).reshape(shape)

    shapes = model.get("modules") or [
        (f"blk.{block}.{kind}.weight", model["a_shape"], model["b_shape"])
        for block in range(model["blocks"])
        for kind in model["kinds"]
    ]
    made = Factors(
        architecture=model["architecture"],
        modules=tuple(name for name, _, _ in shapes),
        rank=model["rank"],
        a=tuple(factors(m, 0, shape) for m, (_, shape, _) in enumerate(shapes)),
        b=tuple(factors(m, 1, shape) for m, (_, _, shape) in enumerate(shapes)),
    )
    projections = []
    for listed in model["projections"]:
        n, k = listed["n"], listed["rank"]
        p = (11 * np.arange(n * len(shapes) * k * k) % 37 - 18) / 16
        prior = ((3 * np.arange(n) % 7 - 3) / 8, np.where(np.eye(n), 1, 1 / 16)) if listed["prior"] else None
        projections.append(Projection.learned(made.modules, p.reshape(n, -1, k, k), prior))
    return Bases(made, tuple(projections))


def golden_frame(entry: dict[str, Any]) -> bytes:
    """Return the frame of a basis in bases.json, made by its formula."""
    n = entry["n"]
    payload = bytes.fromhex("d7233c") + bytes((37 * i % 255 - 127) % 256 for i in range(n))
    payload += bytes(n % 2 == 0)
    return frame(entry["digest"], payload, dtype="int8", sequence=7)


def assert_golden(entry: dict[str, Any], what: str, found: bytes) -> None:
    """Compare bytes with those of an entry of bases.json, or with their SHA-256 where they are many."""
    whole = entry.get(f"{what}_hex", entry.get(f"{what}_hex_le_f32"))
    if whole is None:
        assert hashlib.sha256(found).hexdigest() == entry[f"{what}_sha256"], entry["descriptor"]
    else:
        assert found.hex() == whole, entry["descriptor"]


STORED = Projection.learned(random_factors(1).modules, np.ones((2, 3, 2, 2)))
NAMED = "random rank=1 seed=42 groups=2 u=1 tying=tiled"
FORGED = {
    "a projection twice": (NAMED, NAMED),
    "a descriptor that is not canonical": (NAMED.replace("u=1", "u=01"),),
    "another seed": (NAMED.replace("seed=42", "seed=7"),),
    "a seed of 65 bits": (NAMED.replace("seed=42", f"seed={1 << 64}"),),
    "a rank beyond the baked one": (NAMED.replace("rank=1", "rank=3"),),
    "groups beyond the modules": (NAMED.replace("groups=2", "groups=4"),),
    "another tying": (NAMED.replace("tiled", "structured"),),
    "another u": (NAMED.replace("u=1", "u=2"),),
    "u beyond any": (NAMED.replace("u=1", "u=4000000000"),),
    "P that is missing": (NAMED, STORED.descriptor),
    "P of another digest": (STORED.descriptor.replace("rank=2 ", "rank=2 0")[:-1],),
    "entries": ("entries rank=2",),
    "nothing": ("",),
}
"""Descriptors that no reader takes in side tensors of `random_factors(1)`; `STORED` is `tinylora_p.0`."""


def save_forged(descriptors: Sequence[str], path: Path) -> None:
    """Write side tensors that list such descriptors."""
    bases = Bases(random_factors(1))
    bases.projections = tuple(Projection.entries(bases.factors.modules, 1) for _ in descriptors)
    for projection, descriptor in zip(bases.projections, descriptors, strict=True):
        projection.descriptor = descriptor
    bases.projections[0].stored = STORED.stored
    save_bases(bases, path)


def bundle_with(bases: Bases, base: Path, folder: Path) -> Path:
    """Make a bundle of a GGUF and side tensors, and return its folder."""
    folder.mkdir()
    (folder / "base.gguf").symlink_to(base.resolve())
    save_bases(bases, folder / "basis.gguf")
    return folder


def with_digest(basis: Basis, digest: str) -> Basis:
    """Give a basis the digest of a test frame, for which no factors exist."""
    vars(basis)["digest"] = digest  # fills the cache of the property
    return basis


def frame(
    digest: str,
    payload: bytes,
    *,
    dtype: str = "fp32",
    tag: str = "crc32",
    sequence: int = 0,
    key: Any = None,
    version: int = 2,
    until: int = 0,
) -> bytes:
    """Return a frame as docs/FORMAT.md, "Frames", words it, whatever the payload holds (NaN too).

    `key`: of the HMAC (bytes), or a `cryptography` private key. `until`: of version 3.
    """
    bits = bytes([int(dtype[1:])]) if dtype[0] == "q" else b""
    first = bytes([16 * (version + 2 * len(bits)) + min(DTYPE_CODES[dtype], 3) + 4 * TAG_CODES[tag]]) + bits
    day = until.to_bytes(2, "little") if version == 3 else b""
    body = first + bytes.fromhex(digest)[:4] + sequence.to_bytes(2, "little") + day + payload
    bound = hashlib.sha256(b"tinylora stream 2\n").digest()
    message = bound + bytes.fromhex(digest) + body
    if tag == "crc32":
        return body + zlib.crc32(message).to_bytes(4, "little")
    return body + (hmac.new(key, message, "sha256").digest()[:8] if tag == "hmac" else key.sign(message))


def digest(factors: Factors, descriptor: str) -> str:
    """Return the digest of a basis, computed from this layout (integers little-endian, no padding).

    text(s) = u32 number of bytes, UTF-8 bytes
    factors = SHA-256 of
        "tinylora factors 2" LF
        text(architecture) text(factorization)
        u32 rank  u32 number of modules
        for each module in order, the 32 bytes of SHA-256 of
            text(name)
            for A and for B:
                u32 bytes of one entry  u32 number of dimensions  u64 each dimension
                the entries, row by row, little-endian IEEE 754
    digest  = SHA-256 of "tinylora basis 2" LF, factors (32 bytes), the descriptor in UTF-8
    """
    out = hashlib.sha256(b"tinylora factors 2\n")
    out.update(text(factors.architecture) + text(factors.factorization))
    out.update(factors.rank.to_bytes(4, "little") + len(factors.modules).to_bytes(4, "little"))
    for name, *pair in zip(factors.modules, factors.a, factors.b, strict=True):
        module = text(name)
        for array in pair:
            code = {2: "e", 4: "f"}[array.itemsize]
            module += array.itemsize.to_bytes(4, "little") + array.ndim.to_bytes(4, "little")
            module += b"".join(dim.to_bytes(8, "little") for dim in array.shape)
            module += struct.pack(f"<{array.size}{code}", *array.reshape(-1).tolist())
        out.update(hashlib.sha256(module).digest())
    return hashlib.sha256(b"tinylora basis 2\n" + out.digest() + descriptor.encode()).hexdigest()


def text(value: str) -> bytes:
    """Return a string as the formats hash it: u32 number of bytes, UTF-8 bytes."""
    data = value.encode()
    return len(data).to_bytes(4, "little") + data


@contextmanager
def limited(what: str, most: int) -> Iterator[None]:
    """Limit a resource of this process, such as `FSIZE`, the bytes of a file that it writes."""
    import resource

    number = getattr(resource, f"RLIMIT_{what}")
    before = resource.getrlimit(number)
    resource.setrlimit(number, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(number, before)


def memory_limit(extra: int) -> AbstractContextManager[None]:
    """Let the process grow by at most `extra` bytes of address space; more raises MemoryError."""
    return limited("AS", psutil.Process().memory_info().vms + extra)


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something; an AssertionError where it does not come."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def without_progress(stderr: str) -> str:
    """Return stderr without the lines that a pipe gets every ten seconds, which a busy machine may bring."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.startswith("... "))


def folder_in_memory() -> tempfile.TemporaryDirectory[str]:
    """Return a folder in memory, where the system has that: a busy disk takes seconds to sync a file."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="tinylora-tests-", dir=memory)
