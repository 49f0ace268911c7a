"""`Task.score`: nothing that a reward does wrong passes silently."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from answers import completed, question

from tinylora_edge import TrainError
from tinylora_edge.tasks import Completion, Reward, Sample, Task

TRAIN = (question("What is a river?"), question("What is a hill?"))
HELD_OUT = (question("What is a lake?"),)


def task(reward: Reward) -> Task:
    return Task("mine", TRAIN, HELD_OUT, reward)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.0, 1.0), (0, 0.0), (-2, -2.0), (np.float32(0.5), 0.5), (np.int64(3), 3.0), (Fraction(1, 4), 0.25)],
)
def test_real_numbers_pass(value: float, expected: float) -> None:
    score = task(lambda completion, sample: value).score(completed("x"), TRAIN[0])
    assert score == expected
    assert type(score) is float


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"nan \(float\), expected a finite real number"),
        (10**400, "OverflowError: int too large"),
        (True, r"True \(bool\), expected a finite real number"),
        (np.bool_(True), r"\(bool\w*\), expected a finite real number"),
        (None, r"None \(NoneType\)"),
        ("1.0", r"'1.0' \(str\)"),
        (np.ones(1), r"\(ndarray\)"),
    ],
)
def test_everything_else_is_refused_with_its_sample(value: object, message: str) -> None:
    with pytest.raises(TrainError, match=message) as caught:
        task(lambda completion, sample: value).score(completed("a stream"), TRAIN[1])  # type: ignore[arg-type,return-value]
    assert all(part in str(caught.value) for part in ("task mine", "What is a hill?", "a stream"))


def test_an_exception_is_reported_with_its_sample_and_kept_as_the_cause() -> None:
    def reward(completion: Completion, sample: Sample) -> float:
        return 1 / len(completion.text)

    with pytest.raises(TrainError, match=r"task mine .*ZeroDivisionError: division by zero") as caught:
        task(reward).score(completed(""), HELD_OUT[0])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
