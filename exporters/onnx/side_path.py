"""The side path: nodes that add B R A x to the results of a graph's linear layers.

What a decoder pays for them is not arithmetic but their number: a node costs an engine about a
microsecond, and a step of a small model a few milliseconds. So modules that share an input share one A,
one R and, where they share a node, one B; and all R are computed at the top, in one product for each width.
A layer costs 4 nodes for each input and 2 more for each further node with that input. Bit for bit the base
where v = 0: each result gets a zero added, after the bias, so that engines still fuse the same nodes of the
base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...factors import Factors
from ...errors import ExportError
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
        self._model, self._basis, self._b = model, factors, b
        self._top: list[NodeProto] = []
        self._after: dict[int, list[NodeProto]] = {}

    def matrices(self, inputs: list[SharedInput]) -> list[str]:
        """Compute R of each shared input, [rows, w, w], transposed, block-diagonal, and return its name."""
        widths = [self._basis.rank * len(shared.modules) for shared in inputs]
        names = [""] * len(inputs)
        for width in sorted(set(widths)):
            members = [i for i, w in enumerate(widths) if w == width]
            product = self._projected(width, [inputs[i] for i in members])
            shape = self._ints(f"shape_{width}", [0, len(members) * width, width])
            pieces = [self._node("Reshape", [product, shape], f"matrices_{width}")]
            if len(members) > 1:
                name = f"matrices_{width}/split"
                sizes = self._ints(f"{name}/sizes", [width] * len(members))
                outputs = [f"{PREFIX}{name}/{i}" for i in range(len(members))]
                self._node("Split", [*pieces, sizes], name, outputs=outputs, axis=1)
                pieces = outputs
            for member, piece in zip(members, pieces, strict=True):
                dtype = inputs[member].sites[0].linear.dtype
                same = dtype == self._onnx.TensorProto.FLOAT
                names[member] = piece if same else self._node("Cast", [piece], f"{piece}/cast", to=dtype)
        return names

    def _projected(self, width: int, inputs: list[SharedInput]) -> str:
        """Compute R of the inputs of one width in one product, and return its name.

        With one group it is [rows, u] x [u, inputs * width * width]. Else each input has the k groups that it
        reads: [rows, inputs, 1, k * u] x [inputs, k * u, width * width]. As a product with the whole of v, a
        vector of all of R would need more projections than there are factors.
        """
        factors, rank = self._basis, self._basis.rank
        reads = [sorted({int(factors.tying[module]) for module in shared.modules}) for shared in inputs]
        most = max(map(len, reads))
        entries = np.zeros((len(inputs), 1, most, factors.u), np.int64)
        table = np.zeros((len(inputs), most, factors.u, width, width), np.float32)
        for place, (shared, groups) in enumerate(zip(inputs, reads, strict=True)):
            entries[place, 0, : len(groups)] = np.array(groups)[:, None] * factors.u + np.arange(factors.u)
            for order, module in enumerate(shared.modules):
                block = slice(order * rank, (order + 1) * rank)
                p = factors.projections[module].swapaxes(1, 2)
                table[place, groups.index(int(factors.tying[module])), :, block, block] = p
        if factors.groups == 1:
            read, shape = INPUT_NAME, [factors.u, -1]
            table = table.transpose(2, 1, 0, 3, 4)
        else:
            chosen = self._ints(f"entries_{width}", entries.reshape(len(inputs), 1, -1))
            read = self._node("Gather", [INPUT_NAME, chosen], f"entries_of_v_{width}", axis=1)
            shape = [len(inputs), most * factors.u, -1]
        projections = self._floats(f"projections_{width}", table.reshape(shape))
        return self._node("MatMul", [read, projections], f"r_{width}")

    def add(self, shared: SharedInput, r: str) -> None:
        """Add the nodes of one shared input behind the nodes that it extends."""
        factors, linear = self._basis, shared.sites[0].linear
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
        shape = [ROWS, self._basis.size]
        value = helper.make_tensor_value_info(INPUT_NAME, self._onnx.TensorProto.FLOAT, shape)
        value.doc_string = (
            "The micro-vector, row-major [groups, u], one row or one for each row of the batch."
        )
        graph.input.append(value)
        if flavour == DEFAULT:
            zeros = np.zeros((1, self._basis.size), np.float32)
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
