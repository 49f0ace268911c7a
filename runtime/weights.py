"""A loaded model's weights: its tokens, the engines over them, and the end of both."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from weakref import WeakSet

from ..basis import Bases
from ..errors import TinyLoraError
from ..tasks import Prompt, Sample
from ..tasks.tools import template_input
from ..vector import AdmittedVector, MicroVector, Policy
from .engine import CLOSED, Engine, Process, Tokenizer


class Weights:
    """What loops, batches and pools know of a loaded model.

    Attributes:
        bases: that vectors may be of.
        policy: what is demanded of their bytes.
        mixed: rows with different vectors share one evaluation of its engines.
        dependents: loops, batches and pools, which are closed before the model is.
    """

    bases: Bases
    policy: Policy
    mixed: bool
    dependents: WeakSet[Any]

    def _prepare(self, bases: Bases, policy: Policy | None) -> None:
        # Not __init__: an engine's own class may have one with other arguments.
        self.bases = bases
        self.policy = policy or Policy()
        self.dependents = WeakSet()
        self._engines: WeakSet[Engine] = WeakSet()  # what those compute with
        self._process = Process()
        self._changed = threading.Condition()  # of the two that follow
        self._closed = False
        self._users = 0

    def own(self, vector: MicroVector) -> AdmittedVector:
        """Return a vector of the app's own with its R. VectorError: it is of no basis, or too large."""
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
        that messages spell are text in them.

        Raises:
            VectorError: chat messages for a model without a template, or that it does not render.
            TrainError: chat messages that are to be raw.
            UnicodeEncodeError: the text has half of a surrogate pair.
        """
        tokenizer, sample = self.chat_tokenizer, Sample.of(prompt, raw=raw)
        rendered = sample.rendered_by(template=tokenizer.has_template)
        with self.in_use():
            if isinstance(rendered, str):
                return tokenizer.encode(rendered), []
            return tokenizer.encode_messages(
                *template_input(rendered, sample.tools, own=tokenizer.renders_tools)
            )

    @cached_property
    def turn_end(self) -> int:
        """The token that ends an answer in a chat: what the template writes behind one.

        What an engine calls the end of a turn is a guess where the file does not say it: `<|endoftext|>` in
        SmolLM2, whose answers end with `<|im_end|>`. VectorError: the model has no chat template.
        """
        tokens, _ = self.encode([{"role": role, "content": "x"} for role in ("user", "assistant")])
        ends = [token for token in tokens if self.chat_tokenizer.ends(token)]
        return ends[-1] if ends else self.chat_tokenizer.eos_token

    def encode_answer(self, sample: Sample) -> list[int]:
        """Return the tokens of a sample's answer, and the one that ends it: a turn, or a raw text."""
        tokenizer = self.chat_tokenizer
        chat = tokenizer.has_template and not sample.raw
        end = self.turn_end if chat else tokenizer.eos_token
        return [*tokenizer.encode_plain(str(sample.answer)), end]

    # What loops run on

    @property
    @abstractmethod
    def one_engine(self) -> bool:
        """Whether one engine takes all cores, or the GPU; else one a core is quickest."""

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

    # The end

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the model from being freed during a block; a `TinyLoraError` says that it is closed."""
        self._process.check()
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

    @property
    def gone(self) -> bool:
        """Whether there is nothing to close: it is closed, or this process is a fork, which frees nothing."""
        return self._closed or self._process.forked

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Let nothing begin, end what computes, and hold the model while its engine frees it."""
        with self._changed:
            self._closed = True
        for each in list(self.dependents):
            each.close()
        with self._changed:
            self._changed.wait_for(lambda: not self._users)
        for engine in list(self._engines):
            engine.close()
        yield
