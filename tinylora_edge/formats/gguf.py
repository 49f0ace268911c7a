"""The GGUF container, read and written.

The gguf package's `GGUFWriter` writes it. The reader is ours, for two reasons. `GGUFReader` turns every entry
of the vocabulary into numpy arrays, which takes 1.6 s for SmolLM2's 98 MB, where a device should start in
milliseconds. And it trusts the sizes that a file declares: this reader checks each of them against the file
before it uses it, and reads no tensor data until it is asked to.

A model may be split into several files, `<name>-00001-of-00008.gguf` and so on (llama.cpp's
`llama_split_path`, and its keys `split.no`, `split.count` and `split.tensors.count`).

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import IO, Any, TypeVar

import gguf
import numpy as np
from gguf.gguf_writer import WriterState
from numpy.typing import NDArray

from .. import limits
from ..writes import open_file

T = TypeVar("T")

_SCALARS = dict(zip((*range(8), 10, 11, 12), (f"<{code}" for code in "BbHhIif?Qqd"), strict=True))
_STRING, _ARRAY = 8, 9
_SPLIT_NAME = re.compile(r"(?P<stem>.+)-[0-9]{5}-of-(?P<count>[0-9]{5})\.gguf")
_MAX_DIMS = 4  # dimensions of a tensor, by the format

UINT32 = gguf.GGUFValueType.UINT32
STRING = gguf.GGUFValueType.STRING
FLOAT32 = gguf.GGUFValueType.FLOAT32
ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT


class MalformedGGUFError(ValueError):
    """The bytes are no GGUF file. Callers raise an error of their own instead, which names the file."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as the header describes it. `shape` is in numpy's order: (out, in) for a linear weight."""

    name: str
    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    offset: int  # of the data, in bytes from the start of the file
    nbytes: int


@dataclass(frozen=True)
class _Strings:
    offset: int
    count: int


