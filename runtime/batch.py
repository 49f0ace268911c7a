"""Batches: many sequences at once, generated or scored, each under one of many vectors, on every engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinylora_edge.errors import BusyError, VectorError
from tinylora_edge.process import cores
from tinylora_edge.tasks import Completion, Sample
from tinylora_edge.vector import AdmittedVector, MicroVector

from .engine import Weights
from .loop import Finished, Generating, Loop, Scoring, Work
from .sampling import draw
from .schema import Grammar, Schema, Tools, grammar_of
from .turns import Who

W = TypeVar("W", bound=Work)

_OWNER = Who("batch", "batch")
_CLOSED = "the batch is closed: it was, or its model was. Make another one"


@dataclass(frozen=True)
class Generation:
    """One sequence that was generated.

    Attributes:
        prompt: index of its prompt in the call.
        tokens: int32 [n], with the end-of-generation token where there was one.
        logprobs: float32 [n], natural logarithm, of each token under the distribution it was drawn
            from: softmax(logits / temperature), or softmax(logits) for greedy decoding; with a grammar
            over the tokens that it allows there.
        ended: it ended by itself, within the limit.
        grammar: what it keeps to, at its start; None for anything.
    """

    prompt: int
    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    ended: bool
    grammar: Grammar | None = None


class Stopped(Exception):  # noqa: N818 - not an error
    """The time until which a batch or an adapter may compute is over."""


class Batch:
    """Rows over a model's weights, in which sequences are generated or scored, each with its vector.

    Any thread may call it; calls take turns. A callback of one that makes another gets a `BusyError`.

    Args:
        llm: a loaded model, whose `close` closes the batch, as dropping it does. Its own context and vector
            are left alone.
        n_ctx_seq: tokens of the longest sequence, prompt and completion; in ONNX Runtime the model's at most.
        sequences: how many run at the same time.
        n_threads: cores to use; by default all that this process may use.

    Attributes:
        n_ctx_seq: as above.
        until: a call is given up, with `Stopped`, once `time.monotonic()` is later.

    Raises:
        VectorError: there are no sequences.
        TinyLoraError: the engine cannot make the contexts, or the model is closed.
    """

    def __init__(
        self,
        llm: Weights,
        *,
        n_ctx_seq: int,
        sequences: int = 32,
        n_threads: int | None = None,
    ) -> None:
        if sequences < 1:
            raise VectorError(f"a batch of {sequences} sequences runs nothing: pass 1 or more")
        self.llm, self.n_ctx_seq = llm, n_ctx_seq
        self.until = np.inf
        self._turn, self._caller = threading.Lock(), 0  # held by the call that runs, and its thread
        self._grammars: dict[str, Grammar] = {}  # by tools
        engine = llm.engine(rows=sequences, n_ctx=n_ctx_seq, n_threads=n_threads or cores())
        self._loop = Loop(engine, closed=_CLOSED, exact=False)
        llm.close_with(self, self._loop)

    @property
    def evaluated(self) -> int:
        """Tokens that were evaluated since the batch was made, prompts and answers."""
        return self._loop.engine.evaluated

    def encode(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Return the tokens of the samples' prompts."""
        return [self.llm.encode(sample)[0] for sample in samples]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        vectors: MicroVector | Sequence[MicroVector | None] | None = None,
        samples: int = 1,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        schema: Schema | None = None,
        tools: Sequence[tuple[dict[str, Any], ...]] = (),
        answered: Callable[[], None] = lambda: None,
    ) -> list[Generation]:
        """Continue every prompt `samples` times.

        Args:
            prompts: token ids.
            vectors: one for all prompts, or one for each; None for the base.
            samples: sequences a prompt.
            max_tokens: most tokens of each sequence, 1 or more.
            temperature: of sampling from the full distribution; 0 takes the most likely token.
            seed: of the random numbers. Every sequence has its own, whatever runs beside it, and two vectors
                draw with the same ones.
            schema: what every sequence keeps to, from its first token: a JSON schema, or labels, one of which
                is all of it.
            tools: for each prompt the functions that its answers may call: without a schema they keep to
                these, as they do in the server.
            answered: called as each sequence ends.

        Returns:
            len(prompts) * samples generations, those of one prompt together, in order.

        Raises:
            VectorError: a prompt is empty, or leaves no room for so many tokens; a vector fits no basis of
                the model or is too large for it, or there are not as many as prompts; max_tokens or the
                temperature is out of its range.
            RequestError: schema or tools become no grammar, or one that takes too much, or allows no token.
            MissingExtraError: llguidance is not installed, which schemas and tools need.
            Stopped: it is later than `until`.
            TinyLoraError: the batch is closed, or is closed while it generates.
        """
        own = list(vectors) if isinstance(vectors, Sequence) else [vectors] * len(prompts)
        if len(own) != len(prompts):
            raise VectorError(f"{len(prompts)} prompts need as many vectors, not {len(own)}: one for each")
        if max_tokens < 1 or not 0 <= temperature < np.inf:
            raise VectorError(
                f"max_tokens is {max_tokens}, expected at least 1; the temperature {temperature}, at least 0"
            )
        for index, prompt in enumerate(prompts):
            self._check(index, prompt, max_tokens)
        shape = len(prompts), samples, max_tokens
        uniform = np.random.default_rng(seed).random(shape) if temperature else np.zeros(shape)
        if schema is not None:
            grammars: list[Grammar | None] = [grammar_of(schema, self.llm.chat_tokenizer)] * len(prompts)
        else:
            grammars = [self._grammar(each) if each else None for each in tools or [()] * len(prompts)]
        admitted, draws = self._admitted(own), list[_Drawn]()

        def works(finished: Finished) -> Iterator[Generating]:
            for prompt, vector, numbers, grammar in zip(prompts, admitted, uniform, grammars, strict=True):
                for uniforms in numbers:
                    drawn = _Drawn(temperature, uniforms, grammar and grammar.copy())
                    draws.append(drawn)
                    yield Generating(
                        tokens=list(prompt),
                        most=len(prompt) + max_tokens,
                        draw=drawn,
                        heard=drawn.accept,
                        ends=self.llm.chat_tokenizer.ends,
                        finished=finished,
                        vector=vector,
                        who=_OWNER,
                    )

        return [
            Generation(
                number // samples,
                np.array([*work.answer, *work.by], np.int32),
                np.array(drawn.logprobs, np.float32),
                bool(work.by),
                grammars[number // samples],
            )
            for number, (work, drawn) in enumerate(zip(self._run(works, answered), draws, strict=True))
        ]

    def _grammar(self, functions: tuple[dict[str, Any], ...]) -> Grammar:
        """Return the grammar of answers that may call functions."""
        if (key := repr(functions)) not in self._grammars:
            self._grammars[key] = Tools(functions).grammar(self.llm.chat_tokenizer)
        return self._grammars[key]

    def answer_each(
        self,
        vectors: Sequence[MicroVector | None],
        samples: Sequence[Sample],
        *,
        max_tokens: int,
        schema: Schema | None = None,
        answered: Callable[[], None] = lambda: None,
    ) -> list[list[Completion]]:
        """Return each vector's greedy answers to all samples. Arguments and errors: see `generate`."""
        found = self.generate(
            self.encode(samples) * len(vectors),
            vectors=[vector for vector in vectors for _ in samples],
            max_tokens=max_tokens,
            schema=schema,
            tools=[sample.tools for sample in samples] * len(vectors),
            answered=answered,
        )
        answers = iter([self.completion(generation) for generation in found])
        return [[next(answers) for _ in samples] for _ in vectors]

    def score_each(
        self,
        vectors: Sequence[MicroVector | None],
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[Sequence[int]]],
        *,
        temperature: float = 1.0,
        answered: Callable[[], None] = lambda: None,
    ) -> list[list[list[NDArray[np.float32]]]]:
        """Return the exact log-probabilities of completions: evaluation alone, nothing is drawn.

        Args:
            vectors: None for the base alone.
            prompts: token ids. What all begin with is evaluated once.
            completions: for each prompt the token ids of its completions, with the end-of-generation token
                where it is part of one.
            temperature: above 0; of the distribution softmax(logits / temperature).
            answered: called as each completion is scored, under each vector that differs from the others.

        Returns:
            For each vector and prompt, for each of its completions: float32 [n], natural logarithms, one a
            token.

        Raises:
            VectorError: a prompt or a completion is empty, or passes the room of a sequence; lengths that
                do not fit each other; the temperature is not above 0; a vector is too large for the model.
            TinyLoraError: the batch is closed.
        """
        if len(completions) != len(prompts):
            raise VectorError(
                f"{len(prompts)} prompts need as many lists of completions, not {len(completions)}"
            )
        for index, (prompt, each) in enumerate(zip(prompts, completions, strict=True)):
            for number, completion in enumerate(each):
                if not len(completion):
                    raise VectorError(f"completion {number} of prompt {index} is empty")
            self._check(index, prompt, max(map(len, each), default=0))
        admitted = self._admitted(vectors)
        keys = [each and each.digest for each in admitted]
        distinct = dict(zip(keys, admitted, strict=True))  # equal vectors are scored once, and score the same

        def works(finished: Finished) -> Iterator[Scoring]:
            for vector in distinct.values():
                for prompt, each in zip(prompts, completions, strict=True):
                    for completion in each:
                        yield Scoring(
                            tokens=list(prompt),
                            completion=completion,
                            temperature=temperature,
                            finished=finished,
                            vector=vector,
                            who=_OWNER,
                        )

        rows = (np.array(work.found, np.float32) for work in self._run(works, answered))
        of = {key: [[next(rows) for _ in each] for each in completions] for key in distinct}
        return [of[key] for key in keys]

    def close(self) -> None:
        """Free what it computes with; the model stays. The model's own `close` does it first.

        A call that computes in another thread is stopped, and raises a `TinyLoraError`, as every later one
        does. Closing again is fine.
        """
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, make: Callable[[Finished], Iterator[W]], answered: Callable[[], None]) -> list[W]:
        """Run work to its end; whatever goes wrong, none of it runs afterwards."""
        over: SimpleQueue[tuple[W, BaseException | None]] = SimpleQueue()
        works: list[W] = list(make(lambda work, error: over.put((work, error))))
        if self._caller == threading.get_ident():
            raise BusyError("a callback must not call its own batch: wait until the running call has ended")
        with self._turn:
            left = set(works)
            self._caller = threading.get_ident()
            try:
                self._loop.prepare()  # every call begins with empty rows, so that equal calls score equally
                self._loop.submit(*works)
                while left:
                    try:
                        left_s = None if self.until == np.inf else max(0.0, self.until - time.monotonic())
                        work, error = over.get(timeout=left_s)
                    except Empty:
                        raise Stopped from None
                    if error is not None:
                        raise error
                    answered()
                    left.remove(work)
            finally:
                self._caller = 0
                for work in left:
                    self._loop.cancel(work)
                self._loop.drain()
        return works

    def _admitted(self, vectors: Sequence[MicroVector | None]) -> list[AdmittedVector | None]:
        """Return vectors with their R, made once for each."""
        for vector in vectors:
            if vector is not None and not isinstance(vector, MicroVector):
                raise VectorError(
                    f"a batch takes a MicroVector, not {type(vector).__name__}: check bytes first, with "
                    "policy.check(data, llm.bases)"
                )
        made = {vector: None if vector is None else self.llm.own(vector) for vector in dict.fromkeys(vectors)}
        return [made[vector] for vector in vectors]

    def completion(self, generation: Generation) -> Completion:
        """Return a generation as text, without the token that ended it."""
        tokens = generation.tokens.tolist()
        text = self.llm.chat_tokenizer.decode(tokens[:-1] if generation.ended else tokens)
        return Completion(text, generation.ended, len(tokens))

    def _check(self, index: int, prompt: Sequence[int], more: int) -> None:
        if not len(prompt):
            raise VectorError(f"prompt {index} is empty")
        if len(prompt) + more > self._loop.n_ctx:
            raise VectorError(
                f"prompt {index} has {len(prompt)} tokens, which with {more} more pass the "
                f"{self._loop.n_ctx} of a sequence of this batch: raise n_ctx_seq, or take fewer"
            )


@dataclass
class _Drawn:
    """The draws of one sequence, and how likely each was: see `sampling.draw`."""

    temperature: float
    uniform: NDArray[np.float64]
    grammar: Grammar | None
    logprobs: list[float] = field(default_factory=list)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        at = len(self.logprobs)
        if self.grammar is not None:
            logits = self.grammar.masked(logits)
        token, found = draw(logits, self.temperature, self.uniform[at])
        self.logprobs.append(found)
        return token

    def accept(self, token: int, _: NDArray[np.float32]) -> bool:
        """Move the grammar past a token of the answer; False: the answer goes on."""
        if self.grammar is not None:
            self.grammar.accept(token)
        return False
