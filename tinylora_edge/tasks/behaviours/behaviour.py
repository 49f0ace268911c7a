"""A behaviour: what a system prompt or worked examples make of a model's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from ...errors import TrainError

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
