"""Many sequences at once in llama.cpp: rollouts, evaluation and tuning all generate through here.

A `Batch` has a context of its own over the weights of a loaded model. The prompt of a group of samples is
evaluated once and its KV cells are shared by all of them; a sequence that ends makes room for the next.
Sampling is vectorised over the batch, and every token comes with its exact log-probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from .._vector import MicroVector
from ..errors import TinyLoraError, VectorError
from ._strategies import Personalizer
from .llama import TinyLoraLlama

_PREFIX, _PROMPT, _FIRST = 0, 1, 2
"""Sequences: what all prompts begin with, the prompt at hand, and the first of the samples."""


@dataclass(frozen=True)
class Generation:
    """One sampled sequence.

    Attributes:
        prompt: index of its prompt in the call.
        tokens: int32 [n], with the end-of-generation token where there was one.
        logprobs: float32 [n], natural logarithm, of each token under the distribution it was drawn
            from: softmax(logits / temperature), or softmax(logits) for greedy decoding.
        ended: it ended by itself, within the limit.
    """

    prompt: int
    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    ended: bool


@dataclass
class _Running:
    prompt: int
    sample: int
    position: int  # of the next token in the sequence
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class _Cells:
    """KV cells that are promised: to the prompts in use, and to all that their samples may generate.

    Args:
        free: cells for all of them.
        prompts: cells that each prompt needs for itself.
        samples: a prompt.
        max_tokens: a sample.
    """

    def __init__(self, free: int, prompts: Sequence[int], samples: int, max_tokens: int) -> None:
        self._free, self._prompts, self._samples, self._each = free, prompts, samples, max_tokens
        self._taken = 0
        self._unfinished = [samples] * len(prompts)

    def take(self) -> bool:
        """Promise the next sample its cells, if there is a next one and they are free."""
        prompt, sample = divmod(self._taken, self._samples)
        if prompt == len(self._prompts):
            return False
        need = self._each + (0 if sample else self._prompts[prompt])
        if need > self._free:
            return False
        self._free -= need
        self._taken += 1
        return True

    def give(self, prompt: int) -> None:
        """Take back the cells of a finished sample, with the last one those of its prompt."""
        self._unfinished[prompt] -= 1
        self._free += self._each + (0 if self._unfinished[prompt] else self._prompts[prompt])


class Batch:
    """Generates many sequences at once with a micro-vector.

    Args:
        llm: a loaded model; it must outlive the batch. Its own context and vector are left alone.
        sequences: how many run at the same time.
        n_ctx: KV cells for all of them together. A sequence starts when there are cells for all that
            it may generate; with fewer than all need, fewer run at the same time.
        n_threads: threads of llama.cpp; by default the model's.

    Raises:
        TinyLoraError: llama.cpp cannot make the context.
    """

    def __init__(
        self, llm: TinyLoraLlama, *, sequences: int = 32, n_ctx: int = 2048, n_threads: int | None = None
    ) -> None:
        self.llm = llm
        self.sequences = sequences
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = max(512, sequences)
        params.n_seq_max = sequences + _FIRST
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = n_threads or llm.context_params.n_threads
        for name in ("type_k", "type_v", "flash_attn_type"):  # as in production, to the last bit if it can be
            setattr(params, name, getattr(llm.context_params, name))
        self._personalizer: Personalizer | None = Personalizer(llm.model, llm.basis)
        self._ctx: Any = llama_cpp.llama_init_from_model(llm.model, params)
        if not self._ctx:
            self._personalizer.free()
            raise TinyLoraError(f"llama.cpp cannot make a context of {n_ctx} cells for {sequences} sequences")
        self.n_ctx = int(llama_cpp.llama_n_ctx(self._ctx))
        self._memory = llama_cpp.llama_get_memory(self._ctx)
        self._vocab = llama_cpp.llama_model_get_vocab(llm.model)
        self._n_vocab = llm.n_vocab()
        self._size = params.n_batch
        self._buffer = llama_cpp.llama_batch_init(self._size, 0, 1)

    @property
    def vector(self) -> MicroVector | None:
        """The vector that generations use, or None for the base alone."""
        return self._personalizer.vector if self._personalizer else None

    def swap(self, vector: bytes | MicroVector | None) -> None:
        """Use another vector from now on; None for the base alone.

        Raises:
            VectorError: the vector was refused; the one before stays.
        """
        if self._personalizer is None:
            raise TinyLoraError("the batch is closed")
        if vector is not None and not isinstance(vector, MicroVector):
            vector = self.llm.policy.check(vector, self.llm.basis)
        self._personalizer.apply(self._ctx, vector)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int = 1,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
    ) -> list[Generation]:
        """Continue every prompt `samples` times.

        Args:
            prompts: token ids.
            samples: sequences a prompt.
            max_tokens: of each sequence.
            temperature: of sampling from the full distribution; 0 takes the most likely token.
            seed: of the random numbers; the result is deterministic for it on one machine and build.

        Returns:
            len(prompts) * samples generations, those of one prompt together, in order.

        Raises:
            VectorError: a prompt is empty, or leaves no room for the tokens asked for.
        """
        if not prompts:
            return []
        self._check(prompts, max_tokens)
        rng = np.random.default_rng(seed)
        done: dict[tuple[int, int], Generation] = {}
        slots: list[_Running | None] = [None] * self.sequences
        shared = _common_prefix(prompts)
        cells = _Cells(self.n_ctx - shared, [len(p) - shared for p in prompts], samples, max_tokens)
        pending = self._starts(prompts, shared, samples, temperature, rng)
        llama_cpp.llama_memory_clear(self._memory, False)
        while True:
            for slot in range(self.sequences):
                while slots[slot] is None and cells.take():
                    started = next(pending)
                    llama_cpp.llama_memory_seq_cp(self._memory, _PROMPT, _FIRST + slot, -1, -1)
                    slots[slot] = self._keep(started, slot, max_tokens, done, cells)
            active = [(slot, run) for slot, run in enumerate(slots) if run is not None]
            if not active:
                break
            logits = self._decode(
                [run.tokens[-1] for _, run in active],
                [run.position for _, run in active],
                [_FIRST + slot for slot, _ in active],
                outputs=len(active),
            )
            for (slot, run), token, logprob in zip(active, *sample(logits, temperature, rng), strict=True):
                run.position += 1
                run.tokens.append(int(token))
                run.logprobs.append(float(logprob))
                slots[slot] = self._keep(run, slot, max_tokens, done, cells)
        return [done[p, s] for p in range(len(prompts)) for s in range(samples)]

    def close(self) -> None:
        """Free the context and the adapters; the model stays."""
        if self._personalizer is not None:
            llama_cpp.llama_batch_free(self._buffer)
            llama_cpp.llama_free(self._ctx)
            self._personalizer.free()
            self._personalizer = None

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _starts(
        self,
        prompts: Sequence[Sequence[int]],
        shared: int,
        samples: int,
        temperature: float,
        rng: np.random.Generator,
    ) -> Iterator[_Running]:
        """Yield every sequence with its first token; the prompt's cells lie in `_PROMPT` meanwhile."""
        self._evaluate(prompts[0][:shared], 0, _PREFIX)
        for index, prompt in enumerate(prompts):
            llama_cpp.llama_memory_seq_cp(self._memory, _PREFIX, _PROMPT, -1, -1)
            logits = self._evaluate(prompt[shared:], shared, _PROMPT)
            first = sample(np.repeat(logits, samples, axis=0), temperature, rng)
            for number, (token, logprob) in enumerate(zip(*first, strict=True)):
                yield _Running(index, number, len(prompt), [int(token)], [float(logprob)])
            llama_cpp.llama_memory_seq_rm(self._memory, _PROMPT, -1, -1)

    def _evaluate(self, tokens: Sequence[int], begin: int, sequence: int) -> NDArray[np.float32]:
        """Append tokens to a sequence; return the logits of the last: [1, vocabulary]."""
        logits = np.empty((0, self._n_vocab), np.float32)
        for start in range(0, len(tokens), self._size):
            part = tokens[start : start + self._size]
            positions = range(begin + start, begin + start + len(part))
            last = start + len(part) == len(tokens)
            logits = self._decode(part, positions, [sequence] * len(part), outputs=int(last))
        return logits

    def _keep(
        self,
        run: _Running,
        slot: int,
        max_tokens: int,
        done: dict[tuple[int, int], Generation],
        cells: _Cells,
    ) -> _Running | None:
        """Return the sequence if it goes on; else store it and free its cells."""
        ended = bool(llama_cpp.llama_vocab_is_eog(self._vocab, run.tokens[-1]))
        if not ended and len(run.tokens) < max_tokens:
            return run
        done[run.prompt, run.sample] = Generation(
            run.prompt, np.array(run.tokens, np.int32), np.array(run.logprobs, np.float32), ended
        )
        llama_cpp.llama_memory_seq_rm(self._memory, _FIRST + slot, -1, -1)
        cells.give(run.prompt)
        return None

    def _decode(
        self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int], *, outputs: int
    ) -> NDArray[np.float32]:
        """Evaluate one token an entry; return the logits of the last `outputs` entries (a view)."""
        buffer, count = self._buffer, len(tokens)
        buffer.n_tokens = count
        for i, (token, position, sequence) in enumerate(zip(tokens, positions, sequences, strict=True)):
            buffer.token[i] = token
            buffer.pos[i] = position
            buffer.n_seq_id[i] = 1
            buffer.seq_id[i][0] = sequence
            buffer.logits[i] = i >= count - outputs
        code = llama_cpp.llama_decode(self._ctx, buffer)
        if code:
            reason = "its KV cache is full" if code == 1 else f"code {code}"
            raise TinyLoraError(f"llama.cpp could not evaluate {count} tokens: {reason}")
        if not outputs:
            return np.empty((0, self._n_vocab), np.float32)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._ctx), (outputs, self._n_vocab))

    def _check(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        for index, prompt in enumerate(prompts):
            if not len(prompt):
                raise VectorError(f"prompt {index} is empty")
            if len(prompt) + max_tokens > self.n_ctx:
                raise VectorError(
                    f"prompt {index} has {len(prompt)} tokens, which with {max_tokens} to generate pass the "
                    f"{self.n_ctx} cells of the batch: raise n_ctx, or generate fewer"
                )


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of what all prompts begin with, at least one token short of the shortest of them."""
    limit = min(len(prompt) for prompt in prompts) - 1
    for i in range(limit):
        if len({prompt[i] for prompt in prompts}) > 1:
            return i
    return limit if len(prompts) > 1 else 0


def sample(
    logits: NDArray[np.float32], temperature: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw one token a row.

    Args:
        logits: float32 [rows, vocabulary].
        temperature: 0 takes the most likely token.
        rng: source of one uniform number a row; untouched at temperature 0.

    Returns:
        Tokens int64 [rows], and their log-probabilities float32 [rows] under softmax(logits / temperature)
        (softmax(logits) at temperature 0).
    """
    rows = np.arange(len(logits))
    scaled = logits * np.float32(1 / temperature if temperature else 1)
    scaled -= scaled.max(axis=1, keepdims=True)
    if not temperature:
        tokens = scaled.argmax(axis=1)
        return tokens, -np.log(np.exp(scaled).sum(axis=1, dtype=np.float64)).astype(np.float32)
    # float64: 50,000 float32 terms would lose the tail that a uniform number may fall into.
    cumulative = np.cumsum(np.exp(scaled), axis=1, dtype=np.float64)
    total = cumulative[:, -1]
    points = rng.random(len(rows)) * total
    tokens = np.array([np.searchsorted(c, p, side="right") for c, p in zip(cumulative, points, strict=True)])
    tokens = np.minimum(tokens, logits.shape[1] - 1)
    return tokens, (scaled[rows, tokens] - np.log(total)).astype(np.float32)
