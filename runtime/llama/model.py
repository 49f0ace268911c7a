"""The llama.cpp backend: a `llama_cpp.Llama` whose micro-vector can be exchanged while it runs."""

from __future__ import annotations

import ctypes
import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, AnyStr, NoReturn, TypeVar

import llama_cpp
import numpy as np
from llama_cpp._internals import LlamaModel

from tinylora_edge.basis import Bases
from tinylora_edge.errors import BusyError, TinyLoraError, VectorError
from tinylora_edge.vector import AdmittedVector, Policy

from ..engine import CLOSED, SpecialTokens, check_alive
from ..model import PersonalizedModel, Put, Stream
from .adapters import Adapters, signals_wait
from .engine import LlamaEngine
from .tokenizer import LlamaTokenizer

OPTIONS: tuple[str, ...] = tuple(
    name
    for name, parameter in inspect.signature(llama_cpp.Llama).parameters.items()
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name != "model_path"
)
"""Names of the options of `llama_cpp.Llama`. It takes any other name too, and ignores it."""

_SPECIAL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
"""Attributes of tokens that llama.cpp recognizes in the text of a prompt, unless the text is plain."""

_CONTEXT_STEP = 256
_PIECE = 1 << 12  # room for the bytes of a token


class _Closed:
    """A stand-in for parts of a closed model: every use of it raises the error."""

    def __getattr__(self, name: str) -> Any:
        raise TinyLoraError(CLOSED)


class _Model(LlamaModel):
    """llama-cpp-python's model, whose own `detokenize` drops tokens of more than 32 bytes."""

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        piece: Any = ctypes.create_string_buffer(_PIECE)
        size = partial(llama_cpp.llama_token_to_piece, self.vocab)
        text = b"".join(piece[: size(each, piece, _PIECE, 0, special)] for each in tokens)
        return text.removeprefix(b" ") if list(tokens[:1]) == [self.token_bos()] else text


