"""The engine of a pool: a baked graph on plain ONNX Runtime, in which many sequences are rows of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ....errors import BaseMismatchError
from ....formats.onnx_graph import INPUT_NAME
from ..bundle import OnnxBundle
from ..session import cannot_load
from .cells import Cells

CHUNK = 128
"""Tokens of prompts that are evaluated at once, between two tokens of the answers beside them."""

FEWEST = 2
"""Rows, or tokens of a prompt, that a run has at least. ONNX Runtime computes a product with one row by other
kernels, whose last bits are others. With two and more a row's bits do not depend on how many there are."""

_IDS, _MASK, _LOGITS = "input_ids", "attention_mask", "logits"
_PAST, _PRESENT = "past_key_values.", "present."
_WIDTH = 256  # cells that the mask grows by
_FLOATS = 1 << 23  # of the logits of a prompt's end, at most
_PLAIN = (
    "intra_op_num_threads",
    "inter_op_num_threads",
    "enable_cpu_mem_arena",
    "enable_mem_pattern",
    "log_severity_level",
    "log_verbosity_level",
)


class Described(Protocol):
    """What a bundle's configuration says of its graph: `GenaiModel`."""

    @property
    def bundle(self) -> OnnxBundle:
        """Whose graph it is."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of the session, as genai_config.json words them."""

    @property
    def head_size(self) -> int | None:
        """Values of a key."""

    @property
    def n_vocab(self) -> int:
        """Entries of the logits."""


