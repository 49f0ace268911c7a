"""Learning from a reward: `tune` for one call, `RewardLearner` for idle minutes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...basis import Basis
from ...errors import NotImprovedWarning
from ...tasks import Prompt, Reward, Sample, Task
from ...vector import MicroVector
from ..model import PersonalizedModel
from ..schema import Schema
from .learner import Judged, SearchLearner, TuneSettings
from .state import Budget


class RewardLearner(SearchLearner):
    """A learner from rewards of answers.

    Args:
        llm: a loaded model, of either engine. Neither its vector nor its context is touched.
        prompts: what to learn on, at least 2: a part of them is held back.
        reward: judges an answer: `reward(completion, sample) -> float`, higher is better. `sample` is the
            prompt as it was given, or a `Sample` of it.
        shaped: what to learn from in its place: the same goal with credit for coming near, which teaches
            faster than right or wrong. `reward` alone decides what is kept.
        basis: of the vector; None for that of `start`, or of 13 numbers.
        start: vector to begin with; None for zeros, or, where no basis is given either, the model's own.
        max_tokens: of an answer.
        schema: what answers are held to: a JSON schema, or labels, one of which is the answer.
        raw: texts go past the chat template; by default each is one message of the user, as in the app.
        settings: of the loop and the search.
        options: further ones of `SearchLearner`, which has the errors, too.
    """

    def __init__(
        self,
        llm: PersonalizedModel,
        prompts: Sequence[Prompt | Sample],
        reward: Reward,
        *,
        shaped: Reward | None = None,
        basis: Basis | None = None,
        start: MicroVector | None = None,
        max_tokens: int = 64,
        schema: Schema | None = None,
        raw: bool = False,
        settings: TuneSettings | None = None,
        **options: Any,
    ) -> None:
        self._deciding, self._schema = Task("tuning", [], [], reward, max_tokens), schema
        self._lessons = replace(self._deciding, reward=shaped or reward)
        super().__init__(
            llm,
            [Sample.of(prompt, raw=raw) for prompt in prompts],
            max_tokens=max_tokens,
            basis=basis,
            start=start or (llm.vector if basis is None else None),
            settings=settings or TuneSettings(),
            **options,
        )

    def _worth(self, vectors: Sequence[MicroVector], numbers: Sequence[int], *, checking: bool) -> Judged:
        samples = [self._samples[i] for i in numbers]
        answers = self._batch.answer_each(vectors, samples, max_tokens=self._max_tokens, schema=self._schema)
        task = self._deciding if checking else self._lessons
        exploded = np.array([any(answer.exploded for answer in row) for row in answers])
        rewards = np.zeros((len(vectors), len(samples)))
        for number in np.flatnonzero(~exploded):
            rewards[number] = task.scores(answers[number], samples)
        return rewards, exploded


def tune(
    llm: PersonalizedModel,
    prompts: Sequence[Prompt | Sample],
    reward: Reward,
    *,
    budget: Budget | float | str,
    **options: Any,
) -> MicroVector:
    """Tune the model's vector on the device, with forward passes alone, and make it the active one.

    It needs numpy and the engine that runs the model, and works on the weights as they are, quantized or not.
    A part of the prompts is held back and decides: where nothing did better on them than the start, the start
    is returned, with a `NotImprovedWarning`, and the model keeps its vector. So it does on every error.

    Args:
        llm: what `runtime.load` returned, of either engine.
        prompts: texts, lists of chat messages, or samples of a task: at least 2, better 100. Texts are
            messages of the user, unless `raw=True` is among the options.
        reward: `reward(completion, sample) -> float`, higher is better.
        budget: seconds, a text such as `5m`, `90s` or `80ktokens`, or a `Budget`. With one of tokens the same
            seed gives the same vector, on one machine, engine build and number of threads.
        options: those of `RewardLearner` (`seed`, `max_tokens`, `basis`, `start`, `settings`, `path`, ...).

    Returns:
        The vector that the model has now.

    Raises:
        TrainError, VectorError: as for `SearchLearner` and `SearchLearner.run`.
        BusyError: a stream of this thread is unfinished, so the vector cannot be exchanged.
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
