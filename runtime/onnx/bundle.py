"""The baked ONNX graph of a bundle, and whether it can be run with the bundle's basis."""

from __future__ import annotations

import hashlib
import json
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import IO, Any

from ...basis import Basis, packed_text
from ...documents import parse_json
from ...errors import BaseMismatchError
from ...formats.bundle import Bundle
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


@dataclass(frozen=True, repr=False)
class OnnxBundle:
    """The ONNX side of a bundle."""

    bundle: Bundle

    def __repr__(self) -> str:
        return f"OnnxBundle({str(self.bundle.onnx)!r})"

    @classmethod
    def find(cls, path: str | PathLike[str]) -> OnnxBundle:
        """Locate the parts of a bundle, of the `onnx/` directory in it, or of the `model.onnx` in that.

        Raises:
            FileNotFoundError: the path, or one of the parts, is not there.
            BaseMismatchError: the bundle has no graph.
        """
        found = cls(find_bundle(path))
        if found.bundle.onnx is None:
            found.bundle.check_onnx()
        return found

    @property
    def folder(self) -> Path:
        """The folder of the graph and of what belongs to it."""
        assert self.bundle.onnx is not None
        return self.bundle.onnx

    @property
    def model(self) -> Path:
        """File of the graph."""
        return self.folder / MODEL_NAME

    @property
    def basis(self) -> Basis:
        """The basis, read once."""
        return self.bundle.basis

    @cached_property
    def file(self) -> OnnxFile:
        """What the graph says about itself, read once."""
        return read_onnx(self.model)

    @property
    def flavour(self) -> str:
        """`default` if the vector may be left out of a run, else `required`."""
        return DEFAULT if INPUT_NAME in self.file.initializers else REQUIRED

    def check(self) -> None:
        """Check that the graph takes vectors of this basis, and that its weights are its own: milliseconds.

        Raises:
            BaseMismatchError: it does not, or they are not; or the bundle would run native code.
        """
        self.check_config()
        listed = self.bundle.check_onnx()
        if INPUT_NAME not in self.file.inputs:
            raise BaseMismatchError(
                f"{self.model} has no input {INPUT_NAME}: a tool removed it after it was baked. Export it "
                "again"
            )
        metadata = self.file.metadata
        stated = metadata.get(MetadataKey.FLAVOUR, self.flavour)
        if stated != self.flavour:
            has = "has" if self.flavour == DEFAULT else "lacks"
            raise BaseMismatchError(
                f"{self.model} says that its vector is {stated}, but it {has} an initializer for "
                f"{INPUT_NAME}: a tool changed it after it was baked. Export it again"
            )
        self.file.check_data()
        weights = metadata.get(MetadataKey.WEIGHTS)
        if weights is None:  # the base keeps them in a form that only the onnx package reads
            return
        found = weights_fingerprint(self.file, self.basis.architecture, self.basis.modules, weights)
        if found != listed:
            files = ", ".join(self.file.data_files) or "inside it"
            raise BaseMismatchError(
                f"the weights of {self.model} ({files}) have fingerprint "
                f"{found[:16]}..., but it was baked for {listed[:16]}...: they are of another model, or "
                "damaged. Copy the data that were exported with it, or export again"
            )

    def check_config(self) -> None:
        """Refuse a genai_config.json that names a library of native code, wherever in it, or is damaged."""
        path = self.folder / GENAI_NAME
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


def find_bundle(path: str | PathLike[str]) -> Bundle:
    """Return the bundle at a path, which may be that of its graph too; errors as for `Bundle.find`."""
    path = Path(path)
    return Bundle.find(path.absolute().parent if path.name == MODEL_NAME and path.exists() else path)


def weights_fingerprint(file: OnnxFile, architecture: str, modules: tuple[str, ...], stated: str) -> str:
    """Return the fingerprint of the weights in a model's files: SHA-256 in hexadecimal.

    Of the bytes that the exporter hashes (`exporters/onnx/weights.py`, `fingerprint`): 16 KB a module. Where
    they lie is read from the graph, since that is where the engine will read them.

    Args:
        file: the model; `check_data` has passed.
        architecture, modules: of the basis.
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
        raise _changed(file, f"lists the weights of {len(entries)} modules, but its basis has {len(modules)}")
    with ExitStack() as stack:
        reader = _EdgeReader(file, stack)
        for module, nodes in zip(modules, entries, strict=True):
            total.update(packed_text(module) + struct.pack("<I", len(nodes)))
            for k, n, tensors in nodes:
                total.update(struct.pack("<QQ", k, n))
                for name, dtype, nbytes in tensors:
                    total.update(struct.pack("<I", dtype))
                    for part in reader.edges(name, nbytes):
                        total.update(part)
    return total.hexdigest()


class _EdgeReader:
    """Reads the ends of initializers, in external data or in the model file itself."""

    def __init__(self, file: OnnxFile, stack: ExitStack) -> None:
        self._file, self._stack = file, stack
        self._open: dict[Path, IO[bytes]] = {}

    def edges(self, name: str, nbytes: int) -> tuple[bytes, bytes]:
        """First and last 4,096 bytes of a tensor; all of a smaller one, twice."""
        path, start, size = self._place(name)
        if size not in (nbytes, 0):  # 0: the graph leaves the length of external data open
            raise _changed(self._file, f"has {size:,} bytes of {name}, but was baked with {nbytes:,}")
        count = min(nbytes, EDGE_BYTES)
        return self._read(path, start, count), self._read(path, start + nbytes - count, count)

    def _place(self, name: str) -> tuple[Path, int, int]:
        """File, offset and length of an initializer's data."""
        path, place = self._file.path, self._file.initializers.get(name)
        if place is None:
            raise _changed(self._file, f"has no weight {name}, which it was baked with")
        return path.parent / place.location if place.location else path, place.offset, place.length

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
