"""The anchor of tuning: candidates pay for moving the model away from its base."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_bundles
import pytest
from tuning_task import PROMPTS, favoured

from tinylora_edge import MicroVector, TrainError, runtime
from tinylora_edge.runtime import RewardLearner, TinyLoraLlama, TuneSettings
from tinylora_edge.runtime.tuning.anchor import ANCHOR_PROMPTS, Anchor, anchor_samples, distance
from tinylora_edge.tasks import Sample
from tinylora_edge.tasks.general import load_general

FAST = TuneSettings(
    prompts=4, held_back=8, check_every=3, effect=None, reach=0.6, anchor=0.5, options={"population": 6}
)
QUICK: dict[str, Any] = {"max_tokens": 5, "n_threads": 1, "sequences": 8}


def run(llm: Any, budget: str, anchor: float, **options: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    options |= {"settings": replace(FAST, anchor=anchor), "report": rows.append, **QUICK}
    RewardLearner(llm, PROMPTS, favoured, **options).run(budget)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows if "reward" in row]


def test_the_distance_by_hand() -> None:
    base = np.log(np.array([0.5, 0.2], np.float32))
    assert distance(base, base) == 0
    found = distance(base, np.log(np.array([0.25, 0.4], np.float32)))
    assert found == pytest.approx(((0.5 - 1 + math.log(2)) + (2 - 1 - math.log(2))) / 2, rel=1e-5)
    assert distance(base, base + np.float32(0.1)) > 0, "likelier answers of the base are no gain"
    assert math.isfinite(distance(base - np.float32(900), base))


def test_its_prompts_are_none_that_drift_is_measured_on() -> None:
    assert len(anchor_samples()) == ANCHOR_PROMPTS
    assert not {s.text for s in anchor_samples()} & {s.text for s in load_general()}


def test_the_base_is_at_no_distance_and_a_long_vector_far(llm: TinyLoraLlama) -> None:
    samples = [Sample(prompt) for prompt in PROMPTS[:4]]
    vectors = [MicroVector.random(llm.basis, norm, seed=1) for norm in (0.2, 2.0)]
    with llm.batch(samples, 12, sequences=8, n_threads=1) as population:
        anchor = Anchor(population, samples, (1, 5))
        zero, short, long = anchor.distances([MicroVector.zeros(llm.basis), *vectors])
    assert zero == 0 < short < long


def test_a_heavy_anchor_keeps_the_search_near_the_base(llm: TinyLoraLlama) -> None:
    free, held = run(llm, "30ktokens", 0.0), run(llm, "30ktokens", 50.0)
    assert not any("anchor" in row for row in free)
    assert all(row["anchor"] >= 0 for row in held)
    assert len(held) > 5
    assert held[-1]["norm"] < free[len(held) - 1]["norm"]


def test_pausing_changes_nothing(llm: TinyLoraLlama, tmp_path: Path) -> None:
    path = tmp_path / "state"
    RewardLearner(llm, PROMPTS, favoured, settings=FAST, path=path, **QUICK).run("8ktokens", last_check=False)
    first = json.loads(path.read_text())["state"]["search"]
    rest = run(llm, "8ktokens", 0.5, path=path)
    whole = run(llm, "40ktokens", 0.5)
    places = {row["step"]: row for row in whole}
    assert first["step"] >= 1
    assert rest
    for row in rest:
        if row["step"] in places:
            for key in ("reward", "anchor", "norm"):
                assert row[key] == places[row["step"]][key]


def test_the_state_of_another_anchor(llm: TinyLoraLlama, tmp_path: Path) -> None:
    run(llm, "8ktokens", 0.5, path=tmp_path / "state")
    with pytest.raises(TrainError, match=r"its anchor is 0\.5, this run's is 0\.0"):
        run(llm, "8ktokens", 0.0, path=tmp_path / "state")


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_a_weight_that_is_none(llm: TinyLoraLlama, weight: float) -> None:
    with pytest.raises(TrainError, match="an anchor weighs at least 0"):
        run(llm, "8ktokens", weight)


def test_in_onnx_too() -> None:
    with runtime.load(onnx_bundles.without_template(), engine="onnx", n_ctx=128, n_threads=1) as onnx:
        assert all(row["anchor"] >= 0 for row in run(onnx, "9ktokens", 0.5))
