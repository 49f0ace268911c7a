"""Batches of prompts in llama.cpp: rollouts, evaluation and tuning answer and score through here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...system import cores
from ...tasks import Completion, Sample
from ...vector import MicroVector
from .lane import Generation, Given, Job, Lane, reader_of
from .personalizer import Personalizer
from .prompts import decode, encode
from .protocols import Weights
from .token_batch import TokenBatch, check_type, split

J = TypeVar("J")
T = TypeVar("T")

__all__ = ["Batch", "Generation", "batch_for", "cores"]


class Batch(TokenBatch):
    """A batch that answers prompts as texts, under its own vector or under many.

    Arguments and errors: see `TokenBatch`.
    """

    def answer(
        self,
        samples: Sequence[Sample],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        answered: Callable[[int], None] = lambda count: None,
    ) -> list[Completion]:
        """Answer the prompt of every sample once, as texts.

        Args:
            samples: whose prompts are answered.
            max_tokens, temperature, seed: as for `generate`.
            answered: called with how many more prompts are answered, in a thread of the batch.

        Raises:
            VectorError: as for `generate` and `encode`.
        """
        with self._computing():
            tokens = self._prompts(samples)
            found = self.generate(
                tokens,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                ended=lambda: answered(1),
            )
            return [self._completion(generation) for generation in found]

    def answer_each(
        self,
        vectors: Sequence[MicroVector | None],
        samples: Sequence[Sample],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
    ) -> list[list[Completion]]:
        """Answer the prompts of all samples under every vector, a vector a lane.

        Every vector's answers are drawn with the same random numbers. What the prompts share is evaluated
        once a vector. The batch's own vector neither counts nor changes.

        Args:
            vectors: None for the base alone.
            samples: whose prompts are answered.
            max_tokens, temperature, seed: as for `generate`.

        Returns:
            Of each vector, its answers in the order of the samples.

        Raises:
            VectorError: as for `generate` and `encode`, or a vector does not fit the basis.
        """
        for vector in vectors:
            check_type(vector)
        with self._computing() as personalizer:
            if not samples:
                return [[] for _ in vectors]
            return self._answer_each(
                personalizer, vectors, self._prompts(samples), max_tokens, temperature, seed
            )

    def _answer_each(
        self,
        personalizer: Personalizer,
        vectors: Sequence[MicroVector | None],
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        temperature: float,
        seed: int | Sequence[int],
    ) -> list[list[Completion]]:
        self._check(prompts, max_tokens)
        shape = len(prompts), 1, max_tokens
        uniform = np.random.default_rng(seed).random(shape) if temperature else np.zeros(shape)
        numbered = list(enumerate(prompts))

        def share(lanes: int) -> list[Job]:
            parts = [
                numbered[part.start : part.stop] for part in split(len(prompts), min(lanes, len(prompts)))
            ]
            return [Job(part, range(1), max_tokens, temperature, uniform) for part in parts]

        found = []
        for done in self._run_each(personalizer, vectors, Lane.run, share):
            answers = {key: generation for part in done for key, generation in part.items()}
            found.append([self._completion(answers[index, 0]) for index in range(len(prompts))])
        return found

    def _run_each(
        self,
        personalizer: Personalizer,
        vectors: Sequence[MicroVector | None],
        work: Callable[[Lane, J], T],
        share: Callable[[int], list[J]],
    ) -> list[list[T]]:
        """Do the same under every vector, as many of them side by side as there are lanes.

        Args:
            personalizer: of the batch, whose own vector is in force again afterwards.
            vectors: None for the base alone.
            work: what a lane does with a job.
            share: makes the jobs of one vector, at most so many: the last vectors may have more lanes each.

        Returns:
            Of each vector, what came of each of its jobs.
        """
        contexts = [lane.context for lane in self._lanes]
        found: list[list[T]] = []
        try:
            for start in range(0, len(vectors), len(contexts)):
                wave = vectors[start : start + len(contexts)]
                jobs = share(len(contexts) // len(wave))
                each = len(jobs)
                personalizer.spread(contexts[: each * len(wave)], [v for v in wave for _ in jobs], self._own)
                done = self._run(work, jobs * len(wave))
                found += [done[first : first + each] for first in range(0, len(done), each)]
        finally:
            personalizer.apply(contexts, self.vector, self._own)
        return found

    def draw(
        self,
        vector: MicroVector | None,
        samples: Sequence[Sample],
        *,
        max_tokens: int,
        seed: int | Sequence[int] = 0,
    ) -> list[NDArray[np.int32]]:
        """Draw the tokens of an answer to every prompt under a vector, at temperature 1; see `answer`."""
        with self._computing(), self._under(vector):
            found = self.generate(self._prompts(samples), max_tokens=max_tokens, temperature=1.0, seed=seed)
        return [generation.tokens for generation in found]

    def score_each(
        self,
        vectors: Sequence[MicroVector | None],
        samples: Sequence[Sample],
        answers: Sequence[NDArray[np.int32]],
    ) -> list[NDArray[np.float32]]:
        """Return the log-probabilities of what `draw` drew under every vector, at temperature 1.

        Returns:
            Of each vector float32 [tokens of all answers], in the order of the samples. NaN where its logits
            are not finite.

        Raises:
            VectorError: as for `score`, or a vector does not fit the basis.
        """
        found = []
        with self._computing():
            prompts = self._prompts(samples)
            for vector in vectors:
                with self._under(vector):
                    rows = self.score(prompts, [[answer.tolist()] for answer in answers])
                found.append(np.concatenate([row for (row,) in rows]))
        return found

    def score_under(
        self,
        vectors: Sequence[MicroVector | None],
        prompt: Sequence[int],
        answers: Sequence[Sequence[int]],
        *,
        temperature: float = 1.0,
    ) -> list[list[NDArray[np.float32]]]:
        """Return the log-probabilities of answers to a prompt under every vector, a vector a lane.

        The batch's own vector neither counts nor changes.

        Args:
            vectors: None for the base alone.
            prompt: token ids.
            answers: token ids of each, none of them empty.
            temperature: above 0; of the distribution softmax(logits / temperature).

        Returns:
            Of each vector, for each answer: float32 [n], natural logarithms, one a token. NaN where the
            model's logits are not finite: the vector is too large.

        Raises:
            VectorError: as for `score`, or a vector does not fit the basis.
        """
        for vector in vectors:
            check_type(vector)
        given = Given([(0, prompt)], [answers], reader_of([answers], temperature))
        with self._computing() as personalizer:
            self._check_given([prompt], [answers])
            done = self._run_each(personalizer, vectors, Lane.score, lambda _: [given])
        return [[np.array(rows[0, n], np.float32) for n in range(len(answers))] for (rows,) in done]

    def _prompts(self, samples: Sequence[Sample]) -> list[list[int]]:
        return [encode(self.llm, sample).tolist() for sample in samples]

    @contextmanager
    def _under(self, vector: MicroVector | None) -> Iterator[None]:
        """Use a vector for a block, and then the batch's own again."""
        before = self.vector
        self.swap(vector)
        try:
            yield
        finally:
            if not self._closed:
                self.swap(before)

    def _completion(self, generation: Generation) -> Completion:
        text = decode(self.llm, generation.tokens)
        return Completion(text, generation.ended, len(generation.tokens), generation.exploded)


def batch_for(
    llm: Weights,
    samples: Sequence[Sample],
    max_tokens: int,
    *,
    sequences: int = 32,
    n_threads: int | None = None,
) -> Batch:
    """Return a batch with room for `max_tokens` after each of the samples' prompts.

    Raises:
        TinyLoraError: llama.cpp cannot make the context.
    """
    longest = max(len(encode(llm, sample)) for sample in samples)
    return Batch(llm, n_ctx_seq=longest + max_tokens, sequences=sequences, n_threads=n_threads)
