"""The learner: log-probabilities of completions in torch, and what their loss says about v.

All groups of a pass are one row, in which each token attends to its own prompt and completion alone
(`by_blocks`). So nothing is padded, a prompt is computed once for all its completions, and a beginning that
all prompts share, such as the chat template's or a preamble, is computed once. Several groups share a pass,
since a matrix product of few rows costs little less than one of many. Passes run on a pool of threads with
one core each: an OpenMP team that spans busy cores waits more than it works.

Losses and their gradients are computed straight from hidden states, some rows at a time (`OfLogits`). A token
then costs `hidden` numbers of memory, not `vocabulary`.

The arithmetic of GRPO: Shao et al., "DeepSeekMath", arXiv 2402.03300; Yu et al., "DAPO" (the mean over all
tokens of a batch), arXiv 2503.14476; Yao et al., "Your efficient RL framework secretly brings you off-policy
RL training" (truncated importance sampling between sampler and learner), 2025. A batch is used for one step,
so that there is no ratio to clip; other losses, and a KL term, are TRL's (`trl`).
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
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..basis import Basis
from ..projection import Whitening
from ..runtime.schema import Grammar
from ..vector import MicroVector
from ..wire.values import BITS, Entries, gathered, quantize_columns, rows_of, scaled, spread
from .adapter import Adapter

S = TypeVar("S")
T = TypeVar("T")

_TOKENS, _OUTPUTS = 768, 1 << 27
"""Most tokens in all passes that run at the same time, and most outputs of linear layers for these tokens.

A token keeps its outputs in memory, and twice as many other numbers, until its gradient is done: 1 MB for
SmolLM2, and 3 MB for a model of 1.5B in bfloat16.
"""

_CHUNK = 1 << 24
"""Most logits in memory at once: 64 MiB in float32, and a few times that inside a loss."""

_CACHED = 8
"""Rows of logits that a loss handles at once on a CPU: a core's cache has room for them."""

_SHORT, _TEXTS = 128, 16
"""Most tokens of a text whose attention is computed in a batch of texts, and most texts of such a batch."""

_BLOCK = 256
"""Most tokens of neighbouring blocks that share a call of attention though they do not see each other."""

IMPORTANCE_CAP = 2.0
"""Largest weight exp(log p_learner - log p_sampler) of a token."""


