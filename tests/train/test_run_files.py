"""Files of a run that others wrote, or that are damaged: the checkpoint and the record."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import support

from tinylora_edge import TrainError
from tinylora_edge.train import checkpoint, output


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "7",
        "{}",
        "[" * 9999,
        '{"identity": 7, "state": {}}',
        '{"identity": {}, "state": []}',
        '{"state": {}}',
        '{"identity": {}, "state": {"unknown": 1}}',
        '{"identity": {}, "state": {"step": "3"}}',
        '{"identity": {}, "state": {"norms": [null]}}',
    ],
)
def test_a_checkpoint_of_wrong_types(tmp_path: Path, header: str) -> None:
    path = tmp_path / "checkpoint.npz"
    arrays = {name: np.zeros((1, 1), np.float32) for name in ("v", "m", "s", "best_v", "top_scores")}
    np.savez(path, header=np.array(header), **arrays)
    with pytest.raises(TrainError, match="not a usable checkpoint"):
        checkpoint.load(path, {})


def kept(path: Path, state: str = "{}", **others: object) -> Path:
    arrays: dict[str, object] = {name: np.zeros((2, 1), np.float32) for name in ("v", "m", "s", "best_v")}
    arrays |= {"top_scores": np.zeros(3), "header": np.array(f'{{"identity": {{}}, "state": {state}}}')}
    np.savez(path, **(arrays | others))  # type: ignore[arg-type]
    return path


def test_a_checkpoint_of_the_right_types(tmp_path: Path) -> None:
    state = checkpoint.load(kept(tmp_path / "checkpoint.npz", '{"step": 3, "norms": [1, 2.5]}'), {})
    assert (state.step, state.norms, state.v.shape, state.top_scores.shape) == (3, [1, 2.5], (2, 1), (3,))


@pytest.mark.parametrize(
    "array",
    [np.zeros(2, np.float32), np.zeros((2, 1)), np.zeros((1, 1), np.float32), np.array("text"), np.array(5)],
)
@pytest.mark.parametrize("name", ["v", "best_v", "top_scores"])
def test_a_checkpoint_of_wrong_shapes(tmp_path: Path, name: str, array: np.ndarray) -> None:
    with pytest.raises(TrainError, match="not a usable checkpoint"):
        checkpoint.load(kept(tmp_path / "checkpoint.npz", **{name: array}), {})


def test_a_checkpoint_that_declares_much(tmp_path: Path) -> None:
    """An array of 64 GB in a file of kilobytes, and zeros that were packed."""
    path = kept(tmp_path / "checkpoint.npz")
    data = path.read_bytes()
    path.write_bytes(data)
    small, large = b"'shape': (2, 1), }                ", b"'shape': (2, 8000000000), }       "
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert small in parts["v.npy"]
    for packing, changed in ((zipfile.ZIP_STORED, parts["v.npy"].replace(small, large)), (8, parts["v.npy"])):
        with zipfile.ZipFile(path, "w", packing) as archive:
            for name, part in {**parts, "v.npy": changed}.items():
                archive.writestr(name, part)
        with support.memory_limit(64 << 20), pytest.raises(TrainError, match=r"in 8 bytes|is compressed"):
            checkpoint.load(path, {})


@pytest.mark.parametrize(("place", "value"), [(6, 1), (6, 32), (8, 99), (4, 255)])
def test_a_checkpoint_that_zipfile_does_not_know(tmp_path: Path, place: int, value: int) -> None:
    """Encrypted, patched, packed in another way, of a later version: RuntimeError and NotImplementedError."""
    path = kept(tmp_path / "checkpoint.npz")
    data = bytearray(path.read_bytes())
    for mark, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            data[at + shift + place] = value
    path.write_bytes(data)
    with pytest.raises(TrainError, match="not a usable checkpoint"):
        checkpoint.load(path, {})


@pytest.mark.parametrize("line", [b"[]", b"{", b"7", b"\xff", b"[" * 9999])
def test_a_record_of_a_run_that_is_damaged(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(TrainError, match=r"metrics\.jsonl is damaged"):
        output._rows(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("torn", [b"", b"{", b'{"step": 2, "reward": 0.', b'{"step": 2}'])
def test_a_record_of_a_run_that_was_killed_in_the_midst_of_a_line(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + torn)
    assert output._rows(path) == [{"step": 1}]
    with output.metrics_file(tmp_path, 1, lambda metrics: None) as write:
        write({"step": 2})
    assert output._rows(path) == [{"step": 1}, {"step": 2}]
