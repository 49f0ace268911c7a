"""The effect of a sigma in nats: what is measured, how a sigma is found, and what both engines say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tinylora_edge.runtime.learning.search import change, sigma_of


def test_the_change_is_the_root_mean_square_over_vectors_and_tokens() -> None:
    here = np.array([-1.0, -2.0], np.float32)
    there = [np.array([-1.5, -2.0], np.float32), np.array([-1.0, -4.0], np.float32)]
    assert change(here, there) == pytest.approx(math.sqrt((0.25 + 4.0) / 4))
    assert math.isnan(change(np.zeros(0, np.float32), [np.zeros(0, np.float32)]))


@pytest.mark.parametrize("first", [1e-3, 0.05, 0.2, 3.0])
def test_a_sigma_is_found_above_a_floor_of_noise_and_below_saturation(first: float) -> None:
    asked: list[float] = []

    def measure(sigma: float) -> float:
        asked.append(sigma)
        return math.hypot(0.1, 5 * sigma) / (1 + sigma)

    sigma = sigma_of(0.5, first, measure)
    assert measure(sigma) == pytest.approx(0.5, rel=0.15)
    assert len(asked) <= 5


def test_what_cannot_be_told_changes_nothing() -> None:
    assert sigma_of(0.5, 0.07, lambda sigma: math.nan) == 0.07
