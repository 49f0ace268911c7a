"""Baking: an ONNX graph and factors become a graph with the factors in it, and R as an input.

Modules are matched to nodes, the graph's weights are compared with the factors, the side path is added, and a
new directory is written; the original is never changed.

Factors are in GGUF order. Graphs are in Hugging Face's, which for some layers is another one (`row_orders`).
The weights themselves decide, so that no list of architectures has to be right. A sample of rows is enough to
tell: another order or another model misses by 100 % and more.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import defaultdict
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...documents import read_json
from ...errors import BaseMismatchError, ExportError
from ...factorization import AGREEMENT, fitting_order, gap
from ...factors import Factors, packed_text
from ...formats.onnx_adapter import encode
from ...formats.onnx_graph import (
    DEFAULT,
    EDGE_BYTES,
    FINGERPRINT_MARK,
    GENAI_NAME,
    MODEL_NAME,
    REQUIRED,
    VERSION,
    MetadataKey,
)
from ...modules import Heads, inverse, parse, row_orders
from ...system import atomic_write, sync_directory
from ...vector import FIRST_SEQUENCE
from .match import LinearNode, ModuleSlice, match
from .model import OnnxModel, copy_folder, find_model, nbytes
from .side_path import add_side_path, refuse_baked

ADAPTER_NAME = "zeros.onnx_adapter"
FLAVOURS = (DEFAULT, REQUIRED)

Homes: TypeAlias = dict[str, list[tuple[LinearNode, ModuleSlice]]]
"""The nodes that compute a module, and the part of it that each computes."""

_CHUNK = 64  # rows of a sample: an attention head's, usually
_CHUNKS = 4  # of a part


@dataclass(frozen=True)
class BakeReport:
    """The outcome of baking a graph.

    Attributes:
        model: the model file that was written.
        fingerprint, nodes: of the base graph.
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


def bake(
    graph: str | PathLike[str],
    factors: Factors,
    output: str | PathLike[str],
    *,
    flavour: str = DEFAULT,
    heads: Heads = Heads(),  # noqa: B008 - immutable
    move: bool = False,
) -> BakeReport:
    """Write a copy of an ONNX model with factors in it. External data is copied, never loaded.

    Args:
        graph: a directory with `model.onnx`, or the model file. Only read.
        output: an existing, empty directory.
        flavour: `default`: the input `tinylora_r` is zeros unless it is fed; `required`: it has to be fed.
        heads: of the model, for layers whose rows are ordered otherwise than in the GGUF.
        move: take the external data from the graph's directory instead of copying it.

    Raises:
        ExportError: the graph or its data is missing or damaged, or was baked already.
        UnsupportedModelError: a module has no node, or one that cannot be extended.
        BaseMismatchError: the graph's weights are not those of the factors.
    """
    output = Path(output)
    model = OnnxModel(find_model(Path(graph)))
    refuse_baked(model)
    if MODEL_NAME in model.data_files:
        raise ExportError(f"{model.path} keeps its data in a file called {MODEL_NAME}: rename one of the two")
    genai = _genai_config(model.folder)
    nodes = len(model.graph.node)
    sites = match(model, factors)
    homes: Homes = defaultdict(list)
    for site in sites:
        for part in site.parts:
            homes[part.module].append((site.linear, part))
    ordered, agreement = _align(model, factors, homes, heads)
    mark, covered = _weights(model, factors, homes)
    added = add_side_path(model, factors, sites, ordered, flavour)
    _describe(model, factors, mark, covered, flavour)
    report = BakeReport(output / MODEL_NAME, mark, nodes, added, len(sites), agreement, flavour)
    model.save(output / MODEL_NAME)
    copy_folder(model.folder, output, without={model.path, *model.data_files.values()})
    if genai is not None:
        (output / GENAI_NAME).write_bytes(genai)
    with atomic_write(output / ADAPTER_NAME) as file:
        zeros = np.zeros((1, len(factors.modules) * factors.rank**2), np.float32)
        file.write(encode(zeros, FIRST_SEQUENCE, 0))
    model.copy_data(output, move=move)
    sync_directory(output)
    return report


