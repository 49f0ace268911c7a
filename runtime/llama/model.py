"""The llama.cpp backend: a `llama_cpp.Llama` whose micro-vector can be exchanged while it runs."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np

from ...basis import Bases
from ...errors import TinyLoraError, VectorError
from ...vector import MicroVector, Policy
from ..lock import CLOSED
from ..model import PersonalizedModel
from ..special_tokens import SpecialTokens
from ..template import check_template
from .adapters import Adapters
from .engine import LlamaEngine
from .log import signals_wait
from .vocabulary import LlamaVocabulary

OPTIONS: tuple[str, ...] = tuple(
    name
    for name, parameter in inspect.signature(llama_cpp.Llama).parameters.items()
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name != "model_path"
)
"""Names of the options of `llama_cpp.Llama`. It takes any other name too, and ignores it."""

_SPECIAL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
"""What llama.cpp reads in the text of a prompt, and not where it is told that the text is plain."""

_CONTEXT_STEP = 256


class _Closed:
    """A stand-in for the parts of a closed model, which refuses whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise TinyLoraError(CLOSED)


class TinyLoraLlama(PersonalizedModel, llama_cpp.Llama):
    """A `llama_cpp.Llama`, all of it, with a micro-vector; `tinylora_edge.runtime.load` makes one.

    The KV cache, the prefix cache and a `LlamaCache` hold what the old model computed: a swap empties them.

    Args:
        model_path: the GGUF base; `load` has checked that the factors were exported for it.
        bases, policy: of the vectors.
        options: those of `llama_cpp.Llama`; `n_ctx` is rounded up to a multiple of 256, as llama.cpp does it.

    Raises:
        BaseMismatchError: llama.cpp refuses the factors for this model.
        TinyLoraError: its chat template cannot be read, or takes too much time or memory.
    """

    mixed = LlamaEngine.mixed
    # Bound early: when the interpreter ends, globals go before models do.
    _gone = _Closed()
    _close_engine = llama_cpp.Llama.close

    def __init__(
        self, model_path: str, *, bases: Bases, policy: Policy | None = None, **options: Any
    ) -> None:
        self._prepare(bases, policy)
        self._evaluated = False
        if "n_ctx" in options:  # else the binding has room for fewer tokens than the context that it names
            options["n_ctx"] = -(-options["n_ctx"] // _CONTEXT_STEP) * _CONTEXT_STEP
        with signals_wait():
            super().__init__(model_path, **options)
        self._opened()

    # llama.cpp sizes its graph for the adapters that exist when the context is created, and Llama's
    # constructor makes model and context in one go; the moment between them is this assignment.
    @property
    def _model(self) -> Any:
        return self.__dict__["_model"]

    @_model.setter
    def _model(self, model: Any) -> None:
        self.__dict__["_model"] = model
        for key, template in model.metadata().items():
            if key.startswith("tokenizer.chat_template"):  # the constructor compiles them all
                check_template(template)
        self.adapters = Adapters(model.model, self.bases.factors)
        self._stack.callback(self.adapters.free)  # after the context is freed, before the model is

    def _activate(self, vector: MicroVector | None) -> None:
        self.adapters.apply(self._ctx.ctx, self.r_of(vector), self._own_adapters())
        self._vector = vector
        self._forget()

    def _own_adapters(self) -> list[tuple[Any, float]]:
        """Return the caller's LoRA (`lora_path`) and its scale, if there is one: vectors stand beside it."""
        return [] if self._lora_adapter is None else [(self._lora_adapter, self.lora_scale)]

    def _forget(self) -> None:
        """Drop every cached computation of the model as it was."""
        self.reset()
        memory = llama_cpp.llama_get_memory(self._ctx.ctx)
        if memory is not None:
            # Zeroing the cells takes milliseconds and matters only for NaN, which no mask hides.
            llama_cpp.llama_memory_clear(memory, self._evaluated and not self._finite())
        self._evaluated = False
        if self.cache is not None:
            _empty(self.cache)

    def _finite(self) -> bool:
        logits = llama_cpp.llama_get_logits_ith(self._ctx.ctx, -1)
        return bool(logits) and bool(np.isfinite(logits[: min(64, self._n_vocab)]).all())

    # What batches and pools compute with

    @cached_property
    def vocabulary(self) -> LlamaVocabulary:
        """The model's tokens."""
        return LlamaVocabulary(self)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that the model was trained for."""
        return int(self._model.n_ctx_train())

    @property
    def one_engine(self) -> bool:
        """Whether a GPU computes some of the layers."""
        return bool(self.model_params.n_gpu_layers and llama_cpp.llama_supports_gpu_offload())

    def engine(self, *, rows: int, n_ctx: int, n_threads: int, cells: int | None = None) -> LlamaEngine:
        """See `PersonalizedModel.engine`."""
        with self._staying():
            made = LlamaEngine(
                self._model.model,
                self.context_params,
                self.adapters,
                self._own_adapters(),
                rows=rows,
                n_ctx=n_ctx,
                n_threads=n_threads,
                cells=cells,
            )
            self._engines.add(made)
        return made

    def __repr__(self) -> str:
        state = "closed" if self.__dict__.get("_ctx") in (None, self._gone) else f"n_ctx {self.n_ctx()}"
        return f"TinyLoraLlama({self.model_path!r}, {state}, factors {self.bases.id}, {self.vector!r})"

    def close(self) -> None:
        """Free the model, and before it the batches over it. Streams that are unfinished end, and
        their next step is refused.

        A call afterwards raises a `TinyLoraError`: llama.cpp would end the process. Closing again is fine.
        """
        lock = self.__dict__.get("_lock")
        if lock is None or lock.gone:  # the constructor got no further, or it was closed before
            return
        with self._closing():
            self._close_engine()
            gone = self._gone
            self.__dict__.update(_model=gone, _ctx=gone, _batch=gone, tokenizer_=gone)

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
        # Not there before the first chat: nothing was cut.
        special_tokens: SpecialTokens | None = self.__dict__.get("special_tokens")
        first, *rest = [text] if special_tokens is None else special_tokens.parts(text)
        tokens: list[int] = super().tokenize(first, add_bos, special)
        for part in rest:
            tokens += super().tokenize(part, False, special)
        return tokens

    if not TYPE_CHECKING:  # its type is that of `llama_cpp.Llama`

        def create_chat_completion(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            """As `llama_cpp.Llama.create_chat_completion`; special tokens that messages spell are text.

            Raises:
                VectorError: the model's chat template does not render the messages.
            """
            try:
                return super().create_chat_completion(self.special_tokens.cut(messages), *args, **kwargs)
            except (TinyLoraError, UnicodeEncodeError):
                raise
            except Exception:  # of the template, or of llama-cpp-python, which raises what it likes
                if self.vocabulary.has_template:
                    self.vocabulary.encode_messages(messages)  # says so where the template is what fails
                raise

    # What runs the model holds the lock, from its first step to its last.

    def generate(self, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        """As `llama_cpp.Llama.generate`.

        Raises:
            TinyLoraError: the prompt is empty.
        """
        tokens = list(tokens)
        if not tokens and kwargs.get("reset", True):
            raise TinyLoraError("the prompt has no tokens: pass some text")
        return self._stream(super().generate(tokens, *args, **kwargs))

    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        """As `llama_cpp.Llama.create_completion`; its cache lookups happen under the same hold."""
        if kwargs.get("stream"):  # nothing is computed before the first step
            return self._stream(super().create_completion(*args, **kwargs))
        with self._lock.call():
            result = super().create_completion(*args, **kwargs)
        return result if isinstance(result, dict) else self._stream(result)

    def eval(self, *args: Any, **kwargs: Any) -> Any:
        """As `llama_cpp.Llama.eval`."""
        with self._lock.call():
            self._evaluated = True
            with self.adapters.lock.shared():
                return super().eval(*args, **kwargs)

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """As `llama_cpp.Llama.embed`."""
        with self._lock.call(), self.adapters.lock.shared():
            return super().embed(*args, **kwargs)

    def save_state(self) -> Any:
        """As `llama_cpp.Llama.save_state`; the state remembers the vector that it was computed with."""
        with self._lock.call():
            state: Any = super().save_state()
            state.tinylora_vector = self.vector
            return state

    def load_state(self, state: Any) -> None:
        """As `llama_cpp.Llama.load_state`.

        Raises:
            VectorError: the state was computed with another vector than the active one.
        """
        from_cache = self._lock.inside  # a completion found it in the LlamaCache that it was given
        with self._lock.call():
            if getattr(state, "tinylora_vector", None) != self.vector:
                if from_cache:
                    return  # of no use here: evaluate the prompt instead
                raise VectorError(
                    "the saved state was computed with another vector than the active one: swap to the "
                    "vector that it was saved under, or evaluate the prompt again"
                )
            super().load_state(state)


def _empty(cache: Any) -> None:
    # Llama's caches have no method for it: LlamaRAMCache keeps an OrderedDict, LlamaDiskCache a diskcache.
    for name in ("cache_state", "cache"):
        store: Any = getattr(cache, name, None)
        if hasattr(store, "clear"):
            store.clear()
            return
    cache.clear()
