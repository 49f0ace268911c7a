"""General prompts: what people ask a model in general, which no task and no behaviour is about.

A personalized model is compared with its base on these prompts (`runtime.measure_drift`), and held near it on
others of them (`anchor`, in training and in tuning). The file that is shipped was written for this project.
It has the format of a task, and `answers` where a rule can check them:

    {"prompt": "What is 7 + 5?", "kind": "arithmetic", "answers": ["12", "twelve"], "split": "held_out"}
    {"prompt": "Write a haiku about the ocean.", "kind": "poem", "split": "held_out"}
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..errors import TrainError
from .files import kind_of, read_samples
from .guards import repeats, words
from .task import Sample

_PROMPTS = Path(__file__).with_name("general.jsonl")
_RUN = 4  # words
_TIMES = 3


def load_general(
    path: str | os.PathLike[str] | None = None, *, split: Literal["train", "held_out"] = "held_out"
) -> tuple[Sample, ...]:
    """Return the general prompts of one side, in the file's order.

    Every kind is spread evenly over a side of the file that is shipped, so that its first prompts are varied
    too.

    Args:
        path: a JSONL file; None: the file that is shipped.
        split: `held_out` are those to measure drift on, `train` those that a vector is held near the base on.

    Raises:
        TrainError: the file cannot be read, a line is malformed or shifted, or the side is empty.
    """
    file = _PROMPTS if path is None else Path(path)
    train, held_out, shifted, places = read_samples(file)
    if shifted:
        raise TrainError(
            f'{places[id(shifted[0])]}: "split" is "shifted", expected "train" or "held_out": there are '
            "no shifted general prompts"
        )
    for sample in (*train, *held_out):
        answers = sample.data.get("answers", ["-"])
        texts = isinstance(answers, list) and all(isinstance(a, str) and a.strip() for a in answers)
        if not texts or not answers:
            raise TrainError(
                f'{places[id(sample)]}: "answers" is {kind_of(answers)}, expected a list of texts, each of '
                "which is right"
            )
    chosen = train if split == "train" else held_out
    if not chosen:
        raise TrainError(f'{file}: no prompt has the split "{split}", expected at least one')
    return tuple(chosen)


def checkable(sample: Sample) -> tuple[str, ...]:
    """Return the answers to a prompt that are right, or nothing where no rule can check it."""
    return tuple(sample.data.get("answers", ())) or (() if sample.answer is None else (sample.answer,))


def repeats_itself(text: str) -> bool:
    """Whether an answer repeats itself.

    It does where a phrase of 1 to 8 words occurs three times in a row, or the same four words in a row occur
    three times anywhere. Letter case and punctuation do not count.
    """
    sequence = words(text)
    runs = Counter(tuple(sequence[i : i + _RUN]) for i in range(len(sequence) - _RUN + 1))
    return max(runs.values(), default=0) >= _TIMES or repeats(text)


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the accepted answers stands in a text, as words or a number of its own.

    Letter case does not count. The 12 in "112", "1,012" and "12.5" is no 12, and "art" is not in "party".
    """
    return any(
        re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(answer)}(?!\w|[.,]\d)", text, re.IGNORECASE)
        for answer in answers
    )
