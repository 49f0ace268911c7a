"""The student: its slopes, and its divergence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch

from tinylora_edge import load_bundle
from tinylora_edge.train import learner
from tinylora_edge.train.adapter import Adapter
from tinylora_edge.train.learn import Lesson, slopes
from tinylora_edge.train.learner import Learner, divergences


def lesson() -> Lesson:
    def tokens(*ids: int) -> np.ndarray:
        return np.array(ids, np.int32)

    prompted = [tokens(*range(60), 101, 102), tokens(*range(60), 103), tokens(*range(60), 104, 105, 106)]
    unprompted = [
        tokens(*range(100, 140), 1, 2),
        tokens(*range(100, 140), 5),
        tokens(*range(100, 140), 3, 4, 6),
    ]
    return Lesson("x", prompted, unprompted, [tokens(7, 8, 9), tokens(3), tokens(3, 4)])


@pytest.fixture
def pupil(tiny_bundle: Path) -> Iterator[Learner]:
    basis = load_bundle(tiny_bundle).basis(numbers=13)
    model = models.tiny_model("llama")
    with Adapter(model, basis) as adapter:
        learner = Learner(model, adapter, temperature=1.0, workers=2)
        yield learner
        learner.close()


def divergence(pupil: Learner, lesson: Lesson, v: np.ndarray) -> torch.Tensor:
    """The KL of each question from the prompted model, whole rows one at a time: in nats, summed."""
    found = []
    for prompted, unprompted, answer in zip(lesson.prompted, lesson.unprompted, lesson.answers, strict=True):
        with torch.no_grad():
            pupil.adapter.set(0 * v)
            teacher = torch.log_softmax(logits(pupil.model, prompted, answer), -1)
            pupil.adapter.set(v)
            own = torch.log_softmax(logits(pupil.model, unprompted, answer), -1)
        found.append((teacher.exp() * (teacher - own)).sum())
    pupil.adapter.set(0 * v)
    return torch.stack(found)


def logits(model: Any, prompt: np.ndarray, answer: np.ndarray) -> torch.Tensor:
    row = torch.tensor([[*prompt.tolist(), *answer.tolist()]])
    return model(row).logits[0, len(prompt) - 1 : -1]


@pytest.mark.parametrize("plain", [True, False], ids=["from hidden states", "from logits"])
def test_slopes_are_the_changes_of_each_question(pupil: Learner, plain: bool) -> None:
    """Against central differences of whole rows, by 13 numbers; each question has its own."""
    if not plain:
        pupil.head = None
    found, basis = slopes(pupil, lesson(), seed=(1,)), pupil.adapter.basis
    assert found.tokens.tolist() == [3, 1, 2]
    zero = np.zeros(13, np.float32)
    assert found.before == pytest.approx(float(divergence(pupil, lesson(), zero).sum()) / 6, rel=1e-4)
    h = 0.01
    for index in range(0, 13, 4):
        unit = np.eye(13, dtype=np.float32)[index]
        change = divergence(pupil, lesson(), h * unit) - divergence(pupil, lesson(), -h * unit)
        own = [basis.projection.adjoint(each)[index] for each in found.divergence]
        np.testing.assert_allclose(own, change / (2 * h), rtol=0.05, atol=2e-3)
    assert (np.abs(found.score).sum((1, 2, 3)) > 0).all()


# The divergence over the vocabulary: value and gradient against autograd in float64


@pytest.fixture
def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(7, 8), torch.randn(7, 8), torch.randn(50, 8)


def reference(h: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    target, own = (torch.log_softmax(each @ weight.T, -1) for each in (teacher, h))
    return (target.exp() * (target - own)).sum(-1)


@pytest.mark.parametrize("chunk", [1 << 24, 150, 1], ids=["whole", "three rows", "a row"])
def test_it_is_the_divergence_and_its_gradient(parts, chunk, monkeypatch):
    monkeypatch.setattr(learner, "_CHUNK", chunk)
    h, teacher, weight = parts
    own = h.clone().requires_grad_(True)
    found = divergences(own, teacher, weight)
    (found * torch.arange(1.0, 8)).sum().backward()
    exact = h.double().requires_grad_(True)
    expected = reference(exact, teacher.double(), weight.double())
    (expected * torch.arange(1.0, 8)).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)
