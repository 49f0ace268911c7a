"""What each engine implements: rows of tokens over a model's weights, each row with its R; and a tokenizer.

`LlamaEngine` runs llama.cpp, `OnnxEngine` ONNX Runtime. `Weights` makes an engine, and a `Loop` owns it.
`SpecialTokens` keeps messages from spelling what only a chat template may write.
"""

from __future__ import annotations

import re
import secrets
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, AnyStr, NamedTuple, Protocol
from weakref import WeakSet, finalize

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.basis import Bases
from tinylora_edge.errors import TinyLoraError
from tinylora_edge.tasks import Prompt, Sample
from tinylora_edge.tasks.sample import template_input
from tinylora_edge.vector import AdmittedVector, MicroVector, Policy

if TYPE_CHECKING:
    from llguidance import LLTokenizer

CLOSED = "the model is closed: load it again"


def check_alive(threads: Iterable[threading.Thread]) -> None:
    """Raise a TinyLoraError in a fork, which has none of the threads that compute."""
    if not all(thread.is_alive() for thread in threads):
        raise TinyLoraError("this process is a fork, without the model's threads: load the model in it")


class Part(NamedTuple):
    """Tokens to append to a row. Logits are wanted behind the last `wanted` of them."""

    row: int
    tokens: Sequence[int]
    wanted: int = 1


