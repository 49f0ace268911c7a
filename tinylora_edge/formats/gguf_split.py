"""A GGUF model that was split into several files, `<name>-00001-of-00008.gguf` and so on.

Format: llama.cpp's `llama_split_path` and its keys `split.no`, `split.count` and `split.tensors.count`.
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .gguf import GGUFFile, MalformedGGUFError, Tensor

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")


def split_name(stem: str, number: int, count: int) -> str:
    """Return the name of file `number`, from 1, of `count`."""
    return f"{stem}-{number:05}-of-{count:05}.gguf"


def whole_stem(path: str | PathLike[str]) -> str:
    """Return the stem of a GGUF file's name, without what says that it is one of several."""
    path = Path(path)
    match = _NAME.fullmatch(path.name)
    return match["stem"] if match else path.stem


def named_paths(path: Path) -> list[Path]:
    """Return the files of the split model that a file's name makes it one of, in order, or the file alone.

    The file itself is always among them: who checks these has checked what an engine opens.
    """
    match = _NAME.fullmatch(path.name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return [path]
    count = int(match["count"])
    return [path.with_name(split_name(match["stem"], number, count)) for number in range(1, count + 1)]


def gguf_paths(path: str | PathLike[str]) -> list[Path]:
    """Return the files of a model that `open_gguf` opened: the one, or all of a split one, in order."""
    path = Path(path)
    paths = named_paths(path)
    return paths if all(each.exists() for each in paths) else [path]


def open_gguf(path: str | PathLike[str]) -> GGUFFile:
    """Open a GGUF model, whole or split.

    The rules for a split one:

    1. It is named by its first file, and all files lie beside that one.
    2. Their names are `<stem>-NNNNN-of-NNNNN.gguf`, as llama.cpp needs them to be.
    3. Each says that it is the one that its name says (`split.no`, `split.count`).
    4. No tensor is there twice, and there are as many as the first file says.

    Args:
        path: the file, or the first of several.

    Returns:
        The file; the metadata of a split model is that of its first file.

    Raises:
        OSError: a file cannot be read.
        MalformedGGUFError: a file is not GGUF, declares more than it holds, or breaks a rule.
    """
    path = Path(path)
    first = GGUFFile(path)
    count = first.get("split.count", 1)
    return first if not isinstance(count, int) or count <= 1 else _SplitGGUF(path, first, count)


class _SplitGGUF(GGUFFile):
    """All files of a split model as if they were one."""

    def __init__(self, path: Path, first: GGUFFile, count: int) -> None:
        match = _NAME.fullmatch(path.name)
        if match is None:
            number = first.value("split.no", int, 0) + 1
            raise MalformedGGUFError(
                f"it is file {number} of a model split into {count}, but is not named like "
                f"{split_name('model', number, count)}: give the files their names back"
            )
        if match["number"] != "00001":
            name = split_name(match["stem"], 1, count)
            raise MalformedGGUFError(f"it is not the first of its {count} files: name {name}")
        paths = named_paths(path)
        missing = [each.name for each in paths if not each.exists()]
        if missing:
            raise MalformedGGUFError(
                f"it is the first of {len(paths)} files, and {missing[0]} is not beside it"
                + (f", nor are {len(missing) - 1} more" if len(missing) > 1 else "")
                + ": download what is missing"
            )
        files = [first, *map(GGUFFile, paths[1:])]
        for position, (each, file) in enumerate(zip(paths, files, strict=True)):
            told = file.value("split.no", int, 0), file.value("split.count", int, 1)
            if told != (position, len(paths)):
                raise MalformedGGUFError(
                    f"{each.name} says that it is file {told[0] + 1} of {told[1]}: the files are out of "
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
        """Return the raw bytes of a tensor: uint8 [nbytes], read-only, not copied."""
        return self._homes[tensor.name].data(tensor)
