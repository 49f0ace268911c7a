"""On-device tuning: a search over v that only ever runs the model forwards.

Every step asks the search for candidates, answers the same few prompts under each of them, and tells the
search what the reward said. Some prompts are held back: they decide what is returned. Knows no engine: a
loaded model brings its own way to answer many prompts under many vectors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._basis import Basis
from .._vector import MicroVector
from ..errors import TrainError
from ..tasks import Reward, Sample, Task
from ._personal import Personal
from ._search import Search, make_search, restore_search
from ._tuning_state import Budget, State, load_state, save_state
from .evaluation import Population

Report = Callable[[dict[str, Any]], None]
"""Called with the figures of every step, and with events: start, restart, end."""

Prompt = str | Sequence[Mapping[str, str]] | Sample
"""Plain text, chat messages, or a sample of a task."""

_POLL = 0.5  # seconds between two questions to `wait`
_PROBE = 8  # prompts of the first answers, which tell what a step will cost
_WIDER, _WIDEST = 1.5, 4.0  # sigma after a step without signal, and at most, over that of the beginning
_NARROWER = 0.7  # sigma after going back to the best


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """Of tuning.

    Attributes:
        method: of the search, one of `METHODS`.
        options: of the method.
        reach: size of a perturbation: root mean square, over the modules, of the change that it makes to
            what the factors hold of a weight, as a share of that. Measured on the basis, so that one number
            fits bases of every rank, tying and factorization.
        prompts: a step; every candidate answers the same ones.
        temperature: of the answers; 0 for greedy ones, which is what is checked.
        held_back: prompts never learned on, which decide what is returned: at most a third of all.
        check_every: steps between checks, on the first half of those; the last check is on all.
        patience: checks in a row without anything better after which tuning stops.
        silence: steps in a row without any signal after which tuning stops.
        tolerance: how far a check may fall below the best before the search goes back to it.
    """

    method: str = "kalman"
    options: Mapping[str, Any] = field(default_factory=dict)
    reach: float = 0.07
    prompts: int = 8
    temperature: float = 0.0
    held_back: int = 48
    check_every: int = 8
    patience: int = 8
    silence: int = 10
    tolerance: float = 0.15


@dataclass(frozen=True)
class Tuned:
    """What tuning found so far.

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


