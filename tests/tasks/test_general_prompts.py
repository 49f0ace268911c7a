"""The general prompts that are shipped: how many, how varied, and that nobody trains on them."""

from __future__ import annotations

import pytest
from answers import normalized

from tinylora_edge.tasks import BUILTIN, load_task
from tinylora_edge.tasks.builtin import load_general

ALL = load_general() + load_general(split="train")


@pytest.mark.parametrize("name", [name for name in BUILTIN if name != "gsm8k"])
def test_none_is_a_prompt_of_a_task(name: str) -> None:
    task = load_task(name)
    prompts = {normalized(sample.text) for sample in (*task.train, *task.held_out, *task.shifted)}
    assert not prompts & {normalized(sample.text) for sample in ALL}
