"""The candidate system prompts of the tasks in JSON and in house style: enough, distinct, and fair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tinylora_edge.tasks
from tinylora_edge.tasks import Task
from tinylora_edge.tasks.generated import words as lists
from tinylora_edge.tasks.rewards.guards import words

FOLDER = Path(tinylora_edge.tasks.__file__).parent / "candidates"


@pytest.mark.parametrize("name", ["house-style", "records", "tool-calls"])
def test_candidates(tasks: dict[str, Task], name: str) -> None:
    rows = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]
    assert all(set(row) == {"system"} for row in rows)
    prompts = [row["system"] for row in rows]
    assert len({" ".join(words(prompt)) for prompt in prompts}) == len(prompts) >= 12
    # An example in a prompt is of something else than what is asked.
    measured = {
        word
        for side in (lists.HELD_OUT, lists.SHIFTED)
        for word in (*side.nouns, *map(str.casefold, side.names))
    }
    for prompt in prompts:
        assert not set(words(prompt)) & measured, prompt
