"""The obvious way to bake factors into a graph, as a contestant: each module by itself, nothing shared."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tinylora_edge import Factors
from tinylora_edge.exporters.onnx.graph import OnnxModel, Site, match
from tinylora_edge.formats.onnx_graph import INPUT_NAME


def bake_naively(graph: Path, factors: Factors, output: Path) -> int:
    """Write a copy of a graph with y + x A^T R^T B^T at every module; return how many nodes that adds.

    R of each module comes from a Gather of its own. Rows of B stay in GGUF order: this graph is timed, and
    what it says does not matter.
    """
    shutil.copytree(graph, output)
    model = OnnxModel(output)
    sites = match(model, factors)
    before = len(model.graph.node)
    nodes = {site.linear.output: site for site in sites}
    added = list[onnx.NodeProto]()
    for node in list(model.graph.node):
        added.append(node)
        for position, name in enumerate(node.output):
            if name in nodes:
                node.output[position] = f"{name}/base"
                added += _side_path(model, factors, nodes[name], name)
    size = len(factors.modules) * factors.rank**2
    model.graph.input.append(
        helper.make_tensor_value_info(INPUT_NAME, onnx.TensorProto.FLOAT, ["rows", size])
    )
    _store(model, INPUT_NAME, np.zeros((1, size), np.float32))
    del model.graph.node[:]
    model.graph.node.extend(added)
    model.save(output)
    return len(added) - before


def _side_path(model: OnnxModel, factors: Factors, site: Site, output: str) -> list[onnx.NodeProto]:
    nodes, deltas = [], []
    for part in sorted(site.parts, key=lambda part: part.column):
        name, rank = f"naive/{part.module}", factors.rank
        entries = factors.index(part.module) * rank**2 + np.arange(rank**2)
        a, b = factors.leading(part.module, (rank, rank))
        _store(model, f"{name}/entries", entries.reshape(rank, rank).T)
        _store(model, f"{name}/a", a.T)
        _store(model, f"{name}/b", b[part.row : part.row + part.count].T)
        nodes += [
            helper.make_node("Gather", [INPUT_NAME, f"{name}/entries"], [f"{name}/R"], axis=1),
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
