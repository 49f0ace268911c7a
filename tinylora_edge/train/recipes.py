"""Recipes: the settings of a run through TRL in a TOML file, and the command line that runs one.

    python -m tinylora_edge.train.recipes BUNDLE -o FILE --recipe gsm8k.toml --model qwen2.5-7b --gpus 8

A recipe has the fields of `Recipe`. What depends on the model is a table of `models.toml` beside it, which
goes before the recipe's, and `--set` goes before both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..documents import restored
from ..errors import TinyLoraError, TrainError
from ..tasks import Completion, Sample, Task, load_task
from .options import Options
from .trl import grpo_config, grpo_fields, train_trl

_MODULE = "tinylora_edge.train.recipes"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a run.

    Attributes:
        task, reward, max_tokens, temperature, held_out: what `load_task` takes.
        options: fields of `Options`.
        grpo: fields of `trl.GRPOConfig`.
        vllm: more of them, for `--vllm`.
    """

    task: str
    reward: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    held_out: int = 128
    options: dict[str, Any] = field(default_factory=dict)
    grpo: dict[str, Any] = field(default_factory=dict)
    vllm: dict[str, Any] = field(default_factory=dict)

    def load(self, folder: Path) -> Task:
        """Return the task, whose reward may be a Python module in the recipe's folder."""
        sys.path.insert(0, str(folder.resolve()))
        try:
            return load_task(
                self.task,
                reward=self.reward,
                held_out=self.held_out,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
            )
        finally:
            sys.path.remove(str(folder.resolve()))


def read_recipe(
    path: str | PathLike[str] | None, changes: Sequence[str] = (), *, model: str | None = None
) -> tuple[Recipe, Options]:
    """Read a recipe, and the options that it has.

    Args:
        path: of the file; None for a recipe that `changes` make up.
        changes: `key=value` with a dotted key, such as `options.prompts=8`; the value is TOML, or text.
        model: whose layer to take from `models.toml` beside the recipe.

    Raises:
        TrainError: a file cannot be read, has no such model, names something unknown, or has a value of
            another type than its setting's.
    """
    table: dict[str, Any] = {} if path is None else _read(Path(path))
    if model is not None:
        if path is None:
            raise TrainError(f"--model {model} is a layer on a recipe: name one with --recipe")
        models = _read(beside := Path(path).with_name("models.toml"))
        if model not in models:
            raise TrainError(f"{beside}: no model {model!r}: choose one of {', '.join(models)}")
        _lay(table, models[model])
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise TrainError(f"--set {change}: expected KEY=VALUE, such as options.prompts=8")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except ValueError:
            value = text
        for name in reversed(key.split(".")):
            value = {name: value}
        _lay(table, value)
    if "task" not in table:
        raise TrainError(f"{path or '--set'}: no task: name one with --task, or as task = ... in a recipe")
    try:
        recipe = restored(Recipe, table)
        return recipe, restored(Options, recipe.options)
    except ValueError as error:
        raise TrainError(f"{path or '--set'}: {error}") from None


def rehearsal(task: Task, options: Options, grpo: Mapping[str, Any]) -> tuple[Task, Options, dict[str, Any]]:
    """Return task, options and `GRPOConfig` fields, cut so that two steps take seconds on a CPU.

    The task's reward is called, and what it raises is raised; but a model that has not learned to answer
    gets 0 every time, so that nothing would train: what counts here is the share of different characters.
    """
    real = task.reward

    def varied(completion: Completion, sample: Sample) -> float:
        real(completion, sample)
        return len(set(completion.text)) / (len(completion.text) + 1)

    cut: dict[str, Any] = {"steps": 2, "prompts": 2, "validation": 2, "validate_every": 1}
    gone = ("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size")
    kept = {key: value for key, value in grpo.items() if key not in gone}
    return (
        replace(task, reward=varied, max_tokens=min(8, task.max_tokens)),
        replace(options, **cut, checkpoint_every=1, dtype="fp32"),
        {**kept, "use_cpu": True, "dataloader_pin_memory": False},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog=f"python -m {_MODULE}", description="Train a micro-vector with TRL, on one GPU or several."
    )
    add = parser.add_argument
    add("bundle", help="of the base that is deployed")
    add("-o", "--output", required=True, help="the frame file to write")
    add("--recipe", help="TOML file with settings")
    add("--model", help="layer of models.toml beside the recipe: what depends on the model")
    add("--gpus", type=int, default=1, metavar="N", help="processes to start, one a GPU")
    add("--task", help="name or path of a task, instead of the recipe's")
    add("--weights", help="Hugging Face weights to train on, instead of the deployed file, dequantized")
    add("--lr", type=float, help="step size")
    add("--vllm", action="store_true", help="generate with vLLM, as the recipe sets it up")
    add("--dry-run", action="store_true", help="two short steps on the CPU, to see that all is in place")
    add("--resume", action="store_true", help="go on from the last checkpoint")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the recipe")
    args = parser.parse_args(given)
    if not sys.warnoptions:  # what transformers, TRL and accelerate tell each other of their next versions
        warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        return _run(args, given)
    except (TinyLoraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def launch(arguments: Sequence[str], gpus: int) -> list[str]:
    """Return the command that runs these arguments of this command line in so many processes, a GPU each."""
    accelerate_ = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(gpus)]
    return [*accelerate_, "--mixed_precision", "bf16", "-m", _MODULE, *arguments]


def _run(args: argparse.Namespace, given: Sequence[str]) -> int:
    changes = [f"task={args.task}"] if args.task else []
    recipe, options = read_recipe(args.recipe, [*changes, *args.set], model=args.model)
    options = replace(options, lr=args.lr or options.lr, weights=args.weights or options.weights)
    task, grpo = recipe.load(Path(args.recipe or ".").parent), dict(recipe.grpo)
    if args.vllm:
        if not options.weights:
            raise TrainError("vLLM generates with the original weights: name them with --weights, or --model")
        grpo |= {"use_vllm": True, **recipe.vllm}
    if args.dry_run:  # the settings for all GPUs are checked here, too
        here = {"output_dir": os.devnull, "use_cpu": True, "bf16": False, "dataloader_pin_memory": False}
        grpo_config(grpo_fields(task, options, grpo, processes=args.gpus) | here)
        task, options, grpo = rehearsal(task, options, recipe.grpo)
    elif args.gpus > 1 and "LOCAL_RANK" not in os.environ:  # not one of the processes yet
        found = torch.accelerator.device_count()
        if found < args.gpus:
            raise TrainError(
                f"--gpus {args.gpus}, but torch finds {found} here: take a machine with as many, or see with "
                "--dry-run that everything else is in place"
            )
        return subprocess.run(launch(given, args.gpus), check=False).returncode

    def show(metrics: dict[str, Any]) -> None:
        print(json.dumps(metrics), flush=True)

    outcome = train_trl(
        args.bundle, task, args.output, options=options, grpo=grpo, resume=args.resume, report=show
    )
    result = outcome.result
    if os.environ.get("RANK", "0") == "0":
        best = {"start": result.start_score, "best": result.best_score, "best_step": result.best_step}
        show({"event": "end", "output": str(outcome.path), **best})
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise TrainError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except ValueError as error:
        raise TrainError(f"{path}: not TOML: {error}") from None


def _lay(table: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Put a layer over a table: its values go before, and tables are merged."""
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(table.get(key, {}), dict):
            _lay(table.setdefault(key, {}), value)
        else:
            table[key] = value


if __name__ == "__main__":
    raise SystemExit(main())
