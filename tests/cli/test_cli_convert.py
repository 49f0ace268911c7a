"""`tinylora-edge convert`: there and back, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from invocation import Cli

from tinylora_edge import Basis, MicroVector


@pytest.fixture
def vector(basis: Basis) -> MicroVector:
    drawn = MicroVector.random(basis, 0.2, seed=9, dtype="bf16")
    return MicroVector(drawn.values, "bf16", sequence=7)


@pytest.fixture
def frame(vector: MicroVector, basis: Basis, tmp_path: Path) -> Path:
    path = tmp_path / "v.bin"
    path.write_bytes(vector.to_bytes(basis))
    return path


def test_to_an_adapter_and_back(
    cli: Cli, smollm2_bundle: Path, frame: Path, vector: MicroVector, basis: Basis, tmp_path: Path
) -> None:
    adapter, again = tmp_path / "v.onnx_adapter", tmp_path / "again.bin"
    ask = ("--bundle", smollm2_bundle, "--to")
    said = cli("convert", frame, *ask, "onnx-adapter", "-o", adapter).done()
    assert "163 bytes" in said
    assert "frame to onnx-adapter" in said
    record = cli("convert", adapter, *ask, "frame", "--dtype", "bf16", "-o", again, "--json").record()
    assert again.read_bytes() == frame.read_bytes()
    assert record == {
        "from": "onnx-adapter",
        "to": "frame",
        "vector": str(again),
        "bytes": 37,
        "dtype": "bf16",
        "sequence": 7,
        "basis_digest": basis.digest,
        "norm": vector.norm,
        "exact": True,
    }


def test_onnx_runtime_reads_it(cli: Cli, smollm2_bundle: Path, frame: Path, vector: MicroVector) -> None:
    path = frame.with_suffix(".onnx_adapter")
    cli("convert", frame, "--bundle", smollm2_bundle, "--to", "onnx-adapter", "-o", path).done()
    found = onnxruntime.AdapterFormat.read_adapter(str(path))
    assert np.array_equal(found.get_parameters()["tinylora_v"].numpy(), vector.values.reshape(1, -1))
    assert found.get_adapter_version() == 7


def test_pipes(cli: Cli, smollm2_bundle: Path, frame: Path, basis: Basis, vector: MicroVector) -> None:
    ask = ("--bundle", smollm2_bundle / "basis.gguf", "-o", "-", "--to")
    adapter = cli("convert", "-", *ask, "onnx-adapter", stdin=frame.read_bytes()).stdout_bytes
    raw = cli("convert", "-", *ask, "raw", stdin=adapter).stdout_bytes
    assert raw == vector.values.astype("<f4").tobytes()
    short = cli("convert", "-", *ask, "raw", "--dtype", "bf16", stdin=adapter).stdout_bytes
    assert len(short) == 26


def test_what_does_not_fit_is_rounded_and_said(
    cli: Cli, smollm2_bundle: Path, basis: Basis, tmp_path: Path
) -> None:
    exact = MicroVector.random(basis, 0.2, seed=1)
    source, target = tmp_path / "v.bin", tmp_path / "w.bin"
    source.write_bytes(exact.to_bytes(basis))
    ask = ("convert", source, "--bundle", smollm2_bundle, "--to", "frame", "-o", target, "--json", "--force")
    assert cli(*ask).record()["exact"]
    assert not cli(*ask, "--dtype", "bf16").record()["exact"]


def test_refusals(cli: Cli, smollm2_bundle: Path, tiny_bundle: Path, frame: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    to = ("--to", "onnx-adapter", "-o", target)
    cli("convert", tmp_path / "none", "--bundle", smollm2_bundle, *to).refused("none", "No such file")
    cli("convert", frame, "--bundle", tmp_path / "none", *to).refused("none")
    cli("convert", frame, "--bundle", tiny_bundle, *to).refused("basis")
    adapter = tmp_path / "v.onnx_adapter"
    cli("convert", frame, "--bundle", smollm2_bundle, "--to", "onnx-adapter", "-o", adapter).done()
    back = ("--to", "frame", "-o", target)
    cli("convert", adapter, "--bundle", tiny_bundle, *back).refused("basis")
    damaged = adapter.read_bytes()
    adapter.write_bytes(damaged[:100])
    cli("convert", adapter, "--bundle", smollm2_bundle, *back).refused("100 bytes", "cut off")
    adapter.write_bytes(damaged)
    assert not target.exists()
    target.write_bytes(b"mine")
    cli("convert", adapter, "--bundle", smollm2_bundle, *back).refused("exists already", "--force")
    assert target.read_bytes() == b"mine"


def test_misuse(cli: Cli, smollm2_bundle: Path, frame: Path) -> None:
    ask = ("convert", frame, "--bundle", smollm2_bundle)
    cli(*ask, "-o", "x").misused("--to")
    cli(*ask, "--to", "gif", "-o", "x").misused("--to")
    cli(*ask, "--to", "onnx-adapter", "--dtype", "bf16", "-o", "x").misused("onnx-adapter carries fp32")
    cli(*ask, "--to", "onnx-adapter", "-o", "-", "--json").misused("--json")
