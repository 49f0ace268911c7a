"""`load_task`: its arguments, and what it needs installed."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from answers import said

from tinylora_edge import TrainError
from tinylora_edge.tasks import BUILTIN, load_task


def test_the_names() -> None:
    names = "brevity formats gsm8k house-style list-lookup plain-brevity tool-calls word-sums"
    assert tuple(names.split()) == BUILTIN


def test_arguments_replace_the_tasks_own_settings() -> None:
    task = load_task("list-lookup", reward="max_words(3)", train=7, held_out=3, max_tokens=5, temperature=1.5)
    assert (len(task.train), len(task.held_out), task.max_tokens, task.temperature) == (7, 3, 5, 1.5)
    assert task.score(said("Some clouds."), task.train[0]) == 1.0
    assert task.score(said(f"The last word is {task.train[0].answer}."), task.train[0]) == 0.0


def test_a_callable_is_a_reward() -> None:
    task = load_task("brevity", reward=lambda completion, sample: len(completion.text))
    assert task.score(said("abc"), task.train[0]) == 3.0
    assert task.shaped is None, "it shapes the task's own reward"
    assert load_task("brevity").shaped is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"held_out": 0}, "held_out is 0, expected a whole number of at least 1"),
        ({"held_out": 1.5}, "held_out is 1.5"),
        ({"train": 0}, "train is 0"),
        ({"train": True}, "train is True"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"reward": 5}, "reward is 5, expected a callable or text"),
        ({"reward": "nonsense"}, "there is no reward 'nonsense'"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        load_task("list-lookup", **arguments)


def test_tasks_load_no_engine_and_no_optional_package() -> None:
    code = (
        "import sys; from tinylora_edge.tasks import BUILTIN, load_task\n"
        "for name in BUILTIN: name == 'gsm8k' or load_task(name)\n"
        "heavy = {'torch', 'transformers', 'llama_cpp', 'jsonschema', 'datasets', 'pyarrow'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
