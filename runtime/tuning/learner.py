"""The learner from rewards: a search over v that only ever runs the model forwards.

Every step asks the search for candidates, answers the same few prompts under each of them, and tells the
search what the reward said. Some prompts are held back: they decide what is returned. Knows no engine: a
loaded model brings its own way to answer many prompts under many vectors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ...basis import Basis
from ...errors import TrainError
from ...tasks import Prompt, Reward, Sample, Task
from ...vector import MicroVector
from ..model import PersonalizedModel
from .anchor import ANCHOR_TOKENS, anchor_samples
from .plan import Plan
from .search import make_search, restore_search
from .settings import Report, Tuned, TuneSettings
from .sitting import Sitting
from .state import Budget, TuningState, load_state, save_state


class RewardLearner:
    """A learner that tunes v on the device, in one sitting or many.

    Between two steps everything is in `state`, so an app may give it idle minutes: `run` goes on where the
    last one ended, and with a `path` so does another process.

    Args:
        llm: a loaded model, of either engine. Neither its vector nor its context is touched.
        prompts: what to learn on, at least 2: a part of them is held back.
        reward: judges an answer: `reward(completion, sample) -> float`, higher is better. `sample` is the
            prompt as it was given, or a `Sample` of it.
        shaped: what to learn from in its place: the same goal with credit for coming near, which teaches
            faster than right or wrong. `reward` alone decides what is kept.
        seed: of everything.
        start: vector to begin with; None for the model's own, or where it has none the base. A state that
            exists knows its own.
        max_tokens: of an answer.
        raw: texts go past the chat template; by default each is one message of the user, as in the app.
        settings: of the loop and the search.
        path: file in which the state is kept after every step, and from which it goes on if it exists. It
            holds numbers, and neither prompts nor answers.
        wait: asked before every step; while it returns true nothing is computed (an app in the foreground, a
            device that is hot), and the time does not count.
        report: called with the figures of every step.
        sequences: that run at the same time.
        n_threads: cores to use; by default all that the engine would take.

    Raises:
        TrainError: no prompts, or one; settings that no search takes; a state that is damaged, or of another
            run.
        VectorError: the start does not fit the basis.
    """

    def __init__(
        self,
        llm: PersonalizedModel,
        prompts: Sequence[Prompt | Sample],
        reward: Reward,
        *,
        shaped: Reward | None = None,
        seed: int = 0,
        start: MicroVector | None = None,
        max_tokens: int = 64,
        raw: bool = False,
        settings: TuneSettings | None = None,
        path: str | PathLike[str] | None = None,
        wait: Callable[[], bool] = lambda: False,
        report: Report = lambda figures: None,
        sequences: int = 32,
        n_threads: int | None = None,
    ) -> None:
        self.settings = settings = settings or TuneSettings()
        if settings.effect is not None and not 0 < settings.effect < math.inf:
            raise TrainError(f"a perturbation has an effect of more than 0 nats, not of {settings.effect}")
        if not 0 <= settings.anchor < math.inf:
            raise TrainError(f"an anchor weighs at least 0 rewards a nat, not {settings.anchor}")
        self._llm, self._side_by_side, self._stop = llm, (sequences, n_threads), False
        self._path = None if path is None else Path(path)
        start = start or llm.vector or MicroVector.zeros(llm.basis)
        llm.basis.values(start)
        train, check = _hold_back([Sample.of(p, raw=raw) for p in prompts], settings.held_back, seed)
        task = Task("tuning", train, check, reward, max_tokens, settings.temperature)
        self._plan = Plan(
            task=task,
            lessons=task if shaped is None else replace(task, reward=shaped),
            settings=settings,
            seed=seed,
            anchored=anchor_samples() if settings.anchor else [],
            start=start,
            whitening=llm.basis.whitening,
            sigma=settings.reach / spread_of(llm.basis),
            wait=wait,
            report=report,
            stopped=lambda: self._stop,
            save=self._save,
        )
        flat = start.values.reshape(-1).astype(float)
        try:
            search = make_search(
                settings.method,
                llm.basis.whitening.coordinates(flat),
                sigma=self._plan.sigma,
                seed=seed,
                **settings.options,
            )
        except (TypeError, ValueError) as error:
            raise TrainError(f"the search cannot begin: {error}") from None
        self._search, self.state = search, TuningState(search.state(), flat.tolist())
        if self._path is not None and self._path.exists():
            self.state = load_state(self._path, self._identity())
            try:
                # Not what this process was given: an app may have swapped in what was found.
                began = np.array(self.state.start, np.float32).reshape(start.values.shape)
                self._plan = replace(self._plan, start=MicroVector(began, start.dtype, start.sequence))
                self._search = restore_search(self.state.search, size=search.size)
            except ValueError as error:
                raise TrainError(f"{self._path} is not a usable state of tuning: {error}") from None

    def stop(self) -> None:
        """End the sitting after the step at hand; safe to call from a signal handler or another thread."""
        self._stop = True

    def run(self, budget: Budget | float | str, *, last_check: bool = True) -> Tuned:
        """Tune until the budget is spent, or nothing is left to find.

        Args:
            budget: seconds, a text such as `5m` or `80ktokens`, or a `Budget`. Its end is foreseen: what the
                last check will take is put aside.
            last_check: compare the last vector and the best one with the start on all the prompts held back.
                Without, a sitting that others will follow returns what the checks on the way say.

        Raises:
            TrainError: the budget is too small for one step (the message says what one takes); a prompt has
                no room in the model's context; the reward raised an exception or returned something that is
                not a finite number. What was learned until then is kept.
            VectorError: the model has no chat template for messages.
            TinyLoraError: the engine has no memory for so many sequences.
            OSError: the state cannot be written.
        """
        budget = Budget.of(budget)
        self._stop = False
        return self._sit(budget, last_check, resumed=False)

    def _sit(self, budget: Budget, last_check: bool, *, resumed: bool) -> Tuned:
        """`resumed`: the budget is what was left of one, so that no step need be affordable."""
        began = time.monotonic()
        sequences, n_threads = self._side_by_side
        task = self._plan.task
        samples, room = [*task.train, *task.held_out, *self._plan.anchored], task.max_tokens
        if self._plan.anchored:
            room = max(room, ANCHOR_TOKENS)
        with self._llm.batch(samples, room, sequences=sequences, n_threads=n_threads) as population:
            sitting = Sitting(self._plan, self._search, self.state, population, budget, last_check=last_check)
            self.state.seconds += time.monotonic() - began
            return sitting.run(resumed)

    def _save(self) -> None:
        if self._path is not None:
            save_state(self._path, self.state, self._identity())

    def _identity(self) -> dict[str, Any]:
        task = self._plan.task
        return {
            "basis": self._llm.basis.digest,
            "prior": None if (prior := self._llm.basis.prior) is None else prior.digest,
            "seed": self._plan.seed,
            "number of prompts": len(task.train),
            "number held back": len(task.held_out),
            "max_tokens": task.max_tokens,
            **asdict(self.settings),
        }


def spread_of(basis: Basis) -> float:
    """How much a vector of entries N(0, 1) changes the modules, for `TuneSettings.reach`.

    Where the basis has a prior, the entries are those of z (`Basis.whitening`).

    Returns:
        The root mean square, over modules and eight draws, of |B R A| / |B A| (Frobenius).
    """
    rng = np.random.default_rng(0)
    draws = [
        basis.R(basis.whitening.values(rng.standard_normal(basis.size))).astype(np.float64) for _ in range(8)
    ]
    shares = []
    for position, factors in enumerate(zip(basis.a, basis.b, strict=True)):
        a, b = (np.asarray(factor, np.float64) for factor in factors)
        left, right = np.swapaxes(b, -1, -2) @ b, a @ np.swapaxes(a, -1, -2)  # r x r
        whole = float(np.einsum("...ij,...ji->...", left, right).sum())
        for draw in draws:
            r = draw[position]
            shares.append(
                float(np.einsum("...ij,...ji->...", r.T @ left @ r, right).sum()) / max(whole, 1e-300)
            )
    return math.sqrt(float(np.mean(shares)))


def _hold_back(samples: list[Sample], count: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Return the samples to learn on, and those held back."""
    if len(samples) < 2:
        raise TrainError(
            f"tuning was given {len(samples)} prompts, expected at least 2, and better 100: some are held "
            "back to see whether what was learned holds for prompts that were not learned on"
        )
    order = np.random.default_rng((seed, 0)).permutation(len(samples))
    held = max(1, min(count, len(samples) // 3))
    return [samples[i] for i in order[held:]], [samples[i] for i in order[:held]]
