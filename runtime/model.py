"""A loaded model, of either engine, whose vector can be exchanged while it answers; and its streams."""

from __future__ import annotations

import atexit
import os
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self, TypeAlias
from weakref import WeakSet

from tinylora_edge.basis import Bases
from tinylora_edge.errors import TinyLoraError, TrainError, VectorError
from tinylora_edge.limits import VECTOR_FILE_BYTES
from tinylora_edge.tasks import Sample
from tinylora_edge.vector import AdmittedVector, MicroVector, Policy
from tinylora_edge.writes import open_file

from .batch import Batch
from .engine import Weights

OneVector: TypeAlias = bytes | Path | MicroVector
"""The bytes of a frame, the `Path` of a file with them, or a vector of the app's own."""
VectorSource: TypeAlias = OneVector | Sequence[OneVector]
"""A vector, or a stack: vectors that act together, whose R are added. Shared ones come first, the user's own
last: it stands for the stack, and holds the others beneath it (`MicroVector.under`)."""

_open: WeakSet[PersonalizedModel] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Close the models that are still open, while the interpreter still has what closing needs."""
    for model in list(_open):
        with suppress(TinyLoraError, KeyboardInterrupt):
            model.close()


if hasattr(os, "register_at_fork"):  # a fork has none of the engines' threads, and nothing to close
    os.register_at_fork(after_in_child=_open.clear)


class PersonalizedModel(Weights):
    """A model whose micro-vector can be exchanged while it runs; the engines' classes extend it.

    An answer keeps the vector that was active when it was requested, whatever is swapped in meanwhile. Any
    thread may request one, and any may step a stream.
    """

    def _prepare(self, bases: Bases, policy: Policy | None) -> None:
        super()._prepare(bases, policy)
        self._vector: AdmittedVector | None = None
        # The vector of the innermost `using` block, in a list: `swap` in the block replaces the item.
        self._block: ContextVar[list[AdmittedVector | None] | None] = ContextVar("block", default=None)

    def _opened(self) -> None:
        """Note the model among those that are closed when the program ends."""
        _open.add(self)

    # The vector

    @property
    def vector(self) -> AdmittedVector | None:
        """The active micro-vector, or None for the base alone. In a `using` block, the vector of the block.

        Of a stack it is the last one, whose `under` holds the others. Once its last day is over, nothing is
        answered under it: a request raises an ExpiredError until another one is swapped in, or `clear`.
        """
        block = self._block.get()
        return self._vector if block is None else block[0]

    def _asked(self) -> AdmittedVector | None:
        """Return the vector that a request gets. ExpiredError: its last day is over."""
        vector = self.vector
        return None if vector is None else self.policy.in_force(vector)

    def swap(self, vector: VectorSource, *, user: str = "") -> AdmittedVector:
        """Replace the micro-vector, all or nothing, and return the new active one.

        Answers that are requested from now on have it; earlier ones keep their own to the end. No answer
        uses what was computed under another vector. In a `using` block the exchange ends with the block.

        Args:
            vector: a frame as bytes, or the `pathlib.Path` of a file with one, which the policy checks; a
                `MicroVector` of the app's own; or a list of these, a stack, whose R are added: shared vectors
                first, the user's own last. Each may be of any projection that the model knows.
            user: whose vector it is (see `Policy`). In a stack only the last one is theirs; the others are
                everybody's.

        Returns:
            The active vector, of a stack its last one.

        Raises:
            VectorError: the vector was refused; the subclass says why. The model stays as it was.
            BusyError: this is a callback of a generation.
            OSError: the vector's file cannot be read, or the policy's state file cannot be written. The
                model stays as it was.
        """
        before = self.vector
        try:
            with self.in_use(), admitted(vector, self.bases, self.policy, user=user) as found:
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
    def using(self, vector: VectorSource, *, user: str = "") -> Iterator[AdmittedVector]:
        """Apply a micro-vector in one block alone; other threads and tasks keep theirs.

        It applies in the block's context (`contextvars`): to what the block calls, and to what it starts by
        `asyncio.to_thread`. A stream that was made in the block keeps its vector, wherever it is stepped.
        Arguments and errors are those of `swap`.
        """
        with self.in_use(), admitted(vector, self.bases, self.policy, user=user) as found:
            self._stage(found)
        token = self._block.set([found])
        try:
            yield found
        finally:
            self._block.reset(token)

    def _activate(self, vector: AdmittedVector | None) -> None:
        self._stage(vector)
        block = self._block.get()
        if block is None:
            self._vector = vector
        else:
            block[0] = vector

    @abstractmethod
    def _stage(self, vector: AdmittedVector | None) -> None:
        """Make sure that the engine takes a vector, before any answer is requested under it.

        Raises:
            BusyError: this is a callback of a generation.
            TinyLoraError: the engine refuses it.
        """

    # The end

    @abstractmethod
    def close(self) -> None:
        """Free the model. Whatever is called afterwards raises a `TinyLoraError`; closing again is fine.

        Answers in progress end with that error, and so do batches and pools over the model.
        BusyError: this is a callback of a generation.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batch(
        self, samples: Sequence[Sample], max_tokens: int, *, sequences: int = 32, n_threads: int | None = None
    ) -> Batch:
        """Return a batch over this model's weights, with room for answers to the prompts of samples.

        Args:
            samples: those whose prompts it will get, at least one.
            max_tokens: tokens of the longest answer.
            sequences: how many run at the same time.
            n_threads: cores to use; by default all that this process may use.

        Raises:
            TrainError: no samples, or the longest prompt with its answer passes the model's context.
            TinyLoraError: the engine has no memory for so many, or the model is closed.
        """
        if not samples:
            raise TrainError("a batch needs at least one sample, whose prompt it has room for")
        prompts = [self.encode(sample)[0] for sample in samples]
        longest = max(map(len, prompts))
        if longest + max_tokens > self.longest:
            raise no_room(longest, max_tokens, self.longest)
        return Batch(self, n_ctx_seq=longest + max_tokens, sequences=sequences, n_threads=n_threads)


