"""The ONNX backend: a baked graph on onnxruntime-genai, whose micro-vector can be exchanged while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

from tinylora_edge.errors import OptionError, TinyLoraError
from tinylora_edge.formats.bundle import Bundle, load_bundle
from tinylora_edge.formats.onnx_graph import MODEL_NAME
from tinylora_edge.vector import AdmittedVector, Policy

from ..answers import (
    Answer,
    Finish,
    Piece,
    Reply,
    Request,
    Sampling,
    answering,
    check_prompt,
    grammar_for,
    schema_of,
)
from ..engine import CLOSED
from ..loop import Generating, Loop
from ..model import PersonalizedModel, Put, Stream
from ..sampling import Sampler
from ..turns import Who
from .engine import OnnxEngine
from .session import open_session
from .tokenizer import Messages, OnnxTokenizer

_OWNER = Who("model", "model")  # all answers of the model reuse what was evaluated for earlier ones
_DEFAULTS = {"top_k": 40, "top_p": 0.95, "min_p": 0.05}  # llama-cpp-python's
_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "seed", "schema")


class TinyLoraOnnx(PersonalizedModel):
    """A decoder on ONNX Runtime with a micro-vector; `tinylora_edge.runtime.load` makes one.

    Its completions have the shapes of `llama_cpp.Llama`'s. Calls and streams of any threads take turns, each
    under the vector that was active when it was made. The beginning that a prompt shares with the one before
    is not computed again.

    Args:
        base: a bundle that `export --format onnx` wrote, its `onnx/` directory, or the `.onnx` in it.
        policy: what is demanded of vector bytes; None for a `Policy` with its defaults.
        n_ctx: longest sequence in tokens; memory is taken for those in use. 0, or more than the model
            has: the model's own.
        n_threads: CPU threads; by default ONNX Runtime's.

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
    ) -> None:
        bundle = load_bundle(base)
        bundle.check_onnx()
        assert bundle.onnx is not None
        path = bundle.onnx / MODEL_NAME
        self._prepare(bundle.bases, policy)
        self.model_path = str(path)
        self._tokenizer = OnnxTokenizer(bundle.onnx)
        self._n_ctx = min(n_ctx, self.longest) if n_ctx > 0 else self.longest
        self._session = open_session(path, n_threads=n_threads)
        self._loop = Loop(self._engine(1, self._n_ctx), closed=CLOSED)
        self.close_with(self, self._loop)
        self._opened()

    def __repr__(self) -> str:
        state = f"n_ctx {self._n_ctx}" if self._session is not None else "closed"
        return f"TinyLoraOnnx({self.model_path!r}, {state}, factors {self.bases.id}, {self.vector!r})"

    def _stage(self, vector: AdmittedVector | None) -> None:
        """Nothing: R goes with each request."""

    def close(self) -> None:
        """See `PersonalizedModel.close`."""
        self._end_all()
        self.chat_tokenizer.close()
        self._session = None

    # What batches and pools compute with

    @property
    def chat_tokenizer(self) -> OnnxTokenizer:
        """The tokenizer with its chat template."""
        return self._tokenizer

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that the model was made for."""
        return self.chat_tokenizer.context

    def engine(self, *, rows: int, n_ctx: int, n_threads: int, fewest: int = 2) -> OnnxEngine:
        """See `PersonalizedModel.engine`; at least two rows, of at most the model's own context."""
        with self.in_use():
            return self._engine(max(rows, 2), min(n_ctx, self.longest))

    def _engine(self, rows: int, n_ctx: int) -> OnnxEngine:
        made = OnnxEngine(
            self._session,
            factors=self.bases.factors,
            rows=rows,
            n_ctx=n_ctx,
            head_size=self.chat_tokenizer.head_size,
            path=self.model_path,
        )
        self._engines.add(made)
        return made

    # Text and tokens

    def n_ctx(self) -> int:
        """Longest sequence in tokens."""
        return self._n_ctx

    def n_vocab(self) -> int:
        """Entries of the logits."""
        return self.chat_tokenizer.size

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As `llama_cpp.Llama.tokenize`. TypeError: it is no bytes; ValueError: no UTF-8."""
        if not isinstance(text, bytes):
            raise TypeError(f"tokenize takes bytes, as text.encode() gives them, not {type(text).__name__}")
        return self.chat_tokenizer.tokenize(text.decode(), begin=add_bos, special=special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """As `llama_cpp.Llama.detokenize`, which does nothing with `prev_tokens` either."""
        return b"".join(map(self.chat_tokenizer.detokenizer(special=special), map(int, tokens)))

    # Generation

    def generate(self, tokens: Sequence[int], *, max_tokens: int | None = None, **sampling: Any) -> Stream:
        """Return the token ids that follow a prompt, up to an end-of-sequence token, which is left out.

        Args:
            tokens: the prompt.
            max_tokens: longest answer; None or 0 and less: until the context is full.
            sampling: of `Sampler`; by default the likeliest token each time.

        TinyLoraError: the prompt is empty, or leaves no room in the context.
        """
        prompt = list(tokens)
        self._check(prompt)
        most = min(len(prompt) + (_limit(max_tokens) or self._n_ctx), self._n_ctx)
        sampler, vector = Sampler(**{**_DEFAULTS, "temperature": 0.0, **sampling}), self._asked()

        def begin(put: Put) -> Generating:
            def heard(token: int, _: Any) -> bool:
                put(token, None)
                return False

            work = Generating(
                tokens=prompt,
                most=most,
                draw=sampler,
                ends=self.chat_tokenizer.ends,
                heard=heard,
                finished=lambda _, error: put(None, error or StopIteration()),
                vector=vector,
                who=_OWNER,
            )
            with self.in_use():
                self._loop.submit(work)
            return work

        return Stream(begin)

    def create_completion(
        self, prompt: str | Sequence[int], *, max_tokens: int | None = 16, **options: Any
    ) -> Any:
        """As `llama_cpp.Llama.create_completion`: a dictionary, or with `stream` an iterator of chunks.

        Args:
            prompt: text, or token ids.
            max_tokens: longest answer; None or 0 and less: until the context is full.
            options: `stop`, texts that end the answer; `stream`; `schema`, a JSON schema or labels that the
                answer keeps to; and those of `Sampler`, by default as llama-cpp-python has them.

        Raises:
            TinyLoraError: the prompt is empty, or leaves no room in the context.
            OptionError: there is no such option.
        """
        tokens = self.chat_tokenizer.encode(prompt)
        return self._complete(tokens, max_tokens, chat=False, **{"temperature": 0.8, **options})

    __call__ = create_completion

    def create_chat_completion(
        self,
        messages: Messages,
        *,
        tools: Any = None,
        max_tokens: int | None = None,
        response_format: Any = None,
        **options: Any,
    ) -> Any:
        """As `llama_cpp.Llama.create_chat_completion`, with the template of the model's tokenizer.

        Special tokens that a message spells are text in it. `tools` goes to the template, `response_format`
        is `{"type": "json_object", "schema": ...}`; other arguments and errors are those of
        `create_completion`.

        VectorError: the template does not render the messages.
        """
        if response_format is not None:
            options["schema"] = schema_of(response_format)
        tokens, _ = self.chat_tokenizer.encode_messages(messages, tools)
        return self._complete(tokens, max_tokens, chat=True, **{"temperature": 0.2, **options})

    def _complete(
        self,
        tokens: Sequence[int],
        max_tokens: int | None,
        *,
        chat: bool,
        stop: str | Sequence[str] | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        self._check(tokens)
        for name in options:
            if name not in _OPTIONS:
                raise OptionError(f"a completion has no option {name!r}: there are {', '.join(_OPTIONS)}")
        stops = tuple(each for each in ([stop] if isinstance(stop, str) else stop or []) if each)
        sampling = Sampling(max_tokens=_limit(max_tokens), stop=stops, **{**_DEFAULTS, **options})
        request = Request(tuple(tokens), _OWNER, vector=self._asked(), sampling=sampling)
        reply = Reply(self.model_path, chat)

        def begin(put: Put, chunks: bool = False) -> Generating:
            def report(what: Piece | Finish | BaseException) -> None:
                if isinstance(what, BaseException):
                    put(None, what)
                    return
                for each in reply.chunks(0, what) if chunks else [what]:
                    put(each, None)
                if isinstance(what, Finish):
                    put(None, StopIteration())

            if chunks and chat:
                put(reply.chunk(0, None, {"role": "assistant"}), None)
            with self.in_use():
                held = replace(request, grammar=grammar_for(sampling, self.chat_tokenizer))
                work = answering(held, self.chat_tokenizer, self._n_ctx, report)
                self._loop.submit(work)
            return work

        if stream:
            return Stream(lambda put: begin(put, chunks=True))
        pieces = Stream(begin)
        try:
            *found, finish = pieces
        finally:
            pieces.close()
        return reply.whole([Answer("".join(piece.text for piece in found), finish)])

    def _check(self, tokens: Sequence[int]) -> None:
        """Check a prompt. TinyLoraError: it is empty, leaves no room, or has tokens that the model lacks."""
        check_prompt(tokens, self._n_ctx)
        if outside := [token for token in tokens if not 0 <= token < self.n_vocab()]:
            raise TinyLoraError(f"the prompt has the token {outside[0]}, but the model has {self.n_vocab()}")


def _limit(max_tokens: int | None) -> int | None:
    return max_tokens if max_tokens is not None and max_tokens > 0 else None
