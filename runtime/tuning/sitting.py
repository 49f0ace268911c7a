"""One sitting of on-device tuning: steps and checks until a budget is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import TrainError
from ...tasks import Sample
from ...vector import MicroVector
from ..batch import Batch
from .anchor import Anchor
from .effect import change, sigma_of
from .plan import Plan
from .search import Search
from .settings import Tuned
from .state import Budget, TuningState

_POLL = 0.5  # seconds between two questions to `wait`
_PROBE = 8  # prompts of the first answers, which tell what a step will cost
_EFFECT_PROMPTS, _EFFECT_TOKENS, _EFFECT_VECTORS = 4, 16, 4  # on which the effect of a sigma is measured
_WIDER, _WIDEST = 1.5, 4.0  # sigma after a step without signal, and at most, over that of the beginning
_NARROWER = 0.7  # sigma after going back to the best


class Sitting:
    """One sitting: a budget, and what answers. It changes the search and the state that it is given.

    The search is in the coordinates of the plan's whitening; everything else is values of vectors.
    """

    def __init__(
        self,
        plan: Plan,
        search: Search,
        state: TuningState,
        population: Batch,
        budget: Budget,
        *,
        last_check: bool,
    ) -> None:
        self._plan, self._search, self.state = plan, search, state
        self._population, self._budget, self._last_check = population, budget, last_check
        self._task, self._settings = plan.task, plan.settings
        self._began = state.tokens, state.seconds
        self._anchor: Anchor | None = None

    def run(self, resumed: bool) -> Tuned:
        """Tune until the budget is spent, or nothing is left to find.

        Args:
            resumed: the budget is what was left of one, so that no step need be affordable.

        Raises:
            TrainError: the budget is too small for one step.
        """
        state, settings = self.state, self._settings
        self._rest()
        if not self._plan.stopped():
            self._begin(resumed)
        stopped = "budget"
        while not self._plan.stopped() and self._affords(self._rollouts_of_step() + self._rollouts_of_end()):
            self._step()
            if state.silent >= settings.silence or state.unimproved >= settings.patience:
                stopped = "silence" if state.silent >= settings.silence else "patience"
                break
            self._rest()
        stopped = "stopped" if self._plan.stopped() else stopped
        found = self._end(stopped) if self._last_check and not self._plan.stopped() else self._best(stopped)
        self._plan.report({"event": "end", **_figures(found)})
        return found

    def _rest(self) -> None:
        while self._plan.wait() and not self._plan.stopped():
            time.sleep(_POLL)

    def _begin(self, resumed: bool) -> None:
        """Know whether one step is affordable at all, and score the start if that is not done yet."""
        check, state = self._task.held_out, self.state
        probe: list[float] = []
        if not state.start_scores:
            probe = self._score_start(check[:_PROBE])
        need = self._rollouts_of_step() + self._rollouts_of_end() + (len(check) - len(probe) if probe else 0)
        need += 0 if state.sigma else self._rollouts_of_sigma()
        if not resumed and not self._affords(need):
            error = self._too_small(need + len(probe))
            if probe:
                state.rollouts, state.tokens, state.seconds = 0, *self._began  # nothing was learned
            raise error
        if self._plan.anchored:
            self._drop_anchor()
        if not probe and state.sigma:
            return
        if probe:
            rest = check[_PROBE:]
            more = self._score_start(rest) if rest else []
            state.start_scores = [*probe, *more]
            state.best, state.best_scores = list(state.start), state.start_scores[: self._half()]
        if not state.sigma:
            self._choose_sigma()
        self._save()
        figures = {"check": float(np.mean(state.start_scores)), "held_back": len(check), "sigma": state.sigma}
        self._plan.report({"event": "start", **figures, **self._spent()})

    def _drop_anchor(self) -> None:
        """Draw the answers of the base that candidates are compared on: the same ones in every sitting."""
        plan = self._plan
        with self._uncosted(), self._counted():
            self._anchor = Anchor(self._population, plan.anchored, (plan.seed, 5))

    def _choose_sigma(self) -> None:
        """Choose the sigma whose perturbations have the effect that is asked for."""
        plan, state, population = self._plan, self.state, self._population
        effect = self._settings.effect
        if effect is None:
            state.sigma = plan.sigma
            return
        samples = self._task.train[:_EFFECT_PROMPTS]
        directions = np.random.default_rng((plan.seed, 4)).standard_normal(
            (_EFFECT_VECTORS, self._search.size)
        )
        with self._uncosted(), self._counted():
            tokens = min(self._task.max_tokens, _EFFECT_TOKENS)
            answers = population.draw(plan.start, samples, max_tokens=tokens, seed=(plan.seed, 3))
            (here,) = population.score_each([plan.start], samples, answers)

            def measure(sigma: float) -> float:
                moved = np.array(state.start) + sigma * plan.whitening.values(directions)
                return change(here, population.score_each([self._vector(v) for v in moved], samples, answers))

            state.sigma = sigma_of(effect, plan.sigma, measure)
        self._search.rescale(state.sigma)

    def _step(self) -> None:
        state, search = self.state, self._search
        candidates = search.ask()
        samples = self._pick(search.step)
        vectors = [self._vector(v) for v in self._plan.whitening.values(candidates)]
        rewards, exploded = self._score(vectors, samples, seed=search.step)
        extra: dict[str, float] = {}
        told = rewards
        if self._anchor is not None:
            with self._counted():
                away = self._anchor.distances(vectors)
            exploded = exploded | ~np.isfinite(away)
            told = rewards - self._settings.anchor * np.where(exploded, 0.0, away)[:, None]
            told[exploded] = self._lowest(told[~exploded])
            if not exploded.all():
                extra["anchor"] = float(away[~exploded].mean())
        search.tell(told)
        if exploded.any():
            extra["exploded"] = int(exploded.sum())
        if np.ptp(told, axis=0).any():
            state.silent = 0
        elif exploded.all():
            state.silent += 1
            search.sigma *= _NARROWER
        else:
            state.silent += 1
            search.sigma = min(search.sigma * _WIDER, state.sigma * _WIDEST)
        figures: dict[str, Any] = {
            "step": search.step,
            "reward": float(rewards.mean()),
            "sigma": search.sigma,
            "norm": float(np.linalg.norm(self._mean())),
            **extra,
            **self._spent(),
        }
        if search.step % self._settings.check_every == 0:
            figures["check"] = self._look()
        self._save()
        self._plan.report(figures)

    def _look(self) -> float:
        """Check the mean on the first held-back prompts: keep it, or go back to the best."""
        state, search = self.state, self._search
        samples = self._task.held_out[: self._half()]
        (scores,), (exploded,) = self._score([self._vector(self._mean())], samples, checking=True)
        gap = scores - np.array(state.best_scores)
        if not exploded and (gap.mean() > 0 or (gap.mean() == 0 and state.best_step)):
            state.unimproved = 0 if gap.mean() > 0 else state.unimproved + 1
            state.best, state.best_scores = self._mean().tolist(), scores.tolist()
            state.best_step = search.step
        else:
            state.unimproved += 1
            if exploded or -gap.mean() > max(self._settings.tolerance, 2 * _standard_error(gap)):
                best = self._plan.whitening.coordinates(np.array(state.best))
                search.jump(best, search.sigma * _NARROWER)
                state.restarts += 1
                self._plan.report({"event": "restart", "step": search.step, "sigma": search.sigma})
        return float(scores.mean())

    def _end(self, stopped: str) -> Tuned:
        """Compare the finalists with the start on all the prompts held back."""
        state, check, half = self.state, self._task.held_out, self._half()
        start = np.array(state.start_scores)
        found, best = self._vector(state.start), start
        finalists = [(state.best, state.best_scores)] if state.best_step else []
        if self._search.step > state.best_step:
            finalists.append((self._mean().tolist(), []))
        for values, known in finalists:
            rest = check[half:] if known else check
            more: Sequence[float] = []
            if rest:
                (more,), (exploded,) = self._score([self._vector(values)], rest, checking=True)
                if exploded:
                    continue
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
            vector=found or self._plan.start,
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
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return rewards [vectors, samples] and which vectors exploded; count what they cost.

        A vector that explodes on one sample has the lowest reward on all: what else it answered at the same
        time may have been drawn into it.
        """
        with self._counted():
            answers = self._population.answer_each(
                vectors,
                samples,
                max_tokens=self._task.max_tokens,
                temperature=0.0 if checking else self._settings.temperature,
                seed=(self._plan.seed, 1, seed),
            )
            judge = self._task if checking else self._plan.lessons
            exploded = np.array([any(answer.exploded for answer in row) for row in answers])
            rewards = np.zeros((len(vectors), len(samples)))
            for number in np.flatnonzero(~exploded):
                rewards[number] = judge.scores(answers[number], samples)
            rewards[exploded] = self._lowest(rewards[~exploded])
        self.state.rollouts += len(vectors) * len(samples)
        return rewards, exploded

    def _score_start(self, samples: Sequence[Sample]) -> list[float]:
        """Return the rewards of the vector that tuning began with.

        Raises:
            TrainError: it is too large for the model, so that nothing can be better or worse than it.
        """
        (rewards,), (exploded,) = self._score([self._vector(self.state.start)], samples, checking=True)
        if exploded:
            raise TrainError(
                "the vector that tuning begins with is too large for the model: its logits are not finite. "
                "Begin with another one (start), or clear the model's own"
            )
        return list(rewards.tolist())

    def _lowest(self, rewards: NDArray[np.float64]) -> float:
        """Return the reward of what explodes: the lowest of these and of the start's, and at most 0."""
        return float(min([0.0, *self.state.start_scores, rewards.min(initial=0.0)]))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count what a block takes, in tokens and seconds, once it has ended well."""
        before, began = self._population.evaluated, time.monotonic()
        yield
        self.state.tokens += self._population.evaluated - before
        self.state.seconds += time.monotonic() - began

    @contextmanager
    def _uncosted(self) -> Iterator[None]:
        """Keep what a block takes out of the cost of an answer (`_cost`)."""
        before = self.state.tokens, self.state.seconds
        yield
        self.state.sigma_tokens += self.state.tokens - before[0]
        self.state.sigma_seconds += self.state.seconds - before[1]

    def _mean(self) -> NDArray[np.float64]:
        """Return the values that the search believes in now."""
        return self._plan.whitening.values(self._search.mean)

    def _vector(self, values: Sequence[float] | NDArray[np.float64]) -> MicroVector:
        start = self._plan.start
        return replace(start, values=np.array(values, np.float32).reshape(start.values.shape))

    def _pick(self, step: int) -> list[Sample]:
        """The prompts of a step: every epoch visits all of them in an order of its own."""
        count, size = len(self._task.train), min(self._settings.prompts, len(self._task.train))
        chosen = []
        for position in range(step * size, (step + 1) * size):
            epoch, offset = divmod(position, count)
            order = np.random.default_rng((self._plan.seed, 2, epoch)).permutation(count)
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

    def _rollouts_of_sigma(self) -> int:
        """What choosing sigma costs, in answers: two sigmas are tried as a rule."""
        if self._settings.effect is None:
            return 0
        return (2 + 2 * _EFFECT_VECTORS) * min(_EFFECT_PROMPTS, len(self._task.train))

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
        state, each = self.state, rollouts / max(self.state.rollouts, 1)
        return (state.tokens - state.sigma_tokens) * each, (state.seconds - state.sigma_seconds) * each

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
            "tokens. Give more, or fewer prompts a step (settings.prompts), or shorter answers (max_tokens)"
        )

    def _save(self) -> None:
        self.state.search = self._search.state()
        self._plan.save()


def _standard_error(gaps: NDArray[np.float64]) -> float:
    return float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else 0.0


def _figures(found: Tuned) -> dict[str, Any]:
    return {key: value for key, value in vars(found).items() if key != "vector"}
