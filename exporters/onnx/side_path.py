"""The side path: nodes that add B R A x to the results of a graph's linear layers.

What a decoder pays for them is not arithmetic but their number: a node costs an engine about a
microsecond, and a step of a small model a few milliseconds. So modules that share an input share one A,
one R and, where they share a node, one B; and all R are taken from the input at the top, in one go a width.
A layer costs 4 nodes for each input and 2 more for each further node with that input. Bit for bit the base
where R = 0: each result gets a zero added, after the bias, so that engines still fuse the same nodes of the
base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ExportError
from ...factors import Factors
from ...formats.onnx_graph import DEFAULT, INPUT_NAME
from .match import Site
from .model import OnnxModel, import_onnx

if TYPE_CHECKING:
    from onnx import NodeProto

ROWS = "tinylora_rows"
PREFIX = "tinylora/"


@dataclass(frozen=True)
class SharedInput:
    """An input that several nodes share, named by the first of the modules (positions) that they compute."""

    name: str
    sites: list[Site]
    modules: list[int]


def refuse_baked(model: OnnxModel) -> None:
    """Refuse a graph that has a side path."""
    names = {value.name for value in model.graph.input} | set(model.initializers)
    taken = next((name for name in sorted(names) if name == INPUT_NAME or name.startswith(PREFIX)), None)
    if taken is not None:
        raise ExportError(f"{model.path} was baked already (it has {taken}): pass the original graph")


def add_side_path(
    model: OnnxModel, factors: Factors, sites: list[Site], b: Sequence[NDArray[np.float32]], flavour: str
) -> int:
    """Extend a graph in memory and return how many nodes were added.

    `b` is B of each module, its rows in the order of the graph. The flavour `default` gives the input zeros.
    """
    together: dict[str, list[Site]] = {}
    for site in sites:
        together.setdefault(site.linear.input, []).append(site)
    inputs = []
    for several in together.values():
        modules = sorted({factors.index(part.module) for site in several for part in site.parts})
        inputs.append(SharedInput(factors.modules[modules[0]].removesuffix(".weight"), several, modules))
    path = _SidePathWriter(model, factors, b)
    for shared, r in zip(inputs, path.matrices(inputs), strict=True):
        path.add(shared, r)
    return path.finish(flavour)


class _SidePathWriter:
    """The nodes and initializers of a side path, collected, and then put into the graph."""

    def __init__(self, model: OnnxModel, factors: Factors, b: Sequence[NDArray[np.float32]]) -> None:
        self._onnx = import_onnx()
        self._model, self._factors, self._b = model, factors, b
        self._top: list[NodeProto] = []
        self._after: dict[int, list[NodeProto]] = {}

    def matrices(self, inputs: list[SharedInput]) -> list[str]:
        """Compute R of each shared input, [rows, w, w], transposed, block-diagonal, and return its name.

        One Gather for each width w takes the entries from the input, and zeros from a column behind it.
        """
        count, rank = len(self._factors.modules), self._factors.rank
        entries = np.arange(count * rank**2).reshape(count, rank, rank).swapaxes(1, 2)
        padded = self._node("Pad", [INPUT_NAME, self._ints("pads", [0, 0, 0, 1])], "padded")
        by_width: dict[int, list[int]] = {}
        for i, shared in enumerate(inputs):
            by_width.setdefault(rank * len(shared.modules), []).append(i)
        names = [""] * len(inputs)
        for width, members in sorted(by_width.items()):
            chosen = np.full((len(members), width, width), count * rank**2)
            for place, member in enumerate(members):
                for order, module in enumerate(inputs[member].modules):
                    block = slice(order * rank, (order + 1) * rank)
                    chosen[place, block, block] = entries[module]
            name = f"matrices_{width}"
            indices = self._ints(f"{name}/entries", chosen.reshape(-1, width))
            pieces = [self._node("Gather", [padded, indices], name, axis=1)]
            if len(members) > 1:
                sizes = self._ints(f"{name}/split/sizes", [width] * len(members))
                outputs = [f"{PREFIX}{name}/split/{i}" for i in range(len(members))]
                self._node("Split", [*pieces, sizes], f"{name}/split", outputs=outputs, axis=1)
                pieces = outputs
            for member, piece in zip(members, pieces, strict=True):
                dtype = inputs[member].sites[0].linear.dtype
                same = dtype == self._onnx.TensorProto.FLOAT
                names[member] = piece if same else self._node("Cast", [piece], f"{piece}/cast", to=dtype)
        return names

    def add(self, shared: SharedInput, r: str) -> None:
        """Add the nodes of one shared input behind the nodes that it extends."""
        factors, linear = self._factors, shared.sites[0].linear
        after = self._after.setdefault(linear.index, [])
        a = np.concatenate([np.asarray(factors.a[module], np.float32) for module in shared.modules])
        name = f"{shared.name}/a"
        # With a third dimension, since ONNX Runtime packs constant matrices into panels of 16 columns: of the
        # 2 to 6 that there are here it would read 3 to 8 times the bytes, at every token.
        stored = self._floats(name, a.T[None], linear.dtype)
        columns = self._node("MatMul", [linear.input, stored], f"{name}/MatMul", into=after)
        mixed = self._node("MatMul", [columns, r], f"{shared.name}/r/MatMul", into=after)
        for number, site in enumerate(shared.sites):
            after = self._after.setdefault(site.linear.last, [])
            b = np.zeros((factors.rank * len(shared.modules), site.linear.n_out), np.float32)
            for part in site.parts:
                module = factors.index(part.module)
                first = factors.rank * shared.modules.index(module)
                factor = self._b[module][part.row : part.row + part.count]
                b[first : first + factors.rank, part.column : part.column + part.count] = factor.T
            name = f"{shared.name}/b" if len(shared.sites) == 1 else f"{shared.name}/b{number}"
            stored = self._floats(name, b, linear.dtype)
            side = self._node("MatMul", [mixed, stored], f"{name}/MatMul", into=after)
            base = f"{PREFIX}{name}/base"
            self._rename_result(site, base)
            self._node("Add", [base, side], f"{name}/Add", outputs=[site.linear.output], into=after)

    def _rename_result(self, site: Site, name: str) -> None:
        """Give the base's result another name, so that all who read it read the sum."""
        old = site.linear.output
        node = self._model.graph.node[site.linear.last]
        node.output[list(node.output).index(old)] = name
        for value in self._model.graph.value_info:
            if value.name == old:
                copied = self._model.graph.value_info.add()
                copied.CopyFrom(value)
                copied.name = name
                break

    def finish(self, flavour: str) -> int:
        """Put the nodes into the graph, in an order in which they can run, and the input; return how many."""
        graph, helper = self._model.graph, self._onnx.helper
        before, nodes = len(graph.node), [*self._top]
        for index, node in enumerate(graph.node):
            nodes.append(node)
            nodes += self._after.get(index, [])
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
        shape = [ROWS, len(self._factors.modules) * self._factors.rank**2]
        value = helper.make_tensor_value_info(INPUT_NAME, self._onnx.TensorProto.FLOAT, shape)
        value.doc_string = "R, row-major [modules, rank, rank], one row or one for each row of the batch."
        graph.input.append(value)
        if flavour == DEFAULT:
            zeros = np.zeros((1, shape[1]), np.float32)
            graph.initializer.append(self._onnx.numpy_helper.from_array(zeros, INPUT_NAME))
        return len(copies) - before

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
        name = name if name.startswith(PREFIX) else f"{PREFIX}{name}"
        outputs = outputs or [f"{name}/output"]
        node = self._onnx.helper.make_node(operation, inputs, outputs, name=name, **attributes)
        (self._top if into is None else into).append(node)
        return outputs[0]

    def _floats(self, name: str, array: NDArray[np.float32], dtype: int = 1) -> str:
        kind = self._onnx.helper.tensor_dtype_to_np_dtype(dtype)
        raw = np.ascontiguousarray(array).astype(kind).tobytes()
        tensor = self._onnx.helper.make_tensor(f"{PREFIX}{name}", dtype, array.shape, raw, raw=True)
        self._model.graph.initializer.append(tensor)
        return f"{PREFIX}{name}"

    def _ints(self, name: str, values: list[int] | NDArray[np.int64]) -> str:
        array = np.asarray(values, np.int64)
        self._model.graph.initializer.append(self._onnx.numpy_helper.from_array(array, f"{PREFIX}{name}"))
        return f"{PREFIX}{name}"
