"""The fingerprint of the weights that a baked graph really has beside it, computed without an engine.

A graph states the fingerprint of its base, and so does the basis; but the weights lie in another file, and
one of another fine-tune has the same size. The graph's `tinylora.weights` says which initializers the
fingerprint covers. Where their bytes lie is read from the graph and not stated a second time: that is
where the engine will read them, also after a tool has saved the model with another layout.
"""

from __future__ import annotations

import hashlib
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...basis import packed_text
from ...documents import parse_json
from ...errors import BaseMismatchError
from ...formats.onnx_graph import EDGE_BYTES, FINGERPRINT_MARK, OnnxFile, inline_spans


@dataclass(frozen=True)
class _MarkedTensor:
    """Initializer as the exporter saw it, by its name, ONNX element type and bytes."""

    name: str
    dtype: int
    nbytes: int


@dataclass(frozen=True)
class _MarkedNode:
    """Node that computes a module, or a part of one: x [.., k] -> [.., n]."""

    k: int
    n: int
    tensors: list[_MarkedTensor]


def weights_fingerprint(file: OnnxFile, architecture: str, modules: tuple[str, ...], stated: str) -> str:
    """Return the fingerprint of the weights that lie in a model's files: SHA-256 in hexadecimal.

    The same bytes as the exporter hashes (`exporters/onnx/weights.py`, `fingerprint`): 16 KB a module are
    read, of however large a model.

    Args:
        file: the model; `check_data` has passed.
        architecture: of the basis.
        modules: of the basis, in order.
        stated: the model's `tinylora.weights`.

    Raises:
        BaseMismatchError: the list is damaged, or the graph has no such initializers any more.
    """
    entries = _parse(file.path, stated)
    if len(entries) != len(modules):
        raise BaseMismatchError(
            f"{file.path} lists the weights of {len(entries)} modules, but its basis has {len(modules)}: a "
            "tool changed it after it was baked. Export it again"
        )
    total = hashlib.sha256(FINGERPRINT_MARK + packed_text(architecture))
    with ExitStack() as stack:
        reader = _EdgeReader(file, stack)
        for module, nodes in zip(modules, entries, strict=True):
            total.update(packed_text(module) + struct.pack("<I", len(nodes)))
            for node in nodes:
                total.update(struct.pack("<QQ", node.k, node.n))
                for tensor in node.tensors:
                    total.update(struct.pack("<I", tensor.dtype))
                    for part in reader.edges(tensor):
                        total.update(part)
    return total.hexdigest()


class _EdgeReader:
    """Reader of the ends of initializers, in external data or in the model file itself."""

    def __init__(self, file: OnnxFile, stack: ExitStack) -> None:
        self._file, self._stack = file, stack
        self._open: dict[Path, IO[bytes]] = {}
        self._inline: dict[str, tuple[int, int]] | None = None

    def edges(self, tensor: _MarkedTensor) -> tuple[bytes, bytes]:
        """First and last 4,096 bytes of a tensor; all of a smaller one, twice.

        Raises:
            BaseMismatchError: the graph has it no more, or with another size.
        """
        path, start, size = self._place(tensor.name)
        if size not in (tensor.nbytes, 0):  # 0: the graph leaves the length of external data open
            raise BaseMismatchError(
                f"{self._file.path} has {size:,} bytes of {tensor.name}, but was baked with "
                f"{tensor.nbytes:,}: a tool changed it after it was baked. Export it again"
            )
        count = min(tensor.nbytes, EDGE_BYTES)
        return self._read(path, start, count), self._read(path, start + tensor.nbytes - count, count)

    def _place(self, name: str) -> tuple[Path, int, int]:
        """File, offset and length of an initializer's data."""
        path = self._file.path
        external = self._file.initializers.get(name)
        if external is not None:
            return path.parent / external.location, external.offset, external.length
        if self._inline is None:
            self._inline = inline_spans(path)
        if name not in self._inline:
            raise BaseMismatchError(
                f"{path} has no weight {name}, which it was baked with: a tool changed it after it was "
                "baked. Export it again"
            )
        start, end = self._inline[name]
        return path, start, end - start

    def _read(self, path: Path, start: int, count: int) -> bytes:
        if path not in self._open:
            self._open[path] = self._stack.enter_context(path.open("rb", buffering=0))
        file = self._open[path]
        size = file.seek(0, 2)
        if start + count > size:  # and perhaps so far that nothing can be sought there
            raise BaseMismatchError(
                f"{path} has {size:,} bytes, but {self._file.path.name} was baked with weights up to byte "
                f"{start + count:,}: it was cut, or a tool changed it. Export it again"
            )
        file.seek(start)
        return file.read(count)


def _parse(path: Path, stated: str) -> list[list[_MarkedNode]]:
    try:
        return [
            [
                _MarkedNode(
                    _count(node["k"]),
                    _count(node["n"]),
                    [
                        _MarkedTensor(_name(name), _count(dtype, 1 << 31), _count(nbytes))
                        for name, dtype, nbytes in node["tensors"]
                    ],
                )
                for node in nodes
            ]
            for nodes in parse_json(stated)
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise BaseMismatchError(
            f"the list of weights in {path} is damaged ({error!r}): copy the model again, or export it again"
        ) from None


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value


def _count(value: object, limit: int = 1 << 63) -> int:
    if not isinstance(value, int) or not 0 <= value < limit:
        raise ValueError(f"{value!r} is no number from 0 to {limit - 1}")
    return value
