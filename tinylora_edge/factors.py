"""The factors A and B, which are frozen and stored once a model, and their digest."""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import limits
from .errors import BasisError
from .factorization import LEFT
from .modules import canonical_order, parse

FactorArray = NDArray[np.float32] | NDArray[np.float16]

Shape = tuple[int, int]  # (p, q): outputs and inputs of R, leading directions of B and of A

_STEP = 64  # the outputs of a large vector are a multiple of this


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Factors:
    """A and B of every adapted module, from the truncated SVD of its weight: W' = W + B R A.

    Their leading directions, A[:q] and B[:, :p], serve R of p outputs and q inputs: one export serves every
    p and q. B has r columns (Q), or more (P): the left singular directions that follow, times S. A weight
    that has fewer than P of them has all of its own.

    Attributes:
        architecture: the model's `general.architecture`, such as `llama`.
        modules: M module names in canonical order.
        rank: Q, right directions of every module.
        factorization: `left`: all of S is in B.
        a: for each module A, float32 or float16 [Q, in], or [experts, Q, in].
        b: for each module B, float32 or float16 [out, P], or [experts, out, P], with P >= Q. That of a small
            weight may have fewer columns, Q or more.

    BasisError: the parts do not fit each other, or pass `limits`.
    """

    architecture: str
    modules: tuple[str, ...]
    rank: int
    factorization: str = LEFT
    a: tuple[FactorArray, ...]
    b: tuple[FactorArray, ...]

    def __post_init__(self) -> None:
        count = len(self.modules)
        if count == 0 or len(set(self.modules)) != count:
            raise BasisError(f"factors need distinct modules, but got {count} names, some of them twice")
        longest = max(map(len, self.modules))
        if count > limits.MODULES or longest > limits.NAME_BYTES:
            raise BasisError(
                f"factors have at most {limits.MODULES:,} modules with names of {limits.NAME_BYTES:,} bytes, "
                f"not {count:,} of {longest:,}"
            )
        if list(self.modules) != canonical_order(self.modules):
            raise BasisError("the modules are not in canonical order: sort them with modules.canonical_order")
        if self.factorization != LEFT:
            raise BasisError(f"unknown factorization {self.factorization!r}: this version knows '{LEFT}'")
        if (len(self.a), len(self.b)) != (count, count):
            raise BasisError(f"{count} modules need as many A and B, not {len(self.a)} and {len(self.b)}")
        for module, a, b in zip(self.modules, self.a, self.b, strict=True):
            for array in (a, b):
                if array.dtype.kind != "f" or array.itemsize not in (2, 4):
                    raise BasisError(f"a factor of {module} is {array.dtype}: expected float32 or float16")
            fits = a.ndim == b.ndim and a.ndim in (2, 3) and a.shape[:-2] == b.shape[:-2]
            if not fits or b.shape[-1] < self.rank or a.shape[-2] != self.rank:
                raise BasisError(
                    f"factors of {module} have shapes {a.shape} and {b.shape}, not those of rank "
                    f"{self.rank} and {self.outputs} outputs: expected A [{self.rank}, in] and B [out, "
                    f"{self.rank} to {self.outputs}], or the same with one leading axis for experts"
                )
        if not 1 <= self.rank <= self.outputs <= limits.RANK:
            raise BasisError(
                f"factors have rank {self.rank} and {self.outputs} outputs: expected 1 <= rank <= outputs <= "
                f"{limits.RANK}"
            )
        if self.r_size > limits.VALUES:
            raise BasisError(f"factors have at most {limits.VALUES:,} entries of R, not {self.r_size:,}")

    def __repr__(self) -> str:
        return (
            f"Factors({self.digest[:8]}: {self.architecture}, {len(self.modules)} modules, "
            f"rank {shape_name(self.shape)}, {self.dtype})"
        )

    @cached_property
    def outputs(self) -> int:
        """P, the most outputs that a module has: the rank, or more."""
        return max((b.shape[-1] for b in self.b if b.ndim), default=0)

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Outputs of each module: P, or fewer if its weight has fewer."""
        return tuple(b.shape[-1] for b in self.b)

    @property
    def shape(self) -> Shape:
        """(P, Q): of the largest R."""
        return self.outputs, self.rank

    @property
    def r_size(self) -> int:
        """M P Q: numbers of the largest R, with rows of zeros where modules have fewer outputs than P."""
        return len(self.modules) * self.outputs * self.rank

    def numbers(self, shape: Shape) -> int:
        """Return the number of entries of an R of a shape, without rows of zeros."""
        p, q = shape
        return sum(min(p, own) for own in self.rows) * q

    @cached_property
    def sizes(self) -> dict[str, Shape]:
        """The shapes of R by their names: small, medium, large and full (docs/SIZES.md).

        `large` has the outputs that pay on a model of this width, `full` all that there are.
        """
        width = max(min(b.shape[-2], a.shape[-1]) for a, b in zip(self.a, self.b, strict=True))
        pay = outputs_that_pay(width)
        shapes = {"small": (2, 2), "medium": (7 * pay // 32, 8), "large": (pay, 8), "full": self.shape}
        return {name: (min(p, self.outputs), min(q, self.rank)) for name, (p, q) in shapes.items()}

    @property
    def dtype(self) -> str:
        """The type in which A and B are stored: `f32` or `f16`."""
        return {4: "f32", 2: "f16"}[self.a[0].itemsize]

    @property
    def kinds(self) -> list[str]:
        """The kinds of module that are adapted, in the order of their first appearance."""
        return list(dict.fromkeys(parse(module)[1] for module in self.modules))

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hexadecimal over the factors as stored (docs/FORMAT.md, "Digests")."""
        total = hashlib.sha256(b"tinylora factors 2\n")
        total.update(packed_text(self.architecture) + packed_text(self.factorization))
        total.update(struct.pack("<II", self.rank, len(self.modules)))
        for module, *pair in zip(self.modules, self.a, self.b, strict=True):
            part = hashlib.sha256(packed_text(module))
            for array in pair:
                part.update(struct.pack(f"<II{array.ndim}Q", array.itemsize, array.ndim, *array.shape))
                part.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
            total.update(part.digest())
        return total.hexdigest()

    def index(self, module: str) -> int:
        """Return the position of a module; BasisError where it has no factors."""
        try:
            return self.modules.index(module)
        except ValueError:
            raise BasisError(
                f"module {module!r} has no factors: {len(self.modules)} modules have, from {self.modules[0]} "
                f"to {self.modules[-1]}"
            ) from None

    def leading(self, module: str, shape: Shape) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return A [.., q, in] and B [.., out, p] of a module's leading directions, in float32.

        B ends in columns of zeros where the module has fewer than p.
        """
        (outputs, inputs), position = shape, self.index(module)
        a = np.asarray(self.a[position][..., :inputs, :], np.float32)
        b = np.asarray(self.b[position][..., :outputs], np.float32)
        missing = max(0, outputs - b.shape[-1])
        return a, np.pad(b, [(0, 0)] * (b.ndim - 1) + [(0, missing)]) if missing else b


def outputs_that_pay(width: int) -> int:
    """Return the outputs of a large vector: an eighth of the model's width, to the nearest 64, at least 64.

    Twice as many gained nothing more, and half as many gained less (docs/EVIDENCE.md, "Outputs").
    """
    return max(1, round(width / 8 / _STEP)) * _STEP


def is_whole(number: object) -> bool:
    """Tell whether a number is a whole one."""
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def shape_of(rank: Any) -> Shape:
    """Return (p, q) of a rank: of k, which stands for (k, k), or of a pair. BasisError: it is neither."""
    found = tuple(rank) if isinstance(rank, tuple | list) else (rank, rank)
    if len(found) != 2 or not all(map(is_whole, found)):
        raise BasisError(f"a rank is a whole number k, or two of them (p, q), not {rank!r}")
    return found


def shape_name(shape: Shape) -> str:
    """Return the shape of R as options and messages have it: `8` for (8, 8), `64x8` for (64, 8)."""
    outputs, inputs = shape
    return str(inputs) if outputs == inputs else f"{outputs}x{inputs}"


def read_shape(text: str) -> Shape:
    """Return the shape of R that a text names (see `shape_name`); BasisError where it names none."""
    found = re.fullmatch("([0-9]{1,4})(?:x([0-9]{1,4}))?", text)
    if found is None:
        raise BasisError(
            f"{text[:20]!r} is not a rank: expected a number, such as 8, or outputs x inputs, such as 64x8"
        )
    return int(found[1]), int(found[2] or found[1])


def packed_text(value: str) -> bytes:
    """Return a text as digests and fingerprints hash it: its length in bytes (u32), then its UTF-8."""
    data = value.encode()
    return struct.pack("<I", len(data)) + data
