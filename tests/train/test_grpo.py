"""The arithmetic of GRPO against the formulas of its papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinylora_edge import TrainError
from tinylora_edge.train.grpo import LOSSES, Loss, advantages, distance, normaliser, token_loss

rewards = st.lists(st.floats(-10, 10), min_size=2, max_size=16)


@given(rewards)
def test_advantages_sum_to_zero(values: list[float]) -> None:
    for scale in (True, False):
        found = advantages(values, scale=scale)
        assert abs(found.sum()) < 1e-3
        assert found[np.argmax(values)] == found.max()


def test_advantages_by_hand() -> None:
    np.testing.assert_allclose(advantages([1, 0, 0, 0], scale=False), [0.75, -0.25, -0.25, -0.25])
    np.testing.assert_allclose(advantages([1, 0, 0, 0]), np.array([3, -1, -1, -1]) / np.sqrt(3), rtol=1e-6)


@given(st.floats(-5, 5), st.integers(2, 9))
def test_equal_rewards_are_no_signal(value: float, count: int) -> None:
    assert not advantages([value] * count).any()


def test_normalisers() -> None:
    lengths = [2, 6]
    np.testing.assert_allclose(normaliser(lengths, 10, "dapo"), [1 / 8, 1 / 8])
    np.testing.assert_allclose(normaliser(lengths, 10, "dr_grpo"), [1 / 20, 1 / 20])
    np.testing.assert_allclose(normaliser(lengths, 10, "grpo"), [1 / 4, 1 / 12])
    for kind in ("dapo", "grpo"):  # the weights of all tokens sum to 1
        assert np.dot(normaliser(lengths, 10, kind), lengths) == pytest.approx(1)


def test_unknown_loss() -> None:
    with pytest.raises(TrainError, match=r"'ppo'.*" + ".*".join(LOSSES)):
        Loss(kind="ppo")


def terms(logprob: float, old: float, sampled: float, advantage: float, loss: Loss) -> torch.Tensor:
    value = torch.tensor([[logprob]], requires_grad=True)
    result = token_loss(
        value,
        sampled=torch.tensor([[sampled]]),
        old=torch.tensor([[old]]),
        reference=torch.tensor([[-1.0]]),
        advantage=torch.tensor([[advantage]]),
        loss=loss,
    )
    (grad,) = torch.autograd.grad(result.sum(), value)
    return torch.stack([result.detach()[0, 0], grad[0, 0]])


def test_on_policy_gradient_is_minus_the_advantage() -> None:
    _, grad = terms(-2.0, -2.0, -2.0, 1.5, Loss())
    assert grad.item() == pytest.approx(-1.5)


def test_importance_weight_is_truncated() -> None:
    _, grad = terms(-2.0, -2.0, -2.5, 1.0, Loss(importance_cap=10))
    assert grad.item() == pytest.approx(-np.exp(0.5))
    _, grad = terms(-2.0, -2.0, -9.0, 1.0, Loss(importance_cap=2))
    assert grad.item() == pytest.approx(-2.0)
    _, grad = terms(-2.0, -2.0, -9.0, 1.0, Loss(importance_cap=0))
    assert grad.item() == pytest.approx(-1.0)


def test_clip_stops_the_gradient_beyond_its_range() -> None:
    loss = Loss(clip=0.2)
    assert terms(-1.0, -2.0, -2.0, 1.0, loss)[1].item() == 0  # ratio e > 1.2, and the reward wants more
    assert terms(-1.0, -2.0, -2.0, -1.0, loss)[1].item() == pytest.approx(np.e)  # the way back stays open
    assert terms(-3.0, -2.0, -2.0, -1.0, loss)[1].item() == 0


def test_kl_is_the_k3_estimator() -> None:
    with_kl, without = terms(-1.5, -1.5, -1.5, 0.7, Loss(kl=0.3)), terms(-1.5, -1.5, -1.5, 0.7, Loss())
    gap = -1.0 - -1.5
    assert (with_kl - without)[0].item() == pytest.approx(0.3 * (np.exp(gap) - gap - 1), rel=1e-5)
    assert (with_kl - without)[1].item() == pytest.approx(0.3 * (1 - np.exp(gap)), rel=1e-5)


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
