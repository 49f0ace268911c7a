"""Checkpoints: the whole state of a run in one JSON file, replaced atomically."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import TrainError
from ..jsonio import read_json, restored
from ..writes import atomic_write

_SCORES = ("best_scores", "top_scores")
_ARRAYS = ("v", "m", "s", "best_v", *_SCORES)
_BYTES = 1 << 28  # 13,440 values in four arrays take 1 MiB, and 10,000 steps 4 MiB


@dataclass
class TrainState:
    """The state of a run: all that the next step depends on. Random numbers derive from (seed, step)."""

    v: NDArray[np.float32]  # [n], like the next three
    m: NDArray[np.float32]  # Adam's first moment, and its second
    s: NDArray[np.float32]
    best_v: NDArray[np.float32]  # what the run would return now
    best_scores: NDArray[np.float64]  # its validation, a prompt; empty before the first
    top_scores: NDArray[np.float64]  # of the highest validation
    updates: int = 0  # Adam's own count of steps
    step: int = 0
    lr: float = 0.0
    seconds: float = 0.0  # spent on steps and validations
    best_score: float = float("-inf")
    best_step: int = 0
    start_score: float = float("-inf")
    start_loss: float = 0.0  # nats a token of the validation answers, where SFT measures them
    best_loss: float = 0.0
    lowest_loss: float = 0.0
    temperature: float = 0.0  # that answers are drawn at (GRPO); 0 before it is found
    signal: bool = False  # whether any step had some
    silent: int = 0  # steps without signal in a row
    stale: int = 0  # validations in a row that found nothing better
    stopped: str = ""  # why it ended
    norms: list[float] = field(default_factory=list)  # of the last gradients, for the clip
    curve: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, v: NDArray[np.float32]) -> TrainState:
        """Return the state before the first step."""
        return cls(v.copy(), np.zeros_like(v), np.zeros_like(v), v.copy(), np.empty(0), np.empty(0))


def save(path: Path, state: TrainState, identity: dict[str, Any]) -> None:
    """Write a checkpoint; `identity` is what a resumed run must share with this one."""
    values = asdict(state) | {name: getattr(state, name).tolist() for name in _ARRAYS}
    with atomic_write(path) as file:
        file.write(json.dumps({"identity": identity, "state": values}).encode())


def load(path: Path, identity: dict[str, Any]) -> TrainState:
    """Read a checkpoint; a TrainError says that it is missing, damaged, or of another run."""
    try:
        document = read_json(path, limit=_BYTES)
        found, values = document["identity"], dict(document["state"])
        arrays = {
            name: np.array(values.pop(name), np.float64 if name in _SCORES else np.float32)
            for name in _ARRAYS
        }
        state = restored(TrainState, values, arrays)
        if not isinstance(found, dict):
            raise ValueError("its identity is no object")
        for name, array in arrays.items():
            if array.ndim != 1 or (name not in _SCORES and array.shape != state.v.shape):
                raise ValueError(f"its {name} is of shape {array.shape}")
    except FileNotFoundError:
        raise TrainError(f"there is no checkpoint {path} to resume from: start without --resume") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise TrainError(f"{path} is not a usable checkpoint: {error}") from None
    identity = json.loads(json.dumps(identity))  # which has no tuples
    for key, value in identity.items():
        if found.get(key) != value:
            raise TrainError(
                f"{path} belongs to another run: its {key} is {found.get(key)!r}, this run's is {value!r}. "
                "Go on with what it began with, or choose another output"
            )
    return state
