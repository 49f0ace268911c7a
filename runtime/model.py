"""The personalized model, on every engine: it answers under one vector, exchanged all or nothing."""

from __future__ import annotations

import atexit
import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self
from weakref import WeakSet

from ..basis import Bases
from ..errors import TinyLoraError, TrainError
from ..tasks import Prompt, Sample
from ..tasks.tools import told
from ..vector import AdmittedVector, MicroVector, Policy
from .admission import VectorSource, admitted
from .batch import Batch, common_prefix
from .engine import CLOSED, Engine, Process, Vocabulary

_open: WeakSet[PersonalizedModel] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Close the models that are left open: later the interpreter takes apart what closing needs."""
    for model in list(_open):
        with suppress(TinyLoraError):
            model.close()


@dataclass(eq=False)
class _Block:
    """A `using` block of one model, and the vector that acts in it."""

    model: PersonalizedModel
    vector: AdmittedVector | None


_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("tinylora_blocks", default=())


class PersonalizedModel:
    """A model whose micro-vector can be exchanged while it runs; the engines' classes extend it.

    An answer has the vector that was active when it was asked for, whatever is exchanged meanwhile. Any
    thread may ask, and any may step a stream.

    Attributes:
        bases: that vectors may be of.
        policy: what is demanded of their bytes.
        mixed: rows with different vectors share one evaluation of its engines.
        dependents: batches and pools, which are closed before the model is.
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
        self._vector: AdmittedVector | None = None
        self._process = Process()
        self._changed = threading.Condition()  # of the two that follow
        self._closed = False
        self._users = 0

    def _opened(self) -> None:
        """Note that there is something to close."""
        _open.add(self)

    # The vector

    @property
    def vector(self) -> AdmittedVector | None:
        """The active micro-vector, or None for the base alone: that of the innermost `using` block here."""
        block = self._block()
        return self._vector if block is None else block.vector

    def swap(self, vector: VectorSource, *, stream: str = "") -> AdmittedVector:
        """Exchange the micro-vector, all or nothing, and return the one that is now active.

        What is asked for from now on has it; what was asked for before ends with the one it began with. No
        answer uses what another vector computed. Inside a `using` block it is exchanged for the rest of that.

        Args:
            vector: a frame as bytes, or the `pathlib.Path` of a file with one, checked by the policy, of any
                projection that the model knows; or a `MicroVector` of the app's own.
            stream: which sequence of vectors the bytes belong to (see `Policy`).

        Raises:
            VectorError: the vector was refused; the subclass says why. The model stays as it was.
            BusyError: this is a callback of a generation.
            OSError: the vector's file cannot be read, or the policy's state file cannot be written. The
                model stays as it was.
        """
        before = self.vector
        try:
            with self.in_use(), admitted(vector, self.bases, self.policy, stream=stream) as found:
                self._activate(found)
        except BaseException:
            if self.vector is not before:
                self._activate(before)
            raise
        return found

    def clear(self) -> None:
        """Go back to the base, bit for bit. Errors: those of `swap`."""
        with self.in_use():
            self._activate(None)

    @contextmanager
    def using(self, vector: VectorSource, *, stream: str = "") -> Iterator[AdmittedVector]:
        """Apply a micro-vector to what one block asks for; others have theirs meanwhile.

        The block's context belongs to it (`contextvars`): what it calls, and what `asyncio.to_thread` starts
        from it. A stream that was made in it ends with the block's vector, wherever it is stepped. Arguments
        and errors are those of `swap`.
        """
        with self.in_use(), admitted(vector, self.bases, self.policy, stream=stream) as found:
            self._stage(found)
        block = _Block(self, found)
        token = _blocks.set((*_blocks.get(), block))
        try:
            yield found
        finally:
            _blocks.reset(token)

    def own(self, vector: MicroVector) -> AdmittedVector:
        """Return a vector of the app's own with its R. VectorError: it is of no basis, or too large."""
        return self.policy.own(vector, self.bases)

    def _block(self) -> _Block | None:
        return next((block for block in reversed(_blocks.get()) if block.model is self), None)

    def _activate(self, vector: AdmittedVector | None) -> None:
        self._stage(vector)
        block = self._block()
        if block is None:
            self._vector = vector
        else:
            block.vector = vector

    @abstractmethod
    def _stage(self, vector: AdmittedVector | None) -> None:
        """Make sure that the engine takes a vector, before anything is asked under it.

        Raises:
            BusyError: this is a callback of a generation.
            TinyLoraError: the engine refuses it.
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

    @abstractmethod
    def close(self) -> None:
        """Free the model. Whatever is called afterwards raises a `TinyLoraError`; closing again is fine.

        What is being answered ends with that error, and so does what computes with the model's weights.
        BusyError: this is a callback of a generation.
        """

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Tokens

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """The model's tokens."""

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
        vocabulary, sample = self.vocabulary, Sample.of(prompt, raw=raw)
        rendered = sample.rendered_by(template=vocabulary.has_template)
        with self.in_use():
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

    def batch(
        self,
        samples: Sequence[Sample],
        max_tokens: int,
        *,
        sequences: int = 32,
        n_threads: int | None = None,
    ) -> Batch:
        """Return a batch over this model's weights, with room for answers to the prompts of samples.

        Args:
            samples: whose prompts it will get.
            max_tokens: of the longest answer.
            sequences: how many run at the same time.
            n_threads: cores to use; by default all that this process may use.

        Raises:
            TrainError: the longest prompt with its answer passes the model's context.
            TinyLoraError: the engine has no memory for so many, or the model is closed.
        """
        prompts = [self.encode(sample)[0] for sample in samples]
        longest = max(map(len, prompts))
        if longest + max_tokens > self.longest:
            raise no_room(longest, max_tokens, self.longest)
        return Batch(
            self,
            n_ctx_seq=longest + max_tokens,
            shared=common_prefix(prompts),
            sequences=sequences,
            n_threads=n_threads,
        )


def no_room(prompt: int, answer: int, context: int) -> TrainError:
    """Return the error of a prompt that with its answer passes the context: all in tokens."""
    return TrainError(
        f"the longest prompt has {prompt} tokens, which with {answer} to generate pass the model's context "
        f"of {context}: shorten it, or generate fewer (max_tokens)"
    )