@dataclass
class Group:
    """One prompt and its completions, as token ids; a completion's end token is one of them.

    Attributes:
        advantage: float32 [completions].
        sampled: log-probabilities that the completions were drawn with, float32, same lengths; None where
            they were not drawn.
        grammar: what the completions keep to, at its start. All log-probabilities are under the distribution
            over the tokens that it allows. None: all tokens.
    """

    prompt: NDArray[np.int32]
    completions: Sequence[NDArray[np.int32]]
    advantage: NDArray[np.float32]
    sampled: Sequence[NDArray[np.float32]] | None = None
    grammar: Grammar | None = None


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
        # Not in this thread, in which llama.cpp may compute too. It configures AMX tiles once for each
        # thread; oneDNN releases them after a product in bfloat16, and llama.cpp's next use of them is
        # illegal.
        self.head = self._pool.submit(plain_head, model).result()
        layers = (each for each in model.modules() if isinstance(each, nn.Linear))
        outputs = sum(each.out_features for each in layers if each.weight is not self.head)
        self._tokens = max(1, min(_TOKENS, _OUTPUTS // max(1, outputs)))
        if model.config._attn_implementation == "sdpa":  # else its attention is its own, and goes by the mask
            model.set_attn_implementation(BY_BLOCKS)

    def close(self) -> None:
        """End the threads and their work; another learner may then use the adapter."""
        before, self.adapter.until = self.adapter.until, -math.inf
        self._pool.shutdown(cancel_futures=True)
        self.adapter.until = before

    def map(self, function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """Yield a function's result for each item, in order; `workers` of them are computed at once."""
        return self._pool.map(function, items)

    def logprobs(self, groups: Sequence[Group]) -> list[Tensor]:
        """Return the log-probabilities of all tokens of each group's completions: float32 [tokens]."""
        # At a low temperature some samples of a prompt are equal: equal ones are computed once.
        alone = [{each.tobytes(): each for each in group.completions} for group in groups]
        rows = [completion for known in alone for completion in known.values()]
        outputs = self.outputs([group.prompt for group in groups], [[*known.values()] for known in alone])
        tokens = torch.from_numpy(np.concatenate(rows).astype(np.int64))
        allowed = [
            each
            for group, known in zip(groups, alone, strict=True)
            for row in known.values()
            for each in (group.grammar.along(row.tolist()) if group.grammar else [None] * len(row))
        ]
        chosen = chosen_logprobs(outputs, self.head, tokens, self.temperature, allowed)
        scores, found = iter(chosen.split([len(row) for row in rows])), []
        for group, known in zip(groups, alone, strict=True):
            own = dict(zip(known, scores, strict=False))
            found.append(torch.cat([own[each.tobytes()] for each in group.completions]))
        return found

    def outputs(
        self,
        prompts: Sequence[NDArray[np.int32]],
        completions: Sequence[Sequence[NDArray[np.int32]]],
        r: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden state before each token of the completions, in order: [tokens, hidden].

        Where the model has no plain head (`plain_head`), they are logits. Everything is one row in one pass,
        and nothing is padded: a token attends to what all prompts begin with, to its own prompt, and to its
        own completion. `r` is used instead of v's R: float32 [M, p, q], or [M, prompts, p, q] with one for
        each prompt.
        """
        own_r = r is not None and r.dim() == 4
        shared = 0 if own_r else common_prefix(prompts)
        ids, places, deciding = prompts[0][:shared].tolist(), [*range(shared)], list[int]()
        owners = [(0, 0)] * shared  # see `attention_masks`
        for number, (prompt, own) in enumerate(zip(prompts, completions, strict=True), 1):
            ids += prompt[shared:].tolist()
            places += range(shared, len(prompt))
            # A prompt with one completion belongs to it: both are then one block.
            owners += [(number, int(len(own) == 1))] * (len(prompt) - shared)
            last = len(ids) - 1
            for branch, completion in enumerate(own, 1):
                deciding += [last, *range(len(ids), len(ids) + len(completion) - 1)]
                ids += completion[:-1].tolist()
                places += range(len(prompt), len(prompt) + len(completion) - 1)
                owners += [(number, branch)] * (len(completion) - 1)
        device = self.model.get_input_embeddings().weight.device
        row, of, at = (torch.tensor(each, device=device) for each in (ids, owners, places))
        run = self.model if self.head is None else self.model.base_model
        mask = attention_masks(run.config.get_text_config(), of, at, self.model.dtype)
        with self.adapter.using(r[:, of[:, 0] - 1] if r is not None and own_r else r):
            outputs: Tensor = run(row[None], attention_mask=mask, position_ids=at[None], use_cache=False)[0]
        return outputs[0, deciding]

    def measure(
        self, groups: Sequence[Group], measured: Callable[[int], None] = lambda count: None
    ) -> list[Tensor]:
        """Return the log-probabilities of each group under the current v, without a gradient.

        `measured` is called as groups are done, with their number.
        """

        def run(chosen: Sequence[Group]) -> list[Tensor]:
            with torch.no_grad():
                return self.logprobs(chosen)

        found: dict[int, Tensor] = {}
        for numbers, logprobs in zip(self._passes(groups), self._map(run, groups), strict=True):
            found |= zip(numbers, logprobs, strict=True)
            measured(len(numbers))
        return [found[number] for number in range(len(groups))]

    def gradient(self, groups: Sequence[Group]) -> Gradient:
        """Return GRPO's loss of a batch (`token_loss`) and its gradient."""

        def loss(chosen: Sequence[Group]) -> tuple[Tensor, float]:
            logprobs = torch.cat(self.logprobs(chosen))
            advantages = [np.repeat(each.advantage, [*map(len, each.completions)]) for each in chosen]
            advantage, drawn = np.concatenate(advantages), [each.sampled for each in chosen if each.sampled]
            sampled = torch.from_numpy(np.concatenate([*chain.from_iterable(drawn)])) if drawn else None
            gap = 0.0 if sampled is None else (logprobs.detach() - sampled).abs().sum().item()
            return token_loss(logprobs, torch.from_numpy(advantage), sampled).sum(), gap

        return self._gradient(groups, loss)

    def moments(self, groups: Sequence[Group]) -> list[list[NDArray[np.float64]]]:
        """Return the second moments of each module (`observing`) for the log-likelihood of completions."""

        def run(chosen: Sequence[Group]) -> list[list[NDArray[np.float64]]]:
            with self.adapter.observing() as found:
                torch.autograd.grad(torch.cat(self.logprobs(chosen)).sum(), [self.adapter.v])
            return found

        passes = zip(*self._map(run, groups), strict=True)
        return [[sum(parts[1:], parts[0]) for parts in zip(*module, strict=True)] for module in passes]

    def pull(self, groups: Sequence[Group]) -> Gradient:
        """Return KL(base || v) of the next token, its mean over the completions' tokens, and its gradient.

        It is exact: over the whole vocabulary, at temperature 1. A vector beneath v is part of the base.
        """

        base = self.adapter.beneath.to(self.adapter.v)
        return self._gradient(groups, lambda chosen: (self._apart(chosen, base), 0.0))

    def apart(self, groups: Sequence[Group], r: Tensor) -> float:
        """Return KL(r || v) of the next token, its mean over the completions' tokens: as `pull`, from any R.

        `r` is float32 [M, p, q], as `Adapter.R` returns it.
        """

        def run(chosen: Sequence[Group]) -> float:
            with torch.no_grad():
                return float(self._apart(chosen, r))

        return sum(self._map(run, groups)) / tokens_of(groups)

    def _apart(self, groups: Sequence[Group], r: Tensor) -> Tensor:
        rows = [group.prompt for group in groups], [group.completions for group in groups]
        with torch.no_grad():
            base = self.outputs(*rows, r)
        return divergences(self.outputs(*rows), base, self.head).sum()

    def _gradient(
        self, groups: Sequence[Group], loss: Callable[[Sequence[Group]], tuple[Tensor, float]]
    ) -> Gradient:
        """Return the means over all tokens of a loss and a mismatch, of which `loss` returns groups' sums."""
        count = tokens_of(groups)

        def run(chosen: Sequence[Group]) -> tuple[Tensor, Tensor, float]:
            total, gap = loss(chosen)
            total = total / count
            (gradient,) = torch.autograd.grad(total, [self.adapter.v])
            return total.detach(), gradient, gap / count

        parts = self._map(run, groups)
        losses, gradients, gaps = zip(*parts, strict=True)
        return Gradient(float(sum(losses)), torch.stack(gradients).sum(0), sum(gaps))

    def _passes(self, groups: Sequence[Group]) -> list[list[int]]:
        """Return the numbers of the groups of each pass: similar in length, with room in memory, and about
        as much work in every pass."""
        work = [len(group.prompt) + sum(map(len, group.completions)) for group in groups]
        order = sorted(range(len(groups)), key=lambda i: (work[i], i))
        count = min(max(1, -(-work_of(groups) // self._tokens)) * self.workers, len(groups))
        parts: list[list[int]] = [[] for _ in range(count)]
        done = 0
        for i in order:
            parts[count * (2 * done + work[i]) // (2 * sum(work))].append(i)
            done += work[i]
        return [part for part in parts if part]

    def _map(self, function: Callable[[Sequence[Group]], T], groups: Sequence[Group]) -> Iterator[T]:
        """Yield the result of each pass, in the order of `_passes`, as it is there."""
        return self._pool.map(function, ([groups[i] for i in numbers] for numbers in self._passes(groups)))


LogitLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""(logits [rows, vocabulary], which of all rows these are) -> a loss for each row, float32 or wider, and the
gradient of the losses by the logits.

The logits have the model's dtype; the function may write over them.
"""


class OfLogits(torch.autograd.Function):
    """A loss of the logits of every row, differentiable in h, that keeps no logits: [rows], float32 or wider.

    The logits are h W^T, for hidden states h [rows, hidden] and the output layer's W [vocabulary, hidden]; or
    h itself where there is no W. The forward pass computes the gradient of h, and keeps nothing else.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor | None, loss: LogitLoss) -> Tensor:
        """Return the losses."""
        result = torch.empty(len(h), dtype=_wide(h), device=h.device)
        slope = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        step = max(1, _CHUNK // (h.shape[1] if weight is None else len(weight)))
        for start in range(0, len(h), step):
            rows = slice(start, start + step)
            logits = h[rows].clone() if weight is None else h[rows] @ weight.T
            result[rows], by_logits = loss(logits, rows)
            if slope is not None:
                by_logits = by_logits.to(h.dtype)
                slope[rows] = by_logits if weight is None else by_logits @ weight
        ctx.save_for_backward(slope)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of h."""
        (slope,) = ctx.saved_tensors
        return (grads[0][:, None] * slope).to(slope.dtype), None, None


def _wide(h: Tensor) -> torch.dtype:
    return torch.promote_types(h.dtype, torch.float32)


def _logits(h: Tensor, weight: Tensor | None) -> Tensor:
    return (h if weight is None else h @ weight.T).to(_wide(h))


def chosen_logprobs(
    outputs: Tensor,
    head: Tensor | None,
    tokens: Tensor,
    temperature: float,
    allowed: Sequence[NDArray[np.uint8] | None] = (),
) -> Tensor:
    """Return log softmax(logits / temperature) of one token a row: of hidden states, or of logits (no head).

    `tokens` are int64 [rows]; `allowed` has for each row a bit for each token of the vocabulary
    (`Grammar.along`), or None where all are allowed. The gradient by the logits is
    (one-hot - softmax) / temperature.
    """

    def loss(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        for row, bits in zip(logits, allowed[rows], strict=False):
            if bits is not None:
                fine = np.unpackbits(bits, count=len(row), bitorder="little").astype(np.bool_)
                row.masked_fill_(~torch.from_numpy(fine).to(row.device), -math.inf)
        found = []
        cached = _CACHED if logits.device.type == "cpu" else len(logits)
        for some, chosen in zip(logits.split(cached), tokens[rows, None].split(cached), strict=True):
            z = some.to(_wide(some))
            z.div_(temperature)
            z -= z.amax(-1, keepdim=True)
            at_chosen = z.gather(-1, chosen)
            total = z.exp_().sum(-1, keepdim=True)
            found.append((at_chosen - total.log())[:, 0])
            z.mul_(total.mul_(-temperature).reciprocal_())
            some.copy_(z.scatter_add_(-1, chosen, torch.full_like(total, 1 / temperature)))
        return torch.cat(found), logits

    result: Tensor = OfLogits.apply(outputs, head, loss)
    return result


def divergences(outputs: Tensor, base: Tensor, head: Tensor | None) -> Tensor:
    """Return KL(base || present) of the next token, one a row: of hidden states, or of logits (no head).

    The gradient by the present logits is softmax(present) - softmax(base).
    """

    def loss(z: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        target, own = (torch.log_softmax(each, -1) for each in (_logits(base[rows], head), z.to(_wide(z))))
        chances = target.exp()
        return (chances * target.sub_(own)).sum(-1), own.exp_().sub_(chances)

    result: Tensor = OfLogits.apply(outputs, head, loss)
    return result


def advantages(rewards: ArrayLike) -> NDArray[np.float32]:
    """Return rewards [samples] minus their mean, by their standard deviation: float32 [samples].

    All are zero where the rewards are all equal, i.e. where there is no signal.
    """
    centred = np.asarray(rewards, np.float64)
    centred = centred - centred.mean()
    deviation = centred.std()
    return np.asarray(centred / deviation if deviation > 1e-9 else 0 * centred, np.float32)


def token_loss(logprobs: Tensor, advantage: Tensor, sampled: Tensor | None) -> Tensor:
    """Return the loss of every token; all arguments have its shape.

    With advantage 1 and without `sampled` it is cross-entropy. `sampled` are the log-probabilities that the
    tokens were drawn with: they give the importance weights.
    """
    if sampled is None:
        return -logprobs * advantage
    now = logprobs.detach()
    return -torch.exp(logprobs - now) * advantage * torch.exp(now - sampled).clamp(max=IMPORTANCE_CAP)


BY_BLOCKS, _BLOCKS, _ALONE = "tinylora_by_blocks", "tinylora_blocks", "tinylora_alone"
"""Names of `by_blocks` in transformers, and of the attributes of a mask that it reads."""


def attention_masks(config: Any, owners: Tensor, places: Tensor, dtype: torch.dtype) -> Any:
    """Return what a transformers model takes as `attention_mask` for a row of several prompts.

    `owners`, [tokens, 2], has the numbers of each token's prompt and completion, from 1. 0 stands for all: a
    prefix that all prompts share is (0, 0), and prompt 1 of several completions is (1, 0). A token sees the
    tokens before it that have its own numbers, or 0. `places`, [tokens], are positions in the texts, which
    windows of attention need.
    """
    window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or ())
    windows = window and kinds != {"full_attention"}
    found, counts = torch.unique_consecutive(owners, dim=0, return_counts=True)
    lengths = joined(counts.tolist())
    if config._attn_implementation == BY_BLOCKS and not windows and short_texts(found, counts):
        mask = torch.zeros((1, 1, 1, 1), dtype=dtype, device=owners.device)
        setattr(mask, _ALONE, batched(counts.tolist(), owners.device))
        return mask
    seen = ((owners[:, None] == owners) | (owners == 0)).all(-1).tril()
    blocks_seen = [torch.stack([b.any() for b in row.any(0).split(lengths)]) for row in seen.split(lengths)]
    chosen = [np.flatnonzero(row.cpu()).tolist() for row in blocks_seen]

    def added(allowed: Tensor) -> Tensor:
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        mask = mask.masked_fill(~allowed, torch.finfo(dtype).min)[None, None]
        blocks = []
        for own, others in zip(mask.split(lengths, 2), chosen, strict=True):
            columns = own.split(lengths, 3)
            blocks.append((others, torch.cat([columns[i] for i in others], 3)))
        setattr(mask, _BLOCKS, (lengths, blocks))
        return mask

    if not windows:
        return added(seen)
    near = added(seen & (places[:, None] - places < window))
    return {"full_attention": added(seen), "sliding_attention": near} if kinds else near


def short_texts(owners: Tensor, counts: Tensor) -> bool:
    """Whether each text of a row is a prompt with its one completion, and all are short."""
    prompts = owners[:, 0]
    return bool((prompts > 0).all()) and len(prompts.unique()) == len(prompts) and int(counts.max()) <= _SHORT


def joined(lengths: Sequence[int]) -> list[int]:
    """Return the lengths of blocks, with neighbours joined up to `_BLOCK` tokens: each block costs a call.

    For 40 texts of 17 tokens, calls of attention took a third of the time of a gradient (SmolLM2).
    """
    found: list[int] = []
    for length in lengths:
        if found and found[-1] + length <= _BLOCK:
            found[-1] += length
        else:
            found.append(length)
    return found


def by_blocks(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' `sdpa` attention, without the blocks of a row that `attention_masks` hides whole.

    For 8 completions of 240 tokens these are five sixths of all: a gradient that computed them took 1.6 times
    as long (SmolLM2). A mask that `attention_masks` did not make is used as it is.
    """
    attend: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward
    if hasattr(attention_mask, _ALONE):
        return by_texts(query, key, value, getattr(attention_mask, _ALONE), options["scaling"]), None
    if not hasattr(attention_mask, _BLOCKS):
        return attend(module, query, key, value, attention_mask, **options)
    lengths, blocks = getattr(attention_mask, _BLOCKS)
    queries, keys, values = (each.split(lengths, 2) for each in (query, key, value))
    found = []
    for own, (chosen, mask) in zip(queries, blocks, strict=True):
        k, v = (torch.cat([each[i] for i in chosen], 2) for each in (keys, values))
        found.append(attend(module, own, k, v, mask, **options)[0])
    return torch.cat(found, 1), None


def batched(lengths: Sequence[int], device: Any) -> list[tuple[int, tuple[int, int], Tensor, Tensor, Tensor]]:
    """Return the texts of a row in batches, each padded to [texts, longest] for `by_texts`.

    A batch is the number of its tokens, its padded shape, the token at each place (any token behind a text's
    end), the place of each token, and the causal mask that is added to scores.
    """
    found = []
    for start in range(0, len(lengths), _TEXTS):
        own = lengths[start : start + _TEXTS]
        count, places = torch.tensor(own, device=device)[:, None], torch.arange(max(own), device=device)
        index = (count.cumsum(0) - count + places).clamp(max=sum(own) - 1).flatten()
        back = torch.nonzero((places < count).flatten())[:, 0]
        hidden = torch.full((max(own), max(own)), -math.inf, device=device).triu(1)
        found.append((sum(own), (len(own), max(own)), index, back, hidden))
    return found


def by_texts(query: Tensor, key: Tensor, value: Tensor, texts: Any, scaling: float) -> Tensor:
    """Causal attention of a row's short texts, each by itself (`batched`): [1, tokens, heads, d].

    torch's own kernel computes one head after another: for 20 texts of 30 tokens it takes more than twice as
    long.
    """
    groups, found, sizes = key.shape[1], [], [each[0] for each in texts]
    rows = zip(*(x[0].transpose(0, 1).split(sizes) for x in (query, key, value)), strict=True)
    for (_, shape, index, back, hidden), own in zip(texts, rows, strict=True):
        q, k, v = (x.index_select(0, index).unflatten(0, shape).transpose(1, 2) for x in own)
        scores = q.reshape(len(q), groups, -1, q.shape[-1]) @ k.mT
        scores = scores.to(_wide(scores)).mul_(scaling).unflatten(2, (-1, len(hidden))).add_(hidden)
        chances = scores.softmax(-1).to(v.dtype).flatten(2, 3)
        seen = (chances @ v).unflatten(2, (-1, len(hidden))).permute(0, 3, 1, 2, 4)
        found.append(seen.flatten(2, 3).flatten(0, 1).index_select(0, back))
    return torch.cat(found)[None]


AttentionInterface.register(BY_BLOCKS, by_blocks)
AttentionMaskInterface.register(BY_BLOCKS, sdpa_mask)


def plain_head(model: Any) -> Tensor | None:
    """Return the output layer's weight [vocabulary, hidden] if the model's logits are h W^T and no more.

    Some architectures scale or cap their logits, or add a bias: for them it is None. A comparison of both
    results decides.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None or model.base_model is model:
        return None
    tokens = torch.zeros((1, 2), dtype=torch.int64, device=head.weight.device)
    with torch.no_grad():
        hidden = model.base_model(tokens, use_cache=False)[0]
        same = torch.equal(hidden @ head.weight.T, model(tokens, use_cache=False).logits)
    return head.weight if same else None


def tokens_of(groups: Sequence[Group]) -> int:
    """Return the tokens of all completions."""
    return sum(len(completion) for group in groups for completion in group.completions)


def work_of(groups: Sequence[Group]) -> int:
    """Return how many tokens a pass over groups computes: a prefix that all prompts share counts once."""
    shared = common_prefix([group.prompt for group in groups])
    lengths = (map(len, (group.prompt, *group.completions)) for group in groups)
    return shared + sum(sum(each) - shared for each in lengths)


# Whitened coordinates. Adam's steps are equally long in every coordinate, but R's columns read directions of
# x that differ a hundredfold in strength, and its rows write directions that matter as unequally. So steps
# are taken in R', where R = D^-1/2 R' C^-1/2. C is the second moment of A x and D that of B' d, for inputs x
# of a module and gradients d at its output: K-FAC's factors, on the span of the baked directions (Martens and
# Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", arXiv 1503.05671). What
# is learned and written is R.

DAMPING = 0.01
"""Share of the mean eigenvalue that is added to each eigenvalue: directions that few prompts use may matter
later."""

FEWEST = 3
"""Fewest inputs of R for which it is whitened: with 1 or 2, whitening raised the loss from 1.14 to 1.17."""


class ModuleWhitening:
    """R = left R' right in every module, for v that is R: `left` is float64 [M, p, p], `right` [M, q, q].

    `entries` is the basis's. For rows that a module does not have, `left` is the identity.
    """

    def __init__(self, left: NDArray[np.float64], right: NDArray[np.float64], entries: Entries) -> None:
        self.left, self.right, self.entries = left, right, entries

    def values(self, z: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return v of coordinates, or of differences of them: [n]."""
        return gathered(self.left @ spread(z, self.entries) @ self.right, self.entries)

    gradient = values
    """The gradient by the coordinates of one by v, [n]: both sides are symmetric."""

    def direction(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the direction of a step along z [n]: each module's R' with its singular values set to 1.

        So what all texts of a user agree on counts as much as what few of them say (Bernstein and Newhouse,
        "Old Optimizer, New Norm", arXiv 2409.20325).
        """
        u, s, vt = np.linalg.svd(spread(z, self.entries), full_matrices=False)
        return gathered((u * (s > 1e-6 * s[:, :1])[:, None]) @ vt, self.entries)

    def rounded(self, v: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
        """Return v [n] rounded to `q2` or `q4`, so that what R does to the prompts changes least.

        Columns are rounded one after another, the strongest first. Those that follow make up for each error,
        as far as their inputs correlate (Frantar et al., "GPTQ", arXiv 2210.17323). Rows are weighted by the
        second moment of their outputs' gradients.
        """
        r = spread(v, self.entries).astype(np.float64)
        c, d = (np.linalg.inv(root @ root) for root in (self.right, self.left))
        weights = (d.diagonal(axis1=1, axis2=2) * rows_of(self.entries))[..., None]
        order, modules = np.argsort(c.diagonal(axis1=1, axis2=2), 1), np.arange(len(c))[:, None]
        factor = np.linalg.cholesky(c[modules[..., None], order[..., None], order[:, None]])
        error, found = np.zeros_like(r), np.empty_like(r)  # `error` has its columns in `order`
        for j in reversed(range(r.shape[2])):
            feed = error[..., j + 1 :] @ (factor[:, j + 1 :, j : j + 1] / factor[:, j : j + 1, j : j + 1])
            wanted = np.take_along_axis(r, order[:, None, j : j + 1], 2)
            near = scaled(*quantize_columns(wanted - feed, BITS[dtype], weights), BITS[dtype])
            error[..., j : j + 1] = near - wanted
            np.put_along_axis(found, order[:, None, j : j + 1], near, 2)
        return gathered(found.astype(np.float32), self.entries)


def rounded(
    coordinates: Whitening | ModuleWhitening, v: NDArray[np.float32], dtype: str, basis: Basis
) -> NDArray[np.float32]:
    """Return what a frame of `q2` or `q4` holds of v [n]: as `ModuleWhitening` rounds it, or else nearest."""
    near = coordinates.rounded(v, dtype) if isinstance(coordinates, ModuleWhitening) else v
    return MicroVector(near, dtype, entries=basis.entries).values


def whitened(learner: Learner, groups: Callable[[], Sequence[Group]]) -> Whitening | ModuleWhitening:
    """Return the coordinates to train the learner's adapter in, as its v is now.

    Where v is not all of R, or R has few inputs (`FEWEST`), they are those of its prior, if it has one.

    Args:
        learner: its passes give both moments.
        groups: makes the completions whose likelihood says which directions matter.
    """
    return coordinates(learner.adapter.basis, lambda: learner.moments(groups()))


def coordinates(
    basis: Basis, moments: Callable[[], list[list[NDArray[np.float64]]]]
) -> Whitening | ModuleWhitening:
    """Return what `whitened` does, of second moments in any unit, as `Learner.moments` returns them."""
    p, q = basis.shape
    if q < FEWEST or not basis.entries:
        return basis.projection.whitening
    # The squared length of each column of B, of the module's own outputs alone.
    strengths = [np.square(b[..., :p], dtype=np.float64).sum(-2) for b in basis.factors.b]
    lefts, rights = [], []
    for (c, d), strength in zip(moments(), strengths, strict=True):
        own = strength.shape[-1]
        right, left = _inverse_root(c), _inverse_root(d[:own, :own])
        gram = strength.reshape(-1, own).sum(0)  # the diagonal of B'B, summed over experts; the rest is 0
        # E|B R A x|^2 of a random R of unit variance, and of such an R': both get the same scale.
        before = gram.sum() * c.trace()
        after = np.einsum("ij,j,ij", left, gram, left) * np.einsum("ij,jk,ki", right, c, right)
        lefts.append(np.eye(p))
        if after > 0:
            lefts[-1][:own, :own] = left * np.sqrt(before / after)
        rights.append(right if after > 0 else np.eye(q))
    return ModuleWhitening(np.stack(lefts), np.stack(rights), basis.entries)


def _inverse_root(moment: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse square root of a damped second moment; zeros where there is nothing."""
    values, vectors = np.linalg.eigh(moment)
    values = np.maximum(values, 0)
    damped = values + DAMPING * values.mean()
    return np.asarray((vectors / np.sqrt(damped)) @ vectors.T if damped.all() else np.zeros_like(moment))


def common_prefix(prompts: Sequence[NDArray[np.int32]]) -> int:
    """Length of the prefix that all prompts share, shorter than any of them; 0 for a single prompt."""
    limit = min(map(len, prompts)) - 1
    for i in range(limit):
        if len({prompt[i] for prompt in prompts}) > 1:
            return i
    return limit if len(prompts) > 1 else 0
