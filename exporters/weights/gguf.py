"""The weights of a GGUF file, and which of its linear layers can be adapted.

llama.cpp's graph multiplies some tensors without regard to adapters, and does not use others at all. An
adapter on these loads without an error and does nothing: a vector would have values without effect. They are
left out here, each with the reason, which was read from llama.cpp's sources.
"""

from __future__ import annotations

import math
import warnings
from importlib.metadata import version
from pathlib import Path

import gguf

from tinylora_edge.errors import (
    ExportError,
    ModulesLeftOutWarning,
    UnsupportedModelError,
    UntestedArchitectureWarning,
)
from tinylora_edge.formats.gguf import GGUFFile, MalformedGGUFError, open_gguf
from tinylora_edge.modules import is_adaptable, parse

from .dequantize import FLOAT_BYTES, Matrix, ggml_decoder

TESTED = frozenset(
    {
        "deepseek2", "falcon", "gemma2", "gemma3", "gpt-oss", "granite", "llama", "phi3", "qwen2", "qwen2moe",
        "qwen3", "qwen3moe",
    }
)  # fmt: skip
"""Architectures for which a test compares llama.cpp's logits under a vector with torch's."""

_ATTENTION = frozenset({"attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output"})
_DENSE = frozenset({"ffn_gate", "ffn_up", "ffn_down"})
_SHARED = frozenset({"ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"})

DIRECT: dict[str, frozenset[str]] = {
    "bailingmoe3": _ATTENTION,
    "deepseek2": frozenset({"attn_q"}),
    "glm5-next": _ATTENTION,
    "granite-switch": _ATTENTION | _DENSE,
    "kimi-k3": _ATTENTION | _DENSE | _SHARED,
    "kimi-linear": _ATTENTION,
    "plm": frozenset({"attn_q"}),
}
"""Kinds whose weights llama.cpp does not multiply by `build_lora_mm`, so that an adapter does nothing.

Read from the sources of llama.cpp in llama-cpp-python 0.3.36. A kind for which that is so in some blocks
counts too.
"""

SHARED_KV = "{architecture}.attention.shared_kv_layers"
"""GGUF key: how many blocks at the end take keys and values from earlier ones, and ignore their own."""

SHARED_KV_FROM = {"gemma3n": 20}
"""The first block that takes keys and values from earlier ones, where the GGUF does not say it."""

NEXT_TOKENS = "{architecture}.nextn_predict_layers"
"""GGUF key: how many blocks at the end predict further tokens, and take no part in decoding."""


class GGUFWeights:
    """The weights of a GGUF model, whole or split, of every type that ggml or `gguf.quants` reads.

    ExportError: the file cannot be read, or is no GGUF model. UnsupportedModelError: its architecture is
    unknown, or no tensor of it can be adapted.
    """

    kind = "gguf"

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.file = open_gguf(path)
            kind = self.file.value("general.type", str, "model")
        except MalformedGGUFError as error:
            raise ExportError(f"{path} is not a usable GGUF model: {error}") from None
        except OSError as error:
            raise ExportError(f"{error.filename or path} cannot be read: {error.strerror or error}") from None
        if kind != "model":
            raise ExportError(f"{path} holds a {kind!r}, not a model: pass the base model")
        if self.file.architecture not in gguf.MODEL_ARCH_NAMES.values():
            raise UnsupportedModelError(
                f"{path} has architecture {self.file.architecture!r}, which the installed gguf package "
                f"{version('gguf')} does not know"
            )
        self.modules, self.left_out = coverage(self.file)
        if not self.modules:
            left_out = self.left_out or {"none is named like 'blk.0.attn_q.weight'": [*self.file.tensors]}
            raise UnsupportedModelError(
                f"{path} has no linear layers that can be adapted: "
                + "; ".join(f"{', '.join(names[:4])}, ...: {why}" for why, names in left_out.items())
            )

    @property
    def quantized(self) -> bool:
        """Whether a weight that can be adapted is stored in fewer bits than floats have."""
        return any(self.file.tensors[module].type.name not in FLOAT_BYTES for module in self.modules)

    def nbytes(self, module: str) -> int:
        """Bytes of a module's weight as it is stored."""
        return self.file.tensors[module].nbytes

    def matrices(self, module: str) -> list[Matrix]:
        """Return the module's weight: one matrix, or one an expert."""
        tensor = self.file.tensors.get(module)
        if tensor is None:
            raise ExportError(f"{self._path} has no tensor {module}: it is another model, or incomplete")
        n_out, n_in = tensor.shape[-2:]
        raw = self.file.data(tensor).reshape(math.prod(tensor.shape[:-2]), n_out, -1)
        try:
            decode = ggml_decoder(tensor.type, raw[0])
        except NotImplementedError:
            raise UnsupportedModelError(
                f"{module} has type {tensor.type.name}, which neither llama-cpp-python nor gguf can read"
            ) from None
        return [Matrix(expert, n_in, decode) for expert in raw]


def coverage(file: GGUFFile) -> tuple[list[str], dict[str, list[str]]]:
    """Return the modules that can be adapted, and the others by the reason why not, in the file's order."""
    architecture = file.architecture
    blocks = file.get(f"{architecture}.block_count", 0)
    blocks = blocks if isinstance(blocks, int) else 0

    def at_the_end(key: str) -> int:
        value = file.get(key.format(architecture=architecture), 0)
        return value if isinstance(value, int) and 0 <= value < max(blocks, 1) else 0

    decoding, shared = blocks - at_the_end(NEXT_TOKENS), at_the_end(SHARED_KV)
    own_kv = SHARED_KV_FROM.get(architecture) or (blocks - shared if shared else None)

    def reason(name: str) -> str | None:
        """Return why an adapter on a tensor would not do what it should; None: it would."""
        block, kind = parse(name)
        if kind in DIRECT.get(architecture, ()):
            return "llama.cpp multiplies them without adapters on this architecture"
        if blocks and block >= decoding:
            return f"blocks from {decoding} on predict further tokens and take no part in decoding"
        if own_kv is not None and kind in ("attn_k", "attn_v") and block >= own_kv:
            return f"blocks from {own_kv} on take keys and values from earlier ones"
        if f"{name.removesuffix('.weight')}.scale" in file.tensors:
            return "their weights are stored apart from a scale, which llama.cpp applies after the adapter"
        return None

    modules: list[str] = []
    left_out: dict[str, list[str]] = {}
    for name, tensor in file.tensors.items():
        if is_adaptable(name) and len(tensor.shape) >= 2:
            why = reason(name)
            (modules if why is None else left_out.setdefault(why, [])).append(name)
    return modules, left_out


def warn_of(architecture: str, left_out: dict[str, list[str]]) -> None:
    """Warn of an architecture that no test covers, and of modules that were left out."""
    if architecture not in TESTED:
        warnings.warn(
            f"architecture {architecture!r} is exported by the names of its tensors, but no test compares it "
            "with torch: check that a vector moves the model's answers before you train one",
            UntestedArchitectureWarning,
            stacklevel=4,
        )
    for reason, names in left_out.items():
        kinds = ", ".join(sorted({parse(name)[1] for name in names}))
        warnings.warn(
            f"{len(names)} linear layers ({kinds}, such as {names[0]}) are not adapted: {reason}",
            ModulesLeftOutWarning,
            stacklevel=4,
        )
