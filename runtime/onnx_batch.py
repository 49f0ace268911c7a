"""Many prompts at once in ONNX Runtime: what an evaluation asks of a batch."""

from __future__ import annotations

from collections.abc import Sequence

from .._vector import MicroVector
from ..tasks import Completion, Sample
from .onnx import TinyLoraOnnx


class OnnxBatch:
    """Answers prompts under a micro-vector, some at a time.

    Args:
        llm: a loaded model. Its own vector is left alone.
        sequences: that run at the same time, each padded to the longest of them.
    """

    def __init__(self, llm: TinyLoraOnnx, *, sequences: int = 16) -> None:
        self.llm = llm
        self._sequences = sequences
        self._vector: MicroVector | None = None

    def swap(self, vector: MicroVector | None) -> None:
        """Use another vector from now on; None for the base alone.

        Raises:
            VectorError: it does not fit the basis; the one before stays.
        """
        if vector is not None:
            self.llm.basis.values(vector)
        self._vector = vector

    def answer(
        self, samples: Sequence[Sample], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Completion]:
        """Answer the prompt of every sample once, as texts.

        Args:
            samples: whose prompts are answered.
            max_tokens: of each answer.
            temperature: of sampling from the full distribution; 0 takes the most likely token.
            seed: of the random numbers; two vectors draw with the same ones.

        Raises:
            VectorError: the chat template does not render the messages.
            TinyLoraError: a prompt is empty, or leaves no room in the context.
        """
        tokens = [self._encode(sample) for sample in samples]
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))  # little to pad
        found: dict[int, Completion] = {}
        for start in range(0, len(order), self._sequences):
            chosen = order[start : start + self._sequences]
            rows = self.llm.generate_batch(
                [tokens[i] for i in chosen],
                self._vector,
                max_tokens=max_tokens,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                min_p=0.0,
                seed=seed + start,
            )
            for i, row in zip(chosen, rows, strict=True):
                ended = row.finish_reason == "stop"
                found[i] = Completion(row.text, ended, len(row.tokens) + ended)
        return [found[i] for i in range(len(samples))]

    def _encode(self, sample: Sample) -> list[int]:
        prompt = sample.prompt
        return self.llm.tokenize(prompt if isinstance(prompt, str) else self.llm.apply_chat_template(prompt))
