"""`.onnx_adapter`: what ONNX Runtime's own reader makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import support

from tinylora_edge import Bases, MicroVector, VectorError
from tinylora_edge.formats.onnx_adapter import basis_version, to_adapter

FACTORS = support.random_factors(rank=3, outputs=5)


@pytest.mark.parametrize("size", [{"numbers": 4}, {"rank": 1}, {"rank": (5, 3)}, {"rank": (4, 1)}], ids=str)
def test_onnx_runtime_reads_what_is_written(tmp_path: Path, size: dict[str, Any]) -> None:
    basis = Bases(FACTORS).basis(**size)
    vector = replace(MicroVector.random(basis, 0.3, seed=5), sequence=9)
    path = tmp_path / "v.onnx_adapter"
    path.write_bytes(to_adapter(vector, basis))
    found = onnxruntime.AdapterFormat.read_adapter(str(path))
    assert (found.get_adapter_version(), found.get_model_version()) == (9, basis_version(basis))
    (name,) = found.get_parameters()
    assert name == "tinylora_r"
    value = found.get_parameters()[name].numpy()
    assert (value.dtype, value.shape) == (np.float32, (1, 6 * 15))
    (p, q), r = basis.shape, value.reshape(6, 5, 3).copy()
    assert np.array_equal(r[:, :p, :q], basis.R(vector))
    r[:, :p, :q] = 0
    assert not r.any(), "zeros beyond R of a vector"
    with pytest.raises(VectorError, match="2 values"):
        to_adapter(MicroVector([1, 2]), basis)
