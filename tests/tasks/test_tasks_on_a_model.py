"""The real model before any training: each task must leave room, and must not be hopeless."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tinylora_edge.tasks import Completion, Sample, Task, load_task


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path) -> Any:
    from llama_cpp import Llama

    llm = Llama(str(smollm2_gguf), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)
    yield llm
    llm.close()


def completions(model: Any, task: Task, count: int) -> Iterator[tuple[Completion, Sample]]:
    for sample in task.held_out[:count]:
        choice = model.create_chat_completion(
            [*sample.prompt],
            temperature=0.0,
            max_tokens=task.max_tokens,  # type: ignore[list-item]
        )["choices"][0]
        yield Completion(choice["message"]["content"], choice["finish_reason"] == "stop", 0), sample


@pytest.mark.parametrize("name", ["list-lookup", "brevity", "word-sums", "formats"])
def test_the_base_model_scores_neither_nothing_nor_everything(model: Any, name: str) -> None:
    task = load_task(name)
    scores = [task.score(completion, sample) for completion, sample in completions(model, task, 16)]
    assert 0.0 < sum(scores) / len(scores) < 1.0, scores
