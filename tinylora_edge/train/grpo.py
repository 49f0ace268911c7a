"""The arithmetic of GRPO: advantages of a group, and the loss of a group's completions.

Sources: Shao et al., "DeepSeekMath" (GRPO), arXiv 2402.03300; Liu et al., "Understanding R1-Zero-like
training" (Dr. GRPO: no division by the standard deviation, constant normaliser), arXiv 2503.20783; Yu et
al., "DAPO" (token-level loss), arXiv 2503.14476; Yao et al., "Your efficient RL framework secretly brings
you off-policy RL training" (truncated importance sampling between sampler and learner), 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..errors import TrainError

LOSSES: tuple[str, ...] = ("dapo", "dr_grpo", "grpo")
"""How token losses are averaged: over the tokens of the whole batch, over completions times the token
limit, or over each completion first."""

_MOST = 10.0  # nats: the ratio of one token must not overflow


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of a completion: what it is made of.

    Attributes:
        kind: one of `LOSSES`.
        scale: divide a group's advantages by their standard deviation.
        importance_cap: largest weight exp(log p_learner - log p_sampler) of a token; 0 weighs all alike.
        clip: PPO's epsilon for the ratio between the present and the old policy; matters only when a
            batch is used for more than one step. None does not clip.
        kl: weight of the KL divergence to the base (the k3 estimator); 0, as in the paper's GSM8K runs,
            saves the pass that it costs.
    """

    kind: str = "dapo"
    scale: bool = True
    importance_cap: float = 2.0
    clip: float | None = None
    kl: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise TrainError(f"unknown loss {self.kind!r}: choose one of {', '.join(LOSSES)}")


def advantages(rewards: ArrayLike, *, scale: bool = True) -> NDArray[np.float32]:
    """Return the advantages of one group's completions: reward minus the group's mean.

    Args:
        rewards: of the group, [samples].
        scale: divide by the group's standard deviation.

    Returns:
        float32 [samples]; all zero where the rewards are all equal, i.e. where there is no signal.
    """
    centred = np.asarray(rewards, np.float64)
    centred = centred - centred.mean()
    deviation = centred.std()
    if deviation < 1e-9:
        return np.zeros(len(centred), np.float32)
    result: NDArray[np.float32] = (centred / deviation if scale else centred).astype(np.float32)
    return result


def normaliser(lengths: ArrayLike, max_tokens: int, kind: str) -> NDArray[np.float32]:
    """Return the weight of one token of each completion of the batch: float32 [completions].

    Summed token losses times these weights are the batch's loss.
    """
    n = np.asarray(lengths, np.float64)
    if kind == "dapo":
        weight = np.full(len(n), 1 / n.sum())
    elif kind == "dr_grpo":
        weight = np.full(len(n), 1 / (len(n) * max_tokens))
    else:
        weight = 1 / (len(n) * n)
    return weight.astype(np.float32)


def token_loss(
    logprobs: Tensor,
    *,
    sampled: Tensor,
    old: Tensor,
    reference: Tensor | None,
    advantage: Tensor,
    loss: Loss,
) -> Tensor:
    """Return the loss of every token, to be minimised: [completions, tokens].

    Args:
        logprobs: of the present policy, differentiable, [completions, tokens].
        sampled: log-probabilities that the sampler drew the tokens with.
        old: log-probabilities of the learner's policy that the batch was sampled from, detached.
        reference: log-probabilities of the base, detached; needed where `loss.kl` is not 0.
        advantage: [completions, 1].
        loss: what the loss is made of.
    """
    ratio = torch.exp(logprobs - old)
    objective = ratio * advantage
    if loss.clip is not None:
        objective = torch.minimum(objective, ratio.clamp(1 - loss.clip, 1 + loss.clip) * advantage)
    if loss.importance_cap > 0:
        objective = objective * torch.exp(old - sampled).clamp(max=loss.importance_cap)
    result = -objective
    if loss.kl and reference is not None:
        gap = reference - logprobs
        result = result + loss.kl * (torch.exp(gap) - gap - 1)
    return result


def distance(logprobs: Tensor, base: Tensor) -> Tensor:
    """Return r - 1 - log r of every token that the base drew, with r = p / p_base: [completions, tokens].

    Its mean is KL(base || p): -log r alone has it too, and r - 1 has the mean 0 (Schulman, "Approximating KL
    divergence", 2020: k3, where the base is the sampler). It is never below 0, and its gradient is 0 where
    nothing changed: it pulls to the base, and not to the answers that happened to be drawn.

    Args:
        logprobs: of the present policy, differentiable, [completions, tokens].
        base: of the base, detached.
    """
    ratio = logprobs - base
    return torch.expm1(ratio.clamp(max=_MOST)) - ratio
