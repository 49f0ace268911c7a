"""R of each row, inside an evaluation: llama.cpp computes B (A x), and between the two A x becomes R A x.

All vectors of a model share A and B, so one adapter serves them all. llama.cpp asks a callback about each
node of its graph. On a processor the callback turns A x and B (A x) into operations of columns.c, which
llama.cpp's own threads compute with the R of the row whose token it is. Elsewhere, and for experts, llama.cpp
stops at A x, and the callback replaces each column by R A x: at every stop all threads wait for each other.
columns.c does this without the interpreter's lock, for which llama.cpp would wait too; where it is not built,
the callback here does the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from tinylora_edge.errors import BaseMismatchError, TinyLoraError
from tinylora_edge.factors import Factors

from . import BINDINGS, FITTING

_A = b".lora_a"
_F32 = 0  # GGML_TYPE_F32
_CPU = 0  # GGML_BACKEND_DEVICE_TYPE_CPU


class _Tensor(ctypes.Structure):
    """ggml's `ggml_tensor`, as `_ggml` has checked."""

    _fields_: ClassVar = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    ]


_SRC = _Tensor.src.offset


class _Memory(ctypes.Structure):
    _fields_: ClassVar = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


@cache
def _ggml() -> Any:
    """Return ggml's library, whose tensors are as `_Tensor` says.

    TinyLoraError: they are not, in a llama.cpp that is older or newer than this.
    """
    folder = Path(llama_cpp.llama_cpp._lib._name).parent
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.dll")
    found = next((folder / name for name in names if (folder / name).exists()), None)
    ggml = llama_cpp.llama_cpp._lib if found is None else ctypes.CDLL(str(found))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, *arguments in (
        ("ggml_init", pointer, _Memory),
        ("ggml_free", None, pointer),
        ("ggml_tensor_overhead", size),
        ("ggml_new_tensor_2d", pointer, pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64),
        ("ggml_mul_mat", pointer, pointer, pointer, pointer),
        ("ggml_set_name", pointer, pointer, ctypes.c_char_p),
        ("ggml_get_data", pointer, pointer),
        ("ggml_backend_buffer_is_host", ctypes.c_bool, pointer),
        ("ggml_backend_tensor_get", None, pointer, pointer, size, size),
        ("ggml_backend_tensor_set", None, pointer, pointer, size, size),
    ):
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    memory = ggml.ggml_init(_Memory(1 << 16, None, False))
    try:
        a, x = (ggml.ggml_new_tensor_2d(memory, _F32, 5, n) for n in (3, 2))
        ggml.ggml_set_name(a, _A)
        address = ggml.ggml_mul_mat(memory, a, x)
        overhead = ggml.ggml_tensor_overhead() - ctypes.sizeof(_Tensor)
        fits = overhead in range(16, 65) and overhead % 16 == 0  # the header of an object in ggml's memory
        if fits:
            node, leaf = _Tensor.from_address(address), _Tensor.from_address(a)
            fits = (
                (node.type, [*node.ne], [*node.nb], [*node.src[:3]], node.data, node.view_src, node.view_offs)
                == (_F32, [3, 2, 1, 1], [4, 12, 24, 24], [a, x, None], ggml.ggml_get_data(address), None, 0)
                and (leaf.op, leaf.name) == (0, _A)
                and node.op != 0
            )
    finally:
        ggml.ggml_free(memory)
    if not fits:
        raise TinyLoraError(
            f"{BINDINGS} {llama_cpp.__version__} brings a ggml whose tensors are laid out in another way "
            f"than this version of tinylora-edge knows: install {[*FITTING][-1]}"
        )
    return ggml


class _Module(ctypes.Structure):
    _fields_: ClassVar = [
        ("a", ctypes.c_size_t),
        *((name, ctypes.c_int64) for name in ("number", "outputs", "experts")),
    ]


class _Row(ctypes.Structure):
    _fields_: ClassVar = [("r", ctypes.c_void_p), ("p", ctypes.c_int64), ("q", ctypes.c_int64)]


