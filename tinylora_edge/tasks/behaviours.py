"""Behaviours: prompts that a vector can replace, and questions that show what they do.

Learning directions compares two views of a question: the teacher sees it behind a system prompt or worked
examples (`Behaviour.prompted`), the student sees it alone. Two files are shipped, both written for this
project: `behaviours.jsonl`, and `questions.jsonl` for the behaviours that have no questions of their own. A
file of your own has one JSON object a line, with a `name`, a teacher (`system`, `examples`, or both), and
perhaps `questions`:

    {"name": "one-sentence", "system": "Answer in one short sentence."}
    {"name": "last-word", "examples": [{"question": "hat, gate, drum", "answer": "drum"}]}
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import TrainError
from ..jsonio import restored
from .files import read_objects
from .sample import Sample
from .task import Preamble

_BEHAVIOURS = Path(__file__).with_name("behaviours.jsonl")
_QUESTIONS = Path(__file__).with_name("questions.jsonl")


@dataclass(frozen=True)
class Behaviour:
    """A teacher, and questions that show what it teaches; without any, those of `load_questions` do.

    `name` is unique among the behaviours that are used together. Each of the `examples` has a `question` and
    its `answer`.

    Raises:
        TrainError: there is neither a system prompt nor an example, an example has other keys, or a text is
            blank.
    """

    name: str
    system: str | None = None
    examples: list[dict[str, str]] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        whose = f"the behaviour {self.name!r} has"
        if self.system is None and not self.examples:
            raise TrainError(f"{whose} no teacher: expected a system prompt, examples, or both")
        for example in self.examples:
            if example.keys() != {"question", "answer"}:
                raise TrainError(f"an example has {', '.join(example)}: expected question and answer")
        texts = [self.name, "none" if self.system is None else self.system, *self.questions]
        texts += [text for example in self.examples for text in example.values()]
        if not all(text.strip() for text in texts):
            raise TrainError(f"{whose} a blank text: fill it, or leave it out")

    def prompted(self, question: str) -> Sample:
        """Return what the teacher sees: the system prompt, the examples as turns, and the question."""
        examples = (Sample(example["question"], example["answer"]) for example in self.examples)
        return Preamble(self.system, tuple(examples)).before(Sample(question))


def load_behaviours(path: str | os.PathLike[str] | None = None) -> tuple[Behaviour, ...]:
    """Return the behaviours of a file, or the shipped ones. TrainError: a line is malformed, or a name is
    there twice."""
    file = _BEHAVIOURS if path is None else Path(path)
    found: dict[str, Behaviour] = {}
    for place, row in read_objects(file, "the behaviours"):
        try:
            behaviour = restored(Behaviour, row)
        except (ValueError, TrainError) as error:
            raise TrainError(f"{place}: {error}") from None
        if behaviour.name in found:
            raise TrainError(f"{place}: there is another behaviour {behaviour.name!r}: expected another name")
        found[behaviour.name] = behaviour
    return tuple(found.values())


def load_questions() -> tuple[str, ...]:
    """Return the shipped questions, in order: everyday ones, and instructions."""
    return tuple(row["question"] for _, row in read_objects(_QUESTIONS, "the questions"))
