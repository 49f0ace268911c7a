"""The engine of batches and pools: sequences over one model's weights, each with an R of its own.

Two classes fill it: `LlamaEngine` over llama.cpp, `OnnxEngine` over ONNX Runtime.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from ..basis import Bases
from ..tasks import Prompt, Sample
from ..tasks.tools import told
from ..vector import MicroVector, Policy

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
        n_ctx: tokens of the longest row.
        chunk: tokens that one `evaluate` should get at most where others wait.
        mixed: rows of different R share one evaluation. Else `evaluate` computes once for each R in it.
        evaluated: tokens since it was made.
    """

    rows: int
    n_ctx: int
    chunk: int
    mixed: bool
    evaluated: int

    def set_r(self, row: int, r: NDArray[np.float32] | None) -> None:
        """Give a row its R, float32 [M, k, k], k up to the baked rank, or None; what it holds stays."""

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
        """Empty a row whose logits were not finite, with its data; return every row that is empty now.

        Rows that share no cells (see `Weights.engine`) stay, unless all of them were like that."""

    def reset(self) -> None:
        """Empty every row."""

    def use(self, n_threads: int) -> None:
        """Compute with so many threads from now on, where the engine can."""

    def close(self) -> None:
        """Free it. Again is fine."""


class Vocabulary(Protocol):
    """The tokens of a model, as answers need them."""

    @property
    def has_template(self) -> bool:
        """Whether the model renders chat messages."""

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer."""

    @property
    def longest(self) -> int:
        """Bytes of the longest token."""

    @property
    def text_end(self) -> int:
        """The token that ends a text without a chat."""

    @property
    def renders_tools(self) -> bool:
        """Whether the template writes tools and their calls in our form."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, special tokens recognized."""

    def encode_messages(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[list[int], list[str]]:
        """Return the tokens of chat messages, and the texts that end an answer; see `Weights.encode`."""

    def plain(self, text: str) -> list[int]:
        """Return the tokens of a text in which special tokens are text."""

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer."""

    def data(self, token: int) -> bytes:
        """Return the bytes of a token by itself; special ones have none."""

    def speaker(self) -> Callable[[int], bytes]:
        """Return a function that gives the bytes that each further token of one answer adds."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""

    @property
    def for_grammars(self) -> LLTokenizer:
        """The tokens as llguidance takes them, read when the first schema comes.

        Raises:
            TinyLoraError: the model has no token that ends an answer, or llguidance does not read them.
        """


class Weights:
    """A loaded model, as far as batches and pools compute with its weights.

    Attributes:
        bases: that vectors may be of.
        policy: what is demanded of their bytes.
        mixed: rows with different vectors share one evaluation of its engines.
    """

    bases: Bases
    policy: Policy
    mixed: bool
    _dependents: WeakSet[Any]  # batches and pools: closed before the model is

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """The model's tokens."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """Tokens of the longest sequence that the model was made for."""

    @property
    @abstractmethod
    def one_engine(self) -> bool:
        """Whether one engine takes all cores, or the GPU; else one a core is quickest."""

    def encode(self, prompt: Prompt | Sample, *, raw: bool = False) -> tuple[list[int], list[str]]:
        """Return the tokens of a prompt, and the texts at which the model's chat format ends an answer.

        Text is one message of the user where the model has a chat template, unless it is raw. Special tokens
        that messages spell are text in them.

        Raises:
            VectorError: chat messages for a model without a template, or that it does not render.
            TrainError: chat messages that are to be raw.
            UnicodeEncodeError: the text has half of a surrogate pair.
        """
        vocabulary, sample = self.vocabulary, Sample.of(prompt, raw=raw)
        rendered = sample.rendered_by(template=vocabulary.has_template)
        if isinstance(rendered, str):
            return vocabulary.encode(rendered), []
        return vocabulary.encode_messages(*told(rendered, sample.tools, own=vocabulary.renders_tools))

    @cached_property
    def turn_end(self) -> int:
        """The token that ends an answer in a chat: what the template writes behind one.

        What an engine calls the end of a turn is a guess where the file does not say it: `<|endoftext|>` in
        SmolLM2, whose answers end with `<|im_end|>`. VectorError: the model has no chat template.
        """
        tokens, _ = self.encode([{"role": role, "content": "x"} for role in ("user", "assistant")])
        ends = [token for token in tokens if self.vocabulary.ends(token)]
        return ends[-1] if ends else self.vocabulary.text_end

    def encode_answer(self, sample: Sample) -> list[int]:
        """Return the tokens of a sample's answer, and the one that ends it: a turn, or a raw text."""
        vocabulary = self.vocabulary
        chat = vocabulary.has_template and not sample.raw
        end = self.turn_end if chat else vocabulary.text_end
        return [*vocabulary.plain(str(sample.answer)), end]

    def r_of(self, vector: MicroVector | None) -> NDArray[np.float32] | None:
        """Return R of a vector, as `Engine.set_r` takes it; a `VectorError` says that it fits no basis."""
        return None if vector is None else self.bases.of(vector).R(vector)

    @abstractmethod
    def engine(self, *, rows: int, n_ctx: int, n_threads: int, cells: int | None = None) -> Engine:
        """Return rows over this model's weights, which `close` closes too.

        Args:
            rows: how many.
            n_ctx: tokens of each.
            n_threads: cores to use. ONNX Runtime has those that the model was loaded with.
            cells: of a cache that the rows share, in llama.cpp. None: each row is computed as if it were
                alone, to the last bit.

        Raises:
            TinyLoraError: the engine cannot make it, or the model is closed.
            BaseMismatchError: the graph is none that answers.
        """

    @abstractmethod
    def _staying(self) -> AbstractContextManager[None]:
        """Keep the model from being closed during a block; a `TinyLoraError` says that it is."""

    @abstractmethod
    def _reading(self) -> AbstractContextManager[None]:
        """Keep the model's tokens from being freed during a block, in any number of threads at once."""
