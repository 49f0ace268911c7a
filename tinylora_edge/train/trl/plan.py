"""The plan of a recipe: its commands as a shell script, and what it costs in steps, tokens and GPU hours.

Steps follow from the recipe, as TRL counts them. GPU hours follow from two facts that only a machine knows,
tokens of a completion and tokens a second: from the metrics of a run, or assumed by whoever asks.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...documents import parse_json
from ...errors import TrainError
from .recipes import Recipe


@dataclass(frozen=True)
class Measured:
    """What a machine knows of a step.

    Attributes:
        tokens: of a completion, mean; None where nobody measured or assumed it.
        step_s: seconds of a step on all GPUs together; None where nobody measured it.
    """

    tokens: float | None = None
    step_s: float | None = None


@dataclass(frozen=True)
class Estimate:
    """What one run of a recipe costs.

    Attributes:
        steps: of the optimizer.
        completions: drawn to learn from, in each step.
        validated: completions that validation draws, in the whole run.
        limit: tokens that a completion has at most.
        tokens: of a completion, mean; None where it is not known.
        rate: completion tokens a second that one GPU gets through, generation and learning together; None
            where it is not known.
    """

    steps: int
    completions: int
    validated: int
    limit: int
    tokens: float | None
    rate: float | None

    @property
    def all_tokens(self) -> float | None:
        """Tokens of all completions of the run. Those of validation count like the others, though nothing is
        learned from them: an upper bound."""
        return None if self.tokens is None else (self.steps * self.completions + self.validated) * self.tokens

    @property
    def gpu_hours(self) -> float | None:
        """GPU hours of the run, on however many GPUs."""
        if self.all_tokens is None or self.rate is None:
            return None
        return self.all_tokens / self.rate / 3600


def estimate(
    recipe: Recipe, gpus: int, facts: Measured, *, tokens_per_second: float | None = None
) -> Estimate:
    """Return what one run of a recipe costs.

    Args:
        recipe: whose settings count.
        gpus: that `facts` were measured on.
        facts: of the machine.
        tokens_per_second: that one GPU gets through; None takes the measured step, where there is one:
            completions x tokens / (seconds x GPUs).

    Raises:
        TrainError: the recipe counts in epochs and does not say its problems, or has too few of them; tokens
            a second without tokens of a completion.
    """
    settings = recipe.options.settings
    steps, completions = _steps(recipe), settings.prompts * recipe.options.samples
    rate = tokens_per_second
    if rate is not None and facts.tokens is None:
        raise TrainError(
            "--tokens-per-second says nothing without the tokens of a completion: give --tokens or --measured"
        )
    if rate is None and facts.step_s and facts.tokens is not None:
        rate = completions * facts.tokens / (facts.step_s * gpus)
    rounds = 1 + -(-steps // settings.validate_every)  # at the start, after every so many, at the end
    limit = int(recipe.arguments.get("max_tokens", recipe.grpo.get("max_completion_length", 0)))
    return Estimate(steps, completions, rounds * settings.validation, limit, facts.tokens, rate)


def _steps(recipe: Recipe) -> int:
    settings = recipe.options.settings
    epochs = recipe.grpo.get("num_train_epochs")
    if epochs is None:
        return settings.steps
    if recipe.problems is None:
        raise TrainError("the recipe counts in epochs: say how many problems, with --set problems=7473")
    # TRL leaves out the problems at the end of an epoch that make no whole step
    each = (recipe.problems - settings.validation) // settings.prompts
    if each < 1:
        raise TrainError(
            f"{recipe.problems} problems, of which {settings.validation} are for validation, make no step of "
            f"{settings.prompts}"
        )
    return int(epochs * each * settings.epochs)


def measured(path: Path) -> Measured:
    """Read the metrics of a run: `FILE.run/metrics.jsonl`. The first step also warms up, and does not count.

    Raises:
        TrainError: there is no such file, or it has fewer than two steps.
    """
    try:
        rows = [parse_json(line) for line in path.read_text("utf-8").splitlines()]
        steps = [row for row in rows if "length" in row and "step_s" in row][1:]
        if steps:
            tokens, seconds = ([float(row[key]) for row in steps] for key in ("length", "step_s"))
            return Measured(sum(tokens) / len(steps), sum(seconds) / len(steps))
    except OSError as error:
        raise TrainError(f"{path}: cannot read the metrics: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise TrainError(f"{path}: these are no metrics of a run: {error}") from None
    raise TrainError(f"{path}: fewer than two steps with length and step_s: let the run go further")


def script(
    recipe: Recipe,
    costs: Estimate,
    bundle: str,
    output: str,
    model: str | None,
    training: Sequence[str],
) -> str:
    """Return the commands of the whole recipe: two bundles, every step size on each, and what they are worth.

    Whatever is there is not done again, and training goes on from its last checkpoint, so the script may be
    started as often as one likes.

    Args:
        recipe: with its layers.
        costs: of a run.
        bundle: to be made where it is missing; `bundle`-learned beside it.
        output: a vector's file; the step size's number, and which basis, go into the names.
        model: of the catalog, to export; None where the bundle is there.
        training: what every command of training takes.
    """
    sizes = [recipe.sizes(learned=False), recipe.sizes(learned=True)]
    runs = sum(len(each) or 1 for each in sizes)
    head = ["#!/bin/sh", *(f"# {line}" for line in describe(costs, runs)), "set -e"]
    head.append("export HF_HUB_DISABLE_TELEMETRY=1")
    learned = f"{bundle}-learned"
    weights = ["--weights", recipe.options.weights] if recipe.options.weights else []
    lines = [] if model is None else [_once(bundle, ["tinylora-edge", "export", model, "-o", bundle])]
    lines.append(_once(learned, ["tinylora-edge", "learn", bundle, "-o", learned, *weights]))
    own_reward = recipe.folder is not None and ":" in str(recipe.arguments.get("reward", ""))
    base, home = Path(output), str(recipe.folder) if own_reward else None
    arms = (bundle, base.stem), (learned, f"{base.stem}-learned")
    for (name, stem), swept in zip(arms, sizes, strict=True):
        files = [str(base.with_name(f"{stem}-{number}{base.suffix}")) for number in range(len(swept) or 1)]
        for number, file in enumerate(files):
            sweep = ["--sweep", str(number)] if swept else []
            command = ["python", "-m", "tinylora_edge.train.trl", name, "-o", file, *training]
            lines.append(_once(file, [*command, *sweep, "--resumable"]))
        record = str(base.with_name(f"{stem}.json"))
        lines.append(_once_with_best(record, _evaluation(recipe, name), files, home))
    return "\n".join([*head, *lines]) + "\n"


def describe(costs: Estimate, runs: int) -> list[str]:
    """Return in lines what a number of runs costs, and what it was counted from."""
    drawn = f"{costs.steps:,} steps x {costs.completions:,} completions"
    found = [f"{runs} runs of {drawn}, and {costs.validated:,} to validate"]
    if costs.tokens is None or costs.all_tokens is None:
        return [*found, f"at most {costs.limit:,} tokens each; GPU hours: with --measured or --tokens"]
    found.append(f"{costs.all_tokens / 1e6:,.1f} million tokens a run, at {costs.tokens:,.0f} a completion")
    if costs.gpu_hours is None:
        return [*found, "GPU hours: with --measured or --tokens-per-second"]
    hours = f"{costs.gpu_hours:,.1f} GPU hours a run, {costs.gpu_hours * runs:,.0f} in all"
    return [
        *found,
        f"{hours}, at {costs.rate:,.0f} tokens a second and GPU",
        "without export, learn and eval",
    ]


def _evaluation(recipe: Recipe, bundle: str) -> list[str]:
    """Return the command that measures on held-out prompts, but for the vector."""
    command = ["tinylora-edge", "eval", bundle, "--task", recipe.task]
    options = {"reward": "--reward", "held_out": "-n", "max_tokens": "--max-tokens"}
    for key, option in options.items():
        if key in recipe.arguments:
            command += [option, str(recipe.arguments[key])]
    command += ["--against", "best-prompt"]
    own = None if recipe.folder is None else recipe.folder / f"{Path(recipe.task).stem}-candidates.jsonl"
    return [*command, "--candidates", str(own), "--json"] if own and own.exists() else [*command, "--json"]


def _once(output: str, command: Sequence[str]) -> str:
    """Return the line of a command that runs where what it makes is missing."""
    return f"[ -e {shlex.quote(output)} ] || {shlex.join(command)}"


def _once_with_best(output: str, command: Sequence[str], vectors: Sequence[str], home: str | None) -> str:
    """Return the line of a command that takes the best of some vectors, and whose output is kept.

    Args:
        output: file for what the command prints.
        command: to run, but for `--vector`.
        vectors: of which the best is taken.
        home: folder of a reward that is a Python module.
    """
    best = shlex.join(["python", "-m", "tinylora_edge.train.trl.choice", *vectors])
    path = "" if home is None else f"PYTHONPATH={shlex.quote(home)} "
    part, whole = shlex.quote(f"{output}.part"), shlex.quote(output)
    run = f'{path}{shlex.join(command)} --vector "$best" > {part} && mv {part} {whole}'
    return f"[ -e {whole} ] || {{ best=$({best}) && {run}; }}"