class GGUFFile:
    """A GGUF file (a path) or image (bytes), parsed up to its data; the data is memory-mapped.

    Raises:
        OSError: the file cannot be read.
        MalformedGGUFError: it is not GGUF, or it declares more than it holds.
    """

    def __init__(self, source: str | PathLike[str] | bytes) -> None:
        if isinstance(source, bytes):
            self._buffer: mmap.mmap | bytes = source
        else:
            with open_file(source) as file:
                if file.seek(0, 2) == 0:
                    raise MalformedGGUFError("the file is empty")
                self._buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._size = len(self._buffer)
        self._values: dict[str, Any] = {}
        try:
            self._parse()
        except (struct.error, OverflowError) as error:  # OverflowError: a position beyond 2**63
            raise MalformedGGUFError(f"its header is cut or damaged ({error})") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a metadata value: a scalar, a str, a numpy array, or a list of str."""
        value = self._values.get(key, default)
        if not isinstance(value, _Strings):
            return value
        position, texts = value.offset, list[str]()
        for _ in range(value.count):
            text, position = self._string(position)
            texts.append(text)
        return texts

    def value(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return a metadata value of one kind; MalformedGGUFError where it is another, or missing."""
        found = self.get(key, default)
        if not isinstance(found, kind) or isinstance(found, bool):
            raise MalformedGGUFError(f"its key {key} is {found!r:.60}, expected {kind.__name__}")
        return found

    @property
    def architecture(self) -> str:
        """`general.architecture`, or "" where there is none."""
        value = self.get("general.architecture", "")
        return value if isinstance(value, str) else ""

    def data(self, tensor: Tensor) -> NDArray[np.uint8]:
        """Return the raw bytes of a tensor: uint8 [nbytes], read-only, not copied."""
        return np.frombuffer(self._buffer, np.uint8, tensor.nbytes, tensor.offset)

    def array(self, tensor: Tensor) -> NDArray[Any]:
        """Return a float32 or float16 tensor in its shape, read-only and not copied."""
        kinds = gguf.GGMLQuantizationType
        dtype = {kinds.F32: "<f4", kinds.F16: "<f2"}.get(tensor.type)
        if dtype is None:
            raise MalformedGGUFError(f"tensor {tensor.name} has type {tensor.type.name}, expected F32 or F16")
        return self.data(tensor).view(dtype).reshape(tensor.shape)

    def _parse(self) -> None:
        magic, version, tensors, pairs = struct.unpack_from("<4sIQQ", self._buffer, 0)
        if magic != b"GGUF":
            raise MalformedGGUFError(f"it starts with {magic!r}, not with b'GGUF'")
        if version not in (2, 3):
            raise MalformedGGUFError(f"it has GGUF version {version}, expected 2 or 3 (little-endian)")
        for what, count in (("keys", pairs), ("tensors", tensors)):
            if count > limits.ENTRIES:
                raise MalformedGGUFError(
                    f"it declares {count} {what}, and a file has at most {limits.ENTRIES}"
                )
        position = 24
        for _ in range(pairs):
            key, position = self._string(position, limits.NAME_BYTES)
            (kind,) = struct.unpack_from("<I", self._buffer, position)
            self._values[key], position = self._value(kind, position + 4)
        entries, position = self._entries(tensors, position)
        self.tensors = self._locate(entries, position)

    def _value(self, kind: int, position: int) -> tuple[Any, int]:
        if kind in _SCALARS:
            layout = _SCALARS[kind]
            return struct.unpack_from(layout, self._buffer, position)[0], position + struct.calcsize(layout)
        if kind == _STRING:
            return self._string(position)
        if kind != _ARRAY:
            raise MalformedGGUFError(f"it holds a value of unknown type {kind}")
        item, count = struct.unpack_from("<IQ", self._buffer, position)
        position += 12
        if item == _STRING:
            return self._skip_strings(count, position)
        if item not in _SCALARS:
            raise MalformedGGUFError(f"it holds an array of unknown type {item}")
        end = position + count * struct.calcsize(_SCALARS[item])
        self._check_end(end, f"an array of {count} values")
        return np.frombuffer(self._buffer, np.dtype(_SCALARS[item]), count, position), end

    def _string(self, position: int, most: int = limits.DOCUMENT_BYTES) -> tuple[str, int]:
        (length,) = struct.unpack_from("<Q", self._buffer, position)
        end = position + 8 + length
        self._check_end(end, f"a string of {length} bytes")
        if length > most:
            raise MalformedGGUFError(f"it holds a name or a text of {length} bytes: at most {most} are read")
        try:
            return self._buffer[position + 8 : end].decode(), end
        except UnicodeDecodeError as error:
            raise MalformedGGUFError(f"it holds a string that is not UTF-8 ({error})") from None

    def _skip_strings(self, count: int, position: int) -> tuple[_Strings, int]:
        if count > limits.STRINGS:
            raise MalformedGGUFError(f"it holds a list of {count} texts: at most {limits.STRINGS} are read")
        result = _Strings(position, count)
        unpack, buffer = struct.Struct("<Q").unpack_from, self._buffer
        for _ in range(count):  # 10^5 times for a vocabulary, which is most of the time of a parse
            position += 8 + unpack(buffer, position)[0]
        self._check_end(position, f"{count} strings")
        return result, position

    def _entries(self, count: int, position: int) -> tuple[list[Tensor], int]:
        entries = []
        for _ in range(count):
            name, position = self._string(position, limits.NAME_BYTES)
            (dims,) = struct.unpack_from("<I", self._buffer, position)
            if not 1 <= dims <= _MAX_DIMS:
                raise MalformedGGUFError(f"tensor {name} has {dims} dimensions, expected 1 to {_MAX_DIMS}")
            *ne, kind, offset = struct.unpack_from(f"<{dims}QIQ", self._buffer, position + 4)
            position += 4 + 8 * dims + 12
            if 0 in ne:
                raise MalformedGGUFError(f"tensor {name} has no entries: its dimensions are {ne}")
            try:
                type_ = gguf.GGMLQuantizationType(kind)
            except ValueError:
                raise MalformedGGUFError(f"tensor {name} has unknown type {kind}") from None
            block, size = gguf.GGML_QUANT_SIZES[type_]
            if ne[0] % block:
                raise MalformedGGUFError(f"tensor {name} has rows of {ne[0]}, no whole {type_.name} blocks")
            nbytes = ne[0] // block * size * math.prod(ne[1:])
            entries.append(Tensor(name, tuple(reversed(ne)), type_, offset, nbytes))
        return entries, position

    def _locate(self, entries: list[Tensor], position: int) -> dict[str, Tensor]:
        alignment = self.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise MalformedGGUFError(f"its alignment is {alignment!r}, expected a power of two")
        start = -(-position // alignment) * alignment
        tensors = {}
        for entry in entries:
            offset = start + entry.offset
            self._check_end(offset + entry.nbytes, f"{entry.nbytes} bytes of tensor {entry.name}")
            tensors[entry.name] = replace(entry, offset=offset)
        if len(tensors) != len(entries):
            raise MalformedGGUFError("it names a tensor twice")
        for one, two in pairwise(sorted(tensors.values(), key=lambda tensor: tensor.offset)):
            if two.offset < one.offset + one.nbytes:  # else a small file could declare much data
                raise MalformedGGUFError(f"its tensors {one.name} and {two.name} lie over the same bytes")
        return tensors

    def _check_end(self, end: int, what: str) -> None:
        if end > self._size:
            raise MalformedGGUFError(f"it declares {what} up to byte {end}, but has {self._size} bytes")


def split_name(stem: str, number: int, count: int) -> str:
    """Return the name of file `number` of `count`, counted from 1, of a split model."""
    return f"{stem}-{number:05}-of-{count:05}.gguf"


def whole_stem(path: str | PathLike[str]) -> str:
    """Return the stem of a GGUF file's name, without the numbers of a split model's file."""
    path = Path(path)
    match = _SPLIT_NAME.fullmatch(path.name)
    return match["stem"] if match else path.stem


def _parts(path: Path, count: int) -> list[Path]:
    """Return the `count` files, in order, of the split model to which a file belongs."""
    stem = whole_stem(path)
    return [path.with_name(split_name(stem, number, count)) for number in range(1, count + 1)]


def gguf_paths(path: str | PathLike[str]) -> list[Path]:
    """Return the files of a model, in order: the one that is named, or all of a split model."""
    path = Path(path)
    match = _SPLIT_NAME.fullmatch(path.name)
    parts = _parts(path, int(match["count"])) if match else []
    return parts if path in parts and all(each.exists() for each in parts) else [path]


def open_gguf(path: str | PathLike[str]) -> GGUFFile:
    """Open a GGUF model: its one file, or the first of a split model, whose metadata count for all.

    The files of a split model lie beside each other, named as llama.cpp names them. Each must have the number
    that its name says, no tensor may be there twice, and there must be as many as the first file says.
    MalformedGGUFError: a file is not GGUF, declares too much, or breaks a rule. OSError: one cannot be read.
    """
    path = Path(path)
    first = GGUFFile(path)
    count = first.get("split.count", 1)
    return first if not isinstance(count, int) or count <= 1 else _SplitGGUF(path, first, count)


class _SplitGGUF(GGUFFile):
    """All files of a split model as if they were one."""

    def __init__(self, path: Path, first: GGUFFile, count: int) -> None:
        if path.name != (name := split_name(whole_stem(path), 1, count)):
            raise MalformedGGUFError(
                f"it is one of the {count} files of a split model: name the first, which must be called like "
                f"{name}"
            )
        paths = _parts(path, count)
        files = [first, *map(GGUFFile, paths[1:])]
        for position, (each, file) in enumerate(zip(paths, files, strict=True)):
            place = file.value("split.no", int, 0), file.value("split.count", int, 1)
            if place != (position, len(paths)):
                raise MalformedGGUFError(
                    f"{each.name} says that it is file {place[0] + 1} of {place[1]}: the files are out of "
                    "order. Give them their names back"
                )
        self._values, self._buffer, self._size = first._values, first._buffer, first._size
        self.tensors: dict[str, Tensor] = {}
        self._homes: dict[str, GGUFFile] = {}
        for each, file in zip(paths, files, strict=True):
            twice = self.tensors.keys() & file.tensors.keys()
            if twice:
                raise MalformedGGUFError(f"{each.name} holds {min(twice)}, as a file before it does")
            self.tensors |= file.tensors
            self._homes |= dict.fromkeys(file.tensors, file)
        stated = first.value("split.tensors.count", int, len(self.tensors))
        if stated != len(self.tensors):
            raise MalformedGGUFError(
                f"its files hold {len(self.tensors)} tensors, but the first says {stated}: files of two "
                "models are mixed"
            )

    def data(self, tensor: Tensor) -> NDArray[np.uint8]:
        return self._homes[tensor.name].data(tensor)


def write(
    file: IO[bytes],
    architecture: str,
    metadata: Sequence[tuple[str, Any, gguf.GGUFValueType]],
    tensors: Mapping[str, NDArray[Any]],
) -> None:
    """Write metadata (key, value, type) and tensors as GGUF; a list is an array of values of its type.

    The file ends with the tensors' data in order, each of which begins at a multiple of `ALIGNMENT`.
    """
    writer = gguf.GGUFWriter(None, architecture)
    for key, value, kind in metadata:
        if isinstance(value, list):
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=kind)
        else:
            writer.add_key_value(key, value, kind)
    for name, array in tensors.items():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    write_header(writer, file)
    for array in tensors.values():
        _pad(file)
        file.write(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
    _pad(file)


def write_header(writer: gguf.GGUFWriter, file: IO[bytes]) -> None:
    """Write all but the tensors' data into an open file, where GGUFWriter itself takes only paths."""
    writer.fout, writer.state = [file], WriterState.EMPTY  # type: ignore[list-item]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _pad(file: IO[bytes]) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))
