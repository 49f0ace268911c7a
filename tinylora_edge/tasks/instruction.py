"""The obvious instruction for a task: what anybody who looks at the file would write into a prompt.

A vector is worth its training if it does better than such a prompt. The instruction says only what the
training answers show: their labels, or the fields of their JSON with the values that occur.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .rewards import is_text, json_value, label, leaves, number, read_answer
from .sample import CALL_BEGIN
from .task import Task

_LABELS = 200  # labels that an instruction lists at most
_VALUES = 20  # values of a field that it lists at most; if there are more, or few recur, it shows two
_FIELDS = 60  # fields that it lists at most
_SHOWN = 40  # characters of a value that it shows, at most


def instruction(task: Task) -> str | None:
    """Return an instruction for a task's prompts, or None if the answers do not suggest one.

    Answers that call tools need none: the prompt describes the tools.
    """
    answers = [sample.answer.strip() for sample in task.train if sample.answer is not None]
    if not answers or is_text(task.reward) or any(sample.tools or sample.raw for sample in task.train):
        return None
    if task.reward is json_value and not any(answer.startswith(CALL_BEGIN) for answer in answers):
        return _fields([read_answer(answer) for answer in answers])
    labels = sorted({*answers})
    if task.reward is label and len(labels) <= _LABELS:
        return "\n".join(["Answer with one of these labels and nothing else:", *labels])
    if task.reward is number and all("####" not in each and "\\boxed" not in each for each in answers):
        return "Answer with a number and nothing else."
    return None


def _fields(values: Sequence[Any]) -> str | None:
    """Return the instruction of JSON answers: each field with its values, or two of them."""
    found: dict[str, Counter[str]] = {}
    for value in values:
        for path, leaf in reversed([*leaves(value).items()]):
            name = ".".join("[]" if isinstance(step, int) else str(step) for step in path)
            text = leaf if isinstance(leaf, str) else f"{leaf}"
            found.setdefault(name, Counter())[text] += 1
    if not 0 < len(found) <= _FIELDS:
        return None
    kind = "object" if all(isinstance(value, dict) for value in values) else "value"
    nested = " (a.b is the field b of a)" if any("." in name for name in found) else ""
    lines = [f"Answer with a JSON {kind} and nothing else. Its fields{nested}:"]
    for name, texts in sorted(found.items(), key=lambda each: -each[1].total()):
        often = [text for text, _ in texts.most_common()]
        total = texts.total()
        if closed := len(often) <= _VALUES and 2 * len(often) <= total:
            often.sort()
        shown = [text for text in often if len(text) <= _SHOWN][: None if closed else 2]
        examples = f"{': one of ' if closed else ', such as '}{', '.join(shown)}" if shown else ""
        rest = "" if total >= len(values) else " (not in every answer)"
        lines.append(f"{json.dumps(name, ensure_ascii=False)}{rest}{examples}")
    return "\n".join(lines)
