"""The anchor of training: general prompts pull v to the base, beside what a task asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinylora_edge import TrainError
from tinylora_edge.tasks import Task
from tinylora_edge.train import Options, TrainSettings, train

FAST = TrainSettings(
    steps=8, prompts=4, validate_every=4, validation=16, checkpoint_every=2, lr=0.2, anneal=1, seed=1
)


@pytest.fixture
def options(short: Options) -> Options:
    return replace(short, settings=FAST, workers=2)


def steps(bundle: Path, task: Task, output: Path, options: Options, **more: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    train(bundle, task, output, options=options, report=rows.append, **more)
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows if "step" in row]


def test_the_harder_the_pull_the_nearer_v_stays(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    found = {}
    for weight in (0.0, 1.0, 100.0):
        chosen = replace(options, settings=replace(FAST, anchor=weight))
        found[weight] = steps(tiny_bundle, letters_task, tmp_path / f"{weight}", chosen)
    assert "anchor" not in found[0.0][0]
    assert found[1.0][0]["anchor"] == pytest.approx(0, abs=1e-6), "the base is at no distance from itself"
    last = {weight: rows[-1] for weight, rows in found.items()}
    assert last[100.0]["norm"] < last[1.0]["norm"] < last[0.0]["norm"]
    assert last[100.0]["anchor"] < last[1.0]["anchor"]


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_an_interrupted_run_goes_on_with_the_same_answers_of_the_base(
    method: str, tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    chosen = replace(options, method=method, settings=replace(FAST, steps=4, anchor=0.5))

    class StopError(Exception):
        pass

    def crash(metrics: dict[str, Any]) -> None:
        if metrics.get("step") == 3:
            raise StopError

    with pytest.raises(StopError):
        train(tiny_bundle, letters_task, tmp_path / "v", options=chosen, report=crash)
    rest = steps(tiny_bundle, letters_task, tmp_path / "v", chosen, resume=True)
    whole = steps(tiny_bundle, letters_task, tmp_path / "w", chosen)
    assert rest == whole[2:]
    assert (tmp_path / "v").read_bytes() == (tmp_path / "w").read_bytes()


@pytest.mark.parametrize("weight", [-1.0, np.inf, np.nan])
def test_a_weight_that_is_none(weight: float) -> None:
    with pytest.raises(TrainError, match="an anchor weighs at least 0"):
        Options(settings=TrainSettings(anchor=weight))