class Engine(Protocol):
    """Rows that are evaluated over a model's weights. One thread uses it at a time.

    Attributes:
        rows: how many there are.
        n_ctx: tokens of the longest row.
        chunk: prompts are cut at multiples of so many tokens.
        evaluated: tokens since it was made.
    """

    rows: int
    n_ctx: int
    chunk: int
    evaluated: int

    def set_r(self, row: int, r: NDArray[np.float32] | None) -> None:
        """Give a row its R, float32 [M, p, q], p and q at most those of the factors; None: the base. The
        row's tokens stay."""

    def evaluate(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        """Append tokens to one row or more, each of which occurs once.

        Returns:
            float32 [wanted of all parts, vocabulary], in the order of the parts, until the next call.

        TinyLoraError: the engine fails, or is closed; the rows of this call are empty then.
        """

    def length(self, row: int) -> int:
        """Return how many tokens a row holds."""

    def cut(self, row: int, length: int) -> int:
        """Keep at most the first `length` tokens of a row; return how many it kept: 0 where the model cannot
        keep a part."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Replace what the target row holds by the first `length` tokens of the source row."""

    def purge(self, row: int) -> None:
        """Empty a row whose logits were not finite, so that nothing of them is left in its memory."""

    def close(self) -> None:
        """Free it. Again is fine."""


def is_exact(engine: Engine, r: NDArray[np.float32]) -> bool:
    """Return whether rows that generate have the same logits alone and beside others, bit for bit: that
    depends on the processor's kernels. The rows are empty before; they are not afterwards.

    Args:
        engine: for this alone.
        r: R of all rows, as for `Engine.set_r`. It must be as large as the model's own weights: what differs
            in the last bit is often lost where engines round what the next module reads to 8 bits.
    """
    prompt, tokens = [1, 2, 3, 4], [5, 6, 7]
    alone = list[bytes]()
    for rows in sorted({1, 2, 3, 7, engine.rows}):
        if rows > engine.rows:
            break
        for row in range(rows):
            if engine.cut(row, len(prompt)) < len(prompt):
                engine.cut(row, 0)
                engine.set_r(row, r)
                engine.evaluate([Part(row, prompt)])
        for number, token in enumerate(tokens):
            logits = engine.evaluate([Part(row, [token]) for row in range(rows)])
            alone += [logits[0].tobytes()] if rows == 1 else []
            if any(row.tobytes() != alone[number] for row in logits):
                return False
    return True


class Tokenizer(Protocol):
    """The tokenizer of a model, with its chat template."""

    @property
    def has_template(self) -> bool:
        """Whether the model renders chat messages."""

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
        """Return a function for one answer: it returns the bytes that each next token adds to the text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""

    @property
    def for_grammars(self) -> LLTokenizer:
        """The tokens as llguidance takes them, read when the first schema comes.

        TinyLoraError: the model has no token that ends an answer, or llguidance does not read them.
        """


class GrammarTokens:
    """The tokens of a model as llguidance takes them: their bytes, and none for special ones."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], ends: list[int]) -> None:
        self.tokens, self.eos_token_id, self.special_token_ids = tokens, ends[0], ends

    def __call__(self, text: bytes) -> list[int]:
        """Never called: llguidance tokenizes texts that it forces, and our grammars force none."""
        raise NotImplementedError


class SpecialTokens:
    """The texts of a model's special tokens; where a message spells one, it stays text.

    A rendered prompt does not show who wrote `<|im_end|>`: the template, or a user, who would end their turn
    with it and could begin the system's. So a seam is put into each such text in a message before the
    template is rendered, and the rendered prompt is cut at the seams and tokenized in parts. No part has a
    whole special token but those of the template. A message without special tokens has its usual tokens.

    Args:
        texts: of the special tokens.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        # A single character cannot be cut.
        spelled = sorted(re.escape(text) for text in texts if len(text) > 1)
        # A look-ahead takes no characters, so that special tokens that overlap are all found.
        self._begins = re.compile(f"(?={'|'.join(spelled)})") if spelled else None
        self._seam = secrets.token_hex(16)  # nobody can guess it, and templates do not change it

    def cut(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages with a seam in every special token that they spell; see `parts`."""
        return [self._cut(dict(message)) for message in messages]

    def parts(self, rendered: AnyStr) -> list[AnyStr]:
        """Return the parts of a rendered prompt, each to be tokenized alone: one where nothing was cut."""
        return rendered.split(self._seam if isinstance(rendered, str) else self._seam.encode())

    def _cut(self, value: Any) -> Any:
        if isinstance(value, str) and self._begins is not None:
            places = [0, *(found.start() + 1 for found in self._begins.finditer(value)), len(value)]
            return self._seam.join(value[a:b] for a, b in pairwise(places))
        if isinstance(value, Mapping):
            return {
                self._cut(key): self._cut(each) for key, each in value.items()
            }  # templates write keys too
        if isinstance(value, list | tuple):
            return [self._cut(each) for each in value]
        return value


class Weights:
    """What loops, batches and pools know of a loaded model.

    Attributes:
        bases: those that vectors may be of.
        policy: what is demanded of their bytes.
    """

    bases: Bases
    policy: Policy

    def _prepare(self, bases: Bases, policy: Policy | None) -> None:
        # Not __init__: an engine's own class may have one with other arguments.
        self.bases = bases
        self.policy = policy or Policy()
        self._loops: WeakSet[Any] = WeakSet()  # loops and threads that are closed before the model
        self._engines: WeakSet[Engine] = WeakSet()
        self._changed = threading.Condition()  # guards the loops, and the next two
        self._closed = False
        self._users = 0  # blocks of `in_use` that run

    def own(self, vector: MicroVector) -> AdmittedVector:
        """Return a vector that the app made, with its R. VectorError: it fits no basis, or is too large."""
        return self.policy.own(vector, self.bases)

    # Tokens

    @property
    @abstractmethod
    def chat_tokenizer(self) -> Tokenizer:
        """The tokenizer with its chat template."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """Tokens of the longest sequence that the model was made for."""

    def encode(self, prompt: Prompt | Sample, *, raw: bool = False) -> tuple[list[int], list[str]]:
        """Return the tokens of a prompt, and the texts at which the model's chat format ends an answer.

        Text is one message of the user where the model has a chat template, unless it is raw. Special tokens
        that messages spell are text in them. A text without a prompt follows the token that begins every
        text, and the sample's earlier texts, each with its end.

        Raises:
            VectorError: chat messages for a model without a template, or that it does not render.
            TrainError: chat messages that are to be raw.
            UnicodeEncodeError: the text has half of a surrogate pair.
        """
        tokenizer, sample = self.chat_tokenizer, Sample.of(prompt, raw=raw)
        rendered = sample.rendered_by(template=tokenizer.has_template)
        with self.in_use():
            if isinstance(rendered, str):
                tokens, end = tokenizer.encode(rendered), tokenizer.eos_token
                if sample.unprompted and not tokens:  # the model has no token that begins a text
                    tokens = [end]  # as if another text had just ended
                for text in sample.earlier:
                    tokens += [*tokenizer.encode_plain(text), end]
                return tokens, []
            return tokenizer.encode_messages(
                *template_input(rendered, sample.tools, own=tokenizer.renders_tools)
            )

    @cached_property
    def turn_end(self) -> int:
        """The token that ends an answer in a chat: the one that the template writes after an answer.

        An engine guesses it where the model's file does not name it: for SmolLM2 it says `<|endoftext|>`,
        but answers end with `<|im_end|>`. VectorError: the model has no chat template.
        """
        tokens, _ = self.encode([{"role": role, "content": "x"} for role in ("user", "assistant")])
        ends = [token for token in tokens if self.chat_tokenizer.ends(token)]
        return ends[-1] if ends else self.chat_tokenizer.eos_token

    def encode_answer(self, sample: Sample) -> list[int]:
        """Return the tokens of a sample's answer, with the token that ends the turn or the raw text."""
        tokenizer = self.chat_tokenizer
        chat = tokenizer.has_template and not sample.raw
        end = self.turn_end if chat else tokenizer.eos_token
        return [*tokenizer.encode_plain(str(sample.answer)), end]

    # What loops run on

    @abstractmethod
    def engine(self, *, rows: int, n_ctx: int, n_threads: int, fewest: int = 1) -> Engine:
        """Return rows over this model's weights, which `close` closes too.

        Args:
            rows: how many.
            n_ctx: tokens of each.
            n_threads: cores to use. ONNX Runtime keeps those that the model was loaded with.
            fewest: 1 or 2, the rows of an evaluation in which one row generates; the second is idle. In ONNX
                Runtime always 2.

        Raises:
            TinyLoraError: the engine cannot make it, or the model is closed.
            BaseMismatchError: the graph is not a decoder's.
        """

    # The end

    def close_with(self, owner: object, *loops: Any) -> None:
        """Close loops before the model is closed, or when their owner is garbage-collected."""
        with self._changed:
            self._loops.update(loops)
        finalize(owner, lambda: [loop.close() for loop in loops]).atexit = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the model from being freed during a block; a `TinyLoraError` says that it is closed."""
        with self._changed:
            if self._closed:
                raise TinyLoraError(CLOSED)
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _end_all(self) -> None:
        """Refuse new work, and end all that computes with the model, which can then be freed."""
        with self._changed:
            self._closed = True
            loops = list(self._loops)
        for loop in loops:
            loop.close()
        with self._changed:
            self._changed.wait_for(lambda: not self._users)
        for engine in list(self._engines):
            engine.close()
