"""`tune`: from prompts and a reward to a micro-vector, on the device itself."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ...errors import NotImprovedWarning
from ...tasks import Prompt, Reward, Sample
from ...vector import MicroVector
from ..model import PersonalizedModel
from .learner import RewardLearner
from .settings import Tuned
from .state import Budget


def tune(
    llm: PersonalizedModel,
    prompts: Sequence[Prompt | Sample],
    reward: Reward,
    *,
    budget: Budget | float | str,
    seed: int = 0,
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
        budget: seconds, a text such as `5m`, `90s` or `80ktokens`, or a `Budget`.
        seed: of everything. With a budget of tokens the same seed gives the same vector, on one machine,
            engine build and number of threads.
        options: those of `RewardLearner` (`max_tokens`, `raw`, `start`, `settings`, `path`, `wait`, ...).

    Returns:
        The vector that the model has now.

    Raises:
        TrainError: as for `RewardLearner` and `RewardLearner.run`.
        VectorError: as for `RewardLearner`.
        BusyError: a stream of this thread is unfinished, so the vector cannot be exchanged.
    """
    found = RewardLearner(llm, prompts, reward, seed=seed, **options).run(budget)
    return adopt(llm, found)


def adopt(llm: PersonalizedModel, found: Tuned) -> MicroVector:
    """Make what was found the model's vector, or warn where that is the start."""
    if not found.improved:
        warnings.warn(
            f"tuning found nothing better than the start ({found.start_score:.3f} on {found.held_back} "
            f"prompts held back, {found.steps} steps): the start is returned",
            NotImprovedWarning,
            stacklevel=3,
        )
        return found.vector
    return llm.swap(found.vector)
