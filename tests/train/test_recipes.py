"""Recipes: they say what the paper does, run dry, and what is wrong with one is said in a line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from servers import free_port
from trl_world import RECIPES, ROOT, steps

from tinylora_edge import MicroVector, TrainError, load_bundle
from tinylora_edge.tasks import Completion, Sample, load_task
from tinylora_edge.train import trl as engine
from tinylora_edge.train.trl import grpo_fields, main, read_recipe


def test_recipes_say_what_the_paper_does(problems: dict[str, Path]) -> None:
    """Of arXiv 2602.04118: the settings of its GSM8K runs, and those of MATH, on 1 GPU and on 8."""
    paper = {"gsm8k": (4, 64, 0.0, 4096), "math": (8, 256, 0.001, 3072)}
    for path in RECIPES:
        samples, batch, kl, limit = paper[path.stem]
        recipe, options = read_recipe(path, ["options.lr=1e-7", "grpo.per_device_train_batch_size=8"])
        task = load_task(problems[path.stem], max_tokens=recipe.max_tokens, temperature=recipe.temperature)
        for gpus in (1, 8):
            fields = grpo_fields(task, options, recipe.grpo, processes=gpus)
            each = fields["per_device_train_batch_size"]
            assert each * gpus * fields["gradient_accumulation_steps"] == samples * batch
            assert (fields["num_generations"], fields["beta"]) == (samples, kl)
            assert fields["max_completion_length"] == limit
            assert (fields["num_train_epochs"], fields["max_steps"]) == (3, -1)
            assert fields["temperature"] == 1.0
            assert fields["vllm_max_model_length"] >= limit + 512, "room for a prompt"
            engine.GRPOConfig(**(fields | {"use_cpu": True, "bf16": False}))


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        (r"So \boxed{\dfrac{3}{4}}.", r"\frac{3}{4}", 1.0),
        (r"First \boxed{1}, no: \boxed{2}", "2", 1.0),
        (r"\boxed{\text{Tuesday}}", "Tuesday", 1.0),
        (r"\boxed{\frac{3}{4}", r"\frac{3}{4}", 0.0),  # cut
        ("The answer is 2", "2", 0.0),
    ],
)
def test_the_reward_for_math(answer, reference, score, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "recipes")
    from problems import boxed

    assert boxed(Completion(answer, True, 9), Sample("x", reference)) == score


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["options.prompt=8"], "'prompt' is unknown: expected "),
        (["options.prompts"], "expected KEY=VALUE"),
        (["task.x=1"], "has no attribute|does not support"),
        (["task=5"], "task is 5, expected str"),
        (["max_tokens=abc"], "max_tokens is 'abc', expected int"),
        (["options.evaluate=1"], "evaluate is 1, expected bool"),
        (["options.lr=fast"], "lr is 'fast', expected float"),
    ],
)
def test_says_what_is_wrong_with_a_recipe(changes: list[str], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        read_recipe(RECIPES[0], changes)


def test_a_recipe_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.toml")
    with pytest.raises(TrainError, match="it is a pipe or a device"):
        read_recipe(tmp_path / "recipe.toml")


def short(task: Path, weights: Path) -> list[str]:
    """Two steps of 8 tokens on the CPU; what an untrained model says is told apart by its characters."""
    changes = [f"task={task}", "reward=test_recipes:varied", "max_tokens=8", f"options.weights={weights}"]
    changes += ["options.lr=2e-4", "options.dtype=fp32", "options.steps=2", "options.prompts=2"]
    changes += ["options.validation=2", "options.validate_every=1", "grpo.num_train_epochs=1"]
    changes += ["grpo.max_steps=2", "grpo.per_device_train_batch_size=4", "grpo.per_device_eval_batch_size=2"]
    changes += ["grpo.use_cpu=true", "grpo.dataloader_pin_memory=false"]
    return [part for change in changes for part in ("--set", change)]


def varied(completion: Completion, sample: Sample) -> float:
    return len(set(completion.text)) / (len(completion.text) + 1)


TWO = """
import os, sys
from tinylora_edge.train.trl import main

children = []
for rank in ("0", "1"):
    if not (child := os.fork()):
        os.environ.update(RANK=rank, LOCAL_RANK=rank)
        sys.exit(main(sys.argv[1:]))
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def test_a_recipe_runs_in_two_processes(tiny: Path, problems: dict[str, Path], tmp_path: Path) -> None:
    """They end with the same vector, or `check_agreement` refuses it; one of them writes.

    They are what a launcher starts, but for what both import: it is imported once.
    """
    output = tmp_path / "v.bin"
    command = [sys.executable, "-c", TWO, str(tiny / "bundle"), "-o", str(output)]
    path = next(each for each in RECIPES if each.stem == "math")
    command += ["--recipe", str(path), *short(problems[path.stem], tiny / "weights")]
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = os.environ | launched | {"OMP_NUM_THREADS": "1", "CI": "1"}  # CI: TRL sends no telemetry
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    *curve, end = (json.loads(line) for line in done.stdout.splitlines())
    manifest = json.loads((tmp_path / "v.bin.json").read_text())
    assert curve == manifest["curve"]
    assert (end["event"], end["output"]) == ("end", str(output))
    assert manifest["engine"]["processes"] == 2
    MicroVector.from_bytes(output.read_bytes(), load_bundle(tiny / "bundle").basis(numbers=13))
    assert [row["step"] for row in steps(manifest["curve"])] == [1, 2]
    assert manifest["options"]["lr"] == 2e-4
    (recipe, options), fields = read_recipe(path), manifest["engine"]["grpo"]
    assert (fields["num_generations"], fields["beta"]) == (options.samples, recipe.grpo["beta"])
    assert fields["activation_checkpointing"] is True


def test_a_command_that_cannot_run_says_one_line(tiny, problems, tmp_path, capsys):
    (tmp_path / "bad.toml").write_text("task = ")
    gsm8k = ["--recipe", str(RECIPES[0]), "--set"]
    lookup = ["--set", "task=list-lookup", "--set", "options.lr=1e-5"]
    cases: list[tuple[list[str], str]] = [
        ([], "missing 1 required .*task"),
        ([*gsm8k, f"task={problems['gsm8k']}"], "has no step size of its own: give one with options.lr"),
        (["--recipe", str(tmp_path / "bad.toml")], "bad.toml: Invalid value"),
        ([*gsm8k, "task=none.jsonl"], "none.jsonl"),
        ([*lookup, "--set", "grpo.use_vllm=true"], "original weights: name them with options.weights"),
        ([*lookup, "--set", "grpo.speed=3"], "TRL does not take these settings: .*speed"),
    ]
    for arguments, message in cases:
        assert main([str(tiny / "bundle"), "-o", str(tmp_path / "v.bin"), *arguments]) == 1
        error = capsys.readouterr().err
        assert re.search(message, error), (message, error)
        assert error.startswith("error: ")
        assert error.count("\n") == 1
