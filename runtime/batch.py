"""Batches: many sequences at once, generated or scored, each under one of many vectors, on every engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import TinyLoraError, VectorError
from ..system import cores
from ..tasks import Completion, Sample
from ..vector import MicroVector
from .batch_context import BatchContext, Generation, Read, Running, Scored, Stopped
from .engine import Weights
from .lock import Process
from .sampling import likeliest, logprobs
from .schema import Schema, grammar_of

S = TypeVar("S", Running, Scored)

_FEWEST = 8
"""Sequences of a context: with fewer, reading the weights costs more than waiting for other threads."""


class Batch:
    """Rows over a model's weights, in which sequences are generated or scored, each with its vector.

    ONNX Runtime computes all of them in one evaluation. A llama.cpp context has one vector at a time, and its
    threads wait for each other at every operation: one context a core is 1.5 times as fast on two cores
    (SmolLM2-135M, 32 sequences). Sequences are spread over as many contexts as leave 8 to each, a vector each
    where there are many.

    Any thread may call it; calls take turns.

    Args:
        llm: a loaded model, whose `close` closes the batch. Its own context and vector are left alone.
        n_ctx_seq: tokens of the longest sequence, prompt and completion.
        shared: tokens that all prompts begin with: in llama.cpp they take room once.
        sequences: how many run at the same time.
        n_threads: cores to use; by default all that this process may use.
        contexts: at most, where it is not the sequences that say so.

    Attributes:
        contexts: that compute side by side; each evaluates for itself what its prompts share.

    Raises:
        TinyLoraError: the engine cannot make the contexts, or the model is closed.
    """

    def __init__(
        self,
        llm: Weights,
        *,
        n_ctx_seq: int,
        shared: int = 0,
        sequences: int = 32,
        n_threads: int | None = None,
        contexts: int | None = None,
    ) -> None:
        self.llm = llm
        self._n_ctx, self._threads = n_ctx_seq, n_threads or cores()
        self.contexts = 1 if llm.one_engine else max(1, min(self._threads, contexts or sequences // _FEWEST))
        self._process = Process()
        self._turn = threading.RLock()
        self._depth = 0  # calls of the thread that has the turn, within each other
        self._closed = self._stop = False
        self._contexts: list[BatchContext] = []
        each = -(-sequences // self.contexts)
        # What all prompts share lies in the cells once more, and so does the next prompt.
        cells = None if llm.mixed else (each + 2) * (n_ctx_seq - shared) + shared
        with llm._staying():
            try:
                for _ in range(self.contexts):
                    engine = llm.engine(
                        rows=each + 1, n_ctx=n_ctx_seq, n_threads=self._threads // self.contexts, cells=cells
                    )
                    context = BatchContext(engine, llm.vocabulary, cells, lambda: self._stop)
                    self._contexts.append(context)
            except BaseException:
                self._free()
                raise
            # Never in the caller's thread: torch computing there in bfloat16 would release the AMX tiles that
            # llama.cpp configures once for each thread that it computes in.
            self._pool = ThreadPoolExecutor(self.contexts, "tinylora-batch")
            self._idle: SimpleQueue[BatchContext] = SimpleQueue()
            for context in self._contexts:
                self._idle.put(context)
            llm._dependents.add(self)

    @property
    def evaluated(self) -> int:
        """Tokens that were evaluated since the batch was made, prompts and answers."""
        return sum(context.engine.evaluated for context in self._contexts)

    def encode(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Return the tokens of the samples' prompts."""
        with self._computing():
            return [self.llm.encode(sample)[0] for sample in samples]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        vectors: MicroVector | Sequence[MicroVector | None] | None = None,
        samples: int = 1,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        schema: Schema | None = None,
        seconds: float | None = None,
        ended: Callable[[], None] = lambda: None,
    ) -> list[Generation]:
        """Continue every prompt `samples` times.

        Args:
            prompts: token ids.
            vectors: one for all prompts, or of each its own; None for the base.
            samples: sequences a prompt.
            max_tokens: of each sequence.
            temperature: of sampling from the full distribution; 0 takes the most likely token.
            seed: of the random numbers. Every sequence has its own, whatever runs beside it, and two vectors
                draw with the same ones.
            schema: what every sequence keeps to, from its first token: a JSON schema, or labels, one of which
                is all of it.
            seconds: after which all of it is given up.
            ended: called whenever a sequence has ended, in a thread of the batch.

        Returns:
            len(prompts) * samples generations, those of one prompt together, in order. Where a vector is so
            large that logits are not finite, a generation ends and says so (`exploded`).

        Raises:
            VectorError: a prompt is empty, or leaves no room for the tokens asked for; a vector fits no
                basis of the model, or there are not as many as prompts.
            RequestError: the schema becomes no grammar, or one that takes too much on the way.
            MissingExtraError: llguidance is not installed, which schemas need.
            Stopped: the seconds are over.
            TinyLoraError: the batch is closed, or is closed while it generates.
        """
        own = list(vectors) if isinstance(vectors, Sequence) else [vectors] * len(prompts)
        if len(own) != len(prompts):
            raise VectorError(f"{len(prompts)} prompts need as many vectors, not {len(own)}: one for each")
        groups = {vector: group for group, vector in enumerate(dict.fromkeys(own))}
        asked = [(groups[vector], index) for index, vector in enumerate(own)]
        return self._generate(
            [*groups], asked, prompts, samples, max_tokens, temperature, seed, schema, ended, seconds
        )

    def answer(
        self, samples: Sequence[Sample], *, vector: MicroVector | None = None, **how: Any
    ) -> list[Completion]:
        """Answer every sample's prompt once, as texts; `how` is as in `answer_each`."""
        return self.answer_each([vector], samples, **how)[0]

    def answer_each(
        self,
        vectors: Sequence[MicroVector | None],
        samples: Sequence[Sample],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        schema: Schema | None = None,
        answered: Callable[[int], None] = lambda count: None,
    ) -> list[list[Completion]]:
        """Return of each vector its answers to all samples, all drawn with the same random numbers.

        `answered` is told how many more have their answer.
        """
        prompts, count = self.encode(samples), len(samples)
        asked = [(group, index) for group in range(len(vectors)) for index in range(count)]
        found = self._generate(
            vectors, asked, prompts, 1, max_tokens, temperature, seed, schema, lambda: answered(1)
        )
        answers = [self._completion(generation) for generation in found]
        return [answers[v * count : (v + 1) * count] for v in range(len(vectors))]

    def score(
        self, *asked: Any, vector: MicroVector | None = None, **how: Any
    ) -> list[list[NDArray[np.float32]]]:
        """Return what `score_each` says of one vector; the rest is as there."""
        return self.score_each([vector], *asked, **how)[0]

    def score_each(
        self,
        vectors: Sequence[MicroVector | None],
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[Sequence[int]]],
        *,
        temperature: float = 1.0,
    ) -> list[list[list[NDArray[np.float32]]]]:
        """Return the exact log-probabilities of given completions: evaluation alone, nothing is drawn.

        Args:
            vectors: None for the base alone.
            prompts: token ids. What all begin with is evaluated once.
            completions: for each prompt the token ids of its completions, with the end-of-generation token
                where it is part of one.
            temperature: above 0; of the distribution softmax(logits / temperature).

        Returns:
            For each vector and prompt, for each of its completions: float32 [n], natural logarithms, one a
            token. NaN where logits are not finite: the vector is too large.

        Raises:
            VectorError: a prompt or a completion is empty, or passes the room of a sequence; lengths that
                do not fit each other; the temperature is not above 0.
            TinyLoraError: the batch is closed.
        """

        def read(logits: NDArray[np.float32], prompt: int, number: int, at: int) -> list[Any]:
            tokens = np.array(completions[prompt][number][at : at + len(logits)], np.int32)
            return list(logprobs(logits, tokens, temperature))

        found = self._read(vectors, prompts, completions, read)
        return [[[np.array(rows, np.float32) for rows in each] for each in of_vector] for of_vector in found]

    def likeliest(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[Sequence[int]]],
        count: int,
        *,
        vector: MicroVector | None = None,
    ) -> list[list[tuple[NDArray[np.int32], NDArray[np.float32]]]]:
        """Return which tokens are the likeliest wherever a token of a given completion stands.

        For each completion of each prompt: `count` tokens a place, likeliest first, int32 [n, count], and
        their log-probabilities, float32 [n, count].
        """

        def read(logits: NDArray[np.float32], *_: int) -> list[Any]:
            tokens = likeliest(logits, count)
            return list(zip(tokens, logprobs(logits, tokens), strict=True))

        found = self._read([vector], prompts, completions, read)[0]
        return [[(np.array([t for t, _ in r]), np.array([p for _, p in r])) for r in each] for each in found]

    def close(self) -> None:
        """Free what it computes with; the model stays. The model's own `close` does it first.

        A call that computes in another thread is stopped, and raises a `TinyLoraError`, as every later one
        does. Closing again is fine.
        """
        if self._process.forked:  # nothing of the engine may be touched there
            return
        self._closed = self._stop = True
        with self._turn:
            self._free_if_over()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _generate(
        self,
        vectors: Sequence[MicroVector | None],
        asked: Sequence[tuple[int, int]],
        prompts: Sequence[Sequence[int]],
        samples: int,
        max_tokens: int,
        temperature: float,
        seed: int | Sequence[int],
        schema: Schema | None,
        ended: Callable[[], None],
        seconds: float | None = None,
    ) -> list[Generation]:
        """Continue what is asked: numbers of a vector and of a prompt."""
        with self._computing():
            r = self._r_of(vectors)
            for index, prompt in enumerate(prompts):
                self._check(index, prompt, max_tokens)
            shape = len(prompts), samples, max_tokens
            uniform = np.random.default_rng(seed).random(shape) if temperature else np.zeros(shape)
            grammar = None if schema is None else grammar_of(schema, self.llm.vocabulary)
            sequences = [
                Running(group, r[group], prompts[index], index, uniform[index, sample], grammar)
                for group, index in asked
                for sample in range(samples)
            ]
            self._run(lambda context, share: context.generate(share, temperature, ended), sequences, seconds)
        return [sequence.generation() for sequence in sequences]

    def _read(
        self,
        vectors: Sequence[MicroVector | None],
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[Sequence[int]]],
        read: Read,
    ) -> list[list[list[list[Any]]]]:
        """Return of each vector, for each completion of each prompt, what is read at each of its tokens."""
        with self._computing():
            if len(completions) != len(prompts):
                raise VectorError(
                    f"{len(prompts)} prompts need as many lists of completions, not {len(completions)}"
                )
            for index, (prompt, found) in enumerate(zip(prompts, completions, strict=True)):
                for number, completion in enumerate(found):
                    if not len(completion):
                        raise VectorError(f"completion {number} of prompt {index} is empty")
                self._check(index, prompt, max(map(len, found), default=0))
            r = self._r_of(vectors)
            given = [
                [
                    [Scored(group, r[group], prompts[p], p, c, n) for n, c in enumerate(each)]
                    for p, each in enumerate(completions)
                ]
                for group in range(len(vectors))
            ]
            flat = [one for of_vector in given for of_prompt in of_vector for one in of_prompt]
            self._run(lambda context, share: context.score(share, read), flat)
        return [[[one.found for one in of_prompt] for of_prompt in of_vector] for of_vector in given]

    def _run(
        self,
        work: Callable[[BatchContext, list[S]], None],
        items: list[S],
        seconds: float | None = None,
    ) -> None:
        """Have contexts work on the items; whatever goes wrong, none computes afterwards."""
        shares = self._shares(items)
        for context in self._contexts:
            context.engine.use(max(1, self._threads // min(len(shares) or 1, self.contexts)))

        def do(share: list[S]) -> None:
            context = self._idle.get()
            try:
                work(context, share)
            finally:
                self._idle.put(context)

        futures = [self._pool.submit(do, share) for share in shares]
        try:
            wait(futures, timeout=seconds, return_when=FIRST_EXCEPTION)
        finally:
            self._stop = True
            wait([future for future in futures if not future.cancel()])
            self._stop = self._closed
        errors = [future.exception() for future in futures if not future.cancelled()]
        for error in errors:
            if error is not None and not isinstance(error, Stopped):
                raise error
        self._check_open()
        if any(future.cancelled() or future.exception() for future in futures):
            raise Stopped

    def _shares(self, items: list[S]) -> list[list[S]]:
        """Return what a context does at a time: a vector in llama.cpp, everything in ONNX Runtime."""
        if self.llm.mixed:
            return [items] if items else []
        groups: dict[int, list[S]] = {}
        for item in items:
            groups.setdefault(item.group, []).append(item)
        vectors, shares = list(groups.values()), []
        for start in range(0, len(vectors), self.contexts):
            wave = vectors[start : start + self.contexts]  # the last one has contexts to spare
            for group in wave:
                parts = min(self.contexts // len(wave), len(group))
                edges = [len(group) * i // parts for i in range(parts + 1)]
                shares += [group[a:b] for a, b in pairwise(edges)]
        return shares

    def _r_of(self, vectors: Sequence[MicroVector | None]) -> list[NDArray[np.float32] | None]:
        for vector in vectors:
            if vector is not None and not isinstance(vector, MicroVector):
                raise VectorError(
                    f"a batch takes a MicroVector, not {type(vector).__name__}: check bytes first, with "
                    "policy.check(data, llm.bases)"
                )
        return [self.llm.r_of(vector) for vector in vectors]

    def _completion(self, generation: Generation) -> Completion:
        tokens = generation.tokens.tolist()
        text = self.llm.vocabulary.decode(tokens[:-1] if generation.ended else tokens)
        return Completion(text, generation.ended, len(tokens), generation.exploded)

    def _check(self, index: int, prompt: Sequence[int], more: int) -> None:
        if not len(prompt):
            raise VectorError(f"prompt {index} is empty")
        if len(prompt) + more > self._n_ctx:
            raise VectorError(
                f"prompt {index} has {len(prompt)} tokens, which with {more} more pass the {self._n_ctx} of "
                "a sequence of this batch: raise n_ctx_seq, or take fewer"
            )

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Have the batch to oneself for a call; refuse where it is closed, or this process is a fork."""
        self._process.check()
        with self._turn:
            self._check_open()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                self._free_if_over()

    def _check_open(self) -> None:
        if self._closed:
            raise TinyLoraError("the batch is closed: it was, or its model was. Make another one")

    def _free_if_over(self) -> None:
        """Free everything of a closed batch, once no call is left that computes with it."""
        if self._closed and not self._depth:
            self._pool.shutdown()
            self._free()

    def _free(self) -> None:
        for context in self._contexts:
            context.engine.close()
