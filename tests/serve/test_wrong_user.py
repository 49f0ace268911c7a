"""Nobody gets another user's answer: benchmarks/wrong_user.py in its short form, on both engines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx_bundles
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/wrong_user.py"


@pytest.mark.parametrize(("engine", "users"), [("onnx", 16), ("llama", 5)])
def test_nobody_gets_anothers_answer(
    engine: str, users: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Mixed, again, streamed, left in the middle, with prompts that share their beginning."""
    bundle = request.getfixturevalue("smollm2_bundle") if engine == "llama" else onnx_bundles.tiny()
    command = [sys.executable, SCRIPT, "--servers", engine, f"--{engine}", bundle, "--users", str(users)]
    command += ["--again", "9", "--json", tmp_path / "record"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "record").read_text("utf-8"))
    assert found["counts"] == {"own": 3 * users + 9}, found["wrong"]
    assert found["left"] > 0
