"""The divergence between a teacher and a student over the whole vocabulary, without keeping logits.

For fixed teacher probabilities p and student logits z = h W^T, the forward divergence KL(p || softmax z) has
the gradient (softmax(z) - p) W with respect to h. It is worked out in the forward pass, some rows at a time,
and is all that is kept: a token costs `hidden` numbers of memory, not `vocabulary`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 23
"""Logits at the same time, of teacher and student each: 32 MiB in float32."""


class ForwardKL(torch.autograd.Function):
    """KL(softmax(t W^T) || softmax(h W^T)) of every row, differentiable in h.

    Shapes: h and t [rows, hidden], W [vocabulary, hidden] -> [rows], float32, in nats.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        """Return the divergences."""
        result = torch.empty(len(h), dtype=torch.float32, device=h.device)
        slope = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        step = max(1, _CHUNK // len(weight))
        for start in range(0, len(h), step):
            rows = slice(start, start + step)
            target = torch.log_softmax((teacher[rows] @ weight.T).float(), -1)
            own = torch.log_softmax((h[rows] @ weight.T).float(), -1)
            chances = target.exp()
            result[rows] = (chances * target.sub_(own)).sum(-1)
            if slope is not None:
                torch.mm(own.exp_().sub_(chances).to(weight.dtype), weight, out=slope[rows])
        ctx.save_for_backward(slope)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of h."""
        (slope,) = ctx.saved_tensors
        return (grads[0][:, None] * slope).to(slope.dtype), None, None
