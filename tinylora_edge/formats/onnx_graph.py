"""A baked ONNX graph as files: names that host and device share, and the checks before an engine loads it.

A device has no package that reads ONNX, so a graph's fingerprint is over its files (docs/FORMAT.md).
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import BaseMismatchError
from ..factors import Shape
from ..jsonio import read_json
from ..writes import open_file

MODEL_NAME, DATA_NAME, GENAI_NAME = "model.onnx", "model.onnx.data", "genai_config.json"
"""File names in a bundle's ONNX folder: the graph, its weights, and onnxruntime-genai's configuration."""

INPUT_NAME = "tinylora_r"
"""Name of the graph input that takes R: float32 [rows, M P Q], one row or one for each sequence."""

DEFAULT, REQUIRED = "default", "required"
"""Flavours of a graph: that input has an initializer of zeros, or none, so that R must be fed."""

VERSION = "2"
"""Version of the graph's input and of its metadata."""

_PIECES, _PIECE_BYTES = 1024, 4096  # what a fingerprint covers of the weights

_NATIVE = "custom_ops_library", "library_path", "backend_path", "trt_extra_plugin_lib_paths"
"""Keys of genai_config.json that name a library, whose native code the engine would run."""


def input_row(r: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    """Return R, float32 [M, p, q], as a row of a graph's input: [M P Q], zeros beyond p and q."""
    count, outputs, inputs = r.shape
    row = np.zeros((count, *shape), np.float32)
    row[:, :outputs, :inputs] = r
    return row.reshape(-1)


def onnx_fingerprint(folder: Path) -> str:
    """Return the fingerprint of a graph and its weights: SHA-256 in hexadecimal.

    It covers all of `model.onnx`, the size of `model.onnx.data`, and 1,024 evenly spaced pieces of 4,096
    bytes of that, which takes milliseconds for any size. OSError: one of the two is no file.
    """
    with open_file(folder / MODEL_NAME) as graph:
        total = hashlib.sha256(b"tinylora onnx 2\n" + hashlib.file_digest(graph, "sha256").digest())
    with open_file(folder / DATA_NAME) as data:
        size = data.seek(0, 2)
        total.update(struct.pack("<Q", size))
        for piece in range(_PIECES):
            data.seek(max(0, size - _PIECE_BYTES) * piece // (_PIECES - 1))
            total.update(data.read(_PIECE_BYTES))
    return total.hexdigest()


def check_config(folder: Path) -> None:
    """Check a graph's folder before an engine opens it.

    BaseMismatchError: genai_config.json is damaged, or names a library of native code; or the folder has a
    pipe, on which the engine, which opens files by name, would wait for ever.
    """
    if pipe := next((each for each in folder.rglob("*") if each.is_fifo()), None):
        raise BaseMismatchError(f"{pipe} is a pipe, which a bundle must not have: remove it")
    path = folder / GENAI_NAME
    try:
        content = read_json(path, strict=True)  # where no key may be there twice, and hide another
    except FileNotFoundError:
        return
    except ValueError as error:
        raise BaseMismatchError(f"{path} is damaged: {error}. Export the bundle again") from None
    spelled = json.dumps(content).lower()
    if found := next((key for key in _NATIVE if key in spelled), None):
        raise BaseMismatchError(
            f"{path} has the key {found!r}, which makes the engine run native code: no bundle may. Remove "
            "the key, or export the bundle again"
        )
