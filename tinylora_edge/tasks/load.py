"""`load_task`, which makes a task of a name or a path, and the shipped tasks, files beside this one.

snips.LICENSE says where SNIPS is from. `brevity` and `list-lookup` were drawn from word lists for this
project: what a held-out prompt asks for is in no training prompt, and shifted ones have rarer words, other
phrasings and longer lists. Greedy held-out scores of SmolLM2-135M-Instruct (Q4_1) before any training, n =
128: `list-lookup` .34, `brevity` .13.

`general_prompts.jsonl` is no task: what people ask a model in general. A personalized model is compared with
its base on these prompts (`eval.measure_drift`), and rehearses others of them in training (`Options.keep`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import TrainError
from ..jsonio import read_json
from .files import SPLITS, kind_of, rank, read_samples
from .rewards import (
    json_value,
    label,
    parse_reward,
    picks_answer,
    read_off,
    shaped,
    short_sentence,
    text,
    unfit,
)
from .sample import Sample
from .task import Reward, Task, name_of

LABELS = 1000
"""Most labels that `schema="label"` can constrain answers to."""

_ANSWER_TOKENS = (16, 64, 512)  # limits of a file's task: lowest, lowest for free wording, highest

_HERE = Path(__file__).parent
_SHIPPED: dict[str, tuple[str, Reward | None, dict[str, Any]]] = {
    "brevity": ("brevity", short_sentence, {"max_tokens": 24, "temperature": 0.7}),
    "list-lookup": ("list-lookup", picks_answer, {"max_tokens": 16, "temperature": 0.5}),
    "snips": ("snips", None, {}),
    "snips-intents": ("snips", None, {"max_tokens": 32}),
}
"""Name -> the file, the reward where it is not read off the answers, and other fields of the task."""

BUILTIN: tuple[str, ...] = tuple(_SHIPPED)
"""The tasks that `load_task` knows by name."""


def load_task(
    name_or_path: str | os.PathLike[str],
    *,
    reward: str | Reward | None = None,
    schema: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    drop_duplicates: bool = False,
    held_out: int = 128,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> Task:
    """Return a task. The same arguments give the same task on every machine.

    Args:
        name_or_path: one of `BUILTIN`, or the path of a JSONL, CSV or text file (see `files`).
        reward: judges the completions instead of the task's own reward: a callable, or text that
            `rewards.parse_reward` understands. Without one, that of a file is read off its answers (see
            `rewards`), and `Task.notes` says so.
        schema: what answers are held to: a JSON schema, the path of a file that has one, or "label" for any
            one of the samples' answers, which needs the reward `label`.
        drop_duplicates: leave out a file's training prompts that are measured on too, and repeated lines.
        held_out: number of held-out samples, and of shifted ones; files may have fewer. A smaller number is
            the beginning of a larger one.
        max_tokens: limit of a completion; None: the task's own, for a file the bytes of its longest answer,
            from 16 to 512.
        temperature: sampling temperature in training; None: the task's own.

    Raises:
        TrainError: an unknown name, a file that is missing, malformed (with its line) or empty, no samples on
            a side, answers that are all the same, a reward or a schema that is not valid or does not suit the
            answers, or a number out of range.
    """
    for what, value in (("held_out", held_out), ("max_tokens", max_tokens)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise TrainError(f"{what} is {value!r}, expected a whole number of at least 1")
    if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
        raise TrainError(f"temperature is {temperature}, expected a number above 0")
    judge = parse_reward(reward) if isinstance(reward, str) else reward
    if judge is not None and not callable(judge):
        raise TrainError(f"reward is {judge!r}, expected a callable or text such as 'max_words(12)'")

    name = os.fspath(name_or_path)
    file, own, fields = _SHIPPED.get(name, ("", None, {}))
    path = Path(name) if not file else _HERE / f"{file}.jsonl"
    judge = own if judge is None else judge
    task = dataclasses.replace(_from_file(name, path, judge, drop_duplicates), **fields)
    if name == "snips-intents":
        task = dataclasses.replace(task, train=_intents(task.train), held_out=_intents(task.held_out))
    held_to = _schema(schema, task)
    for samples, side in ((task.train, "training"), (task.held_out, "held-out")):
        if not samples:
            raise TrainError(
                f"{task.name}: it has {len(task.train)} training and {len(task.held_out)} held-out samples, "
                f'expected at least one {side} sample: add samples, or mark them with "split": "train" or '
                '"held_out"'
            )
    changes: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "schema": held_to}
    return dataclasses.replace(
        task,
        train=tuple(task.train),
        held_out=tuple(sorted(task.held_out, key=rank)[:held_out]),
        shifted=tuple(sorted(task.shifted, key=rank)[:held_out]),
        **{key: value for key, value in changes.items() if value is not None},
    )


def load_general(split: Literal["train", "held_out"] = "held_out") -> tuple[Sample, ...]:
    """Return the general prompts to measure drift on, or (`train`) those to rehearse.

    Where a rule can check an answer, `data["answers"]` has those that are right.
    """
    lines, _ = read_samples(_HERE / "general_prompts.jsonl")
    return tuple(line.sample for line in lines if line.split == split)


def _intents(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples of SNIPS, each with its intent, the name of its call, as the answer."""
    names = [json.loads(str(sample.answer))["name"] for sample in samples]
    answers = [json.dumps({"intent": name}) for name in names]
    return [dataclasses.replace(each, answer=text) for each, text in zip(samples, answers, strict=True)]


