"""Projections: linear maps from the n numbers of a vector to R, of three kinds.

* `random` is the paper's P, regenerated from a seed in exact integer arithmetic. An entry is the centred sum
  of twelve uniforms of 16 bits, which splitmix64 derives from the seed, the module's name and the entry's
  index. The sum is close to N(0, 1) (excess kurtosis -0.1). It is a multiple of 2^-16, so float32 holds it
  exactly, and it needs no libm: every platform regenerates the same bits. Modules that follow each other
  share a number of v.
* `learned` has directions of R that were learned once for a model, and are stored.
* `entries`: v is R itself.

docs/FORMAT.md has the definitions and test values.

A learned projection may have a prior: mean and covariance of the vectors that people want. No digest covers
it, as the map from v to R does not depend on it.
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import limits
from .errors import BasisError
from .factors import Shape, is_whole, shape_name, shape_of
from .modules import canonical_order
from .wire.values import Entries, gathered, number_of, spread

SEED = 42  # the seed of all random projections
NUMBERS = 13  # default numbers of a vector, as in the paper
RANK = 2  # default rank of random and learned projections, as in the paper

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LANE = np.uint64(0xFFFF)
_MEAN = 393210  # mean of the sum of twelve uniforms on 0..65535
_ROUNDING = 2.0**-24  # relative rounding error of a float32
_ASYMMETRY = 2.0**-20  # how far c[i, j] may be from c[j, i], relative to the deviations of i and j
_ISOTROPIC = 1e-6  # how far a covariance that counts as isotropic may be from c I, relative to c


def project(seed: int, module: str, u: int, rank: int) -> NDArray[np.float32]:
    """Return P of the module with a GGUF tensor name: float32 [u, rank, rank], close to N(0, 1/rank).
    BasisError: an argument is out of range. Source: docs/FORMAT.md, "Projection"; the scale is PEFT's."""
    if not 0 <= seed < 1 << 64:
        raise BasisError(f"projection seed {seed} is out of range: it must be from 0 to 2**64 - 1")
    if u < 1 or rank < 1:
        raise BasisError(f"rank {rank} and u {u}: both must be at least 1")
    count = u * rank * rank
    key = np.array([seed ^ _fnv1a64(module.encode())], dtype=np.uint64)
    scale = np.float32(1) / np.sqrt(np.float32(rank))
    with np.errstate(over="ignore"):  # wrapping is the definition
        words = _mix(_mix(key) + np.arange(1, 3 * count + 1, dtype=np.uint64) * _GOLDEN)
    lanes = sum((words >> np.uint64(shift)) & _LANE for shift in (0, 16, 32, 48))
    sums = np.asarray(lanes, dtype=np.int64).reshape(-1, 3).sum(axis=1)
    entries: NDArray[np.float32] = ((sums - _MEAN) / 65536).astype(np.float32) * scale
    return entries.reshape(u, rank, rank)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def _fnv1a64(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


@dataclass(frozen=True, eq=False)
class Prior:
    """Mean [n] and covariance [n, n] of the vectors that people want, in float64, exactly symmetric."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, mean: ArrayLike, covariance: ArrayLike, size: int) -> Prior:
        """Return the prior of a projection of n = `size` numbers; mean [n] and covariance [n, n] in float32.

        The covariance must be symmetric and positive definite, beyond the rounding of float32: entries [i, j]
        and [j, i] differ by at most 2^-20 sqrt(c_ii c_jj), and each pivot of the Cholesky decomposition is
        above n 2^-24 c_ii. Then a Cholesky decomposition in float64 succeeds everywhere.

        BasisError: they are no such pair.
        """
        with np.errstate(over="ignore"):  # infinity is refused below
            mean, covariance = np.asarray(mean, np.float32), np.asarray(covariance, np.float32)
        for what, array, shape in (("mean", mean, (size,)), ("covariance", covariance, (size, size))):
            if array.shape != shape or not np.isfinite(array).all():
                raise BasisError(f"the {what} of the prior is {array.shape}: expected finite float32 {shape}")
        exact = covariance.astype(np.float64)  # in float32, half of the smallest number would be 0
        deviations = np.sqrt(np.maximum(exact.diagonal(), 0))
        units = np.outer(deviations, deviations)
        if not units.all() or (np.abs(exact - exact.T) > _ASYMMETRY * units).any():
            raise BasisError(
                "the covariance of the prior is not symmetric, or has a variance that is not above 0"
            )
        try:
            share = float((np.linalg.cholesky(exact / units).diagonal() ** 2).min())
        except np.linalg.LinAlgError:
            share = 0.0
        if share <= size * _ROUNDING:
            raise BasisError(
                "the covariance of the prior is not positive definite: the smallest pivot of its Cholesky "
                f"decomposition is {share:.3g} of its value's variance, and more than {size * _ROUNDING:.3g} "
                "is needed. Add some to the diagonal"
            )
        return cls(mean.astype(np.float64), (exact + exact.T) / 2)

    @cached_property
    def precision(self) -> NDArray[np.float64]:
        """The inverse of the covariance: float64 [n, n]."""
        return np.asarray(np.linalg.inv(self.covariance), np.float64)

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal of the numbers, for the states of runs."""
        parts = (part.astype("<f8").tobytes() for part in (self.mean, self.covariance))
        return hashlib.sha256(b"".join(parts)).hexdigest()


class Whitening:
    """Coordinates z, with v = L z, in which the prior's covariance is the same in all directions.

    L L' is the covariance of the prior divided by its mean variance, so that z has the unit of v. Without a
    prior, or with a covariance of c I, z is v, and the methods return the array that they are given.

    Attributes:
        matrix: L, float64 [n, n], lower triangular with a positive diagonal; None where v is z.
    """

    def __init__(self, prior: Prior | None = None) -> None:
        self.matrix: NDArray[np.float64] | None = None
        if prior is None:
            return
        size = len(prior.mean)
        scaled = prior.covariance / (math.fsum(prior.covariance.diagonal()) / size)
        if np.abs(scaled - np.eye(size)).max() > _ISOTROPIC:
            self.matrix = np.asarray(np.linalg.cholesky(scaled), np.float64)

    def values(self, z: NDArray[Any]) -> NDArray[Any]:
        """Return v = L z of coordinates, or of differences of them: float [..., n]."""
        return z if self.matrix is None else z.astype(np.float64) @ self.matrix.T

    def coordinates(self, v: NDArray[Any]) -> NDArray[Any]:
        """Return z with v = L z of values, or of differences of them: float [..., n]."""
        if self.matrix is None:
            return v
        rows = v.astype(np.float64).reshape(-1, v.shape[-1])
        return np.linalg.solve(self.matrix, rows.T).T.reshape(v.shape)

    def gradient(self, by_v: NDArray[Any]) -> NDArray[Any]:
        """Return a gradient with respect to z, float [..., n]: L' times the one with respect to v."""
        return by_v if self.matrix is None else by_v.astype(np.float64) @ self.matrix


class Projection(ABC):
    """A linear map from n numbers to R, float32 [M, p, q], on the leading directions of the factors.

    Attributes:
        modules: M module names in canonical order.
        shape: (p, q), outputs and inputs of R; (k, k) but for entries.
        size: n.
        descriptor: the canonical text that names the map (docs/FORMAT.md, "Projections").
        stored: P, float32 [n, M, k, k], where it cannot be regenerated, else None.
        prior: mean and covariance of the vectors that people want, or None. In no digest.
        layout: (M, p, q) where v is the entries of R, with the rows of each module where one has fewer than
            p (`wire.values.Entries`); () where it is not.
    """

    modules: tuple[str, ...]
    shape: Shape
    size: int
    descriptor: str
    stored: NDArray[np.float32] | None = None
    prior: Prior | None = None
    layout: Entries = ()

    @staticmethod
    def random(modules: Sequence[str], groups: int = NUMBERS, rank: int = RANK) -> Projection:
        """Return the paper's projection, tiled: R[m] = v[floor(m G / M)] P[m] for module m of M, P from
        `project`.

        `groups` is G = n, from 1 to M, `rank` k. BasisError: the modules are not in canonical order, or a
        number is out of its range.
        """
        count = len(modules)
        if list(modules) != canonical_order(modules):
            raise BasisError("the modules are not in canonical order: sort them with modules.canonical_order")
        if not is_whole(groups) or not 1 <= groups <= count:
            raise BasisError(f"{groups} groups for {count} modules: choose a whole number from 1 to {count}")
        return _Tied(modules, shape_of(rank), int(groups), 1, random_descriptor(groups, rank))

    @staticmethod
    def learned(
        modules: Sequence[str], p: ArrayLike, prior: tuple[ArrayLike, ArrayLike] | None = None
    ) -> Projection:
        """Return the projection along stored directions p, float32 [n, M, k, k]: R[m] = sum_i v[i] p[i, m].

        `prior` is mean [n] and covariance [n, n] of the vectors that people want. BasisError: p has another
        shape, is too large or not finite, or the prior does not fit.
        """
        with np.errstate(over="ignore"):  # infinity is refused below
            array = np.array(p, "<f4", order="C")  # a copy, whose bytes are hashed below
        count = len(modules)
        if array.ndim != 4 or array.shape[1] != count or array.shape[2] != array.shape[3] or not array.size:
            raise BasisError(
                f"projections of shape {array.shape} do not fit {count} modules: expected (n, {count}, k, k)"
            )
        if not np.isfinite(array).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise BasisError(f"entry {index} of the projection is {array[index]}: every entry must be finite")
        size, rank = len(array), array.shape[2]
        text = f"learned rank={rank} {hashlib.sha256(array.data).hexdigest()}"
        made = _Tied(modules, (rank, rank), 1, size, text, stored=array)
        if prior is not None:
            if size > limits.PRIOR_VALUES:
                raise BasisError(f"a prior is of at most {limits.PRIOR_VALUES:,} numbers, not {size:,}")
            made.prior = Prior.of(*prior, size)
        return made

    @staticmethod
    def entries(modules: Sequence[str], rank: int | Shape, rows: Sequence[int] = ()) -> Projection:
        """Return the projection whose v is R itself, module by module, row by row: n = M p q.

        A rank is k, for p = q = k, or (p, q). `rows` are how many each module has at most (`Factors.rows`):
        where it has fewer than p, v has its own alone, and R ends in zeros. BasisError: a number is out of
        its range.
        """
        return _Entries(modules, shape_of(rank), rows)

    @staticmethod
    def read(descriptor: str, modules: Sequence[str]) -> Projection:
        """Return the random projection of a descriptor. BasisError: it describes none."""
        found = _RANDOM.fullmatch(descriptor)
        if found is None:
            raise BasisError(
                f"{descriptor[:120]!r} is not a known projection: expected one such as "
                f"'{random_descriptor(NUMBERS)}', of any rank and groups"
            )
        return Projection.random(modules, int(found["groups"]), int(found["rank"]))

    def _check(self) -> None:
        if min(self.shape) < 1:
            raise BasisError(f"a projection has a rank of 1 or more, not {shape_name(self.shape)}")
        if max(self.shape) > limits.RANK or self.size > limits.VALUES:
            raise BasisError(
                f"a projection has at most rank {limits.RANK} and {limits.VALUES:,} numbers, not rank "
                f"{shape_name(self.shape)} and {self.size:,}"
            )

    def __repr__(self) -> str:
        prior = "" if self.prior is None else ", a prior"
        return f"Projection({self.descriptor[:64]}: {self.size} numbers, {len(self.modules)} modules{prior})"

    @property
    def rank(self) -> int:
        """q, the rank of the LoRA (A, B R)."""
        return self.shape[1]

    @property
    def kind(self) -> str:
        """`random`, `learned` or `entries`, for messages."""
        return self.descriptor.partition(" ")[0]

    @abstractmethod
    def R(self, v: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return R of numbers, float32 [n] -> [M, p, q]: summed in order in float64, rounded once, so that
        every implementation arrives at the same bits. Not finite where it passes float32."""

    @abstractmethod
    def adjoint(self, r: NDArray[Any]) -> NDArray[np.float64]:
        """Return the gradient by v of a gradient by R: [M, p, q] -> float64 [n]."""

    @property
    @abstractmethod
    def tied(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The map as R[m] = sum_i v[g(m) u + i] P[m, i]: g, int32 [M], and P, float32 [M, u, p, q]."""

    @cached_property
    def norm(self) -> float:
        """The Frobenius norm of the map z -> R (`whitening`): that of R, root mean square, for z = +-1."""
        by_number = np.moveaxis(self.tied[1], 1, -1)
        return float(np.linalg.norm(self.whitening.gradient(by_number)))

    @cached_property
    def whitening(self) -> Whitening:
        """The coordinates in which the prior is round; those of v itself where there is no prior."""
        return Whitening(self.prior)


class _Tied(Projection):
    """R[m] = sum_i v[g(m), i] P[m, i] over u numbers, g(m) = floor(m G / M): P regenerated, or stored."""

    def __init__(
        self,
        modules: Sequence[str],
        shape: Shape,
        groups: int,
        u: int,
        descriptor: str,
        stored: NDArray[np.float32] | None = None,
    ) -> None:
        self.modules, self.shape, self.descriptor = tuple(modules), shape, descriptor
        self.size, self._u, self.stored = groups * u, u, stored
        self._tying = (np.arange(len(modules)) * groups // len(modules)).astype(np.int32)
        self._check()
        entries = len(modules) * u * math.prod(shape)
        if entries > limits.PROJECTION_ENTRIES:
            raise BasisError(
                f"a projection has at most {limits.PROJECTION_ENTRIES:,} entries of P, not {entries:,}"
            )

    @cached_property
    def _p(self) -> NDArray[np.float32]:
        """P of every module: float32 [M, u, k, k]."""
        if self.stored is not None:
            return self.stored.swapaxes(0, 1)
        return np.stack([project(SEED, module, self._u, self.rank) for module in self.modules])

    def R(self, v: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = v.astype(np.float64).reshape(-1, self._u)[self._tying]
        total = np.zeros((len(self.modules), *self.shape))
        for i in range(self._u):
            total += rows[:, i, None, None] * self._p[:, i]
        with np.errstate(over="ignore"):
            return total.astype(np.float32)

    def adjoint(self, r: NDArray[Any]) -> NDArray[np.float64]:
        by_module = np.einsum("muab,mab->mu", self._p, r, dtype=np.float64)
        total = np.zeros((self.size // self._u, self._u))
        np.add.at(total, self._tying, by_module)
        return total.reshape(-1)

    @property
    def tied(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        return self._tying, self._p


class _Entries(Projection):
    """R[m] is v[m] in order, row by row, followed by rows of zeros where a module has fewer than p."""

    def __init__(self, modules: Sequence[str], shape: Shape, rows: Sequence[int]) -> None:
        self.modules, self.shape = tuple(modules), shape
        own = tuple(min(shape[0], each) for each in rows)
        self.layout = (len(self.modules), *shape, *(own if own and min(own) < shape[0] else ()))
        self.size, self.descriptor = number_of(self.layout), entries_descriptor(shape)
        self._check()

    def R(self, v: NDArray[np.float32]) -> NDArray[np.float32]:
        return spread(np.array(v, np.float32), self.layout)

    def adjoint(self, r: NDArray[Any]) -> NDArray[np.float64]:
        return gathered(np.asarray(r, np.float64), self.layout)

    @property
    def tied(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        if len(self.layout) > 3:
            raise BasisError(
                f"modules with fewer than {self.shape[0]} rows of R cannot be tied to groups: choose at most "
                f"{min(self.layout[3:])} outputs"
            )
        count, entries = len(self.modules), math.prod(self.shape)
        units = np.eye(entries, dtype=np.float32).reshape(entries, *self.shape)
        return np.arange(count, dtype=np.int32), np.broadcast_to(units, (count, *units.shape))

    @cached_property
    def norm(self) -> float:
        return math.sqrt(self.size)


def random_descriptor(groups: int | str, rank: int | str = RANK) -> str:
    """Return the descriptor of a random projection: seed, u and tying are the same in all of them."""
    return f"random rank={rank} seed={SEED} groups={groups} u=1 tying=tiled"


_RANDOM = re.compile(random_descriptor("(?P<groups>[1-9][0-9]{0,8})", "(?P<rank>[1-9][0-9]{0,8})"))


def entries_descriptor(shape: Shape) -> str:
    """Return the descriptor of all entries of R of a shape."""
    outputs, inputs = shape
    return f"entries rank={inputs}" if outputs == inputs else f"entries out={outputs} in={inputs}"
