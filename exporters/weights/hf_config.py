"""What a Hugging Face directory says of its model: its GGUF architecture, blocks and heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from ...architectures import PERMUTED, RENAMED
from ...errors import ExportError, UnsupportedModelError


class HFConfig:
    """The `config.json` of a Hugging Face directory.

    Args:
        directory: with `config.json`.

    Attributes:
        architecture: the `general.architecture` that convert_hf_to_gguf gives this model.
        blocks: number of decoder layers.

    Raises:
        ExportError: the file is missing or damaged.
        UnsupportedModelError: no GGUF architecture is known for it.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "config.json"
        try:
            self._values: dict[str, Any] = json.loads(self.path.read_text("utf-8"))
            model_type = self._values["model_type"]
            self.blocks = int(self._values["num_hidden_layers"])
            if not isinstance(model_type, str) or self.blocks < 1:
                raise ValueError(f"model_type {model_type!r}, {self.blocks} layers")
        except FileNotFoundError:
            raise ExportError(
                f"{directory} lacks config.json: expected a Hugging Face model directory, or a .gguf file"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ExportError(f"{self.path} is not the configuration of a decoder: {error!r}") from None
        self.architecture = self._find_architecture(model_type)

    def _find_architecture(self, model_type: str) -> str:
        known = set(gguf.MODEL_ARCH_NAMES.values())
        plain = model_type.replace("_", "").replace("-", "")
        for name in (RENAMED.get(model_type), model_type, model_type.replace("_", "-"), plain):
            if name in known:
                return str(name)
        raise UnsupportedModelError(
            f"{self.path} has model_type {model_type!r}, for which no GGUF architecture is known: convert "
            "the model with convert_hf_to_gguf.py and export from the GGUF"
        )

    def heads(self, kind: str) -> int | None:
        """Return the number of heads of q or k, or None for another kind of module."""
        heads = self._values.get("num_attention_heads")
        value = {"attn_q": heads, "attn_k": self._values.get("num_key_value_heads") or heads}.get(kind)
        return value if isinstance(value, int) and value > 0 else None

    def to_gguf_rows(self, kind: str, b: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring the rows of B, [out, r], from this world's order into that of the GGUF.

        By a list of architectures: needed only where there is no GGUF to look at.
        """
        heads = self.heads(kind)
        if self.architecture not in PERMUTED or heads is None or len(b) % (2 * heads):
            return b
        halves = b.reshape(heads, 2, len(b) // heads // 2, b.shape[1])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(b.shape)
