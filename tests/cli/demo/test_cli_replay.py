"""`demo --replay`: the shipped files are what the recipe says, and no other is taken for them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from invocation import COMMAND, Cli, contents

from tinylora_edge import Ed25519Signer, MicroVector, TinyLoraError, load_basis, runtime
from tinylora_edge.cli.demo.prompt import find_fixed
from tinylora_edge.cli.demo.replay.recipe import Recipe
from tinylora_edge.cli.demo.replay.shipment import FOLDER, Shipment
from tinylora_edge.runtime.evaluation import Evaluation
from tinylora_edge.tasks import Completion, load_task
from tinylora_edge.wire import text as wire_text

ROOT = Path(__file__).parents[3]


@pytest.fixture
def copied(tmp_path: Path, smollm2_gguf: Path) -> Shipment:
    """The shipment, where it may be damaged."""
    folder = tmp_path / "shipped"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return Shipment(smollm2_gguf, folder)


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> tuple[Path, str]:
    """A folder in which a replay was run where torch cannot be imported, and what it said."""
    folder = tmp_path_factory.mktemp("replay")
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'onnx', 'onnxruntime')))\n"
        "sys.argv = ['tinylora-edge', 'demo', '--replay', '--threads', '1']\n"
        "from tinylora_edge.cli import main; main()"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder, done.stdout


def test_the_files_are_what_the_recipe_says() -> None:
    recipe = json.loads((FOLDER / "recipe.json").read_text("utf-8"))
    basis, frame = load_basis(FOLDER / "basis.gguf"), (FOLDER / "vector.bin").read_bytes()
    vector = MicroVector.from_bytes(frame, basis)
    assert len(frame) == 37
    assert frame[0] == 0x21  # version 2, bf16, CRC-32
    assert recipe["basis"] == basis.digest
    assert recipe["values"] == vector.values.reshape(-1).tolist()
    assert (recipe["dtype"], recipe["sequence"]) == (vector.dtype, vector.sequence)
    # The run that it comes from is the one that the benchmark recorded, in fp32.
    lines = (ROOT / recipe["training"]["recorded_in"]).read_text("utf-8").splitlines()
    runs = [run for run in map(json.loads, lines) if run["settings"] == recipe["training"]["settings"]]
    (run,) = [run for run in runs if run["task"] == recipe["task"] and run.get("basis") == basis.digest]
    trained = MicroVector.from_bytes(wire_text.decode(run["frame"].encode()), basis)
    rounded = MicroVector(trained.values, dtype="bf16", sequence=vector.sequence)
    assert rounded.to_bytes(basis) == frame


def test_every_file_is_signed(copied: Shipment) -> None:
    checked = copied.check()
    assert set(checked.files) == {"base.gguf", "basis.gguf", "manifest.json", "vector.bin", "recipe.json"}
    public = (FOLDER / "project.pub").read_text("utf-8")
    assert "PRIVATE" not in public
    assert not [path for path in FOLDER.rglob("*") if path.is_file() and b"PRIVATE" in path.read_bytes()]


@pytest.mark.parametrize(
    "name", ["vector.bin", "basis.gguf", "recipe.json", "manifest.json", "signature.json"]
)
def test_a_flipped_byte_is_refused(name: str, copied: Shipment) -> None:
    path = copied.folder / name
    data = bytearray(path.read_bytes())
    for place in (len(data) // 3, len(data) - 9):
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(TinyLoraError, match=re.escape(str(path))):
            copied.check()
        data[place] ^= 1
    path.write_bytes(data)
    copied.check()


def test_another_model_and_another_signer_are_refused(copied: Shipment, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    with pytest.raises(TinyLoraError, match=r"other\.gguf has SHA-256 .* is what was signed"):
        Shipment(other, copied.folder).check()
    copied.sign(Ed25519Signer(bytes(range(32))))
    with pytest.raises(TinyLoraError, match="does not verify under ed25519:"):
        copied.check()


def test_nothing_is_left_where_it_is_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(FOLDER, broken)
    (broken / "vector.bin").write_bytes(bytes(37))
    monkeypatch.setattr("tinylora_edge.cli.demo.command.Shipment", lambda model: Shipment(model, broken))
    cli("demo", "--replay", "-o", tmp_path / "out").refused("vector.bin", "is what was signed")
    assert not (tmp_path / "out").exists()


def test_the_answers_that_are_quoted_are_judged_as_it_says() -> None:
    recipe = json.loads((FOLDER / "recipe.json").read_text("utf-8"))
    task = load_task(recipe["task"])
    samples = {sample.text: sample for sample in task.held_out}
    for one in recipe["fixed"]:
        sample = samples[one["prompt"]]
        assert task.score(Completion(one["vector"], True, 12), sample) == one["vector_reward"] == 1
        assert task.score(Completion(one["base"], False, 24), sample) == one["base_reward"] == 0


def test_what_a_replay_says(replayed: tuple[Path, str]) -> None:
    folder, text = replayed
    told = " ".join(text.split())
    assert "\x1b" not in text
    assert "base 0.14 +- 0.03, vector 0.73 +- 0.04" in told
    assert "best of 63 that were searched has 0.87 +- 0.03, for 185 tokens" in told
    assert "bit for bit" in told
    assert "5 files are as they were signed" in told
    assert "tinylora:" in told
    assert "█▀▀▀▀▀█" in told
    assert told.count("reward 1") == told.count("reward 0") == 5
    assert set(contents(folder / "out" / "demo")) == {
        *("base.gguf", "basis.gguf", "manifest.json", "vector.bin", "recipe.json", "signature.json"),
        "project.pub",
    }


def test_the_commands_run_as_printed(replayed: tuple[Path, str], process: Cli) -> None:
    folder, text = replayed
    commands = [shlex.split(line) for line in text.partition("Type next:\n")[2].splitlines()]
    assert [words[1] for words in commands] == ["run", "run", "chat", "inspect"]
    said = [process(*words[1:], cwd=folder).done() for words in commands]
    prompt = commands[0][-1]
    task = load_task("brevity")
    (sample,) = [sample for sample in task.held_out if sample.text == prompt]
    scores = [task.score(Completion(answer.strip(), True, 20), sample) for answer in said[:2]]
    assert scores == [0, 1]
    assert "3 files verified" in said[3]


def test_the_demo_finds_a_prompt_that_stands_by_itself(replayed: tuple[Path, str]) -> None:
    """What a batch seemed to raise, and does not when it is asked as `run` asks, is passed over."""
    bundle = replayed[0] / "out" / "demo"
    task = load_task("brevity")
    prompts = [sample.text for sample in task.held_out]
    fixed = Recipe.read(FOLDER / "recipe.json").prompts[0]
    seemed = np.zeros(len(prompts))
    seemed[[prompts.index("What is the purpose of a pig? Answer in a few words."), prompts.index(fixed)]] = 1
    base, vector = (Evaluation(scores, [""] * len(prompts)) for scores in (seemed * 0, seemed))
    llm = runtime.load(bundle, None, engine="llama", n_ctx=512, n_threads=1, n_threads_batch=1)
    with closing(llm):
        found = find_fixed(llm, task, base, vector, (bundle / "vector.bin").read_bytes())
        nothing = find_fixed(llm, task, base, base, (bundle / "vector.bin").read_bytes())
    assert found is not None
    assert (found.prompt, found.base_reward, found.personalized_reward) == (fixed, 0, 1)
    assert nothing is None


def test_a_replay_as_json(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "kept"
    record = cli("demo", "--replay", "-o", out, "--threads", 1, "--json").record()
    assert record["bundle"] == str(out)
    assert record["digest"] == load_basis(out / "basis.gguf").digest
    assert record["proof"]["restored_bit_for_bit"] is True
    assert record["text"].startswith("tinylora:")
    # The prompts of the recipe are fixed by the vector, says the task's scorer, asked as `run` asks.
    recipe = Recipe.read(FOLDER / "recipe.json")
    assert [answer["prompt"] for answer in record["answers"]] == list(recipe.prompts)
    assert len(recipe.prompts) >= 4
    assert {(answer["base_reward"], answer["personalized_reward"]) for answer in record["answers"]} == {
        (0, 1)
    }
    cli("demo", "--replay", "-o", out).refused(str(out), "exists already")


@pytest.mark.parametrize("option", [("--quick",), ("--steps", 3), ("--held-out", 9), ("--seed", 0)])
def test_a_replay_trains_nothing(option: tuple[object, ...], cli: Cli, tmp_path: Path) -> None:
    cli("demo", "--replay", "-o", tmp_path / "out", *option).misused("a replay trains nothing")


def test_the_program_is_named_as_it_was_called(
    environment: dict[str, str], tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """By its name where PATH leads to it, and by its path from here otherwise."""
    linked = tmp_path / ".venv" / "bin" / "tinylora-edge"
    linked.parent.mkdir(parents=True)
    linked.symlink_to(COMMAND)
    for path, expected in (
        ("/usr/bin:/bin", ".venv/bin/tinylora-edge"),
        (f"{linked.parent}:/usr/bin:/bin", "tinylora-edge"),
    ):
        out = tmp_path / "key"
        child = start(
            *("keygen", out, "--force"),
            program=[linked],
            cwd=tmp_path,
            env=environment | {"PATH": path},
        )
        text = child.communicate(timeout=60)[0].decode()
        assert f"next: {expected} vector pack" in text
