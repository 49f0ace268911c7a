"""`load_task`: from a name or a path to a task."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import TrainError
from ..jsonio import read_json
from .builtin import BUILTIN, SHIPPED, gsm8k
from .files import kind_of, rank, read_samples
from .rewards import json_value, label, parse_reward, read_off, shaped, text, unfit
from .sample import Sample
from .task import Reward, Task, drawn, name_of

LABELS = 1000
"""Different answers at most that `schema="label"` holds a model to."""

_ANSWER_TOKENS = (16, 64, 512)  # the least; the least where the answer is not to be said as it is; the most


def load_task(
    name_or_path: str | os.PathLike[str],
    *,
    reward: str | Reward | None = None,
    schema: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    drop_duplicates: bool = False,
    seed: int = 0,
    held_out: int = 128,
    train: int | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> Task:
    """Return a task, the same one for the same arguments on every machine.

    Args:
        name_or_path: one of `BUILTIN`; `gsm8k:PATH.jsonl`, a local file with the keys `question` and
            `answer`; or the path of a JSONL, CSV or text file (see `files`).
        reward: judges the completions instead of the task's own reward: a callable, or text that
            `rewards.parse_reward` understands. Without one, that of a file is read off its answers (see
            `rewards`), and `Task.notes` says so.
        schema: what answers are held to: a JSON schema, the path of a file that has one, or "label", which
            is any one of the answers that the samples have. The reward has to be `label` then.
        drop_duplicates: of a file: leave out training prompts that are measured on too, and lines that
            stand there twice.
        seed: of which training samples are taken where `train` limits them. What is held out or shifted never
            depends on it.
        held_out: number of held-out samples, and of shifted ones; files may have fewer. A smaller number is
            the beginning of a larger one.
        train: number of training samples; None: all.
        max_tokens: limit of a completion; None: the task's own, for a file as long as its longest answer, in
            bytes: 16 to 512.
        temperature: sampling temperature in training; None: the task's own.

    Raises:
        TrainError: an unknown name, a file that is missing, malformed (with its line) or empty, no samples on
            a side, answers that are all the same, a reward or a schema that is not valid or does not suit the
            answers, or a number out of range.
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
    if name == "gsm8k" or name.startswith("gsm8k:"):
        task = gsm8k(name)
    elif (known := SHIPPED.get(name)) is not None:
        task = known.finish(name, _from_file(name, known.path, judge or known.reward, drop_duplicates))
    else:
        task = _from_file(name, Path(name), judge, drop_duplicates)
    if judge is not None:
        task = dataclasses.replace(task, reward=judge, shaped=shaped(judge))
    held_to = _schema(schema, task)
    task = _limited(task, train, held_out, seed)
    changes: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "schema": held_to}
    return dataclasses.replace(task, **{key: value for key, value in changes.items() if value is not None})


def _schema(
    schema: str | os.PathLike[str] | Mapping[str, Any] | None, task: Task
) -> Mapping[str, Any] | Sequence[str] | None:
    if schema == "label":
        if task.reward is not label:
            raise TrainError(
                f"{task.name}: the schema label needs the reward label, but the reward is "
                f"{name_of(task.reward)}: name it (--reward label), or give a JSON schema"
            )
        answers = {(sample.answer or "").strip() for sample in _samples(task)}
        if len(answers) > LABELS:
            raise TrainError(
                f"{task.name}: {len(answers):,} different answers, expected {LABELS:,} labels at most"
            )
        return sorted(answers)
    return schema if schema is None or isinstance(schema, Mapping) else read_schema(schema)


def read_schema(schema: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON schema of a file; a TrainError says that there is none."""
    try:
        value = read_json(schema)
    except OSError as error:
        raise TrainError(
            f"schema {os.fspath(schema)!r}: {error.strerror}: expected a file, or label"
        ) from None
    except ValueError as error:
        raise TrainError(f"schema {os.fspath(schema)}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise TrainError(f"schema {os.fspath(schema)}: {kind_of(value)}, expected a JSON schema, an object")
    return value


def _samples(task: Task) -> list[Sample]:
    return [*task.train, *task.held_out, *task.shifted]


def _limited(task: Task, train: int | None, held_out: int, seed: int) -> Task:
    for samples, side in ((task.train, "training"), (task.held_out, "held-out")):
        if not samples:
            raise TrainError(
                f"{task.name}: it has {len(task.train)} training and {len(task.held_out)} held-out samples, "
                f'expected at least one {side} sample: add samples, or mark them with "split": "train" or '
                '"held_out"'
            )
    kept = list(range(len(task.train)))
    if train is not None and train < len(kept):
        kept = sorted(drawn(f"{task.name}/train/{seed}", kept, train))
    return dataclasses.replace(
        task,
        train=tuple(task.train[index] for index in kept),
        held_out=tuple(sorted(task.held_out, key=rank)[:held_out]),
        shifted=tuple(sorted(task.shifted, key=rank)[:held_out]),
    )


def _from_file(name: str, path: Path, judge: Reward | None, drop_duplicates: bool) -> Task:
    if not path.exists():
        raise TrainError(
            f"there is no task and no file {name!r}: choose from {', '.join(BUILTIN)}, gsm8k:PATH.jsonl, or "
            "the path of a JSONL, CSV or text file"
        )
    lines = read_samples(path, drop_duplicates=drop_duplicates)
    order = {key: number for number, key in enumerate(lines.places)}
    samples = sorted([*lines.train, *lines.held_out, *lines.shifted], key=lambda sample: order[id(sample)])
    answers, notes = [sample.answer for sample in samples if sample.answer is not None], lines.notes
    reward = judge
    if samples[0].unprompted:
        if judge is not None and judge is not text:
            raise TrainError(
                f"{name}: the reward {name_of(judge)} judges answers, but these are texts without prompts: "
                "they are learned as they are, and measured by their nats a token"
            )
        judge = reward = text
        notes.append(f"{len(samples):,} texts without prompts: learned as they are, measured by nats a token")
    elif reward is None:
        for sample in samples:
            if sample.answer is None:
                raise TrainError(
                    f'{lines.places[id(sample)]}: there is no "answer", and no reward: expected an answer on '
                    "every line, or a reward for the task (--reward)"
                )
        reward, why = read_off(answers)
        notes.append(f"reward: {name_of(reward)}, {why}")
        trained = {sample.answer for sample in lines.train}
        if reward is label and (never := sorted(set(answers) - trained)):
            notes.append(f"{len(never):,} of these answers are never trained on, such as {never[0]!r}")
    else:
        for sample in samples:
            if wrong := unfit(reward, sample.answer):
                raise TrainError(f"{lines.places[id(sample)]}: {wrong}")
    if (reward is label or judge is None) and len(answers) > 1 and len(set(answers)) == 1:
        raise TrainError(
            f"{name}: all {len(answers):,} answers are {answers[0]!r:.60}: there is nothing to learn from "
            "one class alone, so add samples of others"
        )
    least, free, most = _ANSWER_TOKENS
    whole = len(answers) == len(samples) and any(reward is each for each in (label, json_value, text))
    longest = max([least if whole else free, *(len(answer.encode()) + 1 for answer in answers)])
    return Task(
        name,
        lines.train,
        lines.held_out,
        reward,
        max_tokens=min(longest, most),
        shaped=shaped(reward),
        shifted=lines.shifted,
        notes=notes,
    )
