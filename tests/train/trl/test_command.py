"""The command line of the TRL engine: every line of every recipe runs dry, and what cannot run says why."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from trl_world import MODELS, RECIPES, steps

from tinylora_edge import Bundle, MicroVector
from tinylora_edge.train.trl.command import launch, main
from tinylora_edge.train.trl.recipes import read_recipe

MODULE = "tinylora_edge.train.trl"


def planned(
    path: Path,
    model: str,
    gpus: int,
    folder: Path,
    output: Path,
    task: Path,
    capsys: pytest.CaptureFixture[str],
) -> list[list[str]]:
    """The training lines of a recipe's plan, on the tiny model: arguments of the command line."""
    arguments = [str(folder / "bundle"), "-o", str(output), "--recipe", str(path), "--model", model]
    arguments += ["--gpus", str(gpus), "--task", str(task), "--weights", str(folder / "weights"), "--vllm"]
    capsys.readouterr()
    assert main([*arguments, "--plan"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if f"-m {MODULE} " in line]
    return [words[words.index(MODULE) + 1 :] for words in lines]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_line_of_a_recipe_runs_dry(
    path: Path,
    model: str,
    tiny: Path,
    problems: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two steps on a tiny model: only sizes and the reward's scale are cut.

    Both arms, and both numbers of GPUs, which a dry run checks the settings for. Lines of a sweep differ in
    the step size alone, so one of each runs.
    """
    recipe = read_recipe(path, model=model)
    for gpus, arm, number in ((1, 0, 6), (8, 7, 13)):
        lines = planned(path, model, gpus, tiny, tmp_path / "v.bin", problems[path.stem], capsys)
        assert len(lines) == 14
        assert [line[0] for line in lines] == [str(tiny / "bundle")] * 7 + [str(tiny / "bundle-learned")] * 7
        line = lines[number]
        assert main([*line, "--dry-run"]) == 0, capsys.readouterr().err
        output = Path(line[line.index("-o") + 1])
        manifest = json.loads(output.with_name(f"{output.name}.json").read_text())
        MicroVector.from_bytes(output.read_bytes(), Bundle.find(Path(line[0])).basis)
        assert [row["step"] for row in steps(manifest["curve"])] == [1, 2]
        assert manifest["options"]["settings"]["lr"] == recipe.sizes(learned=arm > 0)[6]
        fields = manifest["engine"]["grpo"]
        assert fields["num_generations"] == recipe.options.samples
        assert fields["beta"] == recipe.options.loss.kl
        assert fields["gradient_checkpointing"] is True


@pytest.mark.parametrize("gpus", [2, 8])
def test_gpus_are_started_by_accelerate(gpus: int) -> None:
    """The launcher's own parser understands the command, and hands on what ours does."""
    given = [
        "qwen",
        "-o",
        "v.bin",
        "--recipe",
        str(RECIPES[0]),
        "--gpus",
        str(gpus),
        "--sweep",
        "4",
        "--vllm",
    ]
    command = launch(given, gpus)
    assert command[1:3] == ["-m", "accelerate.commands.launch"]
    parsed = launch_command_parser().parse_args(command[3:])
    assert (parsed.num_processes, parsed.mixed_precision) == (gpus, "bf16")
    assert (parsed.module, parsed.training_script) == (True, MODULE)
    assert parsed.training_script_args == given


def test_a_dry_run_checks_the_settings_for_all_gpus(
    tiny: Path, problems: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tiny / "bundle"), "-o", str(tmp_path / "v.bin"), "--recipe", str(RECIPES[0])]
    given += ["--model", "qwen2.5-7b", "--task", str(problems["gsm8k"]), "--dry-run", "--vllm"]
    cases = [
        (["--gpus", "7"], "do not divide among 7 processes x 8"),
        (["--set", "vllm.vllm_speed=3"], "TRL does not take these settings: .*vllm_speed"),
        (["--set", "grpo.num_generations=3"], "TRL does not take these settings: .*num_generations"),
    ]
    for more, message in cases:
        assert main([*given, *more]) == 1
        assert re.search(message, capsys.readouterr().err), message
    assert list(tmp_path.iterdir()) == []


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


def test_a_command_that_cannot_run_says_one_line(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.toml").write_text("task = ")
    recipe, found = str(RECIPES[0]), torch.accelerator.device_count()
    cases: list[tuple[list[str], str]] = [
        ([], "no task: name one with --task"),
        (["--recipe", recipe], "choose --sweep 0 to 6"),
        (["--recipe", recipe, "--sweep", "7"], "--sweep 7: the recipe has step sizes 0 to 6"),
        (["--recipe", str(tmp_path / "none.toml")], "No such file"),
        (["--recipe", str(tmp_path / "bad.toml")], "not TOML"),
        (["--task", "gsm8k:none.jsonl", "--lr", "1e-5"], "none.jsonl"),
        (["--task", "list-lookup", "--lr", "1e-5", "--vllm"], "original weights: name them with --weights"),
        (["--task", "list-lookup", "--lr", "1e-5", "--gpus", "99"], f"finds {found} here"),
        (["--task", "list-lookup", "--model", "qwen2.5-7b"], "name one with --recipe"),
    ]
    for arguments, message in cases:
        assert main([str(tiny / "bundle"), "-o", str(tmp_path / "v.bin"), *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
