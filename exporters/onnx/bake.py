"""Baking: the factors go into a graph that was built, and R becomes an input.

Factors have their rows in GGUF order, graphs in Hugging Face's, which for some layers is another one
(`row_orders`). The weights themselves decide, so that no list of architectures has to be right. A sample of
rows is enough to tell: another order or another model misses by 100 % and more.

The side path is the nodes that add B R A x to the results of linear layers. A node costs an engine about a
microsecond, and a token of a small model a few milliseconds. So there are few nodes. Modules with one input
share one A. Modules of one node also share one R and one B. All R are cut from the input `tinylora_r` at the
top of the graph, with a Gather for each shape.

With R = 0 the results are the base's, bit for bit: a zero is added to each after its bias, so that engines
fuse the same nodes of the base as without the side path.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.errors import BaseMismatchError
from tinylora_edge.factorization import AGREEMENT, fitting_rows, gap
from tinylora_edge.factors import Factors
from tinylora_edge.formats.onnx_adapter import encode
from tinylora_edge.formats.onnx_graph import DEFAULT, INPUT_NAME, REQUIRED, VERSION, onnx_fingerprint
from tinylora_edge.modules import Heads
from tinylora_edge.vector import FIRST_SEQUENCE
from tinylora_edge.writes import atomic_write

from .graph import LinearNode, ModuleSlice, OnnxModel, Site, match

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

ROWS = "tinylora_rows"
PREFIX = "tinylora/"
_PANEL = 16  # columns of the panels into which ONNX Runtime packs constant matrices
ADAPTER_NAME = "zeros.onnx_adapter"
FLAVOURS = (DEFAULT, REQUIRED)

_Homes: TypeAlias = list[tuple[LinearNode, ModuleSlice]]  # the nodes that compute a module, and what of it

_CHUNK = 64  # rows of a module that are compared in one place: usually those of an attention head
_CHUNKS = 4  # such places in what one node computes of a module


def bake(folder: Path, factors: Factors, heads: Heads, flavour: str = DEFAULT) -> tuple[str, float]:
    """Put factors into the graph of a folder that `build` filled.

    `flavour` is `default`: the input `tinylora_r` is zeros unless it is fed; or `required`: it has to be fed.
    Returns the fingerprint of the graph and its weights, and the worst distance of factors from the weights.

    UnsupportedModelError: a module has no node, or one that cannot be extended. BaseMismatchError: the
    graph's weights are not those of the factors.
    """
    model = OnnxModel(folder)
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
    add_side_path(model, factors, sites, ordered, flavour)
    for key, value in {
        "version": VERSION,
        "factors": factors.digest,
        "rank": str(factors.rank),
        **({"outputs": str(factors.outputs)} if factors.outputs > factors.rank else {}),
        "modules": json.dumps(list(factors.modules)),
        "flavour": flavour,
    }.items():
        model.proto.metadata_props.add(key=f"tinylora.{key}", value=value)
    model.save(folder)
    with atomic_write(folder / ADAPTER_NAME) as file:
        file.write(encode(np.zeros((1, factors.r_size), np.float32), FIRST_SEQUENCE, 0))
    return onnx_fingerprint(folder), agreement


def _align(
    model: OnnxModel, factors: Factors, module: str, homes: _Homes, heads: Heads
) -> tuple[NDArray[np.float32], float]:
    """Return B of a module with its rows in the order of the graph, and its distance to a sample of them."""
    a, b = factors.leading(module, factors.shape)
    numbers, values = [], []
    for linear, part in homes:
        count = min(_CHUNK, part.count)
        for start in np.unique(np.linspace(0, part.count - count, _CHUNKS, dtype=np.int64)):
            column = part.column + int(start)
            values.append(linear.weight.rows(model, column, column + count))
            numbers.append(np.arange(start, start + count) + part.row)
    rows, product = np.concatenate(numbers), np.concatenate(values) @ a.T
    ordered, found = fitting_rows(module, b, heads, lambda b: gap(product, b[rows]), back=True)
    if ordered is None:
        names = ", ".join(linear.name for linear, _ in homes)
        raise BaseMismatchError(
            f"{module} is {found:.2g} away from the weight of node {names} (at most {AGREEMENT} is accepted):"
            " the graph is of another model than the factors, or has an unknown order of rows"
        )
    return ordered, found


# The side path

_Modules: TypeAlias = tuple[int, ...]
"""Positions of modules, rising."""


@dataclass(frozen=True)
class SharedInput:
    """An input that several nodes share, named by the first of the modules that they compute.

    Attributes:
        sites: the nodes, each with the modules that it computes parts of.
    """

    name: str
    sites: list[tuple[Site, _Modules]]
    modules: _Modules


def add_side_path(
    model: OnnxModel, factors: Factors, sites: list[Site], b: Sequence[NDArray[np.float32]], flavour: str
) -> None:
    """Extend a graph in memory.

    `b` is B of each module, its rows in the order of the graph. The flavour `default` gives the input zeros.
    """
    together: dict[str, list[Site]] = {}
    for site in sites:
        together.setdefault(site.linear.input, []).append(site)
    inputs = []
    for several in together.values():
        own = [tuple(sorted({factors.index(part.module) for part in site.parts})) for site in several]
        modules = tuple(sorted({*chain(*own)}))
        name = factors.modules[modules[0]].removesuffix(".weight")
        inputs.append(SharedInput(name, list(zip(several, own, strict=True)), modules))
    path = _SidePathWriter(model, factors, b)
    r = path.matrices(inputs)
    for shared in inputs:
        path.add(shared, r)
    path.finish(flavour)


class _SidePathWriter:
    """The nodes and initializers of a side path, collected, and then put into the graph."""

    def __init__(self, model: OnnxModel, factors: Factors, b: Sequence[NDArray[np.float32]]) -> None:
        self._model, self._factors, self._b = model, factors, b
        self._top: list[NodeProto] = []
        self._after: dict[int, list[NodeProto]] = {}

    def matrices(self, inputs: list[SharedInput]) -> dict[tuple[_Modules, _Modules], str]:
        """Add the nodes that compute the matrices between each input's columns x A^T and its nodes' B^T.

        For an input of i modules and a node of j modules, the matrix is [rows, Q i, P j]: R^T where both are
        the same module, and 0 elsewhere. For each shape one Gather takes all matrices, by rows of R^T and a
        row of zeros behind them. Gathering single entries would take P times as long.

        Returns:
            modules of an input and of a node -> name of the value.
        """
        count, (outputs, rank) = len(self._factors.modules), self._factors.shape
        square = self._ints("square", [0, count, outputs, rank])
        turned = self._node("Reshape", [INPUT_NAME, square], "r")
        turned = self._node("Transpose", [turned], "r_t", perm=[0, 1, 3, 2])
        turned = self._node("Reshape", [turned, self._ints("flat", [0, count * rank, outputs])], "r_t_rows")
        padded = self._node("Pad", [turned, self._ints("pads", [0, 0, 0, 0, 1, 0])], "padded")
        by_shape: dict[tuple[int, int], list[tuple[_Modules, _Modules]]] = {}
        for pair in dict.fromkeys((shared.modules, own) for shared in inputs for _, own in shared.sites):
            by_shape.setdefault((len(pair[0]), len(pair[1])), []).append(pair)
        names: dict[tuple[_Modules, _Modules], str] = {}
        for (high, wide), pairs in sorted(by_shape.items()):
            rows = np.full((len(pairs), high, rank, wide), count * rank)
            for place, (modules, own) in enumerate(pairs):
                for column, module in enumerate(own):
                    rows[place, modules.index(module), :, column] = module * rank + np.arange(rank)
            name, height = f"matrices_{high}_{wide}", high * rank
            indices = self._ints(f"{name}/rows", rows.reshape(-1, wide))
            taken = self._node("Gather", [padded, indices], name, axis=1)
            shape = self._ints(f"{name}/shape", [0, len(pairs) * height, wide * outputs])
            pieces = [self._node("Reshape", [taken, shape], f"{name}/Reshape")]
            if len(pairs) > 1:
                sizes = self._ints(f"{name}/sizes", [height] * len(pairs))
                parts = [f"{PREFIX}{name}/{i}" for i in range(len(pairs))]
                self._node("Split", [*pieces, sizes], f"{name}/Split", outputs=parts, axis=1)
                pieces = parts
            names |= zip(pairs, pieces, strict=True)
        return names

    def add(self, shared: SharedInput, r: Mapping[tuple[_Modules, _Modules], str]) -> None:
        """Add the nodes of one shared input, which extend the graph's nodes."""
        factors, outputs, linear = self._factors, self._factors.outputs, shared.sites[0][0].linear
        first = self._after.setdefault(linear.index, [])
        a = np.concatenate([np.asarray(factors.a[module], np.float32) for module in shared.modules])
        # ONNX Runtime packs constant matrices into panels of 16 columns: of a matrix with 2 to 8 columns it
        # would read 2 to 8 times the bytes at every token. A third dimension keeps it from packing those.
        stored = self._constant(f"{shared.name}/a", a.T if len(a) >= _PANEL else a.T[None])
        columns = self._node("MatMul", [linear.input, stored], f"{shared.name}/a/MatMul", into=first)
        mixed: dict[_Modules, str] = {}
        for number, (site, own) in enumerate(shared.sites):
            tail = number if len(shared.sites) > 1 else ""
            if own not in mixed:
                name = f"{shared.name}/r{tail}/MatMul"
                mixed[own] = self._node("MatMul", [columns, r[shared.modules, own]], name, into=first)
            b = np.zeros((outputs * len(own), site.linear.n_out), np.float32)
            for part in site.parts:
                module = factors.index(part.module)
                start = outputs * own.index(module)
                factor = self._b[module][part.row : part.row + part.count]
                b[start : start + outputs, part.column : part.column + part.count] = factor.T
            name, after = f"{shared.name}/b{tail}", self._after.setdefault(site.linear.last, [])
            stored = self._constant(name, b)
            side = self._node("MatMul", [mixed[own], stored], f"{name}/MatMul", into=after)
            base, result = f"{PREFIX}{name}/base", self._model.graph.node[site.linear.last].output
            result[list(result).index(site.linear.output)] = base  # the sum takes the output's old name
            self._node("Add", [base, side], f"{name}/Add", outputs=[site.linear.output], into=after)

    def finish(self, flavour: str) -> None:
        """Put the nodes into the graph, in an order in which they can run, and the input."""
        from onnx import TensorProto, helper

        graph, nodes = self._model.graph, [*self._top]
        for index, node in enumerate(graph.node):
            nodes.append(node)
            nodes += self._after.get(index, [])
        nodes = deepcopy(nodes)  # `del` invalidates the graph's own
        del graph.node[:]
        graph.node.extend(nodes)
        width = self._factors.r_size
        value = helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, [ROWS, width])
        shape = "rank, rank" if self._factors.outputs == self._factors.rank else "outputs, rank"
        value.doc_string = f"R, row-major [modules, {shape}], one row or one for each row of the batch."
        graph.input.append(value)
        if flavour == DEFAULT:
            graph.initializer.append(_tensor(INPUT_NAME, np.zeros((1, width), np.float32)))

    def _node(
        self,
        operation: str,
        inputs: list[str],
        name: str,
        *,
        outputs: list[str] | None = None,
        into: list[NodeProto] | None = None,
        **attributes: Any,
    ) -> str:
        from onnx import helper

        name = f"{PREFIX}{name}"
        outputs = outputs or [f"{name}/output"]
        node = helper.make_node(operation, inputs, outputs, name=name, **attributes)
        (self._top if into is None else into).append(node)
        return outputs[0]

    def _ints(self, name: str, values: list[int] | NDArray[np.int64]) -> str:
        return self._constant(name, np.asarray(values, np.int64))

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        self._model.graph.initializer.append(_tensor(f"{PREFIX}{name}", array))
        return f"{PREFIX}{name}"


def _tensor(name: str, array: NDArray[Any]) -> TensorProto:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.ascontiguousarray(array), name)