class RowEngine:
    """Sequences that are evaluated together, each with its vector and its length. One thread uses it.

    A row is a place for a sequence: its cells, and its vector. Rows are padded at their right: the graph's
    attention (GroupQueryAttention) takes the length of each row by itself, and computes nothing beyond it.

    Args:
        model: whose graph it is.
        size: values of a vector.
        rows: sequences; at least `FEWEST` are made.
        n_ctx: tokens of the longest.
        n_threads: of ONNX Runtime.
        beside: an engine whose session it shares, which may run in another thread at the same time.

    Attributes:
        values: float32 [rows, size], the vector of each row; zeros are the base.
        tail: tokens of a prompt's last part, at most.

    Raises:
        BaseMismatchError: ONNX Runtime cannot load the graph, or it is none that computes rows like this.
        TinyLoraError: the model computes elsewhere than on the CPU.
    """

    def __init__(
        self,
        model: Described,
        *,
        size: int,
        rows: int,
        n_ctx: int,
        n_threads: int,
        beside: RowEngine | None = None,
    ) -> None:
        self._session: Any = _session_of(model, n_threads) if beside is None else beside._session
        self._past, shapes = self._keys_of(model)
        self._present = [name.replace(_PAST, _PRESENT) for name in self._past]
        rows = max(rows, FEWEST)
        # A row that computes for nothing writes the cell behind its last one.
        self._cells = Cells(shapes, rows=rows, length=n_ctx + 1)
        self._n_vocab = model.n_vocab
        self.tail = min(CHUNK, max(FEWEST, _FLOATS // model.n_vocab))
        self.values = np.zeros((rows, size), np.float32)
        self._ids = np.zeros((rows, 1), np.int64)
        self._logits = np.zeros((rows, 1, model.n_vocab), np.float32)
        self._last = np.zeros(self.tail * model.n_vocab, np.float32)
        self._without_logits = onnxruntime.RunOptions()
        self._without_logits.only_execute_path_to_fetches = True
        self._step: tuple[tuple[int, int], Any, NDArray[np.int64]] | None = None
        self._try(model)

    def prefill(
        self, row: int, begin: int, tokens: Sequence[int], *, last: bool
    ) -> NDArray[np.float32] | None:
        """Append a part of a prompt to a row; return the logits after it if they are wanted.

        Args:
            row: whose it is.
            begin: how many tokens the row has already.
            tokens: `FEWEST` to `CHUNK` of them, and at most `tail` where it is the last part.
            last: whether the logits are wanted.

        Returns:
            float32 [vocabulary], until the next call.
        """
        if last:
            logits: NDArray[np.float32] = self.evaluate(row, begin, tokens)[-1]
            return logits
        self._session.run_with_iobinding(self._appending(row, begin, tokens), self._without_logits)
        return None

    def evaluate(self, row: int, begin: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens to a row; return the logits after each of them.

        Args:
            row: whose they are.
            begin: how many tokens the row has already.
            tokens: at most `tail` of them.

        Returns:
            float32 [tokens, vocabulary], until the next call.
        """
        count = len(tokens)
        binding = self._appending(row, begin, tokens)
        logits: NDArray[np.float32] = self._last[: count * self._n_vocab].reshape(count, self._n_vocab)
        _bind_output(binding, _LOGITS, logits[None])
        self._session.run_with_iobinding(binding)
        return logits

    def step(self, tokens: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float32]:
        """Append a token to each of the first rows; return their logits.

        Args:
            tokens: one a row, `FEWEST` or more.
            lengths: how many tokens each row has already.

        Returns:
            float32 [rows, vocabulary], until the next call.
        """
        count = len(tokens)
        width = min(-(-(max(lengths) + 1) // _WIDTH) * _WIDTH, self._cells.length)
        if self._step is None or self._step[0] != (count, width):
            mask = np.zeros((count, width), np.int64)
            binding = self._binding(0, count, self._ids[:count], mask)
            _bind_output(binding, _LOGITS, self._logits[:count])
            self._step = (count, width), binding, mask
        _, binding, mask = self._step
        self._ids[:count, 0] = tokens
        np.less_equal(np.arange(width), np.asarray(lengths)[:, None], out=mask, casting="unsafe")
        self._session.run_with_iobinding(binding)
        return self._logits[:count, 0]

    def swap(self, one: int, other: int, lengths: tuple[int, int]) -> None:
        """Exchange two rows, with their vectors; `lengths` are how many tokens each has."""
        self._cells.swap(one, other, lengths)
        self.values[[one, other]] = self.values[[other, one]]

    def erase(self, row: int) -> None:
        """Forget the tokens of a row."""
        self._cells.erase(row)

    def _keys_of(self, model: Described) -> tuple[list[str], list[tuple[int, int]]]:
        inputs = {each.name: each for each in self._session.get_inputs()}
        past = [name for name in inputs if name.startswith(_PAST)]
        unknown = [name for name in inputs if name not in (_IDS, _MASK, INPUT_NAME, *past)]
        if unknown or not past:
            wants = f"wants {', '.join(unknown)}" if unknown else "keeps no keys"
            raise _other_graph(model, f"it {wants}")
        shapes = []
        for name in past:
            _, heads, _, width = inputs[name].shape
            width = width if isinstance(width, int) else model.head_size
            if inputs[name].type != "tensor(float)" or not isinstance(heads, int) or not width:
                raise _other_graph(model, f"its {name} is {inputs[name].type} {inputs[name].shape}")
            shapes.append((heads, int(width)))
        return past, shapes

    def _appending(self, row: int, begin: int, tokens: Sequence[int]) -> Any:
        mask = np.ones((1, begin + len(tokens)), np.int64)
        return self._binding(row, row + 1, np.array([tokens], np.int64), mask)

    def _binding(self, begin: int, end: int, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Any:
        """Return a binding of some rows, which writes their cells where they are."""
        binding = self._session.io_binding()
        for name, array in ((_IDS, ids), (_MASK, mask), (INPUT_NAME, self.values[begin:end])):
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for past, present, tensor in zip(self._past, self._present, self._cells.tensors, strict=True):
            part = tensor[begin:end]
            binding.bind_input(past, "cpu", 0, np.float32, part.shape, part.ctypes.data)
            _bind_output(binding, present, part)
        return binding

    def _try(self, model: Described) -> None:
        """Compute a few tokens as the scheduler will, so that a graph of another kind is refused at once."""
        try:
            self.prefill(0, 0, [0] * FEWEST, last=False)
            self.prefill(0, FEWEST, [0] * FEWEST, last=True)
            self.step([0] * FEWEST, [2 * FEWEST, 0])
        except Exception as error:
            raise _other_graph(model, " ".join(str(error).split())[:300]) from error
        self.erase(0)
        self.erase(1)


def _bind_output(binding: Any, name: str, array: NDArray[np.float32]) -> None:
    binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)


def _session_of(model: Described, n_threads: int) -> Any:
    options = _session_options({**model.options, "intra_op_num_threads": n_threads})
    try:
        return onnxruntime.InferenceSession(
            str(model.bundle.model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions are of a dozen types, all of them direct children
        raise cannot_load(model.bundle, error) from error


def _session_options(given: Mapping[str, Any]) -> Any:
    """Return ONNX Runtime's options of what onnxruntime-genai's configuration says."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # a default that can be fed is warned of each time
    for name, value in given.items():
        if name in _PLAIN:
            setattr(options, name, value)
        elif name == "graph_optimization_level":
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, str(value))
        elif name == "custom_ops_library":
            options.register_custom_ops_library(value)
        elif "." in name:
            options.add_session_config_entry(name, str(value))
    return options


def _other_graph(model: Described, why: str) -> BaseMismatchError:
    return BaseMismatchError(
        f"{model.bundle.model} is no graph for a pool, which needs what onnxruntime-genai's builder writes "
        f"for the CPU (GroupQueryAttention over float32 keys): {why}. Export it with --format onnx"
    )
