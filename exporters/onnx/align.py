"""Whether a graph's weights are those that were factorized, and in which order its rows lie.

Factors are in GGUF order. Graphs are in Hugging Face's, which for q and k of Llama-family models is another
one. As with a GGUF (`Source._align`), the weights themselves decide, so that no list of architectures has
to be right. A sample of rows is enough to tell: another order or another model misses by 100 % and more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...errors import BaseMismatchError
from ...modules import parse
from ..agreement import AGREEMENT
from .match import Linear, Part, Site
from .model import OnnxModel

Heads = Callable[[str], int | None]
"""Kind of module -> its number of heads, where that is known."""

_CHUNK = 64  # rows: an attention head's, usually
_CHUNKS = 4  # of a part


def align(
    model: OnnxModel, basis: Basis, sites: list[Site], heads: Heads
) -> tuple[list[NDArray[np.float32]], float]:
    """Return B of every module with its rows in the order of the graph, and the worst distance.

    Args:
        model: the graph.
        basis: with factors in GGUF order.
        sites: as matched.
        heads: of q and k, whose rows another order may permute.

    Raises:
        BaseMismatchError: a weight is too far from its factors in every order that is known.
    """
    homes: dict[str, list[tuple[Linear, Part]]] = defaultdict(list)
    for site in sites:
        for part in site.parts:
            homes[part.module].append((site.linear, part))
    ordered, worst = [], 0.0
    for position, module in enumerate(basis.modules):
        a, b = (np.asarray(f[position], np.float32) for f in (basis.a, basis.b))
        rows, weight = _sample(model, homes[module])
        orders = row_orders(b, heads(parse(module)[1]))
        gaps = [_distance(a, candidate, weight, rows) for candidate in orders]
        best = int(np.argmin(gaps))
        if not gaps[best] <= AGREEMENT:
            names = ", ".join(linear.name for linear, _ in homes[module])
            raise BaseMismatchError(
                f"{module} is {gaps[best]:.2g} away from the weight of node {names} in {model.path} (at most "
                f"{AGREEMENT} is accepted): the graph was made from another model than the basis, or with an "
                "unknown order of rows"
            )
        ordered.append(orders[best])
        worst = max(worst, gaps[best])
    return ordered, worst


def row_orders(b: NDArray[np.float32], heads: int | None) -> list[NDArray[np.float32]]:
    """B as it is, in GGUF order, and with its rows as Hugging Face has them on Llama-family models."""
    if heads is None or heads < 1 or len(b) % (2 * heads):
        return [b]
    # [head, i, half] -> [head, half, i]: ggml's neighbouring pairs become the halves that HF rotates.
    pairs = b.reshape(heads, len(b) // heads // 2, 2, b.shape[1])
    return [b, np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(b.shape)]


def _sample(
    model: OnnxModel, homes: list[tuple[Linear, Part]]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Some rows of a module: their numbers, and the weight's values."""
    numbers, values = [], []
    for linear, part in homes:
        count = min(_CHUNK, part.count)
        for start in np.unique(np.linspace(0, part.count - count, _CHUNKS, dtype=np.int64)):
            column = part.column + int(start)
            values.append(linear.weight.rows(model, column, column + count))
            numbers.append(np.arange(start, start + count) + part.row)
    return np.concatenate(numbers), np.concatenate(values)


def _distance(
    a: NDArray[np.float32], b: NDArray[np.float32], weight: NDArray[np.float32], rows: NDArray[np.int64]
) -> float:
    """Max over triplets of |W v - s u| / |s u| on some rows; infinite where a value is not finite."""
    norms = np.linalg.norm(a, axis=1)
    product = weight @ (a / norms[:, None]).T
    expected = b[rows] * norms
    size = np.linalg.norm(expected, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.linalg.norm(product - expected, axis=0) / size
    return float(gap.max()) if np.isfinite(gap).all() else float("inf")
