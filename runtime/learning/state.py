"""How learning on a device begins, the file of numbers that it keeps between sittings, and budgets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.basis import Bases, Basis
from tinylora_edge.errors import TrainError
from tinylora_edge.jsonio import read_json
from tinylora_edge.projection import NUMBERS
from tinylora_edge.vector import MicroVector
from tinylora_edge.writes import atomic_write

_FORMAT = 3
_MOST = 1 << 10  # most numbers of a vector: a search and a posterior keep a matrix [n, n]
_STATE_BYTES = 1 << 28  # room for four arrays of a training's numbers and its curve, or for two such matrices
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "tokens": 1.0, "ktokens": 1000.0}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(s|m|h|k?tokens)")

T = TypeVar("T")

Report = Callable[[dict[str, Any]], None]
"""Called with the figures of every step of learning, and with events."""


@dataclass(frozen=True)
class Budget:
    """The seconds and tokens that a run may spend; it ends when one of them is used up.

    Attributes:
        seconds: of wall time, pauses aside; None for no limit.
        tokens: that the model evaluates, prompts and answers; None for no limit. With tokens alone a run is
            deterministic by seed, on one machine, engine build and number of threads.

    TrainError: both are None, or one is not above 0.
    """

    seconds: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        limits = [value for value in (self.seconds, self.tokens) if value is not None]
        if not limits or not all(math.isfinite(value) and value > 0 for value in limits):
            raise TrainError(
                f"the budget is {self.seconds} seconds and {self.tokens} tokens: one of them must be a "
                "number above 0"
            )

    def __str__(self) -> str:
        seconds = "" if self.seconds is None else f"{self.seconds:.0f} s"
        return " and ".join(filter(None, [seconds, f"{self.tokens} tokens" if self.tokens else ""]))

    @classmethod
    def of(cls, value: Budget | float | str) -> Budget:
        """Return the budget that a number (seconds) or a text (`90s`, `5m`, `1.5h`, `80ktokens`) stands for.

        TrainError: it stands for none.
        """
        if isinstance(value, Budget):
            return value
        if not isinstance(value, str):
            return cls(seconds=float(value))
        match = _AMOUNT.fullmatch(value.strip())
        if match is None:
            raise TrainError(
                f"the budget {value!r} is not valid: give a time such as 90s, 5m or 1h, or a number of "
                "tokens such as 80ktokens"
            )
        amount = float(match[1]) * _UNITS[match[2]]
        return cls(tokens=int(amount)) if match[2].endswith("tokens") else cls(seconds=amount)

    def less(self, tokens: float, seconds: float) -> Budget:
        """Return what is left after so many tokens and seconds: at least a little, as a budget is above 0."""
        return Budget(
            None if self.seconds is None else max(self.seconds - seconds, 1e-3),
            None if self.tokens is None else max(int(self.tokens - tokens), 1),
        )


@dataclass
class SearchState:
    """All that the next step of a search depends on.

    Attributes:
        search: as `Search.state` returns it.
        start: values of the vector that it began with, flat.
        start_scores: rewards of the start on the held-back prompts, in order; empty before they are known.
        best, best_scores, best_step: values of the best vector so far, its rewards on the first held-back
            prompts, and the step that it is from.
        silent: steps in a row without any difference between candidates.
        unimproved: checks in a row that found nothing better.
        rollouts, tokens, seconds: spent so far; tokens count prompts and answers.
        sigma: of the first step; 0 before it is known.
        answer_tokens, answer_seconds: the part of the above that rollouts and the search took; the rest is
            finding sigma.
        curve: what was reported.
    """

    search: dict[str, Any]
    start: list[float]
    start_scores: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    best_scores: list[float] = field(default_factory=list)
    best_step: int = 0
    silent: int = 0
    unimproved: int = 0
    rollouts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    sigma: float = 0.0
    answer_tokens: int = 0
    answer_seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)


def beginning(bases: Bases, basis: Basis | None, start: MicroVector | None) -> tuple[Basis, MicroVector]:
    """Return the basis of the vector to be found, and the vector to begin with, which names that basis.

    Without `basis` it is that of the start, or of 13 numbers. Without `start` the vector is zeros.
    TrainError: vectors of the basis have more numbers than forward passes find. VectorError: the start is of
    another basis, or of none of the model's.
    """
    basis = basis or (bases.basis(numbers=NUMBERS) if start is None else bases.of(start))
    if basis.size > _MOST:
        raise TrainError(
            f"forward passes find at most {_MOST:,} numbers, and vectors of basis {basis.id} have "
            f"{basis.size:,}: start with a vector of {NUMBERS}, or train it on a host"
        )
    start = MicroVector.zeros(basis) if start is None else start
    basis.values(start)
    start = start if start.basis else replace(start, basis=basis.digest)
    return bases.of(start), start


def picked(count: int, step: int, size: int, seed: tuple[int, ...]) -> list[int]:
    """Return which `size` of `count` items a step takes: each epoch takes all of them, in its own order."""
    places = (divmod(position, count) for position in range(step * size, (step + 1) * size))
    return [int(np.random.default_rng((*seed, epoch)).permutation(count)[at]) for epoch, at in places]


def standard_error(values: NDArray[np.float64]) -> float:
    """Return the standard error of the mean, s / sqrt(n); NaN for a single value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def as_good(scores: NDArray[np.float64], best: NDArray[np.float64]) -> bool:
    """Whether scores on the same prompts are above the best so far, or at most one standard error of the
    difference below.

    The highest of many noisy scores is in part luck, and a later vector that scores a little lower need not
    be worse: with SmolLM2 the last vector of a run was better on held-out prompts than the one that scored
    highest.
    """
    gain = scores - best
    return bool(gain.mean() > 0 or gain.mean() >= -standard_error(gain))


