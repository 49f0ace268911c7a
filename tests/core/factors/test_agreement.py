"""Agreement: small for the weight that was factorized, large for any other, infinite for what cannot be."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from tinylora_edge.factorization import AGREEMENT, distance, factors, gap, truncated_svd


class Rows:
    def __init__(self, weight):
        self.weight, self.shape = weight, weight.shape

    def rows(self, start, stop):
        return self.weight[start:stop]


@pytest.fixture
def weight():
    return np.random.default_rng(0).standard_normal((700, 40)).astype(np.float32)


def test_a_weight_is_near_its_factors_and_far_from_others(weight):
    a, b = factors(truncated_svd(weight, 2))
    noisy = weight + 0.01 * np.random.default_rng(1).standard_normal(weight.shape).astype(np.float32)
    assert distance(a, b, [Rows(weight)]) < 0.01
    assert distance(a, b, [Rows(noisy)]) < 0.1
    assert distance(a, b, [Rows(weight[::-1])]) > 2 * AGREEMENT
    assert gap((weight @ a.T)[100:200], b[100:200]) < 0.01


def test_experts_are_taken_one_by_one(weight):
    several = [weight, weight[::-1], 2 * weight]
    pairs = [factors(truncated_svd(one, 2)) for one in several]
    a, b = (np.stack(part) for part in zip(*pairs, strict=True))
    assert distance(a, b, [Rows(one) for one in several]) < 0.01
    assert distance(a, b, [Rows(one) for one in several[::-1]]) > AGREEMENT
    assert distance(a, b, [Rows(weight)]) == inf


def test_what_cannot_be_is_infinitely_far(weight):
    a, b = factors(truncated_svd(weight, 2))
    assert distance(a, b, [Rows(weight[:-1])]) == inf
    assert distance(a, b, [Rows(np.full_like(weight, np.nan))]) == inf
    assert distance(a, 0 * b, [Rows(weight)]) == inf
