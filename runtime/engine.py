"""What an engine fills: rows of tokens over one model's weights, each with an R of its own, and a tokenizer.

`LlamaEngine` does it over llama.cpp, `OnnxEngine` over ONNX Runtime. A `Loop` owns an engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import TinyLoraError

if TYPE_CHECKING:
    from llguidance import LLTokenizer


INSIDE = "this is a callback of a generation, which would wait for itself: do this after it has ended"
CLOSED = "the model is closed: load it again"


class Process:
    """The process of an engine: a fork of it has none of the engine's threads, and would hang."""

    _getpid = staticmethod(os.getpid)  # bound early: when the interpreter ends, globals go before models do

    def __init__(self) -> None:
        self._id = self._getpid()

    @property
    def forked(self) -> bool:
        """Whether this is another process, which was forked since."""
        return self._getpid() != self._id

    def check(self) -> None:
        """Raise a `TinyLoraError` in a fork."""
        if self.forked:
            raise TinyLoraError(
                f"the model was loaded in process {self._id}, and this is {self._getpid()}, which was forked "
                "from it without the engine's threads: load the model after the fork, or start processes "
                "with multiprocessing's `spawn`"
            )


class Part(NamedTuple):
    """Tokens to append to a row; `wanted` says of how many of the last ones the logits are wanted."""

    row: int
    tokens: Sequence[int]
    wanted: int = 1


class Engine(Protocol):
    """Rows that are evaluated over a model's weights. One thread uses it at a time.

    Attributes:
        rows: how many there are.
        n_ctx: tokens of the longest row.
        chunk: tokens that one `evaluate` should get at most where others wait.
        mixed: rows of different R share one evaluation.
        exact: each row is computed as if it were alone, to the last bit.
        evaluated: tokens since it was made.
    """

    rows: int
    n_ctx: int
    chunk: int
    mixed: bool
    exact: bool
    evaluated: int

    def set_r(self, row: int, r: NDArray[np.float32] | None) -> None:
        """Give a row its R, float32 [M, k, k], k up to the baked rank, or None; what it holds stays."""

    def evaluate(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        """Append tokens to rows, each of which occurs once.

        Returns:
            float32 [wanted of all parts, vocabulary], in the order of the parts, until the next call.

        Raises:
            TinyLoraError: the engine fails, or is closed; the rows of this call are empty then.
        """

    def length(self, row: int) -> int:
        """Return how many tokens a row holds."""

    def cut(self, row: int, length: int) -> int:
        """Keep the first tokens of a row; return how many: 0 where the model cannot keep a part."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first tokens of a row those of another one, which loses its own."""

    def purge(self, row: int) -> None:
        """Empty a row whose logits were not finite, and those that share memory with it."""

    def use(self, n_threads: int) -> None:
        """Compute with so many threads from now on, where the engine can."""

    def close(self) -> None:
        """Free it. Again is fine."""


class Tokenizer(Protocol):
    """The tokenizer of a model, with its chat template."""

    @property
    def has_template(self) -> bool:
        """Whether the model renders chat messages."""

    @property
    def longest_token(self) -> int:
        """Bytes of the longest token."""

    @property
    def eos_token(self) -> int:
        """The token that ends a text without a chat."""

    @property
    def renders_tools(self) -> bool:
        """Whether the template writes tools and their calls in our form."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, special tokens recognized."""

    def encode_messages(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[list[int], list[str]]:
        """Return the tokens of chat messages, and the texts that end an answer."""

    def encode_plain(self, text: str) -> list[int]:
        """Return the tokens of a text in which special tokens are text."""

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer."""

    def data(self, token: int) -> bytes:
        """Return the bytes of a token by itself; special ones have none."""

    def detokenizer(self) -> Callable[[int], bytes]:
        """Return a function that gives the bytes that each further token of one answer adds."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""

    @property
    def for_grammars(self) -> LLTokenizer:
        """The tokens as llguidance takes them, read when the first schema comes.

        Raises:
            TinyLoraError: the model has no token that ends an answer, or llguidance does not read them.
        """
