"""Training prompts of many phrasings: right answers, and nothing of what they are measured on."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import support

from tinylora_edge.tasks import Completion, load_task
from tinylora_edge.tasks.generated import _word_tasks


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return support.script(Path(__file__).parents[2] / "benchmarks/_varied.py")


@pytest.mark.parametrize("name", ["list-lookup", "word-sums"])
def test_prompts_are_varied_and_their_answers_right(module: ModuleType, name: str) -> None:
    task = load_task(name, seed=3, train=300)
    varied = module.varied(task, 3)
    texts = [sample.text for sample in varied.train]

    def completion(text: str) -> Completion:
        return Completion(text, tokens=8, ended=True)

    assert (len(set(texts)), varied.held_out, varied.shifted) == (300, task.held_out, task.shifted)
    for sample in varied.train:
        assert varied.reward(completion(str(sample.answer)), sample) == 1.0, sample
        assert varied.reward(completion("none of these"), sample) == 0.0, sample
    assert texts != [sample.text for sample in module.varied(task, 4).train]
    kinds = {re.sub(r"[a-z]+|[0-9]+", "x", text.split(",")[0]) for text in texts}
    assert len(kinds) >= 6, "phrasings, as far as their first words tell them apart"


def test_no_phrasing_is_that_of_a_shifted_prompt(module: ModuleType) -> None:
    shifted = {*_word_tasks._SHIFTED_LOOKUPS, *(question for question, _ in _word_tasks._SHIFTED_SUMS)}
    assert shifted.isdisjoint({*module._LOOKUPS, *module._SUMS})


def test_a_task_of_one_phrasing_is_refused(module: ModuleType) -> None:
    with pytest.raises(SystemExit, match="brevity has one phrasing here: choose list-lookup or word-sums"):
        module.varied(load_task("brevity"), 0)
