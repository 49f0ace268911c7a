"""transformers reads a GGUF file once in a block, and sees what it would see."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest

from tinylora_edge.formats.gguf_transformers import read_once


@pytest.mark.slow
def test_the_reader_gives_what_the_librarys_own_gives(smollm2_gguf: Path) -> None:
    theirs = gguf.GGUFReader(smollm2_gguf)
    with read_once():
        ours = gguf.GGUFReader(smollm2_gguf)
        assert gguf.GGUFReader(smollm2_gguf) is ours
    assert not isinstance(ours.data, np.memmap)
    assert ours.fields.keys() == theirs.fields.keys()
    for key, field in theirs.fields.items():
        some = slice(-3, None) if field.types[0] == gguf.GGUFValueType.ARRAY else 0
        assert ours.fields[key].contents(some) == field.contents(some), key
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.name, mine.tensor_type, mine.data_offset) == (
            other.name,
            other.tensor_type,
            other.data_offset,
        )
        assert np.array_equal(mine.data, other.data)


def test_afterwards_everything_is_as_it_was() -> None:
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with read_once():
        maps = [gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) for _ in range(2)]
        assert maps[0] is maps[1]
    with pytest.raises(OSError, match="nonesuch"), read_once():
        gguf.GGUFReader("nonesuch")
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_threads_take_turns() -> None:
    before, inside = gguf.GGUFReader, threading.Barrier(2)

    def load(_: int) -> bool:
        inside.wait()
        with read_once():
            mine = gguf.GGUFReader
            time.sleep(0.01)  # the other one would change it now
            return gguf.GGUFReader is mine and mine is not before

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(load, range(2))) == [True, True]
    assert gguf.GGUFReader is before
