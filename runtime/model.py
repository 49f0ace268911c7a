"""The personalized model, on every engine: it has one vector at a time, exchanged all or nothing."""

from __future__ import annotations

import atexit
import threading
from abc import abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self
from weakref import WeakSet

from ..basis import Bases
from ..errors import TrainError
from ..tasks import Sample
from ..vector import MicroVector, Policy
from .admission import VectorSource, admitted
from .batch import Batch
from .batch_context import common_prefix
from .engine import Engine, Weights
from .lock import ModelLock, SharedLock, Stream

_open: WeakSet[PersonalizedModel] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Close the models that are left open: later the interpreter takes apart what closing needs."""
    for model in list(_open):
        if model._lock.busy:  # in a thread that the end of the process does not wait for
            model._lock.closed = True
        else:
            model.close()


class PersonalizedModel(Weights):
    """A model whose micro-vector can be exchanged while it runs; the engines' classes extend it."""

    def _prepare(self, bases: Bases, policy: Policy | None) -> None:
        # Not __init__: an engine's own class may have one with other arguments.
        self.bases = bases
        self.policy = policy or Policy()
        self._vector: MicroVector | None = None
        self._lock = ModelLock()
        self._lifetime = threading.RLock()
        self._readers = SharedLock()
        self._dependents = WeakSet()
        self._engines: WeakSet[Engine] = WeakSet()  # what those compute with

    def _opened(self) -> None:
        """Note that there is something to close."""
        _open.add(self)

    @property
    def vector(self) -> MicroVector | None:
        """The active micro-vector, or None for the base alone."""
        return self._vector

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
            vector: a frame as bytes, or the `pathlib.Path` of a file with one, checked by the policy, of any
                projection that the model knows; or a `MicroVector` of the app's own.
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
                with admitted(vector, self.bases, self.policy, stream=stream) as found:
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

    @contextmanager
    def _staying(self) -> Iterator[None]:
        with self._lifetime:
            self._lock.check_open()
            yield

    @contextmanager
    def _reading(self) -> Iterator[None]:
        self._lock.check_open()
        with self._readers.shared():
            self._lock.check_open()
            yield

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Hold the model while its engine frees it: streams end first, and what computes beside it."""
        with self._lock.ending(), self._lifetime:
            for each in [*self._dependents, *self._engines]:
                each.close()
            with self._readers.alone():
                yield

    def _stream(self, steps: Generator[Any, Any, Any]) -> Stream:
        return Stream(steps, self._lock)


def no_room(prompt: int, answer: int, context: int) -> TrainError:
    """Return the error of a prompt that with its answer passes the context: all in tokens."""
    return TrainError(
        f"the longest prompt has {prompt} tokens, which with {answer} to generate pass the model's context "
        f"of {context}: shorten it, or generate fewer (max_tokens)"
    )
