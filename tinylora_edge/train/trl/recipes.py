"""Recipes: the settings of a run through TRL in a TOML file, with a layer for the model that learns.

A recipe has up to six parts:

    task = "gsm8k"          # with reward, max_tokens, temperature, held_out: arguments of `load_task`
    step_sizes = [1e-7]     # to choose from with --sweep; learned_step_sizes for a learned basis
    problems = 7473         # to train on, as estimates count them
    [options]               # fields of `Options`; [options.settings] and [options.loss] too
    [grpo]                  # fields of trl.GRPOConfig
    [vllm]                  # more of them, for --vllm

A recipe says what is trained, and is the same for every model. What depends on the model is a table of the
file `models.toml` beside it, with the same parts, which go before the recipe's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from ...documents import parse_toml, read_toml
from ...errors import TrainError, did_you_mean
from ...tasks import Completion, Sample, Task, load_task
from ..grpo import Loss
from ..options import Options, TrainSettings

_TASK = {"reward": str, "max_tokens": int, "temperature": float, "held_out": int}
_SIZES = tuple[float, ...]
_KINDS = {"task": str, **_TASK, "step_sizes": _SIZES, "learned_step_sizes": _SIZES, "problems": int}
_COUNTED = {"num_train_epochs": float, "max_completion_length": int, "per_device_train_batch_size": int}
"""Fields of `GRPOConfig` that this package computes with, before TRL looks at them."""
_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    _SIZES: "a list of numbers",
}
MODELS = "models.toml"
"""Of layers for models, beside a recipe."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a run through TRL.

    Attributes:
        task: what `load_task` takes.
        arguments: more of `load_task`.
        step_sizes: to choose from.
        learned_step_sizes: the same for a learned basis, whose unit is another one; none where `step_sizes`
            are for it too.
        problems: that there are to train on, as estimates count them; None where nobody said.
        options: of the run.
        grpo: fields of `trl.GRPOConfig`.
        vllm: more of them, for generation with vLLM.
        folder: of the recipe's file; its reward may be a Python module there.
    """

    task: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    step_sizes: tuple[float, ...] = ()
    learned_step_sizes: tuple[float, ...] = ()
    problems: int | None = None
    options: Options = field(default_factory=Options)
    grpo: Mapping[str, Any] = field(default_factory=dict)
    vllm: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def sizes(self, *, learned: bool) -> tuple[float, ...]:
        """Return the step sizes for a bundle, whose basis is learned or not."""
        return self.learned_step_sizes if learned and self.learned_step_sizes else self.step_sizes

    def load(self) -> Task:
        """Return the task.

        Raises:
            TrainError: as `load_task`.
        """
        with _importable(self.folder):
            return load_task(self.task, **self.arguments)


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
        _lay(table, _layer(Path(path).with_name(MODELS), model))
    for change in changes:
        _change(table, change)
    where = str(path or "--set")
    _check_keys(where, "", table, (*_KINDS, "options", "grpo", "vllm"))
    table = {k: _checked(where, k, v, _KINDS[k]) if k in _KINDS else v for k, v in table.items()}
    if not isinstance(table.get("task"), str):
        raise TrainError(f"{where}: no task: name one with --task, or as task = ... in a recipe")
    for key in ("options", "grpo", "vllm"):
        if not isinstance(table.get(key, {}), dict):
            raise TrainError(f"{where}: {key} is {table[key]!r}, expected a table")
        for name in _COUNTED.keys() & table.get(key, {}).keys():
            value = _checked(where, f"{key}.{name}", table[key][name], _COUNTED[name])
            if not 0 < value < math.inf:
                raise TrainError(f"{where}: {key}.{name} is {value}, expected a number above 0")
    options = dict(table.get("options", {}))
    parts: dict[str, Any] = {}
    for name, kind in (("settings", TrainSettings), ("loss", Loss)):
        parts[name] = _make(where, f"options.{name}", kind, options.pop(name, {}))
    return Recipe(
        task=table["task"],
        arguments={key: table[key] for key in _TASK if key in table},
        step_sizes=table.get("step_sizes", ()),
        learned_step_sizes=table.get("learned_step_sizes", ()),
        problems=table.get("problems"),
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


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except OSError as error:
        raise TrainError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except ValueError as error:
        raise TrainError(f"{path}: not TOML: {error}") from None


def _layer(path: Path, model: str) -> dict[str, Any]:
    """Return the table of a model."""
    models = _read(path)
    if model not in models:
        advice = did_you_mean(model, list(models), f"choose one of {', '.join(models)}")
        raise TrainError(f"{path}: no model {model!r}: {advice}")
    _check_keys(str(path), model, models[model], ("options", "grpo", "vllm"))
    found: dict[str, Any] = models[model]
    return found


def _lay(table: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Put a layer over a table: its values go before, and tables are merged."""
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(table.setdefault(key, {}), dict):
            _lay(table[key], value)
        else:
            table[key] = value


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
    hints = get_type_hints(kind)
    return kind(**{key: _checked(where, f"{name}.{key}", each, hints[key]) for key, each in values.items()})


def _checked(where: str, name: str, value: Any, hint: Any) -> Any:
    """Return a value that is of a type, a list as a tuple.

    Args:
        where, name: of the value.
        value: as TOML has it.
        hint: the type. None, which it may allow, cannot be written in TOML.
    """
    kind = hint
    if isinstance(hint, UnionType):
        (kind,) = (each for each in get_args(hint) if each is not NoneType)
    if kind == _SIZES:
        fits = isinstance(value, list) and all(type(each) in (int, float) for each in value)
    else:
        fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise TrainError(f"{where}: {name} is {value!r}, expected {_EXPECTED[kind]}")
    return tuple(value) if kind == _SIZES else value


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
