"""The ONNX backend: a baked graph on onnxruntime-genai, whose micro-vector can be exchanged while it runs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import TinyLoraError
from ...formats.bundle import Bundle, load_bundle
from ...formats.onnx_graph import MODEL_NAME
from ...vector import MicroVector, Policy
from ..engine import Part
from ..model import PersonalizedModel
from ..sampling import Sampler
from .completion import Completion, steps_of
from .engine import OnnxEngine
from .session import open_session
from .vocabulary import Messages, OnnxVocabulary


class TinyLoraOnnx(PersonalizedModel):
    """A decoder on ONNX Runtime with a micro-vector; `tinylora_edge.runtime.load` makes one.

    Its completions take and return what `llama_cpp.Llama`'s do. What the beginning of a prompt has in common
    with the one before is not computed again; a swap forgets it.

    Args:
        base: a bundle that `export --format onnx` wrote, its `onnx/` directory, or the `.onnx` in it.
        policy: what is demanded of vector bytes; None for a `Policy` with its defaults.
        n_ctx: longest sequence in tokens; the KV cache is allocated for it. 0, or more than the model
            has: the model's own.
        n_threads: CPU threads; by default ONNX Runtime's.
        sess_options: an `onnxruntime.SessionOptions`.

    Raises:
        FileNotFoundError: a part of the bundle is missing.
        CorruptBasisError: the side tensors are damaged.
        BaseMismatchError: the graph was not baked with these factors, its weights are not there, or the
            installed onnxruntime-genai cannot load it.
    """

    def __init__(
        self,
        base: str | PathLike[str] | Bundle,
        *,
        policy: Policy | None = None,
        n_ctx: int = 2048,
        n_threads: int | None = None,
        sess_options: Any = None,
    ) -> None:
        bundle = base if isinstance(base, Bundle) else load_bundle(base)
        bundle.check_onnx()
        assert bundle.onnx is not None
        path = bundle.onnx / MODEL_NAME
        self._prepare(bundle.bases, policy)
        self.model_path = str(path)
        self._vocabulary = OnnxVocabulary(bundle.onnx)
        self._n_ctx = min(n_ctx, self.longest) if n_ctx > 0 else self.longest
        self._session = open_session(path, sess_options=sess_options, n_threads=n_threads)
        self._row = self._engine(1, self._n_ctx, check=True)
        self._evaluated: list[int] = []  # tokens that the row holds
        self._opened()

    def __repr__(self) -> str:
        state = f"n_ctx {self._n_ctx}" if self._session is not None else "closed"
        return f"TinyLoraOnnx({self.model_path!r}, {state}, factors {self.bases.id}, {self.vector!r})"

    def _activate(self, vector: MicroVector | None) -> None:
        r = self.r_of(vector)
        self._row.reset()
        self._row.set_r(0, r)
        self._evaluated, self._vector = [], vector

    def close(self) -> None:
        """See `PersonalizedModel.close`."""
        if self._lock.gone:
            return
        with self._closing():
            self.vocabulary.close()
            self._session = None

    # What batches and pools compute with

    @property
    def vocabulary(self) -> OnnxVocabulary:
        """The model's tokens."""
        return self._vocabulary

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that the model was made for."""
        return self.vocabulary.context

    one_engine, mixed = True, OnnxEngine.mixed

    def engine(self, *, rows: int, n_ctx: int, n_threads: int, cells: int | None = None) -> OnnxEngine:
        """See `PersonalizedModel.engine`; at least two rows."""
        with self._staying():
            return self._engine(max(rows, 2), n_ctx)

    def _engine(self, rows: int, n_ctx: int, *, check: bool = False) -> OnnxEngine:
        made = OnnxEngine(
            self._session,
            factors=self.bases.factors,
            rows=rows,
            n_ctx=n_ctx,
            head_size=self.vocabulary.head_size,
            path=self.model_path,
            check=check,
        )
        self._engines.add(made)
        return made

    # Text and tokens

    def n_ctx(self) -> int:
        """Longest sequence in tokens."""
        return self._n_ctx

    def n_vocab(self) -> int:
        """Entries of the logits."""
        return self.vocabulary.size

    def tokenize(self, prompt: str | Messages) -> list[int]:
        """Return the token ids of a text, special tokens recognized, or of chat messages, which spell none.

        Raises:
            VectorError: the chat template does not render the messages.
        """
        return self.vocabulary.encode(prompt)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""
        return self.vocabulary.decode(tokens)

    def apply_chat_template(self, messages: Messages, tools: Any = None) -> str:
        """Return the prompt that the tokenizer's chat template makes of messages.

        Special tokens that a message spells are special in it: nothing tells them from the template's own.

        Raises:
            VectorError: there is no template, or it refuses the messages.
        """
        return self.vocabulary.render(messages, tools)

    # Generation

    def generate(
        self, tokens: Sequence[int], *, max_tokens: int | None = None, **sampling: Any
    ) -> Generator[int, None, None]:
        """Yield the token ids that follow a prompt, up to an end-of-sequence token, which is left out.

        Args:
            tokens: the prompt.
            max_tokens: longest answer; None or 0 and less: until the context is full.
            sampling: of `Sampler`; by default the likeliest token each time.

        Raises:
            TinyLoraError: the prompt is empty, or leaves no room in the context.
            BusyError: another generation of this thread is unfinished.
        """
        return self._stream(self._tokens(tokens, max_tokens, _sampler({"temperature": 0.0, **sampling})))

    def create_completion(
        self, prompt: str | Sequence[int], *, max_tokens: int | None = 16, **options: Any
    ) -> Any:
        """As `llama_cpp.Llama.create_completion`: a dictionary, or with `stream` an iterator of chunks.

        Args:
            prompt: text, or token ids.
            max_tokens: longest answer; None or 0 and less: until the context is full.
            options: `stop`, texts that end the answer; `stream`; and those of `Sampler`, by default as
                llama-cpp-python has them.

        Raises:
            TinyLoraError: the prompt is empty, or leaves no room in the context.
        """
        tokens = self.vocabulary.encode(prompt)
        return self._complete(tokens, max_tokens, chat=False, **{"temperature": 0.8, **options})

    __call__ = create_completion

    def create_chat_completion(
        self, messages: Messages, *, tools: Any = None, max_tokens: int | None = None, **options: Any
    ) -> Any:
        """As `llama_cpp.Llama.create_chat_completion`, with the template of the model's tokenizer.

        Special tokens that a message spells are text in it. `tools` is what the template is told of tools,
        `options` and errors are those of `create_completion`.

        Raises:
            VectorError: the template does not render the messages.
        """
        tokens, _ = self.vocabulary.encode_messages(messages, tools)
        return self._complete(tokens, max_tokens, chat=True, **{"temperature": 0.2, **options})

    def _complete(
        self,
        tokens: Sequence[int],
        max_tokens: int | None,
        *,
        chat: bool,
        stop: str | Sequence[str] | None = None,
        stream: bool = False,
        **sampling: Any,
    ) -> Any:
        self._room(tokens, max_tokens)
        completion = Completion(self.model_path, chat=chat)
        stops = [stop] if isinstance(stop, str) else stop or []
        found = self._tokens(tokens, max_tokens, _sampler(sampling))
        steps = steps_of(found, self.vocabulary.speaker(), stops)
        if stream:
            return self._stream(completion.chunks(steps))
        with self._lock.call():
            return completion.whole(steps, len(tokens))

    def _tokens(
        self, prompt: Sequence[int], max_tokens: int | None, sampler: Sampler
    ) -> Generator[int, None, str]:
        """Yield the tokens that follow a prompt, and return why they ended: `stop` or `length`."""
        room = self._room(prompt, max_tokens)
        tokens, new = list(prompt), self._go_back(prompt)
        for _ in range(room):
            logits = self._append(tokens[new:])
            new = len(tokens)
            token = sampler(logits, tokens)
            if token is None or self.vocabulary.ends(token):
                return "stop"
            yield token
            tokens.append(token)
        return "length"

    def _room(self, tokens: Sequence[int], max_tokens: int | None) -> int:
        """Return how many tokens may follow a prompt.

        Raises:
            TinyLoraError: it is empty, leaves no room in the context, or has tokens that the model lacks.
        """
        if not tokens:
            raise TinyLoraError("the prompt has no tokens: pass some text")
        free = self._n_ctx - len(tokens)
        if free < 1:
            raise TinyLoraError(
                f"the prompt has {len(tokens)} tokens, but the context has {self._n_ctx} and an answer needs "
                "at least one: shorten it, or load the model with a larger n_ctx"
            )
        if outside := [token for token in tokens if not 0 <= token < self.n_vocab()]:
            raise TinyLoraError(f"the prompt has the token {outside[0]}, but the model has {self.n_vocab()}")
        return min(max_tokens, free) if max_tokens is not None and max_tokens > 0 else free

    def _go_back(self, prompt: Sequence[int]) -> int:
        """Keep what is evaluated already of a prompt, but for its last token; return how many tokens."""
        limit = min(len(self._evaluated), len(prompt) - 1)
        differs = (i for i in range(limit) if self._evaluated[i] != prompt[i])
        shared = self._row.cut(0, next(differs, limit))
        del self._evaluated[shared:]
        return shared

    def _append(self, tokens: list[int]) -> NDArray[np.float32]:
        """Evaluate tokens; return the logits after them: float32 [vocabulary]."""
        try:
            logits: NDArray[np.float32] = self._row.evaluate([Part(0, tokens)])[0]
        except BaseException:
            self._evaluated = []
            raise
        self._evaluated += tokens
        return logits


def _sampler(options: dict[str, Any]) -> Sampler:
    return Sampler(**{"top_k": 40, "top_p": 0.95, "min_p": 0.05, **options})
