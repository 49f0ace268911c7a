"""The search methods: they climb, in noise too, and go on from their state exactly."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tinylora_edge.runtime.tuning.search import METHODS, Search, make_search, restore_search

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("cma", {}),
    ("kalman", {}),
    ("es", {}),
    ("es", {"shape": "rank"}),
    ("cma", {"population": 12}),
    ("cma", {"population": 12, "separable": True}),
    ("spsa", {}),
]
TARGET = np.linspace(-1, 1, 13)


def smooth(candidates: np.ndarray) -> np.ndarray:
    return -((candidates - TARGET) ** 2).sum(axis=1)


def coin(candidates: np.ndarray, rng: np.random.Generator, trials: int) -> np.ndarray:
    """Rewards of 0 and 1 [population, trials], likelier near the target; trials are harder or easier."""
    logits = 2 - ((candidates - TARGET) ** 2).sum(axis=1)
    chances = 1 / (1 + np.exp(-logits[:, None] - rng.standard_normal(trials)))
    return (rng.random(chances.shape) < chances).astype(float)


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_climbs_a_smooth_hill(method: str, options: dict[str, Any]) -> None:
    search = make_search(method, np.zeros(13), sigma=0.2, seed=3, **options)
    for _ in range(120):
        search.tell(smooth(search.ask()))
    assert np.linalg.norm(search.mean - TARGET) < 0.2 * np.linalg.norm(TARGET)
    assert search.step == 120


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_climbs_in_noise(method: str, options: dict[str, Any]) -> None:
    """50 steps of rewards that are 0 or 1: several seeds, since one may be lucky."""
    ends = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        search = make_search(method, np.zeros(13), sigma=0.3, seed=seed, **options)
        for _ in range(50):
            search.tell(coin(search.ask(), rng, 8))
        ends.append(np.linalg.norm(search.mean - TARGET) / np.linalg.norm(TARGET))
    assert np.mean(ends) < 0.8, ends


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_goes_on_from_its_state(method: str, options: dict[str, Any]) -> None:
    """Through JSON, with nothing in it but numbers and the names of options."""

    def run(search: Search, steps: int) -> None:
        for _ in range(steps):
            search.tell(coin(search.ask(), np.random.default_rng(search.step), 4))

    whole = make_search(method, np.zeros(13), sigma=0.3, seed=1, **options)
    run(whole, 12)
    cut = make_search(method, np.zeros(13), sigma=0.3, seed=1, **options)
    run(cut, 5)
    again = restore_search(json.loads(json.dumps(cut.state())))
    np.testing.assert_array_equal(again.ask(), cut.ask())
    run(again, 7)
    assert again.state() == whole.state()
    strings = {value for value in whole.state().values() if isinstance(value, str)}
    assert strings <= {method, "raw", "rank"}


@pytest.mark.parametrize("method", METHODS)
def test_rewards_that_are_all_equal_move_nothing(method: str) -> None:
    search = make_search(method, np.ones(5), sigma=0.1, seed=0)
    search.tell(np.full((len(search.ask()), 3), 0.5))
    np.testing.assert_array_equal(search.mean, np.ones(5))
    assert search.step == 1


@pytest.mark.parametrize("method", METHODS)
def test_the_unit_of_rewards_does_not_matter(method: str) -> None:
    means = []
    for unit in (1.0, 1000.0):
        search = make_search(method, np.zeros(7), sigma=0.2, seed=2)
        for step in range(10):
            search.tell(
                unit * coin(np.pad(search.ask(), ((0, 0), (0, 6))), np.random.default_rng(step), 6) - 5
            )
        means.append(search.mean)
    np.testing.assert_allclose(means[0], means[1], rtol=1e-6, atol=1e-9)


def test_kalman_corrects_a_slope_by_what_is_known() -> None:
    """After many pairs on a plane the filter's slope is the plane's, and its error bars are about right."""
    slope = np.linspace(0.5, -0.5, 6)
    rng = np.random.default_rng(0)
    search = make_search("kalman", np.zeros(6), sigma=0.1, seed=0, forget=0.0, prior=2.0, lr=1e-6)
    for _ in range(60):
        rewards = (search.ask() @ slope)[:, None] + 0.05 * rng.standard_normal((8, 16))
        search.tell(rewards)
    found = vars(search)["slope"] / search.sigma
    errors = np.sqrt(np.diag(vars(search)["covariance"])) / search.sigma
    assert (np.abs(found - slope) < 4 * errors).all()
    assert (errors < 0.05).all()


def test_jump_forgets_where_it_was_heading() -> None:
    search = make_search("es", np.zeros(4), sigma=0.1, seed=0)
    search.tell(search.ask()[:, 0])
    search.jump(np.ones(4), 0.05)
    assert search.sigma == 0.05
    np.testing.assert_array_equal(search.mean, np.ones(4))
    before = search.ask()
    search.tell(np.zeros(len(before)))
    np.testing.assert_array_equal(search.mean, np.ones(4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_search("newton", [0.0], sigma=1, seed=0), "newton.*cma, kalman, es, spsa"),
        (lambda: make_search("es", [0.0], sigma=0, seed=0), "sigma is 0"),
        (lambda: make_search("es", [np.nan], sigma=1, seed=0), "finite"),
        (lambda: make_search("es", [0.0], sigma=1, seed=0, shape="round"), "round"),
        (lambda: make_search("cma", [0.0] * 3, sigma=1, seed=0, population=2), "population is 2"),
        (lambda: make_search("es", [0.0], sigma=1, seed=0).tell([1.0]), "8 candidates"),
        (lambda: make_search("es", [0.0], sigma=1, seed=0).tell([np.nan] * 8), "finite"),
        (lambda: restore_search({"name": "newton"}), "no state of a search"),
        (lambda: restore_search({}), "no state of a search"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
