"""Rollouts: completions of prompts under the present v, whichever engine draws them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..vector import MicroVector
from .adapter import Adaptation
from .learner import pad


@dataclass(frozen=True)
class Rollout:
    """One completion.

    Attributes:
        tokens: int32 [n], the end token included where there was one.
        logprobs: float32 [n], under the distribution that they were drawn from.
        ended: it ended by itself.
        exploded: the logits after it were not finite: the vector is too large for the model.
    """

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    ended: bool
    exploded: bool = False


class Rollouts(Protocol):
    """An engine that draws completions."""

    def draw(
        self,
        vector: MicroVector | None,
        prompts: Sequence[NDArray[np.int32]],
        *,
        samples: int,
        max_tokens: int,
        temperature: float,
        seed: tuple[int, ...],
    ) -> list[list[Rollout]]:
        """Return `samples` completions of every prompt under a vector, deterministic by seed."""


class Drawn(Protocol):
    """A completion as an engine draws it: the fields of `Rollout`."""

    @property
    def tokens(self) -> NDArray[np.int32]:
        """int32 [n]."""

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """float32 [n]."""

    @property
    def ended(self) -> bool:
        """Whether it ended by itself."""

    @property
    def exploded(self) -> bool:
        """Whether the logits after it were not finite."""


class TokenBatch(Protocol):
    """A batch that continues many prompts under a vector: what `LlamaRollouts` needs of llama.cpp's."""

    def swap(self, vector: MicroVector | None) -> None:
        """Use another vector from now on; None for the base alone."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        max_tokens: int,
        temperature: float,
        seed: Sequence[int],
    ) -> Sequence[Drawn]:
        """Continue every prompt `samples` times; continuations of one prompt follow each other."""


class LlamaRollouts:
    """Rollouts by llama.cpp, the vector applied as in production.

    Args:
        batch: over the deployed model, or over a copy of it in another type.
    """

    def __init__(self, batch: TokenBatch) -> None:
        self._batch = batch

    def draw(
        self,
        vector: MicroVector | None,
        prompts: Sequence[NDArray[np.int32]],
        *,
        samples: int,
        max_tokens: int,
        temperature: float,
        seed: tuple[int, ...],
    ) -> list[list[Rollout]]:
        """Return `samples` completions of every prompt under a vector, deterministic by seed."""
        self._batch.swap(vector)
        flat = self._batch.generate(
            [prompt.tolist() for prompt in prompts],
            samples=samples,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
        rollouts = [Rollout(g.tokens, g.logprobs, g.ended, g.exploded) for g in flat]
        return [rollouts[i : i + samples] for i in range(0, len(rollouts), samples)]


class HFRollouts:
    """Rollouts by `generate` of the transformers model that learns: slower, and needs no GGUF engine.

    Args:
        model: the model.
        adapter: attached to it.
        end: ids of the tokens that end a generation.
        sequences: that are generated at the same time.
    """

    def __init__(self, model: Any, adapter: Adaptation, end: Sequence[int], *, sequences: int = 32) -> None:
        self._model, self._adapter, self._end = model, adapter, list(end)
        self._sequences = sequences
        # A thread of its own, for the same reason as the learner's: AMX tiles are llama.cpp's elsewhere.
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))

    def draw(
        self,
        vector: MicroVector | None,
        prompts: Sequence[NDArray[np.int32]],
        *,
        samples: int,
        max_tokens: int,
        temperature: float,
        seed: tuple[int, ...],
    ) -> list[list[Rollout]]:
        """Return `samples` completions of every prompt under a vector, deterministic by seed."""
        before = self._adapter.vector()
        self._adapter.set(vector or np.zeros_like(before.values))
        state = int(np.random.default_rng(seed).integers(2**63))

        def run() -> list[list[Rollout]]:
            with torch.random.fork_rng():
                torch.manual_seed(state)
                each = max(1, self._sequences // samples)
                parts = [prompts[i : i + each] for i in range(0, len(prompts), each)]
                return [g for part in parts for g in self._generate(part, samples, max_tokens, temperature)]

        try:
            return self._pool.submit(run).result()
        finally:
            self._adapter.set(before)

    def _generate(
        self, prompts: Sequence[NDArray[np.int32]], samples: int, max_tokens: int, temperature: float
    ) -> list[list[Rollout]]:
        ids, mask = pad(prompts, left=True)
        with torch.no_grad(), self._undirected():
            out = self._model.generate(
                ids,
                attention_mask=mask.long(),
                do_sample=temperature > 0,
                temperature=temperature or None,
                top_k=0 if temperature else None,
                top_p=1.0 if temperature else None,
                num_return_sequences=samples,
                max_new_tokens=max_tokens,
                eos_token_id=self._end,
                pad_token_id=self._end[0],
                logits_processor=[self._end_exploded],
                return_dict_in_generate=True,
                output_logits=True,
            )
        tokens = out.sequences[:, ids.shape[1] :]
        logprobs, exploded = torch.empty(tokens.shape), torch.empty(tokens.shape, dtype=torch.bool)
        for place, raw in enumerate(out.logits):
            logits = raw.float() / (temperature or 1.0)
            logprobs[:, place] = logits.gather(-1, tokens[:, place, None])[:, 0] - logits.logsumexp(-1)
            exploded[:, place] = _exploded(raw)
        cut = [self._cut(*row) for row in zip(tokens, logprobs, exploded, strict=True)]
        return [cut[i : i + samples] for i in range(0, len(cut), samples)]

    @contextmanager
    def _undirected(self) -> Iterator[None]:
        """Leave out what the weights' own `generation_config.json` asks for: learners know no penalties.

        `generate` takes from it whatever its caller leaves open, so it has to be another one meanwhile.
        """
        own = self._model.generation_config
        self._model.generation_config = type(own)()
        try:
            yield
        finally:
            self._model.generation_config = own

    def _end_exploded(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """End sequences whose logits are not finite: nothing can be drawn from them."""
        rows = _exploded(logits)
        if rows.any():
            logits = logits.clone()  # `generate` keeps what it was given as the raw ones
            logits[rows] = -torch.inf
            logits[rows, self._end[0]] = 0
        return logits

    def _cut(self, tokens: torch.Tensor, logprobs: torch.Tensor, exploded: torch.Tensor) -> Rollout:
        ends = (exploded | torch.isin(tokens, torch.tensor(self._end))).nonzero()
        last = int(ends[0]) if len(ends) else len(tokens) - 1
        whole = not bool(exploded[last])
        length = last + whole
        return Rollout(
            tokens[:length].numpy().astype(np.int32),
            logprobs[:length].numpy().astype(np.float32),
            ended=bool(len(ends)) and whole,
            exploded=not whole,
        )


def _exploded(logits: torch.Tensor) -> torch.Tensor:
    """Return which rows have no highest logit that is finite, bool [rows]."""
    return ~logits.amax(-1).isfinite()
