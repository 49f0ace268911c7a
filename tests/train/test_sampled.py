"""Sampled batches: what a step makes of completions, and of those whose vector is too large."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tinylora_edge import MicroVector
from tinylora_edge.runtime.batch import Generation
from tinylora_edge.tasks import Completion, Sample, Task
from tinylora_edge.train.batches import Sampled
from tinylora_edge.train.grpo import Loss
from tinylora_edge.train.model import default_dtype

SAMPLES = [Sample("a"), Sample("b")]
V = np.ones((2, 1), np.float32)


def length(completion: Completion, sample: Sample) -> float:
    assert not completion.exploded, "no reward judges it"
    return float(completion.tokens) - 5


class Given:
    """A batch whose generations are given: a number of tokens each, None where the vector explodes."""

    def __init__(self, lengths: list[int | None]) -> None:
        self.lengths = lengths

    def swap(self, vector: MicroVector) -> None:
        assert vector.values.shape == V.shape

    def generate(self, prompts: list[list[int]], *, samples: int, **_: Any) -> list[Generation]:
        assert len(prompts) * samples == len(self.lengths)
        return [
            Generation(0, np.arange(n or 0, dtype=np.int32), np.zeros(n or 0, np.float32), bool(n), n is None)
            for n in self.lengths
        ]


def sampled(given: Given) -> Sampled:
    task = Task("task", SAMPLES, [], length, max_tokens=8)
    return Sampled(
        task,
        given,
        encode=lambda sample: np.array([1], np.int32),
        decode=lambda tokens: "x" * len(tokens),
        each=3,
        loss=Loss(),
    )


def test_what_explodes_gets_the_lowest_reward_and_no_gradient() -> None:
    given = Given([4, None, 2, None, None, None])
    batches = sampled(given)
    groups, metrics = batches.collect(V, SAMPLES, (0,))
    assert metrics["exploded"] == 4
    assert metrics["reward"] == np.mean([-1, -3, -3, -3, -3, -3])
    (group,) = groups
    assert [len(tokens) for tokens in group.completions] == [4, 2]
    assert group.advantage[0] > 0 > group.advantage[1]
    given.lengths = [None] * 6
    groups, metrics = batches.collect(V, SAMPLES, (0,))
    assert (groups, metrics["signal"], metrics["reward"]) == ([], 0.0, -3.0), "the lowest of the run so far"


def test_nothing_is_said_where_nothing_explodes() -> None:
    _, metrics = sampled(Given([4, 3, 2] * 2)).collect(V, SAMPLES, (0,))
    assert "exploded" not in metrics


def test_a_processor_without_onednn_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of PyTorch for Apple Silicon have neither it nor its operators."""
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_dtype() == "fp32"
