"""Rows of a baked graph on ONNX Runtime, each with its R: what batches and pools compute with."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tinylora_edge.errors import BaseMismatchError, TinyLoraError
from tinylora_edge.factors import Factors
from tinylora_edge.formats.onnx_graph import INPUT_NAME, input_row

from ..engine import CLOSED, Part

_LONGEST = 128
"""Most tokens of a prompt in a run of ONNX Runtime."""

_FEWEST = 2
"""Fewest rows, or tokens of a prompt, in a run of ONNX Runtime, which computes a product with one row by
other kernels, whose last bits differ. From two rows on, the bits of a row do not depend on the number of
rows. Nor do those of a token depend on the number of tokens in its piece, except the last token's in pieces
of 33, 65 and 97."""

_IDS, _MASK, _LOGITS = "input_ids", "attention_mask", "logits"
_PAST, _PRESENT = "past_key_values.", "present."
_WIDTH = 256  # cells by which the mask grows
_FLOATS = 1 << 23  # most logits of one piece of a prompt
_IDLE = 2  # steps without a row after which it may be moved: it waits for its next turn, or is free
_BLOCK = 64  # a row's length in cells is a multiple of this, so that rows begin at a page of memory


class OnnxEngine:
    """Sequences that are evaluated together, each with its R and its length; see `Engine`.

    Rows are padded on the right: the graph's attention (GroupQueryAttention) has the length of each row, and
    computes nothing beyond it. Rows that generate are moved beside each other, in exchange for idle rows.
    What a row computes does not depend on the others, to the last bit. An engine of one row uses other
    kernels, and so has other last bits.

    Args:
        session: an `onnxruntime.InferenceSession`, which engines in other threads may share.
        factors: those in the graph.
        rows, n_ctx: sequences, and tokens of each.
        head_size: values of a key, where the graph does not say.
        path: of the graph, for errors.

    Raises:
        BaseMismatchError: the graph does not compute rows like this.
        TinyLoraError: there is no memory for so many.
    """

    chunk = 64

    def __init__(
        self, session: Any, *, factors: Factors, rows: int, n_ctx: int, head_size: int | None, path: object
    ) -> None:
        self._session, self._path = session, path
        self.rows, self.n_ctx, self.evaluated = rows, n_ctx, 0
        self._past, shapes, self.n_vocab = self._read_graph(head_size)
        self._present = [name.replace(_PAST, _PRESENT) for name in self._past]
        self._fewest = min(rows, _FEWEST)
        try:  # one more cell, which a full row that only computes along in `_step` writes
            self._cells: Cells | None = Cells(shapes, rows=rows, length=n_ctx + 1)
        except OSError as error:
            raise TinyLoraError(
                f"there is no memory for {rows:,} sequences of {n_ctx:,} tokens ({error}): take fewer"
            ) from None
        self._tail = min(_LONGEST, max(_FEWEST + 1, _FLOATS // self.n_vocab))
        self._shape = factors.shape
        self._r = np.zeros((rows, factors.r_size), np.float32)
        self._ids = np.zeros((rows, 1), np.int64)
        self._logits = np.zeros((rows, 1, self.n_vocab), np.float32)
        self._last = np.zeros((1, self._tail, self.n_vocab), np.float32)
        self._without_logits = onnxruntime.RunOptions()
        self._without_logits.only_execute_path_to_fetches = True
        self._step_binding: tuple[tuple[int, int], Any, NDArray[np.int64]] | None = None
        self._lengths = [0] * rows  # by the number of the row, as the next two
        self._place = list(range(rows))  # the place of each row in the cells
        self._used, self._calls = [-_IDLE] * rows, 0  # the step that used each row last, and steps so far

    def set_r(self, row: int, r: NDArray[np.float32] | None) -> None:
        """See `Engine`."""
        self._r[self._place[row]] = 0 if r is None else input_row(r, self._shape)

    def evaluate(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        """See `Engine`."""
        self._open()
        one = [part for part in parts if len(part.tokens) == 1]
        self._calls += bool(one)
        for part in parts:
            self._used[part.row] = self._calls
        found: dict[int, NDArray[np.float32]] = {}
        try:
            for part in parts:
                if len(part.tokens) > 1:
                    found[part.row] = self._append(part, alone=len(parts) == 1)
            if one:
                logits = self._step(one)
                if len(one) == len(parts) and all(part.wanted for part in one):
                    places = [self._place[part.row] for part in one]
                    return logits[: len(one)] if places == list(range(len(one))) else logits[places]
                found.update((part.row, logits[[self._place[part.row]]][: part.wanted]) for part in one)
        except Exception as error:  # whatever failed, these rows hold nothing whole
            for part in parts:
                self.cut(part.row, 0)
            if isinstance(error, TinyLoraError):
                raise
            raise TinyLoraError(f"ONNX Runtime failed: {' '.join(str(error).split())[:300]}") from error
        if len(parts) == 1:
            return found[parts[0].row]
        return np.concatenate([found[part.row] for part in parts])

    def length(self, row: int) -> int:
        """See `Engine`."""
        return self._lengths[row]

    def cut(self, row: int, length: int) -> int:
        """See `Engine`."""
        self._lengths[row] = min(self._lengths[row], length)
        if not self._lengths[row]:
            self._open().erase(self._place[row])
        return self._lengths[row]

    def copy(self, source: int, target: int, length: int) -> None:
        """See `Engine`."""
        self._open().copy(self._place[source], self._place[target], length)
        self._lengths[target] = min(length, self._lengths[source])

    def purge(self, row: int) -> None:
        """See `Engine`: the others stay."""
        self.cut(row, 0)

    def close(self) -> None:
        """Free the cells, and the session where no other engine has it. Again is fine."""
        self._session = self._cells = self._step_binding = None

    def _open(self) -> Cells:
        if self._cells is None:
            raise TinyLoraError(CLOSED)
        return self._cells

    def _append(self, part: Part, *, alone: bool) -> NDArray[np.float32]:
        """Append tokens to one row, piece by piece; return the logits that are wanted."""
        place, count = self._place[part.row], len(part.tokens)
        found = []
        pieces = list(_pieces(count, part.wanted, self._tail))
        for begin, end in pieces:
            mask = np.ones((1, self._lengths[part.row] + end - begin), np.int64)
            ids = np.array([part.tokens[begin:end]], np.int64)
            binding = self._binding(place, place + 1, ids, mask)
            if wanted := max(0, end - max(begin, count - part.wanted)):
                logits = self._last.reshape(-1)[: ids.size * self.n_vocab].reshape(1, ids.size, self.n_vocab)
                _bind_output(binding, _LOGITS, logits)
                self._session.run_with_iobinding(binding)
                last = logits[0, ids.size - wanted :]
                found.append(last if alone and (begin, end) == pieces[-1] else last.copy())
            else:
                self._session.run_with_iobinding(binding, self._without_logits)
            self._lengths[part.row] += end - begin
            self.evaluated += end - begin
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else np.empty((0, self.n_vocab), np.float32)

    def _step(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        """Append a token to some rows; return logits [places, vocabulary] of the first places."""
        cells = self._open()
        count = max(self._fewest, self._gather([part.row for part in parts]))
        lengths = [0] * self.rows
        for row, place in enumerate(self._place):
            lengths[place] = self._lengths[row]
        width = min(-(-(max(lengths[:count]) + 1) // _WIDTH) * _WIDTH, cells.length)
        if self._step_binding is None or self._step_binding[0] != (count, width):
            mask = np.zeros((count, width), np.int64)
            binding = self._binding(0, count, self._ids[:count], mask)
            _bind_output(binding, _LOGITS, self._logits[:count])
            self._step_binding = (count, width), binding, mask
        _, binding, mask = self._step_binding
        self._ids[:count] = 0
        for part in parts:
            self._ids[self._place[part.row]] = part.tokens[0]
        np.less_equal(np.arange(width), np.array(lengths[:count])[:, None], out=mask, casting="unsafe")
        self._session.run_with_iobinding(binding)
        for part in parts:
            self._lengths[part.row] += 1
        self.evaluated += len(parts)
        return self._logits[:count, 0]

    def _gather(self, rows: Sequence[int]) -> int:
        """Move rows that generate to the first places, past idle ones; return how many places they take.

        A row between them that was used lately stays where it is. It computes along, and nobody reads it.
        """
        at = sorted((self._place[row], row) for row in rows)
        row_of = {place: row for row, place in enumerate(self._place)}
        free = [p for p in range(at[-1][0]) if self._used[row_of[p]] <= self._calls - _IDLE]
        while free and at and free[0] < at[-1][0]:
            hole, (place, row) = free.pop(0), at.pop()
            other = row_of[hole]
            self._open().swap(place, hole, (self._lengths[row], self._lengths[other]))
            self._r[[place, hole]] = self._r[[hole, place]]
            self._place[row], self._place[other] = hole, place
        return 1 + max(self._place[row] for row in rows)

    def _binding(self, begin: int, end: int, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Any:
        """Return a binding of places `begin` .. `end` - 1, with which ONNX Runtime writes cells in place."""
        binding = self._session.io_binding()
        for name, array in ((_IDS, ids), (_MASK, mask), (INPUT_NAME, self._r[begin:end])):
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for past, present, tensor in zip(self._past, self._present, self._open().tensors, strict=True):
            part = tensor[begin:end]
            binding.bind_input(past, "cpu", 0, np.float32, part.shape, part.ctypes.data)
            _bind_output(binding, present, part)
        return binding

    def _read_graph(self, head_size: int | None) -> tuple[list[str], list[tuple[int, int]], int]:
        """Return the inputs of past keys and values, heads and width of each, and the vocabulary's size."""
        inputs = {each.name: each for each in self._session.get_inputs()}
        outputs = {each.name: each for each in self._session.get_outputs()}
        past = [name for name in inputs if name.startswith(_PAST)]
        unknown = [name for name in inputs if name not in (_IDS, _MASK, INPUT_NAME, *past)]
        if unknown or not past or _LOGITS not in outputs:
            wants = f"wants {', '.join(unknown)}" if unknown else "keeps no keys, or gives no logits"
            raise self._other(f"it {wants}")
        shapes = []
        for name in past:
            _, heads, _, width = inputs[name].shape
            width = width if isinstance(width, int) else head_size
            if inputs[name].type != "tensor(float)" or not isinstance(heads, int) or not width:
                raise self._other(f"its {name} is {inputs[name].type} {inputs[name].shape}")
            shapes.append((heads, int(width)))
        entries = outputs[_LOGITS].shape[-1]
        if not isinstance(entries, int):
            raise self._other(f"its logits are {outputs[_LOGITS].shape}")
        return past, shapes, entries

    def _other(self, why: str) -> BaseMismatchError:
        return BaseMismatchError(
            f"{self._path} is no graph that answers, as onnxruntime-genai's builder writes it for the CPU "
            f"(GroupQueryAttention over float32 keys): {why}. Export it with --format onnx; a loop of your "
            "own runs in tinylora_edge.runtime.OnnxSession"
        )


