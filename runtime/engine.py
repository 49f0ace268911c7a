"""The engine of batches and pools: sequences over one model's weights, each with an R of its own.

Two classes fill it: `LlamaEngine` over llama.cpp, `OnnxEngine` over ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Part(NamedTuple):
    """Tokens to append to a row; `wanted` says of how many of the last ones the logits are wanted."""

    row: int
    tokens: Sequence[int]
    wanted: int = 1


class Engine(Protocol):
    """Rows that are evaluated over a model's weights. One thread uses it at a time.

    Attributes:
        rows: how many there are.
        n_ctx: tokens of the longest row; where rows share their cells, of all of them together.
        n_vocab: entries of the logits.
        chunk: tokens that one `evaluate` should get at most where others wait.
        mixed: rows of different R share one evaluation. Else `evaluate` computes once for each R in it.
        evaluated: tokens since it was made.
    """

    rows: int
    n_ctx: int
    n_vocab: int
    chunk: int
    mixed: bool
    evaluated: int

    def set_r(self, row: int, r: NDArray[np.float32] | None) -> None:
        """Give a row its R, as the model's `r_of` made it; None for the base. What the row holds stays."""

    def evaluate(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        """Append tokens to rows, each of which occurs once.

        Returns:
            float32 [wanted of all parts, vocabulary], in the order of the parts, until the next call. Not
            finite where a row's R is too large for the model.

        Raises:
            TinyLoraError: the engine fails, or is closed; the rows of this call are empty then.
        """

    def length(self, row: int) -> int:
        """Return how many tokens a row holds."""

    def cut(self, row: int, length: int) -> int:
        """Keep the first tokens of a row; return how many: 0 where the model cannot keep a part."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the first tokens of a row those of another one, which loses its own."""

    def purge(self, row: int) -> list[int]:
        """Empty a row whose logits were not finite, with its data; return every row that is empty now."""

    def reset(self) -> None:
        """Empty every row."""

    def use(self, n_threads: int) -> None:
        """Compute with so many threads from now on, where the engine can."""

    def close(self) -> None:
        """Free it. Again is fine."""


class Vocabulary(Protocol):
    """The tokens of a model, as answers need them."""

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer."""

    @property
    def longest(self) -> int:
        """Bytes of the longest token."""

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer."""

    def data(self, token: int) -> bytes:
        """Return the bytes of a token by itself; special ones have none."""

    def speaker(self) -> Callable[[int], bytes]:
        """Return a function that gives the bytes that each further token of one answer adds."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""

    def for_grammars(self) -> LLTokenizer:
        """Return the tokens as llguidance takes them.

        Raises:
            TinyLoraError: the model has no token that ends an answer, or llguidance does not read them.
        """
