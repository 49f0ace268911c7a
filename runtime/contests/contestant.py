"""Contestants: what an app may put before a model, or into it, to have its answers as it wants them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ...basis import Basis
from ...tasks import Preamble
from ...vector import MicroVector


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to have a task done: any of a vector, a preamble and a LoRA, or none, which is the base.

    Attributes:
        name: of it, unique in a contest.
        vector: the active micro-vector, or None.
        preamble: what stands before every prompt.
        lora: a stock GGUF LoRA, or None. llama.cpp only.
        wire: bytes that travel to a device for it; None counts the vector's frame with a CRC-32 and the
            LoRA's file. A preamble ships with the app and counts nothing.
        making_s: seconds that it took to make, or None where nobody knows.
    """

    name: str
    vector: MicroVector | None = None
    preamble: Preamble = field(default_factory=Preamble)
    lora: Path | None = None
    wire: int | None = None
    making_s: float | None = None

    def sent(self, basis: Basis) -> int:
        """Return the bytes that travel to a device for it; see `wire`."""
        if self.wire is not None:
            return self.wire
        frame = 0 if self.vector is None else len(self.vector.to_bytes(basis))
        return frame + (0 if self.lora is None else self.lora.stat().st_size)

    def beside(self, other: Contestant) -> Contestant:
        """Return this one's vector together with another's preamble and LoRA."""
        parts = (self.making_s, other.making_s)
        return Contestant(
            name=f"{self.name} + {other.name}",
            vector=self.vector,
            preamble=other.preamble,
            lora=other.lora,
            wire=None if self.wire is None or other.wire is None else self.wire + other.wire,
            making_s=None if None in parts else sum(part for part in parts if part is not None),
        )


BASE = Contestant(name="base", wire=0)
"""The base alone, with which every other one is compared."""
