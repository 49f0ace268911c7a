"""What answers say about the vector: the direction in which each becomes likelier, by forward passes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...errors import TrainError
from ...vector import MicroVector
from ..batch import Batch
from .state import FeedbackState

_CHANGE = 0.6
"""Nats by which a step of the finite differences changes an answer's log-probability, root mean square.

Quantized activations move it by about 0.3 whatever the step, so that a smaller one measures noise.
"""


def score(
    scorer: Batch,
    basis: Basis,
    state: FeedbackState,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    at: NDArray[np.float64],
    temperature: float,
    origin: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], list[float]]:
    """Return answers' scores where they were drawn, float64 [answers, n], and their log-ratios.

    Central differences; the step of the state is adapted for the next time.

    Args:
        scorer: that evaluates.
        basis: of the vectors.
        state: whose step is taken.
        prompt: token ids.
        answers: token ids of each answer to it.
        at: float64 [n], the vector that they were drawn with.
        temperature: that they were drawn at, above 0.
        origin: float64 [n], the vector that the log-ratios are over; None for the base.

    Raises:
        TrainError: the model's logits are not finite near the vector.
    """

    origin = np.zeros_like(at) if origin is None else origin
    steps = state.step * np.eye(len(at))
    moved = [values for step in steps for values in (at + step, at - step)]
    ends = [at, origin] if (at != origin).any() else []
    vectors = [MicroVector(v.astype(np.float32).reshape(basis.groups, -1)) for v in (*moved, *ends)]
    found = scorer.score_under(vectors, prompt, answers, temperature=temperature)
    totals = np.array([[row.sum(dtype=np.float64) for row in rows] for rows in found])  # [vectors, answers]
    ratios = totals[-2] - totals[-1] if ends else np.zeros(len(answers))
    changes = (totals[: len(moved) : 2] - totals[1 : len(moved) : 2]).T / 2
    if not (np.isfinite(changes).all() and np.isfinite(ratios).all()):
        raise infinite()
    size = float(np.sqrt((changes**2).mean()))
    scores = changes / state.step
    if size:
        state.step *= float(np.clip(_CHANGE / size, 0.5, 2.0)) ** 0.25
    return scores, ratios.tolist()


def check_different(better: Sequence[int], worse: Sequence[int]) -> None:
    """Check that there is something to prefer.

    Args:
        better, worse: token ids of two answers.

    Raises:
        TrainError: they are the same.
    """
    if list(better) == list(worse):
        raise TrainError(
            "the two answers are the same, so to prefer one says nothing: ask again, at a higher temperature"
        )


def infinite() -> TrainError:
    """Return the error of a vector that is too large to learn at."""
    return TrainError("the model's logits are not finite near the vector of now: delete the state")
