"""The divergence over the vocabulary: value and gradient against autograd in float64."""

from __future__ import annotations

import pytest
import torch

from tinylora_edge.train.learned import divergence
from tinylora_edge.train.learned.divergence import ForwardKL


@pytest.fixture
def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(7, 8), torch.randn(7, 8), torch.randn(50, 8)


def reference(h: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    target, own = (torch.log_softmax(each @ weight.T, -1) for each in (teacher, h))
    return (target.exp() * (target - own)).sum(-1)


@pytest.mark.parametrize("chunk", [1 << 23, 150, 1], ids=["whole", "three rows", "a row"])
def test_it_is_the_divergence_and_its_gradient(parts, chunk, monkeypatch):
    monkeypatch.setattr(divergence, "_CHUNK", chunk)
    h, teacher, weight = parts
    own = h.clone().requires_grad_(True)
    found = ForwardKL.apply(own, teacher, weight)
    (found * torch.arange(1.0, 8)).sum().backward()
    exact = h.double().requires_grad_(True)
    expected = reference(exact, teacher.double(), weight.double())
    (expected * torch.arange(1.0, 8)).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_the_teacher_itself_is_at_zero(parts):
    h, _, weight = parts
    own = h.clone().requires_grad_(True)
    found = ForwardKL.apply(own, h, weight)
    found.sum().backward()
    torch.testing.assert_close(found, torch.zeros(7), rtol=0, atol=1e-6)
    torch.testing.assert_close(own.grad, torch.zeros(7, 8), rtol=0, atol=1e-6)


def test_without_a_gradient_none_is_worked_out(parts):
    h, teacher, weight = parts
    with torch.no_grad():
        found = ForwardKL.apply(h, teacher, weight)
    torch.testing.assert_close(found, reference(h, teacher, weight), rtol=1e-5, atol=1e-6)
