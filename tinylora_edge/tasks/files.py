"""Samples from files, and their split into training and held-out ones, by the prompt alone.

    {"prompt": "What is 2 + 2?", "answer": "4"}
    {"prompt": "Play some jazz", "answer": {"intent": "play", "genre": "jazz"}}
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
    {"messages": [{"role": "user", "content": "Hi"}], "split": "held_out", "any": "other key"}
    {"text": "on my way, 10 min"}

These are JSON lines. `prompt` is a text or a list of chat messages. `messages` is a list of chat messages, of
which the last may be the assistant's: then it is the answer. The model's chat template renders all of them, a
text as one message of the user; with `"raw": true` the model continues the text as it stands. An answer that
is an object, a list or a boolean becomes its JSON text. Keys that have no meaning here become the sample's
`data`.

A line may have `tools` in OpenAI's form, and messages may have `tool_calls` and their results, as in requests
to the server. If the last message calls tools, the answer is these calls as text, in the form that the server
reads.

A `text` without a prompt is learned as it is, without the chat template; a `.txt` file has one a line. A file
has texts or prompts, but not both.

A `.csv` file has a header with `prompt` and `answer`; its other columns are further keys, where filled in.

A line's `split` is "train", "held_out" or "shifted". If no line has one, a fifth of the distinct prompts is
held out, chosen by their hash, and none is shifted. Every error names its file and line.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import RequestError, TrainError
from ..jsonio import parse_json
from ..limits import DATA_BYTES
from ..writes import open_file
from .sample import Sample, read_functions, template_input

T = TypeVar("T")

HELD_OUT_SHARE = 0.2
"""Share of the distinct prompts that is held out, where a file does not say which are."""

_SURELY_HELD_OUT = 8  # prompts that a small file holds out even if their hashes choose fewer

_OF_ALL = {"role", "content", "name"}  # keys that messages of every role may have
_ROLES: dict[str, set[str]] = {
    "system": set(),
    "user": set(),
    "assistant": {"tool_calls"},
    "tool": {"tool_call_id"},
}
"""Role of a message -> the keys that it may have beside `_OF_ALL`."""
SPLITS = ("held_out", "shifted", "train")
_KEYS = ("prompt", "messages", "answer", "split", "raw", "tools")
_OF_PROMPTS = ("answer", "raw", "tools")  # keys that a text does not have


class Line(NamedTuple):
    """A sample of a file, with its place, `file:line`, and its `rank`.

    `split` is None until it is known. `drawn` says that the split is by the prompt's hash, not by the file.
    """

    place: str
    sample: Sample
    rank: float
    split: str | None
    drawn: bool = False


def read_objects(path: Path, what: str = "the task's samples") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `file:line` and the JSON object of each line that is not blank; errors call the lines `what`."""
    for place, line in _filled(path, what):
        try:
            row = parse_json(line, strict=True)
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()  # fails for one of a pair of surrogates alone
        except ValueError as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise TrainError(f"{place}: not JSON: {why}, expected one JSON object on each line") from None
        if not isinstance(row, dict):
            raise TrainError(f"{place}: {kind_of(row)}, expected a JSON object on each line")
        yield place, row


def read_samples(path: Path, *, drop_duplicates: bool = False) -> tuple[list[Line], list[str]]:
    """Return the samples of a file, and notes for the user.

    It is CSV where it ends in `.csv`, a text a line where it ends in `.txt`, else JSON lines.

    `drop_duplicates` leaves out prompts of training that are measured on too, and lines that repeat prompt
    and answer of another one. TrainError: a line is malformed, only some lines say their split or have a
    prompt, or a prompt stands in two splits.
    """
    readers = {".csv": _csv_rows, ".txt": _text_rows}
    lines = [_line(*row) for row in readers.get(path.suffix.lower(), read_objects)(path)]
    if not lines:
        raise TrainError(f"{path}: the file is empty, expected a sample on each line")
    for line in lines:
        if line.sample.unprompted != lines[0].sample.unprompted:
            raise TrainError(
                f"{line.place}: a file has prompts or texts without one, and not both: make two files of it"
            )
    notes: list[str] = []
    without = [line for line in lines if line.split is None]
    if len(without) == len(lines):
        threshold = _threshold({line.rank for line in lines})
        sides = ["held_out" if line.rank < threshold else "train" for line in lines]
        lines = [line._replace(split=side, drawn=True) for line, side in zip(lines, sides, strict=True)]
    elif without:
        raise TrainError(
            f'{without[0].place}: no "split", but other lines have one: expected it on all lines or on none'
        )
    return _distinct(lines, drop_duplicates, notes), notes


