"""`.onnx_adapter`: what ONNX Runtime's own reader makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from support import random_basis

from tinylora_edge import MicroVector, VectorError
from tinylora_edge.formats.onnx_adapter import basis_version, encode, to_adapter

BASIS = random_basis(groups=3, u=2)


def test_onnx_runtime_reads_what_is_written(tmp_path: Path) -> None:
    vector = MicroVector(MicroVector.random(BASIS, 0.3, seed=5).values, sequence=9)
    path = tmp_path / "v.onnx_adapter"
    path.write_bytes(to_adapter(vector, BASIS))
    found = onnxruntime.AdapterFormat.read_adapter(str(path))
    assert (found.get_adapter_version(), found.get_model_version()) == (9, basis_version(BASIS))
    (name,) = found.get_parameters()
    assert name == "tinylora_v"
    value = found.get_parameters()[name].numpy()
    assert value.dtype == np.float32
    assert np.array_equal(value, vector.values.reshape(1, -1))
    with pytest.raises(VectorError, match="3 values"):
        to_adapter(MicroVector([[1], [2], [3]]), BASIS)


@pytest.mark.parametrize("n", [1, 13, 50])
@pytest.mark.parametrize("rows", [1, 4])
def test_sizes(n: int, rows: int, tmp_path: Path) -> None:
    values = np.arange(n * rows, dtype=np.float32).reshape(rows, n)
    path = tmp_path / "v"
    assert path.write_bytes(encode(values, 1, -5)) == 111 + 4 * n * rows
    found = onnxruntime.AdapterFormat.read_adapter(str(path))
    assert found.get_model_version() == -5
    assert np.array_equal(found.get_parameters()["tinylora_v"].numpy(), values)
