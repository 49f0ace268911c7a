"""The token ids of a prompt, exactly as `create_chat_completion` would evaluate it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import llama_chat_format
from numpy.typing import NDArray

from ...errors import TinyLoraError, VectorError
from ...tasks import Prompt, Sample
from .protocols import Tokens, Weights


def encode(llm: Tokens, prompt: Prompt | Sample, *, raw: bool = False) -> NDArray[np.int32]:
    """Return the token ids of a prompt: int32 [n].

    Chat is the default: text is one message of the user where the model has a chat template. Messages go
    through the model's own chat handler, so that what is trained and measured is what the device will run.
    Special tokens that they spell are text in them.

    Args:
        llm: the model.
        prompt: text, chat messages, or a sample of a task, which says itself whether it is raw.
        raw: the text goes past the chat template.

    Raises:
        VectorError: chat messages for a model without a chat template or `chat_format`, or messages that it
            does not render.
        TrainError: chat messages that are to be raw.
        UnicodeEncodeError: the text has half of a surrogate pair.
    """
    return encode_with_stops(llm, prompt, raw=raw)[0]


def encode_with_stops(
    llm: Tokens, prompt: Prompt | Sample, *, raw: bool = False
) -> tuple[NDArray[np.int32], list[str]]:
    """Return the token ids of a prompt, and the texts at which the model's chat format ends an answer.

    Arguments and errors: see `encode`.
    """
    template = has_template(llm)
    rendered = Sample.of(prompt, raw=raw).rendered_by(template=template)
    if isinstance(rendered, str):
        return np.array(llm.tokenize(rendered.encode(), special=True), np.int32), []
    if not template:
        raise VectorError(
            "the model has no chat template, so chat messages cannot be rendered: use text prompts, or load "
            "it with chat_format=..."
        )
    return encode_messages(llm, rendered)


def encode_messages(
    llm: Tokens, messages: Sequence[Mapping[str, Any]]
) -> tuple[NDArray[np.int32], list[str]]:
    """Return the token ids of chat messages, and the texts at which the model's chat format ends an answer.

    Args:
        llm: the model, which has a template.
        messages: each with `role` and `content`.

    Raises:
        VectorError: the template does not render the messages.
        UnicodeEncodeError: a text has half of a surrogate pair.
    """
    handler = (
        llm.chat_handler
        or llm._chat_handlers.get(llm.chat_format)
        or llama_chat_format.get_chat_completion_handler(llm.chat_format)
    )
    try:
        handler(llama=_Recorder(llm), messages=llm.marks.cut(messages))
    except _Recorded as recorded:
        return np.array(recorded.tokens, np.int32), recorded.stop
    except (TinyLoraError, UnicodeEncodeError):
        raise
    except Exception as error:  # a template is a program of the model's, and raises what it likes
        raise VectorError(
            f"the model's chat template does not render these messages: {type(error).__name__}: "
            f"{str(error)[:200]}. Leave out what it refuses: some know no system message"
        ) from error
    raise VectorError(f"chat format {llm.chat_format!r} does not render prompts as text")


def has_template(llm: Tokens) -> bool:
    """Whether the model renders chat messages: by a handler, a format of its own, or its file's template."""
    # "llama-2" is what llama_cpp falls back to where it found none.
    named = llm.chat_handler is not None or llm.chat_format != "llama-2"
    return named or "tokenizer.chat_template" in llm.metadata


def decode(llm: Tokens, tokens: NDArray[np.int32]) -> str:
    """Return the text of generated tokens, special ones left out."""
    data: bytes = llm.detokenize(tokens.tolist())
    return data.decode("utf-8", errors="replace")


def end_ids(llm: Weights) -> list[int]:
    """Return the ids of all tokens that end an answer: of a text, of a turn, and of a message."""
    vocab = llama_cpp.llama_model_get_vocab(llm.model)
    return [token for token in range(llm.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, token)]


def turn_end(llm: Weights) -> int:
    """Return the id of the token that ends an answer in a chat: what the template writes behind an answer.

    A text ends with another one in some models. What llama.cpp calls the end of a turn is a guess where the
    file does not say it: `<|endoftext|>` in SmolLM2, whose answers end with `<|im_end|>`.

    Raises:
        VectorError: the model has no chat template.
    """
    vocab = llama_cpp.llama_model_get_vocab(llm.model)
    tokens = encode(llm, [{"role": role, "content": "x"} for role in ("user", "assistant")]).tolist()
    ends = [token for token in tokens if llama_cpp.llama_vocab_is_eog(vocab, token)]
    return int(ends[-1] if ends else llama_cpp.llama_vocab_eos(vocab))


class _Recorded(Exception):  # noqa: N818 - it carries a result, not an error
    def __init__(self, tokens: list[int], stop: list[str]) -> None:
        self.tokens = tokens
        self.stop = stop


class _Recorder:
    """A stand-in for the model while a chat handler renders; it stops the handler where it would generate."""

    def __init__(self, llm: Tokens) -> None:
        self._llm = llm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def create_completion(
        self, prompt: list[int] | str, stop: str | list[str] | None = None, **_: Any
    ) -> None:
        tokens = self._llm.tokenize(prompt.encode(), special=True) if isinstance(prompt, str) else prompt
        stops = [stop] if isinstance(stop, str) else stop or []
        raise _Recorded(tokens, [each for each in stops if each])
