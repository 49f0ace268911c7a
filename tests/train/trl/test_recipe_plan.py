"""The plan of a recipe: steps as TRL counts them, GPU hours by hand, and a script that a shell takes."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trl_worker
from trl_world import RECIPES, ROOT, rows_of, steps

from tinylora_edge import TrainError
from tinylora_edge.train import Options, TrainSettings
from tinylora_edge.train.trl.command import main
from tinylora_edge.train.trl.plan import Measured, describe, estimate, measured
from tinylora_edge.train.trl.recipes import Recipe, read_recipe
from tinylora_edge.train.trl.training import train_trl


def test_gpu_hours_by_hand() -> None:
    gsm8k, math = (read_recipe(path) for path in RECIPES)
    found = estimate(gsm8k, 8, Measured(tokens=250), tokens_per_second=2000)
    # (7473 - 128) // 64 = 114 steps an epoch; validated at the start, 17 times, and at the end
    assert (found.steps, found.completions, found.validated) == (342, 256, 19 * 128)
    assert found.all_tokens == (342 * 256 + 19 * 128) * 250
    assert found.gpu_hours == pytest.approx(22_496_000 / 2000 / 3600)
    found = estimate(math, 8, Measured(tokens=600, step_s=96))
    # (12000 - 128) // 256 = 46 steps an epoch
    assert (found.steps, found.completions, found.limit) == (138, 2048, 3072)
    assert found.rate == 2048 * 600 / (96 * 8)
    assert found.gpu_hours == pytest.approx((138 * 96 + 15 * 128 / 2048 * 96) * 8 / 3600)
    unknown = estimate(gsm8k, 8, Measured())
    assert (unknown.all_tokens, unknown.gpu_hours) == (None, None)
    assert "at most 4,096 tokens each" in "".join(describe(unknown, 14))


def test_steps_are_those_that_trl_makes(tiny: Path, tmp_path: Path) -> None:
    """48 problems, 8 of them for validation, 6 a step: 6 steps an epoch, and 4 problems are left out."""
    chosen = trl_worker.options(tiny, prompts=6, validate_every=5)
    recipe = Recipe(task="letters", problems=48, options=chosen, grpo={"num_train_epochs": 2})
    outcome = train_trl(
        tiny / "bundle", trl_worker.letters_task(), tmp_path / "v.bin", options=chosen, grpo=recipe.grpo
    )
    found = estimate(recipe, 1, Measured())
    rows = rows_of(tmp_path / "v.bin")
    assert outcome.result.steps == found.steps == 12
    assert found.validated == 8 * len([row for row in rows if "validation" in row])
    facts = measured(tmp_path / "v.bin.run" / "metrics.jsonl")
    lengths = [row["length"] for row in steps(rows)]
    assert facts.tokens == pytest.approx(sum(lengths[1:]) / 11)
    costs = estimate(recipe, 1, facts)
    assert costs.gpu_hours == pytest.approx((12 * 24 + 32) / 24 * facts.step_s / 3600)


def test_steps_that_a_recipe_names() -> None:
    recipe = Recipe(task="x", options=Options(settings=TrainSettings(steps=40)))
    assert estimate(recipe, 1, Measured()).steps == 40


@pytest.mark.parametrize(
    ("change", "facts", "options", "message"),
    [
        ({"problems": None}, {}, {}, "counts in epochs: say how many problems, with --set problems=7473"),
        ({"problems": 150}, {}, {}, "150 problems, of which 128 are for validation, make no step of 64"),
        ({}, {}, {"tokens_per_second": 9}, "says nothing without the tokens of a completion"),
    ],
)
def test_says_what_an_estimate_lacks(
    change: dict[str, Any], facts: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainError, match=message):
        estimate(replace(read_recipe(RECIPES[0]), **change), 1, Measured(**facts), **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--plan is the plan of a recipe: name one with --recipe"),
        (["--recipe", str(RECIPES[0]), "--sweep", "4"], "leave out --lr and --sweep"),
    ],
)
def test_says_what_has_no_plan(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["b", "-o", "v.bin", "--task", "list-lookup", *arguments, "--plan"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the metrics: No such file"),
        ("{", "no metrics of a run"),
        ("7", "no metrics of a run"),
        ('{"step": 1, "length": 5, "step_s": 2}', "fewer than two steps"),
        (
            '{"step": 1, "length": 5, "step_s": 2}\n{"step": 2, "length": "x", "step_s": 2}',
            "no metrics of a run",
        ),
    ],
)
def test_says_what_is_wrong_with_metrics(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TrainError, match=message):
        measured(path)


def test_the_script_goes_on_where_it_was(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A shell runs it, with programs of the same names that note what they were called with."""
    given = ["qwen", "-o", "m.bin", "--recipe", str(RECIPES[1]), "--model", "qwen2.5-7b", "--gpus", "8"]
    assert main([*given, "--vllm", "--set", "options.settings.prompts=128", "--plan"]) == 0
    (tmp_path / "plan.sh").write_text(capsys.readouterr().out)
    noted, programs = tmp_path / "noted", tmp_path / "bin"
    programs.mkdir()
    note = f'#!/bin/sh\necho "$0 $*" >> {noted}\n'
    touch = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done\n'
    (programs / "tinylora-edge").write_text(note + "[ -e stop ] && exit 3\n" + touch)
    (programs / "python").write_text(f"{note}case $2 in *.choice) echo $4; exit;; esac\n{touch}")
    for program in programs.iterdir():
        program.chmod(0o755)

    def run() -> int:
        path = {"PATH": f"{programs}:{os.environ['PATH']}"}
        return subprocess.run(["sh", "plan.sh"], cwd=tmp_path, env=os.environ | path, check=False).returncode

    assert run() == 0
    first = noted.read_text().splitlines()
    assert len(first) == 1 + 1 + 2 * (7 + 2)
    assert "export qwen2.5-7b -o qwen" in first[0]
    assert "learn qwen -o qwen-learned --weights Qwen/Qwen2.5-7B-Instruct" in first[1]
    assert "qwen -o m-3.bin" in first[5]
    assert first[5].endswith("--vllm --sweep 3 --resumable")
    assert "--set options.settings.prompts=128" in first[5]
    assert "--against best-prompt --candidates" in first[10]
    assert "--reward math_boxed:boxed -n 500 --max-tokens 3072" in first[10]
    assert first[10].endswith("--vector m-1.bin"), "the one that was chosen"
    assert (tmp_path / "m-learned.json").exists()
    assert run() == 0
    assert noted.read_text().splitlines() == first, "nothing is done twice"
    for name in ("m-learned-2.bin", "m-learned.json"):
        (tmp_path / name).unlink()
    (tmp_path / "stop").touch()
    assert run() != 0
    assert not (tmp_path / "m-learned.json").exists(), "half of an evaluation is none"
    assert len(noted.read_text().splitlines()) == len(first) + 3


def test_candidates_are_lines_of_their_own() -> None:
    lines = (ROOT / "recipes" / "math-candidates.jsonl").read_text("utf-8").splitlines()
    systems = [json.loads(line)["system"] for line in lines]
    assert len(set(systems)) == len(systems) >= 12
    assert r"Please reason step by step, and put your final answer within \boxed{}." in systems
    assert all("boxed" in text for text in systems), "the reward reads the box"
