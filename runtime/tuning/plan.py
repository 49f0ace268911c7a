"""The plan of on-device tuning: everything that is the same in every sitting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...prior import Whitening
from ...tasks import Sample, Task
from ...vector import MicroVector
from .settings import Report, TuneSettings


@dataclass(frozen=True)
class Plan:
    """Everything that is the same in every sitting.

    Attributes:
        task: prompts to learn on and prompts held back, and the reward that decides.
        lessons: the same with the reward to learn from.
        settings: of the loop.
        seed: of everything.
        anchored: general prompts on which candidates are held near the base; none without an anchor.
        start: vector that tuning began with.
        whitening: the coordinates that are searched in.
        sigma: size of a perturbation at the beginning, or where its effect is to be measured, to begin with.
        wait: while it returns true nothing is computed.
        report: called with figures.
        stopped: whether the sitting is to end after the step at hand.
        save: called when the state has changed.
    """

    task: Task
    lessons: Task
    settings: TuneSettings
    seed: int
    anchored: Sequence[Sample]
    start: MicroVector
    whitening: Whitening
    sigma: float
    wait: Callable[[], bool]
    report: Report
    stopped: Callable[[], bool]
    save: Callable[[], None]
