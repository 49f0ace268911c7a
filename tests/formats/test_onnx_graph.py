"""A graph is the one that was exported, with its own weights, or it is refused before an engine starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_bundles
import pytest

from tinylora_edge import BaseMismatchError, load_bundle
from tinylora_edge.formats.onnx_graph import onnx_fingerprint


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(onnx_bundles.tiny(), tmp_path / "copy"))


def test_what_is_hashed(tmp_path: Path) -> None:
    """From docs/FORMAT.md, "Of an ONNX graph"."""
    import hashlib

    data = np.random.default_rng(0).integers(0, 256, 9_000_001, dtype=np.uint8).tobytes()
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "model.onnx.data").write_bytes(data)
    starts = [(len(data) - 4096) * i // 1023 for i in range(1024)]
    pieces = b"".join(data[start : start + 4096] for start in starts)
    begin = b"tinylora onnx 2\n" + hashlib.sha256(b"graph").digest()
    hashed = begin + len(data).to_bytes(8, "little") + pieces
    assert onnx_fingerprint(tmp_path) == hashlib.sha256(hashed).hexdigest()
    (tmp_path / "model.onnx.data").write_bytes(b"small")
    hashed = begin + (5).to_bytes(8, "little") + b"small" * 1024
    assert onnx_fingerprint(tmp_path) == hashlib.sha256(hashed).hexdigest()


def flip(position: int) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        data = bytearray((folder / "model.onnx.data").read_bytes())
        data[position] ^= 1
        (folder / "model.onnx.data").write_bytes(data)

    return change


def cut(folder: Path) -> None:
    data = (folder / "model.onnx.data").read_bytes()
    (folder / "model.onnx.data").write_bytes(data[:-1])


def renamed(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.node[0].name = "another"
    (folder / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("change", [flip(0), flip(-1), cut, renamed])
def test_another_graph_or_other_weights(change: Callable[[Path], object], copy: Path) -> None:
    bundle = load_bundle(copy)
    assert bundle.check_onnx() == bundle.bases.fingerprints[-1]
    change(copy / "onnx")
    with pytest.raises(BaseMismatchError, match=f"lists {bundle.bases.fingerprints[-1][:16]}"):
        bundle.check_onnx()


def test_a_pipe_that_an_engine_would_open(copy: Path) -> None:
    os.mkfifo(copy / "onnx" / "added_tokens.json")
    with pytest.raises(BaseMismatchError, match=r"added_tokens\.json is a pipe"):
        load_bundle(copy).check_onnx()
