"""Answers to many prompts at once in ONNX Runtime, as an evaluation asks a batch for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...errors import TinyLoraError
from ...tasks import Completion, Sample
from ...vector import MicroVector
from .generate import Row
from .sampling import Sampling


class BatchModel(Protocol):
    """A loaded model, as far as a batch uses it: `TinyLoraOnnx`."""

    basis: Basis

    @property
    def has_chat_template(self) -> bool:
        """Whether chat messages can be rendered."""

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text."""

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the prompt that chat messages make."""

    def _answer_rows(
        self,
        prompts: Sequence[Sequence[int]],
        vectors: Sequence[MicroVector | None],
        *,
        max_tokens: int,
        sampling: Sampling,
        draws: Sequence[int],
    ) -> list[Row]:
        """Answer several prompts at once, each with its own vector; a row says whether it exploded."""

    def score_batch(
        self,
        prompts: Sequence[Sequence[int]],
        vectors: Sequence[MicroVector | None],
        completions: Sequence[Sequence[int]],
    ) -> list[NDArray[np.float32]]:
        """Return the log-probabilities of given completions, each with its own vector."""


class OnnxBatch:
    """A batch that answers prompts under a micro-vector, some at a time.

    Args:
        llm: a loaded model. Its own vector is left alone.
        sequences: how many run at the same time, each padded to the longest of them.
    """

    def __init__(self, llm: BatchModel, *, sequences: int = 16) -> None:
        self.llm = llm
        self._sequences = sequences
        self._vector: MicroVector | None = None
        self._evaluated = 0
        self._closed = False

    def encode(self, sample: Sample) -> list[int]:
        """Return the token ids of a sample's prompt.

        A text is one message of the user, unless the sample is raw or the model has no chat template.

        Raises:
            VectorError: the chat template does not render the messages.
            TinyLoraError: the batch or the model is closed.
        """
        self._check_open()
        prompt = sample.rendered_by(template=self.llm.has_chat_template)
        return self.llm.tokenize(prompt if isinstance(prompt, str) else self.llm.apply_chat_template(prompt))

    def swap(self, vector: MicroVector | None) -> None:
        """Use another vector from now on; None for the base alone.

        Raises:
            VectorError: it does not fit the basis; the one before stays.
            TinyLoraError: the batch is closed.
        """
        self._check_open()
        if vector is not None:
            self.llm.basis.values(vector)
        self._vector = vector

    def answer(
        self,
        samples: Sequence[Sample],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        answered: Callable[[int], None] = lambda count: None,
    ) -> list[Completion]:
        """Answer the prompt of every sample once.

        Args:
            samples: whose prompts are answered; see `encode`.
            max_tokens: longest answer, in tokens.
            temperature: of sampling from the full distribution; 0 takes the most likely token.
            seed: of the random numbers; two vectors draw with the same ones.
            answered: called with how many more prompts are answered, whenever some that ran together are.

        Raises:
            VectorError: the chat template does not render the messages.
            TinyLoraError: a prompt is empty, or leaves no room in the context; the batch or the model is
                closed.
        """
        (answers,) = self._answer_each([self._vector], samples, max_tokens, temperature, seed, answered)
        return answers

    def answer_each(
        self,
        vectors: Sequence[MicroVector | None],
        samples: Sequence[Sample],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
    ) -> list[list[Completion]]:
        """Answer the prompts of all samples under every vector: rows of one batch, each with its vector.

        The batch's own vector neither counts nor changes.

        Args:
            vectors: None for the base alone.
            samples: whose prompts are answered.
            max_tokens, temperature: as for `answer`.
            seed: of the random numbers, which are the same for every vector.

        Returns:
            Of each vector, its answers in the order of the samples.

        Raises:
            VectorError: the chat template does not render the messages, or a vector does not fit.
            TinyLoraError: a prompt is empty, or leaves no room in the context; the batch or the model is
                closed.
        """
        return self._answer_each(vectors, samples, max_tokens, temperature, seed, lambda rows: None)

    def _answer_each(
        self,
        vectors: Sequence[MicroVector | None],
        samples: Sequence[Sample],
        max_tokens: int,
        temperature: float,
        seed: int | Sequence[int],
        answered: Callable[[int], None],
    ) -> list[list[Completion]]:
        self._check_open()
        tokens = [self.encode(sample) for sample in samples]
        # Little to pad, and the rows of one prompt side by side.
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        rows = [(vector, i) for i in order for vector in range(len(vectors))]
        found: dict[tuple[int, int], Completion] = {}
        for start in range(0, len(rows), self._sequences):
            part = rows[start : start + self._sequences]
            answers = self.llm._answer_rows(
                [tokens[i] for _, i in part],
                [vectors[vector] for vector, _ in part],
                max_tokens=max_tokens,
                sampling=_sampling(temperature, seed),
                draws=[i for _, i in part],
            )
            for (vector, i), row in zip(part, answers, strict=True):
                ended = row.finish_reason == "stop"
                found[vector, i] = Completion(row.text, ended, len(row.tokens) + ended, row.exploded)
                self._evaluated += len(tokens[i]) + len(row.tokens)
            answered(len(part))
        return [[found[vector, i] for i in range(len(samples))] for vector in range(len(vectors))]

    def draw(
        self,
        vector: MicroVector | None,
        samples: Sequence[Sample],
        *,
        max_tokens: int,
        seed: int | Sequence[int] = 0,
    ) -> list[NDArray[np.int32]]:
        """Draw the tokens of an answer to every prompt under a vector, at temperature 1; see `answer_each`.

        The end-of-sequence token is none of them.
        """
        self._check_open()
        tokens = [self.encode(sample) for sample in samples]
        found: list[NDArray[np.int32]] = []
        for start in range(0, len(tokens), self._sequences):
            part = tokens[start : start + self._sequences]
            answers = self.llm._answer_rows(
                part,
                [vector] * len(part),
                max_tokens=max_tokens,
                sampling=_sampling(1.0, seed),
                draws=range(start, start + len(part)),
            )
            found += [row.tokens for row in answers]
        self._evaluated += sum(map(len, tokens)) + sum(map(len, found))
        return found

    def score_each(
        self,
        vectors: Sequence[MicroVector | None],
        samples: Sequence[Sample],
        answers: Sequence[NDArray[np.int32]],
    ) -> list[NDArray[np.float32]]:
        """Return the log-probabilities of what `draw` drew under every vector, at temperature 1.

        Returns:
            Of each vector float32 [tokens of all answers], in the order of the samples.

        Raises:
            VectorError, TinyLoraError: as for `answer_each`.
        """
        self._check_open()
        tokens = [self.encode(sample) for sample in samples]
        given = [answer.tolist() for answer in answers]
        rows = [(vector, i) for vector in range(len(vectors)) for i in range(len(tokens))]
        found: list[list[NDArray[np.float32]]] = [[] for _ in vectors]
        for start in range(0, len(rows), self._sequences):
            part = rows[start : start + self._sequences]
            scored = self.llm.score_batch(
                [tokens[i] for _, i in part], [vectors[v] for v, _ in part], [given[i] for _, i in part]
            )
            for (vector, i), row in zip(part, scored, strict=True):
                found[vector].append(row)
                self._evaluated += len(tokens[i]) + len(row)
        return [np.concatenate(each) for each in found]

    @property
    def evaluated(self) -> int:
        """How many tokens were evaluated since the batch was made, in prompts and answers, padding aside."""
        return self._evaluated

    def close(self) -> None:
        """End the batch. It runs in the model's own engine, which stays open. A second call does nothing."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise TinyLoraError("the batch is closed: make another one of the model")

    def __enter__(self) -> OnnxBatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sampling(temperature: float, seed: int | Sequence[int]) -> Sampling:
    """Return how to draw from the full distribution, with the one number for a seed that a sampler takes."""
    number = seed if isinstance(seed, int) else int(np.random.SeedSequence(seed).generate_state(1)[0])
    return Sampling(temperature, top_k=0, top_p=1.0, min_p=0.0, seed=number)
