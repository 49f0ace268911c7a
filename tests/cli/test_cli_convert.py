"""`convert`: vectors in the formats of other programs, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from invocation import Cli, write_vector

from tinylora_edge import Basis, MicroVector, load_bundle
from tinylora_edge.formats.onnx_graph import input_row


@pytest.fixture
def frame(basis: Basis, tmp_path: Path) -> Path:
    return write_vector(tmp_path / "v.bin", basis, 0.2, seed=9, dtype="bf16", sequence=7)


def test_onnx_runtime_reads_the_adapter(cli: Cli, smollm2_bundle: Path, basis: Basis, frame: Path) -> None:
    path = frame.with_suffix(".onnx_adapter")
    convert = ("convert", "-", smollm2_bundle, "--to", "onnx-adapter", "-o")
    record = cli(*convert, path, "--json", stdin=frame.read_bytes()).record()
    assert (record["to"], record["sequence"], record["basis"]) == ("onnx-adapter", 7, basis.digest)
    found = onnxruntime.AdapterFormat.read_adapter(str(path))
    vector = MicroVector.from_bytes(frame.read_bytes(), basis)
    assert np.array_equal(
        found.get_parameters()["tinylora_r"].numpy(), input_row(basis.R(vector), (8, 8))[None]
    )
    assert cli(*convert, "-", stdin=frame.read_bytes()).stdout_bytes == path.read_bytes()


def test_a_merged_model_is_for_its_own_base(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    frame = write_vector(tmp_path / "v.bin", load_bundle(tiny_bundle).basis(rank=2), 0.2)
    to = ("--to", "gguf", "-o", tmp_path / "merged.gguf")
    assert f"FROM {tmp_path / 'merged.gguf'}" in cli("convert", frame, tiny_bundle, *to).done()
    other = tmp_path / "other"
    other.mkdir()
    (other / "base.gguf").symlink_to(tmp_path / "merged.gguf")
    (other / "basis.gguf").symlink_to(tiny_bundle / "basis.gguf")
    again = ("--to", "gguf", "-o", tmp_path / "again.gguf")
    cli("convert", frame, other, *again).refused("fingerprint")
    (other / "base.gguf").unlink()
    (other / "onnx").mkdir()
    (other / "onnx" / "model.onnx").touch()
    cli("convert", frame, other, *again).refused("no GGUF to merge into")
    assert not (tmp_path / "again.gguf").exists()


def test_refusals(cli: Cli, smollm2_bundle: Path, tiny_bundle: Path, frame: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    to = ("--to", "onnx-adapter", "-o", target)
    cli("convert", tmp_path / "none", smollm2_bundle, *to).refused("none", "No such file")
    cli("convert", frame, tmp_path / "none", *to).refused("none")
    cli("convert", frame, tiny_bundle, *to).refused("basis")
    assert not target.exists()
    target.write_bytes(b"mine")
    cli("convert", frame, smollm2_bundle, *to).refused("exists already")
    peft = ("--to", "peft", "--model", tmp_path, "-o", target)
    cli("convert", frame, smollm2_bundle, *peft).refused("exists already")
    assert target.read_bytes() == b"mine"
    cli("convert", frame, smollm2_bundle, "--to", "gguf-lora", "-o", "-").refused("cannot write to stdout")


def test_misuse(cli: Cli, smollm2_bundle: Path, frame: Path) -> None:
    ask = ("convert", frame, smollm2_bundle)
    cli(*ask, "-o", "x").misused("--to")
    cli(*ask, "--to", "gif", "-o", "x").misused("--to")
    cli(*ask, "--to", "peft", "-o", "x").misused("--model")
    cli(*ask, "--to", "gguf-lora", "--model", "m", "-o", "x").misused("--model")
    cli(*ask, "--to", "onnx-adapter", "-o", "-", "--json").misused("--json")
