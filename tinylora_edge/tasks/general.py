"""General prompts: what people ask a model in general, which no task and no behaviour is about.

A personalized model is compared with its base on these prompts (`runtime.measure_drift`), and held near it on
others of them (`anchor`, in training and in tuning). The file was written for this project. It has the format
of a task, and `answers` where a rule can check them:

    {"prompt": "What is 7 + 5?", "kind": "arithmetic", "answers": ["12", "twelve"], "split": "held_out"}
    {"prompt": "Write a haiku about the ocean.", "kind": "poem", "split": "held_out"}
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from .files import read_samples
from .guards import repeats, words
from .task import Sample

_PROMPTS = Path(__file__).with_name("general.jsonl")
_RUN = 4  # words
_TIMES = 3


def load_general(split: Literal["train", "held_out"] = "held_out") -> tuple[Sample, ...]:
    """Return the general prompts of one side, in order; every kind is spread evenly over a side.

    Args:
        split: `held_out` are those to measure drift on, `train` those that a vector is held near the base on.
    """
    found = read_samples(_PROMPTS)
    return tuple(found.train if split == "train" else found.held_out)


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
