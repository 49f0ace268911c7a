"""Recipes: the settings of a run through TRL in a TOML file, and the command that makes the run.

A recipe has up to five parts:

    task = "gsm8k"          # with reward, max_tokens, temperature, held_out: arguments of `load_task`
    step_sizes = [1e-7]     # to choose from with --sweep
    [options]               # fields of `Options`; [options.settings] and [options.loss] too
    [grpo]                  # fields of trl.GRPOConfig
    [vllm]                  # more of them, for --vllm
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ...documents import parse_toml, read_toml
from ...errors import TinyLoraError, TrainError
from ...tasks import Completion, Sample, Task, load_task
from ..grpo import Loss
from ..options import Options
from ..trainer import TrainSettings

_TASK = ("reward", "max_tokens", "temperature", "held_out")
_KEYS = ("task", *_TASK, "step_sizes", "options", "grpo", "vllm")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a run through TRL.

    Attributes:
        task: what `load_task` takes.
        arguments: more of `load_task`.
        step_sizes: to choose from.
        options: of the run.
        grpo: fields of `trl.GRPOConfig`.
        vllm: more of them, for generation with vLLM.
        folder: of the recipe's file; its reward may be a Python module there.
    """

    task: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    step_sizes: tuple[float, ...] = ()
    options: Options = field(default_factory=Options)
    grpo: Mapping[str, Any] = field(default_factory=dict)
    vllm: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def load(self) -> Task:
        """Return the task.

        Raises:
            TrainError: as `load_task`.
        """
        with _importable(self.folder):
            return load_task(self.task, **self.arguments)


