"""Finite differences of a student that is known, with noise and without."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import support

from tinylora_edge import TrainError
from tinylora_edge.runtime.distillation.differences import EFFECT, Differences

QUESTIONS, PLACES, OUTCOMES = 6, 30, 5
RNG = np.random.default_rng(1)
BASIS = support.random_basis(blocks=2, u=1, groups=4)
N = BASIS.size
OFFSETS = RNG.standard_normal((QUESTIONS, PLACES, OUTCOMES))
SLOPES = RNG.standard_normal((QUESTIONS, PLACES, OUTCOMES, N))
BENDS = RNG.standard_normal((QUESTIONS, PLACES, OUTCOMES, N))
AT = 0.1 * np.ones(N)


class Student:
    """log p of a linear or bent student; `noise` is another one for every v, as a quantized model's is."""

    def __init__(self, scale: float = 1.0, noise: float = 0.0, bend: float = 0.0) -> None:
        self.scale, self.noise, self.bend, self.calls = scale, noise, bend, 0

    def logits(self, values: np.ndarray, q: int) -> np.ndarray:
        seed = zlib.crc32(values.tobytes())
        jitter = self.noise * np.random.default_rng((seed, q)).standard_normal((PLACES, OUTCOMES))
        away = self.scale * (values - AT)
        return OFFSETS[q] + SLOPES[q] @ away + self.bend * BENDS[q] @ away**2 + jitter

    def __call__(self, values: np.ndarray, questions: Sequence[int]) -> list[np.ndarray]:
        self.calls += len(questions)
        rows = [self.logits(values, q) for q in questions]
        return [row - np.log(np.exp(row).sum(1, keepdims=True)) for row in rows]


def exact(scale: float) -> np.ndarray:
    """d log p / d v at `AT`."""
    chances = np.exp(OFFSETS) / np.exp(OFFSETS).sum(-1, keepdims=True)
    centred = SLOPES - (chances[..., None] * SLOPES).sum(2, keepdims=True)
    return scale * centred.reshape(-1, OUTCOMES, N)


def measured(student: Student) -> tuple[np.ndarray, Differences]:
    differences = Differences(BASIS)
    return differences.slopes(student, AT, student(AT, range(QUESTIONS))), differences


@pytest.mark.parametrize("scale", [0.02, 1.0, 60.0])
def test_steps_have_the_effect_that_is_aimed_at_whatever_the_units(scale: float) -> None:
    found, differences = measured(Student(scale))
    wanted = exact(scale)
    assert found.shape == wanted.shape
    assert found.dtype == np.float32
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.98
    effects = np.sqrt((0.2 * (differences.sizes * wanted) ** 2).sum(1).mean(0))  # about equal chances
    assert (effects > EFFECT / 2.5).all()
    assert (effects < EFFECT * 2.5).all()


def test_noise_is_measured_and_stood_above() -> None:
    quiet, _ = measured(Student(0.05, noise=0.0))
    loud, differences = measured(Student(0.05, noise=0.08))
    assert differences.noise == pytest.approx(0.08 * np.sqrt(2) * 0.85, rel=0.2)
    assert np.corrcoef(loud.ravel(), quiet.ravel())[0, 1] > 0.9


def test_what_is_bent_is_no_slope() -> None:
    """Half of the questions are asked backwards, so that bends cancel in what all of them say together."""
    (straight, _), (bent, _) = measured(Student()), measured(Student(bend=0.5))
    error = (bent - straight).mean(axis=0)
    one_sided = (bent - straight).reshape(QUESTIONS, PLACES, OUTCOMES, N)[::2].mean(axis=(0, 1))
    assert np.abs(error).mean() < np.abs(one_sided).mean()


def test_a_second_time_no_step_is_taken_twice() -> None:
    student = Student(0.02)
    differences = Differences(BASIS)
    now = student(AT, range(QUESTIONS))
    costs = []
    for _ in range(2):
        student.calls = 0
        differences.slopes(student, AT, now)
        costs.append(student.calls)
    assert costs[1] == N * QUESTIONS < costs[0]


def test_one_question_is_enough() -> None:
    student = Student()
    found = Differences(BASIS).slopes(student, AT, student(AT, [0]))
    assert np.corrcoef(found.ravel(), exact(1.0)[:PLACES].ravel())[0, 1] > 0.95


def test_a_value_that_does_nothing_has_no_slope_to_speak_of() -> None:
    def deaf(values: np.ndarray, questions: Sequence[int]) -> list[np.ndarray]:
        return Student()(np.where(np.arange(N) == 1, AT, values), questions)

    found = Differences(BASIS).slopes(deaf, AT, deaf(AT, range(QUESTIONS)))
    assert not found[..., 1].any()
    assert np.abs(found[..., 0]).mean() > 0.1


@pytest.mark.parametrize("beyond", [0.0, 1e-3])
def test_logits_that_are_not_finite(beyond: float) -> None:
    """Far away a model may have none: steps become shorter, and where that does not help it is said."""

    def edge(far: float) -> Callable[[np.ndarray, Sequence[int]], list[np.ndarray]]:
        student = Student()

        def ask(values: np.ndarray, questions: Sequence[int]) -> list[np.ndarray]:
            found = student(values, questions)
            return [rows * np.nan for rows in found] if np.abs(values - AT).max() > far else found

        return ask

    now = Student()(AT, range(QUESTIONS))
    if beyond:
        differences = Differences(BASIS)
        differences.slopes(edge(differences.sizes.max() / 3), AT, now)
    else:
        with pytest.raises(TrainError, match="not finite near the vector"):
            Differences(BASIS).slopes(edge(1e-12), AT, now)
