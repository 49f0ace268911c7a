"""The file of general prompts. It has the format of a task, and `answers` where a rule can check them.

{"prompt": "What is 7 + 5?", "kind": "arithmetic", "answers": ["12", "twelve"], "split": "held_out"}
{"prompt": "Write a haiku about the ocean.", "kind": "poem", "split": "held_out"}
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from ...errors import TrainError
from .._jsonl import kind_of, read_samples
from ..task import Sample

_PROMPTS = Path(__file__).with_name("prompts.jsonl")


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
