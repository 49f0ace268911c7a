"""The GGUF reader: against gguf's own on a real model, and on files that lie about their sizes."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path
from typing import ClassVar

import gguf
import numpy as np
import pytest
import support
from gguf_images import image, pair, tensor, text

from tinylora_edge.formats import gguf as _gguf
from tinylora_edge.formats.gguf import GGUFFile, MalformedGGUFError

HUGE = 1 << 60
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


@pytest.fixture(scope="module")
def theirs(smollm2_gguf: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(smollm2_gguf)


@pytest.fixture(scope="module")
def ours(smollm2_gguf: Path) -> GGUFFile:
    return GGUFFile(smollm2_gguf)


class TestOnARealModel:
    @pytest.mark.slow
    def test_metadata(self, ours, theirs):
        expected = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
        assert list(ours) == list(expected)
        for key, value in expected.items():
            found = ours.get(key)
            if isinstance(value, list) and not isinstance(value[0], str):
                assert isinstance(found, np.ndarray)
                found = found.tolist()
            assert found == value, key
            assert key in ours
        kinds = {type(ours.get(key)) for key in expected}
        assert kinds >= {str, int, float, bool, list, np.ndarray}, "the model exercises every kind"

    def test_tensors(self, ours, theirs):
        assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
        for expected in theirs.tensors:
            found = ours.tensors[expected.name]
            assert found.name == expected.name
            assert found.shape == tuple(int(dim) for dim in expected.shape[::-1])
            assert found.type == expected.tensor_type
            assert found.offset == expected.data_offset
            assert found.nbytes == expected.n_bytes


class TestKinds:
    """Every kind of value and type, written by gguf or by hand."""

    SCALARS: ClassVar = {
        U8: ("<B", 200),
        I8: ("<b", -100),
        U16: ("<H", 60000),
        I16: ("<h", -30000),
        U32: ("<I", 1 << 31),
        I32: ("<i", -(1 << 31)),
        F32: ("<f", 0.15625),
        BOOL: ("<?", True),
        U64: ("<Q", (1 << 64) - 1),
        I64: ("<q", -(1 << 63)),
        F64: ("<d", 0.1),
    }

    @pytest.mark.parametrize("kind", SCALARS)
    def test_scalars_and_arrays(self, kind):
        layout, value = self.SCALARS[kind]
        packed = struct.pack(layout, value)
        array = struct.pack("<IQ", kind, 3) + packed * 3
        pairs = [pair("one", kind, packed), pair("three", ARRAY, array)]
        file = GGUFFile(image(pairs, version=2 + kind % 2))
        assert file.get("one") == value
        assert type(file.get("one")) is type(value)
        assert file.get("three").tolist() == [value] * 3
        assert file.get("three").dtype == np.dtype(layout)

    @pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
    def test_alignment(self, alignment):
        key = pair("general.alignment", U32, struct.pack("<I", alignment))
        head = image([key], [tensor("t", [4])])[: 24 + len(key) + len(tensor("t", [4]))]
        data = np.arange(4, dtype="<f4")
        file = GGUFFile(head + bytes(-len(head) % alignment) + data.tobytes())
        np.testing.assert_array_equal(file.array(file.tensors["t"]), data)

    def test_write_is_read_by_gguf_and_by_us(self, tmp_path):
        arrays = {
            "one": np.arange(7, dtype=np.float32),
            "two": np.arange(15, dtype=np.float16).reshape(3, 5),
            "three": np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4).swapaxes(0, 2)),
        }
        metadata = [
            ("n", 7, _gguf.UINT32),
            ("big", (1 << 64) - 1, gguf.GGUFValueType.UINT64),
            ("x", 0.5, _gguf.FLOAT32),
            ("name", "é𝄞", _gguf.STRING),
            ("names", ["a", "", "é"], _gguf.STRING),
            ("numbers", [3, 1, 2], _gguf.UINT32),
        ]
        memory = io.BytesIO()
        _gguf.write(memory, "llama", metadata, arrays)
        path = tmp_path / "file.gguf"
        with open(path, "wb") as file:
            _gguf.write(file, "llama", metadata, arrays)
        assert path.read_bytes() == memory.getvalue()
        theirs = gguf.GGUFReader(path)
        for ours in (GGUFFile(path), GGUFFile(str(path)), GGUFFile(memory.getvalue())):
            assert ours.architecture == "llama"
            for key, value, _ in metadata:
                found = ours.get(key)
                assert (found.tolist() if isinstance(found, np.ndarray) else found) == value
                assert theirs.fields[key].contents() == value
            for name, expected in arrays.items():
                np.testing.assert_array_equal(ours.array(ours.tensors[name]), expected)
        for entry in theirs.tensors:
            np.testing.assert_array_equal(entry.data.reshape(arrays[entry.name].shape), arrays[entry.name])
        assert [entry.name for entry in theirs.tensors] == list(arrays)


def array_of(kind: int, count: int, data: bytes = b"") -> bytes:
    return pair("k", ARRAY, struct.pack("<IQ", kind, count) + data)


def unpadded(data: bytes) -> bytes:
    return data.rstrip(b"\0")


def lying() -> dict[str, bytes]:
    """Files that declare more than they hold, or nonsense."""
    space = bytes(4096)
    files = {
        "empty": b"",
        "header cut": image()[:23],
        "another magic": image(magic=b"GGML"),
        "version 1": image(version=1),
        "more keys than there are": unpadded(image([pair("k", U8, b"\1")], pair_count=2)),
        "more tensors than there are": image([], [tensor("t", [1])], tensor_count=2, data=bytes(4)),
        "key of 2^60 bytes": image([struct.pack("<Q", HUGE)], data=space),
        "key that is no UTF-8": image([pair(b"\xff\xfe", U8, b"\1")]),
        "string of 2^60 bytes": image([pair("k", STRING, struct.pack("<Q", HUGE))], data=space),
        "string that is no UTF-8": image([pair("k", STRING, text(b"\xc3"))]),
        "value of unknown kind": image([pair("k", 13, b"\0" * 8)], data=space),
        "array of unknown kind": image([array_of(13, 1, bytes(8))], data=space),
        "more strings than there are": unpadded(image([array_of(STRING, 3, text("a") * 2)])),
        "two strings of 2^64-1 bytes in an array": image(
            [array_of(STRING, 2, struct.pack("<Q", (1 << 64) - 1) * 2)], data=space
        ),
        "no dimensions": image([], [tensor("t", [])], data=space),
        "5 dimensions": image([], [tensor("t", [1] * 5)], data=space),
        "row of 2^60": image([], [tensor("t", [HUGE])], data=space),
        "product that wraps to 0": image([], [tensor("t", [1 << 32, 1 << 32])], data=space),
        "unknown type": image([], [tensor("t", [1], 99)], data=space),
        "half a block": image([], [tensor("t", [33], 2)], data=space),
        "offset that wraps": image([], [tensor("t", [1], 0, (1 << 64) - 32)], data=space),
        "data cut by a byte": image([], [tensor("t", [4])], data=bytes(15)),
        "a tensor twice": image([], [tensor("t", [1])] * 2, data=space),
        "alignment 0": image([pair("general.alignment", U32, bytes(4))], [tensor("t", [1])], data=space),
        "alignment that is a string": image([pair("general.alignment", STRING, text("32"))], data=space),
    }
    for kind, (layout, _) in TestKinds.SCALARS.items():
        files[f"2^60 values of kind {kind}"] = image([array_of(kind, HUGE)], data=space)
        files[f"2^64-1 values of kind {kind}"] = image([array_of(kind, (1 << 64) - 1)], data=space)
        more = array_of(kind, 64 // struct.calcsize(layout), bytes(32))
        files[f"one value of kind {kind} too many"] = image([more])[:-1]
    return files


LYING = lying()


@pytest.mark.parametrize("name", LYING)
def test_a_lying_file_is_refused_before_anything_is_allocated(name, tmp_path):
    path = tmp_path / "file.gguf"
    path.write_bytes(LYING[name])
    for source in (LYING[name], path):
        tracemalloc.start()
        try:
            with pytest.raises(MalformedGGUFError) as caught:
                GGUFFile(source)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert str(caught.value)
        assert peak < 1 << 20


def test_a_list_of_strings_that_are_no_utf8_is_refused_when_it_is_read():
    file = GGUFFile(image([array_of(STRING, 2, text("fine") + text(b"\xff"))]))
    with pytest.raises(MalformedGGUFError):
        file.get("k")


OVERLAPPING = [tensor("a", [1000]), tensor("c", [8], 0, 4032), tensor("b", [1000], 0, 32)]
LARGE = {
    "a key": (lambda: image([pair("k" * 1025, U8, b"\1")]), "1025 bytes: at most 1024"),
    "a name": (lambda: image([], [tensor("t" * 1025, [8])], data=bytes(32)), "1025 bytes: at most 1024"),
    "keys": (lambda: image([pair(f"{i}", U8, b"\1") for i in range(262_145)]), "262145 keys, .* most 262144"),
    "a text": (lambda: image([pair("k", STRING, text("x" * ((1 << 24) + 1)))]), "16777217 bytes: at most"),
    "texts": (lambda: image([array_of(STRING, 1 << 22 | 1, bytes(8 << 22 | 8))]), "4194305 texts: at most"),
    "tensors": (lambda: image(tensor_count=1 << 18 | 1, data=bytes(9 << 20)), "262145 tensors, .* 262144"),
    "overlaps": (lambda: image([], OVERLAPPING, data=bytes(4064)), "tensors a and b lie over the same bytes"),
}
"""Small, well-formed, and declaring much."""


@pytest.mark.parametrize(("data", "message"), LARGE.values(), ids=LARGE)
def test_more_than_any_model_has(data, message):
    made = data()
    with support.memory_limit(64 << 20), pytest.raises(MalformedGGUFError, match=message):
        GGUFFile(made)
