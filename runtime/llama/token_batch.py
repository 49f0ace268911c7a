"""Batches of token sequences in llama.cpp, generated or scored side by side.

A batch has contexts of its own over the weights of a loaded model, its lanes, which compute in threads of
their own. Sampling is vectorised over the sequences of a lane, and every token comes with its exact
log-probability.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Self, TypeVar

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from ...errors import TinyLoraError, VectorError
from ...system import cores
from ...vector import MicroVector
from ..lock import Process
from .lane import Generation, Given, Job, Key, Lane, Read, Stopped, reader_of
from .lora import Adapter
from .personalizer import Personalizer
from .protocols import Weights
from .sampling import likeliest, logprobs

T = TypeVar("T")

_FEWEST = 8
"""Sequences of a lane: with fewer, reading the weights costs more than waiting for other threads."""


class TokenBatch:
    """A batch of token sequences that are generated or scored at once with a micro-vector.

    Lanes: threads of one context wait for each other at every operation, hundreds of times a token. One
    context a core is 1.5 times as fast on two cores (SmolLM2-135M, 32 sequences), and does not collapse
    when something else wants a core. Sequences are spread over as many lanes as leave 8 to each, cores
    likewise.

    Any thread may call it; calls take turns.

    Args:
        llm: a loaded model, whose `close` closes the batch. Its own context and vector are left alone.
        n_ctx_seq: tokens of the longest sequence, prompt and completion.
        shared: tokens that all prompts begin with, at most: they take room once, not in every sequence.
        sequences: how many run at the same time.
        n_threads: cores to use; by default all that this process may use.
        lanes: how many at most, where it is not the sequences that say so. A call that keeps fewer of them
            busy gives those all cores.

    Raises:
        TinyLoraError: llama.cpp cannot make the context, or the model is closed.
    """

    def __init__(
        self,
        llm: Weights,
        *,
        n_ctx_seq: int,
        shared: int = 0,
        sequences: int = 32,
        n_threads: int | None = None,
        lanes: int | None = None,
    ) -> None:
        self.llm = llm
        threads = n_threads or cores()
        count = max(1, min(threads, lanes or sequences // _FEWEST))
        if llm.model_params.n_gpu_layers and llama_cpp.llama_supports_gpu_offload():
            count = 1  # lanes would wait for the same device
        self.lanes = count  # that compute side by side; each evaluates for itself what its prompts share
        self._shared_cores = threads if lanes else 0
        self._process = Process()
        self._turn = threading.RLock()
        self._depth = 0  # calls of the thread that has the turn, within each other
        self._closed = False
        self._lanes: list[Lane] = []
        each = -(-sequences // count)
        with llm._staying():
            self._personalizer: Personalizer | None = Personalizer(llm.model, llm.basis, llm.turns)
            self._own = llm.own_adapters()  # the caller's, in force beside every vector
            try:
                for _ in range(count):
                    # What all prompts share lies in the cells once more, and so does the next prompt while
                    # it is evaluated.
                    cells = (each + 2) * (n_ctx_seq - shared) + shared
                    self._lanes.append(Lane(llm, sequences=each, n_ctx=cells, n_threads=threads // count))
                if self._own:
                    self._personalizer.apply([lane.context for lane in self._lanes], None, self._own)
            except BaseException:
                self._free()
                raise
            # Never in the caller's thread: torch computing there in bfloat16 would release the AMX tiles that
            # llama.cpp configures once for each thread that it computes in.
            self._pool = ThreadPoolExecutor(count, "tinylora-batch")
            llm._dependents.add(self)

    @property
    def vector(self) -> MicroVector | None:
        """The vector that generations use, or None for the base alone."""
        personalizer = self._personalizer
        return personalizer.vector if personalizer else None

    def swap(self, vector: MicroVector | None) -> None:
        """Use another vector from now on; None for the base alone.

        Bytes are checked where they come in: `Policy.check`.

        Raises:
            VectorError: the vector does not fit the basis; the one before stays.
            TinyLoraError: the batch is closed.
        """
        check_type(vector)
        with self._computing() as personalizer:
            personalizer.apply([lane.context for lane in self._lanes], vector, self._own)

    def attach(self, adapter: Adapter) -> None:
        """Use a LoRA beside the model's own, at scale 1, and no vector until the next `swap`.

        Args:
            adapter: loaded into the model (`LoraImage.load`), on modules of the basis alone. It is the
                caller's to free, after the next `swap` or `attach`.
        """
        with self._computing() as personalizer:
            personalizer.apply([lane.context for lane in self._lanes], None, [*self._own, (adapter, 1.0)])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int = 1,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        ended: Callable[[], None] = lambda: None,
    ) -> list[Generation]:
        """Continue every prompt `samples` times.

        Args:
            prompts: token ids.
            samples: sequences a prompt.
            max_tokens: of each sequence.
            temperature: of sampling from the full distribution; 0 takes the most likely token.
            seed: of the random numbers. Every sequence has its own, whatever runs beside it: the result
                is deterministic on one machine and build, and two vectors draw with the same numbers.
            ended: called whenever a sequence has ended, in a thread of the batch.

        Returns:
            len(prompts) * samples generations, those of one prompt together, in order. Where the vector is so
            large that logits are not finite, a generation ends and says so (`exploded`).

        Raises:
            VectorError: a prompt is empty, or leaves no room for the tokens asked for.
            TinyLoraError: the batch is closed, or is closed while it generates.
        """
        with self._computing():
            if not prompts:
                return []
            return self._generate(prompts, samples, max_tokens, temperature, seed, ended)

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        max_tokens: int,
        temperature: float,
        seed: int | Sequence[int],
        ended: Callable[[], None],
    ) -> list[Generation]:
        self._check(prompts, max_tokens)
        shape = len(prompts), samples, max_tokens
        uniform = np.random.default_rng(seed).random(shape) if temperature else np.zeros(shape)
        numbered = list(enumerate(prompts))
        lanes = len(self._lanes)
        if len(prompts) >= lanes:
            parts = [
                (numbered[part.start : part.stop], range(samples)) for part in split(len(prompts), lanes)
            ]
        else:
            parts = [(numbered, part) for part in split(samples, lanes) if part]
        jobs = [Job(chosen, part, max_tokens, temperature, uniform, ended) for chosen, part in parts]
        done: dict[tuple[int, int], Generation] = {}
        for found in self._run(Lane.run, jobs):
            done |= found
        return [done[p, s] for p in range(len(prompts)) for s in range(samples)]

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[Sequence[int]]],
        *,
        temperature: float = 1.0,
        among: Sequence[Sequence[NDArray[np.int32]]] | None = None,
    ) -> list[list[NDArray[np.float32]]]:
        """Return the exact log-probabilities of given completions: evaluation alone, nothing is drawn.

        A prompt is evaluated once for all its completions, and what all prompts begin with once for all
        prompts; completions are evaluated together.

        Args:
            prompts: token ids.
            completions: for each prompt the token ids of its completions, with the end-of-generation token
                where it is part of one.
            temperature: above 0; of the distribution softmax(logits / temperature).
            among: for each prompt, for each of its completions int32 [n, k]: score these tokens in the place
                of the completion's own, k of them wherever one of its tokens stands.

        Returns:
            For each prompt, for each of its completions: float32 [n], natural logarithms, one a token; with
            `among` float32 [n, k]. NaN where the model's logits are not finite: the vector is too large.

        Raises:
            VectorError: a prompt or a completion is empty, or passes the room of a sequence; as many lists
                of completions as prompts are needed, and of `among` as many rows as tokens; the temperature
                is not above 0.
        """
        if among is not None and _lengths(among) != _lengths(completions):
            raise VectorError("every completion needs as many rows of other tokens (among) as it has tokens")
        read = reader_of(completions if among is None else among, temperature)
        found = self._read(prompts, completions, read)
        return [[np.array(rows, np.float32) for rows in each] for each in found]

    def likeliest(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]], count: int
    ) -> list[list[tuple[NDArray[np.int32], NDArray[np.float32]]]]:
        """Return which tokens are the likeliest wherever a token of a given completion stands.

        Args:
            prompts, completions: as for `score`.
            count: tokens a place.

        Returns:
            For each prompt, for each of its completions: the tokens, int32 [n, count], in no order, and
            their log-probabilities, float32 [n, count].

        Raises:
            VectorError: as for `score`.
        """

        def read(logits: NDArray[np.float32], _: object) -> Iterable[Any]:
            tokens = likeliest(logits, count)
            return zip(tokens, logprobs(logits, 1.0, tokens), strict=True)

        found = self._read(prompts, completions, read)
        return [[(np.array([t for t, _ in r]), np.array([p for _, p in r])) for r in each] for each in found]

    def _read(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]], read: Read
    ) -> list[list[list[Any]]]:
        """Evaluate given completions; return for each of each prompt what is read at each of its tokens."""
        with self._computing():
            return self._read_in_turn(prompts, completions, read)

    def _read_in_turn(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]], read: Read
    ) -> list[list[list[Any]]]:
        self._check_given(prompts, completions)
        numbered = [(index, prompt) for index, prompt in enumerate(prompts) if completions[index]]
        parts = [numbered[part.start : part.stop] for part in split(len(numbered), len(self._lanes))]
        done: dict[Key, list[Any]] = {}
        for scored in self._run(Lane.score, [Given(part, completions, read) for part in parts if part]):
            done |= scored
        return [[done[p, c] for c in range(len(completions[p]))] for p in range(len(prompts))]

    @property
    def evaluated(self) -> int:
        """Tokens that were evaluated since the batch was made, prompts and answers; 0 once it is closed."""
        return sum(lane.evaluated for lane in self._lanes)

    def close(self) -> None:
        """Free the contexts and the adapters; the model stays. The model's own `close` does it first.

        A call that computes in another thread is stopped, and raises a `TinyLoraError`, as every later one
        does. Closing again is fine.
        """
        if self._process.forked:  # nothing of the engine may be touched there
            return
        self._closed = True
        for lane in list(self._lanes):
            lane.stop = True
        with self._turn:
            self._free_if_over()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, work: Callable[[Lane, Any], T], jobs: Sequence[Any]) -> list[T]:
        """Do one job a lane; whatever goes wrong, no lane computes afterwards."""
        self._check_open()
        if self._shared_cores:
            for lane, _ in zip(self._lanes, jobs, strict=False):
                lane.use(self._shared_cores // len(jobs))
        running = [self._pool.submit(work, lane, job) for lane, job in zip(self._lanes, jobs, strict=False)]
        try:
            return [future.result() for future in running]
        except BaseException as error:
            for lane in self._lanes:
                lane.stop = True
            for future in running:
                future.exception()
            for lane in self._lanes:
                lane.stop = self._closed
            if isinstance(error, Stopped):
                self._check_open()
            raise

    @contextmanager
    def _computing(self) -> Iterator[Personalizer]:
        """Have the batch to oneself for a call; within itself it is the same call.

        Raises:
            TinyLoraError: it is closed, or this process is a fork.
        """
        self._process.check()
        with self._turn:
            self._check_open()
            assert self._personalizer is not None
            self._depth += 1
            try:
                yield self._personalizer
            finally:
                self._depth -= 1
                self._free_if_over()

    def _free_if_over(self) -> None:
        """Free everything of a closed batch, once no call is left that computes with it."""
        if self._closed and not self._depth and self._personalizer is not None:
            self._pool.shutdown()
            self._free()

    def _check_open(self) -> None:
        if self._closed:
            raise TinyLoraError("the batch is closed: it was, or its model was. Make another one")

    def _free(self) -> None:
        for lane in self._lanes:
            lane.free()
        if self._personalizer is not None:
            self._personalizer.free()
        self._lanes, self._personalizer = [], None

    def _check_given(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]]
    ) -> None:
        if len(completions) != len(prompts):
            raise VectorError(
                f"{len(prompts)} prompts need as many lists of completions, not {len(completions)}"
            )
        for index, (prompt, found) in enumerate(zip(prompts, completions, strict=True)):
            for number, completion in enumerate(found):
                if not len(completion):
                    raise VectorError(f"completion {number} of prompt {index} is empty")
            self._check([prompt], max(map(len, found), default=0), index)

    def _check(self, prompts: Sequence[Sequence[int]], max_tokens: int, first: int = 0) -> None:
        cells = min(lane.n_ctx for lane in self._lanes)
        for index, prompt in enumerate(prompts, first):
            if not len(prompt):
                raise VectorError(f"prompt {index} is empty")
            if len(prompt) + max_tokens > cells:
                raise VectorError(
                    f"prompt {index} has {len(prompt)} tokens, which with {max_tokens} more pass the "
                    f"{cells} cells of the batch: raise n_ctx_seq, or take fewer"
                )


def check_type(vector: object) -> None:
    """Refuse what is no micro-vector, such as bytes that nobody checked."""
    if vector is not None and not isinstance(vector, MicroVector):
        raise VectorError(
            f"a batch takes a MicroVector, not {type(vector).__name__}: check bytes first, with "
            "policy.check(data, basis)"
        )


def _lengths(rows: Sequence[Sequence[Sequence[Any] | NDArray[Any]]]) -> list[list[int]]:
    return [[len(row) for row in each] for each in rows]


def split(count: int, parts: int) -> list[range]:
    """Cut range(count) into so many ranges of equal length, but for one."""
    edges = [count * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(edges)]
