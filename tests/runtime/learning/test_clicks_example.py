"""The example app with two buttons, on the real model: a click is learned, and kept for the next start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[3] / "examples" / "two_buttons.py"


def start(bundle: Path, state: Path, keys: str, *options: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(bundle), "--state", str(state), "--threads", "1", *options],
        input=keys,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_two_buttons(smollm2_bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "me.state"
    lines = start(smollm2_bundle, state, "What is a river?\n+\n\n")
    assert lines[0].startswith("0 clicks so far")
    assert "1 clicks, vector of norm 0." in lines[-1]
    kept = state.read_bytes()
    assert b"river" not in kept

    lines = start(smollm2_bundle, state, "What is a river?\n\n\n", "--pairs")
    assert lines[0].startswith("1 clicks so far")
    answers = [line for line in lines if line.removeprefix("ask: ").startswith(("1: ", "2: "))]
    assert len(answers) == 2
    assert state.read_bytes() == kept  # neither button was pressed
