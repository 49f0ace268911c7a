"""A bundle of a tiny random model and a task that it can learn, in seconds; the world of the TRL engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trl_world

from tinylora_edge.tasks import Sample, Task
from tinylora_edge.train import Options


@pytest.fixture
def options(tiny_weights: Path) -> Options:
    """Of a short GRPO run that begins with a vector: it writes one, whether or not it finds a better one."""
    return Options(
        method="grpo",
        steps=6,
        prompts=4,
        samples=6,
        rank=8,
        lr=0.2,
        validation=16,
        validate_every=3,
        checkpoint_every=2,
        seed=1,
        start=(0.01,) * 896,
        weights=str(tiny_weights),
        dtype="fp32",
        workers=2,
        keep=False,
        evaluate=False,
    )


@pytest.fixture
def short(options: Options) -> Options:
    """Of a short SFT run, which draws nothing to train on: two runs differ by rounding alone."""
    return replace(options, method="sft", steps=4, validate_every=2, checkpoint_every=1, evaluate=False)


@pytest.fixture
def letters_task() -> Task:
    prompts = [Sample(f"prompt {i}", answer=f"answer {i}") for i in range(80)]
    return Task("letters", prompts[:64], prompts[64:], trl_world.letters, max_tokens=6, temperature=1.0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model as `bundle` and, with a tokenizer, as `weights`."""
    return trl_world.prepare(tmp_path_factory.mktemp("trl"))


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Task files as the recipes name them."""
    return trl_world.write_problems(tmp_path_factory.mktemp("problems"))
