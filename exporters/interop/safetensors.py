"""A writer of safetensors files: a header in JSON and the tensors behind it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._system import atomic_write


def write(path: Path, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Write float32 tensors, atomically (https://huggingface.co/docs/safetensors, "Format").

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in sorted(tensors.items()):
        begin, end = end, end + 4 * array.size
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned to 8 bytes
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in sorted(tensors.items()):
            file.write(np.ascontiguousarray(array, "<f4").tobytes())
