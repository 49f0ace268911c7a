"""Recipes of the TRL engine: they run, they say what the paper does, and they say what is wrong with them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from trl_world import RECIPES, ROOT, steps

from tinylora_edge import Bundle, MicroVector, TrainError
from tinylora_edge.tasks import Completion, Sample
from tinylora_edge.train.trl import training as engine
from tinylora_edge.train.trl.recipes import main, read_recipe
from tinylora_edge.train.trl.training import grpo_fields


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_run_dry(path: Path, tiny: Path, problems: dict[str, Path], tmp_path: Path) -> None:
    """Through the command line, two steps, on a tiny model: only sizes and the reward's scale are cut."""
    output = tmp_path / "v.bin"
    task = str(problems[path.stem.partition("-")[0]])
    arguments = [str(tiny / "bundle"), "-o", str(output), "--recipe", str(path), "--task", task]
    arguments += ["--weights", str(tiny / "weights"), "--dry-run"]
    assert main(arguments) == 0
    manifest = json.loads(output.with_name("v.bin.json").read_text())
    MicroVector.from_bytes(output.read_bytes(), Bundle.find(tiny / "bundle").basis)
    assert [row["step"] for row in steps(manifest["curve"])] == [1, 2]
    recipe = read_recipe(path)
    fields = manifest["engine"]["grpo"]
    assert fields["num_generations"] == recipe.options.samples
    assert fields["beta"] == recipe.options.loss.kl
    assert fields["gradient_checkpointing"] is True


def test_a_recipe_runs_dry_in_two_processes(two_processes: Path) -> None:
    printed = [json.loads(line) for line in (two_processes / "recipe.out").read_text().splitlines()]
    manifest = json.loads((two_processes / "recipe.bin.json").read_text())
    *curve, end = printed
    assert curve == manifest["curve"]
    assert (end["event"], end["output"]) == ("end", str(two_processes / "recipe.bin"))
    assert end["best"] == max(row["validation"] for row in curve if "validation" in row)
    assert [row["step"] for row in steps(printed)] == [1, 2]
    assert manifest["engine"]["processes"] == 2
    assert manifest["options"]["settings"]["lr"] == 2e-4


def test_recipes_say_what_the_paper_does(problems: dict[str, Path]) -> None:
    """Of arXiv 2602.04118: the settings of its GSM8K runs, and those of MATH."""
    sizes = (1e-7, 5e-7, 1e-6, 5e-6, 1e-5, 1e-4, 2e-4)
    paper = {
        "gsm8k-qwen2.5-3b": (4, 64, 0.0, 4096),
        "gsm8k-qwen2.5-7b": (4, 64, 0.0, 4096),
        "math-qwen2.5-7b": (8, 256, 0.001, 3072),
    }
    assert [path.stem for path in RECIPES] == sorted(paper)
    for path in RECIPES:
        samples, batch, kl, limit = paper[path.stem]
        recipe = read_recipe(path, [f"task={problems[path.stem.partition('-')[0]]}"])
        assert recipe.step_sizes == sizes
        task = recipe.load()
        longer = replace(task, train=list(task.train) * 100)
        options = replace(recipe.options, settings=replace(recipe.options.settings, lr=sizes[0]))
        fields = grpo_fields(longer, options, recipe.grpo, processes=8)
        per_step = fields["per_device_train_batch_size"] * 8 * fields["gradient_accumulation_steps"]
        assert per_step == samples * batch
        assert (fields["num_generations"], fields["beta"]) == (samples, kl)
        assert fields["max_completion_length"] == limit
        assert (fields["num_train_epochs"], fields["max_steps"]) == (3, -1)
        assert fields["temperature"] == 1.0
        engine.GRPOConfig(**(fields | {"use_cpu": True, "bf16": False, "use_vllm": True} | dict(recipe.vllm)))


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        (r"So \boxed{\dfrac{3}{4}}.", r"\frac{3}{4}", 1.0),
        (r"First \boxed{1}, no: \boxed{2}", "2", 1.0),
        (r"First \boxed{2}, no: \boxed{1}", "2", 0.0),
        (r"\boxed{\left( 1, \, 2 \right)}", "(1,2)", 1.0),
        (r"\boxed{1{,}000} \boxed{1,000}", "1000", 1.0),
        (r"\boxed{90^\circ}", "90", 1.0),
        (r"\boxed{\text{Tuesday}}", "Tuesday", 1.0),
        (r"\boxed{.5}", "0.5", 1.0),
        (r"\boxed{\frac12}", r"\frac{1}{2}", 1.0),
        (r"\boxed{}", "", 0.0),
        (r"\boxed{\frac{3}{4}", r"\frac{3}{4}", 0.0),  # cut
        ("The answer is 2", "2", 0.0),
    ],
)
def test_the_reward_for_math(answer: str, reference: str, score: float) -> None:
    task = read_recipe(ROOT / "recipes" / "math-qwen2.5-7b.toml")
    sys.path.insert(0, str(task.folder))
    try:
        from math_boxed import boxed
    finally:
        sys.path.pop(0)
    assert boxed(Completion(answer, True, 9), Sample("x", reference)) == score


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["options.setings.prompts=8"], "unknown setting 'options.setings'"),
        (["options.settings.prompt=8"], "unknown setting 'options.settings.prompt'"),
        (["speed=8"], "unknown setting 'speed'"),
        (["options.settings.prompts"], "expected KEY=VALUE"),
        (["options=1"], "options is 1, expected a table"),
        (["task.name=x"], "task is no table"),
        (["options.method=other"], "unknown method 'other'"),
    ],
)
def test_says_what_is_wrong_with_a_recipe(changes: list[str], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        read_recipe(RECIPES[0], changes)


def test_a_command_that_cannot_run_says_one_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.toml").write_text("task = ")
    recipe = str(RECIPES[0])
    cases: list[tuple[list[str], str]] = [
        ([], "no task: name one with --task"),
        (["--recipe", recipe], "choose --sweep 0 to 6"),
        (["--recipe", recipe, "--sweep", "7"], "--sweep 7: the recipe has step sizes 0 to 6"),
        (["--recipe", str(tmp_path / "none.toml")], "No such file"),
        (["--recipe", str(tmp_path / "bad.toml")], "not TOML"),
        (["--task", "gsm8k:none.jsonl", "--lr", "1e-5"], "none.jsonl"),
    ]
    for arguments, message in cases:
        assert main([str(tiny / "bundle"), "-o", str(tmp_path / "v.bin"), *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_changes_go_before_the_recipe() -> None:
    changes = ["options.settings.prompts=16", "grpo.beta=0.5", "task=gsm8k:x.jsonl", "reward=ends_itself"]
    recipe = read_recipe(RECIPES[1], changes)
    assert recipe.options.settings.prompts == 16
    assert recipe.grpo["beta"] == 0.5
    assert (recipe.task, recipe.arguments["reward"]) == ("gsm8k:x.jsonl", "ends_itself")
