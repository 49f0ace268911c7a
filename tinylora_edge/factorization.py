"""The rank-r truncated SVD of a weight that is streamed in row blocks.

A block Golub-Kahan (Krylov) iteration with full reorthogonalization. One pass over the rows of W does
both halves of a step, Y = W X and Z = W^T Y, while a row block is in cache, so a quantized or memory-
mapped weight is read once a pass and never held whole in float32. All passes together span the space
K = span{X, W^T W X, ...}; the Rayleigh-Ritz vectors of that space are the singular vectors.

Sources: G. Golub, F. Luk, M. Overton, "A block Lanczos method for computing the singular values and
corresponding singular vectors of a matrix", ACM TOMS 7(2), 1981; C. Musco, C. Musco, "Randomized block
Krylov methods for stronger and faster approximate SVD", NeurIPS 2015, arXiv 1504.05477.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from math import ceil, inf, log
from threading import Lock
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import BasisError

LEFT = "left"
"""How S is split: A = V^T, B = U S, as in the paper."""

AGREEMENT = 0.3
"""Largest |W v - s u| / s at which a weight counts as the one that was factorized.

Quantization to 2 bits gave up to 0.16; another row order or another model gives 1 and more.
"""

_AGREEMENT_ROWS = 512  # of a weight that are read at a time

_WHOLE_BYTES = 8 << 20  # of float32: a weight that fits is read only once, and kept
_BLOCK_BYTES = 2 << 20  # of float32 rows at a time otherwise: they stay in a core's cache for both products
_KEPT_BYTES = 768 << 20  # of float32 rows that are dear, of all weights that are factorized at the same time
_ROUNDING = 4 * float(np.finfo(np.float32).eps)  # of a product with W^T W, relative to its norm
_Array = NDArray[np.float32]


@runtime_checkable
class RowSource(Protocol):
    """A matrix that hands out its rows as float32, a block at a time.

    Two more are used where it has them: `read_into(start, stop, out)` returns the same rows, written into a
    float32 array, so that memory is used again from block to block; `dear` tells that rows cost more than
    reading them from memory as float32, so that they are kept there while there is room.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    def rows(self, start: int, stop: int) -> _Array:
        """Return rows start .. stop-1 as float32 [stop - start, in]."""


class _TruncatedSVD(NamedTuple):
    U: _Array
    S: _Array
    V: _Array


class TruncatedSVD(_TruncatedSVD):
    """The factors U [out, r], S [r] descending and V [in, r], all float32, and how well they were reached.

    Attributes:
        residual: max(|W v - s u|, |W^T u - s v|) / s of the worst triplet; a value that float32 cannot tell
            from 0 beside the largest one counts as its rounding.
        passes: how often W was read.
        converged: `residual` met the tolerance, or the smallest value is 0 as far as float32 can tell.
    """

    residual: float
    passes: int
    converged: bool


def truncated_svd(
    weight: ArrayLike | RowSource,
    rank: int,
    *,
    tol: float = 1e-3,
    max_passes: int = 40,
    block: int | None = None,
    seed: int = 0,
) -> TruncatedSVD:
    """Return the `rank` largest singular triplets of a weight.

    Signs are canonical: in each right singular vector the entry of largest magnitude is positive.
    The result is deterministic for given input and seed on one machine; between machines and BLAS
    libraries nearly equal singular values may come out as another pair.

    Args:
        weight: [out, in], an array of any float dtype or a `RowSource`.
        rank: r, 1 <= r <= min(out, in).
        tol: stop when the two-sided residual is at most this.
        max_passes: stop after this many passes over W, whatever was reached.
        block: vectors a pass; by default rank + 6. More of them need fewer passes, each of them longer.
        seed: of the random start block.

    Raises:
        BasisError: the rank does not fit the shape, or the weight holds NaN or infinity.
    """
    source = weight if isinstance(weight, RowSource) else _ArrayRows(weight)
    n_out, n_in = source.shape
    limit = min(n_out, n_in)
    if not 1 <= rank <= limit:
        raise BasisError(f"rank {rank} does not fit a weight of shape {n_out} x {n_in}: choose 1 to {limit}")
    with closing(_RowBlocks(source)) as blocks:
        krylov = _Krylov(blocks, source.shape, rank, min(max(rank, block or rank + 6), n_in), seed)
        return _iterate(krylov, tol, max_passes)


