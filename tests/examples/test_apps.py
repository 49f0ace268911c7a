"""Example apps on the real model: a keyboard that learns from what was sent, and two buttons."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def typed(app: str, bundle: Path, *options: object, lines: str) -> str:
    command = [sys.executable, str(EXAMPLES / app), str(bundle), *map(str, options), "--threads", "1"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_keyboard_learns_at_night_and_forgets(smollm2_bundle: Path, tmp_path: Path) -> None:
    texts, own = tmp_path / "me.jsonl", tmp_path / "me.jsonl.bin"

    def keyboard(*lines: str) -> str:
        options = ("--texts", texts, "--budget", "3ktokens")
        return typed("keyboard.py", smollm2_bundle, *options, lines="".join(f"{line}\n" for line in lines))

    assert "No such file" in keyboard("night")
    assert "1:" in keyboard("word " * 400)
    screen = keyboard("The capital of France is", "1", "")
    offered = re.search(r"The capital of France is\|  1:(.*)  2:(.*)  3:(.*)", screen)
    assert offered
    assert " Paris" in offered.groups()
    assert json.loads(texts.read_text())["text"] == f"The capital of France is{offered[1]}"
    with texts.open("a") as file:
        file.writelines(json.dumps({"text": f"c u at {n} lah"}) + "\n" for n in range(12))
        file.write("\n")
    assert "learned from 13 texts" in keyboard("night")
    assert own.stat().st_size == 63
    with texts.open("a") as file:
        file.write("c u")
    screen = keyboard("night", "c u")  # it starts with what it learned
    assert "me.jsonl:15: not JSON" in screen
    assert "c u|" in screen
    texts.unlink()
    keyboard()
    assert list(tmp_path.iterdir()) == []


def test_two_buttons(smollm2_bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "me.state"
    app = ("two_buttons.py", smollm2_bundle, "--state", state)
    lines = typed(*app, lines="What is a river?\n+\n\n").splitlines()
    assert lines[0].startswith("0 clicks so far")
    assert "1 clicks, vector of norm 0." in lines[-1]
    kept = state.read_bytes()
    assert b"river" not in kept

    lines = typed(*app, "--pairs", lines="What is a river?\n\n\n").splitlines()
    assert lines[0].startswith("1 clicks so far")
    answers = [line for line in lines if line.removeprefix("ask: ").startswith(("1: ", "2: "))]
    assert len(answers) == 2
    assert state.read_bytes() == kept  # neither button was pressed
