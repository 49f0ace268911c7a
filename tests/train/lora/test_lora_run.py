"""Whole runs that train a LoRA in v's place, on a tiny model: discipline, resumption, bad input."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import models
import numpy as np
import pytest

from tinylora_edge import Bundle, TrainError
from tinylora_edge.formats.gguf import GGUFFile
from tinylora_edge.tasks import Task
from tinylora_edge.train import Options, TrainSettings, train
from tinylora_edge.train.lora.shape import LoraShape

FAST = TrainSettings(
    steps=4, prompts=4, validate_every=2, validation=16, checkpoint_every=1, trials=(1.0, 0.1), trial_steps=2
)


@pytest.fixture
def options(short: Options) -> Options:
    return replace(short, method="grpo", settings=FAST, samples=6, lora=2)


def rows_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what differs between two runs of the same thing: times."""
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows]


def test_learns_and_is_written_for_stock_llama(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = []
    settings = replace(FAST, steps=24, prompts=8, validate_every=8, lr=0.01, trials=())
    longer = replace(options, settings=settings, samples=8, evaluate=True, workers=2)
    outcome = train(tiny_bundle, letters_task, tmp_path / "lora.gguf", options=longer, report=rows.append)
    steps = [row for row in rows if "step" in row]
    sampled = [row["reward"] for row in steps]
    assert np.mean(sampled[-8:]) > np.mean(sampled[:8]) + 0.1
    assert all(row["mismatch"] < 0.05 for row in steps if "grad" in row)
    assert outcome.result.best_step > 0
    assert outcome.comparison is not None
    assert outcome.comparison.difference > 0
    basis = Bundle.find(tiny_bundle).basis
    shape = LoraShape.on(basis, 2)
    manifest = json.loads((tmp_path / "lora.gguf.json").read_text())
    assert manifest["lora"] == {"rank": 2, "numbers": shape.size}
    assert (manifest["basis"], manifest["held_out"]["n"]) == (basis.digest, len(letters_task.held_out))
    assert "values" not in manifest
    written = {name: tuple(t.shape) for name, t in GGUFFile(outcome.path).tensors.items()}
    assert len(written) == 2 * len(basis.modules)
    assert written["blk.0.attn_k.weight.lora_a"][0] == written["blk.0.attn_k.weight.lora_b"][1] == 2
    found = []
    for path in (None, str(outcome.path)):
        stock: dict[str, Any] = {"n_ctx": 64, "n_threads": 1, "logits_all": True, "verbose": False}
        llm = llama_cpp.Llama(str(tiny_bundle / "base.gguf"), lora_path=path, **stock)
        found.append(models.llama_logits(llm, [256, *range(40, 52)]))
        llm.close()
    assert np.abs(found[1] - found[0]).max() > 0.1


@pytest.mark.parametrize("at", ["trial", 2])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    at: int | str, tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    """Stopped while step sizes are tried, all of them are tried again; afterwards none is."""
    whole: list[dict[str, Any]] = []

    def interrupt(metrics: dict[str, Any]) -> None:
        if at in (metrics.get("step"), metrics.get("event")):
            signal.raise_signal(signal.SIGINT)

    outcome = train(tiny_bundle, letters_task, tmp_path / "v", options=options, report=interrupt)
    assert (outcome.result.stopped, outcome.result.steps) == ("interrupted", 0 if at == "trial" else 2)
    with pytest.raises(TrainError, match="another run: its lora is 2, this run's is 3"):
        train(tiny_bundle, letters_task, tmp_path / "v", options=replace(options, lora=3), resume=True)
    rest: list[dict[str, Any]] = []
    train(tiny_bundle, letters_task, tmp_path / "v", options=options, resume=True, report=rest.append)
    train(tiny_bundle, letters_task, tmp_path / "w", options=options, report=whole.append)
    assert (tmp_path / "v").read_bytes() == (tmp_path / "w").read_bytes()
    expected = rows_of(whole) if at == "trial" else [row for row in rows_of(whole) if row.get("step", 0) > 2]
    assert rows_of(rest) == expected
    assert len([row for row in whole if row.get("event") == "trial"]) == 2


@pytest.mark.parametrize("change", [{"rollouts": "hf"}, {"half_copy": True}, {"method": "sft"}])
def test_other_ways_to_draw_and_to_learn(
    change: dict[str, Any], tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = []
    settings = replace(FAST, steps=2, lr=0.02, trials=(), anchor=0.1 if "method" in change else 0.0)
    changed = replace(options, **{"settings": settings, **change})
    outcome = train(tiny_bundle, letters_task, tmp_path / "v", options=changed, report=rows.append)
    learned = [row for row in rows if "grad" in row]
    assert outcome.path.stat().st_size > 10_000
    assert len(learned) == 2
    if "method" not in change:
        assert all(row["mismatch"] < 0.05 for row in learned)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": 0}, "a LoRA has a rank of 1 or more, not 0"),
        ({"settings": replace(FAST, trials=(1.0, 0.0))}, r"multiples above 0, not at 0\.0"),
        ({"settings": replace(FAST, trial_steps=0)}, "for 1 step or more, not for 0"),
    ],
)
def test_options_that_are_none(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        Options(**change)
