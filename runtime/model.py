"""The personalized model, on every engine: it has one vector at a time, exchanged all or nothing."""

from __future__ import annotations

import atexit
import threading
from abc import abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from ..basis import Basis
from ..errors import TrainError
from ..tasks import Prompt, Sample
from ..vector import MicroVector, Policy
from .admission import VectorSource, admitted
from .engine import Engine, Vocabulary
from .evaluation import TokenPopulation
from .lock import ModelLock, Stream
from .pool.scheduler import Scheduler

_open: WeakSet[PersonalizedModel] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Close the models that are left open: later the interpreter takes apart what closing needs."""
    for model in list(_open):
        if model._lock.busy:  # in a thread that the end of the process does not wait for
            model._lock.closed = True
        else:
            model.close()


class PersonalizedModel:
    """A model whose micro-vector can be exchanged while it runs; the engines' classes extend it.

    Attributes:
        basis: of the vectors.
        policy: what is demanded of their bytes.
        mixed: rows with different vectors share one evaluation of its engines.
    """

    mixed: bool
    basis: Basis
    policy: Policy

    def _prepare(self, basis: Basis, policy: Policy | None) -> None:
        # Not __init__: an engine's own class may have one with other arguments.
        self.basis = basis
        self.policy = policy or Policy()
        self._lock = ModelLock()
        self._lifetime = threading.RLock()
        self._dependents: WeakSet[Any] = WeakSet()  # batches and pools over its weights: closed first,
        self._engines: WeakSet[Engine] = WeakSet()  # and then what they compute with

    def _opened(self) -> None:
        """Note that there is something to close."""
        _open.add(self)

    @property
    @abstractmethod
    def vector(self) -> MicroVector | None:
        """The active micro-vector, or None for the base alone."""

    @abstractmethod
    def _activate(self, vector: MicroVector | None) -> None:
        """Make a vector the active one, and drop what was computed with the one before.

        On an error the one before stays active.
        """

    def swap(self, vector: VectorSource, *, stream: str = "") -> MicroVector:
        """Exchange the micro-vector, all or nothing, and return the one that is now active.

        Every cache holds what the old model computed, and is emptied. The output after any sequence of
        swaps equals that of a fresh load of the last vector.

        Args:
            vector: a frame or a raw payload as bytes, or the `pathlib.Path` of a file with one, checked by
                the policy; or a `MicroVector` of the app's own.
            stream: which sequence of vectors the bytes belong to (see `Policy`).

        Raises:
            VectorError: the vector was refused; the subclass says why. The model stays as it was.
            BusyError: a generation of this thread is unfinished. One of another thread is waited for.
            OSError: the vector's file cannot be read, or the policy's state file cannot be written. The
                model stays as it was.
        """
        with self._lock.exchange():
            before = self.vector
            try:
                with admitted(vector, self.basis, self.policy, stream=stream) as found:
                    self._activate(found)
            except BaseException:
                if self.vector is not before:
                    self._activate(before)
                raise
        return found

    def clear(self) -> None:
        """Go back to the base, bit for bit.

        Raises:
            BusyError: as for `swap`.
        """
        with self._lock.exchange():
            self._activate(None)

    @contextmanager
    def using(self, vector: VectorSource, *, stream: str = "") -> Iterator[MicroVector]:
        """Apply a micro-vector for one block, and the one before it again at its end.

        What the block's context calls belongs to the block, and so does what `asyncio.to_thread` starts from
        it, and a stream that was made in it, whichever thread steps it. Everybody else waits until the block
        ends. A stream that it leaves unfinished is ended, since its vector is gone. Arguments and errors
        are those of `swap`.
        """
        with self._lock.block() as block:
            before = self.vector
            active = self.swap(vector, stream=stream)
            try:
                yield active
            finally:
                with self._lock.ending(block):
                    if not self._lock.closed:
                        self._activate(before)

    @abstractmethod
    def close(self) -> None:
        """Free the model. Whatever is called afterwards raises a `TinyLoraError`; closing again is fine.

        A generation in another thread ends first. Streams that are unfinished end, and so does what computes
        with the model's weights: batches, pools.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What batches and pools compute with

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

    @abstractmethod
    def encode(self, prompt: Prompt | Sample, *, raw: bool = False) -> tuple[list[int], list[str]]:
        """Return the tokens of a prompt, and the texts at which the model's chat format ends an answer.

        Text is one message of the user where the model has a chat template, unless it is raw. Special tokens
        that messages spell are text in them.

        Raises:
            VectorError: chat messages for a model without a template, or that it does not render.
            TrainError: chat messages that are to be raw.
            UnicodeEncodeError: the text has half of a surrogate pair.
        """

    @abstractmethod
    def r_of(self, vector: MicroVector | None) -> NDArray[np.float32] | None:
        """Return a vector as `Engine.set_r` takes it.

        Raises:
            VectorError: it does not fit the basis.
        """

    @abstractmethod
    def engine(
        self, *, rows: int, n_ctx: int, n_threads: int | None = None, cells: int | None = None
    ) -> Engine:
        """Return rows over this model's weights, which `close` closes too.

        Args:
            rows: how many.
            n_ctx: tokens of each.
            n_threads: by default all cores that this process may use. ONNX Runtime has those that the model
                was loaded with.
            cells: of a cache that the rows share, in llama.cpp. None: each row is computed as if it were
                alone, to the last bit.

        Raises:
            TinyLoraError: the engine cannot make it, or the model is closed.
            BaseMismatchError: the graph is none that answers.
        """

    @contextmanager
    def _staying(self) -> Iterator[None]:
        """Keep the model from being closed during a block.

        Raises:
            TinyLoraError: it is closed.
        """
        with self._lifetime:
            self._lock.check_open()
            yield

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Hold the model while its engine frees it: streams end first, and what computes beside it."""
        with self._lock.ending(), self._lifetime:
            for each in [*self._dependents, *self._engines]:
                each.close()
            yield

    def _stream(self, steps: Generator[Any, Any, Any]) -> Stream:
        return Stream(steps, self._lock)

    # What learning takes

    @property
    @abstractmethod
    def _room(self) -> int:
        """Tokens of the longest sequence that `_population` has room for, prompt and answer."""

    def _encode(self, sample: Sample) -> list[int]:
        return self.encode(sample)[0]

    @abstractmethod
    def _population(
        self, samples: Sequence[Sample], max_tokens: int, *, sequences: int, n_threads: int | None
    ) -> AbstractContextManager[TokenPopulation]:
        """Return what answers the samples' prompts under many vectors at once, beside this model's own.

        Raises:
            TrainError: the longest prompt with its answer does not fit the model's context.
        """

    @abstractmethod
    def _scheduler(self, **options: Any) -> Scheduler:
        """Return what answers many users at once over this model's weights; the options are the engine's."""


def no_room(prompt: int, answer: int, context: int) -> TrainError:
    """Return the error of a prompt that with its answer passes the context: all in tokens."""
    return TrainError(
        f"the longest prompt has {prompt} tokens, which with {answer} to generate pass the model's context "
        f"of {context}: shorten it, or generate fewer (max_tokens)"
    )
