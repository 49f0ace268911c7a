"""The learner: log-probabilities of completions in torch, and what their loss says about v.

All groups of a pass are one row, of which each token attends to its own prompt and completion alone: nothing
is padded, a prompt is computed once for all its completions, and so is what all prompts begin with, such as
the chat template's own words or a prompt to train behind. Groups are computed some at a time, since a matrix
product of few rows costs little less than one of many, on a pool of threads with one core each: an OpenMP
team that spans busy cores waits more than it works.

Log-probabilities of chosen tokens come straight from hidden states, and no logits are kept. For logits
z = h W^T / temperature, the gradient of log softmax(z)[t] with respect to h is (W[t] - softmax(z) W) /
temperature: a vector as wide as h, which is worked out in the forward pass, some rows at a time, and is all
that is kept. A token then costs `hidden` numbers of memory, not `vocabulary`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..runtime.batch import common_prefix
from .adapter import Adapter
from .grpo import token_loss
from .model import give_back

S = TypeVar("S")
T = TypeVar("T")

_TOKENS = 768
"""Of all passes at the same time: each keeps about a megabyte (SmolLM2) until its gradient is done."""

_CHUNK = 1 << 24
"""Logits at the same time: 64 MiB in float32."""


@dataclass
class Group:
    """One prompt and its completions, as token ids; a completion's end token is one of them.

    Attributes:
        advantage: float32 [completions].
        sampled: log-probabilities they were drawn with, float32, same lengths; None where they are given.
        reference: what the base's next tokens follow from, [tokens, hidden]: `Learner.refer` gives it.
    """

    prompt: NDArray[np.int32]
    completions: Sequence[NDArray[np.int32]]
    advantage: NDArray[np.float32]
    sampled: Sequence[NDArray[np.float32]] | None = None
    reference: Tensor | None = None

    @property
    def size(self) -> int:
        """Tokens to compute, if no other group has some of them."""
        return len(self.prompt) + sum(map(len, self.completions))


@dataclass(frozen=True)
class Gradient:
    """The mean loss over the tokens of a batch, and its gradient by v, float32 [n]."""

    loss: float
    grad: Tensor
    mismatch: float  # mean |log p_learner - log p_sampler| of a token; 0 where none was sampled


class Learner:
    """The gradient of v, computed with a transformers model (in evaluation mode) that carries an adapter.

    Log-probabilities are those of softmax(logits / temperature), at which completions are sampled. `workers`
    passes run at the same time, a core each.
    """

    def __init__(self, model: Any, adapter: Adapter, *, temperature: float, workers: int = 1) -> None:
        self.model = model
        self.adapter = adapter
        self.temperature = temperature
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        # Not in this thread: what oneDNN computes in bfloat16 releases the AMX tiles that llama.cpp has
        # configured, once for each thread that it computes in, and its next use of them is illegal.
        self.head = self._pool.submit(plain_head, model).result()

    @property
    def compact(self) -> bool:
        """Whether hidden states decide tokens, and not logits, which are too many to be kept."""
        return self.head is not None

    def close(self) -> None:
        """End the threads, and what they compute: nothing runs with the adapter afterwards."""
        self.adapter.until = -math.inf
        self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """Yield what a function makes of each item, in order; `workers` of them run at the same time."""
        return self._pool.map(function, items)

    def logprobs(self, groups: Sequence[Group]) -> list[Tensor]:
        """Return the log-probabilities of all tokens of each group's completions: float32 [tokens]."""
        # At a low temperature some samples of a prompt are the same: each is computed once.
        alone = [{each.tobytes(): each for each in group.completions} for group in groups]
        rows = [completion for known in alone for completion in known.values()]
        outputs = self.outputs([group.prompt for group in groups], [[*known.values()] for known in alone])
        tokens = torch.from_numpy(np.concatenate(rows).astype(np.int64))
        chosen = chosen_logprobs(outputs, self.head, tokens, self.temperature)
        scores, found = iter(chosen.split([len(row) for row in rows])), []
        for group, known in zip(groups, alone, strict=True):
            own = dict(zip(known, scores, strict=False))
            found.append(torch.cat([own[each.tobytes()] for each in group.completions]))
        return found

    def _deciding(self, groups: Sequence[Group]) -> Tensor:
        """Return what decides each token of the completions, group after group."""
        return self.outputs([group.prompt for group in groups], [group.completions for group in groups])

    def outputs(
        self,
        prompts: Sequence[NDArray[np.int32]],
        completions: Sequence[Sequence[NDArray[np.int32]]],
        r: Tensor | None = None,
    ) -> Tensor:
        """Return what decides each token of the completions of each prompt, in their order.

        That are hidden states, [tokens, hidden], or logits where those do not do. Everything is one row in
        one pass, and nothing is padded: a token attends to what all prompts begin with, to its own prompt,
        and to its own completion. `r`, float32 [M, prompts, k, k], are the R of each prompt instead of v's.
        """
        shared = common_prefix(prompts) if r is None else 0
        ids, places, deciding = prompts[0][:shared].tolist(), [*range(shared)], list[int]()
        owners = [(0, 0)] * shared  # prompt and completion, from 1; 0: of all
        for number, (prompt, own) in enumerate(zip(prompts, completions, strict=True), 1):
            ids += prompt[shared:].tolist()
            places += range(shared, len(prompt))
            owners += [(number, 0)] * (len(prompt) - shared)
            last = len(ids) - 1
            for branch, completion in enumerate(own, 1):
                deciding += [last, *range(len(ids), len(ids) + len(completion) - 1)]
                ids += completion[:-1].tolist()
                places += range(len(prompt), len(prompt) + len(completion) - 1)
                owners += [(number, branch)] * (len(completion) - 1)
        device = self.model.get_input_embeddings().weight.device
        row, of, at = (torch.tensor(each, device=device) for each in (ids, owners, places))
        seen = ((of[:, None] == of) | (of == 0)).all(-1).tril()
        run = self.model if self.head is None else self.model.base_model
        mask = attention_masks(run.config.get_text_config(), seen, at, self.model.dtype)
        with self.adapter.giving(None if r is None else r[:, of[:, 0] - 1]):
            outputs: Tensor = run(row[None], attention_mask=mask, position_ids=at[None], use_cache=False)[0]
        return outputs[0, deciding]

    def measure(self, groups: Sequence[Group]) -> list[Tensor]:
        """Return the log-probabilities of each group under the present v, without a gradient."""
        return self._each(self.logprobs, groups)

    def refer(self, groups: Sequence[Group]) -> None:
        """Make the policy of v = 0 what `pull` pulls these groups to; v is 0 then."""

        def run(chosen: Sequence[Group]) -> Sequence[Tensor]:
            deciding: Sequence[Tensor] = self._deciding(chosen).split(
                [tokens_of([group]) for group in chosen]
            )
            return deciding

        self.adapter.set(np.zeros(self.adapter.v.shape, np.float32))
        for group, reference in zip(groups, self._each(run, groups), strict=True):
            group.reference = reference

    def gradient(self, groups: Sequence[Group]) -> Gradient:
        """Return GRPO's loss of a batch (`grpo.token_loss`) and its gradient."""

        def loss(chosen: Sequence[Group]) -> tuple[Tensor, float]:
            logprobs = torch.cat(self.logprobs(chosen))
            advantages = [np.repeat(each.advantage, [*map(len, each.completions)]) for each in chosen]
            advantage, drawn = np.concatenate(advantages), [each.sampled for each in chosen if each.sampled]
            if not drawn:
                return token_loss(logprobs, torch.from_numpy(advantage), None).sum(), 0.0
            sampled = torch.from_numpy(np.concatenate([*chain.from_iterable(drawn)]))
            gap = (logprobs.detach() - sampled).abs().sum().item()
            return token_loss(logprobs, torch.from_numpy(advantage), sampled).sum(), gap

        return self._gradient(groups, loss)

    def pull(self, groups: Sequence[Group]) -> Gradient:
        """Return KL(base || v) of the next token, the mean over those of the completions, and its gradient.

        It is exact, of the whole vocabulary at temperature 1, for groups that `refer` was given.
        """

        def loss(chosen: Sequence[Group]) -> tuple[Tensor, float]:
            base = torch.cat([group.reference for group in chosen if group.reference is not None])
            return divergences(self._deciding(chosen), base, self.head).sum(), 0.0

        return self._gradient(groups, loss)

    def _gradient(
        self, groups: Sequence[Group], loss: Callable[[Sequence[Group]], tuple[Tensor, float]]
    ) -> Gradient:
        """Return the means over all tokens of a loss and a gap, which it gives as sums over some groups."""
        count = tokens_of(groups)

        def run(chosen: Sequence[Group]) -> tuple[Tensor, Tensor, float]:
            total, gap = loss(chosen)
            total = total / count
            (gradient,) = torch.autograd.grad(total, [self.adapter.v])
            return total.detach(), gradient, gap / count

        parts = self._map(run, groups)
        give_back()
        losses, gradients, gaps = zip(*parts, strict=True)
        return Gradient(float(sum(losses)), torch.stack(gradients).sum(0), sum(gaps))

    def _each(self, function: Callable[[Sequence[Group]], Sequence[T]], groups: Sequence[Group]) -> list[T]:
        """Return what a function gives for each group, in their order, without a gradient."""

        def run(chosen: Sequence[Group]) -> Sequence[T]:
            with torch.no_grad():
                return function(chosen)

        order = [number for numbers in self._passes(groups) for number in numbers]
        found = dict(zip(order, chain.from_iterable(self._map(run, groups)), strict=True))
        return [found[number] for number in range(len(groups))]

    def _passes(self, groups: Sequence[Group]) -> list[list[int]]:
        """Which groups to compute together: of similar length, few enough for memory, as many a worker."""
        order = sorted(range(len(groups)), key=lambda i: (len(groups[i].prompt), i))
        count = min(max(1, -(-work_of(groups) // _TOKENS)) * self.workers, len(groups))
        return [order[len(order) * i // count : len(order) * (i + 1) // count] for i in range(count)]

    def _map(self, function: Callable[[Sequence[Group]], T], groups: Sequence[Group]) -> list[T]:
        passes = ([groups[i] for i in numbers] for numbers in self._passes(groups))
        return list(self._pool.map(function, passes))


class ChosenLogprobs(torch.autograd.Function):
    """The log-probability log softmax(h W^T / temperature) of one token a row, differentiable in h.

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


class ForwardKL(torch.autograd.Function):
    """KL(softmax(t W^T) || softmax(h W^T)) of every row, differentiable in h, without keeping logits.

    Shapes: h and t [rows, hidden], W [vocabulary, hidden] -> [rows], float32, in nats. The gradient by h,
    (softmax(h W^T) - softmax(t W^T)) W, is worked out in the forward pass, as in `ChosenLogprobs`.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
        """Return the divergences."""
        result = torch.empty(len(h), dtype=torch.float32, device=h.device)
        slope = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        step = max(1, _CHUNK // (2 * len(weight)))  # of both
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


def attention_masks(config: Any, seen: Tensor, places: Tensor, dtype: torch.dtype) -> Any:
    """Return what a transformers model takes as `attention_mask` for a row in which tokens see some others.

    `seen`, bool [tokens, tokens], says which; `places`, [tokens], are their positions, which windows of
    attention go by.
    """

    def added(allowed: Tensor) -> Tensor:
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        mask = mask.masked_fill(~allowed, torch.finfo(dtype).min)
        return mask[None, None]

    window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or ())
    if not window or kinds == {"full_attention"}:
        return added(seen)
    near = added(seen & (places[:, None] - places < window))
    return {"full_attention": added(seen), "sliding_attention": near} if kinds else near


def plain_head(model: Any) -> Tensor | None:
    """Return the output layer's weight [vocabulary, hidden] if the model's logits are h W^T and no more.

    Some architectures scale or cap their logits, or add a bias: for them it is None. Found by comparison.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None or model.base_model is model:
        return None
    tokens = torch.zeros((1, 2), dtype=torch.int64, device=head.weight.device)
    with torch.no_grad():
        hidden = model.base_model(tokens, use_cache=False)[0]
        same = torch.equal(hidden @ head.weight.T, model(tokens, use_cache=False).logits)
    return head.weight if same else None


def chosen_logprobs(outputs: Tensor, head: Tensor | None, tokens: Tensor, temperature: float) -> Tensor:
    """Return the log-probability of one token a row: of hidden states, or without a head of logits."""
    if head is not None:
        found: Tensor = ChosenLogprobs.apply(outputs, head, tokens, temperature)
        return found
    wide = torch.promote_types(outputs.dtype, torch.float32)
    return torch.log_softmax(outputs.to(wide) / temperature, -1).gather(-1, tokens[:, None])[:, 0]


def divergences(outputs: Tensor, base: Tensor, head: Tensor | None) -> Tensor:
    """Return KL(base || present) of the next token, one a row: of hidden states, or of logits (no head)."""
    if head is not None:
        found: Tensor = ForwardKL.apply(outputs, base, head)
        return found
    target, own = (torch.log_softmax(logits.float(), -1) for logits in (base, outputs))
    return (target.exp() * (target - own)).sum(-1)


def work_of(groups: Sequence[Group]) -> int:
    """Return the tokens that are computed for some groups: what all their prompts begin with counts once."""
    shared = common_prefix([group.prompt for group in groups])
    return shared + sum(group.size - shared for group in groups)


def tokens_of(groups: Sequence[Group]) -> int:
    """Return how many tokens the completions have."""
    return sum(len(completion) for group in groups for completion in group.completions)
