"""The settings of on-device tuning, and its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...vector import MicroVector

Report = Callable[[dict[str, Any]], None]
"""Called with the figures of every step, and with events: start, restart, end."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """The settings of the tuning loop and of its search.

    Attributes:
        method: of the search, one of `METHODS`.
        options: of the method.
        effect: size of a perturbation in nats: the root mean square change that it makes to the
            log-probabilities of sampled tokens. Measured on the model and its prompts, by a few forward
            passes before the first step, so that one number fits every basis. None: `reach` decides.
        reach: the same without the model: root mean square, over the modules, of the change to what the
            factors hold of a weight, as a share of that. Measured on the basis. With an `effect` it is where
            the measurement begins.
        anchor: what a nat a token of KL(base || candidate) takes from a candidate's reward, in rewards. It is
            measured in every step on a few general prompts, where nothing is drawn any more. 0: nothing is
            measured. What is returned is decided by the reward alone.
        prompts: a step; every candidate answers the same ones.
        temperature: of the answers; 0 for greedy ones, which is what is checked.
        held_back: prompts never learned on, which decide what is returned: at most a third of all.
        check_every: steps between checks, on the first half of those; the last check is on all.
        patience: checks in a row without anything better after which tuning stops.
        silence: steps in a row without any signal after which tuning stops.
        tolerance: how far a check may fall below the best before the search goes back to it.
    """

    method: str = "cma"
    options: Mapping[str, Any] = field(default_factory=dict)
    effect: float | None = 0.5
    reach: float = 0.07
    anchor: float = 0.0
    prompts: int = 8
    temperature: float = 0.0
    held_back: int = 48
    check_every: int = 8
    patience: int = 8
    silence: int = 10
    tolerance: float = 0.15


@dataclass(frozen=True, repr=False)
class Tuned:
    """The best vector that tuning found so far, and what it took.

    Attributes:
        vector: the best one; the start where nothing was better.
        improved: whether it is better than the start on the prompts held back.
        start_score, score: mean rewards of the start and of `vector` on those, greedy.
        held_back: how many they are.
        steps, rollouts, tokens, seconds: in all sittings together.
        stopped: why the sitting ended: `budget`, `patience`, `silence` or `stopped`.
    """

    vector: MicroVector
    improved: bool
    start_score: float
    score: float
    held_back: int
    steps: int
    rollouts: int
    tokens: int
    seconds: float
    stopped: str

    def __repr__(self) -> str:
        found = "better" if self.improved else "no better"
        return (
            f"Tuned({found}: {self.start_score:.4f} -> {self.score:.4f} on {self.held_back} prompts, "
            f"{self.steps} steps, {self.tokens} tokens, {self.seconds:.0f} s, {self.stopped})"
        )
