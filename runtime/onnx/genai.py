"""The tokens of a bundle, by onnxruntime-genai's tokenizer, and what its configuration says of the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # noqa: F401 - genai needs it, and does not name it when it is missing
import onnxruntime_genai as og

from ...documents import read_json
from ...errors import TinyLoraError, VectorError
from ...formats.onnx_graph import GENAI_NAME
from ...limits import TOKENIZER_BYTES
from ..special_tokens import SpecialTokens
from .bundle import OnnxBundle
from .session import SPIN, cannot_load

_TEMPLATE_NAME, _TOKENIZER_NAME = "chat_template.jinja", "tokenizer_config.json"
TOKENS_NAME = "tokenizer.json"

Messages = Sequence[Mapping[str, Any]]
"""Chat messages, each with `role` and `content`."""

if hasattr(og, "disable_telemetry_events"):  # since 0.18
    og.disable_telemetry_events()  # what runs on a device tells nobody


class GenaiModel:
    """A model's tokenizer and configuration, as onnxruntime-genai reads them.

    Args:
        bundle: checked.
        n_ctx: longest sequence in tokens; 0, or more than the model has: the model's own.
        n_threads, session_options: see `TinyLoraOnnx`.

    Attributes:
        bundle: whose graph it is.
        options: of ONNX Runtime's session, as genai_config.json words them.
        head_size: values of a key, in the configuration's words; None where it does not say.
        longest: tokens that the model was made for at most.
        has_chat_template: whether a chat template belongs to the tokenizer.
        n_ctx: longest sequence in tokens.
        n_vocab: entries of the logits.
        eos: tokens that end a sequence.

    Raises:
        FileNotFoundError: there is no genai_config.json.
        TinyLoraError: it is damaged.
        BaseMismatchError: the installed onnxruntime-genai does not read the tokenizer.
    """

    def __init__(
        self,
        bundle: OnnxBundle,
        n_ctx: int,
        n_threads: int | None,
        session_options: Mapping[str, Any] | None,
    ) -> None:
        described = _read_config(bundle)
        self.bundle = bundle
        threads = {} if n_threads is None else {"intra_op_num_threads": n_threads}
        decoder = described.get("decoder", {})
        self.options = {**decoder.get("session_options", {}), **SPIN, **(session_options or {}), **threads}
        self.head_size = decoder.get("head_size")
        self.has_chat_template = _has_chat_template(bundle.folder)
        self.eos = frozenset(map(int, as_list(described.get("eos_token_id"))))
        self.longest = int(described["context_length"])
        self.n_ctx = min(n_ctx, self.longest) if n_ctx > 0 else self.longest
        self.n_vocab = int(described["vocab_size"])
        try:
            self._tokenizer: Any = og.Tokenizer(og.Config(str(bundle.folder)))
        except Exception as error:  # RuntimeError, and OgaError in some releases
            raise cannot_load(bundle, error) from error

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._tokenizer is None

    def close(self) -> None:
        """Free the tokenizer. A second call does nothing."""
        self._tokenizer = None

    def check_open(self) -> None:
        """Raise a `TinyLoraError` where it was closed."""
        if self.closed:
            raise TinyLoraError("the model is closed: load it again")

    def encode(self, prompt: str | Messages | Sequence[int]) -> list[int]:
        """Return the token ids of a text or of chat messages; token ids are passed on.

        Raises:
            VectorError: the chat template does not render the messages.
            UnicodeEncodeError: the text has half of a surrogate pair.
        """
        self.check_open()
        if isinstance(prompt, bytes):
            prompt = prompt.decode()
        if isinstance(prompt, str):
            prompt.encode()  # genai says of half a surrogate pair that it is no str
            return [int(token) for token in self._tokenizer.encode(prompt)]
        if len(prompt) and isinstance(prompt[0], Mapping):
            return self.encode_chat(prompt)  # type: ignore[arg-type]
        return [int(token) for token in prompt]  # type: ignore[arg-type]

    def encode_chat(self, messages: Messages, tools: Any = None) -> list[int]:
        """Return the token ids of chat messages; special tokens that a message spells are text in it.

        Raises:
            VectorError: the chat template does not render the messages.
        """
        parts = self.special_tokens.parts(self.render(self.special_tokens.cut(messages), tools))
        return [token for part in parts for token in self.encode(part)]

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """The texts of the tokenizer's special tokens.

        Raises:
            TinyLoraError: its file is damaged.
        """
        path = self.bundle.folder / TOKENS_NAME
        try:
            tokens = read_json(path, limit=TOKENIZER_BYTES)["added_tokens"]
            return SpecialTokens(each["content"] for each in tokens if each["special"])
        except FileNotFoundError:  # a tokenizer of another kind, which tells no special tokens
            return SpecialTokens(())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TinyLoraError(f"{path} tells no special tokens: {error!r}") from None

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""
        self.check_open()
        text: str = self._tokenizer.decode(np.asarray(tokens, np.int32))
        return text

    def stream(self) -> Callable[[int], str]:
        """Return a function that gives the text that each further token adds."""
        self.check_open()
        decode: Callable[[int], str] = self._tokenizer.create_stream().decode
        return decode

    def render(self, messages: Messages, tools: Any = None) -> str:
        """Return the prompt that the tokenizer's chat template makes of messages.

        Raises:
            VectorError: there is no template, or it refuses the messages.
        """
        self.check_open()
        options: dict[str, Any] = {} if tools is None else {"tools": json.dumps(tools)}
        try:
            text: str = self._tokenizer.apply_chat_template(
                json.dumps([dict(message) for message in messages]), add_generation_prompt=True, **options
            )
        except Exception as error:  # RuntimeError, and OgaError in some releases
            raise VectorError(
                f"the tokenizer's chat template does not render these messages: {error}. Use a text prompt, "
                "or put a chat_template.jinja beside the model"
            ) from error
        return text

    def room(self, tokens: Sequence[int], max_tokens: int | None, what: str = "the prompt") -> int:
        """Return how many tokens may follow a prompt.

        Raises:
            TinyLoraError: the prompt is empty, leaves no room in the context, or has tokens that the model
                lacks.
        """
        if not tokens:
            raise TinyLoraError(f"{what} has no tokens: pass some text")
        free = self.n_ctx - len(tokens)
        if free < 1:
            raise TinyLoraError(
                f"{what} has {len(tokens)} tokens, but the context has {self.n_ctx} and an answer needs at "
                "least one: shorten it, or load the model with a larger n_ctx"
            )
        outside = [token for token in tokens if not 0 <= token < self.n_vocab]
        if outside:
            raise TinyLoraError(f"{what} has the token {outside[0]}, but the model has {self.n_vocab}")
        return min(max_tokens, free) if max_tokens is not None and max_tokens > 0 else free


def as_list(value: Any) -> list[Any]:
    """Return one or several values, or None, as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str | int) else list(value)


def _read_config(bundle: OnnxBundle) -> dict[str, Any]:
    path = bundle.folder / GENAI_NAME
    try:
        content: dict[str, Any] = read_json(path)["model"]
        if not all(isinstance(content[key], int) for key in ("context_length", "vocab_size")):
            raise TypeError("context_length and vocab_size are not both integers")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist: text generation needs what onnxruntime-genai's model builder writes. A "
            "graph alone runs in tinylora_edge.runtime.OnnxSession"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise TinyLoraError(f"{path} is damaged: {error!r}. Export the bundle again") from None
    return content


def _has_chat_template(folder: Path) -> bool:
    """Tell whether onnxruntime-genai finds a chat template: in a file of its own, or in the tokenizer's."""
    if (folder / _TEMPLATE_NAME).exists():
        return True
    try:
        return bool(read_json(folder / _TOKENIZER_NAME).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False  # a tokenizer that cannot be read is the engine's to refuse
