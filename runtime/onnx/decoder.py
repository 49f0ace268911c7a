"""One sequence in onnxruntime-genai: its KV cache, and what a next prompt can use of it."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from .genai import GenaiModel
from .generator import Feed, append_prompt, new_generator
from .sampling import Sampler


class Decoder:
    """A sequence that is evaluated with one vector; another vector takes another decoder.

    Args:
        model: the decoder's model.
        feed: the vector.
    """

    def __init__(self, model: GenaiModel, feed: Feed) -> None:
        self._model, self._feed = model, feed
        self._forget()

    def close(self) -> None:
        """Free the KV cache."""
        self._forget()

    def _forget(self) -> None:
        self._generator = None
        self._evaluated: list[int] = []  # tokens whose keys and values the generator holds

    def tokens(
        self, prompt: Sequence[int], sampler: Sampler, max_tokens: int | None
    ) -> Generator[int, None, str]:
        """Yield the tokens that follow a prompt, and return why they ended: `stop` or `length`.

        Raises:
            TinyLoraError: the prompt is empty, or leaves no room in the context; the model is closed, which
                a sequence that was begun before notices at its next step.
        """
        room = self._model.room(prompt, max_tokens)
        logits = self._prefill(list(prompt))
        tokens = list(prompt)
        for left in range(room, 0, -1):
            token = sampler(logits, tokens)
            if token in self._model.eos:
                return "stop"
            yield token
            self._model.check_open()
            tokens.append(token)
            if left > 1:
                logits = self._append([token])
        return "length"

    def _prefill(self, tokens: list[int]) -> NDArray[np.float32]:
        """Evaluate a prompt, but for what it has in common with what is evaluated already."""
        shared = _common_prefix(self._evaluated, tokens[:-1])
        if self._generator is not None and 0 < shared < len(self._evaluated):
            try:
                self._generator.rewind_to(shared)
            except Exception:  # some caches cannot go back
                shared = 0
        if not shared:
            self._forget()
            self._generator = new_generator(self._model, self._feed, max_length=self._model.n_ctx)
        self._evaluated = self._evaluated[:shared]
        return self._append(tokens[shared:])

    def _append(self, tokens: list[int]) -> NDArray[np.float32]:
        """Evaluate tokens; return the logits after them: float32 [vocabulary]."""
        generator = self._generator
        try:
            append_prompt(generator, tokens, self._model.pad)
        except BaseException:
            self._forget()  # what the cache holds now is not known
            raise
        self._evaluated.extend(tokens)
        logits: NDArray[np.float32] = generator.get_logits().reshape(-1)  # type: ignore[attr-defined]
        return logits


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    differs = (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    return next(differs, min(len(left), len(right)))
