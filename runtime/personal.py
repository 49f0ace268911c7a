"""The personalized model, on every engine: it has one vector at a time, exchanged all or nothing."""

from __future__ import annotations

import atexit
import hashlib
import threading
from abc import abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self, Unpack
from weakref import WeakSet

from ..basis import Basis
from ..errors import TinyLoraError, TrainError, VectorError
from ..tasks import Prompt, Sample
from ..vector import CheckedVector, MicroVector, Policy
from ..wire import statements
from ..wire.tags import Hmac
from .admission import VectorSource, admitted
from .evaluation import TokenPopulation
from .gate import Gate
from .pool.desk import Desk
from .pool.request import Answer, SamplingOptions
from .pool.scheduler import Scheduler
from .streams import Stream

_open: WeakSet[Personal] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Close the models that are left open: later the interpreter takes apart what closing needs."""
    for model in list(_open):
        if not model._gate.abandon():
            model.close()


class Personal:
    """A model whose micro-vector can be exchanged while it runs; the engines' backends extend it.

    Generations and exchanges take turns between threads: an exchange waits for a running generation and
    never tears one.
    """

    basis: Basis
    policy: Policy

    def _prepare(self, basis: Basis, policy: Policy | None) -> None:
        # Not __init__: an engine's own class may have one with other arguments.
        self.basis = basis
        self.policy = policy or Policy()
        self._gate = Gate()
        self._lifetime = threading.RLock()
        self._desk: Desk | None = None  # of `achat`
        self._streams: WeakSet[Stream] = WeakSet()
        self._dependents: WeakSet[Any] = WeakSet()  # what computes with this model's weights; closed first
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

    def swap(
        self,
        vector: VectorSource,
        *,
        stream: str = "",
        wait: bool = True,
        timeout: float | None = None,
    ) -> MicroVector:
        """Exchange the micro-vector, all or nothing, and return the one that is now active.

        Every cache holds what the old model computed, and is emptied. The output after any sequence of
        swaps equals that of a fresh load of the last vector.

        Args:
            vector: a frame or a raw payload as bytes, or the `pathlib.Path` of a file with one, checked by
                the policy; or a `MicroVector` of the app's own.
            stream: which sequence of vectors the bytes belong to (see `Policy`).
            wait: wait for a generation in another thread; False refuses instead.
            timeout: seconds to wait at most; None for as long as it takes.

        Raises:
            VectorError: the vector was refused; the subclass says why. The model stays as it was.
            BusyError: a generation is running, and waiting was not asked for, or took too long, or
                would never end because this thread runs it.
            OSError: the vector's file cannot be read, or the policy's state file cannot be written. The
                model stays as it was.
        """
        with (
            self._gate.exchange(wait=wait, timeout=timeout),
            self._all_or_nothing(),
            admitted(vector, self.basis, self.policy, stream=stream) as admitted_vector,
        ):
            self._activate(admitted_vector)
        return admitted_vector

    def receipt(self, key: Hmac, *, stream: str | None = None, challenge: bytes = b"") -> bytes:
        """Return a receipt for the host: the vector that is active now, in 23 bytes with a MAC.

        The host reads it with `tinylora_edge.wire.statements.decode_receipt` (docs/FORMAT.md, "Statements").

        Args:
            key: of this device, which the host has too.
            stream: of this device. By default that of the active vector, and the one without a name for the
                base alone.
            challenge: bytes that the host sent, so that the receipt is a new one.

        Raises:
            VectorError: the active vector did not come as bytes but as a `MicroVector` of the app's own, of
                which no host knows; or the key is none for receipts, or the challenge is too long.
        """
        vector = self.vector
        if vector is not None and not isinstance(vector, CheckedVector):
            raise VectorError(
                "the active vector is a MicroVector of this app's own, which no host has sent: a receipt "
                "names the bytes of a frame"
            )
        sequence, sha256 = (
            (0, hashlib.sha256().hexdigest()) if vector is None else (vector.sequence, vector.sha256)
        )
        if stream is None:
            stream = "" if vector is None else vector.stream
        return statements.encode_receipt(sequence, sha256, self.basis.digest, stream, key, challenge)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Go back to the vector of now where a block raises after it exchanged it."""
        before = self._remember()
        try:
            yield
        except BaseException:
            if self._remember() != before:
                self._go_back(before)
            raise

    def clear(self, *, wait: bool = True, timeout: float | None = None) -> None:
        """Go back to the base, bit for bit.

        Raises:
            BusyError: as for `swap`.
        """
        with self._gate.exchange(wait=wait, timeout=timeout):
            self._activate(None)

    @contextmanager
    def using(self, vector: VectorSource, *, stream: str = "") -> Iterator[MicroVector]:
        """Apply a micro-vector for one block, and the one before it again at its end.

        What the block's context calls belongs to the block, and so does what `asyncio.to_thread` starts from
        it, and a stream that was made in it, whichever thread steps it. Everybody else waits until the block
        ends. A stream that it leaves unfinished is closed, since its vector is gone. Arguments and errors
        are those of `swap`.
        """
        with self._gate.block() as block:
            before = self._remember()
            active = self.swap(vector, stream=stream)
            try:
                yield active
            finally:
                with self._gate.emptied(block):
                    if not self._gate.closed:
                        self._go_back(before)

    @contextmanager
    def _staying(self) -> Iterator[None]:
        """Keep the model from being closed during a block.

        Raises:
            TinyLoraError: it is closed.
        """
        with self._lifetime:
            self._gate.check_open()
            yield

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Hold the model while its backend frees it: streams end first, and what computes beside it."""
        with self._gate.closing(), self._lifetime:
            for unfinished in list(self._streams):
                unfinished.end(TinyLoraError("the model is closed: load it again"))
            for dependent in list(self._dependents):
                dependent.close()
            yield

    @abstractmethod
    def close(self) -> None:
        """Free the model. Whatever is called afterwards raises a `TinyLoraError`; closing again is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _remember(self) -> Any:
        """Return what `_go_back` needs to make the active vector the active one again."""
        return self.vector

    def _go_back(self, remembered: Any) -> None:
        self._activate(remembered)

    @property
    @abstractmethod
    def _room(self) -> int:
        """Tokens of the longest sequence that `_population` has room for, prompt and answer."""

    @abstractmethod
    def _encode(self, sample: Sample) -> Sequence[int]:
        """Return the token ids of a sample's prompt, as a population evaluates it."""

    @abstractmethod
    def _greedy(self, tokens: Sequence[int]) -> Iterator[int]:
        """Yield the likeliest tokens after a prompt one by one, in this model's own context."""

    @abstractmethod
    def _beside(self, *, n_ctx: int, lora: Path | None = None) -> AbstractContextManager[Personal]:
        """Give this model, or another one over the same files, for measurements in a context of its own.

        Args:
            n_ctx: tokens that its context has to hold at least.
            lora: a stock LoRA that it has from the start, beside whatever vector it gets.

        Raises:
            BaseMismatchError: the LoRA is of another model, or no LoRA at all.
            TinyLoraError: the engine has no LoRAs, or no context of that length.
        """

    @abstractmethod
    def _population(
        self, samples: Sequence[Sample], max_tokens: int, *, sequences: int, n_threads: int | None
    ) -> AbstractContextManager[TokenPopulation]:
        """Return what answers the samples' prompts under many vectors at once, beside this model's own.

        Raises:
            TrainError: the longest prompt with its answer does not fit the model's context.
        """

    async def achat(
        self,
        messages: Prompt,
        *,
        user: str = "",
        vector: VectorSource | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Answer:
        """Answer chat messages beside whatever else the model does, under a vector of their own.

        The first call makes a pool over the model's weights with its defaults; `Pool` has the rest.

        Args:
            messages: the chat so far, or text: one message of the user.
            user: whose request it is, and the stream that vector bytes belong to.
            vector: that answers; without one, that which is active now.
            options: see `Sampling`.

        Raises:
            VectorError: the vector was refused; the subclass says why.
            RequestError: the prompt does not fit, or an option is out of its range.
            OverloadError: too many requests wait.
            TinyLoraError: the model is closed.
        """
        with self._lifetime:
            if self._desk is None:
                self._desk = Desk(self._scheduler(), self.basis, self.policy)
        return await self._desk.chat(
            messages, user=user, vector=self.vector if vector is None else vector, **options
        )

    @abstractmethod
    def _scheduler(self, **options: Any) -> Scheduler:
        """Return what answers many users at once over this model's weights; the options are the engine's."""

    # What runs the model holds the gate, from its first step to its last.

    def _stream(self, steps: Generator[Any, Any, Any], *, whole: bool) -> Stream:
        stream = Stream(steps, self._gate, whole=whole)
        self._streams.add(stream)
        return stream


def no_room(prompt: int, answer: int, context: int) -> TrainError:
    """Return the error of a prompt that with its answer passes the context: all in tokens."""
    return TrainError(
        f"the longest prompt has {prompt} tokens, which with {answer} to generate pass the model's context "
        f"of {context}: shorten it, or generate fewer (max_tokens)"
    )
