"""The basis: everything frozen about an adaptation of one model, and its digest."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import limits
from .errors import BasisError, NonFiniteError, VectorError
from .factorization import LEFT
from .modules import parse
from .prior import Prior, Whitening, check_prior
from .projection import EXPLICIT, IRWIN_HALL, project, tie

FactorArray = NDArray[np.float32] | NDArray[np.float16]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Basis:
    """Factors, projection seed, tying, rank and u: what turns a micro-vector into a change of weights.

    For the module m, `W' = W + B[m] R[m] A[m]` with `R[m] = sum_i v[tying[m], i] P[m][i]`.

    Attributes:
        architecture: the model's `general.architecture`, such as `llama`.
        modules: M module names in canonical order.
        rank: r, the rank of the factors.
        u: entries of v that one module reads.
        groups: G, the rows of v.
        seed: projection seed, 0 <= seed < 2**64.
        factorization: `left`: all of S is in B.
        projection: `irwin-hall-12/splitmix64` (regenerated) or `explicit` (stored).
        scheme: name of the tying scheme.
        tying: int32 [M], the group of each module.
        a: for each module A, float32 or float16 [r, in], or [experts, r, in].
        b: for each module B, float32 or float16 [out, r], or [experts, out, r].
        p: for each module P, float32 [u, r, r]; only with `explicit` projections, else empty.
        base_fingerprints: the deployed forms of the model that this basis was exported for.
        prior_mean: float32 [G*u], the mean of vectors that people want, or None. Not in the digest.
        prior_covariance: float32 [G*u, G*u], their covariance; there where the mean is.

    Raises:
        BasisError: the parts do not fit each other.
    """

    architecture: str
    modules: tuple[str, ...]
    rank: int
    u: int
    groups: int
    seed: int
    factorization: str
    projection: str = IRWIN_HALL
    scheme: str
    tying: NDArray[np.int32]
    a: tuple[FactorArray, ...] = field(repr=False)
    b: tuple[FactorArray, ...] = field(repr=False)
    p: tuple[NDArray[np.float32], ...] = field(default=(), repr=False)
    base_fingerprints: tuple[str, ...] = field(default=(), repr=False)
    prior_mean: NDArray[np.float32] | None = field(default=None, repr=False)
    prior_covariance: NDArray[np.float32] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._check_sizes()
        count = len(self.modules)
        if count == 0 or len(set(self.modules)) != count:
            raise BasisError(f"a basis needs distinct modules, but got {count} names, some of them twice")
        if self.factorization != LEFT:
            raise BasisError(f"unknown factorization {self.factorization!r}: this version knows '{LEFT}'")
        if self.projection not in (IRWIN_HALL, EXPLICIT):
            raise BasisError(
                f"unknown projection {self.projection!r}: this version knows '{IRWIN_HALL}' and '{EXPLICIT}'"
            )
        expected_p = count if self.projection == EXPLICIT else 0
        sizes = (len(self.tying), len(self.a), len(self.b), len(self.p))
        if sizes != (count, count, count, expected_p):
            raise BasisError(
                f"{count} modules need as many groups, A, B and {expected_p} P, but there are {sizes}"
            )
        read = set(self.tying.tolist())
        if min(read) < 0 or max(read) >= self.groups or len(read) < self.groups:
            raise BasisError(
                f"the tying map names {len(read)} groups from {min(read)} to {max(read)}, but the basis has "
                f"groups 0 to {self.groups - 1}, of which a module must read each"
            )
        for position, module in enumerate(self.modules):
            self._check_factors(module, position)
        check_prior(self.prior_mean, self.prior_covariance, self.size)

    def _check_sizes(self) -> None:
        """Refuse what no basis needs, before anything is made of it (`limits`)."""
        if min(self.rank, self.u, self.groups) < 1 or not 0 <= self.seed < 1 << 64:
            raise BasisError(
                f"rank {self.rank}, u {self.u}, groups {self.groups}, seed {self.seed}: rank, u and groups "
                "must be above 0, and the seed an unsigned 64-bit integer"
            )
        entries = len(self.modules) * self.u * self.rank**2
        for what, found, most in (
            ("modules", len(self.modules), limits.MODULES),
            ("as its rank", self.rank, limits.RANK),
            (f"values ({self.groups} groups x u {self.u})", self.size, limits.VALUES),
            ("entries of its projections", entries, limits.PROJECTION_ENTRIES),
            ("bytes in a module's name", max(map(len, self.modules), default=0), limits.NAME_BYTES),
            ("values with a prior", self.size * (self.prior_mean is not None), limits.PRIOR_VALUES),
        ):
            if found > most:
                raise BasisError(f"a basis has at most {most:,} {what}, not {found}")

    def _check_factors(self, module: str, position: int) -> None:
        parse(module)
        a, b, rest = self.a[position], self.b[position], self.p[position : position + 1]
        for array, widths in ((a, (2, 4)), (b, (2, 4)), *((p, (4,)) for p in rest)):
            if array.dtype.kind != "f" or array.itemsize not in widths:
                raise BasisError(
                    f"an array of {module} has dtype {array.dtype}: factors are float32 or float16, "
                    "projections float32"
                )
        fits = a.ndim == b.ndim and a.ndim in (2, 3) and a.shape[-2] == b.shape[-1] == self.rank
        if not fits or a.shape[:-2] != b.shape[:-2]:
            raise BasisError(
                f"factors of {module} have shapes {a.shape} and {b.shape}, not those of rank {self.rank}: "
                "expected A [r, in] and B [out, r], or the same with one leading axis for experts"
            )
        expected = (self.u, self.rank, self.rank)
        if rest and rest[0].shape != expected:
            raise BasisError(f"the projection of {module} has shape {rest[0].shape}, expected {expected}")

    def __repr__(self) -> str:
        return (
            f"Basis({self.id}: {self.architecture}, {len(self.modules)} modules, rank {self.rank}, "
            f"u {self.u}, {self.groups} groups {self.scheme}, seed {self.seed}, {self.projection}, "
            f"{self.factorization}, {len(self.base_fingerprints)} bases"
            f"{'' if self.prior_mean is None else ', a prior'})"
        )

    @property
    def size(self) -> int:
        """Number of values of a micro-vector: G * u."""
        return self.groups * self.u

    @cached_property
    def prior(self) -> Prior | None:
        """Mean and covariance in float64, the covariance exactly symmetric; None where there is no prior."""
        if self.prior_mean is None or self.prior_covariance is None:
            return None
        covariance = self.prior_covariance.astype(np.float64)
        return Prior(self.prior_mean.astype(np.float64), (covariance + covariance.T) / 2)

    @cached_property
    def whitening(self) -> Whitening:
        """The coordinates in which the prior is round; those of v itself where there is no prior."""
        return Whitening(self.prior_covariance)

    @property
    def id(self) -> str:
        """The first 4 bytes of the digest in hexadecimal: how a frame names its basis."""
        return self.digest[:8]

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hexadecimal of what defines the function v -> dW (docs/FORMAT.md, "Digest")."""
        total = hashlib.sha256(b"tinylora basis 1\n")
        for text in (self.architecture, self.projection, self.factorization):
            total.update(packed_text(text))
        total.update(struct.pack("<IIIQI", self.rank, self.u, self.groups, self.seed, len(self.modules)))
        for position, module in enumerate(self.modules):
            part = hashlib.sha256(packed_text(module))
            part.update(struct.pack("<I", self.tying[position]))
            for array in (self.a[position], self.b[position], *self.p[position : position + 1]):
                part.update(struct.pack(f"<II{array.ndim}Q", array.itemsize, array.ndim, *array.shape))
                part.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
            total.update(part.digest())
        return total.hexdigest()

    @cached_property
    def projections(self) -> NDArray[np.float32]:
        """P of every module: float32 [M, u, r, r]."""
        if self.p:
            return np.stack(self.p).astype(np.float32, copy=False)
        return np.stack([project(self.seed, module, self.u, self.rank) for module in self.modules])

    def values(self, v: Any) -> NDArray[np.float32]:
        """Return the values of v, a micro-vector or G*u numbers in any shape, as float32 [G, u].

        Raises:
            VectorError: v has another number of values.
            NonFiniteError: a value is NaN or infinite.
        """
        with np.errstate(over="ignore"):  # infinity is refused below
            array = np.asarray(getattr(v, "values", v), dtype=np.float32)
        if array.size != self.size:
            raise VectorError(
                f"the vector has {array.size} values, but basis {self.id} takes "
                f"{self.size} ({self.groups} groups x u {self.u})"
            )
        if not np.isfinite(array).all():
            index = int(np.flatnonzero(~np.isfinite(array.reshape(-1)))[0])
            raise NonFiniteError(
                f"value {index} of the vector is {array.reshape(-1)[index]}: every value must be finite"
            )
        return array.reshape(self.groups, self.u)

    def R(self, v: Any) -> NDArray[np.float32]:
        """Return R of every module: float32 [M, r, r]. Arguments and errors: see `values`.

        The sum over i runs in order in float64 (each product is exact there) and is rounded once, so
        that every implementation arrives at the same bits.
        """
        rows = self.values(v).astype(np.float64)[self.tying]
        total = np.zeros((len(self.modules), self.rank, self.rank))
        for i in range(self.u):
            total += rows[:, i, None, None] * self.projections[:, i]
        with np.errstate(over="ignore"):
            return total.astype(np.float32)

    def delta(self, module: str, v: Any) -> NDArray[np.float32]:
        """Return dW = B R A of one module: [out, in] or [experts, out, in]; see `index` and `values`."""
        position = self.index(module)
        r = self.R(v)[position]
        a, b = (np.asarray(f[position], dtype=np.float32) for f in (self.a, self.b))
        delta: NDArray[np.float32] = (b @ r) @ a
        return delta

    def index(self, module: str) -> int:
        """Return the position of a module; BasisError where the basis does not adapt it."""
        try:
            return self.modules.index(module)
        except ValueError:
            raise BasisError(
                f"basis {self.id} does not adapt {module!r}; it adapts {len(self.modules)} modules, "
                f"from {self.modules[0]} to {self.modules[-1]}"
            ) from None

    def with_projections(
        self, p: ArrayLike, *, groups: int | None = None, prior: tuple[ArrayLike, ArrayLike] | None = None
    ) -> Basis:
        """Return a basis of the same factors with explicit projections, such as learned ones.

        The seed stays: it then means nothing, but the digest covers it.

        Args:
            p: the projections, in one of two forms. Dense, float32 [n, M, r, r]: value i of the vector adds
                p[i, m] to R of module m; u = n, one group. One a module, float32 [M, r, r]: R of module m
                is p[m] times the value of its group; u = 1.
            groups: with one a module, tie the modules into so many tiles; by default the tying stays.
            prior: mean [n] and covariance [n, n] of the values.

        Raises:
            BasisError: p has another shape or is not finite, the groups cannot be made, or the prior does
                not fit.
        """
        with np.errstate(over="ignore"):  # infinity is refused below
            array = np.asarray(p, np.float32)
            mean, covariance = (None, None) if prior is None else (np.array(x, np.float32) for x in prior)
        count, square = len(self.modules), (self.rank, self.rank)
        dense = array.ndim == 4
        if array.ndim not in (3, 4) or array.shape[-3:] != (count, *square) or len(array) == 0:
            raise BasisError(
                f"projections of shape {array.shape} do not fit {count} modules of rank {self.rank}: "
                f"expected {('n', count, *square)}, or {(count, *square)} for one a module"
            )
        if not np.isfinite(array).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise BasisError(
                f"entry {index} of the projections is {array[index]}: every entry must be finite"
            )
        scheme, tying = self.scheme, self.tying
        if dense:
            scheme, tying = "full", np.zeros(count, np.int32)
        elif groups is not None:
            scheme, tying = "tiled", tie(self.modules, "tiled", groups)
        by_module = array.swapaxes(0, 1) if dense else array[:, None]
        return replace(
            self,
            u=by_module.shape[1],
            groups=int(tying.max()) + 1,
            projection=EXPLICIT,
            scheme=scheme,
            tying=tying,
            p=tuple(np.array(one) for one in by_module),
            prior_mean=mean,
            prior_covariance=covariance,
        )

    def kinds(self) -> Sequence[str]:
        """The kinds of module that the basis adapts, in the order of their first appearance."""
        return list(dict.fromkeys(parse(module)[1] for module in self.modules))


def packed_text(value: str) -> bytes:
    """UTF-8 with its length before it, u32: how digest and fingerprint take strings in."""
    data = value.encode()
    return struct.pack("<I", len(data)) + data
