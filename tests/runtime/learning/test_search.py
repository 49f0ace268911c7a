"""The search: it climbs, in noise too, and goes on from its state exactly."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tinylora_edge.runtime.learning.search import Search

TARGET = np.linspace(-1, 1, 13)


def coin(candidates: np.ndarray, rng: np.random.Generator, trials: int) -> np.ndarray:
    logits = 2 - ((candidates - TARGET) ** 2).sum(axis=1)
    chances = 1 / (1 + np.exp(-logits[:, None] - rng.standard_normal(trials)))
    return (rng.random(chances.shape) < chances).astype(float)


@pytest.mark.parametrize("population", [8, 12])
def test_climbs_a_smooth_hill(population: int) -> None:
    search = Search(np.zeros(13), 0.2, 3, population=population)
    for _ in range(120):
        search.tell(-((search.ask() - TARGET) ** 2).sum(axis=1))
    assert np.linalg.norm(search.mean - TARGET) < 0.2 * np.linalg.norm(TARGET)
    assert search.step == 120


def test_climbs_in_noise() -> None:
    ends = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        search = Search(np.zeros(13), 0.3, seed)
        for _ in range(50):
            search.tell(coin(search.ask(), rng, 8))
        ends.append(np.linalg.norm(search.mean - TARGET) / np.linalg.norm(TARGET))
    assert np.mean(ends) < 0.8, ends


def test_goes_on_from_its_state() -> None:
    def run(search: Search, steps: int) -> None:
        for _ in range(steps):
            search.tell(coin(search.ask(), np.random.default_rng(search.step), 4))

    whole, cut = Search(np.zeros(13), 0.3, 1), Search(np.zeros(13), 0.3, 1)
    run(whole, 12)
    run(cut, 5)
    again = Search.restored(json.loads(json.dumps(cut.state())), 13, 1, 8)
    np.testing.assert_array_equal(again.ask(), cut.ask())
    run(again, 7)
    assert again.state() == whole.state()
    np.testing.assert_array_equal(again.mean, whole.mean)


def test_rewards_that_are_all_equal_move_nothing() -> None:
    search = Search(np.ones(5), 0.1, 0)
    search.tell(np.full((8, 3), 0.5))
    np.testing.assert_array_equal(search.mean, np.ones(5))
    assert search.step == 1


def test_the_unit_of_rewards_does_not_matter() -> None:
    means = []
    for unit in (1.0, 1000.0):
        search = Search(np.zeros(13), 0.2, 2)
        for step in range(10):
            search.tell(unit * coin(search.ask(), np.random.default_rng(step), 6) - 5)
        means.append(search.mean)
    np.testing.assert_allclose(means[0], means[1], rtol=1e-6, atol=1e-9)


def test_anew_it_goes_on_from_there_with_other_candidates() -> None:
    search = Search(np.zeros(4), 0.1, 0)
    search.tell(search.ask()[:, 0])
    again = search.anew(np.ones(4), 0.05)
    assert (again.step, again.sigma, again.rewards) == (1, 0.05, [])
    np.testing.assert_array_equal(again.mean, np.ones(4))
    assert not np.isclose((again.ask() - 1) / 0.05, Search(np.ones(4), 0.05, 0).ask() / 0.05 - 20).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Search([0.0], 0, 0), "sigma is 0"),
        (lambda: Search([np.nan], 1, 0), "finite"),
        (lambda: Search([0.0] * 3, 1, 0, population=2), "population is 2"),
        (lambda: Search([0.0], 1, 0).tell([1.0]), "8 candidates"),
        (lambda: Search([0.0], 1, 0).tell([np.nan] * 8), "finite"),
        (lambda: Search.restored({}, 2, 0, 8), "a search is"),
        (lambda: Search.restored(Search([0.0], 1, 0).state(), 2, 0, 8), "has 1 dimensions, expected 2"),
        (lambda: Search.restored({**Search([0.0], 1, 0).state(), "first": 1.5}, 1, 0, 8), "a search is"),
        (lambda: Search.restored({**Search([0.0], 1, 0).state(), "rewards": [[1.0]]}, 1, 0, 8), "8 candid"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
