"""Nobody gets another user's answer: benchmarks/wrong_user.py in its short form, on ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx_bundles

SCRIPT = Path(__file__).parents[2] / "benchmarks/wrong_user.py"


def test_nobody_gets_anothers_answer(tmp_path: Path) -> None:
    """Mixed, again, streamed, left in the middle, with prompts that share their beginning."""
    command = [sys.executable, SCRIPT, "--servers", "onnx", "--onnx", onnx_bundles.tiny(), "--users", "16"]
    command += ["--again", "9", "--json", tmp_path / "record"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "record").read_text("utf-8"))
    assert found["counts"] == {"own": 3 * 16 + 9}, found["wrong"]
    assert found["left"] > 0
