"""Baking: the factors go into a graph that was built, and R becomes an input.

Factors are in GGUF order. Graphs are in Hugging Face's, which for some layers is another one (`row_orders`).
The weights themselves decide, so that no list of architectures has to be right. A sample of rows is enough to
tell: another order or another model misses by 100 % and more.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...errors import BaseMismatchError
from ...factorization import AGREEMENT, fitting_order, gap
from ...factors import Factors
from ...formats.onnx_adapter import encode
from ...formats.onnx_graph import DEFAULT, MODEL_NAME, REQUIRED, VERSION, onnx_fingerprint
from ...modules import Heads, inverse, parse, row_orders
from ...system import atomic_write, sync_directory
from ...vector import FIRST_SEQUENCE
from .graph import LinearNode, ModuleSlice, OnnxModel, match
from .side_path import add_side_path

ADAPTER_NAME = "zeros.onnx_adapter"
FLAVOURS = (DEFAULT, REQUIRED)

_Homes: TypeAlias = list[tuple[LinearNode, ModuleSlice]]  # the nodes that compute a module, and what of it

_CHUNK = 64  # rows of a sample: an attention head's, usually
_CHUNKS = 4  # of a part


@dataclass(frozen=True)
class BakeReport:
    """The outcome of baking a graph.

    Attributes:
        model: the model file that was written.
        fingerprint: of the graph and its weights.
        nodes: of the base graph.
        added: nodes of the side path; `sites` nodes are extended by it.
        agreement: worst distance between the factors and the graph's weights.
        flavour: `default` or `required`.
    """

    model: Path
    fingerprint: str
    nodes: int
    added: int
    sites: int
    agreement: float
    flavour: str


def bake(folder: Path, factors: Factors, heads: Heads, flavour: str = DEFAULT) -> BakeReport:
    """Put factors into the graph of a folder that `build` filled.

    Args:
        heads: of the model, for layers whose rows are ordered otherwise than in the GGUF.
        flavour: `default`: the input `tinylora_r` is zeros unless it is fed; `required`: it has to be fed.

    Raises:
        UnsupportedModelError: a module has no node, or one that cannot be extended.
        BaseMismatchError: the graph's weights are not those of the factors.
    """
    model = OnnxModel(folder)
    nodes = len(model.graph.node)
    sites = match(model, factors)
    ordered, agreement = [], 0.0
    homes: dict[str, _Homes] = defaultdict(list)
    for site in sites:
        for part in site.parts:
            homes[part.module].append((site.linear, part))
    for module in factors.modules:
        b, found = _align(model, factors, module, homes[module], heads)
        ordered.append(b)
        agreement = max(agreement, found)
    added = add_side_path(model, factors, sites, ordered, flavour)
    for key, value in {
        "version": VERSION,
        "factors": factors.digest,
        "rank": str(factors.rank),
        "modules": json.dumps(list(factors.modules)),
        "flavour": flavour,
    }.items():
        model.proto.metadata_props.add(key=f"tinylora.{key}", value=value)
    model.save(folder)
    with atomic_write(folder / ADAPTER_NAME) as file:
        zeros = np.zeros((1, len(factors.modules) * factors.rank**2), np.float32)
        file.write(encode(zeros, FIRST_SEQUENCE, 0))
    sync_directory(folder)
    mark = onnx_fingerprint(folder)
    return BakeReport(folder / MODEL_NAME, mark, nodes, added, len(sites), agreement, flavour)


def _align(
    model: OnnxModel, factors: Factors, module: str, homes: _Homes, heads: Heads
) -> tuple[NDArray[np.float32], float]:
    """Return B of a module with its rows in the order of the graph, and its distance to a sample of them."""
    a, b = factors.leading(module, factors.rank)
    numbers, values = [], []
    for linear, part in homes:
        count = min(_CHUNK, part.count)
        for start in np.unique(np.linspace(0, part.count - count, _CHUNKS, dtype=np.int64)):
            column = part.column + int(start)
            values.append(linear.weight.rows(model, column, column + count))
            numbers.append(np.arange(start, start + count) + part.row)
    rows, product = np.concatenate(numbers), np.concatenate(values) @ a.T
    orders = (inverse(order) for order in row_orders(parse(module)[1], len(b), heads))
    order, found = fitting_order(orders, lambda order: gap(product, b[order][rows]))
    if order is None:
        names = ", ".join(linear.name for linear, _ in homes)
        raise BaseMismatchError(
            f"{module} is {found:.2g} away from the weight of node {names} (at most {AGREEMENT} is accepted):"
            " the graph is of another model than the factors, or has an unknown order of rows"
        )
    return b[order], found
