"""Learning from a reward, or from a user's own texts, by a search over v with forward passes alone.

`tune` is one call, `RewardLearner` is for idle minutes. Every step asks the search for candidates, judges
their answers to the same few prompts, or the likelihood of the texts, and tells the search. Some prompts are
held back: they decide what is returned.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.basis import Basis
from tinylora_edge.errors import NotImprovedWarning, TrainError
from tinylora_edge.jsonio import restored
from tinylora_edge.process import cores
from tinylora_edge.tasks import Prompt, Reward, Sample, Task
from tinylora_edge.tasks.files import rank
from tinylora_edge.tasks.rewards import is_text
from tinylora_edge.tasks.task import name_of
from tinylora_edge.vector import MicroVector

from ..batch import Batch
from ..model import PersonalizedModel
from ..schema import Schema
from .search import Search, change, sigma_of
from .state import Budget, Report, SearchState, as_good, beginning, collapsed, kept, picked, save_state

_EFFECT_PROMPTS, _EFFECT_TOKENS, _EFFECT_VECTORS = 4, 16, 4  # with which the effect of a sigma is measured
_EFFECT = 0.5  # nats by which candidates are to change log-probabilities of tokens, root mean square
_TEXTS_EFFECT = 0.25  # the same for texts, whose likelihood is a finer scale than a reward
_REACH = 0.07  # root mean square length of R's rows at the first sigma that is tried
_WIDER = 1.5  # sigma after a step without signal, relative to the sigma before
_WIDEST = 4.0  # largest sigma, relative to that of the first step
_NARROWER = 0.7  # sigma after going back to the best vector, relative to the sigma before
_TOLERANCE = 0.15  # how far a check may fall below the best before the search goes back to it
_PATIENCE = 8  # checks in a row without a better vector, after which learning stops
_SILENCE = 10  # steps in a row in which all candidates had the same rewards, after which learning stops
_SEQUENCES = 32  # sequences that run at the same time
_TEXTS = 8  # texts scored at the same time, for each thread: these fill an evaluation (`loop._SCORED`)


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """The settings of the loop and of its search.

    Attributes:
        population: candidates a step, at least 4.
        prompts: how many a step; every candidate answers the same ones, greedily.
        held_back: prompts never learned on, which decide what is returned: at most a third of all. None: 48,
            for texts a tenth, 8 to 48.
        check_every: steps between checks on the first half of those; the last check is on all of them.

    TrainError: a number is too small.
    """

    population: int = 8
    prompts: int = 8
    held_back: int | None = None
    check_every: int = 8

    def __post_init__(self) -> None:
        for name, least in (("population", 4), ("prompts", 1), ("held_back", 1), ("check_every", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise TrainError(f"{name} is {value}: it must be {least} or more")


@dataclass(frozen=True)
class Tuned:
    """The best vector that was found so far, with its scores, steps, tokens and seconds.

    Attributes:
        vector: the best one; the start where nothing was better.
        improved: whether it is better than the start on the prompts held back.
        start_score, score: mean rewards of the start and of `vector` on those, greedy; for texts minus the
            nats a token.
        held_back: how many prompts those are.
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

    def record(self) -> dict[str, Any]:
        """Return everything but the vector, as JSON takes it."""
        return {key: value for key, value in vars(self).items() if key != "vector"}


