"""The truncated SVD of a weight, and the check that factors were made of a given weight.

The SVD is a randomized block Krylov method. A random block X is multiplied with W^T W again and again; the
products span a Krylov space, in which the Rayleigh-Ritz method finds the singular vectors.

Source: C. Musco, C. Musco, "Randomized block Krylov methods for stronger and faster approximate singular
value decomposition", NeurIPS 2015, arXiv 1504.05477.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import BasisError
from .modules import Heads, inverse, parse, row_orders

LEFT = "left"  # the factorization in which S belongs to B: A = V^T, B = U S, as in the paper

# The largest |W v - s u| / s at which a weight counts as the one that was factorized. Quantization to 2 bits
# gave up to 0.16; another order of rows, or another model, gives 1 or more.
AGREEMENT = 0.3

_OVERSAMPLING = 6  # vectors that a block has beyond the rank
_WIDEST = 24  # vectors of a block at most: at rank 64, wider ones multiply W with half as many again
_WHOLE_BYTES = 8 << 20  # a weight of at most this size is not cut into pieces
_CACHED_BYTES = 2 << 20  # size of a piece, which then stays in a core's cache for both products
_ROUNDING = 4 * float(np.finfo(np.float32).eps)  # error of a product with W^T W, relative to its norm
_Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TruncatedSVD:
    """The factors U [out, r], S [r] descending and V [in, r], all float32, and how well they were reached.

    It unpacks into U, S and V.

    Attributes:
        residual: max(|W v - s u|, |W^T u - s v|) / s of the worst triplet; a value that float32 cannot tell
            from 0 beside the largest one counts as its rounding.
        passes: how often W was multiplied.
        converged: `residual` met the tolerance, or the smallest value is 0 as far as float32 can tell.
    """

    U: _Array
    S: _Array
    V: _Array
    residual: float
    passes: int
    converged: bool

    def __iter__(self) -> Iterator[_Array]:
        return iter((self.U, self.S, self.V))


def truncated_svd(weight: ArrayLike, rank: int, *, tol: float = 1e-3, max_passes: int = 40) -> TruncatedSVD:
    """Return the `rank` largest singular triplets of a weight.

    Signs are canonical: in each right singular vector the entry of largest magnitude is positive.
    The result is deterministic for given input on one machine; between machines and BLAS
    libraries nearly equal singular values may come out as another pair.

    Args:
        weight: [out, in], of any float dtype; float32, row by row, is not copied.
        tol: stop when the residual is at most this.
        max_passes: stop after this many, whatever was reached.

    BasisError: the rank does not fit the shape, or the weight holds NaN or infinity.
    """
    array = np.asarray(weight)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise BasisError(f"a weight is a matrix of floats, not {array.dtype} of shape {array.shape}")
    with np.errstate(over="ignore"):  # infinity is refused below
        w: _Array = np.ascontiguousarray(array, np.float32)
    n_out, n_in = w.shape
    if not 1 <= rank <= min(n_out, n_in):
        raise BasisError(
            f"rank {rank} does not fit a weight of shape {n_out} x {n_in}: choose 1 to {min(n_out, n_in)}"
        )
    width = min(rank + _OVERSAMPLING, _WIDEST, n_in)
    start = np.random.default_rng(0).standard_normal((n_in, width), dtype=np.float32)
    block: _Array = np.ascontiguousarray(np.linalg.qr(start)[0].T)
    # Rows are vectors: Q is an orthonormal basis of the space, Y = Q W^T, Z = Y W.
    q: _Array = np.empty((0, n_in), np.float32)
    ys, zs = list[_Array](), list[_Array]()
    # `look` is the pass after which the error is estimated first: fewer never suffice for real weights.
    gram, scale, look = np.empty((0, 0)), 0.0, max(3, -(-rank // width))
    while True:
        y, z = _multiply(w, block)
        if not np.isfinite(z).all():
            raise BasisError("the weight holds NaN, infinity, or values too large for float32")
        q = np.concatenate([q, block])
        ys.append(y)
        zs.append(z)
        passes = len(ys)
        column = np.concatenate([each @ y.T for each in ys]).astype(np.float64)  # the new one of Y Y^T
        gram = np.block([[gram, column[: len(gram)]], [column.T]])
        scale = max(scale, float(np.linalg.norm(z.astype(np.float64), axis=1).max()))
        block, beta = _next_block(z - (z @ q.T) @ q, q, width, scale)
        # W^T W maps the space into itself, but for rounding: another block would hold rounding errors alone.
        closed = len(gram) >= rank and bool(np.linalg.norm(beta) <= _ROUNDING * scale)
        last = passes >= max_passes or not len(block)
        if passes < look and not last and not closed:
            continue
        values, vectors = np.linalg.eigh(gram)
        values, vectors = values[: -rank - 1 : -1], vectors[:, : -rank - 1 : -1]
        # |W^T W v - s^2 v| is what W^T W v has outside of the space.
        outside = np.linalg.norm(beta @ vectors[-beta.shape[1] :], axis=0)
        estimate = float(np.max(outside / np.maximum(values, np.finfo(np.float64).tiny)))
        if last or closed or estimate <= tol:
            (U, S, V), residual = _triplets(q, np.concatenate(ys), np.concatenate(zs), vectors)
            converged = residual <= tol or bool(S[-1] <= _ROUNDING * S[0])
            if last or converged:
                return TruncatedSVD(U, S, V, residual, passes, converged)
        look = passes + (3 if estimate > 20 * tol else 1)


def factors(svd: TruncatedSVD) -> tuple[_Array, _Array]:
    """Return A = V^T [r, in] and B = U S [out, r], float32, of a module's truncated weight."""
    return np.ascontiguousarray(svd.V.T), svd.U * svd.S


