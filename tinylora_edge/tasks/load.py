"""`load_task`: from a name or a path to a task. GSM8K is read here too, from a file or from the hub."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, TrainError
from . import generated
from .files import rank, read_objects, read_samples, split_by_prompt
from .generated.tool_calls import right_call
from .numbers import final_number
from .rewards import exact_number, parse_reward
from .task import Completion, Draw, Reward, Sample, Task

BUILTIN: tuple[str, ...] = tuple(sorted([*generated.TASKS, "gsm8k", "snips"]))
"""The tasks that `load_task` knows by name. `gsm8k` needs a download; `gsm8k:PATH.jsonl` does not."""

GSM8K = "openai/gsm8k"
"""On the hub: grade school word problems (Cobbe et al. 2021, MIT licence)."""
GSM8K_INSTRUCTION = "Put your final answer after ####."
"""Stands behind every problem, after a blank line."""

_SNIPS = Path(__file__).with_name("snips.jsonl")  # where it is from: snips.LICENSE
_GENERATED_TRAIN = 512  # samples; at 8 prompts a step more than a default run sees
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # annotations for a calculator, not part of the solution's text


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
        seed: of generated training prompts, and of which training samples are taken where `train` limits
            them. What is held out or shifted never depends on it.
        held_out: number of held-out samples, and of shifted ones; files may have fewer. A smaller number is
            the beginning of a larger one.
        train: number of training samples; None: 512 of generated tasks, all that a file has.
        max_tokens: limit of a completion; None: the task's own.
        temperature: sampling temperature in training; None: the task's own.

    Raises:
        TrainError: an unknown name, a file that is missing, malformed (with its line) or empty, no samples on
            a side, no reward or one that is not valid, or a number out of range.
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
    else:
        if name == "snips":
            whole = _snips()
        else:
            whole = _gsm8k(name) if name == "gsm8k" or name.startswith("gsm8k:") else _from_file(name, judge)
        task = _limited(whole, train, held_out, seed)
    changes: dict[str, Any] = {"reward": judge, "max_tokens": max_tokens, "temperature": temperature}
    if judge is not None:
        task = dataclasses.replace(task, shaped=None)  # it is the task's own reward that it shapes
    return dataclasses.replace(task, **{key: value for key, value in changes.items() if value is not None})


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
        kept = sorted(Draw(f"{task.name}/train/{seed}").some(kept, train))
    return dataclasses.replace(
        task,
        train=tuple(task.train[index] for index in kept),
        held_out=tuple(sorted(task.held_out, key=rank)[:held_out]),
        shifted=tuple(sorted(task.shifted, key=rank)[:held_out]),
    )


def _from_file(name: str, judge: Reward | None) -> Task:
    path = Path(name)
    if not path.exists():
        raise TrainError(
            f"there is no task and no file {name!r}: choose from {', '.join(BUILTIN)}, gsm8k:PATH.jsonl, or "
            "the path of a JSONL file"
        )
    train, held_out, shifted, places = read_samples(path)
    reward = judge or _reward_of_lines([*train, *held_out, *shifted], places)
    return Task(name, train, held_out, reward, shifted=shifted)


def _reward_of_lines(samples: Sequence[Sample], places: Mapping[int, str]) -> Reward:
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

    def reward_of_the_line(completion: Completion, sample: Sample) -> float:
        return parsed[sample.data["reward"]](completion, sample)

    return reward_of_the_line


def _snips() -> Task:
    """Return utterances and their calls: SNIPS custom intents (Coucke et al. 2018)."""
    sides: dict[str, list[Sample]] = {"train": [], "held_out": []}
    for _, row in read_objects(_SNIPS):
        answer = json.dumps(row["answer"], ensure_ascii=False)
        sides[row["split"]].append(Sample(row["prompt"], answer, {"call": row["answer"]}))
    return Task("snips", sides["train"], sides["held_out"], right_call, max_tokens=96)


def _gsm8k(name: str) -> Task:
    """Return all problems: of `gsm8k:PATH`, split by prompt, or of the hub, whose test split is held out."""
    path = name.removeprefix("gsm8k").removeprefix(":")
    if name != "gsm8k" and not path:
        raise TrainError("gsm8k: expected a path behind the colon: gsm8k:PATH.jsonl")
    if path:
        sides = split_by_prompt([_problem(place, row) for place, row in read_objects(Path(path))])
    else:
        sides = _hub_problems("train"), _hub_problems("test")
    return Task(name, *sides, exact_number, max_tokens=256, temperature=0.7)


def _problem(place: str, row: Mapping[str, Any]) -> Sample:
    question, answer = row.get("question"), row.get("answer")
    if not all(isinstance(text, str) and text.strip() for text in (question, answer)):
        raise TrainError(f'{place}: expected the keys "question" and "answer", each with text in it')
    solution = _CALCULATOR.sub("", str(answer)).strip()
    if "####" not in solution or final_number(solution) is None:
        raise TrainError(
            f"{place}: the answer ends in {solution[-40:]!r}, expected '#### n' with one number at its end"
        )
    question = str(question).strip()
    message = {"role": "user", "content": f"{question}\n\n{GSM8K_INSTRUCTION}"}
    return Sample((message,), solution, {"question": question})


def _hub_problems(split: str) -> list[Sample]:
    try:
        import huggingface_hub
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        if error.name not in ("huggingface_hub", "pyarrow", "pyarrow.parquet"):
            raise
        package = "huggingface-hub" if error.name == "huggingface_hub" else "pyarrow"
        raise MissingExtraError("the gsm8k task from the hub", package, "train") from None
    file = f"main/{split}-00000-of-00001.parquet"
    try:
        path = huggingface_hub.hf_hub_download(GSM8K, file, repo_type="dataset")
        rows = pyarrow.parquet.read_table(path, columns=["question", "answer"]).to_pylist()
    # The hub's client lets through what its HTTP library raises, which is another one in each version.
    except Exception as error:
        raise TrainError(
            f"gsm8k: cannot get {file} of {GSM8K} from the hub: {error}. "
            "Without a network use a local copy: gsm8k:PATH.jsonl"
        ) from error
    return [_problem(f"{GSM8K}/{file}:{number}", row) for number, row in enumerate(rows, 1)]
