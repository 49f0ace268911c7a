"""Lanes: a lane is one llama.cpp context with many sequences, and a `Batch` has some lanes side by side.

The prompt of a group of samples is evaluated once and its KV cells are shared by all of them; a sequence
that ends makes room for the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from ...errors import TinyLoraError, VectorError
from .log import signals_wait
from .protocols import Weights
from .sampling import logprobs, sample

_PREFIX, _PROMPT, _FIRST = 0, 1, 2
"""Sequences: what all prompts begin with, the prompt at hand, and the first of the samples."""

_LOOKED_AT = 64
"""Logits of a row that are looked at: what is not finite inside the model reaches all of them."""

_SCORED = 64
"""Tokens scored at once: more would take memory (their logits 200 kB each) and no less time."""


Key = tuple[int, int]
"""A completion: the index of its prompt in the call, and its number."""

Read = Callable[[NDArray[np.float32], Sequence[tuple[Key, int]]], Iterable[Any]]
"""A reader of logits [rows, vocabulary], where each row belongs to one token of one completion.

It returns what to keep of each row. The logits are gone afterwards.
"""


def reader_of(wanted: Sequence[Sequence[Sequence[Any] | NDArray[Any]]], temperature: float) -> Read:
    """Return what reads the log-probabilities of tokens: for each prompt, of each completion, at each place.

    Raises:
        VectorError: the temperature is not above 0.
    """
    if not temperature > 0:
        raise VectorError(f"completions are scored at a temperature above 0, not at {temperature}")

    def read(logits: NDArray[np.float32], places: Sequence[tuple[Key, int]]) -> NDArray[np.float32]:
        tokens = [wanted[p][c][position] for (p, c), position in places]
        return logprobs(logits, temperature, np.array(tokens, np.int32))

    return read


@dataclass(frozen=True)
class Generation:
    """One sampled sequence.

    Attributes:
        prompt: index of its prompt in the call.
        tokens: int32 [n], with the end-of-generation token where there was one.
        logprobs: float32 [n], natural logarithm, of each token under the distribution it was drawn
            from: softmax(logits / temperature), or softmax(logits) for greedy decoding.
        ended: it ended by itself, within the limit.
        exploded: it ended where the model's logits were no longer finite, because the vector is too large for
            the model. It may have no tokens then.
    """

    prompt: int
    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    ended: bool
    exploded: bool = False


@dataclass(frozen=True)
class Job:
    """The sequences that a lane is to generate.

    Attributes:
        prompts: index in the call and token ids of each.
        samples: numbers of the samples of every prompt.
        max_tokens: of each sample.
        temperature: of sampling; 0 takes the most likely token.
        uniform: float64 [prompts of the call, samples, max_tokens], in [0, 1): what decides each draw.
        ended: called whenever a sequence has ended, in the lane's thread.
    """

    prompts: Sequence[tuple[int, Sequence[int]]]
    samples: range
    max_tokens: int
    temperature: float
    uniform: NDArray[np.float64]
    ended: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Given:
    """Completions that a lane is to score.

    Attributes:
        prompts: index in the call and token ids of each.
        completions: for each prompt of the call the token ids of its completions, none of them empty.
        read: what to keep of the logits.
    """

    prompts: Sequence[tuple[int, Sequence[int]]]
    completions: Sequence[Sequence[Sequence[int]]]
    read: Read


@dataclass
class _Scoring:
    key: Key
    begin: int  # position of its first token
    tokens: NDArray[np.int32]
    rows: list[Any]  # what was read where each of its tokens stands


@dataclass
class _Running:
    prompt: int
    sample: int
    position: int  # of the next token in the sequence
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    exploded: bool = False

    def add(self, token: int, logprob: float) -> None:
        """Append what was drawn; a log-probability that is not a number ends the sequence instead."""
        if math.isnan(logprob):
            self.exploded = True
        else:
            self.tokens.append(token)
            self.logprobs.append(logprob)


class Stopped(Exception):  # noqa: N818 - not an error
    """The generation was told to stop."""


class Lane:
    """A context over the weights of a loaded model.

    Args:
        llm: the model; it must outlive the lane.
        sequences: that run at the same time.
        n_ctx: KV cells for all of them together. A sequence starts when there are cells for all that
            it may generate; with fewer than all need, fewer run at the same time.
        n_threads: of llama.cpp.

    Raises:
        TinyLoraError: llama.cpp cannot make the context.
    """

    def __init__(self, llm: Weights, *, sequences: int, n_ctx: int, n_threads: int) -> None:
        self._sequences = sequences
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = max(512, sequences)
        params.n_seq_max = sequences + _FIRST
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = n_threads
        for name in ("type_k", "type_v", "flash_attn_type"):  # as in production, to the last bit if it can be
            setattr(params, name, getattr(llm.context_params, name))
        with signals_wait():
            self.context: Any = llama_cpp.llama_init_from_model(llm.model, params)
        if not self.context:
            raise TinyLoraError(f"llama.cpp cannot make a context of {n_ctx} cells for {sequences} sequences")
        self.n_ctx = int(llama_cpp.llama_n_ctx(self.context))
        self._turns = llm.turns
        self.stop = False
        self.evaluated = 0  # tokens, since it was made
        self._memory = llama_cpp.llama_get_memory(self.context)
        self._clean = True  # no cell has had a value that is not finite
        self._vocab = llama_cpp.llama_model_get_vocab(llm.model)
        self._n_vocab = llm.n_vocab()
        self._size = params.n_batch
        self._buffer = llama_cpp.llama_batch_init(self._size, 0, 1)

    def use(self, n_threads: int) -> None:
        """Compute with so many threads from now on."""
        llama_cpp.llama_set_n_threads(self.context, n_threads, n_threads)

    def free(self) -> None:
        """Free the context."""
        llama_cpp.llama_batch_free(self._buffer)
        llama_cpp.llama_free(self.context)

    def run(self, job: Job) -> dict[tuple[int, int], Generation]:
        """Generate: (index of the prompt, number of the sample) -> what was generated.

        Raises:
            Stopped: `stop` was set meanwhile.
            TinyLoraError: llama.cpp fails.
        """
        done: dict[tuple[int, int], Generation] = {}
        slots: list[_Running | None] = [None] * self._sequences
        shared = common_prefix([prompt for _, prompt in job.prompts])
        lengths = [len(prompt) - shared for _, prompt in job.prompts]
        cells = _Cells(self.n_ctx - shared, lengths, len(job.samples), job.max_tokens)
        pending = self._starts(job, shared)
        place = {index: number for number, (index, _) in enumerate(job.prompts)}
        self._forget()

        def keep(run: _Running, slot: int) -> _Running | None:
            """Return the sequence if it goes on; else store it and free its cells."""
            ended = not run.exploded and bool(llama_cpp.llama_vocab_is_eog(self._vocab, run.tokens[-1]))
            if not ended and not run.exploded and len(run.tokens) < job.max_tokens:
                return run
            tokens, logprobs = np.array(run.tokens, np.int32), np.array(run.logprobs, np.float32)
            done[run.prompt, run.sample] = Generation(run.prompt, tokens, logprobs, ended, run.exploded)
            llama_cpp.llama_memory_seq_rm(self._memory, _FIRST + slot, -1, -1)
            cells.give(place[run.prompt])
            job.ended()
            return None

        while True:
            for slot in range(self._sequences):
                while slots[slot] is None and cells.take():
                    started = next(pending)
                    llama_cpp.llama_memory_seq_cp(self._memory, _PROMPT, _FIRST + slot, -1, -1)
                    slots[slot] = keep(started, slot)
            active = [(slot, run) for slot, run in enumerate(slots) if run is not None]
            if not active:
                return done
            logits = self._decode(
                [run.tokens[-1] for _, run in active],
                [run.position for _, run in active],
                [_FIRST + slot for slot, _ in active],
                outputs=len(active),
            )
            uniform = np.array([job.uniform[run.prompt, run.sample, len(run.tokens)] for _, run in active])
            drawn = sample(logits, job.temperature, uniform)
            for (slot, run), token, logprob in zip(active, *drawn, strict=True):
                run.position += 1
                run.add(int(token), float(logprob))
                slots[slot] = keep(run, slot)

    def score(self, given: Given) -> dict[Key, list[Any]]:
        """Score: completion -> what was read where each of its tokens stands.

        Raises:
            Stopped: `stop` was set meanwhile.
            TinyLoraError: llama.cpp fails.
        """
        done: dict[Key, list[Any]] = {}
        shared = common_prefix([prompt for _, prompt in given.prompts])
        self._forget()
        self._evaluate(given.prompts[0][1][:shared], 0, _PREFIX)
        waiting: list[_Scoring] = []
        free = self.n_ctx - shared
        for index, prompt in given.prompts:
            tail = len(prompt) - shared
            logits = None
            for number, completion in enumerate(given.completions[index]):
                need = len(completion) + (tail if logits is None else 0)
                if waiting and (len(waiting) == self._sequences or need > free):
                    if logits is not None:
                        llama_cpp.llama_memory_seq_rm(self._memory, _PROMPT, -1, -1)
                        logits = None
                    done |= self._finish(waiting, given.read)
                    waiting, free = [], self.n_ctx - shared
                if logits is None:
                    llama_cpp.llama_memory_seq_cp(self._memory, _PREFIX, _PROMPT, -1, -1)
                    logits = self._evaluate(prompt[shared:], shared, _PROMPT).copy()
                    free -= tail
                key = index, number
                first = given.read(logits, [(key, 0)])
                llama_cpp.llama_memory_seq_cp(self._memory, _PROMPT, _FIRST + len(waiting), -1, -1)
                waiting.append(_Scoring(key, len(prompt), np.array(completion, np.int32), list(first)))
                free -= len(completion)
            llama_cpp.llama_memory_seq_rm(self._memory, _PROMPT, -1, -1)
        return done | self._finish(waiting, given.read)

    def _forget(self) -> None:
        """Empty the cells; with their data where it may not be finite, since no mask hides a NaN."""
        llama_cpp.llama_memory_clear(self._memory, not self._clean)
        self._clean = True

    def _finish(self, waiting: Sequence[_Scoring], read: Read) -> dict[Key, list[Any]]:
        """Score what follows the first tokens, whose prompts are evaluated; free the cells."""
        entries = [(slot, i) for slot, each in enumerate(waiting) for i in range(len(each.tokens) - 1)]
        for start in range(0, len(entries), _SCORED):
            part = entries[start : start + _SCORED]
            logits = self._decode(
                [int(waiting[slot].tokens[i]) for slot, i in part],
                [waiting[slot].begin + i for slot, i in part],
                [_FIRST + slot for slot, _ in part],
                outputs=len(part),
            )
            found = read(logits, [(waiting[slot].key, i + 1) for slot, i in part])
            for (slot, _), row in zip(part, found, strict=True):
                waiting[slot].rows.append(row)
        for slot in range(len(waiting)):
            llama_cpp.llama_memory_seq_rm(self._memory, _FIRST + slot, -1, -1)
        return {each.key: each.rows for each in waiting}

    def _starts(self, job: Job, shared: int) -> Iterator[_Running]:
        """Yield every sequence with its first token; the prompt's cells lie in `_PROMPT` meanwhile."""
        self._evaluate(job.prompts[0][1][:shared], 0, _PREFIX)
        for index, prompt in job.prompts:
            llama_cpp.llama_memory_seq_cp(self._memory, _PREFIX, _PROMPT, -1, -1)
            logits = self._evaluate(prompt[shared:], shared, _PROMPT)
            repeated = np.repeat(logits, len(job.samples), axis=0)
            uniform = job.uniform[index, job.samples.start : job.samples.stop, 0]
            first = sample(repeated, job.temperature, uniform)
            for number, token, logprob in zip(job.samples, *first, strict=True):
                begun = _Running(index, number, len(prompt))
                begun.add(int(token), float(logprob))
                yield begun
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

    def _decode(
        self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int], *, outputs: int
    ) -> NDArray[np.float32]:
        """Evaluate one token an entry; return the logits of the last `outputs` entries (a view)."""
        if self.stop:
            raise Stopped
        buffer, count = self._buffer, len(tokens)
        buffer.n_tokens = count
        for i, (token, position, sequence) in enumerate(zip(tokens, positions, sequences, strict=True)):
            buffer.token[i] = token
            buffer.pos[i] = position
            buffer.n_seq_id[i] = 1
            buffer.seq_id[i][0] = sequence
            buffer.logits[i] = i >= count - outputs
        with self._turns.computing():
            code = llama_cpp.llama_decode(self.context, buffer)
        if code:
            reason = "its KV cache is full" if code == 1 else f"code {code}"
            raise TinyLoraError(f"llama.cpp could not evaluate {count} tokens: {reason}")
        self.evaluated += count
        if not outputs:
            return np.empty((0, self._n_vocab), np.float32)
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (outputs, self._n_vocab))
        self._clean = self._clean and bool(np.isfinite(logits[:, :_LOOKED_AT].max(axis=1)).all())
        return logits


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


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of what all prompts begin with, at least one token short of the shortest of them."""
    limit = min(len(prompt) for prompt in prompts) - 1
    for i in range(limit):
        if len({prompt[i] for prompt in prompts}) > 1:
            return i
    return limit if len(prompts) > 1 else 0
