"""`distill` on a device: from a prompt to a micro-vector, by the search that `tune` has.

The prompted model answers questions, and a candidate is worth minus the KL from what the prompted model says
at each token of its answers. Nothing is drawn from candidates, so that rewards have no noise but rounding.
Gradients on a host hold more of a prompt in fewer tokens: `train.distill`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...basis import Basis
from ...errors import NotImprovedWarning, TrainError
from ...tasks import Sample
from ...tasks.behaviours import Behaviour
from ...vector import MicroVector
from ..model import PersonalizedModel, no_room
from .contrast import SHOWN_TOKENS, Contrast, Distilled, Lesson, divergence_before, measure, views
from .learner import Judged, SearchLearner, TuneSettings
from .state import Budget, Report

_FEWEST = 6  # questions: four to learn with, two to measure on
_HELD_OUT, _LEARNED = 16, 32  # questions at most
_SETTINGS = TuneSettings(held_back=12, tolerance=0.05)


def distill(
    llm: PersonalizedModel,
    prompt: str | Behaviour,
    questions: Sequence[str],
    *,
    budget: Budget | float | str,
    held_out: Sequence[str] | None = None,
    basis: Basis | None = None,
    seed: int = 0,
    max_tokens: int = 24,
    temperature: float = 0.8,
    settings: TuneSettings = _SETTINGS,
    report: Report = lambda figures: None,
    sequences: int = 32,
    n_threads: int | None = None,
    **options: Any,
) -> Distilled:
    """Find the vector that does without a prompt what the model does with it, by forward passes alone.

    The model keeps its own vector and its context; `llm.swap(found.vector)` applies what was found.

    Args:
        llm: what `runtime.load` returned, on either engine.
        prompt: the text of a system message, or a behaviour: worked examples, with a system message or
            without.
        questions: of the user's kind, at least 6 different ones, better 40; 32 are learned from.
        budget: of learning: seconds, a text such as `5m` or `30ktokens`, or a `Budget`. Measuring comes on
            top. With a budget of tokens the same seed gives the same vector, on one machine, engine build and
            number of threads.
        held_out: questions to measure on, none of them among `questions`. None takes a third of those, at
            most 16.
        basis: of the vector; None for that of 13 numbers.
        seed: of everything.
        max_tokens, temperature: of the answers.
        settings: of the loop and the search. A reward is minus the KL in nats a token.
        report: called with the figures of every step.
        sequences: that run at the same time.
        n_threads: cores to use; by default all that the engine would take.
        options: further ones of `SearchLearner`, such as `path`.

    Raises:
        TrainError: the prompt is blank, has no room in the model's context, or changes nothing; too few
            questions, or some on both sides; the budget is too small for one step.
        VectorError: the model has no chat template.
        TinyLoraError: the engine has no memory for so many sequences.
    """
    began, limit = time.monotonic(), Budget.of(budget)
    if max_tokens < 1 or not temperature > 0:
        raise TrainError(
            f"answers have at least 1 token and are drawn at a temperature above 0, not {max_tokens} at "
            f"{temperature}"
        )
    behaviour = Behaviour("prompt", system=prompt) if isinstance(prompt, str) else prompt
    asked, held = _sides(questions, held_out, seed)
    told, bare = views(behaviour, [*asked, *held])
    encoded = [[llm.encode(sample)[0] for sample in view] for view in (told, bare)]
    longest = max(len(tokens) for view in encoded for tokens in view)
    if longest + max_tokens > llm.longest:
        raise no_room(longest, max_tokens, llm.longest)
    room = min(max(max_tokens, SHOWN_TOKENS), llm.longest - longest)
    with llm.batch([*told, *bare], room, sequences=sequences, n_threads=n_threads) as batch:

        def learn(samples: slice, number: int) -> Contrast:
            """Have questions answered, and look at what the prompted model says on the way."""
            prompts = [[np.array(tokens, np.int32) for tokens in view[samples]] for view in encoded]
            drawn = batch.generate(
                encoded[0][samples],
                max_tokens=max_tokens,
                temperature=temperature,
                seed=(seed, number),
            )
            return Contrast(batch, Lesson("prompt", prompts[0], prompts[1], [each.tokens for each in drawn]))

        check = learn(slice(len(asked), None), 0)
        before = divergence_before(check)
        learner = _PromptLearner(
            llm,
            bare[: len(asked)],
            lambda: learn(slice(0, len(asked)), 1),
            max_tokens=max_tokens,
            basis=basis,
            settings=settings,
            seed=seed,
            report=report,
            **options,
        )
        found = learner.sit(batch, limit)
        replacement = measure(batch, behaviour, held, check, before, found.vector)
        tokens = batch.evaluated
    if not found.improved:
        warnings.warn(
            f"nothing came nearer to the prompted model than the base, on {found.held_back} questions in "
            f"{found.steps} steps: the vector is zero",
            NotImprovedWarning,
            stacklevel=2,
        )
    seconds = time.monotonic() - began
    return Distilled(found.vector, replacement, seconds, found.steps, tokens, found.improved)


class _PromptLearner(SearchLearner):
    """A learner from minus the KL from the prompted model, in nats a token of the longest answer."""

    def __init__(
        self, llm: PersonalizedModel, samples: list[Sample], lesson: Callable[[], Contrast], **options: Any
    ) -> None:
        super().__init__(llm, samples, **options)
        self._lesson = lesson

    def _begin(self, resumed: bool) -> None:
        with self._aside():
            self._contrast = self._lesson()
        super()._begin(resumed)

    def _worth(self, vectors: Sequence[MicroVector], numbers: Sequence[int], *, checking: bool) -> Judged:
        found = np.array([self._contrast.divergences(vector, numbers) for vector in vectors])
        exploded = ~np.isfinite(found).all(axis=1)
        return -np.where(exploded[:, None], 0.0, found) / self._max_tokens, exploded


def _sides(
    questions: Sequence[str], held_out: Sequence[str] | None, seed: int
) -> tuple[list[str], list[str]]:
    """Return different questions to learn from, in the order of the seed, and those to measure on."""
    asked = list(dict.fromkeys(questions))
    shuffled = [asked[i] for i in np.random.default_rng((seed, 0)).permutation(len(asked))]
    fewest = _FEWEST if held_out is None else _FEWEST - 2
    if len(asked) < fewest:
        raise TrainError(
            f"there are {len(asked)} different questions, expected at least {fewest}, and better 40: some "
            "decide what is kept, and others measure it"
        )
    if held_out is None:
        count = min(_HELD_OUT, len(asked) // 3)
        return shuffled[count : count + _LEARNED], shuffled[:count]
    held = list(dict.fromkeys(held_out))
    both = [question for question in held if question in set(asked)]
    if both or not held:
        what = f"{both[0]!r} is on both sides" if both else "there are none"
        raise TrainError(f"questions to measure on are others than those to learn from, but {what}")
    return shuffled[:_LEARNED], held
