"""The files of a PEFT checkpoint: its configuration and its tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...documents import read_json
from ...errors import ExportError, UnsupportedModelError
from ...limits import CONFIG_BYTES
from ...system import atomic_write
from ..weights.safetensors import write_safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def read_config(directory: Path, kind: str) -> dict[str, Any]:
    """Return the configuration of a checkpoint of a kind, such as `LORA`.

    Raises:
        ExportError: it is missing or damaged, or of another kind.
        UnsupportedModelError: it adapts Conv1D layers.
    """
    path = existing(directory / CONFIG)
    try:
        config = read_json(path, limit=CONFIG_BYTES)
        found = config["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is no configuration of a PEFT adapter: {error!r}") from None
    if found != kind:
        raise ExportError(f"{directory} is a PEFT adapter of type {found}, not {kind}")
    if config.get("fan_in_fan_out"):
        raise UnsupportedModelError(
            f"{directory} adapts Conv1D layers (fan_in_fan_out), which a basis does not"
        )
    return dict(config)


def existing(path: Path) -> Path:
    """Return the path of a checkpoint's file.

    Raises:
        ExportError: it is not there.
    """
    if not path.is_file():
        raise ExportError(
            f"{path.parent} lacks {path.name}: expected a directory that PEFT's save_pretrained wrote"
        )
    return path


def write_checkpoint(
    directory: Path, config: dict[str, Any], tensors: dict[str, NDArray[np.float32]]
) -> None:
    """Write both files, and the directory where it is missing.

    Raises:
        ExportError: they cannot be written.
    """
    try:
        directory.mkdir(exist_ok=True)
        write_safetensors(directory / WEIGHTS, tensors)
        with atomic_write(directory / CONFIG) as file:
            file.write((json.dumps(config, indent=2) + "\n").encode())
    except OSError as error:
        raise ExportError(f"{directory} could not be written: {error.strerror or error}") from error