def _distinct(lines: list[Line], drop: bool, notes: list[str]) -> list[Line]:
    """Return the lines without duplicates if these are to be dropped; else refuse them, or note them."""
    owners: dict[float, Line] = {}
    for line in sorted(lines, key=lambda line: SPLITS.index(str(line.split))):
        owners.setdefault(line.rank, line)  # `SPLITS` begins with those that are measured on: these stay
    kept, crossing, repeated, seen = [], 0, list[Line](), set[tuple[float, str | None]]()
    for line in lines:
        owner = owners[line.rank]
        if line.split != owner.split:
            if not drop:
                raise TrainError(
                    f"{line.place}: its split is {line.split!r}, but the same prompt is {owner.split!r} at "
                    f"{owner.place}: a prompt must not occur in two splits "
                    f"(--drop-duplicates keeps the one that is {owner.split!r})"
                )
            crossing += 1
            continue
        if (line.rank, line.sample.answer) in seen:
            repeated.append(line)
            if drop:
                continue
        seen.add((line.rank, line.sample.answer))
        kept.append(line)
    if crossing:
        notes.append(f"left out {crossing:,} lines whose prompt is measured on, too")
    if repeated:
        again = f"{len(repeated):,} lines that repeat another, such as {repeated[0].place}"
        notes.append(f"left out {again}" if drop else f"{again} (--drop-duplicates leaves them out)")
    return kept


def rank(sample: Sample) -> float:
    """Return a number in [0, 1) that depends on the prompt alone: not on a seed, a file or its order.

    Prompts that differ only in upper and lower case or in spaces have the same one, and so do a text and
    the one message of the user that a template makes of it.
    """
    prompt = sample.prompt
    if isinstance(prompt, str) or [message["role"] for message in prompt] == ["user"]:
        text = sample.text
    else:
        turns = (
            f"{turn['role']}\x01{turn.get('content') or ''}"
            f"{[call['function'] for call in turn.get('tool_calls') or ()] or ''}"  # without its id
            for turn in prompt
        )
        text = "\x00".join(turns)
    canonical = " ".join(text.casefold().split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(canonical).digest()[:6], "big") / 2**48