def _iterate(krylov: _Krylov, tol: float, max_passes: int) -> TruncatedSVD:
    passes_to_check = 3  # fewer never converge on real weights
    previous = (0, 1.0)
    while True:
        krylov.step()
        last = krylov.full or krylov.passes >= max_passes
        if krylov.passes < passes_to_check and not last and not krylov.closed:
            continue
        estimate = krylov.estimate_residual()
        if estimate <= tol or last or krylov.closed:
            result = krylov.triplets()
            # relative to a value of 0 no residual is small; float32 can say no more than that it is 0
            result.converged = result.residual <= tol or bool(result.S[-1] <= _ROUNDING * result.S[0])
            if result.converged or last:
                return result
        until = 1 if krylov.streams else _passes_until(tol, previous, (krylov.passes, estimate))
        passes_to_check = krylov.passes + until
        previous = (krylov.passes, estimate)


def factors(svd: TruncatedSVD) -> tuple[_Array, _Array]:
    """Return A = V^T [r, in] and B = U S [out, r], float32, of a module's truncated weight."""
    return np.ascontiguousarray(svd.V.T), svd.U * svd.S


class _Krylov:
    """The Krylov space of W^T W grown from a random block, with W times each of its vectors.

    Vectors are kept as rows: Q [size, in] is orthonormal, Y = Q W^T [size, out], Z = Y W [size, in].
    """

    def __init__(self, blocks: _RowBlocks, shape: tuple[int, int], rank: int, block: int, seed: int) -> None:
        self.passes = self.size = 0
        self.closed = False  # W^T W maps the space into itself: its Ritz triplets are exact
        self._scale = 0.0
        self._blocks = blocks
        self.streams = blocks.streams  # a pass is then dearer than a look at what it brought
        self._rank = rank
        self._block = block
        n_out, n_in = shape
        self._q = np.empty((0, n_in), np.float32)
        self._y = np.empty((0, n_out), np.float32)
        self._z = np.empty((0, n_in), np.float32)
        self._gram = np.empty((0, 0))
        self._rng = np.random.default_rng(seed)
        start = self._rng.standard_normal((n_in, block), dtype=np.float32)
        self._next = np.ascontiguousarray(np.linalg.qr(start)[0].T)
        self._beta = np.empty((0, 0))
        self._coefficients = np.empty((0, rank))

    @property
    def full(self) -> bool:
        """Whether the space is all there is."""
        return self.size == self._q.shape[1]

    def step(self) -> None:
        """Read W once: extend the space by the pending block and orthogonalize the one after it."""
        begin, end = self.size, self.size + len(self._next)
        self._reserve(end)
        self._q[begin:end] = self._next
        y, z = self._y[begin:end], self._z[begin:end]
        with np.errstate(over="ignore", invalid="ignore"):  # _extend_gram refuses what comes of it
            self._blocks.fused_pass(self._next, y, z)
            self.passes += 1
            self.size = end
            self._extend_gram(begin, end)
        self._orthonormalize(z)

    def _orthonormalize(self, z: _Array) -> None:
        """Set the next block to an orthonormal basis of z outside Q, and beta to its coefficients.

        Once is not enough (Giraud et al., 2005), and the second time must follow the normalization:
        where columns of the remainder are nearly dependent, it is normalizing that brings Q back in.
        Directions in which nothing but rounding is left are random ones instead, so that a weight of
        low rank neither repeats Q nor stops short of a value whose vectors the start block missed.
        """
        q = self._q[: self.size]
        room = min(self._block, q.shape[1] - self.size)
        self._scale = max(self._scale, float(np.linalg.norm(z.astype(np.float64), axis=1).max()))
        basis, beta = np.linalg.qr((z - (z @ q.T) @ q).T)
        left, strength, right = np.linalg.svd(beta)
        basis, beta = (basis @ left)[:, :room], (strength[:, None] * right)[:room]
        lost = strength[:room] <= _ROUNDING * self._scale
        self.closed = bool(lost.all())
        basis[:, lost] = self._rng.standard_normal((len(basis), int(lost.sum())), dtype=np.float32)
        beta[lost] = 0
        basis -= q.T @ (q @ basis)
        if room and strength[room - 1] < 0.01 * self._scale:  # what was taken away needs normalizing again
            for _ in range(2 if lost.any() else 1):
                basis, change = np.linalg.qr(basis)
                beta = change @ beta
                basis -= q.T @ (q @ basis)
        self._next = np.ascontiguousarray(basis.T)
        self._beta = beta.astype(np.float64)

    def estimate_residual(self) -> float:
        """The worst |W^T u - s v| / s of the Ritz triplets, from the Lanczos relation alone."""
        values, vectors = np.linalg.eigh(self._gram)
        values = values[: -self._rank - 1 : -1]
        self._coefficients = vectors[:, : -self._rank - 1 : -1]
        tail = self._beta @ self._coefficients[self.size - self._beta.shape[1] :]
        scale = np.maximum(values, np.finfo(np.float64).tiny)
        return float(np.max(np.linalg.norm(tail, axis=0) / scale))

    def triplets(self) -> TruncatedSVD:
        """The Ritz triplets, their signs made canonical, and their measured residual."""
        c = self._coefficients
        wv = self._y[: self.size].T.astype(np.float64) @ c  # W v: [out, r]
        # A second Rayleigh-Ritz on r vectors in float64 mends what squaring into the Gram matrix lost.
        u, s, rotation = np.linalg.svd(wv, full_matrices=False)
        c = c @ rotation.T
        v = self._q[: self.size].T.astype(np.float64) @ c
        wtwv = self._z[: self.size].T.astype(np.float64) @ c
        scale = np.maximum(s, _ROUNDING * s[0] or 1.0)
        right = np.linalg.norm(wtwv / scale - v * s, axis=0)
        left = np.linalg.norm(wv @ rotation.T - u * s, axis=0)
        worst = np.maximum(left, right) / scale
        v /= np.linalg.norm(v, axis=0)
        flip = np.where(v[np.abs(v).argmax(axis=0), np.arange(v.shape[1])] < 0, -1.0, 1.0)
        result = TruncatedSVD(
            (u * flip).astype(np.float32), s.astype(np.float32), (v * flip).astype(np.float32)
        )
        result.residual, result.passes = float(worst.max()), self.passes
        return result

    def _extend_gram(self, begin: int, end: int) -> None:
        rows = (self._y[:end] @ self._y[begin:end].T).astype(np.float64)
        gram = np.empty((end, end))
        gram[:begin, :begin] = self._gram
        gram[:, begin:] = rows
        gram[begin:, :] = rows.T
        if not (np.isfinite(rows).all() and np.isfinite(self._z[begin:end]).all()):
            raise BasisError("the weight holds NaN, infinity, or values too large for float32")
        self._gram = gram

    def _reserve(self, size: int) -> None:
        capacity = len(self._q)
        if size <= capacity:
            return
        grow = max(size, 2 * capacity, 8 * self._block) - capacity
        for name in ("_q", "_y", "_z"):
            old: _Array = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.empty((grow, old.shape[1]), np.float32)]))


