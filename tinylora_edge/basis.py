"""A basis, which is factors and a projection, and all the bases of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import limits
from .errors import BasisError, BasisMismatchError, NonFiniteError, VectorError
from .factors import Factors, Shape, shape_name, shape_of
from .projection import RANK, Projection, entries_descriptor, random_descriptor
from .wire import frame

MAX_NORM = 256.0
"""Largest Frobenius norm of R that a policy accepts and a learner makes; trained vectors have 0.1 to 80."""


@dataclass(frozen=True, eq=False, repr=False)
class Basis:
    """Factors and a projection: they turn a micro-vector into a change of the weights, W' = W + B R A.

    BasisError: the projection is of other modules, or acts on directions that the factors do not have.
    """

    factors: Factors
    projection: Projection

    def __post_init__(self) -> None:
        factors, projection = self.factors, self.projection
        if projection.modules != factors.modules:
            raise BasisError(
                f"the projection has {len(projection.modules)} modules, which are not the "
                f"{len(factors.modules)} of the factors"
            )
        _check_within(projection.shape, factors)

    def __repr__(self) -> str:
        return f"Basis({self.id}: {self.size} numbers, {self.projection.descriptor[:48]}, {self.factors!r})"

    @property
    def size(self) -> int:
        """n, the numbers of a micro-vector."""
        return self.projection.size

    @property
    def shape(self) -> Shape:
        """(p, q): outputs and inputs of R, leading directions of B and of A."""
        return self.projection.shape

    @property
    def rank(self) -> int:
        """q, the rank of the LoRA (A, B R)."""
        return self.projection.rank

    @property
    def modules(self) -> tuple[str, ...]:
        """M module names in canonical order."""
        return self.factors.modules

    @property
    def entries(self) -> tuple[int, ...]:
        """`Projection.layout`; where it is (), v takes neither `q2` nor `q4`."""
        return self.projection.layout

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hexadecimal over the factors' digest and the projection's descriptor."""
        return digest_of(self.factors, self.projection.descriptor)

    @property
    def id(self) -> str:
        """The first 4 bytes of the digest in hexadecimal: how a frame names its basis."""
        return self.digest[:8]

    def values(self, v: Any) -> NDArray[np.float32]:
        """Return the values of v, a micro-vector or n numbers, as float32 [n].

        VectorError: v has another number of values, is a micro-vector of another basis (BasisMismatchError),
        or has a value that is NaN or infinite (NonFiniteError).
        """
        if getattr(v, "basis", "") not in ("", self.digest):
            raise BasisMismatchError(f"the vector is of basis {v.basis[:8]}, and not of {self.id}")
        with np.errstate(over="ignore"):  # infinity is refused below
            array = np.asarray(getattr(v, "values", v), dtype=np.float32)
        if array.shape != (self.size,):
            raise VectorError(
                f"the vector has {array.size} values, in the shape {array.shape}, but basis {self.id} takes "
                f"{self.size} numbers"
            )
        if not np.isfinite(array).all():
            index = int(np.flatnonzero(~np.isfinite(array))[0])
            raise NonFiniteError(f"value {index} of the vector is {array[index]}: every value must be finite")
        return array

    def R(self, v: Any) -> NDArray[np.float32]:
        """Return R of every module on the leading directions: float32 [M, p, q].

        NonFiniteError: an entry of R passes float32. Other errors are those of `values`.
        """
        r = self.projection.R(self.values(v))
        if not np.isfinite(r).all():
            raise NonFiniteError("R of the vector passes float32: its values are too large")
        return r

    def norm(self, v: Any) -> float:
        """Return the Frobenius norm of R; errors as for `R`."""
        return frobenius(self.R(v))

    def bounded(self, values: ArrayLike, under: NDArray[np.float32] | None = None) -> NDArray[np.float64]:
        """Return values, scaled down where their R is too large: float [n] -> float64 [n].

        The Frobenius norm of their R and that of the R `under` them add up to at most 98 % of `MAX_NORM`, as
        rounding to a dtype may then raise the norm a little.
        """
        exact = np.asarray(values, np.float64)
        norm = frobenius(self.projection.R(exact.astype(np.float32)))
        most = 0.98 * MAX_NORM - (0.0 if under is None else frobenius(under))
        return exact * min(1.0, max(most, 0.0) / max(norm, 1.0))

    def delta(self, module: str, v: Any) -> NDArray[np.float32]:
        """Return dW = B R A of one module, float32 [out, in] or [experts, out, in]; errors as for `R`."""
        a, b = self.factors.leading(module, self.shape)
        delta: NDArray[np.float32] = (b @ self.R(v)[self.factors.index(module)]) @ a
        return delta


