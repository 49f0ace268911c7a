"""The tokens of a llama.cpp model: of prompts, as its chat format writes them, of answers, for grammars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import llama_cpp
from llama_cpp import llama_chat_format

from tinylora_edge.errors import TinyLoraError, VectorError
from tinylora_edge.tasks.sample import renders_tools

from ..engine import GrammarTokens

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class LlamaTokenizer:
    """See `Tokenizer`.

    Args:
        llm: a `TinyLoraLlama`.
    """

    def __init__(self, llm: Any) -> None:
        self._llm, self._size = llm, llm.n_vocab()

    @property
    def _vocab(self) -> Any:
        return llama_cpp.llama_model_get_vocab(self._llm.model)  # raises where the model is closed

    # Prompts

    @property
    def has_template(self) -> bool:
        """Whether the model renders chat messages: by a handler, a named format, or its file's template."""
        llm = self._llm  # llama_cpp falls back to "llama-2" where it finds no format
        named = llm.chat_handler is not None or llm.chat_format != "llama-2"
        return named or "tokenizer.chat_template" in llm.metadata

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return list(self._llm.tokenize(text.encode(), special=True))

    @cached_property
    def renders_tools(self) -> bool:
        """See `Tokenizer`."""
        llm = self._llm
        own = llm.chat_handler is None and llm.chat_format == "chat_template.default"
        return own and renders_tools(llm.metadata["tokenizer.chat_template"])

    def encode_messages(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[list[int], list[str]]:
        """Return the tokens of messages, by the model's own chat handler, and the texts that end an answer.

        So training and evaluation have the prompts of `create_chat_completion`.

        Raises:
            VectorError: the template does not render the messages.
            UnicodeEncodeError: a text has half of a surrogate pair.
        """
        llm = self._llm
        if not self.has_template:
            raise VectorError(
                "the model has no chat template, so chat messages cannot be rendered: use text prompts, or "
                "load it with chat_format=..."
            )
        cut = llm.special_tokens.cut
        more = {} if tools is None else {"tools": cut(tools)}
        try:
            handler = (
                llm.chat_handler
                or llm._chat_handlers.get(llm.chat_format)
                or llama_chat_format.get_chat_completion_handler(llm.chat_format)
            )
            handler(llama=_Recorder(llm), messages=cut(messages), **more)
        except _Recorded as recorded:
            return recorded.tokens, recorded.stop
        except (TinyLoraError, UnicodeEncodeError):
            raise
        except Exception as error:  # a template is a program, which may raise anything
            raise VectorError(
                f"the model's chat template does not render these messages: {type(error).__name__}: "
                f"{str(error)[:200]}. Leave out what it refuses: some know no system message"
            ) from error
        raise VectorError(f"chat format {llm.chat_format!r} does not render prompts as text")

    # Answers

    def encode_plain(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return list(self._llm.tokenize(text.encode(), add_bos=False, special=False))

    def ends(self, token: int) -> bool:
        """See `Tokenizer`."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def data(self, token: int) -> bytes:
        """See `Tokenizer`."""
        data: bytes = self._llm.detokenize([token])
        return data

    def detokenizer(self) -> Callable[[int], bytes]:
        """See `Tokenizer`."""
        return self.data

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Tokenizer`."""
        data: bytes = self._llm.detokenize([int(token) for token in tokens])
        return data.decode("utf-8", errors="replace")

    @cached_property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer: a text, a turn or a message."""
        vocab = self._vocab
        return [token for token in range(self._size) if llama_cpp.llama_vocab_is_eog(vocab, token)]

    @property
    def eos_token(self) -> int:
        """See `Tokenizer`."""
        return int(llama_cpp.llama_vocab_eos(self._vocab))

    # Grammars

    @cached_property
    def for_grammars(self) -> LLTokenizer:
        """See `Tokenizer`."""
        from llguidance import LLTokenizer, TokenizerWrapper

        if not self.end_ids:
            raise TinyLoraError(
                "the model has no token that ends an answer, so no answer can keep to a schema"
            )
        tokens = [self.data(token) for token in range(self._size)]
        own = TokenizerWrapper(GrammarTokens(tokens, self.end_ids))
        return LLTokenizer(own, eos_token=self.end_ids)


class _Recorded(Exception):  # noqa: N818 - it carries a result, not an error
    def __init__(self, tokens: list[int], stop: list[str]) -> None:
        self.tokens, self.stop = tokens, stop


class _Recorder:
    """A stand-in for the model while a chat handler renders; it stops the handler where it would generate."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def create_completion(
        self, prompt: list[int] | str, stop: str | list[str] | None = None, **_: Any
    ) -> None:
        tokens = self._llm.tokenize(prompt.encode(), special=True) if isinstance(prompt, str) else prompt
        stops = [stop] if isinstance(stop, str) else stop or []
        raise _Recorded(list(tokens), [each for each in stops if each])
