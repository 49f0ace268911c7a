"""What clicks say: a posterior that finds the vector a simulated user prefers, and knows how sure it is."""

from __future__ import annotations

import numpy as np
import pytest

from tinylora_edge.projection import Prior
from tinylora_edge.runtime.learning.posterior import BETA, FARTHEST, SPREAD, Posterior

N = 13


class User:
    def __init__(self, seed: int, log_odds: float = 1.5, size: int = N) -> None:
        rng = np.random.default_rng(seed)
        self.mix = rng.normal(size=(size, size)) * 4 + np.eye(size) * 8
        self.fisher = self.mix @ self.mix.T
        wish = rng.normal(size=size)
        self.wish = wish * log_odds / BETA / np.sqrt(wish @ self.fisher @ wish)  # v*
        self.rng = rng

    def score(self) -> np.ndarray:
        return self.mix @ self.rng.normal(size=len(self.wish))

    def says(self, log_odds: float) -> int:
        return 1 if self.rng.random() < 1 / (1 + np.exp(-log_odds)) else -1

    def agreement(self, posterior: Posterior) -> float:
        v = posterior.vector()
        norms = np.sqrt((v @ self.fisher @ v) * (self.wish @ self.fisher @ self.wish))
        return float(v @ self.fisher @ self.wish / norms)


def clicked(
    user: User, clicks: int, at: np.ndarray | None = None, pleased: float = 0.0, scale: float = 1.0
) -> Posterior:
    """What so many clicks say; `scale`: of the scores, in other units."""
    posterior = Posterior(N)
    at = np.zeros(N) if at is None else at
    for _ in range(clicks):
        score = user.score()
        reward = user.says(BETA * float(score @ user.wish) + pleased)
        posterior.like(scale * score, float(score @ at), at, reward)
    return posterior


@pytest.mark.parametrize(("clicks", "least"), [(20, 0.4), (320, 0.85)])
def test_clicks_find_what_the_user_prefers(clicks: int, least: float) -> None:
    found = [User(seed).agreement(clicked(User(seed), clicks)) for seed in range(12)]
    assert np.mean(found) > least


@pytest.mark.parametrize("pleased", [-2.0, 2.0])
def test_a_user_who_is_always_or_never_pleased_is_not_mistaken(pleased: float) -> None:
    found = [User(seed).agreement(clicked(User(seed), 160, pleased=pleased)) for seed in range(6)]
    assert np.mean(found) > 0.6


def test_where_the_answers_were_drawn_does_not_matter_in_a_linear_world() -> None:
    at = np.random.default_rng(5).normal(size=N) * 0.02
    here, there = (clicked(User(3), 40, place) for place in (np.zeros(N), at))
    np.testing.assert_allclose(here.vector(), there.vector(), atol=1e-9)


def test_one_click_is_as_exact_as_a_gaussian_can_be() -> None:
    """Against the true posterior of one value, on a grid."""
    posterior = Posterior(1)
    posterior.prefer(np.array([3.0]), np.zeros(1), (0.0, 0.0), np.zeros(1))
    prior = (BETA / SPREAD) ** 2 * posterior.information()[0, 0]
    grid = np.linspace(-20, 20, 200_001)
    weights = np.exp(-prior * grid**2 / 2) / (1 + np.exp(-BETA * 3.0 * grid))
    mean, covariance = posterior.solved()
    mode = grid[weights.argmax()]
    assert mean[0] == pytest.approx(mode, abs=1e-3)
    true = (weights * grid).sum() / weights.sum()
    assert mean[0] == pytest.approx(true, rel=0.05)
    spread = np.sqrt((weights * (grid - true) ** 2).sum() / weights.sum())
    assert np.sqrt(covariance[0, 0]) == pytest.approx(spread, rel=0.05)


def test_the_vector_stays_near_the_base_whatever_is_clicked() -> None:
    posterior = Posterior(N)
    score = np.full(N, 5.0)
    for _ in range(2000):
        posterior.like(score, 0.0, np.zeros(N), 1)
        posterior.like(-score, 0.0, np.zeros(N), -1)
    v = posterior.vector()
    assert v @ posterior.information() @ v / 2 <= FARTHEST * (1 + 1e-9)
    assert v @ score > 0


def test_the_units_of_the_basis_do_not_matter() -> None:
    found = [clicked(User(1), 30, scale=scale).vector() * scale for scale in (1.0, 10.0)]
    np.testing.assert_allclose(*found, rtol=1e-8)


def a_prior(size: int = N) -> Prior:
    rng = np.random.default_rng(8)
    mixing = rng.normal(size=(size, size))
    return Prior(0.1 * rng.normal(size=size), 0.01 * (mixing @ mixing.T + np.eye(size)))


def test_before_any_click_the_prior_is_what_is_known_and_the_vector_the_base() -> None:
    posterior, prior = Posterior(N, prior=a_prior()), a_prior()
    mean, covariance = posterior.solved()
    np.testing.assert_allclose(mean, [*prior.mean, 0.0], atol=1e-12)
    np.testing.assert_allclose(covariance[:N, :N], prior.covariance, rtol=1e-8, atol=1e-12)
    assert not posterior.vector().any()
