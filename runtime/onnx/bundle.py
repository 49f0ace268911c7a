"""The baked ONNX graph of a bundle, and whether it can be run with the bundle's factors."""

from __future__ import annotations

import hashlib
import json
import struct
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import IO, Any

from ...documents import parse_json
from ...errors import BaseMismatchError
from ...factors import packed_text
from ...formats.bundle import Bundle, load_bundle
from ...formats.onnx_graph import (
    DEFAULT,
    EDGE_BYTES,
    FINGERPRINT_MARK,
    GENAI_NAME,
    INPUT_NAME,
    MODEL_NAME,
    REQUIRED,
    MetadataKey,
    OnnxFile,
    read_onnx,
)

NATIVE = frozenset({"custom_ops_library", "library_path", "backend_path", "trt_extra_plugin_lib_paths"})
"""Keys of genai_config.json that name a library of native code, which the engine would load and run."""


def find_bundle(path: str | PathLike[str]) -> Bundle:
    """Return the bundle at a path, which may be that of its graph too; errors as for `load_bundle`."""
    path = Path(path)
    return load_bundle(path.absolute().parent if path.name == MODEL_NAME and path.exists() else path)


def flavour(graph: OnnxFile) -> str:
    """Return `default` if R may be left out of a run, else `required`."""
    return DEFAULT if INPUT_NAME in graph.initializers else REQUIRED


def checked_graph(bundle: Bundle) -> OnnxFile:
    """Check that a bundle's graph takes R of its factors, and that its weights are its own: milliseconds.

    Raises:
        BaseMismatchError: there is none, it does not, or they are not; or the bundle would run native code.
        CorruptBasisError: the side tensors are damaged.
    """
    listed = bundle.check_onnx()
    assert bundle.onnx is not None
    _check_config(bundle.onnx / GENAI_NAME)
    graph = read_onnx(bundle.onnx / MODEL_NAME)
    if INPUT_NAME not in graph.inputs:
        raise _changed(graph, f"has no input {INPUT_NAME}")
    stated = graph.metadata.get(MetadataKey.FLAVOUR, flavour(graph))
    if stated != flavour(graph):
        has = "has" if flavour(graph) == DEFAULT else "lacks"
        raise _changed(graph, f"says that its input is {stated}, but {has} an initializer for {INPUT_NAME}")
    graph.check_data()
    weights = graph.metadata.get(MetadataKey.WEIGHTS)
    if weights is None:  # the base keeps them in a form that only the onnx package reads
        return graph
    found = weights_fingerprint(graph, bundle.factors.architecture, bundle.factors.modules, weights)
    if found != listed:
        raise BaseMismatchError(
            f"the weights of {graph.path} ({', '.join(graph.data_files) or 'inside it'}) have fingerprint "
            f"{found[:16]}..., but it was baked for {listed[:16]}...: they are of another model, or damaged. "
            "Copy the data that were exported with it, or export again"
        )
    return graph


def _check_config(path: Path) -> None:
    """Refuse a genai_config.json that names a library of native code, wherever in it, or is damaged."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # also at a key that a later one hides
        found = next(((key, value) for key, value in pairs if key.strip().lower() in NATIVE), None)
        if found is not None:
            raise BaseMismatchError(
                f"{path} has the key {found[0]!r}, which has the engine run native code "
                f"({str(found[1])[:200]!r}): no bundle may. Remove the key, or export the bundle again"
            )
        return dict(pairs)

    try:
        parse_json(text)  # within limits
        json.loads(text, object_pairs_hook=look)
    except ValueError as error:
        raise BaseMismatchError(f"{path} is damaged: {error}. Export the bundle again") from None


def weights_fingerprint(file: OnnxFile, architecture: str, modules: tuple[str, ...], stated: str) -> str:
    """Return the fingerprint of the weights in a model's files: SHA-256 in hexadecimal.

    Of the bytes that the exporter hashes (`exporters/onnx/bake.py`, `_weights`): 16 KB a module. Where
    they lie is read from the graph, since that is where the engine will read them.

    Args:
        file: the model; `check_data` has passed.
        architecture, modules: of the factors.
        stated: the model's `tinylora.weights`: for each module, for each node that computes a part of it, x
            [.., k] -> [.., n], its k and n and its initializers: name, ONNX element type, bytes.

    Raises:
        BaseMismatchError: the list is damaged, or the graph has no such initializers any more.
    """
    total = hashlib.sha256(FINGERPRINT_MARK + packed_text(architecture))
    try:
        entries = [
            [(_count(n["k"]), _count(n["n"]), [_tensor(*each) for each in n["tensors"]]) for n in nodes]
            for nodes in parse_json(stated)
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise BaseMismatchError(
            f"the list of weights in {file.path} is damaged ({error!r}): copy the model again, or export it "
            "again"
        ) from None
    if len(entries) != len(modules):
        raise _changed(
            file, f"lists the weights of {len(entries)} modules, but its factors have {len(modules)}"
        )
    with ExitStack() as stack:
        files: dict[Path, IO[bytes]] = {}

        def read(path: Path, start: int, count: int) -> bytes:
            data = files.get(path) or files.setdefault(path, stack.enter_context(path.open("rb", 0)))
            size = data.seek(0, 2)
            if start + count > size:  # and perhaps so far that nothing can be sought there
                raise BaseMismatchError(
                    f"{path} has {size:,} bytes, but {file.path.name} was baked with weights up to byte "
                    f"{start + count:,}: it was cut, or a tool changed it. Export it again"
                )
            data.seek(start)
            return data.read(count)

        for module, nodes in zip(modules, entries, strict=True):
            total.update(packed_text(module) + struct.pack("<I", len(nodes)))
            for k, n, tensors in nodes:
                total.update(struct.pack("<QQ", k, n))
                for name, dtype, nbytes in tensors:
                    place = file.initializers.get(name)
                    if place is None:
                        raise _changed(file, f"has no weight {name}, which it was baked with")
                    if place.length not in (nbytes, 0):  # 0: the graph leaves that of external data open
                        raise _changed(
                            file, f"has {place.length:,} bytes of {name}, but was baked with {nbytes:,}"
                        )
                    path = file.path.parent / place.location if place.location else file.path
                    count = min(nbytes, EDGE_BYTES)
                    total.update(struct.pack("<I", dtype) + read(path, place.offset, count))
                    total.update(read(path, place.offset + nbytes - count, count))
    return total.hexdigest()


def _changed(file: OnnxFile, how: str) -> BaseMismatchError:
    return BaseMismatchError(f"{file.path} {how}: a tool changed it after it was baked. Export it again")


def _tensor(name: object, dtype: object, nbytes: object) -> tuple[str, int, int]:
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is no name")
    return name, _count(dtype, 1 << 31), _count(nbytes)


def _count(value: object, limit: int = 1 << 63) -> int:
    if not isinstance(value, int) or not 0 <= value < limit:
        raise ValueError(f"{value!r} is no number from 0 to {limit - 1}")
    return value
