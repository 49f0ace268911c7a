"""`distill`: from a prompt to a micro-vector, on the device itself."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import NotImprovedWarning, TrainError
from ...tasks import Sample
from ...tasks.behaviours import Behaviour
from ...vector import MicroVector
from ..batch import Batch
from ..model import PersonalizedModel, no_room
from ..tuning.state import Budget
from .contrast import Contrast, lists
from .fitting import Fit
from .lesson import Lesson
from .plan import FEWEST, Costs, Plan, least, make_plan
from .replacement import SHOWN_TOKENS, TIMED, Prompted, Replacement, divergence_before, measure

Messages = str | Sequence[Mapping[str, Any]] | Behaviour
"""A prompt: the text of a system message, chat messages that the question follows, or a behaviour."""

_CALIBRATED = 4  # questions whose evaluation tells how many tokens a second there are
_SPARE = 0.95  # of the budget is planned: answers differ in length


@dataclass(frozen=True, repr=False)
class Distilled:
    """A prompt as a vector, what the vector holds of it, and what that took.

    Attributes:
        vector: fp32; zeros where nothing came nearer to the prompted model than the base.
        improved: whether it is nearer, on the questions that decided.
        replacement: measured on held-out questions.
        questions: learned from.
        steps: of Gauss-Newton that were taken.
        tokens: that the model evaluated, prompts and answers, measuring included.
        seconds: of wall time.
    """

    vector: MicroVector
    improved: bool
    replacement: Replacement
    questions: int
    steps: int
    tokens: int
    seconds: float

    @property
    def share(self) -> float:
        """Share of the divergence on held-out questions that the vector closes; below 0 it does harm."""
        return self.replacement.share

    def __repr__(self) -> str:
        return (
            f"Distilled({self.replacement!r}, {self.questions} questions, {self.steps} steps, "
            f"{self.tokens} tokens, {self.seconds:.0f} s, {self.vector!r})"
        )


def distill(
    llm: PersonalizedModel,
    messages: Messages,
    questions: Sequence[str],
    *,
    budget: Budget | float | str,
    held_out: Sequence[str] | None = None,
    seed: int = 0,
    max_tokens: int = 24,
    temperature: float = 0.8,
    report: Callable[[dict[str, Any]], None] = lambda figures: None,
    sequences: int = 32,
    n_threads: int | None = None,
) -> Distilled:
    """Find the vector that does without a prompt what the model does with it, by forward passes alone.

    The prompted model answers questions, and v is fitted to what it says at each token of its answers, by
    Gauss-Newton with finite differences: numpy and the engine are all that it needs, and the weights are as
    they are, quantized or not. Some questions decide whether a step is taken, and others are held out to
    measure on. The model keeps its own vector and its context; `llm.swap(found.vector)` applies what was
    found.

    Args:
        llm: what `runtime.load` returned, on either engine.
        messages: the prompt: the text of a system message, chat messages (a system message, worked examples
            as turns) that the question follows, or a `tasks.behaviours.Behaviour`.
        questions: of the user's kind, at least 6 different ones, better 40.
        budget: seconds, a text such as `5m` or `30ktokens`, or a `Budget`. What measuring takes at the end is
            put aside. With a budget of tokens the same seed gives the same vector, on one machine, engine
            build and number of threads.
        held_out: questions to measure on, none of them among `questions`: the first of them, as many as an
            eighth of the budget measures. None takes some of `questions`.
        seed: of which questions do what, and of the answers.
        max_tokens: of an answer.
        temperature: of the answers.
        report: called with figures: of the plan, of every step, and of the end.
        sequences: that run at the same time.
        n_threads: cores to use in llama.cpp; by default all that this process may use. ONNX Runtime's are
            those that the model was loaded with.

    Raises:
        TrainError: the prompt is empty, ends with the user's turn, has no room in the model's context, or
            changes nothing; too few questions, or some on both sides; the budget is too small for one step
            (the message says what one takes).
        VectorError: the model has no chat template.
        TinyLoraError: the engine has no memory for so many sequences.
    """
    began = time.monotonic()
    limit = Budget.of(budget)
    if max_tokens < 1 or not temperature > 0:
        raise TrainError(
            f"answers have at least 1 token and are drawn at a temperature above 0, not {max_tokens} at "
            f"{temperature}"
        )
    prompted = _prompted(messages)
    asked, held = _sides(questions, held_out, seed)
    everything = [*asked, *(held or [])]
    samples = [[Sample(tuple(view(q))) for q in everything] for view in (prompted.messages, prompted.bare)]
    told, bare = (
        {q: np.array(llm._encode(s), np.int32) for q, s in zip(everything, view, strict=True)}
        for view in samples
    )
    longest, context = max(map(len, [*told.values(), *bare.values()])), llm.longest
    if longest + max_tokens > context:
        raise no_room(longest, max_tokens, context)
    room = min(max(max_tokens, SHOWN_TOKENS), context - longest)
    with llm.batch([*samples[0], *samples[1]], room, sequences=sequences, n_threads=n_threads) as batch:

        def learn(chosen: Sequence[str], number: int) -> Contrast:
            """Have questions answered, and look at what the prompted model says on the way."""
            drawn = batch.generate(
                lists([told[q] for q in chosen]),
                max_tokens=max_tokens,
                temperature=temperature,
                seed=(seed, number),
            )
            answers = [each.tokens for each in drawn]
            lesson = Lesson("prompt", [told[q] for q in chosen], [bare[q] for q in chosen], answers)
            return Contrast(batch, lesson)

        views = lists([*told.values()]), lists([*bare.values()])
        costs = _costs(llm.basis.size, *views, lanes=batch.lanes, answer=max_tokens)
        meter = _Meter(batch, limit, began)
        if limit.seconds is not None:
            sample = lists([bare[q] for q in asked[:_CALIBRATED]])
            batch.score(sample, [[each[:max_tokens]] for each in sample])
        given = None if held is None else len(held)
        plan = make_plan(costs, _SPARE * meter.left(), len(asked), given)
        if plan is None:
            raise _too_small(limit, meter, *least(costs, len(asked), given))
        if held is None:
            held, asked = asked[: plan.held], asked[plan.held :]
        held = held[: plan.held]
        deciding, pool = asked[: plan.deciding], asked[plan.deciding :]
        report({"event": "plan", **vars(plan), "questions": len(pool), **meter.spent()})

        check = learn(held, 0)
        before = divergence_before(check)
        end = costs.end(len(held))
        fit = Fit(llm.basis, learn(deciding, 1), lambda figures: report({**figures, **meter.spent()}))
        contrasts = _fit(fit, pool, plan, costs, learn, lambda: meter.left() - end)
        vector = fit.vector()
        replacement = measure(llm, batch, prompted, held, check, before, vector, n_threads=n_threads)
        timed = sum(map(len, [*check.lesson.told[:TIMED], *check.lesson.bare[:TIMED]]))
        found = Distilled(
            vector,
            fit.steps > 0,
            replacement,
            sum(len(each.teacher) for each in contrasts),
            fit.steps,
            batch.evaluated + timed,
            time.monotonic() - began,
        )
    report({"event": "end", "share": found.share, "tokens": found.tokens, "seconds": found.seconds})
    if not found.improved:
        warnings.warn(
            f"no step came nearer to the prompted model than the base, on {plan.deciding} questions: the "
            "vector is zero",
            NotImprovedWarning,
            stacklevel=2,
        )
    return found


def _fit(
    fit: Fit,
    pool: Sequence[str],
    plan: Plan,
    costs: Costs,
    learn: Callable[[Sequence[str], int], Contrast],
    left: Callable[[], float],
) -> list[Contrast]:
    """Learn block after block while the budget lasts; return what was learned from."""
    contrasts: list[Contrast] = []
    at = 0
    while not fit.done:
        size, known = plan.block, sum(len(each.teacher) for each in contrasts)
        if at < len(pool):
            size = min(size, len(pool) - at)
            while contrasts and costs.block(size, deciding=plan.deciding, before=known, steps=1) > left():
                size -= 1
            if size < min(2, len(pool) - at):
                break
            contrasts.append(learn(pool[at : at + size], 2 + len(contrasts)))
            at += size
            contrast = contrasts[-1]
        else:
            contrast = contrasts[fit.blocks % len(contrasts)]
            again = costs.block(len(contrast.teacher), deciding=plan.deciding, before=known, steps=1)
            if again - costs.teach(len(contrast.teacher)) > left():
                break
        fit.learn(contrast, lambda tokens: tokens <= left())
    return contrasts


class _Meter:
    """A count of what was spent, and of what is left, in tokens."""

    def __init__(self, batch: Batch, budget: Budget, began: float) -> None:
        self._batch, self._budget, self._began = batch, budget, began
        self._from = time.monotonic()  # what came before evaluated nothing

    def left(self) -> float:
        """Tokens that are left; of seconds as many as they are worth by what was evaluated so far."""
        found: list[float] = []
        if self._budget.tokens is not None:
            found.append(self._budget.tokens - self._batch.evaluated)
        if self._budget.seconds is not None:
            found.append((self._budget.seconds - time.monotonic() + self._began) / self.each())
        return min(found)

    def each(self) -> float:
        """Seconds that a token takes."""
        return (time.monotonic() - self._from) / max(self._batch.evaluated, 1)

    def spent(self) -> dict[str, float]:
        """Return tokens and seconds so far."""
        return {"tokens": self._batch.evaluated, "seconds": time.monotonic() - self._began}


def _prompted(messages: Messages) -> Prompted:
    if isinstance(messages, Behaviour):
        return messages
    if isinstance(messages, str):
        if not messages.strip():
            raise TrainError("the prompt is blank: write what the model is to do")
        return Behaviour("prompt", system=messages)
    turns = tuple(dict(message) for message in messages)
    if not turns:
        raise TrainError("the prompt has no messages: expected a system message, worked examples, or both")
    if turns[-1].get("role") == "user":
        raise TrainError(
            "the prompt's last message is one of the user, and the question would be another: end it with an "
            "answer, or leave that message out"
        )
    return _Turns(turns)


@dataclass(frozen=True)
class _Turns:
    """Chat messages that a question follows."""

    turns: tuple[dict[str, Any], ...]

    def messages(self, question: str) -> list[dict[str, Any]]:
        return [*self.turns, *self.bare(question)]

    def bare(self, question: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": question}]


def _sides(
    questions: Sequence[str], held_out: Sequence[str] | None, seed: int
) -> tuple[list[str], list[str] | None]:
    """Return different questions to learn from, in the order of the seed, and those to measure on."""
    asked = list(dict.fromkeys(questions))
    order = np.random.default_rng((seed, 0)).permutation(len(asked))
    shuffled = [asked[i] for i in order]
    fewest = FEWEST if held_out is None else FEWEST - 2
    if len(asked) < fewest:
        raise TrainError(
            f"there are {len(asked)} different questions, expected at least {fewest}, and better 40: some "
            "decide what is kept, and others measure it"
        )
    if held_out is None:
        return shuffled, None
    held = list(dict.fromkeys(held_out))
    both = [question for question in held if question in set(asked)]
    if both or not held:
        what = f"{both[0]!r} is on both sides" if both else "there are none"
        raise TrainError(f"questions to measure on are others than those to learn from, but {what}")
    return shuffled, held


def _costs(n: int, told: list[list[int]], bare: list[list[int]], *, lanes: int, answer: int) -> Costs:
    shared = [_common(rows) if lanes else 0 for rows in (told, bare)]
    tails = [
        float(np.mean([len(each) for each in rows])) - common
        for rows, common in zip((told, bare), shared, strict=True)
    ]
    return Costs(n, tails[0], tails[1], lanes * shared[0], lanes * shared[1], answer)


def _common(rows: list[list[int]]) -> int:
    """Return how many tokens all rows begin with, at least one short of the shortest."""
    shortest = min(map(len, rows))
    differs = (i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1)
    return min(next(differs, shortest), shortest - 1) if len(rows) > 1 else 0


def _too_small(limit: Budget, meter: _Meter, step: float, whole: float) -> TrainError:
    given = " and ".join(
        f"{value:.0f} {unit}"
        for value, unit in ((limit.seconds, "s"), (limit.tokens, "tokens"))
        if value is not None
    )
    times = [""] * 2 if limit.seconds is None else [f" and {meter.each() * x:.0f} s" for x in (step, whole)]
    return TrainError(
        f"a budget of {given} is too small: one step takes about {step:.0f} tokens{times[0]} here, and with "
        f"the measurements before and after it {whole / _SPARE:.0f} tokens{times[1]}. Give more, or shorter "
        "answers (max_tokens)"
    )