class Tuning:
    """Tunes v on the device, in one sitting or many.

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
        start: vector to begin with; None for the model's own, or where it has none the base.
        max_tokens: of an answer.
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
        llm: Personal,
        prompts: Sequence[Prompt],
        reward: Reward,
        *,
        shaped: Reward | None = None,
        seed: int = 0,
        start: MicroVector | None = None,
        max_tokens: int = 64,
        settings: TuneSettings | None = None,
        path: str | PathLike[str] | None = None,
        wait: Callable[[], bool] = lambda: False,
        report: Report = lambda figures: None,
        sequences: int = 32,
        n_threads: int | None = None,
    ) -> None:
        self.settings = settings or TuneSettings()
        self._llm, self._seed, self._wait, self._report = llm, seed, wait, report
        self._start = start or llm.vector or MicroVector.zeros(llm.basis)
        llm.basis.values(self._start)
        self._train, self._check = _hold_back([_sample(p) for p in prompts], self.settings.held_back, seed)
        self._task = Task("tuning", self._train, self._check, reward, max_tokens, self.settings.temperature)
        self._lessons = self._task if shaped is None else replace(self._task, reward=shaped)
        self._side_by_side = sequences, n_threads
        self._path = None if path is None else Path(path)
        self._stop = False
        flat = self._start.values.reshape(-1).astype(float)
        self._sigma = self.settings.reach / spread_of(llm.basis)
        try:
            self._search = make_search(
                self.settings.method, flat, sigma=self._sigma, seed=seed, **self.settings.options
            )
        except (TypeError, ValueError) as error:
            raise TrainError(f"the search cannot begin: {error}") from None
        self.state = State(self._search.state(), flat.tolist())
        if self._path is not None and self._path.exists():
            self.state = load_state(self._path, self._identity())
            self._search = restore_search(self.state.search)

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
        samples = [*self._train, *self._check]
        with self._llm._population(
            samples, self._task.max_tokens, sequences=sequences, n_threads=n_threads
        ) as population:
            sitting = _Sitting(self, population, budget, last_check)
            self.state.seconds += time.monotonic() - began
            return sitting.run(resumed)

    def _identity(self) -> dict[str, Any]:
        return {
            "basis": self._llm.basis.digest,
            "seed": self._seed,
            "prompts": len(self._train),
            "held_back": len(self._check),
            "max_tokens": self._task.max_tokens,
            **asdict(self.settings),
        }


class _Sitting:
    """One sitting: a budget, and what answers."""

    def __init__(self, tuning: Tuning, population: Population, budget: Budget, last_check: bool) -> None:
        self._tuning, self._population, self._budget = tuning, population, budget
        self._last_check = last_check
        self._task, self._settings = tuning._task, tuning.settings
        self._search: Search = tuning._search
        self.state = tuning.state
        self._began = self.state.tokens, self.state.seconds

    def run(self, resumed: bool) -> Tuned:
        state, settings = self.state, self._settings
        self._rest()
        if not self._tuning._stop:
            self._begin(resumed)
        stopped = "budget"
        while not self._tuning._stop and self._affords(self._rollouts_of_step() + self._rollouts_of_end()):
            self._step()
            if state.silent >= settings.silence or state.unimproved >= settings.patience:
                stopped = "silence" if state.silent >= settings.silence else "patience"
                break
            self._rest()
        stopped = "stopped" if self._tuning._stop else stopped
        found = self._end(stopped) if self._last_check and not self._tuning._stop else self._best(stopped)
        self._tuning._report({"event": "end", **_figures(found)})
        return found

    def _rest(self) -> None:
        while self._tuning._wait() and not self._tuning._stop:
            time.sleep(_POLL)

    def _begin(self, resumed: bool) -> None:
        """Know whether one step is affordable at all, and score the start if that is not done yet."""
        check, state = self._task.held_out, self.state
        probe: list[float] = []
        if not state.start_scores:
            probe = self._score([self._vector(state.start)], check[:_PROBE], checking=True)[0].tolist()
        need = self._rollouts_of_step() + self._rollouts_of_end() + (len(check) - len(probe) if probe else 0)
        if not resumed and not self._affords(need):
            error = self._too_small(need + len(probe))
            if probe:
                state.rollouts, state.tokens, state.seconds = 0, *self._began  # nothing was learned
            raise error
        if not probe:
            return
        rest = check[_PROBE:]
        more = self._score([self._vector(state.start)], rest, checking=True)[0].tolist() if rest else []
        state.start_scores = [*probe, *more]
        state.best, state.best_scores = list(state.start), state.start_scores[: self._half()]
        self._save()
        start = float(np.mean(state.start_scores))
        self._tuning._report({"event": "start", "check": start, "held_back": len(check), **self._spent()})

    def _step(self) -> None:
        state, search = self.state, self._search
        candidates = search.ask()
        samples = self._pick(search.step)
        rewards = self._score([self._vector(c) for c in candidates], samples, seed=search.step)
        search.tell(rewards)
        if np.ptp(rewards, axis=0).any():
            state.silent = 0
        else:
            state.silent += 1
            search.sigma = min(search.sigma * _WIDER, self._tuning._sigma * _WIDEST)
        figures: dict[str, Any] = {
            "step": search.step,
            "reward": float(rewards.mean()),
            "sigma": search.sigma,
            "norm": float(np.linalg.norm(search.mean)),
            **self._spent(),
        }
        if search.step % self._settings.check_every == 0:
            figures["check"] = self._look()
        self._save()
        self._tuning._report(figures)

    def _look(self) -> float:
        """Check the mean on the first held-back prompts: keep it, or go back to the best."""
        state, search = self.state, self._search
        samples = self._task.held_out[: self._half()]
        scores = self._score([self._vector(search.mean)], samples, checking=True)[0]
        gap = scores - np.array(state.best_scores)
        if gap.mean() > 0 or (gap.mean() == 0 and state.best_step):
            state.unimproved = 0 if gap.mean() > 0 else state.unimproved + 1
            state.best, state.best_scores = search.mean.tolist(), scores.tolist()
            state.best_step = search.step
        else:
            state.unimproved += 1
            if -gap.mean() > max(self._settings.tolerance, 2 * _standard_error(gap)):
                search.jump(state.best, search.sigma * _NARROWER)
                state.restarts += 1
                self._tuning._report({"event": "restart", "step": search.step, "sigma": search.sigma})
        return float(scores.mean())

    def _end(self, stopped: str) -> Tuned:
        """Compare the finalists with the start on all the prompts held back."""
        state, check, half = self.state, self._task.held_out, self._half()
        start = np.array(state.start_scores)
        found, best = self._vector(state.start), start
        finalists = [(state.best, state.best_scores)] if state.best_step else []
        if self._search.step > state.best_step:
            finalists.append((self._search.mean.tolist(), []))
        for values, known in finalists:
            rest = check[half:] if known else check
            more = self._score([self._vector(values)], rest, checking=True)[0] if rest else []
            scores = np.array([*known, *more])
            gap = scores - best
            # Of two that the check cannot tell apart the later one has learned from more. The start is none
            # of them: it has to be beaten.
            margin = 0.0 if best is start else -_standard_error(gap)
            if gap.mean() > margin and scores.mean() > start.mean():
                found, best = self._vector(values), scores
        self._save()
        return self._tuned(found if best is not start else None, start, best, stopped)

    def _best(self, stopped: str) -> Tuned:
        """What is known without answering any more."""
        state = self.state
        start, best = np.array(state.start_scores[: self._half()]), np.array(state.best_scores)
        better = state.best_step > 0 and best.mean() > start.mean()
        return self._tuned(
            self._vector(state.best) if better else None, start, best if better else start, stopped
        )

    def _tuned(
        self, found: MicroVector | None, start: NDArray[np.float64], best: NDArray[np.float64], stopped: str
    ) -> Tuned:
        state = self.state
        return Tuned(
            vector=found or self._tuning._start,
            improved=found is not None,
            start_score=float(start.mean()) if len(start) else math.nan,
            score=float(best.mean()) if len(best) else math.nan,
            held_back=len(start),
            steps=self._search.step,
            rollouts=state.rollouts,
            tokens=state.tokens,
            seconds=state.seconds,
            stopped=stopped,
        )

    def _score(
        self,
        vectors: Sequence[MicroVector],
        samples: Sequence[Sample],
        *,
        seed: int = 0,
        checking: bool = False,
    ) -> NDArray[np.float64]:
        """Return rewards [vectors, samples], and count what they cost."""
        state, before, began = self.state, self._population.evaluated, time.monotonic()
        answers = self._population.answer_each(
            vectors,
            samples,
            max_tokens=self._task.max_tokens,
            temperature=0.0 if checking else self._settings.temperature,
            seed=(self._tuning._seed, 1, seed),
        )
        judge = self._task if checking else self._tuning._lessons
        rewards = [
            [judge.score(answer, sample) for answer, sample in zip(row, samples, strict=True)]
            for row in answers
        ]
        state.rollouts += len(vectors) * len(samples)
        state.tokens += self._population.evaluated - before
        state.seconds += time.monotonic() - began
        return np.array(rewards, np.float64)

    def _vector(self, values: Sequence[float] | NDArray[np.float64]) -> MicroVector:
        start = self._tuning._start
        return replace(start, values=np.array(values, np.float32).reshape(start.values.shape))

    def _pick(self, step: int) -> list[Sample]:
        """The prompts of a step: every epoch visits all of them in an order of its own."""
        count, size = len(self._task.train), min(self._settings.prompts, len(self._task.train))
        chosen = []
        for position in range(step * size, (step + 1) * size):
            epoch, offset = divmod(position, count)
            order = np.random.default_rng((self._tuning._seed, 2, epoch)).permutation(count)
            chosen.append(self._task.train[order[offset]])
        return chosen

    def _half(self) -> int:
        return -(-len(self._task.held_out) // 2)

    def _rollouts_of_step(self) -> int:
        step = len(self._search.ask()) * min(self._settings.prompts, len(self._task.train))
        due = (self._search.step + 1) % self._settings.check_every == 0
        return step + (self._half() if due else 0)

    def _rollouts_of_end(self) -> int:
        """The last check: of the mean, and what the best has not answered yet."""
        if not self._last_check:
            return 0
        rest = len(self._task.held_out) - self._half()
        return len(self._task.held_out) + (rest if self.state.best_step else 0)

    def _affords(self, rollouts: int) -> bool:
        tokens, seconds = self._cost(rollouts)
        spent = self.state.tokens - self._began[0], self.state.seconds - self._began[1]
        limits = self._budget.tokens, self._budget.seconds
        return all(
            limit is None or used + cost <= limit
            for used, cost, limit in zip(spent, (tokens, seconds), limits, strict=True)
        )

    def _spent(self) -> dict[str, float]:
        """In all sittings together."""
        return {"tokens": self.state.tokens, "seconds": self.state.seconds}

    def _cost(self, rollouts: int) -> tuple[float, float]:
        """Tokens and seconds that so many answers take, by what they took so far."""
        each = rollouts / max(self.state.rollouts, 1)
        return self.state.tokens * each, self.state.seconds * each

    def _too_small(self, need: int) -> TrainError:
        step, whole = self._cost(self._rollouts_of_step()), self._cost(need)
        given = " and ".join(
            f"{value:.0f} {unit}"
            for value, unit in ((self._budget.seconds, "s"), (self._budget.tokens, "tokens"))
            if value is not None
        )
        return TrainError(
            f"a budget of {given} is too small: one step takes about {step[1]:.0f} s and {step[0]:.0f} "
            f"tokens here, and with the checks before and after it {whole[1]:.0f} s and {whole[0]:.0f} "
            "tokens. Give more, or fewer prompts a step, or shorter answers (max_tokens)"
        )

    def _save(self) -> None:
        self.state.search = self._search.state()
        if self._tuning._path is not None:
            save_state(self._tuning._path, self.state, self._tuning._identity())


def spread_of(basis: Basis) -> float:
    """How much a vector of entries N(0, 1) changes the modules, for `TuneSettings.reach`.

    Returns:
        The root mean square, over modules and eight draws, of |B R A| / |B A| (Frobenius).
    """
    rng = np.random.default_rng(0)
    draws = [
        basis.R(rng.standard_normal((basis.groups, basis.u)).astype(np.float32)).astype(np.float64)
        for _ in range(8)
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


def _sample(prompt: Prompt) -> Sample:
    if isinstance(prompt, Sample):
        return prompt
    return Sample(prompt if isinstance(prompt, str) else tuple(dict(message) for message in prompt))


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


def _standard_error(gaps: NDArray[np.float64]) -> float:
    return float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else 0.0


def _figures(found: Tuned) -> dict[str, Any]:
    return {key: value for key, value in vars(found).items() if key != "vector"}
