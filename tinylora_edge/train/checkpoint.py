"""Checkpoints: the whole state of a run in one file, replaced atomically."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._system import atomic_write
from ..documents import parse_json
from ..errors import TrainError

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

    @classmethod
    def start(cls, v: NDArray[np.float32]) -> TrainState:
        """Return the state before the first step."""
        return cls(v.copy(), np.zeros_like(v), np.zeros_like(v), v.copy(), np.empty(0))


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
        with np.load(path, allow_pickle=False) as archive:
            header = parse_json(str(archive["header"]))
            arrays = {name: archive[name] for name in _ARRAYS}
        found, state = header["identity"], TrainState(**arrays, **header["state"])
        if not isinstance(found, dict):
            raise TypeError("its identity is no object")
    except FileNotFoundError:
        raise TrainError(f"there is no checkpoint {path} to resume from: start without --resume") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise TrainError(f"{path} is not a usable checkpoint: {error}") from None
    identity = json.loads(json.dumps(identity))  # which has no tuples
    differ = [k for k in identity if identity[k] != found.get(k)]
    if differ:
        key = differ[0]
        raise TrainError(
            f"{path} belongs to another run: its {key} is {found.get(key)!r}, this run's is {identity[key]!r}"
        )
    return state
