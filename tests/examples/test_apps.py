"""Example apps: a keyboard that learns from what was sent, two buttons, and learning without PyTorch."""

from __future__ import annotations

import io
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import models
import pytest
import venvs

from tinylora_edge import MicroVector, load_bundle
from tinylora_edge.exporters import export_gguf

EXAMPLES = Path(__file__).parents[2] / "examples"


def typed(app: str, bundle: Path, *options: object, lines: str) -> str:
    command = [sys.executable, str(EXAMPLES / app), str(bundle), *map(str, options), "--threads", "1"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("tuning_gains")
def test_a_keyboard_learns_at_night_and_forgets(smollm2_bundle, tmp_path, monkeypatch, capsys):
    texts, own = tmp_path / "me.jsonl", tmp_path / "me.jsonl.bin"

    def keyboard(*lines: str) -> str:
        command = ["keyboard.py", smollm2_bundle, "--texts", texts, "--budget", "3ktokens", "--threads", 1]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        runpy.run_path(str(EXAMPLES / "keyboard.py"), run_name="__main__")
        return capsys.readouterr().out

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


def test_a_keyboard_learns_by_gradients(smollm2_bundle, tmp_path, monkeypatch, capsys):
    texts, shared, bases = tmp_path / "me.jsonl", tmp_path / "shared.bin", load_bundle(smollm2_bundle).bases
    shared.write_bytes(MicroVector.random(bases.basis(rank=2), 0.1).to_bytes(bases.basis(rank=2)))
    texts.write_text("".join(json.dumps({"text": f"c u at {n} lah"}) + "\n" for n in range(20)))
    command = ["keyboard.py", smollm2_bundle, "--texts", texts, "--under", shared, "--torch"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    monkeypatch.setattr(sys, "stdin", io.StringIO("night\nc u\n"))
    runpy.run_path(str(EXAMPLES / "keyboard.py"), run_name="__main__")
    screen = capsys.readouterr().out
    assert "learned from 20 texts" in screen
    assert "c u|" in screen
    assert MicroVector.from_bytes((tmp_path / "me.jsonl.bin").read_bytes(), bases).values.any()


def test_two_buttons(smollm2_bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "me.state"
    app = ("two_buttons.py", smollm2_bundle, "--state", state)
    lines = typed(*app, lines="What is a river?\n+\n\n").splitlines()
    assert lines[0].startswith("0 clicks so far")
    assert re.search(r"1 clicks, vector of norm \d", lines[-1])
    kept = state.read_bytes()
    assert b"river" not in kept

    lines = typed(*app, "--pairs", lines="What is a river?\n\n\n").splitlines()
    assert lines[0].startswith("1 clicks so far")
    answers = [line for line in lines if line.removeprefix("ask: ").startswith(("1: ", "2: "))]
    assert len(answers) == 2
    assert state.read_bytes() == kept  # neither button was pressed


def test_a_model_learns_without_torch(tmp_path: Path) -> None:
    """Where there is nothing but what a device has."""
    assert not {"torch", "transformers", "onnx", "scipy"} & set(venvs.closure("tinylora-edge[llama,cli]"))
    device = venvs.linked(tmp_path / "venv", "tinylora-edge[llama,cli]")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "tinylora_edge").symlink_to(EXAMPLES.parent / "tinylora_edge")
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    model, metadata = models.tiny_model("llama"), {"tokenizer.chat_template": template}
    gguf = models.write_gguf(model, tmp_path / "tiny.gguf", metadata=metadata)
    bundle = export_gguf(gguf, tmp_path / "bundle").output
    output = venvs.run(device, EXAMPLES / "tune_on_device.py", bundle, "15ktokens")
    assert "PyTorch is not installed here." in output
    assert "step 1: reward" in output
    assert output.count("before: ") == output.count("after: ") == 6
    assert (bundle / "mine.bin").stat().st_size == 63
    assert not (bundle / "mine.state").exists()
    mine, own = tmp_path / "mine.txt", tmp_path / "own.bin"
    command = "from tinylora_edge.cli import main; main()"
    mine.write_text("".join(f"on my way, {n} min\n" for n in range(60)))
    options = "--under", bundle / "mine.bin", "--numbers", 13, "--budget", "8ktokens", "--no-evaluate"
    venvs.run(device, "-c", command, "tune", bundle, mine, "-o", own, *options)
    assert own.stat().st_size == 63
