"""Log-probabilities of chosen tokens straight from hidden states, without keeping any logits.

For logits z = h W^T / temperature, the gradient of log softmax(z)[t] with respect to h is
(W[t] - softmax(z) W) / temperature: a vector as wide as h, which is worked out in the forward pass, some
rows at a time, and is all that is kept. A token then costs `hidden` numbers of memory, not `vocabulary`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_CHUNK = 1 << 24
"""Logits at the same time: 64 MiB in float32."""


class ChosenLogprobs(torch.autograd.Function):
    """log softmax(h W^T / temperature) at one token a row, differentiable in h.

    Shapes: h [rows, hidden], W [vocabulary, hidden], tokens int64 [rows] -> [rows], float32 or wider.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        """Return the log-probabilities."""
        wide = torch.promote_types(h.dtype, torch.float32)
        result = torch.empty(len(h), dtype=wide, device=h.device)
        slope = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        step = max(1, _CHUNK // len(weight))
        for start in range(0, len(h), step):
            rows = slice(start, start + step)
            chosen = tokens[rows, None]
            z = (h[rows] @ weight.T).to(wide).div_(temperature)  # h W^T is ours: what follows is in place
            z -= z.amax(-1, keepdim=True)
            at_chosen = z.gather(-1, chosen)
            total = z.exp_().sum(-1, keepdim=True)
            result[rows] = (at_chosen - total.log())[:, 0]
            if slope is not None:
                z.div_(total.neg_()).scatter_add_(-1, chosen, torch.ones_like(total))
                torch.mm(z.div_(temperature).to(weight.dtype), weight, out=slope[rows])
        ctx.save_for_backward(slope)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of h."""
        (slope,) = ctx.saved_tensors
        return (grads[0][:, None] * slope).to(slope.dtype), None, None, None


def plain_head(model: Any) -> Tensor | None:
    """Return the output layer's weight [vocabulary, hidden] if the model's logits are h W^T and no more.

    Some architectures scale or cap their logits, or add a bias: theirs have to be taken from the model
    (None is returned). Found out by comparison, on two tokens.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None or model.base_model is model:
        return None
    tokens = torch.zeros((1, 2), dtype=torch.int64, device=head.weight.device)
    with torch.no_grad():
        hidden = model.base_model(tokens, use_cache=False)[0]
        same = torch.equal(hidden @ head.weight.T, model(tokens, use_cache=False).logits)
    return head.weight if same else None
