"""Files of candidates: a system prompt, or a worked example, a line.

    {"system": "Answer with one word, the last of the list, and nothing else."}
    {"question": "What is an acorn? Answer in a few words.", "answer": "An acorn is the nut of an oak tree."}

A quick search tries the first system prompts alone, so the likelier ones come first. Examples are for tasks
whose training prompts have no answers; a search shows them in the place of those.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import TrainError, did_you_mean
from ..files import kind_of, read_objects
from ..task import Sample, Task

_FOLDER = Path(__file__).parent
_KINDS = (("system",), ("question", "answer"))


@dataclass(frozen=True)
class Candidates:
    """The system prompts to choose from, and written examples.

    Attributes:
        systems: system prompts, each once, those to try first in front.
        examples: samples with answers, for tasks whose training prompts have none.
    """

    systems: tuple[str, ...] = ()
    examples: tuple[Sample, ...] = ()


def shipped_candidates() -> tuple[str, ...]:
    """Return the names of the tasks that candidates are shipped for, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.jsonl")))


def has_candidates(task: Task) -> bool:
    """Whether candidates are shipped for a task."""
    return _name(task) in shipped_candidates()


def load_candidates(task: Task, path: str | os.PathLike[str] | None = None) -> Candidates:
    """Return the candidates of a task.

    Args:
        task: whose shipped candidates are wanted; `gsm8k:PATH` has those of `gsm8k`.
        path: a JSONL file of your own instead.

    Raises:
        TrainError: none are shipped for the task, the file cannot be read, a line is malformed, or a system
            prompt or a question occurs twice.
    """
    if path is None:
        if not has_candidates(task):
            raise TrainError(
                f"no candidates for a prompt are shipped for task {task.name} (they are for "
                f"{', '.join(shipped_candidates())}): give your own, candidates=load_candidates(task, path), "
                'from a file with {"system": "..."} a line'
            )
        path = _FOLDER / f"{_name(task)}.jsonl"
    places: dict[str, str] = {}
    systems, examples = [], []
    for place, row in read_objects(Path(path), "the candidates"):
        keys = _keys(place, row)
        texts = [_text(place, row, key) for key in keys]
        if texts[0] in places:
            raise TrainError(f'{place}: "{keys[0]}" is the same as at {places[texts[0]]}: expected once')
        places[texts[0]] = place
        if keys == ("system",):
            systems.append(texts[0])
        else:
            examples.append(Sample(texts[0], texts[1]))
    return Candidates(tuple(systems), tuple(examples))


def any_candidates(task: Task, path: str | os.PathLike[str] | None = None) -> Candidates:
    """Return the candidates of a task, and none where none are shipped for it.

    Args:
        task, path: as for `load_candidates`.

    Raises:
        TrainError: a file cannot be read, or is malformed.
    """
    return Candidates() if path is None and not has_candidates(task) else load_candidates(task, path)


def _name(task: Task) -> str:
    return task.name.partition(":")[0]


def _keys(place: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    for keys in _KINDS:
        if set(row) == set(keys):
            return keys
    known = [key for keys in _KINDS for key in keys]
    for key in row:
        if key not in known:
            advice = did_you_mean(key, known, f"expected {', '.join(known)}")
            raise TrainError(f"{place}: there is no key {key!r}: {advice}")
    raise TrainError(
        f'{place}: found {_named(list(row))}, expected either "system", or "question" and "answer"'
    )


def _named(keys: Sequence[str]) -> str:
    return " and ".join(f'"{key}"' for key in keys) or "no key"


def _text(place: str, row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise TrainError(f'{place}: "{key}" is {kind_of(value)}, expected text')
    return value
