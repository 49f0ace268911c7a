"""The draw of the next token: the distribution that was asked for, and numbers of one's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tinylora_edge import VectorError
from tinylora_edge.runtime.sampling import Sampler, draw, likeliest, logprobs

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
DRAWS = 4000


class Only:
    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    def allows(self, token: int) -> bool:
        return token in self.tokens

    def masked(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(np.isin(np.arange(len(logits)), self.tokens), logits, -np.inf).astype(np.float32)


def shares(temperature: float, constraint: Any = None, **options: Any) -> list[float]:
    sampler = Sampler(temperature, seed=1, **options)
    found = [sampler(LOGITS, constraint) for _ in range(DRAWS)]
    return [found.count(token) / DRAWS for token in range(len(LOGITS))]


@pytest.mark.parametrize(
    ("temperature", "options", "expected"),
    [
        (0, {}, [0, 1, 0, 0]),
        (1, {}, [0.1, 0.4, 0.2, 0.3]),
        (0.5, {}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        (1, {"top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        (0.5, {"top_p": 0.65}, [0, 16 / 25, 0, 9 / 25]),
        (1, {"top_p": 0.01}, [0, 1, 0, 0]),
        (1, {"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        (1, {"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0]),
        (1, {"top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
        (1, {"top_k": -1}, [0.1, 0.4, 0.2, 0.3]),  # llama.cpp's word for all
        (1, {"min_p": 0.45}, [0, 4 / 9, 2 / 9, 3 / 9]),
        (1e-320, {}, [0, 1, 0, 0]),
        (1e-320, {"top_p": 0.9}, [0, 1, 0, 0]),
    ],
)
def test_draws_have_the_distribution(temperature: float, options: Any, expected: list[float]) -> None:
    np.testing.assert_allclose(shares(temperature, **options), expected, atol=0.03)


def test_what_is_not_allowed_is_never_drawn() -> None:
    np.testing.assert_allclose(shares(1, Only(0, 2)), [1 / 3, 0, 2 / 3, 0], atol=0.03)
    assert shares(0, Only(0, 2)) == [0, 0, 1, 0]


def test_a_seed_fixes_the_draws_and_every_answer_has_its_own() -> None:
    def draws(seed: int | None, number: int = 0) -> list[int]:
        sampler = Sampler(1, seed=seed, number=number)
        return [sampler(LOGITS) for _ in range(50)]

    assert draws(5) == draws(5)
    assert len({tuple(each) for each in (draws(5), draws(6), draws(5, 1), draws(None), draws(None))}) == 5


def test_logits_that_are_not_finite() -> None:
    for bad in (np.nan, np.inf):
        row = np.array([0.1, bad, 1.0], np.float32)
        for temperature in (0.0, 1.0):
            with pytest.raises(VectorError, match="not finite"):
                Sampler(temperature)(row)
            with pytest.raises(VectorError, match="not finite"):
                draw(row, temperature, 0.5)
        with pytest.raises(VectorError, match="not finite"):
            logprobs(row[None], np.array([0], np.int32))
    assert Sampler(1.0)(np.array([-np.inf, 1.0], np.float32)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 5, 256, 257, 1000, 49_152])
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(width: int) -> None:
    rng = np.random.default_rng(width)
    logits = (rng.normal(size=(300, width)) * 4).astype(np.float32)
    logits[:, rng.random(width) < 0.3] = -np.inf  # weights of exactly 0, at the ends too
    logits[:, width // 2] = 0.0
    uniform = rng.random(300)
    uniform[:3] = 0.0, np.nextafter(1, 0), 1.0  # not even 1 may draw what has no weight
    drawn = [draw(row, 0.5, float(u)) for row, u in zip(logits, uniform, strict=True)]
    tokens, found = (np.array(each) for each in zip(*drawn, strict=True))
    exact = logits.astype(np.float64) / 0.5
    exact -= exact.max(1, keepdims=True)
    p = np.exp(exact) / np.exp(exact).sum(1, keepdims=True)
    at = np.arange(300)
    assert (p[at, tokens] > 0).all()
    upper = np.cumsum(p, axis=1)[at, tokens]
    assert (uniform <= upper + 1e-6).all()
    assert (uniform >= upper - p[at, tokens] - 1e-6).all()
    np.testing.assert_allclose(found, np.log(p[at, tokens]), atol=2e-5)
    np.testing.assert_allclose(logprobs(logits, tokens.astype(np.int32), 0.5), found, atol=2e-5)


def test_the_likeliest_come_first() -> None:
    logits = np.stack([LOGITS, LOGITS[::-1] + 7])
    found = likeliest(logits, 3)
    assert found.tolist() == [[1, 3, 2], [2, 0, 1]]
    np.testing.assert_allclose(logprobs(logits, found), [np.log([0.4, 0.3, 0.2])] * 2, atol=1e-6)
    assert likeliest(logits, 0).shape == (2, 0)
    assert likeliest(logits, 9).shape == (2, 4)
