"""The README of recipes and the page on training at scale: commands parse, figures are the code's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from typer.main import get_command

from tinylora_edge.cli.app import app
from tinylora_edge.train.trl.command import command_parser
from tinylora_edge.train.trl.plan import Measured, estimate
from tinylora_edge.train.trl.recipes import read_recipe

ROOT = Path(__file__).parents[2]
README = ROOT / "recipes" / "README.md"
MODULE = "tinylora_edge.train.trl"
PROGRAMS = ("python", "tinylora-edge", "accelerate", "torchrun", "srun")


def commands() -> list[str]:
    """The command lines of code blocks, indented or fenced, and of spans of code; each once."""
    found: dict[str, None] = {}
    for path in (README, ROOT / "docs" / "TRAINING_AT_SCALE.md"):
        text = path.read_text("utf-8").replace("\\\n", " ")
        spans = [
            " ".join(span.split())
            for span in re.findall(r"`([^`]+)`", re.sub(r"^```.*", "", text, flags=re.M))
        ]
        for line in [*map(str.strip, text.splitlines()), *spans]:
            line = re.sub(r"^PYTHONPATH=\S+ ", "", line)
            if line.split(" ")[0] in PROGRAMS and " -" in line and "..." not in line:
                found[line] = None
    return list(found)


def test_there_are_as_many_as_there_look_to_be() -> None:
    assert len(commands()) >= 14


@pytest.mark.parametrize("line", commands())
def test_a_command_parses(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(
        re.sub(r"\$SLURM_\w+", "1", line).partition(" > ")[0].replace("$(", "").replace(")", "")
    )
    if words[0] == "srun":
        words = words[1:]
    if words[0] == "tinylora-edge":
        command = get_command(app).commands[words[1]]
        command.make_context(words[1], words[2:])
    elif words[1].endswith(".py"):
        assert (ROOT / words[1]).exists()
    else:
        if words[0] == "accelerate":
            words = launch_command_parser().parse_args(words[2:]).training_script_args
        else:
            words = words[words.index(MODULE) + 1 :]
        args = command_parser().parse_args(words)
        if args.recipe:
            read_recipe(args.recipe, args.set, model=args.model)


def test_the_figures_of_the_table() -> None:
    rows = re.findall(
        r"^\| (GSM8K|MATH), (\d+) tokens a completion \| (.+) million \| (.+), (.+), (.+) \| (\d+) \|$",
        README.read_text("utf-8"),
        re.M,
    )
    assert [row[0] for row in rows] == ["GSM8K", "MATH"]
    for task, length, millions, *hours, whole in rows:
        recipe = read_recipe(ROOT / "recipes" / f"{task.lower()}.toml")
        counted = [
            estimate(recipe, 8, Measured(float(length)), tokens_per_second=rate)
            for rate in (1000, 2000, 4000)
        ]
        assert f"{counted[0].all_tokens / 1e6:.1f}" == millions
        assert [f"{each.gpu_hours:.1f}" for each in counted] == hours
        assert f"{counted[1].gpu_hours * 14:.0f}" == whole
    text = " ".join(README.read_text("utf-8").split())
    gsm8k, maths = (
        estimate(read_recipe(ROOT / "recipes" / f"{n}.toml"), 1, Measured()) for n in ("gsm8k", "math")
    )
    assert f"`gsm8k.toml` has {gsm8k.steps} steps of {gsm8k.completions} completions" in text
    assert f"`math.toml` {maths.steps} of {maths.completions:,}," in text


def test_the_sum_of_memory() -> None:
    """By the formulas below the table, for the shapes that the models' cards say."""
    shapes = {  # parameters, hidden, MLP, blocks
        "7B": (7.62e9, 3584, 18944, 28),
        "3B": (3.09e9, 2048, 11008, 36),
        "1.5B": (1.54e9, 1536, 8960, 28),
        "0.5B": (0.494e9, 896, 4864, 24),
    }
    text = README.read_text("utf-8")
    for name, (parameters, hidden, wide, blocks) in shapes.items():
        recipe = read_recipe(ROOT / "recipes" / "gsm8k.toml", model=f"qwen2.5-{name.lower()}")
        rows = recipe.grpo["per_device_train_batch_size"]
        tokens = rows * recipe.vllm["vllm_max_model_length"]
        share = recipe.vllm["vllm_gpu_memory_utilization"] * 85
        parts = [2 * parameters / 1e9, tokens * hidden * 2 * blocks / 1e9, 9 * tokens * wide * 2 / 1e9, share]
        shown = [float(cell) for cell in re.search(rf"^\| {name} \| (.+) \|$", text, re.M)[1].split(" | ")]
        assert shown[0] == rows
        assert shown[1:5] == pytest.approx(parts, abs=0.06)
        assert shown[6] == pytest.approx(sum(shown[1:6]), abs=0.6)
        assert shown[6] < 80
