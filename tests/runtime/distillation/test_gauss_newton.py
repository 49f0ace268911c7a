"""Gauss-Newton on a student whose optimum is known: a linear one, and one that is bent."""

from __future__ import annotations

import numpy as np
import pytest

from tinylora_edge.runtime.distillation.contrast import divergence
from tinylora_edge.runtime.distillation.gauss_newton import Linear, Prior

PLACES, OUTCOMES, N = 40, 6, 3
RNG = np.random.default_rng(0)
OFFSETS = RNG.standard_normal((PLACES, OUTCOMES))
SLOPES = RNG.standard_normal((PLACES, OUTCOMES, N))
BENDS = 0.3 * RNG.standard_normal((PLACES, OUTCOMES, N))
WANTED = np.array([0.7, -1.1, 0.4])
SIZES = np.ones(N)


def normalized(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def student(v: np.ndarray, bend: float = 0.0) -> np.ndarray:
    return normalized(OFFSETS + SLOPES @ v + bend * BENDS @ v**2)


def slopes(v: np.ndarray, bend: float = 0.0) -> np.ndarray:
    h = 1e-5
    return np.stack([(student(v + e, bend) - student(v - e, bend)) / (2 * h) for e in h * np.eye(N)], -1)


def linear(v: np.ndarray, teacher: np.ndarray, bend: float = 0.0, prior: Prior | None = None) -> Linear:
    return Linear(v, teacher, student(v, bend), slopes(v, bend), prior)


def mean(teacher: np.ndarray, v: np.ndarray, bend: float = 0.0) -> float:
    return float(divergence(teacher, student(v, bend)).mean())


def test_what_is_linear_is_solved_in_one_step() -> None:
    step = linear(np.zeros(N), student(WANTED)).solve(damping=0.0, farthest=100.0)
    np.testing.assert_allclose(step, WANTED, atol=1e-3)


def test_a_step_from_elsewhere_goes_to_the_same_place() -> None:
    at = np.array([-2.0, 1.0, 3.0])
    step = linear(at, student(WANTED)).solve(damping=0.0, farthest=100.0)
    np.testing.assert_allclose(at + step, WANTED, atol=1e-3)


def test_the_information_is_the_curvature_of_the_divergence() -> None:
    model = linear(WANTED, student(WANTED))
    for step in 0.01 * np.eye(N):
        expected = 2 * divergence(student(WANTED), student(WANTED + step)).mean()
        assert step @ model.information() @ step == pytest.approx(expected, rel=0.02)
        assert model.effect(step) == pytest.approx(np.sqrt(expected), rel=0.01)


def test_no_step_goes_farther_than_allowed() -> None:
    model = linear(np.zeros(N), student(10 * WANTED))
    free = model.solve(damping=0.01, farthest=100.0)
    held = model.solve(damping=0.01, farthest=0.5)
    assert model.effect(free) > 2
    assert 0.4 < model.effect(held) <= 0.5
    assert mean(student(10 * WANTED), held) < mean(student(10 * WANTED), np.zeros(N))


def test_damping_shortens_a_step() -> None:
    model = linear(np.zeros(N), student(WANTED))
    effects = [model.effect(model.solve(damping=d, farthest=100.0)) for d in (0.01, 0.3, 3.0, 30.0)]
    assert effects == sorted(effects, reverse=True)
    assert effects[0] > 3 * effects[-1]


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh slopes", "corrected slopes"])
def test_what_is_bent_is_solved_in_a_few_steps(fresh: bool) -> None:
    """With slopes measured once and then only corrected it takes more steps, and gets there."""
    teacher, at = student(WANTED, 1.0), np.zeros(N)
    model = linear(at, teacher, 1.0)
    found = [mean(teacher, at, 1.0)]
    for _ in range(6):
        step = model.solve(damping=1e-4, farthest=1.0)
        at = at + step
        model = linear(at, teacher, 1.0) if fresh else model.moved(step, student(at, 1.0), SIZES)
        found.append(mean(teacher, at, 1.0))
    assert found[1] < 0.6 * found[0]
    assert found[-1] < (1e-4 if fresh else 0.02) * found[0]


def test_corrected_slopes_say_what_was_seen() -> None:
    at, step = np.zeros(N), np.array([0.3, -0.2, 0.5])
    model = linear(at, student(WANTED, 1.0), 1.0)
    moved = model.moved(step, student(step, 1.0), SIZES)
    np.testing.assert_allclose(moved.slopes @ step, moved.student - model.student, atol=1e-9)
    across = np.array([0.2, 0.3, 0.0])
    np.testing.assert_allclose(moved.slopes @ across, model.slopes @ across, atol=1e-9)
    np.testing.assert_array_equal(model.moved(np.zeros(N), model.student, SIZES).slopes, model.slopes)


def test_without_evidence_the_prior_decides() -> None:
    away = np.array([0.5, 0.2, -0.3])
    prior = Prior(away, np.diag([1.0, 1 / 4, 1 / 9]))
    silent = Linear(np.zeros(N), student(WANTED), student(WANTED), np.zeros((PLACES, OUTCOMES, N)), prior)
    np.testing.assert_allclose(silent.solve(damping=0.0, farthest=100.0), away, atol=1e-4)


def test_a_prior_counts_as_one_place() -> None:
    """Evidence of many places outweighs it, evidence of few does not."""
    prior = Prior(np.zeros(N), np.eye(N) / 100)
    teacher, start = student(WANTED), np.zeros(N)

    def step(times: int) -> np.ndarray:
        rows = (np.concatenate([x] * times) for x in (teacher, student(start), slopes(start)))
        return Linear(start, *rows, prior).solve(damping=0.0, farthest=100.0)

    norms = [np.linalg.norm(step(times)) for times in (1, 10, 200)]
    assert norms == sorted(norms)
    np.testing.assert_allclose(step(200), WANTED, atol=0.1)
    assert norms[0] < 0.5 * np.linalg.norm(WANTED)