class Bases(Mapping[str, Basis]):
    """All bases that vectors of one model may belong to, by their ids: the content of `basis.gguf`.

    They are the entries of every square R; every projection that is stored or named in the file; where Q >= 2
    the paper's tiled ones of 1 to M numbers; and the entries of every other R, p x q with p <= P and q <= Q.

    Attributes:
        projections: those that are stored or named.
        fingerprints: the deployed forms of the model that the factors were exported for.

    BasisError: a projection does not fit the factors, or two bases have one id.
    """

    def __init__(
        self, factors: Factors, projections: tuple[Projection, ...] = (), fingerprints: tuple[str, ...] = ()
    ) -> None:
        self.factors, self.projections, self.fingerprints = factors, projections, fingerprints
        if len(projections) > limits.PROJECTIONS:
            raise BasisError(
                f"there are {len(projections)} projections beside the factors, and at most "
                f"{limits.PROJECTIONS} are read: export the model again, and add those that are in use"
            )
        # By id: the basis, or until it is first asked for, what makes its projection.
        self._of: dict[str, Basis | partial[Projection]] = {}
        square = [shape for shape in self._shapes if shape[0] == shape[1]]
        self._add_entries(square)
        for projection in projections:
            basis = Basis(factors, projection)
            if basis.id in self._of:
                raise BasisError(
                    f"the projection {projection.descriptor[:64]!r} has the id {basis.id} of another one: a "
                    "frame could not say which is meant. Leave one of them out"
                )
            self._of[basis.id] = basis
        for numbers in self._tiled:
            tiled = digest_of(factors, random_descriptor(numbers))[:8]
            self._of.setdefault(tiled, partial(Projection.random, factors.modules, numbers))
        self._add_entries(self._shapes)

    def __repr__(self) -> str:
        return f"Bases({self.factors!r}, {self.known()}, {len(self.fingerprints)} deployed forms)"

    def __getitem__(self, basis_id: str) -> Basis:
        found = self._of[basis_id]
        if not isinstance(found, Basis):
            found = self._of[basis_id] = Basis(self.factors, found())
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    @property
    def id(self) -> str:
        """The first 4 bytes of the factors' digest in hexadecimal: the folder in which vectors are
        published."""
        return self.factors.digest[:8]

    @property
    def most(self) -> int:
        """Numbers of the largest vector."""
        return max([self.factors.numbers(self.factors.shape), *(p.size for p in self.projections)])

    def basis(self, *, numbers: int | None = None, rank: int | Shape | None = None) -> Basis:
        """Return the basis of `numbers` numbers, or of all entries of R of a rank; pass one of the two.

        With n numbers it is the last of the stored projections that have n, or the paper's tiled one. A rank
        is k, of R k x k, or (p, q).

        BasisError: there is none, or not one of the two is given.
        """
        if (numbers is None) == (rank is None):
            raise BasisError("a basis is chosen by its numbers or by its rank: pass one of the two")
        if rank is not None:
            shape = shape_of(rank)
            _check_within(shape, self.factors)
            return self._named(entries_descriptor(shape))
        for projection in reversed(self.projections):
            if projection.size == numbers:
                return self._named(projection.descriptor)
        if numbers is not None and numbers in self._tiled:
            return self._named(random_descriptor(int(numbers)))
        shapes = self._of_size(numbers)
        names = " or ".join(map(shape_name, [shape for shape in shapes if shape[0] == shape[1]] or shapes))
        advice = f"these are all entries of rank {names}: say --rank {names}" if names else self.known()
        raise BasisError(f"no projection has {numbers} numbers: {advice}")

    def of(self, vector: Any) -> Basis:
        """Return the basis that a micro-vector names; if it names none, the one that its numbers or entries
        fit.

        BasisMismatchError: it names one that is not here. VectorError: no basis has so many numbers.
        """
        if vector.basis:
            found = self.get(vector.basis[:8])
            if found is None or found.digest != vector.basis:
                raise self._unknown(vector.basis[:8])
            return found
        size = len(vector.values)
        try:
            square = next((q for p, q in self._of_size(size) if p == q), 0)
            if square and size not in self._tiled:
                return self.basis(rank=square)
            return self.basis(numbers=size)
        except BasisError as error:
            raise VectorError(f"the vector fits no basis: {error}") from None

    def of_frame(self, data: bytes) -> Basis:
        """Return the basis that a frame names, without verifying the frame.

        FrameError: they are no frame. BasisMismatchError: the basis is not here.
        """
        named = frame.head(data).basis_id
        found = self.get(named)
        if found is None:
            raise self._unknown(named)
        return found

    def with_projection(self, projection: Projection) -> Bases:
        """Return these bases with a projection added, or moved, to the end. Errors: those of the class."""
        others = (each for each in self.projections if each.descriptor != projection.descriptor)
        return Bases(self.factors, (*others, projection), self.fingerprints)

    def with_fingerprint(self, fingerprint: str) -> Bases:
        """Return these bases with the fingerprint of one more deployed form of the model."""
        return Bases(self.factors, self.projections, (*self.fingerprints, fingerprint))

    def known(self) -> str:
        """Return a text that says which vectors these bases take."""
        factors, modules = self.factors, len(self.factors.modules)
        numbers = f"{modules:,} to {factors.numbers(factors.shape):,} numbers"
        ranks = f"all entries of rank 1 to {shape_name(factors.shape)} ({numbers})"
        stored = "".join(f", {p.kind} ones of {p.size} numbers" for p in self.projections)
        tiled = f", tiled ones of 1 to {modules}" if self._tiled else ""
        return f"this model takes {ranks}{stored}{tiled}"

    def _named(self, descriptor: str) -> Basis:
        return self[digest_of(self.factors, descriptor)[:8]]

    def _add_entries(self, shapes: Iterable[Shape]) -> None:
        for shape in shapes:
            entries = digest_of(self.factors, entries_descriptor(shape))[:8]
            made = partial(Projection.entries, self.factors.modules, shape, self.factors.rows)
            self._of.setdefault(entries, made)

    @property
    def _tiled(self) -> range:
        """The numbers of values for which these factors have a tiled projection of the paper's."""
        return range(1, len(self.factors.modules) + 1) if self.factors.rank >= RANK else range(0)

    @property
    def _shapes(self) -> Iterator[Shape]:
        outputs, inputs = self.factors.shape
        return product(range(1, outputs + 1), range(1, inputs + 1))

    def _of_size(self, numbers: int | None) -> list[Shape]:
        """Return the shapes of R that have this number of entries."""
        return [shape for shape in self._shapes if self.factors.numbers(shape) == numbers]

    def _unknown(self, basis_id: str) -> BasisMismatchError:
        return BasisMismatchError(
            f"the vector is for basis {basis_id}, which is none of factors {self.factors.digest[:8]}: "
            f"{self.known()}. It was made for another model or another export, or was damaged on its way"
        )


def frobenius(r: NDArray[np.float32]) -> float:
    """Return the Frobenius norm, summed in float64."""
    flat = r.reshape(-1)
    # np.linalg.norm would sum in float32, and wake the threads of BLAS.
    return float(np.sqrt(np.einsum("i,i->", flat, flat, dtype=np.float64)))


def digest_of(factors: Factors, descriptor: str) -> str:
    """Return the digest of the basis of factors and the projection with a descriptor, in hexadecimal."""
    data = b"tinylora basis 2\n" + bytes.fromhex(factors.digest) + descriptor.encode()
    return hashlib.sha256(data).hexdigest()


def _check_within(shape: Shape, factors: Factors) -> None:
    """Raise a BasisError where R of a shape acts on directions that factors do not have."""
    if min(shape) >= 1 and shape[0] <= factors.outputs and shape[1] <= factors.rank:
        return
    rank = max(shape[1], 1)
    wider = f" --outputs {shape[0]}" if shape[0] > rank else ""
    raise BasisError(
        f"rank {shape_name(shape)} is not among 1 to {shape_name(factors.shape)}, the ranks of these "
        f"factors: choose one of them, or export again with --rank {rank}{wider}, for which every vector is "
        "made anew"
    )
