"""The arithmetic of GRPO against the formulas of its papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tinylora_edge.train.grpo import advantages, distance, token_loss


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


def test_the_distance_from_the_base_is_the_divergence_and_pulls_to_nothing_else() -> None:
    torch.manual_seed(0)
    base = torch.log_softmax(torch.randn(6, dtype=torch.float64), -1)
    z = (base + 0.5 * torch.randn(6, dtype=torch.float64)).requires_grad_()
    own = torch.log_softmax(z, -1)
    every = distance(own, base)  # every token as often as the base draws it
    assert bool((every >= 0).all())
    assert float((base.exp() * every).sum().detach()) == pytest.approx(
        float((base.exp() * (base - own)).sum().detach())
    )
    (grad,) = torch.autograd.grad((base.exp() * every).sum(), z)
    torch.testing.assert_close(grad, own.exp().detach() - base.exp())  # that of KL(base || own)
    same = base.clone().requires_grad_()
    assert not torch.autograd.grad(distance(same, base)[:1].sum(), same)[0].any(), "whatever was drawn"


def test_the_distance_of_a_token_that_became_certain_is_finite() -> None:
    far = torch.tensor([100.0], requires_grad=True)
    found = distance(far, torch.zeros(1))
    assert torch.isfinite(torch.cat([found, *torch.autograd.grad(found.sum(), far)])).all()
