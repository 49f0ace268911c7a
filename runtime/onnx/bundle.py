"""The baked ONNX graph of a bundle, and whether it can be run with the bundle's basis."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from ...basis import Basis
from ...documents import parse_json
from ...errors import BaseMismatchError
from ...formats.bundle import Bundle
from ...formats.onnx_graph import (
    DEFAULT,
    GENAI_NAME,
    INPUT_NAME,
    MODEL_NAME,
    REQUIRED,
    MetadataKey,
    OnnxFile,
    read_metadata,
    read_onnx,
)
from .fingerprint import weights_fingerprint

NATIVE = frozenset({"custom_ops_library", "library_path", "backend_path", "trt_extra_plugin_lib_paths"})
"""Keys of genai_config.json that name a library of native code, which the engine would load and run."""


@dataclass(frozen=True, repr=False)
class OnnxBundle:
    """ONNX side of a bundle.

    Attributes:
        bundle: where the parts lie.
    """

    bundle: Bundle

    def __repr__(self) -> str:
        return f"OnnxBundle({str(self.bundle.onnx)!r})"

    @classmethod
    def find(cls, path: str | PathLike[str]) -> OnnxBundle:
        """Locate the parts.

        Args:
            path: a bundle that `export --format onnx` wrote, its `onnx/` directory (with `basis.gguf` in
                it or above it), or the `model.onnx` in that.

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
        """Folder of the graph and of what belongs to it."""
        assert self.bundle.onnx is not None
        return self.bundle.onnx

    @property
    def model(self) -> Path:
        """File of the graph."""
        return self.folder / MODEL_NAME

    @property
    def basis(self) -> Basis:
        """The basis, read once.

        Raises:
            CorruptBasisError: the file is damaged.
        """
        return self.bundle.basis

    @cached_property
    def file(self) -> OnnxFile:
        """What the graph says about itself, read once.

        Raises:
            BaseMismatchError: it is not an ONNX model.
        """
        return read_onnx(self.model)

    @property
    def flavour(self) -> str:
        """`default` if the vector may be left out of a run, else `required`."""
        return DEFAULT if INPUT_NAME in self.file.initializers else REQUIRED

    def check(self) -> None:
        """Check that the graph takes vectors of this basis, and that its weights are there and its own.

        Reads the ends of each weight: milliseconds.

        Raises:
            BaseMismatchError: it does not, or they are not.
        """
        self.check_config()
        listed = self.bundle.check_onnx()
        if INPUT_NAME not in self.file.inputs:
            raise BaseMismatchError(
                f"{self.model} has no input {INPUT_NAME}: a tool removed it after it was baked. Export it "
                "again"
            )
        metadata = read_metadata(self.model)
        stated = metadata.get(MetadataKey.FLAVOUR, self.flavour)
        if stated != self.flavour:
            has = "has" if self.flavour == DEFAULT else "lacks"
            raise BaseMismatchError(
                f"{self.model} says that its vector is {stated}, but it {has} an initializer for "
                f"{INPUT_NAME}: a tool changed it after it was baked. Export it again"
            )
        self.file.check_data()
        self._check_weights(listed, metadata.get(MetadataKey.WEIGHTS))

    def check_config(self) -> None:
        """Check that genai_config.json, if there is one, makes no engine load native code.

        Raises:
            BaseMismatchError: it names a library, wherever in it, or it is damaged.
        """
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

    def _check_weights(self, listed: str, weights: str | None) -> None:
        """Compare the weights with the fingerprint that graph and basis agree on."""
        if weights is None:  # the base keeps them in a form that only the onnx package reads
            return
        found = weights_fingerprint(self.file, self.basis.architecture, self.basis.modules, weights)
        if found != listed:
            files = sorted({data.location for data in self.file.initializers.values() if data is not None})
            raise BaseMismatchError(
                f"the weights of {self.model} ({', '.join(files) or 'inside it'}) have fingerprint "
                f"{found[:16]}..., but it was baked for {listed[:16]}...: they are of another model, or "
                "damaged. Copy the data that were exported with it, or export again"
            )


def find_bundle(path: str | PathLike[str]) -> Bundle:
    """Return the bundle at a path, which may be that of its graph too.

    Raises:
        FileNotFoundError: the path, or one of the parts, is not there.
    """
    path = Path(path)
    return Bundle.find(path.absolute().parent if path.name == MODEL_NAME and path.exists() else path)