def _multiply(w: _Array, x: _Array) -> tuple[_Array, _Array]:
    """Return y = x W^T and z = y W of row vectors x [b, in]. W is read once, piece by piece."""
    y, z = np.empty((len(x), len(w)), np.float32), np.zeros_like(x)
    step = len(w) if w.nbytes <= _WHOLE_BYTES else max(1, _CACHED_BYTES // (4 * w.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(w), step):
            rows = w[start : start + step]
            product = rows @ x.T
            y[:, start : start + step] = product.T
            z += product.T @ rows
    return y, z


def _next_block(
    rest: NDArray[Any], q: _Array, width: int, scale: float
) -> tuple[_Array, NDArray[np.float64]]:
    """Return an orthonormal basis of what a block has outside of q, and the block's coefficients in it.

    The block is orthogonalized against q twice (Giraud et al., 2005). The second time follows the
    normalization, which brings parts of q back where the rows of `rest` are nearly dependent.
    """
    room = min(width, q.shape[1] - len(q))
    basis, beta = np.linalg.qr(rest.T)
    left, strength, right = np.linalg.svd(beta)  # where there is no room for all, the strongest ones stay
    basis, beta = (basis @ left)[:, :room], (strength[:, None] * right)[:room]
    basis -= q.T @ (q @ basis)
    # A weak direction may have been made of q's parts, which are gone now: normalize again.
    if room and strength[room - 1] < 0.01 * scale:
        for _ in range(2):
            basis, change = np.linalg.qr(basis)
            beta = change @ beta
            basis -= q.T @ (q @ basis)
    return np.ascontiguousarray(basis.T), beta.astype(np.float64)


def _triplets(
    q: _Array, y: _Array, z: _Array, vectors: NDArray[np.float64]
) -> tuple[tuple[_Array, _Array, _Array], float]:
    """Return the Ritz triplets U, S and V, their signs canonical, and their residual."""
    wv = y.T.astype(np.float64) @ vectors  # W v: [out, r]
    # The Gram matrix squares the condition number. A second Rayleigh-Ritz, of r vectors in float64, restores
    # the digits that this lost.
    u, s, rotation = np.linalg.svd(wv, full_matrices=False)
    vectors = vectors @ rotation.T
    v, wtwv = (each.T.astype(np.float64) @ vectors for each in (q, z))
    scale = np.maximum(s, _ROUNDING * s[0] or 1.0)
    right = np.linalg.norm(wtwv / scale - v * s, axis=0)
    left = np.linalg.norm(wv @ rotation.T - u * s, axis=0)
    v /= np.linalg.norm(v, axis=0)
    flip = np.where(v[np.abs(v).argmax(axis=0), np.arange(v.shape[1])] < 0, -1.0, 1.0)
    U, S, V = (part.astype(np.float32) for part in (u * flip, s, v * flip))
    return (U, S, V), float((np.maximum(left, right) / scale).max())


def gap(product: _Array, expected: _Array) -> float:
    """Return the largest |W v - s u| / |s u| over triplets; inf where one is not finite.

    `product` is W v and `expected` s u, each [rows, r]. Where one has fewer triplets, only those that both
    have are compared.
    """
    count = min(product.shape[1], expected.shape[1])
    product, expected = product[:, :count], expected[:, :count]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.linalg.norm(product - expected, axis=0) / np.linalg.norm(expected, axis=0)
    return float(found.max()) if np.isfinite(found).all() else inf


def fitting_rows(
    module: str, b: _Array, heads: Heads, away: Callable[[_Array], float], *, back: bool = False
) -> tuple[_Array | None, float]:
    """Return B with its rows in the order of a weight, and its `gap` to the weight.

    The order is the first of `row_orders` whose gap is at most `AGREEMENT`. So the weight itself decides, and
    no list of architectures has to be right. Where no order fits, return None and the smallest gap.

    Args:
        b: [.., out, p].
        away: B in some order -> its gap.
        back: the rows of B are in GGUF's order, and those of the weight may be in Hugging Face's; if False,
            the other way round.
    """
    orders = row_orders(parse(module)[1], b.shape[-2], heads)
    least = inf
    for order in map(inverse, orders) if back else orders:
        rows = np.take(b, order, axis=-2)
        if (found := away(rows)) <= AGREEMENT:
            return rows, found
        least = min(least, found)
    return None, least
