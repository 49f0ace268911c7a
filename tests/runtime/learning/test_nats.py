"""How far vectors move a model: the effect of a sigma, on both engines, and the anchor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_bundles
import pytest
from tuning_task import PROMPTS, favoured

from tinylora_edge import MicroVector, TrainError, runtime
from tinylora_edge.runtime import RewardLearner, TinyLoraLlama, TuneSettings
from tinylora_edge.runtime.learning.nats import (
    ANCHOR_PROMPTS,
    Anchor,
    anchor_samples,
    change,
    distance,
    sigma_of,
)
from tinylora_edge.tasks import Sample
from tinylora_edge.tasks.general import load_general

FAST = TuneSettings(prompts=4, held_back=8, check_every=3, effect=None, reach=0.6, anchor=0.5, population=6)
QUICK: dict[str, Any] = {"max_tokens": 5, "n_threads": 1, "sequences": 8}


def run(llm: Any, budget: str, anchor: float, **options: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    options |= {"settings": replace(FAST, anchor=anchor), "report": rows.append, **QUICK}
    RewardLearner(llm, PROMPTS, favoured, **options).run(budget)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows if "reward" in row]


SAMPLES = [Sample("one two three", raw=True), Sample("quite another text", raw=True), Sample("x", raw=True)]


def test_the_change_is_the_root_mean_square_over_vectors_and_tokens() -> None:
    here = np.array([-1.0, -2.0], np.float32)
    there = [np.array([-1.5, -2.0], np.float32), np.array([-1.0, -4.0], np.float32)]
    assert change(here, there) == pytest.approx(math.sqrt((0.25 + 4.0) / 4))
    assert math.isnan(change(np.zeros(0, np.float32), [np.zeros(0, np.float32)]))
    for bad in (-math.inf, math.nan):
        assert change(here, [np.array([bad, 0.0], np.float32)]) == math.inf, (
            "too large: a smaller one is tried"
        )
        assert math.isnan(change(np.array([bad, 0.0], np.float32), there))


@pytest.mark.parametrize("first", [1e-3, 0.05, 0.2, 3.0])
def test_a_sigma_is_found_above_a_floor_of_noise_and_below_saturation(first: float) -> None:
    asked: list[float] = []

    def measure(sigma: float) -> float:
        asked.append(sigma)
        return math.hypot(0.1, 5 * sigma) / (1 + sigma)

    sigma = sigma_of(0.5, first, measure)
    assert measure(sigma) == pytest.approx(0.5, rel=0.15)
    assert len(asked) <= 5


def test_what_cannot_be_told_changes_nothing() -> None:
    assert sigma_of(0.5, 0.07, lambda sigma: math.nan) == 0.07


def test_llama_scores_what_it_drew(load: Callable[..., TinyLoraLlama], tiny_bundle: Path) -> None:
    with load(tiny_bundle) as llm:
        own, other = (MicroVector.random(llm.basis, 0.4, seed=seed) for seed in (1, 2))
        with llm.batch(SAMPLES, 8, sequences=8, n_threads=1) as batch:
            batch.swap(other)
            drawn = batch.draw(own, SAMPLES, max_tokens=8, seed=(3, 4))
            scored = batch.score_each([own, None, own], SAMPLES, drawn)
            assert batch.vector == other
            batch.swap(own)
            prompts = [llm.encode(sample)[0] for sample in SAMPLES]
            found = batch.generate(prompts, max_tokens=8, temperature=1.0, seed=(3, 4))
    assert [tokens.tolist() for tokens in drawn] == [each.tokens.tolist() for each in found]
    np.testing.assert_allclose(scored[0], np.concatenate([each.logprobs for each in found]), atol=0.02)
    np.testing.assert_array_equal(scored[0], scored[2])
    assert np.abs(scored[0] - scored[1]).max() > 0.05


@pytest.mark.parametrize("sequences", [2, 16])
def test_onnx_scores_what_it_drew(sequences: int) -> None:
    bundle = onnx_bundles.tiny()
    with runtime.load(bundle, engine="onnx", n_ctx=64, n_threads=1) as llm:
        (own,) = onnx_bundles.vectors(bundle, 1)
        with llm.batch(SAMPLES, 6, sequences=sequences, n_threads=1) as batch:
            drawn = batch.draw(own, SAMPLES, max_tokens=6, seed=(3, 4))
            scored = batch.score_each([own, None], SAMPLES, drawn)
            tokens = [llm.encode(sample)[0] for sample in SAMPLES]
            again = batch.draw(own, SAMPLES, max_tokens=6, seed=(3, 4))
        assert [a.tolist() for a in drawn] == [a.tolist() for a in again]
    for vector, found in zip([own, None], scored, strict=True):
        expected = []
        for prompt, answer in zip(tokens, drawn, strict=True):
            for position, token in enumerate(answer.tolist()):
                row = onnx_bundles.logits(bundle, [*prompt, *answer.tolist()[:position]], vector)
                row = row.astype(np.float64) - row.max()
                expected.append(row[token] - np.log(np.exp(row).sum()))
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert len({answer.tobytes() for answer in drawn}) > 1


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


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_a_weight_that_is_none(weight: float) -> None:
    with pytest.raises(TrainError, match="an anchor weighs at least 0"):
        TuneSettings(anchor=weight)


def test_in_onnx_too() -> None:
    with runtime.load(onnx_bundles.without_template(), engine="onnx", n_ctx=128, n_threads=1) as onnx:
        assert all(row["anchor"] >= 0 for row in run(onnx, "9ktokens", 0.5))
