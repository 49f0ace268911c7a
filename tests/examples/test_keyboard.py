"""The keyboard of a page, on the real model: it suggests, keeps what was sent, learns from it, forgets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "keyboard.py"


def typed(bundle: Path, texts: Path, *lines: str) -> str:
    command = [sys.executable, EXAMPLE, bundle, "--texts", texts, "--budget", "3ktokens", "--threads", "1"]
    done = subprocess.run(
        list(map(str, command)), input="".join(f"{line}\n" for line in lines), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_keyboard_learns_at_night_and_forgets(smollm2_bundle: Path, tmp_path: Path) -> None:
    texts, own = tmp_path / "me.jsonl", tmp_path / "me.jsonl.bin"
    assert "No such file" in typed(smollm2_bundle, texts, "night")
    assert "1:" in typed(smollm2_bundle, texts, "word " * 400)
    screen = typed(smollm2_bundle, texts, "The capital of France is", "1", "")
    offered = re.search(r"The capital of France is\|  1:(.*)  2:(.*)  3:(.*)", screen)
    assert offered
    assert " Paris" in offered.groups()
    assert json.loads(texts.read_text())["text"] == f"The capital of France is{offered[1]}"
    with texts.open("a") as file:
        file.writelines(json.dumps({"text": f"c u at {n} lah"}) + "\n" for n in range(12))
        file.write("\n")
    assert "learned from 13 texts" in typed(smollm2_bundle, texts, "night")
    assert own.stat().st_size == 63
    with texts.open("a") as file:
        file.write("c u")
    screen = typed(smollm2_bundle, texts, "night", "c u")  # it starts with what it learned
    assert "me.jsonl:15: not JSON" in screen
    assert "c u|" in screen
    texts.unlink()
    typed(smollm2_bundle, texts)
    assert list(tmp_path.iterdir()) == []
