"""The configuration of a Hugging Face directory: its GGUF architecture, blocks and heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf

from ...documents import read_json
from ...errors import ExportError, UnsupportedModelError
from ...limits import BLOCKS
from ...modules import find_architecture, read_heads


class HFConfig:
    """The `config.json` of a Hugging Face directory.

    Args:
        directory: with `config.json`.

    Attributes:
        architecture: the `general.architecture` that convert_hf_to_gguf gives this model.
        blocks: number of decoder layers.
        heads: numbers of attention heads.

    Raises:
        ExportError: the file is missing or damaged.
        UnsupportedModelError: no GGUF architecture is known for it.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "config.json"
        try:
            values: dict[str, Any] = read_json(self.path)
            model_type = values["model_type"]
            self.blocks = int(values["num_hidden_layers"])
            if not isinstance(model_type, str) or not 1 <= self.blocks <= BLOCKS:
                raise ValueError(f"model_type {model_type!r}, {self.blocks} layers")
        except FileNotFoundError:
            raise ExportError(
                f"{directory} lacks config.json: expected a Hugging Face model directory, or a .gguf file"
            ) from None
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise ExportError(f"{self.path} is not the configuration of a decoder: {error!r}") from None
        self.heads = read_heads(values.get)
        architecture = find_architecture(model_type, set(gguf.MODEL_ARCH_NAMES.values()))
        if architecture is None:
            raise UnsupportedModelError(
                f"{self.path} has model_type {model_type!r}, for which no GGUF architecture is known: "
                "convert the model with convert_hf_to_gguf.py and export from the GGUF"
            )
        self.architecture = architecture
