"""The shape of a LoRA: which of its numbers in a row are which matrix, and the GGUF file that they make."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...formats import gguf
from ...formats.gguf import FLOAT32, STRING

Pairs = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
"""module -> (A [rank, in], B [out, rank])."""


@dataclass(frozen=True)
class LoraShape:
    """The shape of a LoRA W + B A on some modules, whose numbers stand in one row.

    In the order of the modules: A [rank, in], then B [out, rank], its rows in GGUF order.

    Attributes:
        architecture: `general.architecture` of the base.
        rank: of every A and B.
        sides: module -> (in, out).
    """

    architecture: str
    rank: int
    sides: Mapping[str, tuple[int, int]]

    @classmethod
    def on(cls, basis: Basis, rank: int) -> LoraShape:
        """Return the shape of a LoRA on the modules of a basis."""
        sides = {m: (basis.a[i].shape[-1], basis.b[i].shape[-2]) for i, m in enumerate(basis.modules)}
        return cls(basis.architecture, rank, sides)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return self.rank * sum(n_in + n_out for n_in, n_out in self.sides.values())

    def pairs(self, numbers: NDArray[np.float32]) -> Pairs:
        """Return A and B of every module, views of the numbers.

        Args:
            numbers: float32 [size], in any shape.
        """
        rest, found = numbers.reshape(self.size), {}
        for module, (n_in, n_out) in self.sides.items():
            a, b, rest = np.split(rest, np.cumsum([self.rank * n_in, self.rank * n_out]))
            found[module] = a.reshape(self.rank, n_in), b.reshape(n_out, self.rank)
        return found

    def to_gguf(self, numbers: NDArray[np.float32]) -> bytes:
        """Return the LoRA as a GGUF file: what `--lora` of llama.cpp takes, at scale 1.

        Args:
            numbers: float32 [size], in any shape.
        """
        metadata = [
            ("general.type", "adapter", STRING),
            ("adapter.type", "lora", STRING),
            # Readers compute scale * alpha / rank: the scale itself.
            ("adapter.lora.alpha", float(self.rank), FLOAT32),
        ]
        tensors: dict[str, NDArray[np.float32]] = {}
        for module, (a, b) in self.pairs(numbers).items():
            tensors |= {f"{module}.lora_a": a, f"{module}.lora_b": b}
        file = io.BytesIO()
        gguf.write(file, self.architecture, metadata, tensors)
        return file.getvalue()
