"""The arithmetic of GRPO: advantages of a group, and the loss of a token.

Sources: Shao et al., "DeepSeekMath" (GRPO), arXiv 2402.03300; Yu et al., "DAPO" (the mean over all tokens of
a batch), arXiv 2503.14476; Yao et al., "Your efficient RL framework secretly brings you off-policy RL
training" (truncated importance sampling between sampler and learner), 2025. A batch is used for one step, so
that there is no ratio to clip; other losses, and a KL term, are TRL's (`trl`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

IMPORTANCE_CAP = 2.0
"""Largest weight exp(log p_learner - log p_sampler) of a token."""


def advantages(rewards: ArrayLike) -> NDArray[np.float32]:
    """Return rewards [samples] minus their mean, by their standard deviation: float32 [samples].

    All are zero where the rewards are all equal, i.e. where there is no signal.
    """
    centred = np.asarray(rewards, np.float64)
    centred = centred - centred.mean()
    deviation = centred.std()
    if deviation < 1e-9:
        return np.zeros(len(centred), np.float32)
    return np.asarray(centred / deviation, np.float32)


def token_loss(logprobs: Tensor, advantage: Tensor, sampled: Tensor | None) -> Tensor:
    """Return the loss of every token, to be minimised: [completions, tokens], as `logprobs` and `sampled`.

    With advantage 1, [completions, 1], and nothing sampled it is cross-entropy. `sampled` are the
    log-probabilities that the tokens were drawn with, for their importance.
    """
    if sampled is None:
        return -logprobs * advantage
    now = logprobs.detach()
    return -torch.exp(logprobs - now) * advantage * torch.exp(now - sampled).clamp(max=IMPORTANCE_CAP)
