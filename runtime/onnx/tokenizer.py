"""The tokens of a model in ONNX Runtime: onnxruntime-genai's tokenizer, and what its configuration says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime  # noqa: F401 - genai needs it, and does not name it when it is missing
import onnxruntime_genai as og

from tinylora_edge.errors import TinyLoraError, VectorError
from tinylora_edge.formats.onnx_graph import GENAI_NAME
from tinylora_edge.jsonio import read_json
from tinylora_edge.limits import TOKENIZER_BYTES
from tinylora_edge.tasks.sample import renders_tools

from ..engine import CLOSED, GrammarTokens, SpecialTokens
from .session import cannot_load

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_TEMPLATE_NAME, _TOKENIZER_NAME = "chat_template.jinja", "tokenizer_config.json"
_TOKENS_NAME = "tokenizer.json"

Messages = Sequence[Mapping[str, Any]]
"""Chat messages, each with `role` and `content`."""

og.disable_telemetry_events()  # a device reports nothing to anybody


class OnnxTokenizer:
    """See `Tokenizer`.

    Args:
        folder: of a checked graph; its configuration and tokenizer lie in it.

    Attributes:
        size: entries of the logits.
        context: tokens of the longest sequence that the model was made for.
        head_size: values of a key; None where the configuration does not say.
        has_template: whether a chat template belongs to the tokenizer.
        renders_tools: whether it writes tools and their calls in our form.

    Raises:
        FileNotFoundError: there is no genai_config.json.
        TinyLoraError: it is damaged.
        BaseMismatchError: the installed onnxruntime-genai does not read the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_config()
        self._text = self._template()
        self.has_template, self.renders_tools = self._text is not None, renders_tools(self._text or "")
        try:
            self._tokenizer: Any = og.Tokenizer(og.Config(str(self._folder)))
            self._tokenizer.update_options(add_special_tokens="true")
            self._begin = self._tokens(
                ""
            )  # the tokens that begin every text, as in llama.cpp and transformers
            self._tokenizer.update_options(add_special_tokens="false")
        except Exception as error:  # RuntimeError, and OgaError in some releases
            raise cannot_load(folder, error) from error

    @property
    def open(self) -> Any:
        """The tokenizer of onnxruntime-genai. TinyLoraError: it is closed."""
        if self._tokenizer is None:
            raise TinyLoraError(CLOSED)
        return self._tokenizer

    def close(self) -> None:
        """Free the tokenizer. Again is fine."""
        self._tokenizer = None

    # Prompts

    def encode(self, prompt: str | Messages | Sequence[int]) -> list[int]:
        """Return the token ids of a text or of chat messages; token ids are passed on.

        UnicodeEncodeError: the text has half of a surrogate pair. Others are those of `render`.
        """
        if isinstance(prompt, str):
            return self.tokenize(prompt, special=True)
        if isinstance(prompt, bytes):  # whose items would be taken for tokens
            raise TypeError("a prompt is a str, messages or tokens, and not bytes")
        if len(prompt) and isinstance(prompt[0], Mapping):
            return self.encode_messages(prompt)[0]  # type: ignore[arg-type]
        return [int(token) for token in prompt]  # type: ignore[arg-type]

    def tokenize(self, text: str, *, begin: bool = True, special: bool) -> list[int]:
        """Return a text's tokens, behind those that begin every text unless `begin` is false.

        With `special`, special tokens that the text spells are recognized.
        """
        tokens = self._tokens(text) if special else self.encode_plain(text)
        return [*self._begin, *tokens] if begin else tokens

    def _tokens(self, text: str) -> list[int]:
        text.encode()  # a UnicodeEncodeError for half a surrogate pair: genai's own error is misleading
        return [int(token) for token in self.open.encode(text)]

    def encode_messages(self, messages: Messages, tools: Any = None) -> tuple[list[int], list[str]]:
        """Return the token ids of chat messages; special tokens that a message spells are text in it."""
        cut = self.special_tokens.cut
        parts = self.special_tokens.parts(self.render(cut(messages), tools and cut(tools)))
        return [token for part in parts for token in self._tokens(part)], []

    def render(self, messages: Messages, tools: Any = None) -> str:
        """Return the prompt that the tokenizer's chat template makes of messages.

        VectorError: there is no template, or it does not render the messages.
        """
        options: dict[str, Any] = {} if tools is None else {"tools": json.dumps(tools)}
        tokenizer = self.open
        try:
            text: str = tokenizer.apply_chat_template(
                json.dumps([dict(message) for message in messages]), add_generation_prompt=True, **options
            )
        except Exception as error:  # RuntimeError, and OgaError in some releases
            raise VectorError(
                f"the tokenizer's chat template does not render these messages: {error}. Use a text prompt, "
                "or put a chat_template.jinja beside the model"
            ) from error
        return text

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """The texts of the special tokens. TinyLoraError: their file is damaged."""
        return SpecialTokens(text for _, text, special in self._added if special)

    @cached_property
    def _added(self) -> list[tuple[int, str, bool]]:
        """Id and text of each token beside the vocabulary, and whether it is special."""
        path = self._folder / _TOKENS_NAME
        try:
            tokens = read_json(path, limit=TOKENIZER_BYTES)["added_tokens"]
            return [(each["id"], each["content"], each["special"]) for each in tokens]
        except FileNotFoundError:  # a tokenizer of another kind, which names no special tokens
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TinyLoraError(
                f"{path} is damaged, and names no special tokens: {error!r}. Export the bundle again"
            ) from None

    # Answers

    def encode_plain(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        (message,) = self.special_tokens.cut([{"content": text}])
        parts = self.special_tokens.parts(message["content"])
        return [token for part in parts for token in self._tokens(part)]

    @property
    def eos_token(self) -> int:
        """See `Tokenizer`; a TinyLoraError where the configuration names none."""
        if not self.end_ids:
            raise TinyLoraError(f"{self._folder / GENAI_NAME} does not name a token that ends an answer")
        return self.end_ids[0]

    def ends(self, token: int) -> bool:
        """See `Tokenizer`."""
        return token in self.end_ids

    def data(self, token: int) -> bytes:
        """See `Tokenizer`. A part of a character is U+FFFD, as genai returns text and not bytes."""
        return str(self.open.decode(np.array([token], np.int32))).encode()

    def detokenizer(self, *, special: bool = False) -> Callable[[int], bytes]:
        """See `Tokenizer`. With `special`, special tokens have their texts."""
        stream = self.open.create_stream()
        texts = {token: text.encode() for token, text, own in self._added if own} if special else {}
        return lambda token: texts.get(token) or str(stream.decode(token)).encode()

    def decode(self, tokens: Sequence[int]) -> str:
        """See `Tokenizer`."""
        # Not by genai's own `decode`, which ends at half a character.
        return b"".join(map(self.detokenizer(), map(int, tokens))).decode()

    @cached_property
    def for_grammars(self) -> LLTokenizer:
        """See `Tokenizer`."""
        from llguidance import LLTokenizer, TokenizerWrapper

        path = self._folder / _TOKENS_NAME
        plain = {token: text.encode() for token, text, special in self._added if not special}
        try:
            read = LLTokenizer(path.read_text("utf-8"), n_vocab=self.size, eos_token=self.end_ids, slices=[])
            tokens = [  # llguidance takes added tokens in angle brackets, as `<tool_call>`, for special ones
                plain.get(token, b"") if read.is_special_token(token) else read.decode_bytes([token])
                for token in range(self.size)
            ]
            found = GrammarTokens(tokens, self.end_ids)
            return LLTokenizer(TokenizerWrapper(found), eos_token=self.end_ids)
        except Exception as error:  # of the tokenizer's own library, any of them
            raise TinyLoraError(
                f"llguidance does not read {path}, so that no answer can keep to a schema: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error

    # Files

    def _read_config(self) -> None:
        path = self._folder / GENAI_NAME
        try:
            content = read_json(path)["model"]
            if not all(isinstance(content[key], int) for key in ("context_length", "vocab_size")):
                raise TypeError("context_length and vocab_size are not both integers")
            self.context, self.size = int(content["context_length"]), int(content["vocab_size"])
            ends = content.get("eos_token_id")  # 0 is a token
            self.end_ids = [int(end) for end in ([ends] if isinstance(ends, int) else ends or [])]
            self.head_size: int | None = content.get("decoder", {}).get("head_size")
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} does not exist: text generation needs what onnxruntime-genai's model builder "
                "writes. A graph alone runs in tinylora_edge.runtime.OnnxSession"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TinyLoraError(f"{path} is damaged: {error!r}. Export the bundle again") from None

    def _template(self) -> str | None:
        """Return the chat template that onnxruntime-genai finds: a file, or a part of the tokenizer's."""
        try:
            if (path := self._folder / _TEMPLATE_NAME).exists():
                return path.read_text("utf-8", errors="replace")
            found = read_json(self._folder / _TOKENIZER_NAME).get("chat_template")
            return str(found) if found else None
        except (OSError, ValueError, AttributeError):
            return None  # the engine refuses a tokenizer that cannot be read
