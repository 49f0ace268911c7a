"""The arithmetic of GRPO against the formulas of its papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tinylora_edge.train.learner import advantages, token_loss


def test_advantages_by_hand() -> None:
    np.testing.assert_allclose(advantages([1, 0, 0, 0]), np.array([3, -1, -1, -1]) / np.sqrt(3), rtol=1e-6)
    assert not advantages([0.3] * 4).any(), "no signal"


@pytest.mark.parametrize(("sampled", "weight"), [(-2.0, 1.0), (-2.5, np.exp(0.5)), (-9.0, 2.0), (None, 1.0)])
def test_the_gradient_is_minus_the_advantage_weighed_by_truncated_importance(
    sampled: float | None, weight: float
) -> None:
    value = torch.tensor([[-2.0]], requires_grad=True)
    drawn = None if sampled is None else torch.tensor([[sampled]])
    (grad,) = torch.autograd.grad(token_loss(value, torch.tensor([[1.5]]), drawn).sum(), value)
    assert grad.item() == pytest.approx(-1.5 * weight)
