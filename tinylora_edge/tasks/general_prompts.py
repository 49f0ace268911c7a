"""General prompts: what people ask a model in general, which no task and no behaviour is about.

A personalized model is compared with its base on these prompts (`eval.measure_drift`), and rehearses
others of them in training (`Options.keep`). The file was written for this project. It has the format of a
task, and `answers` where a rule can check them:

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

_PROMPTS = Path(__file__).with_name("general_prompts.jsonl")
_RUN = 4  # words
_TIMES = 3


def load_general(split: Literal["train", "held_out"] = "held_out") -> tuple[Sample, ...]:
    """Return the general prompts to measure drift on, or (`train`) those to rehearse."""
    found = read_samples(_PROMPTS)
    return tuple(found.train if split == "train" else found.held_out)


def checkable(sample: Sample) -> tuple[str, ...]:
    """Return the answers to a prompt that are right, or nothing where no rule can check it."""
    return tuple(sample.data.get("answers", ())) or (() if sample.answer is None else (sample.answer,))


def repeats_itself(text: str) -> bool:
    """Whether up to 8 words occur three times in a row, or the same four words three times anywhere."""
    sequence = words(text)
    runs = Counter(tuple(sequence[i : i + _RUN]) for i in range(len(sequence) - _RUN + 1))
    return max(runs.values(), default=0) >= _TIMES or repeats(text)


def is_right(text: str, answers: Sequence[str]) -> bool:
    """Whether an accepted answer stands in a text, as words or a number of its own: 112 has no 12."""
    return any(
        re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(answer)}(?!\w|[.,]\d)", text, re.IGNORECASE)
        for answer in answers
    )
