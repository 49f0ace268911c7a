"""What an ONNX file says is read without the onnx package, whatever lies around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tinylora_edge import BaseMismatchError
from tinylora_edge.formats.onnx_graph import read_onnx
from tinylora_edge.limits import ENTRIES


def model(size: int = 10, **metadata: str) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [size])
    node = helper.make_node("Add", ["x", "w"], ["y"])
    weight = numpy_helper.from_array(np.zeros(size, np.float32), "w")
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [size])
    made = helper.make_model(helper.make_graph([node], "g", [value], [result], [weight]), doc_string="d")
    for key, text in metadata.items():
        made.metadata_props.add(key=key, value=text)
    return made


@pytest.mark.parametrize("size", [0, 1, 10, 300_000])
@pytest.mark.parametrize("metadata", [{}, {"a": "b"}, {"a": "", "\u00e4": "\u20ac" * 40_000, "c": "d"}])
def test_as_onnx_reads_it(size: int, metadata: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model(size, **metadata), path)
    assert read_onnx(path).metadata == metadata
    assert {entry.key: entry.value for entry in onnx.load(path).metadata_props} == metadata


def test_every_truncation_is_noticed_or_harmless(tmp_path: Path) -> None:
    whole = model(2, a="b", c="d").SerializeToString()
    path = tmp_path / "model.onnx"
    refused = 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            assert read_onnx(path).metadata.items() <= {"a": "b", "c": "d"}.items()
        except BaseMismatchError:
            refused += 1
    assert refused > len(whole) // 2


@pytest.mark.parametrize(
    "content", [b"\xff" * 40, b"\x07", b"\x72\xff\xff\xff\xff\x7f", b"GGUF" * 8, b"\0" * 8]
)
def test_other_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(BaseMismatchError, match="not a usable ONNX model"):
        read_onnx(path)


def test_an_entry_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with open(path, "wb") as file:
        file.write(b"\x72\x80\x80\x80\x80\x08")  # field 14, 2 GiB
        file.truncate((1 << 31) + 100)
    with pytest.raises(BaseMismatchError, match="2,147,483,648 bytes"):
        read_onnx(path)


def test_a_megabyte_of_fields_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x01" * (ENTRIES + 1))
    with pytest.raises(BaseMismatchError, match="more than 262,144 fields"):
        read_onnx(path)


def test_where_the_weights_inside_the_file_lie(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    whole = model(9, a="b")
    onnx.save(whole, path)
    ((name, place),) = read_onnx(path).initializers.items()
    data = path.read_bytes()[place.offset : place.offset + place.length]
    assert (name, place.location, data) == ("w", "", whole.graph.initializer[0].raw_data)


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("", "external data of 'w'"),
        (".", "no regular file"),
        ("folder", "no regular file"),
        ("a\0b", "no name of a file"),
        ("model.onnx/x", "no name of a file"),
        ("x" * 300, "no name of a file"),
        ("nowhere", "does not exist"),
    ],
)
def test_weights_in_what_is_no_file(location: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    onnx.save(_external(location, 0), tmp_path / "model.onnx")
    with pytest.raises(BaseMismatchError, match=said):
        read_onnx(tmp_path / "model.onnx").check_data()


@pytest.mark.parametrize("offset", [-1, "", "x", "9" * 5000])
def test_weights_at_what_is_no_place(offset: object, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(40))
    onnx.save(_external("data", offset), tmp_path / "model.onnx")
    with pytest.raises(BaseMismatchError, match="external data of 'w'"):
        read_onnx(tmp_path / "model.onnx").check_data()


def _external(location: str, offset: object) -> onnx.ModelProto:
    made = model()
    weight = made.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", "40")):
        weight.external_data.add(key=key, value=value)
    return made
