"""Files of a run that others wrote, or that are damaged: the checkpoint and the record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
    ],
)
def test_a_checkpoint_of_wrong_types(tmp_path: Path, header: str) -> None:
    path = tmp_path / "checkpoint.npz"
    arrays = {name: np.zeros((1, 1), np.float32) for name in ("v", "m", "s", "best_v", "top_scores")}
    np.savez(path, header=np.array(header), **arrays)
    with pytest.raises(TrainError, match="not a usable checkpoint"):
        checkpoint.load(path, {})


@pytest.mark.parametrize("line", [b"[]", b"{", b"7", b"\xff", b"[" * 9999])
def test_a_record_of_a_run_that_is_damaged(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(TrainError, match=r"metrics\.jsonl is damaged"):
        output._rows(tmp_path / "metrics.jsonl")