def _schema(
    schema: str | os.PathLike[str] | Mapping[str, Any] | None, task: Task
) -> Mapping[str, Any] | Sequence[str] | None:
    if schema is not None and task.reward is text:
        raise TrainError(f"{task.name}: with the reward text no answer is sampled: leave out the schema")
    if schema == "label":
        if task.reward is not label:
            raise TrainError(
                f"{task.name}: the schema label needs the reward label, but the reward is "
                f"{name_of(task.reward)}: name it (--reward label), or give a JSON schema"
            )
        samples = [*task.train, *task.held_out, *task.shifted]
        answers = {(sample.answer or "").strip() for sample in samples}
        if len(answers) > LABELS:
            raise TrainError(
                f"{task.name}: {len(answers):,} different answers, expected {LABELS:,} labels at most"
            )
        return sorted(answers)
    return schema if schema is None or isinstance(schema, Mapping) else read_schema(schema)


def read_schema(schema: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON schema in a file. TrainError: the file has none."""
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


def _from_file(name: str, path: Path, judge: Reward | None, drop_duplicates: bool) -> Task:
    if not path.exists():
        raise TrainError(
            f"there is no task and no file {name!r}: choose from {', '.join(BUILTIN)}, or the path of a "
            "JSONL, CSV or text file"
        )
    lines, notes = read_samples(path, drop_duplicates=drop_duplicates)
    answers = [line.sample.answer for line in lines if line.sample.answer is not None]
    reward = judge
    if lines[0].sample.unprompted:
        if judge is not None and judge is not text:
            raise TrainError(
                f"{name}: the reward {name_of(judge)} judges answers, but these are texts without prompts: "
                "they are learned as they are, and measured by their nats a token"
            )
        judge = reward = text
        notes.append(f"{len(lines):,} texts without prompts: learned as they are, measured by nats a token")
    elif reward is None:
        for line in lines:
            if line.sample.answer is None:
                raise TrainError(
                    f'{line.place}: there is no "answer", and no reward: expected an answer on '
                    "every line, or a reward for the task (--reward)"
                )
        reward, why = read_off(answers)
        notes.append(f"reward: {name_of(reward)}, {why}")
    else:
        for line in lines:
            if wrong := unfit(reward, line.sample.answer):
                raise TrainError(f"{line.place}: {wrong}")
    if (reward is label or judge is None) and len(answers) > 1 and len(set(answers)) == 1:
        raise TrainError(
            f"{name}: all {len(answers):,} answers are {answers[0]!r:.60}: there is nothing to learn from "
            "one class alone, so add samples of others"
        )
    least, free, most = _ANSWER_TOKENS
    whole = len(answers) == len(lines) and reward in (label, json_value, text)
    longest = max([least if whole else free, *(len(answer.encode()) + 1 for answer in answers)])
    sides: dict[str, Any] = {
        split: [line.sample for line in lines if line.split == split] for split in SPLITS
    }
    sides["drawn"] = [line.sample for line in lines if line.drawn and line.split == "held_out"]
    limit = min(longest, most)
    return Task(name, **sides, reward=reward, max_tokens=limit, shaped=shaped(reward), notes=notes)
