"""The learner: log-probabilities of completions in torch, and what their loss says about v.

The prompt of a group runs once; its keys and values serve all completions of the group. Groups run on a
pool of threads with one core each: an OpenMP team that spans busy cores waits more than it works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._logprobs import ChosenLogprobs, plain_head
from .adapter import Adapter
from .grpo import Loss, token_loss

T = TypeVar("T")


@dataclass
class Group:
    """One prompt and its completions.

    Attributes:
        prompt: token ids.
        completions: token ids of each completion, the end token included.
        sampled: log-probabilities they were drawn with, float32, same lengths.
        advantage: float32 [completions].
        weight: of one token of each completion in the batch's loss, float32 [completions].
    """

    prompt: NDArray[np.int32]
    completions: list[NDArray[np.int32]]
    sampled: list[NDArray[np.float32]]
    advantage: NDArray[np.float32]
    weight: NDArray[np.float32]
    old: Tensor | None = field(default=None, repr=False)
    reference: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Gradient:
    """Of one batch.

    Attributes:
        loss: summed over the batch.
        grad: of the loss with respect to v, float32 [G, u].
        mismatch: mean |log p_learner - log p_sampler| over tokens.
    """

    loss: float
    grad: Tensor
    mismatch: float


class Learner:
    """Computes with a transformers model whose layers carry an adapter.

    Args:
        model: causal language model, in evaluation mode.
        adapter: attached to it.
        temperature: that completions are sampled at; log-probabilities are those of
            softmax(logits / temperature).
        workers: groups at the same time, a core each.
    """

    def __init__(self, model: Any, adapter: Adapter, *, temperature: float, workers: int = 1) -> None:
        self.model = model
        self.adapter = adapter
        self.temperature = temperature
        self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        # Not in this thread: what oneDNN computes in bfloat16 releases the AMX tiles that llama.cpp has
        # configured, once for each thread that it computes in, and its next use of them is illegal.
        self._head = self._pool.submit(plain_head, model).result()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def logprobs(self, prompt: NDArray[np.int32], completions: Sequence[NDArray[np.int32]]) -> Tensor:
        """Return the log-probability of every token: float32 [completions, longest]; padding gives 0."""
        # At a low temperature some samples of a prompt are the same: each is computed once.
        different = {c.tobytes(): c for c in completions}
        tokens, mask = _pad(list(different.values()))
        scores = self._logprobs(torch.from_numpy(prompt.astype(np.int64))[None], tokens, mask)
        if len(different) == len(completions):
            return scores
        place = {key: row for row, key in enumerate(different)}
        return scores[[place[c.tobytes()] for c in completions]]

    def _logprobs(self, prompt: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        from transformers import DynamicCache

        cache, (rows, longest) = DynamicCache(), tokens.shape
        run = self.model if self._head is None else self.model.base_model
        options: dict[str, Any] = {"cache": cache, "use_cache": True}
        # logits [.., vocabulary], or hidden states [.., hidden] where those are enough
        last_alone: dict[str, Any] = {"logits_to_keep": 1} if self._head is None else {}
        first = run(prompt, **options, **last_alone)[0][:, -1:]
        outputs = first.expand(rows, -1, -1)
        if longest > 1:
            cache.batch_repeat_interleave(rows)
            outputs = torch.cat([outputs, run(tokens[:, :-1], **options)[0]], dim=1)
        real = mask.bool()
        if self._head is not None:
            head, temperature = self._head, self.temperature
            chosen: Tensor = ChosenLogprobs.apply(outputs[real], head, tokens[real], temperature)
        else:
            wide = torch.promote_types(outputs.dtype, torch.float32)
            scores = torch.log_softmax(outputs[real].to(wide) / self.temperature, -1)
            chosen = scores.gather(-1, tokens[real][:, None])[:, 0]
        return chosen.new_zeros(tokens.shape).masked_scatter(real, chosen)

    def measure(self, groups: Sequence[Group]) -> list[Tensor]:
        """Return the log-probabilities of each group under the present v, without a gradient."""

        def run(group: Group) -> Tensor:
            with torch.no_grad():
                return self.logprobs(group.prompt, group.completions)

        return self._map(run, groups)

    def gradient(self, groups: Sequence[Group], loss: Loss) -> Gradient:
        """Return loss and gradient of a batch. The first call for a group fixes its old policy."""

        def run(group: Group) -> tuple[float, Tensor, float, int]:
            logprobs = self.logprobs(group.prompt, group.completions)
            sampled, mask = _pad(group.sampled)
            if group.old is None:
                group.old = logprobs.detach()
            terms = token_loss(
                logprobs,
                sampled=sampled,
                old=group.old,
                reference=group.reference,
                advantage=torch.from_numpy(group.advantage)[:, None],
                loss=loss,
            )
            total = (terms * mask * torch.from_numpy(group.weight)[:, None]).sum()
            (grad,) = torch.autograd.grad(total, [self.adapter.v])
            gap = ((group.old - sampled).abs() * mask).sum().item()
            return total.item(), grad, gap, int(mask.sum())

        parts = self._map(run, groups)
        grad = torch.stack([part[1] for part in parts]).sum(0)
        count = sum(part[3] for part in parts)
        return Gradient(sum(p[0] for p in parts), grad, sum(p[2] for p in parts) / max(count, 1))

    def _map(self, function: Callable[[Group], T], groups: Sequence[Group]) -> list[T]:
        return list(self._pool.map(function, groups))


def _pad(rows: Sequence[NDArray[Any]]) -> tuple[Tensor, Tensor]:
    """Return rows padded with zeros at the right, and a float mask of what is real: [rows, longest]."""
    longest = max(len(row) for row in rows)
    floats = rows[0].dtype.kind == "f"
    padded = np.zeros((len(rows), longest), np.float32 if floats else np.int64)
    mask = np.zeros((len(rows), longest), np.float32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return torch.from_numpy(padded), torch.from_numpy(mask)
