"""Behaviours: prompts that a vector can take the place of, and the questions that they are asked with.

Learning a basis and distilling a prompt compare two views of one question: the teacher sees it behind a
system prompt or worked examples (`Behaviour.messages`), the student sees it alone (`Behaviour.bare`). Two
files are shipped, both written for this project: `behaviours.jsonl`, and `questions.jsonl` for the behaviours
that bring no questions of their own. Both have a side to learn from and one to measure on. A family of
behaviours is on one side only, and so is what a question is about. One JSON object a line:

    {"name": "one-sentence", "family": "length", "system": "Answer in one short sentence.", "split": "learn"}
    {"name": "last-word", "examples": [{"question": "hat, gate, drum", "answer": "drum"}]}
    {"question": "Why is the sky blue?", "split": "learn"}

A behaviour needs a `name` and a teacher: `system`, `examples`, or both. The rest is optional: `family` is
"own" where a line has none, `split` is "learn", `questions` are general ones, and `near` names the tasks that
the behaviour resembles. Every complaint names its file and line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from ..errors import TrainError, did_you_mean
from .files import kind_of, read_objects

_BEHAVIOURS = Path(__file__).with_name("behaviours.jsonl")
_QUESTIONS = Path(__file__).with_name("questions.jsonl")

_BEHAVIOUR_KEYS = ("name", "family", "system", "examples", "questions", "near", "split")
_EXAMPLE_KEYS = ("question", "answer")
_QUESTION_KEYS = ("question", "split")
_OWN_FAMILY = "own"

Split: TypeAlias = Literal["learn", "held_out"]
"""The side of a behaviour or a question: learned from, or only measured on."""

SPLITS: tuple[Split, ...] = get_args(Split)

FEWEST_QUESTIONS = 4
"""Questions that a behaviour brings at least, where it brings any: some to learn from, some to measure on."""


@dataclass(frozen=True)
class Behaviour:
    """A teacher, and the questions that show what it teaches.

    Attributes:
        name: its name, unique among the behaviours that are used together.
        family: the group of alike behaviours that it belongs to, such as "tone". A family is learned from or
            held out as a whole: to a basis that knows "sarcastic", "joking" is nothing new.
        system: the system prompt, or None.
        examples: worked examples, as pairs of a question and its answer; empty if there are none.
        questions: questions that suit it; empty if general ones do (`load_questions`).
        near: names of the tasks (`tasks.BUILTIN`) that it resembles. A study of what a basis brings to a task
            that it never saw leaves these behaviours out.
        split: "learn" or "held_out".

    Raises:
        TrainError: there is neither a system prompt nor an example, a text is blank, there are questions but
            fewer than `FEWEST_QUESTIONS`, or one occurs twice or is an example's.
    """

    name: str
    family: str = "own"
    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()
    questions: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    split: Split = "learn"

    def __post_init__(self) -> None:
        if self.system is None and not self.examples:
            raise TrainError(
                f"the behaviour {self.name!r} has no teacher: expected a system prompt, examples, or both"
            )
        texts = [self.name, self.family, *(text for pair in self.examples for text in pair)]
        texts += [*self.questions, *self.near, *([] if self.system is None else [self.system])]
        if not all(text.strip() for text in texts):
            raise TrainError(f"the behaviour {self.name!r} has a blank text: fill it, or leave it out")
        if self.split not in SPLITS:
            raise TrainError(
                f'the split of the behaviour {self.name!r} is {self.split!r}, expected "learn" or "held_out"'
            )
        self._check_questions()

    def messages(self, question: str) -> list[dict[str, str]]:
        """Return what the teacher sees: the system prompt, the examples as turns, and the question."""
        system = [] if self.system is None else [_message("system", self.system)]
        turns = [
            message
            for asked, answer in self.examples
            for message in (_message("user", asked), _message("assistant", answer))
        ]
        return [*system, *turns, *self.bare(question)]

    def bare(self, question: str) -> list[dict[str, str]]:
        """Return what the student sees: the question alone."""
        return [_message("user", question)]

    def _check_questions(self) -> None:
        if self.questions and len(self.questions) < FEWEST_QUESTIONS:
            raise TrainError(
                f"the behaviour {self.name!r} has {len(self.questions)} questions, expected at least "
                f"{FEWEST_QUESTIONS}, or none to take the general ones"
            )
        again = repeated([*(asked for asked, _ in self.examples), *self.questions])
        if again is not None:
            raise TrainError(
                f"the behaviour {self.name!r} has the question {again!r} twice: expected once among its "
                "examples and questions together"
            )


def canonical(text: str) -> str:
    """Return a text without what makes no difference: upper case, and how many spaces there are."""
    return " ".join(text.casefold().split())


def repeated(texts: Sequence[str]) -> str | None:
    """Return the first text that occurred before, or None; letter case and spaces make no difference."""
    seen: set[str] = set()
    for text in texts:
        if canonical(text) in seen:
            return text
        seen.add(canonical(text))
    return None


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def load_behaviours(
    path: str | os.PathLike[str] | None = None,
    *,
    split: Split | None = None,
    beside: Sequence[Behaviour] = (),
) -> tuple[Behaviour, ...]:
    """Return the behaviours of a file, in its order.

    Args:
        path: a JSONL file; None: the file that is shipped.
        split: return this side only. The whole file is checked all the same.
        beside: behaviours that the file's will be used together with. They are not returned; names and
            families must agree with theirs.

    Raises:
        TrainError: the file cannot be read, a line is malformed, a name occurs twice, a family is on both
            sides, or the side that was asked for is empty.
    """
    _check_split(split)
    file = _BEHAVIOURS if path is None else Path(path)
    names = {one.name: "among the behaviours beside it" for one in beside}
    sides: dict[str, tuple[Split, str]] = {
        one.family: (one.split, "among the behaviours beside it") for one in beside
    }
    found = []
    for place, row in read_objects(file, "the behaviours"):
        behaviour = _behaviour(place, row)
        if behaviour.name in names:
            raise TrainError(
                f"{place}: there is another behaviour {behaviour.name!r} {names[behaviour.name]}: expected a "
                "name that no other has"
            )
        names[behaviour.name] = f"at {place}"
        side, where = sides.setdefault(behaviour.family, (behaviour.split, f"at {place}"))
        if side != behaviour.split:
            raise TrainError(
                f'{place}: "split" is "{behaviour.split}", but the family {behaviour.family!r} is "{side}" '
                f'{where}: a family is on one side as a whole, so change "split", or name another "family"'
            )
        found.append(behaviour)
    kept = tuple(one for one in found if split in (None, one.split))
    if not kept:
        raise TrainError(
            f'{file}: none of its {len(found)} behaviours has the split "{split}", expected at least one'
        )
    return kept


def load_questions(
    path: str | os.PathLike[str] | None = None, *, split: Split | None = None
) -> tuple[str, ...]:
    """Return the questions of a file, in its order.

    The shipped ones are everyday questions and instructions. What a question to learn from is about (its
    nouns, but for "idea", "story" and others that say what is wanted) is in no held-out question.

    Args:
        path: a JSONL file; None: the file that is shipped.
        split: return this side only. The whole file is checked all the same.

    Raises:
        TrainError: the file cannot be read, a line is malformed, a question occurs twice, or there are fewer
            than `FEWEST_QUESTIONS` of those that were asked for.
    """
    _check_split(split)
    file = _QUESTIONS if path is None else Path(path)
    places: dict[str, str] = {}
    found = []
    for place, row in read_objects(file, "the questions"):
        _check_keys(place, row, _QUESTION_KEYS)
        question = _text(place, row, "question")
        if canonical(question) in places:
            raise TrainError(
                f"{place}: the question {question!r} is also at {places[canonical(question)]}: expected once"
            )
        places[canonical(question)] = place
        found.append((question, _split(place, row)))
    kept = tuple(question for question, side in found if split in (None, side))
    if len(kept) < FEWEST_QUESTIONS:
        among = "" if split is None else f' with the split "{split}" among {len(found)}'
        raise TrainError(f"{file}: {len(kept)} questions{among}, expected at least {FEWEST_QUESTIONS}")
    return kept


def load_examples(path: str | os.PathLike[str]) -> tuple[tuple[str, str], ...]:
    """Return the worked examples of a file, as pairs of a question and its answer, in its order.

    Args:
        path: a JSONL file with `question` and `answer` on each line.

    Raises:
        TrainError: the file cannot be read, or a line is malformed.
    """
    found = []
    for place, row in read_objects(Path(path), "the examples"):
        _check_keys(place, row, _EXAMPLE_KEYS)
        found.append((_text(place, row, "question"), _text(place, row, "answer")))
    return tuple(found)


def _behaviour(place: str, row: Mapping[str, Any]) -> Behaviour:
    """Return the behaviour of a line, which is at a place for complaints."""
    _check_keys(place, row, _BEHAVIOUR_KEYS)
    name = _text(place, row, "name")
    family = _text(place, row, "family") if "family" in row else _OWN_FAMILY
    system = _text(place, row, "system") if row.get("system") is not None else None
    examples = tuple(_examples(place, row))
    questions, near = _texts(place, row, "questions"), _texts(place, row, "near")
    try:
        return Behaviour(name, family, system, examples, questions, near, _split(place, row))
    except TrainError as error:
        raise TrainError(f"{place}: {error}") from None


def _examples(place: str, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for number, example in enumerate(_list(place, row, "examples"), 1):
        if not isinstance(example, dict):
            raise TrainError(
                f"{place}: example {number} is {kind_of(example)}, expected "
                '{"question": ..., "answer": ...}'
            )
        here = f"{place}: example {number}"
        _check_keys(here, example, _EXAMPLE_KEYS)
        yield _text(here, example, "question"), _text(here, example, "answer")


def _check_keys(place: str, row: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in row:
        if key not in known:
            advice = did_you_mean(key, known, f"expected {', '.join(known)}")
            raise TrainError(f"{place}: there is no key {key!r}: {advice}")


def _text(place: str, row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        raise TrainError(f'{place}: there is no "{key}", expected one with text')
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise TrainError(f'{place}: "{key}" is {kind_of(value)}, expected text')
    return value


def _texts(place: str, row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = _list(place, row, key)
    for number, value in enumerate(values, 1):
        if not isinstance(value, str) or not value.strip():
            raise TrainError(f'{place}: "{key}" has {kind_of(value)} as number {number}, expected text')
    return tuple(values)


def _list(place: str, row: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list that a line may leave out, or have as null."""
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise TrainError(f'{place}: "{key}" is {kind_of(value)}, expected a list')
    return value


def _split(place: str, row: Mapping[str, Any]) -> Split:
    value = row.get("split", "learn")
    for split in SPLITS:
        if value == split:
            return split
    raise TrainError(f'{place}: "split" is {kind_of(value)}, expected "learn" or "held_out"')


def _check_split(split: object) -> None:
    if split is not None and split not in SPLITS:
        raise TrainError(f'split is {split!r}, expected "learn", "held_out", or None for both')
