"""The alignment of factors with a graph: are its weights those that were factorized, in which order of rows?

Factors are in GGUF order. Graphs are in Hugging Face's, which for some layers is another one (`row_orders`).
As with a GGUF (`Source.factorize`), the weights themselves decide, so that no list of architectures has to be
right. A sample of rows is enough to tell: another order or another model misses by 100 % and more.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...errors import BaseMismatchError
from ...factorization import AGREEMENT, directions, gap
from ...modules import Heads, inverse, parse, row_orders
from .match import LinearNode, ModuleSlice, Site
from .model import OnnxModel

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
        heads: of the model, on which other orders of rows depend.

    Raises:
        BaseMismatchError: a weight is too far from its factors in every order that is known.
    """
    homes: dict[str, list[tuple[LinearNode, ModuleSlice]]] = defaultdict(list)
    for site in sites:
        for part in site.parts:
            homes[part.module].append((site.linear, part))
    ordered, worst = [], 0.0
    for position, module in enumerate(basis.modules):
        a, b = (np.asarray(f[position], np.float32) for f in (basis.a, basis.b))
        rows, weight = _sample(model, homes[module])
        orders = [inverse(order) for order in row_orders(parse(module)[1], len(b), heads)]
        v, norms = directions(a)
        product = weight @ v
        gaps = [gap(product, b[order][rows] * norms) for order in orders]
        best = int(np.argmin(gaps))
        if not gaps[best] <= AGREEMENT:
            names = ", ".join(linear.name for linear, _ in homes[module])
            raise BaseMismatchError(
                f"{module} is {gaps[best]:.2g} away from the weight of node {names} in {model.path} (at most "
                f"{AGREEMENT} is accepted): the graph was made from another model than the basis, or with an "
                "unknown order of rows"
            )
        ordered.append(b[orders[best]])
        worst = max(worst, gaps[best])
    return ordered, worst


def _sample(
    model: OnnxModel, homes: list[tuple[LinearNode, ModuleSlice]]
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