def read_recipe(path: str | PathLike[str] | None, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: of the file; None for a recipe that `changes` make up.
        changes: `key=value` with a dotted key, such as `options.settings.prompts=8`; the value is TOML, or
            text.

    Raises:
        TrainError: the file cannot be read, or names something unknown.
    """
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = read_toml(path)
        except OSError as error:
            raise TrainError(f"{path}: cannot read the recipe: {error.strerror}") from None
        except ValueError as error:
            raise TrainError(f"{path}: not TOML: {error}") from None
    for change in changes:
        _change(table, change)
    where = str(path or "--set")
    _check_keys(where, "", table, _KEYS)
    if not isinstance(table.get("task"), str):
        raise TrainError(f"{where}: no task: name one with --task, or as task = ... in a recipe")
    for key in ("options", "grpo", "vllm"):
        if not isinstance(table.get(key, {}), dict):
            raise TrainError(f"{where}: {key} is {table[key]!r}, expected a table")
    options = dict(table.get("options", {}))
    parts: dict[str, Any] = {}
    for name, kind in (("settings", TrainSettings), ("loss", Loss)):
        parts[name] = _make(where, f"options.{name}", kind, options.pop(name, {}))
    return Recipe(
        task=table["task"],
        arguments={key: table[key] for key in _TASK if key in table},
        step_sizes=tuple(table.get("step_sizes", ())),
        options=replace(_make(where, "options", Options, options), **parts),
        grpo=table.get("grpo", {}),
        vllm=table.get("vllm", {}),
        folder=None if path is None else Path(path).parent,
    )


def rehearsal(recipe: Recipe, task: Task) -> tuple[Task, Options, dict[str, Any]]:
    """Return a recipe's task, options and `GRPOConfig` fields, cut so that two steps take seconds on a CPU.

    The task's reward is called, and what it raises is raised; but a model that has not learned to answer
    gets 0 every time, so that nothing would train: what counts here is the share of different characters.
    """
    options, real = recipe.options, task.reward

    def varied(completion: Completion, sample: Sample) -> float:
        real(completion, sample)
        return len(set(completion.text)) / (len(completion.text) + 1)

    settings = replace(
        options.settings, steps=2, prompts=2, validation=2, validate_every=1, checkpoint_every=1
    )
    gone = ("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size")
    kept = {key: value for key, value in recipe.grpo.items() if key not in gone}
    return (
        replace(task, reward=varied, max_tokens=min(8, task.max_tokens)),
        replace(options, settings=settings, dtype="fp32"),
        {**kept, "use_cpu": True, "dataloader_pin_memory": False},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from .training import train_trl

    args = _parser().parse_args(arguments)
    if not sys.warnoptions:  # what transformers, TRL and accelerate tell each other of their next versions
        warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        changes = [f"task={args.task}"] if args.task else []
        recipe = read_recipe(args.recipe, [*changes, *args.set])
        lr = _step_size(recipe, args.lr, args.sweep, dry=args.dry_run)
        settings = replace(recipe.options.settings, lr=lr)
        weights = args.weights or recipe.options.weights
        recipe = replace(recipe, options=replace(recipe.options, settings=settings, weights=weights))
        task, options, grpo = recipe.load(), recipe.options, dict(recipe.grpo)
        if args.vllm:
            grpo |= {"use_vllm": True, **recipe.vllm}
        if args.dry_run:
            task, options, grpo = rehearsal(recipe, task)
        outcome = train_trl(
            args.bundle, task, args.output, options=options, grpo=grpo, resume=args.resume, report=_print
        )
    except (TinyLoraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    result = outcome.result
    if os.environ.get("RANK", "0") == "0":
        found = {"start": result.start_score, "best": result.best_score, "best_step": result.best_step}
        _print({"event": "end", "output": str(outcome.path), **found})
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tinylora_edge.train.trl",
        description="Train a micro-vector with TRL. Start it with accelerate launch -m for many processes.",
    )
    add = parser.add_argument
    add("bundle", help="of the base that is deployed")
    add("-o", "--output", required=True, help="the frame file to write")
    add("--recipe", help="TOML file with settings")
    add("--task", help="name or path of a task, instead of the recipe's")
    add("--weights", help="Hugging Face directory to train on, instead of the deployed file, dequantized")
    add("--lr", type=float, help="step size")
    add("--sweep", type=int, metavar="N", help="take the N-th of the recipe's step sizes, from 0")
    add("--vllm", action="store_true", help="generate with vLLM, as the recipe sets it up")
    add("--dry-run", action="store_true", help="two short steps on the CPU, to see that all is in place")
    add("--resume", action="store_true", help="go on from the last checkpoint")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the recipe")
    return parser


def _step_size(recipe: Recipe, lr: float | None, sweep: int | None, *, dry: bool) -> float | None:
    sizes = recipe.step_sizes
    if lr is not None:
        return lr
    if sweep is not None:
        if not 0 <= sweep < len(sizes):
            raise TrainError(f"--sweep {sweep}: the recipe has step sizes 0 to {len(sizes) - 1}")
        return sizes[sweep]
    if recipe.options.settings.lr is None and sizes:
        if dry:
            return sizes[0]
        raise TrainError(
            f"the recipe leaves the step size open: choose --sweep 0 to {len(sizes) - 1} for one of "
            f"{', '.join(map(str, sizes))}, or give --lr"
        )
    return recipe.options.settings.lr


def _change(table: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise TrainError(f"--set {change}: expected KEY=VALUE, such as options.settings.prompts=8")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except ValueError:
        value = text
    *outer, last = key.split(".")
    for name in outer:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise TrainError(f"--set {change}: {name} is no table of the recipe")
    table[last] = value


def _make(where: str, name: str, kind: Any, values: Any) -> Any:
    _check_keys(where, name, values, [each.name for each in fields(kind)])
    return kind(**values)


def _check_keys(where: str, name: str, table: Any, known: Sequence[str]) -> None:
    if not isinstance(table, dict):
        raise TrainError(f"{where}: {name} is {table!r}, expected a table")
    for key in table:
        if key not in known:
            full = f"{name}.{key}" if name else key
            raise TrainError(f"{where}: unknown setting {full!r}: choose from {', '.join(known)}")


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))


def _print(metrics: dict[str, Any]) -> None:
    print(json.dumps(metrics), flush=True)
