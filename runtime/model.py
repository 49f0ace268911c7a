"""The personalized model, on every engine: it answers, in streams too, under one vector, all or nothing."""

from __future__ import annotations

import atexit
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol, Self, TypeAlias
from weakref import WeakSet

from ..basis import Bases
from ..errors import TinyLoraError, TrainError
from ..tasks import Sample
from ..vector import AdmittedVector, Policy
from .admission import VectorSource, admitted
from .batch import Batch, common_prefix
from .engine import Weights

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


class PersonalizedModel(Weights):
    """A model whose micro-vector can be exchanged while it runs; the engines' classes extend it.

    An answer has the vector that was active when it was asked for, whatever is exchanged meanwhile. Any
    thread may ask, and any may step a stream.
    """

    def _prepare(self, bases: Bases, policy: Policy | None) -> None:
        super()._prepare(bases, policy)
        self._vector: AdmittedVector | None = None

    def _opened(self) -> None:
        """Note that there is something to close."""
        _open.add(self)

    # The vector

    @property
    def vector(self) -> AdmittedVector | None:
        """The active micro-vector, or None for the base alone: that of the innermost `using` block here.

        Of a stack it is the last one; `under` is what lies beneath it.
        """
        block = self._block()
        return self._vector if block is None else block.vector

    def swap(self, vector: VectorSource, *, user: str = "") -> AdmittedVector:
        """Exchange the micro-vector, all or nothing, and return the one that is now active.

        What is asked for from now on has it; what was asked for before ends with the one it began with. No
        answer uses what another vector computed. Inside a `using` block it is exchanged for the rest of that.

        Args:
            vector: a frame as bytes, or the `pathlib.Path` of a file with one, checked by the policy, of any
                projection that the model knows; or a `MicroVector` of the app's own. Or a list of these, a
                stack, whose R add up: a shared vector, and a user's own last, which is what is returned.
            user: whose vector it is (see `Policy`), the last of a stack; the others are everybody's.

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
        """Apply a micro-vector to what one block asks for; others have theirs meanwhile.

        The block's context belongs to it (`contextvars`): what it calls, and what `asyncio.to_thread` starts
        from it. A stream that was made in it ends with the block's vector, wherever it is stepped. Arguments
        and errors are those of `swap`.
        """
        with self.in_use(), admitted(vector, self.bases, self.policy, user=user) as found:
            self._stage(found)
        block = _Block(self, found)
        token = _blocks.set((*_blocks.get(), block))
        try:
            yield found
        finally:
            _blocks.reset(token)

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

    @abstractmethod
    def close(self) -> None:
        """Free the model. Whatever is called afterwards raises a `TinyLoraError`; closing again is fine.

        What is being answered ends with that error, and so does what computes with the model's weights.
        BusyError: this is a callback of a generation.
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


def no_room(prompt: int, answer: int, context: int) -> TrainError:
    """Return the error of a prompt that with its answer passes the context: all in tokens."""
    return TrainError(
        f"the longest prompt has {prompt} tokens, which with {answer} to generate pass the model's context "
        f"of {context}: shorten it, or generate fewer (max_tokens)"
    )


Put: TypeAlias = Callable[[Any, BaseException | None], None]
"""What gets an item and None, or the end: an error, which is StopIteration where nothing went wrong."""


class Generator(Protocol):
    """What generates in a thread of its own: a `Loop`, or the `Worker` of a llama.cpp context."""

    def check_waiting(self) -> None:
        """Raise a `BusyError` in a callback of what it generates, which would wait for itself."""


class Begun(Protocol):
    """What a stream began: `Work` of a loop, or a `Job` of a worker. `cancelled` asks it to end."""

    cancelled: bool


class Stream(Iterator[Any]):
    """It begins with the first step, and is generated to its end however slow its reader is: nobody waits for
    a reader. Who leaves it early, by `close` or by dropping it, ends it.

    Args:
        generator: in whose thread it is generated.
        begin: asks for it, given where its items go.
    """

    def __init__(self, generator: Generator, begin: Callable[[Put], Begun]) -> None:
        self._generator, self._begin = generator, begin
        self._begun: Begun | None = None
        self._over = False
        self._items: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._turn = threading.Lock()  # one reader at a time

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        self._generator.check_waiting()
        with self._turn:
            if self._over:
                raise StopIteration
            if self._begun is None:
                items = self._items
                self._begun = self._begin(lambda item, error: items.put((item, error)))
            item, error = self._items.get()
            if error is not None:
                self._over = True
                raise error
            return item

    def close(self) -> None:
        """End it. Again is fine. It takes no lock: the garbage collector calls it too."""
        if self._begun is not None:
            self._begun.cancelled = True
        self._over = True

    def __del__(self) -> None:
        self.close()
