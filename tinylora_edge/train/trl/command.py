"""The command line of training through TRL: a run of a recipe, a rehearsal of it, or its plan."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...errors import TinyLoraError, TrainError
from ...formats.bundle import Bundle
from ...projection import EXPLICIT
from ...tasks import Task
from .plan import Measured, estimate, measured, script
from .recipes import Recipe, read_recipe, rehearsal

_MODULE = "tinylora_edge.train.trl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = command_parser().parse_args(given)
    if not sys.warnoptions:  # what transformers, TRL and accelerate tell each other of their next versions
        warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        changes = [f"task={args.task}"] if args.task else []
        recipe = read_recipe(args.recipe, [*changes, *args.set], model=args.model)
        recipe = replace(
            recipe, options=replace(recipe.options, weights=args.weights or recipe.options.weights)
        )
        if args.plan:
            print(_plan(args, recipe), end="")
            return 0
        return _run(args, recipe, given)
    except (TinyLoraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def launch(arguments: Sequence[str], gpus: int) -> list[str]:
    """Return the command that runs these arguments in as many processes as GPUs, one each.

    Args:
        arguments: of this command line, `--gpus` among them.
        gpus: at least 2.
    """
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(gpus)]
    return [*accelerate, "--mixed_precision", "bf16", "-m", _MODULE, *arguments]


def _run(args: argparse.Namespace, recipe: Recipe, given: Sequence[str]) -> int:
    from .training import train_trl

    lr = args.lr
    if lr is None:
        lr = _step_size(recipe, args.bundle, args.sweep, dry=args.dry_run)
    settings = replace(recipe.options.settings, lr=lr)
    recipe = replace(recipe, options=replace(recipe.options, settings=settings))
    task, options, grpo = recipe.load(), recipe.options, dict(recipe.grpo)
    if args.vllm:
        if not options.weights:
            raise TrainError("vLLM generates with the original weights: name them with --weights, or --model")
        grpo |= {"use_vllm": True, **recipe.vllm}
    if args.dry_run:
        _check_fields(task, recipe, grpo, args.gpus or 1)
        task, options, grpo = rehearsal(recipe, task)
    elif args.gpus and "LOCAL_RANK" not in os.environ:  # not one of the processes yet
        found = torch.accelerator.device_count()
        if found < args.gpus:
            raise TrainError(
                f"--gpus {args.gpus}, but torch finds {found} here: take a machine with as many, or see with "
                "--dry-run that everything else is in place"
            )
        if args.gpus > 1:
            return subprocess.run(launch(given, args.gpus), check=False).returncode
    checkpoints = Path(f"{args.output}.run", "trl").glob("checkpoint-*")
    resume = args.resume or (args.resumable and any(checkpoints))
    outcome = train_trl(
        args.bundle, task, args.output, options=options, grpo=grpo, resume=resume, report=_print
    )
    result = outcome.result
    if os.environ.get("RANK", "0") == "0":
        best = {"start": result.start_score, "best": result.best_score, "best_step": result.best_step}
        _print({"event": "end", "output": str(outcome.path), **best})
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _plan(args: argparse.Namespace, recipe: Recipe) -> str:
    if args.recipe is None:
        raise TrainError("--plan is the plan of a recipe: name one with --recipe")
    if args.lr is not None or args.sweep is not None:
        raise TrainError("--plan has every step size of the recipe: leave out --lr and --sweep")
    facts = Measured(args.tokens, None)
    if args.measured is not None:
        facts = measured(args.measured)
    speed = args.tokens_per_second
    counted = estimate(recipe, args.gpus or 1, facts, tokens_per_second=speed)
    # what is the same in each line of training: the command line without what the plan itself decides
    shared = ["--recipe", args.recipe, "--gpus", str(args.gpus or 1)]
    for name in ("model", "task", "weights"):
        if getattr(args, name):
            shared += [f"--{name}", getattr(args, name)]
    shared += [word for change in args.set for word in ("--set", change)]
    shared += ["--vllm"] if args.vllm else []
    return script(recipe, counted, args.bundle, args.output, args.model, shared)


def _check_fields(task: Task, recipe: Recipe, grpo: Mapping[str, Any], processes: int) -> None:
    """See that the settings work out for that many processes, and that TRL takes them all."""
    from trl import GRPOConfig

    from .training import grpo_fields

    fields = grpo_fields(task, recipe.options, grpo, processes=processes)
    here = {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False}
    try:
        GRPOConfig(output_dir=os.devnull, **(fields | here))
    except (TypeError, ValueError) as error:
        raise TrainError(f"TRL does not take these settings: {error}") from None


def _step_size(recipe: Recipe, bundle: str, sweep: int | None, *, dry: bool) -> float | None:
    """Return the step size that a sweep names, or the one of the settings."""
    own = recipe.options.settings.lr
    if sweep is None and own is not None:
        return own
    learned = bool(recipe.learned_step_sizes) and Bundle.find(bundle).basis.projection == EXPLICIT
    sizes = recipe.sizes(learned=learned)
    if sweep is not None:
        if not 0 <= sweep < len(sizes):
            raise TrainError(f"--sweep {sweep}: the recipe has step sizes 0 to {len(sizes) - 1}")
        return sizes[sweep]
    if not sizes:
        return None
    if dry:
        return sizes[0]
    raise TrainError(
        f"the recipe leaves the step size open: choose --sweep 0 to {len(sizes) - 1} for one of "
        f"{', '.join(map(str, sizes))}, or give --lr"
    )


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
    add("--gpus", type=_positive, metavar="N", help="processes to start, one a GPU")
    add("--task", help="name or path of a task, instead of the recipe's")
    add("--weights", help="Hugging Face weights to train on, instead of the deployed file, dequantized")
    add("--lr", type=float, help="step size")
    add("--sweep", type=int, metavar="N", help="take the N-th of the recipe's step sizes, from 0")
    add("--vllm", action="store_true", help="generate with vLLM, as the recipe sets it up")
    add("--dry-run", action="store_true", help="two short steps on the CPU, to see that all is in place")
    add("--resume", action="store_true", help="go on from the last checkpoint")
    add("--resumable", action="store_true", help="go on from the last checkpoint where there is one")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the recipe")
    plan = parser.add_argument_group("plan")
    add = plan.add_argument
    add("--plan", action="store_true", help="print a shell script of the whole recipe, and what it costs")
    add("--tokens", type=_positive, metavar="N", help="mean tokens of a completion, for the estimate")
    add("--tokens-per-second", type=_positive, metavar="N", help="completion tokens a GPU, learning included")
    add("--measured", type=Path, metavar="FILE", help="metrics.jsonl of a run with the same recipe and GPUs")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _print(metrics: dict[str, Any]) -> None:
    print(json.dumps(metrics), flush=True)