def _align(
    model: OnnxModel, factors: Factors, homes: Homes, heads: Heads
) -> tuple[list[NDArray[np.float32]], float]:
    """Return B of every module with its rows in the order of the graph, and the worst distance."""
    ordered, worst = [], 0.0
    for module in factors.modules:
        a, b = factors.leading(module, factors.rank)
        rows, weight = _sample(model, homes[module])
        orders = [inverse(order) for order in row_orders(parse(module)[1], len(b), heads)]
        product = weight @ a.T
        order, found = fitting_order(orders, lambda order: gap(product, b[order][rows]))  # noqa: B023
        if order is None:
            names = ", ".join(linear.name for linear, _ in homes[module])
            raise BaseMismatchError(
                f"{module} is {found:.2g} away from the weight of node {names} in {model.path} (at most "
                f"{AGREEMENT} is accepted): the graph is of another model than the factors, or has an "
                "unknown order of rows"
            )
        ordered.append(b[order])
        worst = max(worst, found)
    return ordered, worst


def _sample(
    model: OnnxModel, homes: list[tuple[LinearNode, ModuleSlice]]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    numbers, values = [], []
    for linear, part in homes:
        count = min(_CHUNK, part.count)
        for start in np.unique(np.linspace(0, part.count - count, _CHUNKS, dtype=np.int64)):
            column = part.column + int(start)
            values.append(linear.weight.rows(model, column, column + count))
            numbers.append(np.arange(start, start + count) + part.row)
    return np.concatenate(numbers), np.concatenate(values)


def _weights(model: OnnxModel, factors: Factors, homes: Homes) -> tuple[str, list[list[dict[str, Any]]]]:
    """Return the fingerprint of an ONNX base, SHA-256 in hexadecimal, and what it covers.

    Over the architecture and, for each module in order, its name and, for each node that computes it, K,
    N, and of each tensor of its weight the type and the first and last 4,096 bytes. What it covers is for a
    device that computes it again: an entry a module in order, with for each node `k`, `n` and its `tensors`,
    each [initializer, ONNX element type, bytes].
    """
    total, covered = hashlib.sha256(FINGERPRINT_MARK + packed_text(factors.architecture)), []
    for module in factors.modules:
        several = sorted(homes[module], key=lambda home: home[1].row)
        total.update(packed_text(module) + struct.pack("<I", len(several)))
        nodes: list[dict[str, Any]] = []
        for linear, _ in several:
            weight = linear.weight
            n_out, n_in = weight.shape
            total.update(struct.pack("<QQ", n_in, n_out))
            for tensor in weight.tensors:
                data = model.data(tensor)
                total.update(struct.pack("<I", tensor.data_type))
                total.update(data[:EDGE_BYTES].tobytes() + data[-EDGE_BYTES:].tobytes())
            listed = [[tensor.name, tensor.data_type, nbytes(tensor)] for tensor in weight.tensors]
            nodes.append({"k": n_in, "n": n_out, "tensors": listed})
        covered.append(nodes)
    return total.hexdigest(), covered


def _describe(
    model: OnnxModel, factors: Factors, mark: str, covered: list[list[dict[str, Any]]], flavour: str
) -> None:
    """Put what says which factors these are into the model's metadata."""
    values = {
        MetadataKey.VERSION: VERSION,
        MetadataKey.FACTORS: factors.digest,
        MetadataKey.FINGERPRINT: mark,
        MetadataKey.ARCHITECTURE: factors.architecture,
        MetadataKey.RANK: str(factors.rank),
        MetadataKey.FACTORIZATION: factors.factorization,
        MetadataKey.MODULES: json.dumps(list(factors.modules)),
        MetadataKey.FLAVOUR: flavour,
        MetadataKey.WEIGHTS: json.dumps(covered, separators=(",", ":")),
    }
    for key, value in values.items():
        entry = model.proto.metadata_props.add()
        entry.key, entry.value = key.value, value


def _genai_config(folder: Path) -> bytes | None:
    """onnxruntime-genai's configuration, naming the model file of a bundle; None where there is none."""
    path = folder / GENAI_NAME
    if not path.exists():
        return None
    try:
        config = read_json(path)
        config["model"]["decoder"]["filename"] = MODEL_NAME
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is damaged: {error!r}. Build the graph again") from None
    return json.dumps(config, indent=4).encode()