class RewardLearner:
    """Learns v on the device from the rewards of its answers, in one run or several.

    Between two steps everything is in `state`, so an app may give it idle minutes: `run` goes on where the
    last one ended, and with a `path` so does another process.

    Args:
        llm: a loaded model, of either engine. Neither its vector nor its context is touched.
        prompts: what to learn on, at least 2: a part of them is held back.
        reward: judges an answer: `reward(completion, sample) -> float`, higher is better. `sample` is the
            `Sample` of the prompt. `rewards.text` stands for the likelihood of the samples' own answers:
            nothing is drawn.
        shaped: a reward to learn from, while `reward` decides what is kept: the same goal with credit for
            coming near, which teaches faster than right or wrong.
        max_tokens: most tokens of an answer.
        schema: what answers are held to: a JSON schema, or labels, one of which is the answer.
        seed: of all random numbers.
        basis: of the vector; None for that of `start`, or of 13 numbers.
        start: vector to begin with; None for the model's own, or for zeros where it has none or a basis is
            given. An existing state has its own.
        under: what lies beneath all vectors; None for what lies beneath the start.
        settings: of the loop and the search.
        path: file in which the state is kept after every step, and from which it goes on if it exists. It
            holds numbers, and neither prompts nor answers.
        report: called with the figures of every step, and with events: start, restart, end.
        n_threads: cores to use; by default all that this process may use.

    Raises:
        TrainError: there are fewer than 2 prompts, or one lacks the answer to be learned; the settings are
            out of range; the basis has more numbers than a search finds; a state is damaged, or of another
            run.
        VectorError: the start is of another basis, or of none of the model's.
        OSError: the state cannot be read, or there is no folder for it.
    """

    _batch: Batch  # of the sitting
    _budget: Budget

    def __init__(
        self,
        llm: PersonalizedModel,
        prompts: Sequence[Prompt | Sample],
        reward: Reward,
        *,
        shaped: Reward | None = None,
        max_tokens: int = 64,
        schema: Schema | None = None,
        settings: TuneSettings | None = None,
        basis: Basis | None = None,
        start: MicroVector | None = None,
        under: MicroVector | None = None,
        seed: int = 0,
        path: str | PathLike[str] | None = None,
        report: Report = lambda figures: None,
        n_threads: int | None = None,
    ) -> None:
        self.settings = settings = settings or TuneSettings()
        samples = [Sample.of(prompt) for prompt in prompts]
        self._deciding, self._schema = Task("tuning", [], [], reward, max_tokens), schema
        self._lessons = replace(self._deciding, reward=shaped or reward)
        self._llm, self._samples, self._max_tokens, self._seed = llm, samples, max_tokens, seed
        self._path, self._told, self._threads = None if path is None else Path(path), report, n_threads
        texts = is_text(reward)
        if texts and any(sample.answer is None for sample in samples):
            raise TrainError(
                "a prompt has no answer to learn: give an answer to each prompt, or pass a reward"
            )
        self._targets = [llm.encode_answer(sample)[:max_tokens] for sample in samples] if texts else []
        lengths = [len(answer) for answer in self._targets]
        self._longest = max(lengths, default=max_tokens)
        self._effect = _TEXTS_EFFECT if texts else _EFFECT
        held = settings.held_back or (min(48, max(8, len(samples) // 10)) if texts else 48)
        self._train, self._check = _hold_back(samples, held, seed)
        self._half = -(-len(self._check) // 2)  # prompts of every check but the last
        self._prompts = min(settings.prompts, len(self._train))  # prompts of a step
        self._length = float(np.mean([lengths[i] for i in self._check] if texts else 1))
        start = start or (llm.vector if basis is None else None)
        basis, start = beginning(llm.bases, basis, start)
        start = start if under is None else replace(start, under=under)
        self._under = None if start.under is None else llm.own(start.under)
        self._basis, self._start = basis, start
        self._whitening = basis.projection.whitening
        self._sigma = _REACH * math.sqrt(len(basis.modules) * basis.shape[0]) / basis.projection.norm
        self._stop = False
        values = basis.values(start).astype(float)
        first = self._whitening.coordinates(values)
        self._search = Search(first, self._sigma, seed, population=settings.population)
        self.state = SearchState(self._search.state(), values.tolist())
        if self._path is not None:
            kept(self._path, self._resume, self._identity())

    def _resume(self, content: Any) -> None:
        self.state = restored(SearchState, content)
        self._start = self._vector(self.state.start)  # an app may have swapped in what was found
        size, population = self._basis.size, self.settings.population
        self._search = Search.restored(self.state.search, size, self._seed, population)

    def stop(self) -> None:
        """End the run after the current step; safe to call from a signal handler or another thread."""
        self._stop = True

    def run(self, budget: Budget | float | str) -> Tuned:
        """Learn until the budget is spent, or no better vector can be found.

        Args:
            budget: seconds, a text such as `5m` or `80ktokens`, or a `Budget`. What the last check will take
                is put aside.

        Raises:
            TrainError: the budget is too small for a first step (the message says what one takes); a prompt
                has no room in the model's context; the reward raised an exception or returned something that
                is not a finite number. What was learned until then is kept.
            VectorError: the model has no chat template for messages.
            TinyLoraError: the engine has no memory for so many sequences.
            OSError: the state cannot be written.
        """
        self._budget, self._stop = Budget.of(budget), False
        self._began, began = (self.state.tokens, self.state.seconds), time.monotonic()
        rows = min(_SEQUENCES, _TEXTS * (self._threads or cores())) if self._targets else _SEQUENCES
        with self._llm.batch(self._samples, self._longest, sequences=rows, n_threads=self._threads) as batch:
            self.state.seconds += time.monotonic() - began
            self._batch = batch
            self._begin()
            stopped = "budget"
            while not self._stop and self._affords():
                self._step()
                if self.state.silent >= _SILENCE or self.state.unimproved >= _PATIENCE:
                    stopped = "silence" if self.state.silent >= _SILENCE else "patience"
                    break
            found = self._end("stopped" if self._stop else stopped)
            self._report({"event": "end", **found.record()})
            return found

    def _report(self, row: dict[str, Any]) -> None:
        self.state.curve.append(row)
        self._told(row)

    def _begin(self) -> None:
        """Score the start and choose sigma, unless the state has both, and check that a step is in budget."""
        state, fresh = self.state, not self.state.sigma
        if not state.start_scores:
            (scores,) = self._judge([self._vector(state.start)], self._check, checking=True)
            state.start_scores = scores.tolist()
            state.best, state.best_scores = list(state.start), state.start_scores[: self._half]
        if not state.sigma:
            self._choose_sigma()
        if not self._search.step and not self._affords():
            step, (tokens, seconds) = self._cost(self._ahead()[0]), self._needed()
            raise TrainError(
                f"a budget of {self._budget} is too small: one step takes about {step[1]:.0f} s and "
                f"{step[0]:.0f} tokens here, and with the checks before and after it {seconds:.0f} s and "
                f"{tokens:.0f} tokens. Give more, or fewer prompts a step (prompts), or shorter answers "
                "(max_tokens)"
            )
        if fresh:
            check = float(np.mean(state.start_scores))
            figures = {"check": check, "held_back": len(self._check), "sigma": state.sigma}
            self._report({"event": "start", **figures, **self._spent()})
            self._save()

    def _choose_sigma(self) -> None:
        """Choose the sigma whose perturbations change log-probabilities by the wanted effect, in nats.

        The effect is measured on the model and its prompts, so that one number fits every basis.
        """
        state, batch = self.state, self._batch
        samples = [self._samples[i] for i in self._train[:_EFFECT_PROMPTS]]
        directions = np.random.default_rng((self._seed, 4)).standard_normal(
            (_EFFECT_VECTORS, self._search.mean.size)
        )
        with self._counted():
            tokens = min(self._max_tokens, _EFFECT_TOKENS)
            prompts, seed = batch.encode(samples), (self._seed, 3)
            if self._targets:
                answers = [[self._targets[i][:tokens]] for i in self._train[:_EFFECT_PROMPTS]]
            else:
                drawn = batch.generate(
                    prompts, vectors=self._start, max_tokens=tokens, temperature=1.0, seed=seed
                )
                answers = [[each.tokens.tolist()] for each in drawn]

            def scores(vectors: Sequence[MicroVector | None]) -> list[NDArray[np.float32]]:
                found = batch.score_each(vectors, prompts, answers)
                return [np.concatenate([row for (row,) in each]) for each in found]

            (here,) = scores([self._start])

            def measure(sigma: float) -> float:
                moved = np.array(state.start) + sigma * self._whitening.values(directions)
                return change(here, scores([self._vector(v) for v in moved]))

            state.sigma = sigma_of(self._effect, self._sigma, measure)
            self._search = self._search.anew(self._search.mean, state.sigma)

    def _step(self) -> None:
        state, search = self.state, self._search
        began = time.monotonic() - state.seconds
        vectors = [self._vector(v) for v in self._whitening.values(search.ask())]
        numbers = picked(len(self._train), search.step, self._prompts, (self._seed, 2))
        rewards = self._judge(vectors, [self._train[number] for number in numbers])
        search.tell(rewards)
        searched = time.monotonic() - began - state.seconds  # can exceed the answers' time: n is in hundreds
        state.seconds += searched
        state.answer_seconds += searched
        if np.ptp(rewards, axis=0).any():
            state.silent = 0
        else:
            state.silent += 1
            sigma = min(search.sigma * _WIDER, state.sigma * _WIDEST)
            self._search = search = search.anew(search.mean, sigma)
        figures: dict[str, Any] = {
            "step": search.step,
            "reward": float(rewards.mean()),
            "sigma": search.sigma,
            "norm": float(np.linalg.norm(self._mean())),
            **self._spent(),
        }
        if search.step % self.settings.check_every == 0:
            figures["check"] = self._look()
        self._report(figures)
        self._save()

    def _look(self) -> float:
        """Check the search's mean on the first half of the held-back prompts: keep it, or go back to the best
        after a collapse."""
        state, search = self.state, self._search
        (scores,) = self._judge([self._vector(self._mean())], self._check[: self._half], checking=True)
        best = np.array(state.best_scores)
        gap = scores - best
        if gap.mean() > 0 or (gap.mean() == 0 and state.best_step):
            state.unimproved = 0 if gap.mean() > 0 else state.unimproved + 1
            state.best, state.best_scores = self._mean().tolist(), scores.tolist()
            state.best_step = search.step
        else:
            state.unimproved += 1
            if collapsed(scores, best, _TOLERANCE):
                there = self._whitening.coordinates(np.array(state.best))
                self._search = search.anew(there, search.sigma * _NARROWER)
                self._report({"event": "restart", "step": search.step, "sigma": self._search.sigma})
        return float(scores.mean())

    def _end(self, stopped: str) -> Tuned:
        """Compare the finalists with the start on all the prompts held back.

        A sitting that was stopped answers no more: its finalist is the best by the checks so far.
        """
        state, check = self.state, self._check
        if stopped == "stopped":
            check = check[: self._half]
        best = start = np.array(state.start_scores[: len(check)])
        found: MicroVector | None = None
        finalists = [(state.best, state.best_scores)] if state.best_step else []
        if self._search.step > state.best_step and stopped != "stopped":
            finalists.append((self._mean().tolist(), []))
        for values, known in finalists:
            more: Sequence[float] = []
            if rest := check[len(known) :]:
                (more,) = self._judge([self._vector(values)], rest, checking=True)
            scores = np.array([*known, *more])
            # Of two finalists that the check cannot tell apart, the later has learned from more prompts. The
            # start has to be beaten.
            if scores.mean() > start.mean() and (found is None or as_good(scores, best)):
                found, best = self._vector(values), scores
        self._save()
        return Tuned(
            vector=found or self._start,
            improved=found is not None,
            start_score=float(start.mean()),
            score=float(best.mean()),
            held_back=len(start),
            steps=self._search.step,
            rollouts=state.rollouts,
            tokens=state.tokens,
            seconds=state.seconds,
            stopped="stopped" if self._stop else stopped,
        )

    def _judge(
        self, vectors: Sequence[MicroVector], numbers: Sequence[int], *, checking: bool = False
    ) -> NDArray[np.float64]:
        """Return the rewards of vectors on samples, given by number: float64 [vectors, samples].

        `checking` takes the reward that decides, and not the shaped one. The reward of a text is its
        log-likelihood, divided by the mean length of the held-back texts. Tokens and seconds are counted.
        """
        samples, task = [self._samples[i] for i in numbers], self._deciding if checking else self._lessons
        state = self.state
        tokens, seconds = state.tokens, state.seconds
        with self._counted():
            if self._targets:
                targets = [[self._targets[i]] for i in numbers]
                found = self._batch.score_each(vectors, self._batch.encode(samples), targets)
                totals = [[row.sum(dtype=np.float64) for (row,) in each] for each in found]
                rewards = np.array(totals) / self._length
            else:
                answers = self._batch.answer_each(
                    vectors, samples, max_tokens=self._max_tokens, schema=self._schema
                )
                rewards = np.array([task.scores(row, samples) for row in answers])
        state.rollouts += len(vectors) * len(numbers)
        state.answer_tokens += state.tokens - tokens
        state.answer_seconds += state.seconds - seconds
        return rewards

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the tokens and the seconds of a block, unless it fails."""
        before, began = self._batch.evaluated, time.monotonic()
        yield
        self.state.tokens += self._batch.evaluated - before
        self.state.seconds += time.monotonic() - began

    def _mean(self) -> NDArray[np.float64]:
        """Return the values at the search's mean."""
        return self._whitening.values(self._search.mean)

    def _vector(self, values: Sequence[float] | NDArray[np.float64]) -> MicroVector:
        whole = np.array(values, np.float64).reshape(self._basis.size)
        bounded = self._basis.bounded(whole, getattr(self._under, "r", None))
        return replace(self._start, values=bounded.astype(np.float32), dtype="fp32")

    def _ahead(self) -> tuple[int, int]:
        """Return how many answers one more step takes, with a check if one is due, and how many the last
        check: all prompts for the mean, and for the best those that it has not answered."""
        half, whole = self._half, len(self._check)
        due = (self._search.step + 1) % self.settings.check_every == 0
        step = self._search.population * self._prompts + (half if due else 0)
        return step, whole + (whole - half if self.state.best_step else 0)

    def _affords(self) -> bool:
        """Whether a step, and the last check after it, are within the budget."""
        limits = self._budget.tokens, self._budget.seconds
        return all(limit is None or need <= limit for need, limit in zip(self._needed(), limits, strict=True))

    def _needed(self) -> tuple[float, float]:
        """Return the tokens and seconds of this sitting, with one more step and the last check after it."""
        tokens, seconds = self._cost(sum(self._ahead()))
        return self.state.tokens - self._began[0] + tokens, self.state.seconds - self._began[1] + seconds

    def _spent(self) -> dict[str, float]:
        """Return what all sittings together have spent."""
        return {"tokens": self.state.tokens, "seconds": self.state.seconds}

    def _cost(self, rollouts: int) -> tuple[float, float]:
        """Return the tokens and seconds that so many answers take, by what answers took so far."""
        each = rollouts / max(self.state.rollouts, 1)
        return self.state.answer_tokens * each, self.state.answer_seconds * each

    def _save(self) -> None:
        self.state.search = self._search.state()
        if self._path is not None:
            save_state(self._path, asdict(self.state), self._identity())

    def _identity(self) -> dict[str, Any]:
        return {
            "basis": self._basis.digest,
            "prior": None if (prior := self._basis.projection.prior) is None else prior.digest,
            "under": None if self._under is None else self._under.digest.hex(),
            "seed": self._seed,
            "reward": name_of(self._deciding.reward),
            "number of prompts": len(self._train),
            "number held back": len(self._check),
            "max_tokens": self._max_tokens,
            **asdict(self.settings),
        }


def tune(
    llm: PersonalizedModel,
    prompts: Sequence[Prompt | Sample],
    reward: Reward,
    *,
    budget: Budget | float | str,
    **options: Any,
) -> MicroVector:
    """Tune the model's vector on the device, with forward passes alone, and make it the active one.

    It needs the extra `tune` and the engine that runs the model, and works on the weights as they are,
    quantized or not. A part of the prompts is held back and decides: where nothing did better on them than
    the start, the start is returned, with a `NotImprovedWarning`, and the model keeps its vector, as it does
    on every error.

    Args:
        llm: what `runtime.load` returned, of either engine.
        prompts: texts, lists of chat messages, or samples of a task: at least 2, better 100. Texts are
            messages of the user; the model continues a `Sample(text, raw=True)`.
        reward: `reward(completion, sample) -> float`, higher is better.
        budget: seconds, a text such as `5m`, `90s` or `80ktokens`, or a `Budget`. With one of tokens the same
            seed gives the same vector, on one machine, engine build and number of threads.
        options: those of `RewardLearner` (`seed`, `max_tokens`, `basis`, `start`, `settings`, `path`, ...).

    Returns:
        The vector that the model has now.

    Raises:
        TrainError, VectorError: as for `RewardLearner` and `RewardLearner.run`.
    """
    found = RewardLearner(llm, prompts, reward, **options).run(budget)
    if not found.improved:
        warnings.warn(
            f"tuning found nothing better than the start ({found.start_score:.3f} on {found.held_back} "
            f"prompts held back, {found.steps} steps): the start is returned",
            NotImprovedWarning,
            stacklevel=2,
        )
        return found.vector
    return llm.swap(found.vector)


def _hold_back(samples: Sequence[Sample], count: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the numbers of the samples to learn on, and of those held back. Samples that share a prompt are
    all on one side."""
    alike = defaultdict[float, list[int]](list)
    for number, sample in enumerate(samples):
        alike[rank(sample)].append(number)
    if len(alike) < 2:
        raise TrainError(
            f"learning has {len(alike)} prompts, expected at least 2, and better 100: some are held "
            "back to check what was learned"
        )
    *others, last = np.random.default_rng((seed, 0)).permutation([*alike]).tolist()
    learn, check, held = alike.pop(last), list[int](), max(1, min(count, len(samples) // 3))
    for prompt in others:
        (check if len(check) < held else learn).extend(alike[prompt])
    return learn, check
