"""Rows of a llama.cpp context over the weights of a loaded model: what batches and pools compute with."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from tinylora_edge.errors import TinyLoraError

from ..engine import CLOSED, Part
from .adapters import Adapter, Adapters, signals_wait
from .columns import Columns

_AT_ONCE = 512
"""Most tokens that are evaluated at once, as many as `llama_cpp.Llama` takes."""


class LlamaEngine:
    """A context with sequences, each with its R; see `Engine`.

    Rows that generate are evaluated together, and a prompt's tokens by themselves. llama.cpp keeps the order
    of a batch whose sequences have successive numbers and equally many tokens, so all batches are like that.
    With `fewest` 2 a row that generates alone is evaluated beside an idle one.

    Args:
        model: the `llama_model`, which must outlive the engine.
        like: parameters of the model's own context. The engine's differ in size and threads alone.
        adapters: of the model.
        own: adapters of the caller's own, with their scales, which are in force beside every R.
        rows, n_ctx, n_threads, fewest: see `PersonalizedModel.engine`.

    TinyLoraError: llama.cpp cannot make the context, or evaluates this model in another way.
    """

    chunk = 64
    _release = llama_cpp.llama_free, llama_cpp.llama_batch_free  # bound early, as `adapters._free`

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
        fewest: int = 1,
    ) -> None:
        self.rows, self.evaluated = rows, 0
        self._first = fewest - 1  # the sequence of the first row; one before it is empty between steps
        self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))
        self._adapters = adapters
        columns = self._columns = Columns(adapters.factors, adapters.modules)
        params = type(like).from_buffer_copy(like)
        sequences = rows + self._first
        params.n_ctx = n_ctx * sequences
        params.n_batch = params.n_ubatch = self._size = max(_AT_ONCE, sequences)
        params.n_seq_max = sequences
        params.kv_unified = False  # so that attention goes over the cells of one row, not of all rows
        params.n_threads = params.n_threads_batch = n_threads
        params.embeddings = False
        params.cb_eval, params.cb_eval_user_data = columns.callback, columns.data
        with adapters.lock:
            whole = adapters.whole()
            with signals_wait():
                self._context: Any = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise TinyLoraError(
                f"llama.cpp cannot make a context of {params.n_ctx} tokens for {sequences} sequences: "
                "take fewer"
            )
        self._buffer = llama_cpp.llama_batch_init(self._size, 0, 1)
        names = ("token", "pos", "n_seq_id", "logits")
        self._fields = [np.ctypeslib.as_array(getattr(self._buffer, n), (self._size,)) for n in names]
        self._fields[2][:] = 1
        self._memory = llama_cpp.llama_get_memory(self._context)
        self.n_ctx = min(int(llama_cpp.llama_n_ctx_seq(self._context)), n_ctx)
        self._lengths = [0] * rows
        self._place = list(range(self._first, sequences))  # the sequence of each row
        self._r: list[NDArray[np.float32] | None] = [None] * rows
        try:
            adapters.set(self._context, [(whole, 1.0)])
            with adapters.lock:  # another thread's first engine may be looking for them
                if not adapters.modules:
                    # With one thread, as OpenMP's threads would stay with this one: see
                    # `TinyLoraLlama.__init__`.
                    llama_cpp.llama_set_n_threads(self._context, 1, 1)
                    with columns.looking():
                        self._fill(0, [0])
                    llama_cpp.llama_set_n_threads(self._context, n_threads, n_threads)
                    self.cut(0, 0)
            columns.know()
            adapters.set(self._context, [(whole, 1.0), *own])
        except BaseException:
            self.close()
            raise
        self.evaluated = 0

    def set_r(self, row: int, r: NDArray[np.float32] | None) -> None:
        """See `Engine`."""
        self._r[row] = None if r is None else np.ascontiguousarray(r)

    def evaluate(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        """See `Engine`. The logits that are wanted of a part are those of its last 512 tokens at most."""
        self._check_open()
        found: dict[int, NDArray[np.float32]] = {}
        try:
            runs = self._runs(parts)
            for run in runs:
                logits, wanted = self._decode(run), run[0].wanted
                if len(runs) > 1:  # the next run overwrites them
                    logits = logits.copy()
                found |= {part.row: logits[i * wanted :][:wanted] for i, part in enumerate(run)}
        except BaseException:
            for part in parts:
                self._empty(part.row)
            raise
        rows = [part.row for part in parts]
        return logits if len(runs) == 1 and [*found] == rows else np.concatenate([found[row] for row in rows])

    def _runs(self, parts: Sequence[Part]) -> list[list[Part]]:
        """Return the ends of parts in runs that are evaluated together: of one length, with successive
        sequences. Tokens ahead of these ends are evaluated here."""
        if len(parts) > 1 or (self._first and len(parts[0].tokens) == 1):
            self._gather([part.row for part in parts])
        beside = any(len(part.tokens) == 1 for part in parts)
        alike: dict[tuple[int, int], list[Part]] = {}
        for row, tokens, wanted in parts:
            # The last token of a prompt is evaluated with those of the rows that generate.
            ahead = len(tokens) - 1 if beside and wanted == 1 else max(0, len(tokens) - self._size)
            self._fill(row, tokens[:ahead])
            alike.setdefault((len(tokens) - ahead, wanted), []).append(Part(row, tokens[ahead:], wanted))
        runs: list[list[Part]] = []
        for (count, _), group in alike.items():
            before = None
            for part in sorted(group, key=lambda part: self._place[part.row]):
                if (
                    before is None
                    or self._place[part.row] != before + 1
                    or len(runs[-1]) * count + count > self._size
                ):
                    runs.append([])
                runs[-1].append(part)
                before = self._place[part.row]
        return runs

    def _fill(self, row: int, tokens: Sequence[int]) -> None:
        for begin in range(0, len(tokens), self._size):
            self._decode([Part(row, tokens[begin : begin + self._size], 0)])

    def _decode(self, run: Sequence[Part]) -> NDArray[np.float32]:
        """Evaluate a run, and return the logits that are wanted, until the next call."""
        token, pos, _, logits = self._fields
        _, tokens, wanted = run[0]
        count = len(tokens)
        at = idle = self._first if count == len(run) == wanted == 1 else 0
        if idle:
            token[0], pos[0], logits[0], self._buffer.seq_id[0][0] = 0, 0, True, 0
        for row, tokens, _ in run:
            begin, end = self._lengths[row], at + count
            token[at:end], pos[at:end] = tokens, range(begin, begin + count)
            logits[at : end - wanted], logits[end - wanted : end] = False, True
            for i in range(at, end):
                self._buffer.seq_id[i][0] = self._place[row]
            at = end
        self._buffer.n_tokens = at
        columns = self._columns.of([None] * idle + [self._r[part.row] for part in run], {count, wanted})
        with columns, self._adapters.computing(self._context):
            code = llama_cpp.llama_decode(self._context, self._buffer)
        if idle:
            llama_cpp.llama_memory_seq_rm(self._memory, 0, -1, -1)
        if code:
            reason = "its KV cache is full" if code == 1 else f"code {code}"
            raise TinyLoraError(f"llama.cpp could not evaluate {at} tokens: {reason}")
        self.evaluated += at - idle
        for part in run:
            self._lengths[part.row] += count
        if not (outputs := idle + wanted * len(run)):
            return np.empty((0, self.n_vocab), np.float32)
        pointer = llama_cpp.llama_get_logits(self._context)
        found: NDArray[np.float32] = np.ctypeslib.as_array(pointer, (outputs, self.n_vocab))
        return found[idle:]

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
            self._place.sort()  # empty rows have the same sequences whatever was evaluated before
        return self._lengths[row]

    def copy(self, source: int, target: int, length: int) -> None:
        """See `Engine`; the whole of the source is copied."""
        self._check_open()
        self._restore(target, self._lengths[source], self._saved(source))
        self.cut(target, length)

    def purge(self, row: int) -> None:
        """See `Engine`. Masks do not hide NaN, so the base evaluates as many tokens in the same cells."""
        length = self._lengths[row]
        self.cut(row, 0)
        self.set_r(row, None)
        self._fill(row, [0] * length)
        self.cut(row, 0)

    def close(self) -> None:
        """Free the context. Again is fine."""
        context, self._context = self._context, None
        if context is None:
            return
        free, free_batch = self._release
        self._fields = []
        free_batch(self._buffer)
        free(context)

    def _empty(self, row: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, self._place[row], -1, -1)
        self._lengths[row] = 0

    def _saved(self, row: int) -> NDArray[np.uint8]:
        """Return what a row holds, of the cells in use: llama.cpp's own copy of a sequence copies all."""
        if not self._lengths[row]:
            return np.empty(0, np.uint8)
        data = np.empty(llama_cpp.llama_state_seq_get_size(self._context, self._place[row]), np.uint8)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        llama_cpp.llama_state_seq_get_data(self._context, pointer, data.nbytes, self._place[row])
        return data

    def _restore(self, row: int, length: int, data: NDArray[np.uint8]) -> None:
        """Replace what a row holds by `length` tokens that `_saved` returned."""
        self._empty(row)
        if length:
            pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
            read = llama_cpp.llama_state_seq_set_data(self._context, pointer, data.nbytes, self._place[row])
            if read != data.nbytes:
                self._empty(row)
                raise TinyLoraError(f"llama.cpp could not move {length} tokens to another sequence")
            self._lengths[row] = length

    def _gather(self, rows: Sequence[int]) -> None:
        """Give rows the first sequences, so that their numbers are successive."""
        row_of, end = {place: row for row, place in enumerate(self._place)}, self._first + len(rows)
        holes = [place for place in range(self._first, end) if row_of[place] not in rows]
        for row in rows:
            if (place := self._place[row]) >= end:
                other = row_of[hole := holes.pop()]
                kept = [(each, self._lengths[each], self._saved(each)) for each in (row, other)]
                self._empty(row)
                self._empty(other)
                self._place[row], self._place[other] = hole, place
                for each in kept:
                    self._restore(*each)

    def _check_open(self) -> None:
        if self._context is None:
            raise TinyLoraError(CLOSED)
