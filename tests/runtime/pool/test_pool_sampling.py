"""The draw of the next token: the distribution that was asked for, and numbers of one's own."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from tinylora_edge import OptionError, RequestError
from tinylora_edge.limits import STOPS
from tinylora_edge.runtime.pool.request import Sampling, sampling_of
from tinylora_edge.runtime.pool.sampling import Sampler, logprobs

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
DRAWS = 4000


class Only:
    """Allows some tokens."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    def allows(self, token: int) -> bool:
        return token in self.tokens

    def masked(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(np.isin(np.arange(len(logits)), self.tokens), logits, -np.inf).astype(np.float32)

    def accept(self, token: int) -> None:
        pass


def shares(sampling: Sampling, constraint: Only | None = None) -> list[float]:
    sampler = Sampler(sampling)
    found = Counter(sampler.draw(LOGITS, constraint) for _ in range(DRAWS))
    return [found[token] / DRAWS for token in range(len(LOGITS))]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=0), [0, 1, 0, 0]),
        (Sampling(seed=1), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=0.5, seed=1), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        (Sampling(top_p=0.65, seed=1), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_p=0.01, seed=1), [0, 1, 0, 0]),
        (Sampling(temperature=1e-320, seed=1), [0, 1, 0, 0]),
    ],
)
def test_draws_have_the_distribution(sampling: Sampling, expected: list[float]) -> None:
    np.testing.assert_allclose(shares(sampling), expected, atol=0.03)


def test_what_is_not_allowed_is_never_drawn() -> None:
    np.testing.assert_allclose(shares(Sampling(seed=1), Only(0, 2)), [1 / 3, 0, 2 / 3, 0], atol=0.03)
    assert shares(Sampling(temperature=0), Only(0, 2)) == [0, 0, 1, 0]
    assert Sampler(Sampling()).draw(LOGITS, Only()) is None


def test_a_seed_fixes_the_draws_and_every_choice_has_its_own() -> None:
    def draws(seed: int | None, choice: int = 0) -> list[int | None]:
        sampler = Sampler(Sampling(seed=seed), choice)
        return [sampler.draw(LOGITS) for _ in range(50)]

    assert draws(5) == draws(5)
    assert len({tuple(each) for each in (draws(5), draws(6), draws(5, 1), draws(None), draws(None))}) == 5


def test_top_p_over_many_tokens() -> None:
    flat = np.zeros(5000, np.float32)
    sampler = Sampler(Sampling(top_p=0.9, seed=0))
    assert len({sampler.draw(flat) for _ in range(3000)}) > 1500


def test_log_probabilities() -> None:
    own, likeliest = logprobs(LOGITS + 7, 2, 3)
    assert own == pytest.approx(np.log(0.2), abs=1e-6)
    assert [token for token, _ in likeliest] == [1, 3, 2]
    np.testing.assert_allclose([p for _, p in likeliest], np.log([0.4, 0.3, 0.2]), atol=1e-6)
    assert logprobs(LOGITS, 0, 0)[1] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0: it must be 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0: it must be above 0"),
        ({"max_tokens": 0}, "max_tokens is 0: it must be 1 or more"),
        ({"seed": -1}, "seed is -1"),
        ({"logprobs": 21}, "logprobs is 21: it must be from 0 to 20"),
        ({"stop": ["x"] * 17}, "stop is 17 texts: it must be at most 16"),
        ({"stop": [""]}, "a stop text has 1 to 1024 characters, not 0"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        sampling_of(options)  # type: ignore[arg-type]
    assert caught.value.param == next(iter(options))


def test_an_option_that_there_is_not() -> None:
    with pytest.raises(OptionError, match="no option 'temprature': did you mean 'temperature'"):
        sampling_of({"temprature": 1})  # type: ignore[typeddict-unknown-key]


def test_stop_texts_of_a_call_and_of_the_chat_format() -> None:
    assert sampling_of({"stop": "a"}, ["</s>", "a"]).stop == ("a", "</s>")
    assert sampling_of({}, ["</s>"]).stop == ("</s>",)
    most = [str(number) for number in range(STOPS)]
    assert sampling_of({"stop": most}, ["</s>"]).stop == (*most, "</s>"), "the format's own are not counted"
