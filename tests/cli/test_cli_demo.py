"""`demo`, on a training made short, and `demo --replay`: what they claim is checked against the library."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import support
from invocation import Cli, contents

from tinylora_edge import MicroVector, exporters, load_bundle, train
from tinylora_edge.cli import demo
from tinylora_edge.cli.console import CommandError
from tinylora_edge.cli.demo import REPLAY, prove
from tinylora_edge.eval import measure
from tinylora_edge.tasks import Completion, load_task


@pytest.mark.usefixtures("training_gains")
def test_the_demo_on_a_short_training(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = partial(exporters.ExportSettings, targets=("attn_v",))  # the whole is what every other test loads
    monkeypatch.setattr(exporters, "ExportSettings", few)
    quick = partial(train.Options, method="sft", steps=2, prompts=2, keep=False, validation=2)
    monkeypatch.setattr(train, "Options", quick)
    for name, less in (("HELD_OUT", 2), ("_TOKENS", 8)):
        monkeypatch.setattr(demo, name, less)
    monkeypatch.setattr(measure, "_SEARCH_S", 0.1)  # for worked examples
    monkeypatch.setattr(measure, "GENERAL", 1)
    monkeypatch.chdir(tmp_path)
    found = cli("demo", "--threads", 2).ran()
    assert "1,920 numbers" in found.stderr
    text = found.stdout
    assert "\x1b" not in text
    assert [int(n) for n in re.findall(r"^(\d)\. ", text, re.M)] == [1, 2, 3, 4]
    assert "bit for bit" in text
    out = Path("out", "demo")
    frame = (out / "vector.bin").read_bytes()
    record = json.loads((out / "vector.bin.json").read_text("utf-8"))
    vector = MicroVector.from_bytes(frame, load_bundle(out).bases)
    assert (record["basis"], record["numbers"]) == (vector.basis, len(vector.values))
    assert f"{len(frame):,} bytes, {len(vector.values):,} numbers" in text
    assert record["held_out"]["n"] == 2
    assert f"{record['held_out']['vector']:.3f} +-" in text
    cli("demo").refused("out/demo", "exists already", "remove it")
    cli("demo", "-o", tmp_path / "no" / "where").refused("could not be written")


def test_an_interrupted_demo_leaves_nothing(start, tmp_path):
    child = start("demo", "-o", tmp_path / "out", "--threads", 2)
    begun = tmp_path / "out" / "vector.bin.run"  # the bundle is there, training begins
    support.wait_until(lambda: begun.exists() or child.poll() is not None, 240)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=120)
    assert child.returncode == 130, stderr
    assert contents(tmp_path) == {}


def test_the_proof_fails_where_a_promise_is_broken() -> None:
    base, changed = np.float32([[1, 2]]), np.float32([[1, 4]])
    with pytest.raises(CommandError, match=r"not restored: .* differ by up to 2"):
        prove(base, changed, changed)
    with pytest.raises(CommandError, match="not restored"):
        prove(base, changed, np.nextafter(base, np.float32(np.inf)))
    assert prove(base, changed, base) == {"logits": 2, "vector_difference": 2}


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("replay")
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'onnx', 'onnxruntime')))\n"
        "sys.argv = ['tinylora-edge', 'demo', '--replay', '--threads', '1']\n"
        "from tinylora_edge.cli import main; main()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, support.without_progress(done.stderr)) == (0, "")
    return folder, done.stdout


def test_what_a_replay_says(replayed: tuple[Path, str]) -> None:
    folder, text = replayed
    record = json.loads((REPLAY / "vector.bin.json").read_text("utf-8"))
    held = record["held_out"]
    assert f"{held['base']:.3f} +- " in text
    assert f"{held['vector']:.3f} +- {held['vector_standard_error']:.3f}" in text
    assert held["vector"] > 0.5 > held["base"]
    assert f"{record['arms']['prompt']['mean']:.3f} +- " in text
    assert "bit for bit" in text
    files = {"base.gguf", "basis.gguf", "manifest.json", "vector.bin", "vector.bin.json"}
    assert set(contents(folder / "out" / "demo")) == files


def test_the_commands_run_as_printed(replayed: tuple[Path, str], process: Cli) -> None:
    folder, text = replayed
    commands = [shlex.split(line) for line in text.partition("Type next:\n")[2].splitlines()]
    assert [words[1] for words in commands] == ["run", "run", "chat", "inspect"]
    answers = [process(*words[1:], cwd=folder).done() for words in commands]
    task = load_task("snips-intents")
    (sample,) = [sample for sample in task.held_out if sample.text == commands[0][-1]]
    assert [task.score(Completion(answer.strip(), True, 20), sample) for answer in answers[:2]] == [0, 1]
