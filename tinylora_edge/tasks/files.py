"""Samples from files of JSON lines, and their split into trained on and held out, by the prompt alone.

    {"prompt": "What is 2 + 2?", "answer": "4"}
    {"messages": [{"role": "user", "content": "Hi"}], "split": "held_out", "any": "other key"}

`prompt` is text or a list of chat messages, `messages` a list of them; all go through the model's chat
template, text as one message of the user. With `"raw": true` the model continues the text as it stands.
Other keys than these, `answer` and `split` become the sample's `data`. A line's `split` is "train",
"held_out" or "shifted". Where lines say none, a fifth of the distinct prompts is held out, chosen by their
hash, and none is shifted. Every complaint names its file and line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from ..documents import parse_json
from ..errors import TrainError
from .task import Sample

HELD_OUT_SHARE = 0.2
"""Of the distinct prompts, where a file does not say which are held out."""

_ROLES = ("system", "user", "assistant")
_SPLITS = ("train", "held_out", "shifted")
_KEYS = ("prompt", "messages", "answer", "split", "raw")


class Lines(NamedTuple):
    """The samples of a file by their split, and `file:line` by the id of each sample."""

    train: list[Sample]
    held_out: list[Sample]
    shifted: list[Sample]
    places: dict[int, str]


def read_objects(path: Path, what: str = "the task's samples") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `file:line` and the JSON object of every line that is not blank; `what` is what lines are."""
    empty = True
    try:
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


def read_samples(path: Path) -> Lines:
    """Return the samples of a file.

    Raises:
        TrainError: a line is malformed, only some lines say their split, or a prompt stands in two splits.
    """
    sides: dict[str | None, list[Sample]] = {side: [] for side in (None, *_SPLITS)}
    places: dict[int, str] = {}
    for place, row in read_objects(path):
        sample, split = _sample(place, row), row.get("split")
        if not (split is None or split in _SPLITS):
            raise TrainError(f'{place}: "split" is {split!r}, expected "train", "held_out" or "shifted"')
        sides[split].append(sample)
        places[id(sample)] = place
    if len(sides[None]) == len(places):
        return Lines(*split_by_prompt(sides[None]), [], places)
    if sides[None]:
        raise TrainError(
            f'{places[id(sides[None][0])]}: no "split", but other lines have one: expected it on all lines '
            "or on none"
        )
    seen: dict[float, tuple[str, Sample]] = {}
    for side in _SPLITS:
        for sample in sides[side]:
            other, first = seen.setdefault(rank(sample), (side, sample))
            if other != side:
                raise TrainError(
                    f"{places[id(sample)]}: its split is {side!r}, but the same prompt is {other!r} at "
                    f"{places[id(first)]}: a prompt must not occur in two splits"
                )
    return Lines(sides["train"], sides["held_out"], sides["shifted"], places)


def rank(sample: Sample) -> float:
    """Return a number in [0, 1) that depends on the prompt alone: not on a seed, a file or its order.

    Prompts that differ only in upper and lower case or in spaces have the same one, and so do a text and
    the one message of the user that a template makes of it.
    """
    prompt = sample.prompt
    if isinstance(prompt, str) or [message["role"] for message in prompt] == ["user"]:
        text = sample.text
    else:
        text = "\x00".join(f"{message['role']}\x01{message['content']}" for message in prompt)
    canonical = " ".join(text.casefold().split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(canonical).digest()[:6], "big") / 2**48


def split_by_prompt(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Return train and held-out samples: about a fifth of the distinct prompts, whatever else a file has."""
    train: list[Sample] = []
    held_out: list[Sample] = []
    for sample in samples:
        (held_out if rank(sample) < HELD_OUT_SHARE else train).append(sample)
    return train, held_out


def kind_of(value: Any) -> str:
    """Name a JSON value for an error, short: its type, and the value where that helps."""
    if isinstance(value, str):
        return "blank text" if not value.strip() else f"the string {value[:40]!r}"
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(repr, value)) or 'none'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else f"{json.dumps(value)}"


def _object(place: str, line: bytes) -> dict[str, Any]:
    try:
        row = parse_json(line.rstrip(b"\r\n").decode("utf-8"))
        json.dumps(row, ensure_ascii=False).encode()  # half of a pair of surrogates is no character
    except ValueError as error:
        raise TrainError(f"{place}: not JSON in UTF-8: {error}, expected one JSON object") from None
    if not isinstance(row, dict):
        raise TrainError(f"{place}: {kind_of(row)}, expected a JSON object")
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
    return Sample(prompt, answer, {name: value for name, value in row.items() if name not in _KEYS}, raw)


def _messages(place: str, key: str, value: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise TrainError(f'{place}: "{key}" is {kind_of(value)}, expected a list of messages')
    for number, message in enumerate(value, 1):
        whole = isinstance(message, dict) and set(message) == {"role", "content"}
        content = message["content"] if whole else None
        if not (whole and message["role"] in _ROLES and isinstance(content, str) and content.strip()):
            raise TrainError(
                f'{place}: message {number} is {json.dumps(message)[:200]}, expected {{"role": ..., '
                f'"content": TEXT}} with a role of {", ".join(_ROLES)}'
            )
    if value[-1]["role"] != "user":
        raise TrainError(
            f"{place}: the last message is from {value[-1]['role']!r}, expected 'user': the model answers it"
        )
    return tuple(value)
