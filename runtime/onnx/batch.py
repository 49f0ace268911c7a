"""Answers to many prompts at once in ONNX Runtime, as an evaluation asks a batch for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...basis import Basis
from ...errors import TinyLoraError, VectorError
from ...tasks import Completion, Sample
from ...vector import MicroVector
from .generate import Read, Row
from .sampling import Sampling, likeliest, logprobs, pairs, whole


class BatchModel(Protocol):
    """A loaded model, as far as a batch uses it: `TinyLoraOnnx`."""

    basis: Basis

    @property
    def has_chat_template(self) -> bool:
        """Whether chat messages can be rendered."""

    def tokenize(self, prompt: str | Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of a text or of chat messages."""

    def _answer_rows(
        self,
        prompts: Sequence[Sequence[int]],
        vectors: MicroVector | Sequence[MicroVector | None] | None,
        *,
        max_tokens: int,
        sampling: Sampling,
        draws: Sequence[int],
    ) -> list[Row]:
        """Answer several prompts at once, each with its own vector or all with one."""

    def _read_rows(
        self,
        prompts: Sequence[Sequence[int]],
        vectors: MicroVector | Sequence[MicroVector | None] | None,
        completions: Sequence[Sequence[int]],
        read: Read,
    ) -> list[list[Any]]:
        """Return for each prompt what is read wherever a token of its completion stands."""


@dataclass(frozen=True)
class Drawn:
    """One sequence that was generated.

    Attributes:
        tokens: int32 [n], with the end-of-sequence token where there was one.
        ended: it ended by itself, within the limit.
        exploded: it ended where the logits were no longer finite, because the vector is too large.
    """

    tokens: NDArray[np.int32]
    ended: bool
    exploded: bool


class OnnxBatch:
    """A batch that answers prompts under a micro-vector, some at a time.

    Args:
        llm: a loaded model. Its own vector is left alone.
        sequences: how many run at the same time, each padded to the longest of them.

    Attributes:
        lanes: 0, for nothing that prompts share is evaluated once for several of them.
    """

    lanes = 0

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
        return self.llm.tokenize(prompt)

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
                sampling=Sampling.full(temperature, seed),
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
        return [row.tokens for row in self._continue(tokens, vector, max_tokens, Sampling.full(1.0, seed))]

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
        count = len(tokens)
        read = self._read(
            tokens * len(vectors),
            [vector for vector in vectors for _ in range(count)],
            [answer.tolist() for answer in answers] * len(vectors),
            lambda i, at, logits: logprobs(logits, answers[i % count][at]),
        )
        rows = [whole(found, answers[i % count]) for i, found in enumerate(read)]
        return [np.concatenate(rows[v * count : (v + 1) * count]) for v in range(len(vectors))]

    # Token sequences under the batch's own vector

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
    ) -> list[Drawn]:
        """Continue every prompt once.

        Args:
            prompts: token ids.
            max_tokens, temperature, seed: as for `answer`, as are the errors.
        """
        self._check_open()
        rows = self._continue(prompts, self._vector, max_tokens, Sampling.full(temperature, seed))
        ends = [[] if row.end is None else [row.end] for row in rows]
        return [
            Drawn(np.append(row.tokens, end).astype(np.int32), bool(end), row.exploded)
            for row, end in zip(rows, ends, strict=True)
        ]

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[Sequence[int]]],
        *,
        among: Sequence[Sequence[NDArray[np.int32]]] | None = None,
    ) -> list[list[NDArray[np.float32]]]:
        """Return the log-probabilities of given completions, or of other tokens in their places.

        Args:
            prompts: token ids.
            completions: for each prompt the token ids of its completions.
            among: for each prompt, for each of its completions int32 [n, k]: score these tokens in the place
                of the completion's own, k of them wherever one of its tokens stands.

        Returns:
            For each prompt, for each of its completions: float32 [n], natural logarithms; with `among`
            float32 [n, k]. NaN from where the logits are not finite: the vector is too large.

        Raises:
            VectorError: a completion is empty; as many lists of completions as prompts are needed, and of
                `among` as many rows as tokens.
            TinyLoraError: as for `answer`.
        """
        own = [[np.array(tokens, np.int32) for tokens in each] for each in completions]
        wanted = own if among is None else among
        if [list(map(len, each)) for each in wanted] != [list(map(len, each)) for each in own]:
            raise VectorError("every completion needs as many rows of other tokens (among) as it has tokens")
        flat = [tokens for each in wanted for tokens in each]
        found = self._read_all(prompts, completions, lambda i, at, logits: logprobs(logits, flat[i][at]))
        rows = map(whole, found, flat)
        return [[next(rows) for _ in each] for each in completions]

    def likeliest(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]], count: int
    ) -> list[list[tuple[NDArray[np.int32], NDArray[np.float32]]]]:
        """Return which tokens are the likeliest wherever a token of a given completion stands.

        Args:
            prompts, completions: as for `score`.
            count: tokens a place, at most those of the vocabulary.

        Returns:
            For each prompt, for each of its completions: the tokens, int32 [n, count], and their
            log-probabilities, float32 [n, count]. NaN from where the logits are not finite.

        Raises:
            VectorError, TinyLoraError: as for `score`.
        """

        def read(_: int, __: int, logits: NDArray[np.float32]) -> Any:
            tokens = likeliest(logits, count).astype(np.int32)
            return tokens, logprobs(logits, tokens)

        found = iter(self._read_all(prompts, completions, read))
        return [[pairs(next(found), len(tokens), count) for tokens in each] for each in completions]

    def _continue(
        self, prompts: Sequence[Sequence[int]], vector: MicroVector | None, max_tokens: int, how: Sampling
    ) -> list[Row]:
        found: list[Row] = []
        for start in range(0, len(prompts), self._sequences):
            part = prompts[start : start + self._sequences]
            found += self.llm._answer_rows(
                part,
                vector,
                max_tokens=max_tokens,
                sampling=how,
                draws=range(start, start + len(part)),
            )
        self._evaluated += sum(map(len, prompts)) + sum(len(row.tokens) for row in found)
        return found

    def _read_all(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]], read: Read
    ) -> list[list[Any]]:
        if len(completions) != len(prompts):
            raise VectorError(
                f"{len(prompts)} prompts need as many lists of completions, not {len(completions)}"
            )
        pairs = [(p, tokens) for p, each in enumerate(completions) for tokens in each]
        for p, tokens in pairs:
            if not len(tokens):
                raise VectorError(f"a completion of prompt {p} is empty")
        return self._read([prompts[p] for p, _ in pairs], self._vector, [tokens for _, tokens in pairs], read)

    def _read(
        self,
        prompts: Sequence[Sequence[int]],
        vectors: MicroVector | Sequence[MicroVector | None] | None,
        completions: Sequence[Sequence[int]],
        read: Read,
    ) -> list[list[Any]]:
        """Evaluate completions, some at a time, those of alike prompts together: little to pad."""
        self._check_open()
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: dict[int, list[Any]] = {}
        for start in range(0, len(order), self._sequences):
            part = order[start : start + self._sequences]
            rows = self.llm._read_rows(
                [prompts[i] for i in part],
                [vectors[i] for i in part] if isinstance(vectors, Sequence) else vectors,
                [completions[i] for i in part],
                lambda row, at, logits, part=part: read(part[row], at, logits),  # type: ignore[misc]
            )
            found.update(zip(part, rows, strict=True))
            self._evaluated += sum(len(prompts[i]) + len(completions[i]) for i in part)
        return [found[i] for i in range(len(prompts))]

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