def _threshold(ranks: Iterable[float]) -> float:
    """Return the rank below which prompts are held out; a small file, too, then has some of either kind."""
    ordered = sorted(ranks)
    least = min(max(1, len(ordered) // 5), _SURELY_HELD_OUT)
    count = min(max(least, bisect_left(ordered, HELD_OUT_SHARE)), max(1, len(ordered) // 3))
    return ordered[count] if count < len(ordered) else 1.0


def kind_of(value: Any) -> str:
    """Return what a JSON value is, for an error: its type, and a short value itself."""
    if isinstance(value, str):
        return "blank text" if not value.strip() else f"the string {value[:40]!r}"
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(repr, value)) or 'none'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return json.dumps(value)


def _lines(path: Path, what: str) -> io.StringIO:
    """Return a file of UTF-8 text, for reading line by line. TrainError: it cannot be read."""
    try:
        with open_file(path) as file:
            data = file.read(DATA_BYTES + 1)
    except OSError as error:
        raise TrainError(f"{path}: cannot read {what}: {error.strerror}") from error
    if len(data) > DATA_BYTES:
        raise TrainError(f"{path}: the file is longer than {DATA_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise TrainError(
            f"{path}:{number}: the byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from None
    return io.StringIO(text, newline="\n")


def _filled(path: Path, what: str) -> Iterator[tuple[str, str]]:
    """Yield `file:line` and the text of each line that is not blank."""
    return ((f"{path}:{n}", line) for n, line in enumerate(_lines(path, what), 1) if line.strip())


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `file:line` and the cells of each row that are not blank, by the names in the header."""
    reader = csv.DictReader(_lines(path, "the task's samples"), strict=True)
    try:
        names = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        if not {"prompt", "answer"} <= set(names) or len(set(names)) < len(names) or "messages" in names:
            raise TrainError(
                f"{path}:1: the columns are {', '.join(map(repr, names))}, expected prompt and answer, and "
                "others if you like, with commas between, but none twice and no messages"
            )
        for cells in reader:
            place = f"{path}:{reader.line_num}"
            if None in cells or None in cells.values():
                raise TrainError(
                    f"{place}: other columns than the {len(names)} of the header: put text that has commas "
                    "into double quotes"
                )
            row: dict[str, Any] = {name: cell for name, cell in cells.items() if cell.strip()}
            if row.get("raw", "").lower() in ("true", "false"):
                row["raw"] = row["raw"].lower() == "true"
            if row:
                yield place, {"prompt": "", "answer": "", **row}
    except csv.Error as error:
        raise TrainError(f"{path}:{reader.reader.line_num}: not CSV: {error}") from None


def _text_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `file:line` and the text of every line that is not blank."""
    for place, line in _filled(path, "the task's texts"):
        yield place, {"text": line.rstrip("\r\n")}


def _text(place: str, row: Mapping[str, Any]) -> Sample:
    text = row["text"]
    if not isinstance(text, str) or not text.strip():
        raise TrainError(f'{place}: "text" is {kind_of(text)}, expected a text to learn as it is')
    if more := [key for key in _OF_PROMPTS if key in row]:
        raise TrainError(f'{place}: found "text" and "{more[0]}", which belongs to a "prompt"')
    return Sample("", text, {name: row[name] for name in row if name not in ("text", "split")}, raw=True)


def _line(place: str, row: Mapping[str, Any]) -> Line:
    split = row.get("split")
    if not (split is None or split in SPLITS):
        raise TrainError(f'{place}: "split" is {split!r}, expected "train", "held_out" or "shifted"')
    if "text" in row and not {"prompt", "messages"} & row.keys():
        sample = _text(place, row)
        return Line(place, sample, rank(sample), split)
    if ("prompt" in row) == ("messages" in row):
        found = "both" if "prompt" in row else f"only {', '.join(map(repr, row))}" if row else "neither"
        raise TrainError(f'{place}: found {found}, expected either "prompt" or "messages", or a "text"')
    answer, raw = row.get("answer"), row.get("raw", False)
    if not isinstance(raw, bool):
        raise TrainError(f'{place}: "raw" is {kind_of(raw)}, expected true or false')
    key = "prompt" if "prompt" in row else "messages"
    prompt, functions = row[key], _checked(place, read_functions, row.get("tools") or ())
    if key == "messages" or isinstance(prompt, list):
        *before, last = messages = _messages(place, key, prompt)
        rendered = _checked(place, template_input, messages, functions, own=False).messages
        if key == "messages" and last["role"] == "assistant":
            if answer is not None:
                raise TrainError(f'{place}: found "answer", and an answer as the last message: expected one')
            answer, prompt = rendered[-1]["content"], tuple(before)
            names = {function["name"] for function in functions}
            for call in last.get("tool_calls", ()):
                if (name := call["function"]["name"]) not in names:
                    raise TrainError(f'{place}: the answer calls {name!r}, which is none of its "tools"')
        else:
            prompt = (*before, last)
        if not prompt or prompt[-1]["role"] not in ("user", "tool"):
            found = repr(prompt[-1]["role"]) if prompt else "no one"
            raise TrainError(f"{place}: the message to be answered is from {found}, expected 'user'")
        if raw:
            raise TrainError(f'{place}: "raw" is true, but "{key}" is messages, which a template renders')
    elif not isinstance(prompt, str) or not prompt.strip():
        raise TrainError(f'{place}: "prompt" is {kind_of(prompt)}, expected text or a list of messages')
    if raw and functions:
        raise TrainError(f'{place}: "raw" is true, but only a template tells a model of "tools"')
    data = {name: value for name, value in row.items() if name not in _KEYS}
    sample = Sample(prompt, _answer(place, answer, raw), data, raw, tools=functions)
    return Line(place, sample, rank(sample), split)


def _answer(place: str, value: Any, raw: bool) -> str | None:
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}"  # without an exponent, as people write it
    if value is None or isinstance(value, str):
        if value is not None and not value.strip():
            raise TrainError(f'{place}: "answer" is {kind_of(value)}, expected what the model should say')
        return value if value is None or raw else value.strip()
    return json.dumps(value, ensure_ascii=False)


def _checked(place: str, read: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Return what one of the server's readers returns; its RequestError becomes the line's TrainError."""
    try:
        return read(*arguments, **options)
    except RequestError as error:
        raise TrainError(f"{place}: {error}") from None


def _messages(place: str, key: str, value: Any) -> tuple[dict[str, Any], ...]:
    """Return messages of role, content and calls; a `name` is left out."""
    if not isinstance(value, list) or not value:
        raise TrainError(f'{place}: "{key}" is {kind_of(value)}, expected a list of messages')
    messages = []
    for number, message in enumerate(value, 1):
        row = message if isinstance(message, dict) else {}
        present, role = {name for name, item in row.items() if item is not None}, row.get("role")
        more = _ROLES.get(role, set()) if isinstance(role, str) else set()
        whole = isinstance(role, str) and role in _ROLES and present <= _OF_ALL | more
        calls, content = bool(row.get("tool_calls")), row.get("content") or ""
        if not (whole and isinstance(content, str) and (content.strip() or calls or role == "tool")):
            raise TrainError(
                f'{place}: message {number} is {json.dumps(message)[:200]}, expected {{"role": ..., '
                f'"content": TEXT}} with a role of {", ".join(_ROLES)}'
            )
        messages.append({"role": role, "content": content, **{name: row[name] for name in more & present}})
    return tuple(messages)