class Cells:
    """Keys and values of sequences, in memory of our own that ONNX Runtime writes in place.

    At first that is address space alone: a cell gets memory when it is first written, and keeps it until its
    row is erased. Nothing is copied to grow. `shapes` are heads and width of each tensor of keys or values.

    Attributes:
        tensors: float32 [rows, heads, length, width], the length rounded up. Any run of rows is contiguous.
        length: cells of a row.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], *, rows: int, length: int) -> None:
        self.length = -(-length // _BLOCK) * _BLOCK
        self._maps: list[mmap.mmap] = []
        self.tensors: list[NDArray[np.float32]] = []
        for heads, width in shapes:
            shape = (rows, heads, self.length, width)
            # Not the default, which is shared memory: MADV_DONTNEED does not free that.
            private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
            memory = mmap.mmap(-1, int(np.prod(shape)) * 4, **private)
            if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a page of 2 MB would hold many rows
                with suppress(OSError):
                    memory.madvise(mmap.MADV_NOHUGEPAGE)
            self._maps.append(memory)
            self.tensors.append(np.frombuffer(memory, np.float32).reshape(shape))

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first cells of a row to another one."""
        for tensor in self.tensors:
            tensor[target, :, :length] = tensor[source, :, :length]

    def swap(self, one: int, other: int, lengths: tuple[int, int]) -> None:
        """Exchange the first `lengths` cells of two rows."""
        ours, theirs = lengths
        for tensor in self.tensors:
            kept = tensor[one, :, :ours].copy()
            tensor[one, :, :theirs] = tensor[other, :, :theirs]
            tensor[other, :, :ours] = kept
        for row, left in ((one, theirs), (other, ours)):
            if not left:
                self.erase(row)

    def erase(self, row: int) -> None:
        """Return the memory of a row to the system, where that is possible; what its cells hold is lost."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        for memory, tensor in zip(self._maps, self.tensors, strict=True):
            size = tensor[row].nbytes
            if size % mmap.PAGESIZE == 0:
                with suppress(OSError):
                    memory.madvise(mmap.MADV_DONTNEED, row * size, size)


def _pieces(count: int, wanted: int, tail: int) -> Iterator[tuple[int, int]]:
    """Return begin and end of pieces of at least two tokens, by which last bits are the same; see `_FEWEST`.

    Args:
        count: tokens, at least two.
        wanted: how many of the last ones have logits that are wanted.
        tail: most tokens of a piece with logits.
    """
    found, end = [], count
    while end:
        begin = max(0, end - (tail if end > count - wanted else _LONGEST))
        if begin == 1:  # else one token would be left
            begin = 2
        if (end - begin) % 32 == 1:
            begin += 8
        found.append((begin, end))
        end = begin
    return reversed(found)


def _bind_output(binding: Any, name: str, array: NDArray[np.float32]) -> None:
    binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
