"""Rows of a llama.cpp context over the weights of a loaded model: what batches and pools compute with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from ...errors import TinyLoraError
from ..engine import CLOSED, Part
from .adapters import SPARE_BYTES, Adapter, Adapters, signals_wait

_CHUNK = 512
"""Tokens that are evaluated at once, as many as `llama_cpp.Llama` takes."""


class LlamaEngine:
    """A context with sequences; see `Engine`. All rows of one decode have one R, which the context has.

    Args:
        model: the `llama_model`, which must outlive the engine.
        like: parameters of the model's own context. The engine's differ in size and threads alone, so that
            answers are the same to the last bit.
        adapters: of the model.
        own: adapters of the caller's own, which are in force beside every R.
        rows, n_ctx, n_threads, together: see `PersonalizedModel.engine`.

    TinyLoraError: llama.cpp cannot make the context.
    """

    mixed = False
    chunk = _CHUNK
    _release = llama_cpp.llama_free, llama_cpp.llama_batch_free  # bound early: globals go before models do

    def __init__(
        self,
        model: Any,
        like: Any,
        adapters: Adapters,
        own: Sequence[tuple[Adapter, float]],
        *,
        rows: int,
        n_ctx: int,
        n_threads: int,
        together: bool,
    ) -> None:
        self._adapters, self._own = adapters, own
        self.rows, self.evaluated = rows, 0
        self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))
        params = type(like).from_buffer_copy(like)
        self._spare = rows  # a sequence beyond the rows, by which two of them change places
        sequences = rows + together
        params.n_ctx = n_ctx * sequences
        params.n_batch = params.n_ubatch = self._size = max(_CHUNK, rows)
        params.n_seq_max = sequences
        params.kv_unified = False  # attention goes over a row's own cells, not over everybody's
        params.n_threads = params.n_threads_batch = n_threads
        params.embeddings = False
        if not together:
            adapters.spare = SPARE_BYTES
        with adapters.lock.shared(), signals_wait():  # llama.cpp walks through them
            self._context: Any = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise TinyLoraError(
                f"llama.cpp cannot make a context of {params.n_ctx} tokens for {rows} sequences: take fewer"
            )
        self._buffer = llama_cpp.llama_batch_init(self._size, 0, 1)
        names = ("token", "pos", "n_seq_id", "logits")
        self._columns = [np.ctypeslib.as_array(getattr(self._buffer, n), (self._size,)) for n in names]
        self._columns[2][:] = 1
        self._memory = llama_cpp.llama_get_memory(self._context)
        self.n_ctx = min(int(llama_cpp.llama_n_ctx_seq(self._context)), n_ctx)
        self._lengths = [0] * rows
        self._place = list(range(rows))  # the sequence of each row
        self._r: list[NDArray[np.float32] | None] = [None] * rows
        self.exact = not together
        self._now: object = self  # the R that the context has; nothing yet

    def set_r(self, row: int, r: NDArray[np.float32] | None) -> None:
        """See `Engine`."""
        self._r[row] = r

    def evaluate(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        """See `Engine`; all rows have one R."""
        self._check_open()
        if not self.exact:
            self._gather([part.row for part in parts])
        ordered = sorted(parts, key=lambda part: self._place[part.row])
        chunks, found = list(self._chunks(ordered)), []
        token, pos, _, logits = self._columns
        try:
            if self._now is not (r := self._r[parts[0].row]):
                self._now = self  # unknown, until llama.cpp has taken it
                self._adapters.apply(self._context, r, self._own)
                self._now = r
            for tokens, positions, rows, wanted in chunks:
                count = len(tokens)
                token[:count], pos[:count], logits[:count] = tokens, positions, wanted
                for i, row in enumerate(rows):
                    self._buffer.seq_id[i][0] = row
                self._buffer.n_tokens = count
                with self._adapters.lock.shared():
                    code = llama_cpp.llama_decode(self._context, self._buffer)
                if code:
                    reason = "its KV cache is full" if code == 1 else f"code {code}"
                    raise TinyLoraError(f"llama.cpp could not evaluate {count} tokens: {reason}")
                self.evaluated += count
                there = self._logits(sum(wanted))
                found.append(there.copy() if len(chunks) > 1 else there)
        except BaseException:
            for part in parts:
                llama_cpp.llama_memory_seq_rm(self._memory, self._place[part.row], -1, -1)
                self._lengths[part.row] = 0
            raise
        for part in parts:
            self._lengths[part.row] += len(part.tokens)
        logits = found[0] if len(found) == 1 else np.concatenate(found)
        if ordered == list(parts):
            return logits
        ends = np.cumsum([part.wanted for part in ordered])
        of = {part.row: logits[end - part.wanted : end] for part, end in zip(ordered, ends, strict=True)}
        return np.concatenate([of[part.row] for part in parts])

    def length(self, row: int) -> int:
        """See `Engine`."""
        return self._lengths[row]

    def cut(self, row: int, length: int) -> int:
        """See `Engine`."""
        self._check_open()
        remove, place = llama_cpp.llama_memory_seq_rm, self._place[row]
        whole = llama_cpp.llama_memory_seq_pos_min(self._memory, place) <= 0  # no window (swa_full)
        if length < self._lengths[row] and not (whole and remove(self._memory, place, length, -1)):
            remove(self._memory, place, -1, -1)
            length = 0
        self._lengths[row] = min(self._lengths[row], length)
        if not any(self._lengths):
            self._place.sort()  # nothing tells of what was evaluated before
        return self._lengths[row]

    def copy(self, source: int, target: int, length: int) -> None:
        """See `Engine`; the whole of the source is copied."""
        self._check_open()
        self._copy(self._place[source], self._place[target])
        self._lengths[target] = self._lengths[source]
        self.cut(target, length)

    def purge(self, row: int) -> None:
        """See `Engine`. No mask hides a NaN: the base's evaluation of as many tokens overwrites them."""
        length = self._lengths[row]
        self.cut(row, 0)
        self.set_r(row, None)
        self.evaluate([Part(row, [0] * length, 0)])
        self.cut(row, 0)

    def close(self) -> None:
        """Free the context. Again is fine."""
        context, self._context = self._context, None
        if context is None:
            return
        self._adapters.forget(context)
        free, free_batch = self._release
        self._columns = []
        free_batch(self._buffer)
        free(context)

    def _copy(self, source: int, target: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, target, -1, -1)
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def _gather(self, rows: Sequence[int]) -> None:
        """Give rows the first sequences: llama.cpp evaluates those together that follow each other."""
        taken = {self._place[row] for row in rows}
        holes = iter(set(range(len(rows))) - taken)
        for row in rows:
            if (place := self._place[row]) >= len(rows):
                hole = next(holes)
                other = self._place.index(hole)
                for source, target in ((place, self._spare), (hole, place), (self._spare, hole)):
                    self._copy(source, target)
                self._place[row], self._place[other] = hole, place

    def _check_open(self) -> None:
        if self._context is None:
            raise TinyLoraError(CLOSED)

    def _chunks(self, parts: Sequence[Part]) -> Iterator[tuple[list[int], list[int], list[int], list[bool]]]:
        """Yield as many tokens as there is room for, positions, rows, and whether logits are wanted."""
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        wanted: list[bool] = []
        for row, added, last in parts:
            tokens += added
            begin, count = self._lengths[row], len(added)
            positions += range(begin, begin + count)
            rows += [self._place[row]] * count
            wanted += [False] * (count - last) + [True] * last
        for start in range(0, len(tokens), self._size):
            end = start + self._size
            yield tokens[start:end], positions[start:end], rows[start:end], wanted[start:end]

    def _logits(self, outputs: int) -> NDArray[np.float32]:
        if not outputs:
            return np.empty((0, self.n_vocab), np.float32)
        pointer = llama_cpp.llama_get_logits(self._context)
        logits: NDArray[np.float32] = np.ctypeslib.as_array(pointer, (outputs, self.n_vocab))
        return logits
