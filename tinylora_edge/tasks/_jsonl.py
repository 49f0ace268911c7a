"""Tasks from JSONL files: one sample a line, every complaint with its file and line.

    {"prompt": "What is 2 + 2?", "answer": "4"}
    {"messages": [{"role": "user", "content": "Hi"}], "split": "held_out", "any": "other key"}

`prompt` is text or a list of chat messages, `messages` a list of them; all go through the model's chat
template, text as one message of the user. With `"raw": true` the model continues the text as it stands.
Other keys than these, `answer` and `split` become the sample's `data`. A line's `split` is "train",
"held_out" or "shifted". Where lines say none, a fifth of the distinct prompts is held out, chosen by their
hash, and none is shifted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from ..documents import parse_json
from ..errors import TrainError
from ..system import check_path
from ._split import rank, split_by_prompt
from .rewards import parse_reward
from .task import Completion, Reward, Sample

_ROLES = ("system", "user", "assistant")
_SPLITS = ("train", "held_out", "shifted")
_KEYS = ("prompt", "messages", "answer", "split", "raw")


def read_objects(path: Path, what: str = "the task's samples") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `file:line` and the JSON object of every line that is not blank.

    Args:
        path: the file.
        what: what its lines are, for the error where it cannot be read.

    Raises:
        TrainError: the file cannot be read or has no lines, or a line is not a JSON object in UTF-8.
    """
    empty = True
    try:
        check_path(path, TrainError)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # the BOM that some editors write
                if line.strip():
                    empty = False
                    yield f"{path}:{number}", _object(f"{path}:{number}", line)
    except OSError as error:
        raise TrainError(f"{path}: cannot read {what}: {error.strerror}") from error
    if empty:
        raise TrainError(f"{path}: the file is empty, expected one JSON object a line")


class Lines(NamedTuple):
    """The samples of a file by their split, and `file:line` by the id of each sample."""

    train: list[Sample]
    held_out: list[Sample]
    shifted: list[Sample]
    places: dict[int, str]


def read_samples(path: Path) -> Lines:
    """Return the samples of a file.

    Raises:
        TrainError: a line is malformed, only some lines say their split, or a prompt stands in two splits.
    """
    samples, splits, places = [], [], {}
    for place, row in read_objects(path):
        sample = _sample(place, row)
        samples.append(sample)
        splits.append(_split(place, row))
        places[id(sample)] = place
    if all(split is None for split in splits):
        return Lines(*split_by_prompt(samples), [], places)
    if None in splits:
        place = places[id(samples[splits.index(None)])]
        raise TrainError(
            f'{place}: no "split", but other lines have one: expected it on all lines or on none'
        )
    train, held_out, shifted = (
        [sample for sample, split in zip(samples, splits, strict=True) if split == side] for side in _SPLITS
    )
    trained = {rank(sample): sample for sample in train}
    measured = {rank(sample): sample for sample in held_out}
    for sample in held_out:
        if rank(sample) in trained:
            other = places[id(trained[rank(sample)])]
            raise TrainError(
                f"{places[id(sample)]}: held out, but the same prompt is trained on at {other}: a held-out "
                "prompt must not occur in training"
            )
    for sample in shifted:
        for side, verb in ((trained, "trained on"), (measured, "held out")):
            if rank(sample) in side:
                raise TrainError(
                    f"{places[id(sample)]}: shifted, but the same prompt is {verb} at "
                    f"{places[id(side[rank(sample)])]}: a shifted prompt must not occur in another split"
                )
    return Lines(train, held_out, shifted, places)


def reward_of_lines(samples: list[Sample], places: Mapping[int, str]) -> Reward:
    """Return the reward that each sample names under its own key `reward`, parsed once.

    Raises:
        TrainError: a sample names none, or one that is not valid; files cannot name Python callables.
    """
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


def _object(place: str, line: bytes) -> dict[str, Any]:
    try:
        row = parse_json(line.rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        raise TrainError(f"{place}: not UTF-8 text (byte {error.start + 1} of the line)") from None
    except json.JSONDecodeError as error:
        raise TrainError(
            f"{place}: not JSON: {error.msg} at character {error.pos + 1}, expected one JSON object"
        ) from None
    except (ValueError, RecursionError) as error:
        raise TrainError(f"{place}: not JSON that can be read: {error}") from None
    if not isinstance(row, dict):
        raise TrainError(f"{place}: {kind_of(row)}, expected a JSON object")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise TrainError(
            f"{place}: {half} is half of a pair of surrogates, and no character: expected both halves, or "
            "the character itself"
        ) from None
    return row


def _sample(place: str, row: Mapping[str, Any]) -> Sample:
    if ("prompt" in row) == ("messages" in row):
        found = "both" if "prompt" in row else f"only {', '.join(map(repr, row))}" if row else "neither"
        raise TrainError(f'{place}: found {found}, expected either "prompt" or "messages"')
    answer = row.get("answer")
    if isinstance(answer, float):
        answer = f"{Decimal(repr(answer)):f}"  # no exponent, which rewards read as another number
    elif isinstance(answer, int) and not isinstance(answer, bool):
        answer = str(answer)
    if answer is not None and not isinstance(answer, str):
        raise TrainError(f'{place}: "answer" is {kind_of(answer)}, expected a string or a number')
    key = "prompt" if "prompt" in row else "messages"
    prompt = row[key]
    if key == "messages" or isinstance(prompt, list):
        prompt = _messages(place, key, prompt)
    elif not isinstance(prompt, str) or not prompt.strip():
        raise TrainError(f'{place}: "prompt" is {kind_of(prompt)}, expected text or a list of messages')
    raw = row.get("raw", False)
    if not isinstance(raw, bool):
        raise TrainError(f'{place}: "raw" is {kind_of(raw)}, expected true or false')
    if raw and not isinstance(prompt, str):
        raise TrainError(f'{place}: "raw" is true, but "{key}" is messages, which a template renders')
    data = {name: value for name, value in row.items() if name not in _KEYS}
    return Sample(prompt, answer, data, raw)


def _messages(place: str, key: str, value: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise TrainError(f'{place}: "{key}" is {kind_of(value)}, expected a list of messages')
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise TrainError(
                f'{place}: message {number} is {kind_of(message)}, expected {{"role": ..., "content": ...}}'
            )
        if message["role"] not in _ROLES:
            raise TrainError(
                f"{place}: message {number} has the role {message['role']!r}, expected one of "
                f"{', '.join(_ROLES)}"
            )
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise TrainError(
                f"{place}: the content of message {number} is {kind_of(message['content'])}, expected text"
            )
    if value[-1]["role"] != "user":
        raise TrainError(
            f"{place}: the last message is from {value[-1]['role']!r}, expected 'user': the model answers it"
        )
    return tuple(value)


def _split(place: str, row: Mapping[str, Any]) -> str | None:
    split = row.get("split")
    if split is not None and split not in _SPLITS:
        raise TrainError(f'{place}: "split" is {split!r}, expected "train", "held_out" or "shifted"')
    return split


def kind_of(value: Any) -> str:
    """Name a JSON value for an error, short: its type, and the value where that helps."""
    if isinstance(value, str):
        return "blank text" if not value.strip() else f"the string {value[:40]!r}"
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(repr, value)) or 'none'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else f"{json.dumps(value)}"
