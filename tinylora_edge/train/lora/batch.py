"""A batch of the deployed engine in which a LoRA takes the place of a vector."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from ...runtime.evaluation import Answered
from ...runtime.llama.batch import Batch, Generation
from ...runtime.llama.lora import LoraImage, free
from ...tasks import Completion, Sample
from ...vector import MicroVector
from .shape import LoraShape


class LoraBatch:
    """A batch that answers and draws under a LoRA, whose numbers come as a vector.

    It does what a `Batch` does for rollouts and evaluation. A swap loads an adapter from memory.

    Args:
        batch: over the deployed model, or over a copy of it in another type; it must outlive this one.
        shape: of the numbers. Its modules are among those of the model's basis.
    """

    def __init__(self, batch: Batch, shape: LoraShape) -> None:
        self._batch, self._shape = batch, shape
        self._adapter: Any = None

    def swap(self, vector: MicroVector | None) -> None:
        """Use other numbers from now on; None for the base alone."""
        adapter = None
        if vector is None:
            self._batch.swap(None)
        else:
            pairs = self._shape.pairs(vector.values)
            adapter = LoraImage(self._shape.architecture, pairs).load(self._batch.llm.model)
            try:
                self._batch.attach(adapter)
            except BaseException:
                free(adapter)
                raise
        before, self._adapter = self._adapter, adapter
        if before is not None:
            free(before)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        max_tokens: int,
        temperature: float,
        seed: Sequence[int],
    ) -> list[Generation]:
        """Continue every prompt `samples` times, as `Batch.generate` does."""
        return self._batch.generate(
            prompts, samples=samples, max_tokens=max_tokens, temperature=temperature, seed=seed
        )

    def answer(
        self,
        samples: Sequence[Sample],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        answered: Answered = lambda count: None,
    ) -> list[Completion]:
        """Answer the prompt of every sample once, as `Batch.answer` does."""
        return self._batch.answer(
            samples, max_tokens=max_tokens, temperature=temperature, seed=seed, answered=answered
        )

    def close(self) -> None:
        """Free the adapter; the batch stays, with the base alone."""
        self.swap(None)

    def __enter__(self) -> LoraBatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
