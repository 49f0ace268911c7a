"""Recipes: the settings of a run through TRL in a TOML file, and the command line that runs one.

    python -m tinylora_edge.train.recipes BUNDLE -o FILE --recipe gsm8k.toml --model qwen2.5-7b --gpus 8

A recipe has `task`, and the arguments of `load_task`; tables `[options]` with `[options.settings]` and
`[options.loss]` (fields of `Options`), `[grpo]` (fields of `trl.GRPOConfig`) and `[vllm]` (more of them, for
`--vllm`); and `step_sizes` to choose from with `--sweep`. What depends on the model is a table of
`models.toml` beside it, which goes before the recipe's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

import torch

from ..documents import parse_toml, read_toml
from ..errors import TinyLoraError, TrainError, did_you_mean
from ..tasks import Completion, Sample, Task, load_task
from .grpo import Loss
from .options import Options, TrainSettings
from .trl import grpo_config, grpo_fields, train_trl

_MODULE = "tinylora_edge.train.recipes"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a run.

    Attributes:
        task: what `load_task` takes, and its other `arguments`.
        step_sizes: to choose from.
        options: of the run.
        grpo, vllm: fields of `trl.GRPOConfig`, and more of them for generation with vLLM.
        folder: of the recipe's file; its reward may be a Python module there.
    """

    task: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    step_sizes: Sequence[float] = ()
    options: Options = field(default_factory=Options)
    grpo: Mapping[str, Any] = field(default_factory=dict)
    vllm: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def load(self) -> Task:
        """Return the task; errors are those of `load_task`."""
        sys.path[:0] = [] if self.folder is None else [str(self.folder.resolve())]
        try:
            return load_task(self.task, **self.arguments)
        finally:
            del sys.path[: self.folder is not None]


_ARGUMENTS = {"reward": str, "max_tokens": int, "temperature": float, "held_out": int}
_KINDS: dict[str, Any] = {
    "task": str,
    **_ARGUMENTS,
    "step_sizes": list,
    "options": dict,
    "grpo": dict,
    "vllm": dict,
}
_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a table",
}


def read_recipe(
    path: str | PathLike[str] | None, changes: Sequence[str] = (), *, model: str | None = None
) -> Recipe:
    """Read a recipe.

    Args:
        path: of the file; None for a recipe that `changes` make up.
        changes: `key=value` with a dotted key, such as `options.settings.prompts=8`; the value is TOML, or
            text.
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
            advice = did_you_mean(model, list(models), f"choose one of {', '.join(models)}")
            raise TrainError(f"{beside}: no model {model!r}: {advice}")
        _lay(table, models[model])
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise TrainError(f"--set {change}: expected KEY=VALUE, such as options.settings.prompts=8")
        try:
            value = parse_toml(f"value = {text}")["value"]
        except ValueError:
            value = text
        for name in reversed(key.split(".")):
            value = {name: value}
        _lay(table, value)
    where = str(path or "--set")
    table = _fields(where, "", table, _KINDS)
    if "task" not in table:
        raise TrainError(f"{where}: no task: name one with --task, or as task = ... in a recipe")
    options, parts = dict(table.get("options", {})), dict[str, Any]()
    for name, kind in (("settings", TrainSettings), ("loss", Loss)):
        hints = get_type_hints(kind)
        parts[name] = kind(**_fields(where, f"options.{name}", options.pop(name, {}), hints))
    return Recipe(
        task=table["task"],
        arguments={key: table[key] for key in _ARGUMENTS if key in table},
        step_sizes=_numbers(where, table.get("step_sizes", [])),
        options=Options(**_fields(where, "options", options, get_type_hints(Options)), **parts),
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
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = command_parser().parse_args(given)
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


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {_MODULE}",
        description="Train a micro-vector with TRL, on one GPU or several.",
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
    add("--sweep", type=int, metavar="N", help="take the N-th of the recipe's step sizes, from 0")
    add("--vllm", action="store_true", help="generate with vLLM, as the recipe sets it up")
    add("--dry-run", action="store_true", help="two short steps on the CPU, to see that all is in place")
    add("--resume", action="store_true", help="go on from the last checkpoint")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the recipe")
    return parser


def _run(args: argparse.Namespace, given: Sequence[str]) -> int:
    changes = [f"task={args.task}"] if args.task else []
    recipe = read_recipe(args.recipe, [*changes, *args.set], model=args.model)
    lr, sizes = args.lr or recipe.options.settings.lr, recipe.step_sizes
    if args.sweep is not None:
        if not 0 <= args.sweep < len(sizes):
            raise TrainError(f"--sweep {args.sweep}: the recipe has step sizes 0 to {len(sizes) - 1}")
        lr = sizes[args.sweep]
    if lr is None and sizes:
        raise TrainError(
            f"the recipe leaves the step size open: choose --sweep 0 to {len(sizes) - 1} for one of "
            f"{', '.join(map(str, sizes))}, or give --lr"
        )
    options = replace(recipe.options, weights=args.weights or recipe.options.weights)
    recipe = replace(recipe, options=replace(options, settings=replace(options.settings, lr=lr)))
    task, options, grpo = recipe.load(), recipe.options, dict(recipe.grpo)
    if args.vllm:
        if not options.weights:
            raise TrainError("vLLM generates with the original weights: name them with --weights, or --model")
        grpo |= {"use_vllm": True, **recipe.vllm}
    if args.dry_run:  # the settings for all GPUs are checked here, too
        here = {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False}
        grpo_config(
            {"output_dir": os.devnull, **grpo_fields(task, options, grpo, processes=args.gpus), **here}
        )
        task, options, grpo = rehearsal(recipe, task)
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
        return read_toml(path)
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


def _fields(where: str, name: str, table: Any, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table, each of whose values is of the type of its key. None cannot be written in TOML."""
    if not isinstance(table, dict):
        raise TrainError(f"{where}: {name} is {table!r}, expected a table")
    for key, value in table.items():
        full = f"{name}.{key}" if name else key
        if key not in kinds:
            raise TrainError(f"{where}: unknown setting {full!r}: choose from {', '.join(kinds)}")
        kind = kinds[key]
        if isinstance(kind, UnionType):
            (kind,) = (each for each in get_args(kind) if each is not NoneType)
        if kind in _EXPECTED and not (type(value) is kind or (kind is float and type(value) is int)):
            raise TrainError(f"{where}: {full} is {value!r}, expected {_EXPECTED[kind]}")
    return table


def _numbers(where: str, values: list[Any]) -> tuple[float, ...]:
    if not all(type(each) in (int, float) for each in values):
        raise TrainError(f"{where}: step_sizes is {values!r}, expected a list of numbers")
    return tuple(values)


if __name__ == "__main__":
    raise SystemExit(main())
