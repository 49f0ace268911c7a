"""`.onnx_adapter`: what ONNX Runtime's own writer and reader make of the same vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import random_basis

from tinylora_edge import BasisMismatchError, FrameError, MicroVector, NonFiniteError, VectorError
from tinylora_edge.formats.onnx_adapter import (
    basis_version,
    decode,
    encode,
    from_adapter,
    is_adapter,
    to_adapter,
)
from tinylora_edge.formats.onnx_graph import INPUT_NAME

BASIS = random_basis(groups=3, u=2)
VECTOR = MicroVector.random(BASIS, 0.3, seed=5)
VECTOR = MicroVector(VECTOR.values, sequence=9)


def written_by_ort(
    path: Path, parameters: dict[str, np.ndarray], adapter_version=0, model_version=0
) -> bytes:
    file = onnxruntime.AdapterFormat()
    file.set_adapter_version(adapter_version)
    file.set_model_version(model_version)
    values = {k: onnxruntime.OrtValue.ortvalue_from_numpy(v) for k, v in parameters.items()}
    file.set_parameters(values)
    file.export_adapter(str(path))
    return path.read_bytes()


def test_onnx_runtime_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "v.onnx_adapter"
    path.write_bytes(to_adapter(VECTOR, BASIS))
    found = onnxruntime.AdapterFormat.read_adapter(str(path))
    assert found.get_adapter_version() == 9
    assert found.get_model_version() == basis_version(BASIS)
    (name,) = found.get_parameters()
    assert name == "tinylora_v"
    value = found.get_parameters()[name].numpy()
    assert value.dtype == np.float32
    assert np.array_equal(value, VECTOR.values.reshape(1, -1))


def test_what_onnx_runtime_writes_is_read(tmp_path: Path) -> None:
    data = written_by_ort(
        tmp_path / "v", {"tinylora_v": VECTOR.values.reshape(1, -1)}, 9, basis_version(BASIS)
    )
    assert from_adapter(data, BASIS) == VECTOR


@pytest.mark.parametrize("n", [1, 2, 13, 50])
@pytest.mark.parametrize("rows", [1, 4])
def test_sizes(n: int, rows: int, tmp_path: Path) -> None:
    values = np.arange(n * rows, dtype=np.float32).reshape(rows, n)
    data = encode(values, 1, -5)
    assert len(data) == 111 + 4 * n * rows
    path = tmp_path / "v"
    path.write_bytes(data)
    found = onnxruntime.AdapterFormat.read_adapter(str(path)).get_parameters()[INPUT_NAME].numpy()
    assert np.array_equal(found, values)
    ours = decode(data)
    assert np.array_equal(ours.values, values)
    assert (ours.adapter_version, ours.model_version) == (1, -5)


def test_there_and_back() -> None:
    assert from_adapter(to_adapter(VECTOR, BASIS), BASIS) == VECTOR
    half = MicroVector(VECTOR.values, "bf16", 65535)
    assert from_adapter(to_adapter(half, BASIS), BASIS, "bf16") == half
    assert is_adapter(to_adapter(half, BASIS))
    assert not is_adapter(half.to_bytes(BASIS))


def test_a_basis_whose_id_has_the_sign_bit() -> None:
    for rng in range(40):
        basis = random_basis(groups=3, u=2, rng=rng)
        if int(basis.id[0], 16) >= 8:
            break
    assert basis_version(basis) < 0
    vector = MicroVector.random(basis, 1)
    assert from_adapter(to_adapter(vector, basis), basis) == vector


def test_refusals(tmp_path: Path) -> None:
    good = VECTOR.values.reshape(1, -1)
    version = basis_version(BASIS)

    def data(name: str = INPUT_NAME, values: np.ndarray = good, **versions: int) -> bytes:
        numbers = {"adapter_version": 0, "model_version": version, **versions}
        return written_by_ort(tmp_path / "v", {name: values}, **numbers)

    other = random_basis(groups=3, u=2, rng=1)
    with pytest.raises(BasisMismatchError, match=other.id):
        from_adapter(data(), other)
    with pytest.raises(BasisMismatchError, match="00000001"):
        from_adapter(data(model_version=1), BASIS)
    with pytest.raises(FrameError, match="lora_A"):
        from_adapter(data("lora_A"), BASIS)
    with pytest.raises(FrameError, match="type"):
        from_adapter(data(values=good.astype(np.float16)), BASIS)
    with pytest.raises(VectorError, match="5 values"):
        from_adapter(data(values=good[:, :5]), BASIS)
    with pytest.raises(VectorError, match=r"\[2, 6\]"):
        from_adapter(data(values=np.repeat(good, 2, axis=0)), BASIS)
    with pytest.raises(NonFiniteError):
        from_adapter(data(values=good * np.float32("nan")), BASIS)
    with pytest.raises(FrameError, match="70000"):
        from_adapter(data(adapter_version=70000), BASIS)
    two = written_by_ort(tmp_path / "v", {INPUT_NAME: good, "other": good}, 0, version)
    with pytest.raises(FrameError, match="2 parameters"):
        from_adapter(two, BASIS)


def test_every_cut_is_refused() -> None:
    data = to_adapter(VECTOR, BASIS)
    for length in range(len(data) - 1):  # the last byte ends the name, which states its length
        with pytest.raises(FrameError):
            from_adapter(data[:length], BASIS)


@given(st.integers(0, 134), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_what_it_should(position: int, change: int) -> None:
    data = bytearray(to_adapter(VECTOR, BASIS))
    data[position] ^= change
    try:
        found = from_adapter(bytes(data), BASIS)
    except VectorError:
        return
    assert found.values.shape == (3, 2)


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    for candidate in (data, data[:4] + b"TORT" + data[4:]):
        with pytest.raises(VectorError):
            from_adapter(candidate, BASIS)