def collapsed(scores: NDArray[np.float64], best: NDArray[np.float64], tolerance: float) -> bool:
    """Whether scores are below the best by more than a tolerance, and by more than two standard errors of the
    difference, so that it is no chance."""
    loss = best - scores
    return bool(loss.mean() > max(tolerance, 2 * standard_error(loss)))


def save_state(path: str | PathLike[str], state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Write a state atomically, for its owner alone, as JSON: `load_state` demands the same `identity`."""
    content = {"format": _FORMAT, "identity": identity, "state": state}
    with atomic_write(path, mode=0o600) as file:
        file.write((json.dumps(content) + "\n").encode())


def load_state(path: str | PathLike[str], read: Callable[[Any], T], identity: dict[str, Any]) -> T:
    """Return what `read` makes of the state in a file that was written with the same `identity`.

    TrainError: it is damaged, or of another run; the message says what differs.
    """
    try:
        content = read_json(path, limit=_STATE_BYTES)
        if content["format"] != _FORMAT:
            raise ValueError(f"it has format {content['format']}, and this version reads {_FORMAT} alone")
        found = dict(content["identity"])
        for key, value in json.loads(json.dumps(identity)).items():  # JSON reads tuples back as lists
            if found.get(key) != value:
                raise TrainError(
                    f"{path} belongs to another run: its {key} is {found.get(key)!r}, this run's is "
                    f"{value!r}. Continue with the same settings, name another file, or remove it to "
                    "start again"
                )
        return read(content["state"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise TrainError(f"{path} is not a usable state: {error}. Remove it to start again") from None


def kept(path: str | PathLike[str], read: Callable[[Any], T], identity: dict[str, Any]) -> T | None:
    """As `load_state`; None where there is no file yet. FileNotFoundError: there is no folder for it."""
    if not (folder := Path(path).resolve().parent).is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist: make this directory for the state, or name a file elsewhere"
        )
    return load_state(path, read, identity) if Path(path).exists() else None
