"""The obvious way to bake a basis into a graph, as a contestant: each module by itself, nothing shared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tinylora_edge import Basis
from tinylora_edge.exporters.onnx.match import Site, match
from tinylora_edge.exporters.onnx.model import OnnxModel, copy_folder
from tinylora_edge.formats.onnx_graph import INPUT_NAME


def bake_naively(graph: Path, basis: Basis, output: Path) -> int:
    """Write a copy of a graph with y + x A^T R^T B^T at every module; return how many nodes that adds.

    R of each module comes from a MatMul of its own. Rows of B stay in GGUF order: this graph is timed, and
    what it says does not matter.
    """
    model = OnnxModel(graph / "model.onnx")
    sites = match(model, basis)
    before = len(model.graph.node)
    nodes = {site.linear.output: site for site in sites}
    added = list[onnx.NodeProto]()
    for node in list(model.graph.node):
        added.append(node)
        for position, name in enumerate(node.output):
            if name in nodes:
                node.output[position] = f"{name}/base"
                added += _side_path(model, basis, nodes[name], name)
    shape = [helper.make_tensor_value_info(INPUT_NAME, onnx.TensorProto.FLOAT, ["rows", basis.size])]
    model.graph.input.extend(shape)
    _store(model, INPUT_NAME, np.zeros((1, basis.size), np.float32))
    _store(model, "naive/shape", np.array([-1, basis.rank, basis.rank]))
    del model.graph.node[:]
    model.graph.node.extend(added)
    output.mkdir()
    copy_folder(model.folder, output, without={model.path, *model.data_files.values()})
    model.copy_data(output)
    model.save(output / "model.onnx")
    return len(added) - before


def _side_path(model: OnnxModel, basis: Basis, site: Site, output: str) -> list[onnx.NodeProto]:
    nodes, deltas = [], []
    for part in sorted(site.parts, key=lambda part: part.column):
        at, name = basis.index(part.module), f"naive/{part.module}"
        projection = np.zeros((basis.size, basis.rank, basis.rank), np.float32)
        first = int(basis.tying[at]) * basis.u
        projection[first : first + basis.u] = basis.projections[at].transpose(0, 2, 1)
        _store(model, f"{name}/p", projection.reshape(basis.size, -1))
        _store(model, f"{name}/a", np.asarray(basis.a[at], np.float32).T)
        _store(model, f"{name}/b", np.asarray(basis.b[at], np.float32)[part.row : part.row + part.count].T)
        nodes += [
            helper.make_node("MatMul", [INPUT_NAME, f"{name}/p"], [f"{name}/r"]),
            helper.make_node("Reshape", [f"{name}/r", "naive/shape"], [f"{name}/R"]),
            helper.make_node("MatMul", [site.linear.input, f"{name}/a"], [f"{name}/x"]),
            helper.make_node("MatMul", [f"{name}/x", f"{name}/R"], [f"{name}/y"]),
            helper.make_node("MatMul", [f"{name}/y", f"{name}/b"], [f"{name}/d"]),
        ]
        deltas.append(f"{name}/d")
    whole = deltas[0]
    if len(deltas) > 1:
        whole = f"{output}/naive"
        nodes.append(helper.make_node("Concat", deltas, [whole], axis=-1))
    return [*nodes, helper.make_node("Add", [f"{output}/base", whole], [output])]


def _store(model: OnnxModel, name: str, array: np.ndarray) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
