"""Recipes: the settings of a run through TRL in a TOML file, and the command line that runs one.

    python -m tinylora_edge.train.recipes BUNDLE -o FILE --recipe gsm8k.toml --model qwen2.5-7b

On several GPUs `accelerate launch --num_processes 8 --mixed_precision bf16 -m` starts it, in the place of
`python -m`.

A recipe has the fields of `Recipe`. What depends on the model is a table of `models.toml` beside it, which
goes before the recipe's, and `--set` goes before both.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..errors import TinyLoraError, TrainError
from ..jsonio import restored
from ..tasks import Task, load_task
from .options import Options
from .trl import train_trl


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a run: what `load_task` takes, and fields of `Options` and of `trl.GRPOConfig`."""

    task: str
    reward: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    held_out: int = 128
    options: dict[str, Any] = field(default_factory=dict)
    grpo: dict[str, Any] = field(default_factory=dict)
    vllm: dict[str, Any] = field(default_factory=dict)  # more of them, for --vllm

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
    """Read a recipe, and the options that it has; without a path `changes` make it up.

    `changes` are `key=value` with a dotted key, such as `options.prompts=8`; the value is TOML, or text.
    `model` names a layer of `models.toml` beside the recipe.

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
        raise TrainError(f"{path or '--set'}: no task: name one with --recipe, or --set task=NAME")
    try:
        recipe = restored(Recipe, table)
        return recipe, restored(Options, recipe.options)
    except ValueError as error:
        raise TrainError(f"{path or '--set'}: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tinylora_edge.train.recipes", description="Train a micro-vector with TRL."
    )
    add = parser.add_argument
    add("bundle", help="of the base that is deployed")
    add("-o", "--output", required=True, help="the frame file to write")
    add("--recipe", help="TOML file with settings")
    add("--model", help="layer of models.toml beside the recipe: what depends on the model")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting: options.lr=1e-5")
    add("--vllm", action="store_true", help="generate with vLLM, as the recipe sets it up")
    add("--resume", action="store_true", help="go on from the last checkpoint")
    args = parser.parse_args(arguments)
    if not sys.warnoptions:  # what transformers, TRL and accelerate tell each other of their next versions
        warnings.filterwarnings("ignore", category=FutureWarning)

    def show(metrics: dict[str, Any]) -> None:
        print(json.dumps(metrics), flush=True)

    try:
        recipe, options = read_recipe(args.recipe, args.set, model=args.model)
        if args.vllm and not options.weights:
            raise TrainError("vLLM generates with the original weights: name them with --model")
        task = recipe.load(Path(args.recipe or ".").parent)
        grpo = recipe.grpo | ({"use_vllm": True, **recipe.vllm} if args.vllm else {})
        outcome = train_trl(
            args.bundle, task, args.output, options=options, grpo=grpo, resume=args.resume, report=show
        )
    except (TinyLoraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
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