class _Room:
    """Memory for rows that are dear, shared by all threads that factorize."""

    def __init__(self, nbytes: int) -> None:
        self._free, self._lock = nbytes, Lock()

    def take(self, nbytes: int) -> bool:
        with self._lock:
            fits = nbytes <= self._free
            self._free -= nbytes if fits else 0
            return fits

    def give_back(self, nbytes: int) -> None:
        with self._lock:
            self._free += nbytes


_room = _Room(_KEPT_BYTES)


class _RowBlocks:
    """A stream of row blocks, which keeps a weight that is small enough, or dear where there is room."""

    def __init__(self, source: RowSource) -> None:
        n_out, n_in = source.shape
        self._source = source
        self._nbytes = 4 * n_out * n_in
        small = self._nbytes <= _WHOLE_BYTES
        self._taken = not small and getattr(source, "dear", False) and _room.take(self._nbytes)
        self.streams = not (small or self._taken)
        self._step = n_out if small else max(1, min(n_out, _BLOCK_BYTES // (4 * n_in)))
        self._whole = source.rows(0, n_out) if small else None
        self._kept = np.empty((n_out, n_in), np.float32) if self._taken else None
        # One buffer for every block of every pass: memory that is new to a process costs page faults,
        # which took as long as the arithmetic.
        self._buffer = np.empty((self._step, n_in), np.float32) if self.streams else None

    def close(self) -> None:
        if self._taken:
            _room.give_back(self._nbytes)

    def fused_pass(self, x: _Array, y: _Array, z: _Array) -> None:
        """Write y = x W^T and z = y W for row vectors x [b, in], y [b, out], z [b, in]."""
        z[:] = 0
        part, product = np.empty((self._step, len(x)), np.float32), np.empty_like(z)
        for start, rows in self._iterate():
            some = part[: len(rows)]
            np.matmul(rows, x.T, out=some)
            y[:, start : start + len(rows)] = some.T
            np.matmul(some.T, rows, out=product)
            z += product

    def _iterate(self) -> Iterator[tuple[int, _Array]]:
        n_out = self._source.shape[0]
        for start in range(0, n_out, self._step):
            stop = min(start + self._step, n_out)
            yield start, self._whole[start:stop] if self._whole is not None else self._read(start, stop)
        if self._whole is None:
            self._whole = self._kept

    def _read(self, start: int, stop: int) -> _Array:
        out = self._kept[start:stop] if self._kept is not None else self._buffer
        assert out is not None
        read_into = getattr(self._source, "read_into", None)
        rows: _Array = (read_into or self._rows_of)(start, stop, out[: stop - start])
        if self._kept is not None and rows.base is not self._kept:
            out[:] = rows
        return rows

    def _rows_of(self, start: int, stop: int, out: _Array) -> _Array:
        return self._source.rows(start, stop)


class _ArrayRows:
    """A `RowSource` over an array of any float dtype."""

    def __init__(self, weight: ArrayLike) -> None:
        self._weight = np.asarray(weight)
        if self._weight.ndim != 2 or self._weight.dtype.kind != "f":
            raise BasisError(
                f"a weight is a matrix of floats, not {self._weight.dtype} of shape {self._weight.shape}"
            )
        self.shape: tuple[int, int] = self._weight.shape

    def rows(self, start: int, stop: int) -> _Array:
        with np.errstate(over="ignore"):
            return np.asarray(self._weight[start:stop], dtype=np.float32)


def _passes_until(tol: float, before: tuple[int, float], now: tuple[int, float]) -> int:
    """How many passes to go before looking again: half of the way that the last two residuals promise."""
    rate = log(max(before[1] / now[1], 1.0001)) / (now[0] - before[0]) if now[1] > 0 else 1.0
    return max(1, min(4, ceil(log(max(now[1] / tol, 1.0)) / rate / 2)))


def gap(product: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return max |W v - s u| / |s u| over triplets, of W v and s u [rows, r]; inf where not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.linalg.norm(product - expected, axis=0) / np.linalg.norm(expected, axis=0)
    return float(found.max()) if np.isfinite(found).all() else inf


def distance(a: NDArray[np.float32], b: NDArray[np.float32], matrices: Sequence[RowSource]) -> float:
    """Return how far a weight is from its factors: `gap` of the worst matrix; inf where shapes differ.

    A, [r, in], has orthonormal rows; B, [out, r], has its rows in the weight's order; both may have a leading
    axis for experts, of whose `matrices` the weight then has one each.
    """
    shape = (b.shape[-2], a.shape[-1])
    if any(matrix.shape != shape for matrix in matrices) or len(matrices) != a[..., 0, 0].size:
        return inf
    worst = 0.0
    pairs = zip(a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:]), matrices, strict=True)
    for one_a, one_b, matrix in pairs:
        v = one_a.astype(np.float32).T
        starts = range(0, shape[0], _AGREEMENT_ROWS)
        product = np.concatenate([matrix.rows(i, min(i + _AGREEMENT_ROWS, shape[0])) @ v for i in starts])
        worst = max(worst, gap(product, one_b.astype(np.float32)))
    return worst
