"""The weights of a GGUF file, what any weights of a model offer, and whether a GGUF fits a basis."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import gguf

from ...errors import ExportError, UnsupportedModelError
from ...factorization import RowSource
from ...formats.gguf import MalformedGGUFError, open_gguf
from .coverage import coverage
from .dequantize import PackedRows, ggml_decoder


class Weights(Protocol):
    """The weights of a model, by module."""

    kind: str
    """`gguf` or `hf`: recorded in the manifest."""

    def matrices(self, module: str) -> list[RowSource]:
        """Return the module's weight: one matrix, or one an expert.

        Raises:
            ExportError: the tensor is missing or cannot be read.
        """


class GGUFWeights:
    """The weights of a GGUF model, whole or split, every type that ggml or `gguf.quants` reads.

    Raises:
        ExportError: the file cannot be read, or is no GGUF model.
        UnsupportedModelError: its architecture is unknown, or no tensor of it can be adapted.
    """

    kind = "gguf"

    def __init__(self, path: Path) -> None:
        try:
            self.file = open_gguf(path)
            kind = self.file.value("general.type", str, "model")
        except MalformedGGUFError as error:
            raise ExportError(f"{path} is not a usable GGUF model: {error}") from None
        except OSError as error:
            raise ExportError(f"{path} cannot be read: {error.strerror or error}") from None
        if kind != "model":
            raise ExportError(f"{path} holds a {kind!r}, not a model: pass the base model")
        if self.file.architecture not in gguf.MODEL_ARCH_NAMES.values():
            raise UnsupportedModelError(
                f"{path} has architecture {self.file.architecture!r}, which the installed gguf package "
                f"{_version('gguf')} does not know"
            )
        self.modules, self.left_out = coverage(self.file)
        if not self.modules and self.left_out:
            raise UnsupportedModelError(
                f"{path} has no linear layers that can be adapted: "
                + "; ".join(f"{', '.join(names[:3])}, ...: {why}" for why, names in self.left_out.items())
            )
        if not self.modules:
            some = ", ".join(list(self.file.tensors)[:4])
            raise UnsupportedModelError(
                f"{path} has no linear layers that can be adapted: none of its {len(self.file.tensors)} "
                f"tensors ({some}, ...) is named like 'blk.0.attn_q.weight'"
            )

    def matrices(self, module: str) -> list[RowSource]:
        """Return the module's weight: one matrix, or one an expert."""
        tensor = self.file.tensors.get(module)
        if tensor is None:
            raise ExportError(f"the GGUF has no tensor {module}")
        n_out, n_in = tensor.shape[-2:]
        raw = self.file.data(tensor).reshape(-1, n_out, tensor.row_bytes)
        try:
            decode = ggml_decoder(tensor.type, raw[0])
        except NotImplementedError:
            raise UnsupportedModelError(
                f"{module} has type {tensor.type.name}, which neither llama-cpp-python nor gguf can read"
            ) from None
        return [PackedRows(expert, n_in, decode) for expert in raw]


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
