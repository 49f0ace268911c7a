"""The tokens of a llama.cpp model, as answers and grammars need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import llama_cpp

from ...errors import TinyLoraError

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class LlamaVocabulary:
    """See `Vocabulary`.

    Args:
        llm: a `llama_cpp.Llama`.
        model: its `llama_model`.
    """

    def __init__(self, llm: Any, model: Any) -> None:
        self._llm, self._size = llm, llm.n_vocab()
        self._vocab = llama_cpp.llama_model_get_vocab(model)

    def ends(self, token: int) -> bool:
        """See `Vocabulary`."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def data(self, token: int) -> bytes:
        """See `Vocabulary`."""
        data: bytes = self._llm.detokenize([token])
        return data

    def speaker(self) -> Callable[[int], bytes]:
        """See `Vocabulary`."""
        return self.data

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Vocabulary`."""
        data: bytes = self._llm.detokenize([int(token) for token in tokens])
        return data.decode("utf-8", errors="replace")

    @cached_property
    def end_ids(self) -> list[int]:
        """See `Vocabulary`: of a text, of a turn, and of a message."""
        return [token for token in range(self._size) if self.ends(token)]

    @cached_property
    def longest(self) -> int:
        """See `Vocabulary`."""
        return max(len(self.data(token)) for token in range(self._size))

    def for_grammars(self) -> LLTokenizer:
        """See `Vocabulary`."""
        from llguidance import LLTokenizer, TokenizerWrapper

        if not self.end_ids:
            raise TinyLoraError("the model has no token that ends an answer, so none can keep to a schema")
        tokens = [self.data(token) for token in range(self._size)]
        return LLTokenizer(TokenizerWrapper(_Tokens(self._llm, tokens, self.end_ids)), eos_token=self.end_ids)


class _Tokens:
    """The tokens as llguidance takes them: bytes, which special ones have none of."""

    bos_token_id = None

    def __init__(self, llm: Any, tokens: list[bytes], ending: list[int]) -> None:
        self._llm, self.tokens = llm, tokens
        self.eos_token_id, self.special_token_ids = ending[0], ending

    def __call__(self, text: bytes) -> list[int]:
        found: list[int] = self._llm.tokenize(text, add_bos=False, special=False)
        return found
