"""`learn` and `distill`: directions that a bundle learns, and a prompt as one of their vectors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import models
import pytest
from invocation import Cli, contents

from tinylora_edge import MicroVector, load_bundle
from tinylora_edge.cli import figures
from tinylora_edge.exporters import export_gguf
from tinylora_edge.train import distill as on_a_host

BEHAVIOURS = [
    {"name": "pirate", "system": "Talk like a pirate."},
    {"name": "french", "system": "Answer in French."},
]
THINGS = ("river", "guitar", "garden", "clock", "harbor", "candle", "bridge", "spoon")
QUICK = ("--only", "--numbers", 2, "--questions", 2)


TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny model with a chat template, and its weights; tests/train has the real one."""
    folder, model = tmp_path_factory.mktemp("tiny"), models.tiny_model("llama")
    metadata = {"tokenizer.chat_template": TEMPLATE}
    export_gguf(models.write_gguf(model, folder / "tiny.gguf", metadata=metadata), folder / "bundle")
    models.write_hf(model, folder / "weights")
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions.txt"
    path.write_text("".join(f"{thing}?\n" for thing in THINGS))
    return path


@pytest.fixture(scope="module")
def behaviours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("behaviours") / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in BEHAVIOURS))
    return path


def test_a_bundle_is_learned_and_a_prompt_distilled_for_it(
    cli: Cli, tiny: Path, behaviours: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_a_host, "distill", partial(on_a_host.distill, steps=2, max_tokens=6))
    out, frame, others = tmp_path / "bundle", tmp_path / "pirate.bin", tmp_path / "bundle.learn"
    shutil.copytree(tiny / "bundle", out, copy_function=os.link)
    before, key = load_bundle(out).bases, tmp_path / "fleet.key"
    cli("keygen", key).done()
    cli("sign", out, "--key", key).done()
    others.mkdir()
    (others / ".DS_Store").write_bytes(b"x")  # as a file browser leaves it
    weights = "--weights", tiny / "weights"
    learn = ("learn", out, "--behaviours", behaviours, *QUICK, *weights, "--json")
    cli(*learn).refused("the bundle is signed by ed25519:", "--key")
    record = cli(*learn, "--key", key).record()
    bases = load_bundle(out).bases
    basis = bases.basis(numbers=2)
    assert (record["basis"], record["numbers"]) == (basis.digest, 2)
    assert (basis.projection.kind, basis.rank) == ("learned", 2)
    assert set(bases) == {*before, basis.id}, "every vector stays good"
    assert len(load_bundle(tiny / "bundle").bases.projections) == len(bases.projections) - 1
    assert [each["name"] for each in record["behaviours"]] == ["pirate", "french"]
    described = json.loads((out / "manifest.json").read_text())["basis"]
    assert described["projections"] == [each.descriptor for each in bases.projections]
    assert described["learned"]["behaviours"] == 2
    assert contents(others) == {".DS_Store": b"x"}, "what was kept for going on is gone"
    cli("inspect", out, "--key", f"{key}.pub").done()

    distill = ("distill", out, "--system", BEHAVIOURS[0]["system"], "--questions", questions, "--numbers", 2)
    told = cli(*distill, *weights, "-o", frame, "--json").record()
    assert told["bytes"] == frame.stat().st_size == 7 + 2 * 4 + 4
    assert told["share"] == pytest.approx(1 - told["after"] / told["before"])
    assert len(told["answers"]) == 2
    assert told["drift"]["prompts"] == figures.DRIFT_PROMPTS
    cli("inspect", frame, out).done()


def test_a_distilled_vector_goes_to_stdout_alone(
    cli: Cli, tiny: Path, questions: Path, tmp_path: Path
) -> None:
    bundle = tiny / "bundle"
    told = ("distill", bundle, "--system", "Arr!", "--on-device", "--threads", 1, "--numbers", 5)
    done = cli(*told, "--questions", questions, "--budget", "5ktokens", "-o", "-")
    assert done.code == 0, done.stderr
    assert MicroVector.from_bytes(done.stdout_bytes, load_bundle(bundle).basis(numbers=5))
    assert "it does not replace this prompt" in done.stderr
    questioned = (*told, "--questions", questions)
    cli(*questioned, "--budget", "5ktokens", "-o", questions).refused("exists already")
    cli(*questioned, "--budget", "20tokens", "-o", tmp_path / "third.bin").refused("one step takes about")


def test_what_cannot_be_asked(cli: Cli, smollm2_bundle: Path, behaviours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cli("learn", smollm2_bundle, "--only").misused("--only")
    few = ("learn", smollm2_bundle, "--behaviours", behaviours, "--only")
    cli(*few).refused("2 behaviours cannot teach 13 directions")
    cli("distill", smollm2_bundle, "-o", out).misused("--system")
    told = ("distill", smollm2_bundle, "-o", out, "--system", "Be brief.")
    cli(*told, "--budget", "5m").misused("--budget", "--on-device")
    cli(*told, "--on-device", "--weights", tmp_path).misused("--weights", "--on-device")
    cli(*told, "--on-device", "--budget", "soon").refused("the budget 'soon' is not valid")
    questions = tmp_path / "questions.txt"
    questions.write_text("What is a river?\n\nWhat is a river?\n")
    asked = ("distill", smollm2_bundle, "-o", out, "--system", "Be brief.", "--questions", questions)
    cli(*asked).refused("1 questions, and at least 3")
    questions.write_bytes("Wie heißt der Fluss?\n".encode("latin-1"))
    cli(*asked).refused(f"{questions}: not UTF-8 text (byte 8): save it as UTF-8")
    cli("distill", smollm2_bundle, "-o", "-", "--system", "Be brief.", "--json").misused(
        "--json", "stdout carries the vector"
    )
    assert contents(tmp_path).keys() == {"questions.txt"}


def test_on_a_device_there_is_no_torch(tiny: Path, questions: Path, tmp_path: Path) -> None:
    """Refused for its budget, that is after everything was imported and before anything takes time."""
    arguments = ["distill", str(tiny / "bundle"), "-o", str(tmp_path / "v.bin"), "--system", "Be brief."]
    arguments += ["--questions", str(questions), "--numbers", "5"]
    arguments += ["--on-device", "--budget", "20tokens"]
    code = (
        f"import sys; sys.argv[1:] = {arguments!r}\n"
        "from tinylora_edge.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules, 'llama_cpp' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "one step takes about" in done.stderr
    assert done.stdout.split() == ["1", "False", "True"]
