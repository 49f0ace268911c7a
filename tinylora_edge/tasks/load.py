"""`load_task`: from a name or a path to a task."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import TrainError
from . import generated
from .files import fetch_gsm8k, first, limit, read_gsm8k, read_samples
from .rewards import exact_number, parse_reward
from .task import Completion, Reward, Sample, Task

BUILTIN: tuple[str, ...] = tuple(sorted([*generated.TASKS, "gsm8k"]))
"""The tasks that `load_task` knows by name. `gsm8k` needs a download; `gsm8k:PATH.jsonl` does not."""

_GENERATED_TRAIN = 512  # samples; at 8 prompts a step more than a default run sees


def load_task(
    name_or_path: str | os.PathLike[str],
    *,
    reward: str | Reward | None = None,
    seed: int = 0,
    held_out: int = 128,
    train: int | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> Task:
    """Return a task, the same one for the same arguments on every machine.

    Args:
        name_or_path: one of `BUILTIN`; `gsm8k:PATH.jsonl`, a local file with the keys `question` and
            `answer`; or the path of a JSONL file with `prompt` or `messages` a line (see `files`).
        reward: judges the completions instead of the task's own reward: a callable, or text that
            `rewards.parse_reward` understands. A JSONL task needs one, here or as `reward` on each line.
        seed: of generated prompts, and of which training samples are taken where `train` limits them.
            What is held out or shifted never depends on it: the nouns of generated tasks are split once and
            for all, and the prompts of files by their hash.
        held_out: number of held-out samples, and of shifted ones; files may have fewer.
        train: number of training samples; None: 512 of generated tasks, all that a file has.
        max_tokens: limit of a completion; None: the task's own.
        temperature: sampling temperature in training; None: the task's own.

    Raises:
        TrainError: an unknown name, a file that is missing, malformed (with its line) or empty, a side
            without samples, no reward or one that is not valid, more samples than a generated task can
            make, or a number out of range.
        MissingExtraError: the task or its reward needs a package that is not installed.
    """
    for what, value in (("held_out", held_out), ("train", train), ("max_tokens", max_tokens)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise TrainError(f"{what} is {value!r}, expected a whole number of at least 1")
    if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
        raise TrainError(f"temperature is {temperature}, expected a number above 0")
    judge = parse_reward(reward) if isinstance(reward, str) else reward
    if judge is not None and not callable(judge):
        raise TrainError(f"reward is {judge!r}, expected a callable or text such as 'max_words(12)'")

    name = os.fspath(name_or_path)
    if name in generated.TASKS:
        task = generated.TASKS[name].make(seed, _GENERATED_TRAIN if train is None else train, held_out)
    elif name == "gsm8k" or name.startswith("gsm8k:"):
        path = name.removeprefix("gsm8k").removeprefix(":")
        if name != "gsm8k" and not path:
            raise TrainError("gsm8k: expected a path behind the colon: gsm8k:PATH.jsonl")
        sides = read_gsm8k(Path(path)) if path else fetch_gsm8k()
        samples = limit(*sides, count=train, held_out_count=held_out, seed=seed, name=name)
        task = Task(name, *samples, exact_number, max_tokens=256, temperature=0.7)
    else:
        task = _file_task(name, judge, seed, train, held_out)
    changes: dict[str, Any] = {"reward": judge, "max_tokens": max_tokens, "temperature": temperature}
    if judge is not None:
        task = dataclasses.replace(task, shaped=None)  # it is the task's own reward that it shapes
    return dataclasses.replace(task, **{key: value for key, value in changes.items() if value is not None})


def _file_task(name: str, judge: Reward | None, seed: int, train: int | None, held_out: int) -> Task:
    path = Path(name)
    if not path.exists():
        raise TrainError(
            f"there is no task and no file {name!r}: choose from {', '.join(BUILTIN)}, gsm8k:PATH.jsonl, or "
            "the path of a JSONL file"
        )
    trained, measured, shifted, places = read_samples(path)
    if judge is None:
        judge = _reward_of_lines([*trained, *measured, *shifted], places)
    samples = limit(trained, measured, count=train, held_out_count=held_out, seed=seed, name=name)
    return Task(name, *samples, judge, shifted=first(shifted, held_out))


def _reward_of_lines(samples: list[Sample], places: Mapping[int, str]) -> Reward:
    """Return the reward that each sample names under its own key `reward`, parsed once."""
    parsed: dict[str, Reward] = {}
    for sample in samples:
        text, place = sample.data.get("reward"), places[id(sample)]
        if not isinstance(text, str):
            raise TrainError(
                f'{place}: there is no "reward": expected one on every line, such as "max_words(12)", or one '
                "for the whole task (reward=...)"
            )
        if text not in parsed:
            try:
                parsed[text] = parse_reward(text, allow_import=False)
            except TrainError as error:
                raise TrainError(f"{place}: {error}") from error

    def reward(completion: Completion, sample: Sample) -> float:
        return parsed[sample.data["reward"]](completion, sample)

    reward.__name__ = "reward_of_the_line"
    return reward