# The admission of a vector: the one way in for whatever an app passes, on every engine.


@contextmanager
def admitted(
    source: VectorSource, bases: Bases, policy: Policy, *, user: str = "", beneath: bool = False
) -> Iterator[AdmittedVector]:
    """Check a vector, or each of a stack, run the block that applies it, and then record its sequence.

    The policy checks bytes. A `MicroVector` is the app's own: it must be of one of the bases, and within the
    policy's norm. The last vector of a stack is the user's; frames beneath it are everybody's, of the user
    without a name. With `beneath` all of them are, since they will lie beneath another vector.

    Raises:
        VectorError: a vector is refused, or is something else than a vector. The block does not run.
        OSError: the file cannot be read, or the policy's state cannot be written; the block has run then.
    """
    sources = list(source) if isinstance(source, list | tuple) else [source]
    if not sources:
        raise VectorError("a stack has at least one vector: for the base alone call clear()")
    with ExitStack() as admissions:
        found: AdmittedVector | None = None
        for place, each in enumerate(sources, 1):
            whose: Any = {"user": user} if place == len(sources) and not beneath else {"beneath": place}
            try:
                if isinstance(each, MicroVector):
                    vector = policy.own(each, bases)
                else:
                    vector = admissions.enter_context(policy.admit(vector_bytes(each), bases, **whose))
                found = vector if found is None else policy.stacked(found, vector)
            except VectorError as error:
                if len(sources) == 1 and not beneath:
                    raise
                raise type(error)(f"vector {place} of a stack: {error}") from None
        assert found is not None
        yield found


def admit(source: VectorSource, bases: Bases, policy: Policy, **whose: Any) -> AdmittedVector:
    """Check and record a vector, and return it; arguments and errors are those of `admitted`."""
    with admitted(source, bases, policy, **whose) as vector:
        return vector


def vector_bytes(source: object) -> bytes:
    """Return the bytes of a vector that an app passed as bytes or as a path. VectorError: it is neither, or
    the file is too long to be a vector's."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, Path):
        with open_file(source) as file:
            data = file.read(VECTOR_FILE_BYTES + 1)
        if len(data) > VECTOR_FILE_BYTES:
            raise VectorError(
                f"{source} has more than {VECTOR_FILE_BYTES:,} bytes: it is not the file of a vector"
            )
        return data
    raise VectorError(
        "a vector is bytes, a pathlib.Path of a file with them, a MicroVector(values), or a list of these, "
        f"not the {type(source).__name__} {source!r:.60}; for the base alone call clear()"
    )


def no_room(prompt: int, answer: int, context: int) -> TrainError:
    """Return the error of a prompt that with its answer passes the context: all in tokens."""
    return TrainError(
        f"the longest prompt has {prompt} tokens, which with {answer} to generate pass the model's context "
        f"of {context}: shorten it, or generate fewer (max_tokens)"
    )


Put: TypeAlias = Callable[[Any, BaseException | None], None]
"""Called with an item and None, and at the end with None and an error: StopIteration if all went well."""


class Stream(Iterator[Any]):
    """The items of a generation. It begins with the first `next`, and does not wait for its reader.

    To leave it early, close it or drop it: that ends the generation.

    Args:
        begin: starts the generation, and returns it: setting its `cancelled` asks it to end. Its argument is
            called with each item.
        check: called before each item; raises where this is a callback of a generation, which would wait for
            itself.
    """

    def __init__(self, begin: Callable[[Put], Any], check: Callable[[], None] = lambda: None) -> None:
        self._begin, self._check = begin, check
        self._begun: Any = None
        self._over = False
        self._items: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._turn = threading.Lock()  # one reader at a time

    def __next__(self) -> Any:
        self._check()
        with self._turn:
            if self._over:
                raise StopIteration
            if self._begun is None:
                items = self._items
                self._begun = self._begin(lambda item, error: items.put((item, error)))
            item, error = self._items.get()
            if error is not None:
                self.close()
                raise error
            return item

    def close(self) -> None:
        """End it. Again is fine. It takes no lock: the garbage collector calls it too."""
        if self._begun is not None:
            self._begun.cancelled = True
        self._over = True
        self._items.put((None, StopIteration()))  # a reader in another thread may wait for an item

    def __del__(self) -> None:
        self.close()
