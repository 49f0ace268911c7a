"""The figures of a replacement, from divergences that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tinylora_edge.runtime import Replacement


def replacement(before: list[float], after: list[float]) -> Replacement:
    lengths = np.full(len(before), 10)
    return Replacement(np.array(before), np.array(after), lengths, 30.0, 20.0, 0.2, 0.1, ())


def test_the_share_is_of_all_nats_together() -> None:
    found = replacement([4.0, 1.0, 5.0], [1.0, 1.5, 2.5])
    assert found.share == pytest.approx(0.5)
    assert (found.nats, found.nats_left) == (pytest.approx(10 / 30), pytest.approx(5 / 30))
    assert repr(found).startswith(f"Replacement(0.500 +- {found.standard_error:.3f} of 0.333 nats a token")


def test_a_vector_that_does_harm_has_a_share_below_0() -> None:
    assert replacement([1.0, 1.0], [1.5, 2.5]).share == -1.0


def test_the_standard_error_is_what_other_questions_would_change() -> None:
    """Against the spread of the share over many draws of as many questions."""
    rng = np.random.default_rng(0)

    def draw() -> Replacement:
        before = rng.gamma(2.0, 1.0, 24)
        return replacement(before.tolist(), (before * rng.uniform(0.2, 1.0, 24)).tolist())

    drawn = [draw() for _ in range(2000)]
    expected = np.std([each.share for each in drawn])
    assert np.mean([each.standard_error for each in drawn]) == pytest.approx(expected, rel=0.1)
    assert math.isnan(replacement([1.0], [0.5]).standard_error)
    assert replacement([1.0, 2.0], [0.5, 1.0]).standard_error == 0.0, "the same share everywhere"
