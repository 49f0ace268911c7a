"""The search by covariance matrix adaptation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .base import MOST_GROWTH, Search, Vector, expected_length


class CMAES(Search):
    """Covariance matrix adaptation: the (mu/mu_w, lambda)-CMA-ES of Hansen's tutorial, arXiv 1604.00772.

    Args:
        start, sigma, seed: see `Search`.
        population: lambda. Hansen's default is 4 + 3 ln n, 11 for n = 13; here answers cost more than steps.
        separable: adapt the diagonal alone (Ros and Hansen, PPSN 2008), which learns n / 3 times as fast.
    """

    name = "cma"

    def __init__(
        self,
        start: ArrayLike,
        sigma: float,
        seed: int,
        *,
        population: int = 8,
        separable: bool = False,
    ) -> None:
        super().__init__(start, sigma, seed)
        self.population = population
        if self.population < 4:
            raise ValueError(f"population is {self.population}, expected at least 4")
        self.separable = separable
        self.covariance = np.eye(self.size)
        self.path_sigma, self.path_c = np.zeros(self.size), np.zeros(self.size)
        self.updates = 0

    def ask(self) -> Vector:
        """Return draws from N(mean, sigma^2 C)."""
        scales, axes = self._axes()
        draws = self._rng().standard_normal((self.population, self.size))
        return self.mean + self.sigma * (draws * scales) @ axes.T

    def _axes(self) -> tuple[Vector, Vector]:
        if self.separable:
            return np.sqrt(np.diag(self.covariance)), np.eye(self.size)
        values, axes = np.linalg.eigh(self.covariance)
        return np.sqrt(np.maximum(values, 1e-20)), axes

    def _learn(self, candidates: Vector, rewards: Vector) -> None:
        rewards = rewards.mean(axis=1)
        if np.ptp(rewards) == 0:
            return
        n, weights = self.size, _tied(rewards, _cma_weights(self.population))
        effective = 1 / float((_cma_weights(self.population) ** 2).sum())
        y = (candidates - self.mean) / self.sigma
        mean_y = weights @ y
        self.mean = self.mean + self.sigma * mean_y
        scales, axes = self._axes()
        white = axes @ ((axes.T @ mean_y) / scales)
        c_sigma = (effective + 2) / (n + effective + 5)
        damping = 1 + 2 * max(0.0, math.sqrt((effective - 1) / (n + 1)) - 1) + c_sigma
        self.path_sigma = (1 - c_sigma) * self.path_sigma
        self.path_sigma += math.sqrt(c_sigma * (2 - c_sigma) * effective) * white
        self.updates += 1
        length, expected = float(np.linalg.norm(self.path_sigma)), expected_length(n)
        discount = math.sqrt(1 - (1 - c_sigma) ** (2 * self.updates))
        steady = length / discount < (1.4 + 2 / (n + 1)) * expected
        c_c = (4 + effective / n) / (n + 4 + 2 * effective / n)
        self.path_c = (1 - c_c) * self.path_c
        self.path_c += steady * math.sqrt(c_c * (2 - c_c) * effective) * mean_y
        c_1 = 2 / ((n + 1.3) ** 2 + effective)
        c_mu = min(1 - c_1, 2 * (effective - 2 + 1 / effective) / ((n + 2) ** 2 + effective))
        if self.separable:
            c_1, c_mu = (min(c * (n + 2) / 3, 0.4) for c in (c_1, c_mu))
        kept = 1 - c_1 - c_mu + (1 - steady) * c_1 * c_c * (2 - c_c)
        self.covariance = (
            kept * self.covariance + c_1 * np.outer(self.path_c, self.path_c) + c_mu * (y.T * weights) @ y
        )
        if self.separable:
            self.covariance = np.diag(np.diag(self.covariance))
        growth = c_sigma / damping * (length / expected - 1)
        self.sigma *= math.exp(min(growth, MOST_GROWTH))

    def _forget(self) -> None:
        self.path_sigma, self.path_c, self.updates = np.zeros(self.size), np.zeros(self.size), 0


def _cma_weights(population: int) -> Vector:
    """Of the better half, from the best on; the others have 0."""
    raw = np.log((population + 1) / 2) - np.log(np.arange(1, population + 1))
    positive = np.maximum(raw, 0.0)
    weights: Vector = positive / positive.sum()
    return weights


def _tied(rewards: Sequence[float] | Vector, weights: Vector) -> Vector:
    """Give the weights to the rewards, highest first; equal rewards share theirs."""
    rewards = np.asarray(rewards)
    order = np.argsort(-rewards, kind="stable")
    found = np.empty_like(weights)
    found[order] = weights
    for value in np.unique(rewards):
        same = rewards == value
        found[same] = found[same].mean()
    return found