class TinyLoraLlama(PersonalizedModel, llama_cpp.Llama):
    """A complete `llama_cpp.Llama` with a micro-vector; `tinylora_edge.runtime.load` makes one.

    Calls and streams of any threads take turns in one thread, each under the vector that was active when it
    was made. Another vector empties the KV cache, the prefix cache and a `LlamaCache`.

    Args:
        model_path: the GGUF base; `load` has checked that the factors were exported for it.
        bases, policy: of the vectors.
        options: those of `llama_cpp.Llama`; `n_ctx` is rounded up to a multiple of 256, as llama.cpp does it.

    Raises:
        BaseMismatchError: llama.cpp refuses the factors for this model.
        TinyLoraError: llama.cpp cannot open it with these options, or its chat template cannot be read.
    """

    # Bound early: when the interpreter ends, globals go before models do.
    _gone = _Closed()
    _close_engine = llama_cpp.Llama.close

    def __init__(
        self, model_path: str, *, bases: Bases, policy: Policy | None = None, **options: Any
    ) -> None:
        if "n_ctx" in options:  # llama.cpp rounds it up, and the binding's own buffers have to be as large
            options["n_ctx"] = -(-options["n_ctx"] // _CONTEXT_STEP) * _CONTEXT_STEP
        self._prepare(bases, policy)
        self._thread, self._closing = ContextThread(), threading.Lock()
        self._staged: bytes | None = None  # digest of the vector that the context has
        from jinja2 import TemplateError  # which llama-cpp-python brings along

        try:
            # In a thread that ends, since llama.cpp packs weights with OpenMP, whose threads stay with the
            # thread that called it. Where OpenMP has more threads than there are cores, each sleeps after
            # every operation: a token of an engine took 85 ms instead of 13 (SmolLM2 on two cores with AMX).
            with signals_wait(), ThreadPoolExecutor(1, "tinylora-load") as loading:
                loading.submit(super().__init__, model_path, **options).result()
        except TemplateError as error:
            raise TinyLoraError(f"the model's chat template cannot be read: {error}") from error
        except TinyLoraError:
            raise
        except ValueError as error:  # what llama-cpp-python raises where llama.cpp fails
            raise TinyLoraError(
                f"llama.cpp cannot open {model_path} with n_ctx {options.get('n_ctx', 512):,}: {error}. In "
                "Python verbose=True shows why"
            ) from error
        self._opened()

    # llama.cpp sizes its graph for the adapters that exist when the context is created. Llama's constructor
    # makes model and context; between the two it assigns `_model`, and that is when the adapters are made.
    @property
    def _model(self) -> Any:
        return self.__dict__["_model"]

    @_model.setter
    def _model(self, model: Any) -> None:
        self.__dict__["_model"], model.__class__ = model, _Model
        self.adapters = Adapters(model.model, self.bases.factors)
        self._stack.callback(self.adapters.free)  # after the context is freed, before the model is

    def _stage(self, vector: AdmittedVector | None) -> None:
        self._thread.run(partial(self._apply, vector))

    def _apply(self, vector: AdmittedVector | None) -> None:
        """Give the context a vector, and drop what was computed under another one."""
        if (digest := None if vector is None else vector.digest) == self._staged:
            return
        self.adapters.apply(self._ctx.ctx, None if vector is None else vector.r, self._own_adapters())
        self._staged = digest
        if (memory := llama_cpp.llama_get_memory(self._ctx.ctx)) is not None:
            # Zeroing the cells takes milliseconds. Only NaN makes it necessary: masks do not hide NaN.
            llama_cpp.llama_memory_clear(memory, self.n_tokens > 0 and not self._finite())
        self.reset()
        cache: Any = self.cache
        if cache is not None:  # Llama's caches have no `clear`, but the containers in them have
            getattr(cache, "cache_state", getattr(cache, "cache", cache)).clear()

    def _finite(self) -> bool:
        logits = llama_cpp.llama_get_logits_ith(self._ctx.ctx, -1)
        return bool(logits) and bool(np.isfinite(logits[: min(64, self._n_vocab)]).all())

    def _in_turn(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what computes with the context, in turn, under the vector that is active here."""
        if self._thread.inside:  # a part of the current job, which has set the vector
            return call(*args, **kwargs)
        return self._thread.run(partial(self._under, self._asked(), call, args, kwargs))

    def _under(self, vector: AdmittedVector | None, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._apply(vector)
        return call(*args, **kwargs)

    def _own_adapters(self) -> list[tuple[Any, float]]:
        """Return the caller's LoRA (`lora_path`) and its scale, if there is one: vectors stand beside it."""
        return [] if self._lora_adapter is None else [(self._lora_adapter, self.lora_scale)]

    # What batches and pools compute with

    @cached_property
    def chat_tokenizer(self) -> LlamaTokenizer:
        """The tokenizer with its chat template; `tokenizer()` is llama_cpp's."""
        return LlamaTokenizer(self)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that the model was trained for."""
        return int(self._model.n_ctx_train())

    def engine(self, *, rows: int, n_ctx: int, n_threads: int, fewest: int = 1) -> LlamaEngine:
        """See `PersonalizedModel.engine`."""
        with self.in_use():
            made = LlamaEngine(
                self._model.model,
                self.context_params,
                self.adapters,
                self._own_adapters(),
                rows=rows,
                n_ctx=n_ctx,
                n_threads=n_threads,
                fewest=fewest,
            )
            self._engines.add(made)
        return made

    def __repr__(self) -> str:
        state = "closed" if self.__dict__.get("_ctx") in (None, self._gone) else f"n_ctx {self.n_ctx()}"
        return f"TinyLoraLlama({self.model_path!r}, {state}, factors {self.bases.id}, {self.vector!r})"

    def close(self) -> None:
        """Free the model, after the batches and pools over it. The next step of an unfinished stream raises
        a `TinyLoraError`.

        A call afterwards raises a `TinyLoraError`: llama.cpp would end the process. Closing again is fine.
        """
        thread = self.__dict__.get("_thread")
        if thread is None or self.__dict__.get("_ctx") is self._gone:  # it was not opened, or is closed
            return
        if not thread.close():
            return
        with self._closing:  # llama.cpp would free it twice, if two threads did
            if self.__dict__.get("_ctx") is not self._gone:
                self._end_all()
                self._close_engine()
                gone = self._gone
                self.__dict__.update(_model=gone, _ctx=gone, _batch=gone, tokenizer_=gone)

    def __reduce__(self) -> NoReturn:
        raise TinyLoraError("a model is neither copied nor pickled: load it where it is needed")

    # Messages are text: only the chat template writes special tokens.

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """The texts of the model's special tokens."""
        vocab, tokens = llama_cpp.llama_model_get_vocab(self._model.model), range(self._n_vocab)
        special = [each for each in tokens if llama_cpp.llama_vocab_get_attr(vocab, each) & _SPECIAL]
        texts = [llama_cpp.llama_vocab_get_text(vocab, each) for each in special]
        return SpecialTokens(text.decode("utf-8", "replace") for text in texts)

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As `llama_cpp.Llama.tokenize`; parts that `special_tokens` cut are tokenized one by one."""
        first, *rest = self._parts(text)
        tokens: list[int] = super().tokenize(first, add_bos, special)
        for part in rest:
            tokens += super().tokenize(part, False, special)
        return tokens

    def _parts(self, text: AnyStr) -> list[AnyStr]:
        """Return the parts of a text that `special_tokens` cut; before the first chat it has cut nothing."""
        special_tokens: SpecialTokens | None = self.__dict__.get("special_tokens")
        return [text] if special_tokens is None else special_tokens.parts(text)

    if not TYPE_CHECKING:  # its type is that of `llama_cpp.Llama`

        def create_chat_completion(
            self,
            messages: Any,
            functions: Any = None,
            function_call: Any = None,
            tools: Any = None,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            """As `llama_cpp.Llama.create_chat_completion`; special tokens in messages and tools are read as
            plain text.

            VectorError: the model's chat template does not render the messages.
            """
            cut = self.special_tokens.cut
            try:
                functions, tools = functions and cut(functions), tools and cut(tools)
                return super().create_chat_completion(
                    cut(messages), functions, function_call, tools, *args, **kwargs
                )
            except (TinyLoraError, UnicodeEncodeError):
                raise
            except Exception:  # of the template, or of llama-cpp-python
                if self.chat_tokenizer.has_template:
                    self.chat_tokenizer.encode_messages(
                        messages
                    )  # raises the VectorError if the template fails
                raise

    # What computes with the context is a job of its thread.

    def generate(self, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        """As `llama_cpp.Llama.generate`; the generator that it returns takes no `send`.

        TinyLoraError: the prompt is empty.
        """
        tokens = list(tokens)
        if not tokens and kwargs.get("reset", True):
            raise TinyLoraError("the prompt has no tokens: pass some text")
        if self._thread.inside:  # a completion's own call: cancelling ends it between two tokens
            return self._checked(super().generate(tokens, *args, **kwargs))
        return self._stream(super().generate, tokens, *args, **kwargs)

    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        """As `llama_cpp.Llama.create_completion`."""
        self._thread.check_waiting()
        grammar = kwargs.get("grammar")  # a chat handler makes it of a tool, whose special tokens are cut
        if grammar is not None and len(parts := self._parts(grammar._grammar)) > 1:
            kwargs["grammar"] = llama_cpp.LlamaGrammar.from_string("".join(parts))
        if kwargs.get("stream"):
            return self._stream(super().create_completion, *args, **kwargs)
        return self._in_turn(super().create_completion, *args, **kwargs)

    def _stream(self, call: Callable[..., Iterator[Any]], *args: Any, **kwargs: Any) -> Stream:
        thread, under = self._thread, partial(self._under, self._asked(), call, args, kwargs)

        def begin(put: Put) -> Job:
            def generate() -> None:
                for item in under():
                    put(item, None)
                    thread.check()

            job = Job(generate, lambda _, error: put(None, error or StopIteration()))
            thread.submit(job)
            return job

        with self.in_use():
            return Stream(begin, thread.check_waiting)

    def _checked(self, steps: Iterator[int]) -> Iterator[int]:
        for token in steps:
            yield token
            self._thread.check()

    def eval(self, *args: Any, **kwargs: Any) -> Any:
        """As `llama_cpp.Llama.eval`."""
        return self._in_turn(self._computed, super().eval, *args, **kwargs)

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """As `llama_cpp.Llama.embed`."""
        return self._in_turn(self._computed, super().embed, *args, **kwargs)

    def _computed(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.adapters.computing(self._ctx.ctx):
            return call(*args, **kwargs)

    def save_state(self) -> Any:
        """As `llama_cpp.Llama.save_state`; the state remembers the vector that it was computed with."""
        return self._in_turn(self._labelled, super().save_state)

    def _labelled(self, save: Callable[[], Any]) -> Any:
        state = save()
        state.tinylora_vector = self._staged
        return state

    def load_state(self, state: Any) -> None:
        """As `llama_cpp.Llama.load_state`.

        VectorError: the state was computed with another vector than the active one.
        """
        self._in_turn(self._restored, super().load_state, state, self._thread.inside)

    def _restored(self, load: Callable[[Any], None], state: Any, inside: bool) -> None:
        if getattr(state, "tinylora_vector", None) == self._staged:
            load(state)
        elif not inside:  # a completion that finds such a state in a LlamaCache evaluates the prompt instead
            raise VectorError(
                "the saved state was computed with another vector than the active one: swap to the "
                "vector that it was saved under, or evaluate the prompt again"
            )


# The thread that computes with the model's own context.

T = TypeVar("T")

_AT_EXIT = 2.0  # seconds that the end of the program waits for a callback that does not return


class Job:
    """A call in the thread of a context. `cancelled` asks it to end at the next token."""

    def __init__(self, call: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        self.call, self.done, self.cancelled = call, done, False


class Cancelled(Exception):  # noqa: N818 - no error
    """The job was cancelled: its reader has left, or the model is closed."""


class ContextThread:
    """One daemon thread and its queue of jobs. Any thread may use it; it does not keep the model alive."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._now: Job | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def inside(self) -> bool:
        """Whether this is a part of the current job."""
        return self._now is not None and threading.current_thread() is self._thread

    def check_waiting(self) -> None:
        """Raise a `BusyError` in a callback of a generation, which would wait for itself."""
        if self.inside:
            raise BusyError(
                "a callback must not call its own model, which would wait for itself: call it after "
                "the generation has ended"
            )

    def check(self) -> None:
        """End the current job where it was cancelled."""
        if self._now is not None and self._now.cancelled:
            raise Cancelled

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn. TinyLoraError: the model is closed."""
        with self._changed:
            if self._closed:
                raise TinyLoraError(CLOSED)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tinylora-llama", daemon=True)
                self._thread.start()
            check_alive([self._thread])
            self._jobs.append(job)
            self._changed.notify_all()

    def run(self, call: Callable[[], T]) -> T:
        """Run a call when its turn comes, and return its result. BusyError: this is a callback of a
        generation."""
        self.check_waiting()
        ended: SimpleQueue[tuple[T, BaseException | None]] = SimpleQueue()
        job = Job(call, lambda result, error: ended.put((result, error)))
        self.submit(job)
        try:
            result, error = ended.get()
        except BaseException:  # Ctrl-C
            job.cancelled = True
            raise
        if error is not None:
            raise error
        return result

    def close(self) -> bool:
        """End all jobs, the current one at its next token; return whether the thread has ended. When the
        program ends, a callback may keep it from that.

        BusyError: this is a callback of a generation.
        """
        self.check_waiting()
        with self._changed:
            self._closed = True
            left = [*self._jobs]
            self._jobs.clear()
            if self._now is not None:
                self._now.cancelled = True
            self._changed.notify_all()
        for job in left:
            job.done(None, TinyLoraError(CLOSED))
        if self._thread in (None, threading.current_thread()):  # this thread may drop the last reference
            return True
        self._thread.join(None if threading.main_thread().is_alive() else _AT_EXIT)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    if self._closed:
                        return
                    self._changed.wait()
                job = self._now = self._jobs.popleft()
            result: Any = None
            error: BaseException | None = None
            try:
                if job.cancelled:
                    raise Cancelled
                result = job.call()
            except Cancelled:
                error = TinyLoraError(CLOSED)
            except BaseException as raised:
                error = raised
            with self._changed:
                self._now = None
            job.done(result, error)
            del job, result, error  # so that the idle thread keeps no model alive; it may close it here
