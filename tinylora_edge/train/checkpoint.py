"""Checkpoints: the whole state of a run in one file, replaced atomically."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..documents import parse_json, restored
from ..errors import TrainError
from ..system import atomic_write

_FORMAT = 2


@dataclass
class TrainState:
    """The state of a run: all that the next step depends on. Random numbers derive from (seed, step).

    Attributes:
        v: float32 [G, u].
        m, s: first and second moment of Adam, float32 [G, u].
        updates: Adam's own count of steps.
        step: steps done.
        lr: step size now.
        best_v, best_score, best_step: what the run would return now.
        top_scores: float64 [prompts], rewards of the highest validation so far; empty before the first.
        start_score: validation reward of the start.
        silent: steps without signal in a row.
        norms: gradient norms of the last updates, for the clip.
        recent: sampled reward and length of the last steps, for the watch on collapses.
        back_offs: how often training went back to the best.
        lowest: reward so far, 0 where none was below it: what explodes gets it.
    """

    v: NDArray[np.float32]
    m: NDArray[np.float32]
    s: NDArray[np.float32]
    best_v: NDArray[np.float32]
    top_scores: NDArray[np.float64]
    updates: int = 0
    step: int = 0
    lr: float = 0.0
    best_score: float = float("-inf")
    best_step: int = 0
    start_score: float = float("-inf")
    silent: int = 0
    norms: list[float] = field(default_factory=list)
    recent: list[list[float]] = field(default_factory=list)
    back_offs: int = 0
    lowest: float = 0.0

    @classmethod
    def start(cls, v: NDArray[np.float32]) -> TrainState:
        """Return the state before the first step."""
        return cls(v.copy(), np.zeros_like(v), np.zeros_like(v), v.copy(), np.empty(0))


_BAD = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, struct.error)
_ARRAYS = ("v", "m", "s", "best_v", "top_scores")


def save(path: Path, state: TrainState, identity: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: of the checkpoint.
        state: of the run.
        identity: what a resumed run must share with this one: task, digest, settings.

    Raises:
        OSError: it cannot be written; the one before stays.
    """
    rest = {k: v for k, v in asdict(state).items() if k not in _ARRAYS}
    header = json.dumps({"format": _FORMAT, "identity": identity, "state": rest})
    buffer = io.BytesIO()
    np.savez(buffer, header=np.array(header), **{name: getattr(state, name) for name in _ARRAYS})
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def load(path: Path, identity: dict[str, Any]) -> TrainState:
    """Read a checkpoint.

    Raises:
        TrainError: it is missing, damaged, or of another run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            header = parse_json(str(_array(archive, "header")))
            arrays = {name: _array(archive, name) for name in _ARRAYS}
        found, state = header["identity"], restored(TrainState, header["state"], arrays)
        if not isinstance(found, dict):
            raise TypeError("its identity is no object")
        _check_shapes(state)
    except FileNotFoundError:
        raise TrainError(f"there is no checkpoint {path} to resume from: start without --resume") from None
    # `zipfile` raises a NotImplementedError or a RuntimeError for what it does not know, or would decrypt.
    except (*_BAD, NotImplementedError, RuntimeError) as error:
        raise TrainError(f"{path} is not a usable checkpoint: {error}") from None
    identity = json.loads(json.dumps(identity))  # which has no tuples
    differ = [k for k in identity if identity[k] != found.get(k)]
    if differ:
        key = differ[0]
        raise TrainError(
            f"{path} belongs to another run: its {key} is {found.get(key)!r}, this run's is "
            f"{identity[key]!r}. Go on with what it began with, or choose another output"
        )
    return state


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Return an array as `np.savez` writes it: as many bytes as the file has for it, and no more.

    `np.load` makes an array of the size that is declared before it reads, and unpacks whatever is packed.
    """
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its {name} is compressed")
    data = io.BytesIO(archive.read(entry))
    if np.lib.format.read_magic(data) != (1, 0):
        raise ValueError(f"its {name} is of another version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(data)
    left = data.getbuffer().nbytes - data.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"its {name} is {dtype} of shape {shape}, in {left} bytes")
    data.seek(0)
    found: NDArray[Any] = np.lib.format.read_array(data, allow_pickle=False)
    return found


def _check_shapes(state: TrainState) -> None:
    for name in _ARRAYS:
        array: NDArray[Any] = getattr(state, name)
        if name == "top_scores":
            fits = array.ndim == 1 and array.dtype == np.float64
        else:
            fits = array.ndim == 2 and array.shape == state.v.shape and array.dtype == np.float32
        if not fits:
            raise ValueError(f"its {name} is {array.dtype} of shape {array.shape}")
