"""A bundle of a tiny random model and a task that it can learn, in seconds; the world of the TRL engine."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import models
import pytest
import shared
import trl_world

from tinylora_edge.tasks import Sample, Task
from tinylora_edge.train import Options


@pytest.fixture
def options(tiny_weights: Path) -> Options:
    """Of a short GRPO run that begins with a vector: it writes one, whether or not it finds a better one."""
    sizes = {"steps": 6, "prompts": 4, "samples": 6, "validation": 16, "validate_every": 3, "workers": 2}
    start = {"rank": 8, "start": (0.01,) * 896, "weights": str(tiny_weights), "dtype": "fp32", "lr": 0.2}
    how = {"method": "grpo", "checkpoint_every": 2, "seed": 1, "keep": False, "evaluate": False}
    return Options(**sizes, **start, **how)


@pytest.fixture
def short(options: Options) -> Options:
    """Of a short SFT run, which draws nothing to train on: two runs differ by rounding alone."""
    return replace(options, method="sft", steps=4, validate_every=2, checkpoint_every=1)


@pytest.fixture
def letters_task() -> Task:
    prompts = [Sample(f"prompt {i}", answer=f"answer {i}") for i in range(80)]
    return Task("letters", prompts[:64], prompts[64:], trl_world.letters, max_tokens=6, temperature=1.0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model as `bundle` and, with a tokenizer, as `weights`."""
    folder, model = tmp_path_factory.mktemp("trl"), models.tiny_model("llama")
    metadata = {"tokenizer.chat_template": trl_world.TEMPLATE}
    shared.export(models.write_gguf(model, folder / "tiny.gguf", metadata=metadata), folder / "bundle")
    trl_world.write_tokenizer(models.write_hf(model, folder / "weights"))
    return folder


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Task files as the recipes name them, with problems enough for a step and a validation."""
    gsm8k = [
        {"question": f"Ann has {n} pens and buys {n + 2}. How many?", "answer": f"Sum.\n#### {2 * n + 2}"}
        for n in range(280)
    ]
    half, folder = r"It is $\boxed{\frac{%d}{2}}$.", tmp_path_factory.mktemp("problems")
    maths = [{"problem": f"What is ${n}/2$?", "solution": half % n} for n in range(400)]
    for task, rows in (("gsm8k", gsm8k), ("math", maths)):
        train, test, made = (folder / f"{name}.jsonl" for name in ("train", "test", task))
        for path, part in ((train, rows[:-6]), (test, rows[-8:])):
            path.write_text("".join(json.dumps(row) + "\n" for row in part))
        script = trl_world.ROOT / "recipes" / "problems.py"
        command = [sys.executable, script, train, "--test", test, "-o", made]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert f"{len(rows) - 8} to train on, 8 held out" in done.stderr
    return {task: folder / f"{task}.jsonl" for task in ("gsm8k", "math")}
