"""A small model with a chat template, a task for it, and a LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import models
import numpy as np
import pytest

from tinylora_edge import runtime
from tinylora_edge.exporters import export_gguf
from tinylora_edge.runtime import TinyLoraLlama
from tinylora_edge.tasks import Completion, Sample, Task

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}a:"


@pytest.fixture(scope="package")
def chat_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a random Llama that renders messages; a byte is a token."""
    folder = tmp_path_factory.mktemp("chat")
    metadata: dict[str, str | int] = {"tokenizer.chat_template": TEMPLATE}
    gguf = models.write_gguf(models.tiny_model("llama"), folder / "tiny.gguf", metadata=metadata)
    return export_gguf(gguf, folder / "bundle").output


@pytest.fixture(scope="package")
def llm(chat_bundle: Path) -> Iterator[TinyLoraLlama]:
    with runtime.load(chat_bundle, engine="llama", n_ctx=64, n_threads=1, n_threads_batch=1) as opened:
        yield opened


@pytest.fixture(scope="package")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the model, strong enough to change answers."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 64)), rng.normal(size=(64, 4)) / 2
    path = tmp_path_factory.mktemp("lora") / "lora.gguf"
    return models.write_lora(path, "llama", {"blk.0.attn_q.weight": (a, b)}, alpha=4.0)


def first_letter(completion: Completion, sample: Sample) -> float:
    """1 for an early letter; it refuses prompts that are not the task's own."""
    assert sample.text.startswith("p"), sample.text
    return float(any(character.isalpha() for character in completion.text[:2]))


@pytest.fixture
def task() -> Task:
    train = [Sample(f"p{i}", f"a{i}") for i in range(80)]
    return Task("own", train, [Sample(f"p{i}", f"a{i}") for i in range(80, 92)], first_letter, max_tokens=6)
