"""What the tests of shipping have in common: bases, frames of their vectors, answers of servers."""

from __future__ import annotations

import support

from tinylora_edge import Bases, Ed25519Signer, MicroVector

BASES = Bases(support.random_factors(blocks=5))
BASIS = BASES.basis(numbers=13)
SIGNER = Ed25519Signer(b"k" * 32)


def frame(sequence: int, dtype: str = "bf16", *, seed: int = 0, signer: object = SIGNER) -> bytes:
    drawn = MicroVector.random(BASIS, 0.3, seed=sequence + 1000 * seed, dtype=dtype)
    return MicroVector(drawn.values, dtype, sequence).to_bytes(BASIS, signer)


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body