class _Columns(ctypes.Structure):
    """columns.c's `columns`."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("unknown", "is_host", "get", "set")),
        ("modules", ctypes.POINTER(_Module)),
        ("rows", ctypes.POINTER(_Row)),
        ("n_modules", ctypes.c_int64),
        ("n_rows", ctypes.c_int64),
        ("counts", ctypes.c_int64 * 2),
        *((name, ctypes.c_int64) for name in ("failed", "custom", "pending")),
    ]


@cache
def _native() -> Any:
    """Return the callback of columns.c; None where it is not built."""
    found = find_spec(f"{__package__}._columns")
    return None if found is None or found.origin is None else ctypes.CDLL(found.origin).tinylora_columns


class _Operation(ctypes.Structure):
    """columns.c's `custom`, ggml's `ggml_custom_op_params`."""

    _fields_: ClassVar = [
        ("compute", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
        ("columns", ctypes.c_void_p),
    ]


@cache
def _custom() -> int:
    """Return the number of ggml's operation of one's own; 0 where it is not as columns.c writes it."""
    ggml, pointer = _ggml(), ctypes.c_void_p
    try:
        ggml_custom_4d = ggml.ggml_custom_4d
    except AttributeError:
        return 0
    ggml_custom_4d.restype = pointer
    ggml_custom_4d.argtypes = [
        *(pointer, ctypes.c_int, *[ctypes.c_int64] * 4),
        *(pointer, ctypes.c_int, pointer, ctypes.c_int, pointer),
    ]
    memory = ggml.ggml_init(_Memory(1 << 16, None, False))
    try:
        sources = (pointer * 2)(*(ggml.ggml_new_tensor_2d(memory, _F32, 5, n) for n in (3, 2)))
        node = _Tensor.from_address(
            ggml_custom_4d(memory, _F32, 3, 2, 1, 1, sources, 2, 0x1234567890, -1, 0x9876543210)
        )
        written = _Operation.from_buffer_copy(node.op_params)
        known = (written.compute, written.threads, written.columns) == (0x1234567890, -1, 0x9876543210)
        return int(node.op) if known and [*node.src[:2]] == [*sources] else 0
    finally:
        ggml.ggml_free(memory)


@cache
def _only_cpu() -> bool:
    """Return whether processors alone evaluate: other devices do not know the operations of columns.c."""
    name = llama_cpp.llama_cpp._lib._name
    folder, names = Path(name).parent, ("libggml.so", "libggml.dylib", "ggml.dll", "libggml.dll")
    found = next((folder / name for name in names if (folder / name).exists()), None)
    ggml = llama_cpp.llama_cpp._lib if found is None else ctypes.CDLL(str(found))
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    devices = [ggml.ggml_backend_dev_get(i) for i in range(ggml.ggml_backend_dev_count())]
    return {ggml.ggml_backend_dev_type(device) for device in devices} == {_CPU}


def has_operations() -> bool:
    """Return whether A x and B (A x) become operations of columns.c, which reads B^T in place of B."""
    return _native() is not None and _only_cpu() and _custom() > 0


class Columns:
    """What llama.cpp calls between the nodes of an engine's graphs.

    Args:
        factors: of the model.
        modules: address of a tensor A -> number of its module.

    Attributes:
        callback, data: for a context's parameters. They live as long as this.
    """

    def __init__(self, factors: Factors, modules: dict[int, int]) -> None:
        self._ggml, self._factors, self._modules = _ggml(), factors, modules
        self._rows: Sequence[NDArray[np.float32] | None] = ()
        self._counts = set[int]()
        self._numbers: dict[bytes, int] = {}  # name of a tensor A -> number of its module, while `looking`
        self._error: BaseException | None = None
        kind = llama_cpp.ggml_backend_sched_eval_callback
        self._python = self.callback = kind(lambda node, ask, _: self(node, ask))
        self.data: Any = None
        self._table: _Columns | None = None
        if native := _native():
            host, get, put = (
                ctypes.cast(getattr(self._ggml, f"ggml_backend_{name}"), ctypes.c_void_p).value
                for name in ("buffer_is_host", "tensor_get", "tensor_set")
            )
            unknown = ctypes.cast(self._python, ctypes.c_void_p).value
            self._table = _Columns(unknown, host, get, put, custom=_custom() if has_operations() else 0)
            self.callback, self.data = ctypes.cast(native, kind), ctypes.addressof(self._table)

    def know(self) -> None:
        """Tell columns.c the modules, once all are found: before it every row has the base's answers."""
        if self._table is not None:
            known = [
                _Module(a, number, self._factors.rows[number], self._factors.a[number].ndim > 2)
                for a, number in sorted(self._modules.items())
            ]
            self._table.modules, self._table.n_modules = (_Module * len(known))(*known), len(known)

    @contextmanager
    def of(self, rows: Sequence[NDArray[np.float32] | None], counts: set[int]) -> Iterator[None]:
        """Set the R of the rows that the block evaluates: float32 [M, p, q] each, in the order of the rows.

        `counts` are the tokens of each row, and the tokens with logits: behind the last attention llama.cpp
        leaves out the others. TinyLoraError: it evaluates the tokens of this model in another way.
        """
        self._rows, self._counts, self._error = rows, counts, None
        if (table := self._table) is not None:
            known = [_Row() if r is None else _Row(r.ctypes.data, *r.shape[1:]) for r in rows]
            table.rows, table.n_rows = (_Row * len(rows))(*known), len(rows)
            table.failed = table.pending = 0
            table.counts[:] = min(counts), max(counts)
        yield
        if self._error is None and table is not None and (number := table.failed or table.pending):
            self._error = self._otherwise(number - 1)
        if self._error is not None:
            raise self._error

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Find the tensors A of the only adapter while the block evaluates a token of the base.

        An error leaves none behind. BaseMismatchError: it has none.
        """
        self._numbers = {name.encode() + _A: number for number, name in enumerate(self._factors.modules)}
        try:
            with self.of([None], {0, 1}):
                yield
        except BaseException:
            self._modules.clear()
            raise
        finally:
            self._numbers = {}
        if not self._modules:
            raise BaseMismatchError("llama.cpp evaluates none of the modules that the factors are for")

    def __call__(self, address: int, ask: bool) -> bool:
        """Be llama.cpp's callback: `ask`, say whether the node at an address is wanted; else replace its
        values. False ends the evaluation."""
        try:
            source = ctypes.c_void_p.from_address(address + _SRC).value
            if not ask:
                self._replace(_Tensor.from_address(address), self._modules[source or 0])
            elif source and self._numbers:
                leaf = _Tensor.from_address(source)
                if leaf.name in self._numbers:
                    self._modules[source] = self._numbers[leaf.name]
            return source in self._modules if ask else True
        except BaseException as error:  # ctypes would drop it
            self._error = self._error or error
            return False

    def _replace(self, node: _Tensor, module: int) -> None:
        """Replace A x of each token by R A x, and by zeros for the base."""
        outputs, columns, rows = node.ne[0], node.ne[1] * node.ne[2] * node.ne[3], len(self._rows)
        # Where a module has experts, a token has a column for each expert that it uses.
        tokens = node.ne[2] if self._factors.a[module].ndim > 2 else columns
        if tokens == 0:
            return
        if (outputs, *node.nb[:2]) != (self._factors.rows[module], 4, 4 * outputs) or (
            tokens not in [rows * count for count in self._counts]
        ):
            raise self._otherwise(module)
        size = 4 * outputs * columns
        if host := self._ggml.ggml_backend_buffer_is_host(node.buffer):
            memory = (ctypes.c_char * size).from_address(node.data)
        else:
            memory = ctypes.create_string_buffer(size)
            self._ggml.ggml_backend_tensor_get(ctypes.byref(node), memory, 0, size)
        x = np.frombuffer(memory, np.float32).reshape(rows, -1, outputs)
        for place, r in zip(x, self._rows, strict=True):
            if r is None:
                place[:] = 0
            else:
                own = r[module, :outputs]
                p, q = own.shape
                place[:, :p] = place[:, :q] @ own.T
                place[:, p:] = 0
        if not host:
            self._ggml.ggml_backend_tensor_set(ctypes.byref(node), memory, 0, size)

    def _otherwise(self, module: int) -> TinyLoraError:
        return TinyLoraError(
            f"llama.cpp evaluates {self._factors.modules[module]} in another way than is known, so this "
            "model answers through `load` alone, one user at a time"
        )
