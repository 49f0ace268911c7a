"""The tokens of a model in ONNX Runtime, as answers and grammars need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ...errors import TinyLoraError
from .genai import TOKENS_NAME, GenaiModel

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class OnnxVocabulary:
    """See `Vocabulary`.

    Args:
        model: whose tokenizer it is.
    """

    def __init__(self, model: GenaiModel) -> None:
        self._model = model
        self.end_ids = sorted(model.eos)

    def ends(self, token: int) -> bool:
        """See `Vocabulary`."""
        return token in self._model.eos

    def data(self, token: int) -> bytes:
        """See `Vocabulary`; a part of a character is U+FFFD, as genai tells no bytes."""
        return self._model.decode([token]).encode()

    def speaker(self) -> Callable[[int], bytes]:
        """See `Vocabulary`."""
        text = self._model.stream()
        return lambda token: text(token).encode()

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Vocabulary`."""
        return self._model.decode(tokens)

    @cached_property
    def longest(self) -> int:
        """See `Vocabulary`."""
        return max(len(self.data(token)) for token in range(self._model.n_vocab))

    def for_grammars(self) -> LLTokenizer:
        """See `Vocabulary`."""
        from llguidance import LLTokenizer

        path = self._model.bundle.folder / TOKENS_NAME
        try:
            return LLTokenizer(path.read_text("utf-8"), n_vocab=self._model.n_vocab, eos_token=self.end_ids)
        except Exception as error:  # of the tokenizer's own library, any of them
            raise TinyLoraError(
                f"llguidance does not read {path}, so that no answer can keep to a schema: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
