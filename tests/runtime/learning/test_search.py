"""The search: it climbs, in noise too, and goes on from its state; the sigma of an effect is found."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tinylora_edge.runtime.learning.search import Search, change, sigma_of

TARGET = np.linspace(-1, 1, 13)


def test_climbs_in_noise() -> None:
    ends = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        search = Search(np.zeros(13), 0.3, seed)
        for _ in range(50):
            logits = 2 - ((search.ask() - TARGET) ** 2).sum(axis=1)
            chances = 1 / (1 + np.exp(-logits[:, None] - rng.standard_normal(8)))
            search.tell(rng.random(chances.shape) < chances)
        ends.append(np.linalg.norm(search.mean - TARGET) / np.linalg.norm(TARGET))
    assert np.mean(ends) < 0.8, ends


def test_anew_it_goes_on_from_there_with_other_candidates() -> None:
    search = Search(np.zeros(4), 0.1, 0)
    search.tell(np.full((8, 3), 0.5))
    np.testing.assert_array_equal(search.mean, np.zeros(4), "equal rewards move nothing")
    again = search.anew(np.ones(4), 0.05)
    assert (again.step, again.sigma, again.rewards) == (1, 0.05, [])
    np.testing.assert_array_equal(again.mean, np.ones(4))
    assert not np.isclose((again.ask() - 1) / 0.05, Search(np.ones(4), 0.05, 0).ask() / 0.05 - 20).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Search([1e33], 1, 0), r"expected numbers below 1e\+32"),
        (lambda: Search([0.0], 1, 0).tell([1.0]), "8 candidates"),
        (lambda: Search([0.0], 1, 0).tell([np.nan] * 8), "finite"),
        (lambda: Search.restored(Search([0.0], 1, 0).state(), 2, 0, 8), "has 1 dimensions, expected 2"),
        (lambda: Search.restored({**Search([0.0], 1, 0).state(), "first": 1.5}, 1, 0, 8), "a search is"),
        (lambda: Search.restored({**Search([0.0], 1, 0).state(), "rewards": [[1.0]]}, 1, 0, 8), "8 candid"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_change_is_the_root_mean_square_over_vectors_and_tokens() -> None:
    here = np.array([-1.0, -2.0], np.float32)
    there = [np.array([-1.5, -2.0], np.float32), np.array([-1.0, -4.0], np.float32)]
    assert change(here, there) == pytest.approx(math.sqrt((0.25 + 4.0) / 4))
    assert math.isnan(change(np.zeros(0, np.float32), [np.zeros(0, np.float32)]))


@pytest.mark.parametrize("first", [1e-3, 0.05, 0.2, 3.0])
def test_a_sigma_is_found_above_a_floor_of_noise_and_below_saturation(first: float) -> None:
    measured: list[float] = []

    def measure(sigma: float) -> float:
        measured.append(sigma)
        return math.hypot(0.1, 5 * sigma) / (1 + sigma)

    assert sigma_of(0.5, first, lambda sigma: math.nan) == first, "it cannot be measured"
    sigma = sigma_of(0.5, first, measure)
    assert measure(sigma) == pytest.approx(0.5, rel=0.15)
    assert len(measured) <= 5
