"""Tuning with the prior of a learned basis: the search has its shape, and every sigma its effect in nats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_bundles
import pytest
import support
from tuning_task import PROMPTS, favoured

from tinylora_edge import Basis, MicroVector, TrainError, load_bundle, runtime
from tinylora_edge.runtime import RewardLearner, TinyLoraLlama, TuneSettings
from tinylora_edge.runtime.learning.search import change, spread_of
from tinylora_edge.tasks import Sample

FAST = TuneSettings(prompts=4, held_back=8, check_every=3, population=6)
QUICK: dict[str, Any] = {"max_tokens": 5, "settings": FAST, "n_threads": 1, "sequences": 8}


def covariance_of(size: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((size, 3 * size)) * np.geomspace(0.1, 0.02, size)[:, None]
    return (mixing @ mixing.T).astype(np.float32)


def with_prior(basis: Basis, covariance: np.ndarray) -> Basis:
    return replace(basis, prior_mean=np.full(basis.size, 0.1, np.float32), prior_covariance=covariance)


@pytest.fixture
def learned(tiny_bundles: dict[str, Path], tmp_path: Path) -> Path:
    basis = load_bundle(tiny_bundles["dense"]).basis
    return support.rebased(tiny_bundles["dense"], with_prior(basis, covariance_of(6)), tmp_path / "learned")


def rows_of(llm: TinyLoraLlama, budget: str = "4ktokens", **options: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    RewardLearner(llm, PROMPTS, favoured, report=rows.append, **{**QUICK, **options}).run(budget)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


class TestEffect:
    def measured(self, llm: Any, sigma: float) -> float:
        samples = [Sample(prompt) for prompt in PROMPTS]
        rng = np.random.default_rng(9)
        whitened = llm.basis.whitening.values(rng.standard_normal((40, llm.basis.size)))
        shape = llm.basis.groups, llm.basis.u
        vectors = [MicroVector((sigma * v).astype(np.float32).reshape(shape)) for v in whitened]
        with llm.batch(samples, 5, sequences=8, n_threads=1) as batch:
            prompts = batch.encode(samples)
            drawn = batch.generate(prompts, max_tokens=5, temperature=1.0, seed=8)
            found = batch.score_each([None, *vectors], prompts, [[each.tokens.tolist()] for each in drawn])
            here, *there = (np.concatenate([row for (row,) in each]) for each in found)
            return change(here, there)

    @pytest.mark.parametrize("effect", [0.1, 0.5])
    def test_the_first_sigma_has_the_effect(
        self, load: Callable[..., TinyLoraLlama], learned: Path, effect: float
    ) -> None:
        with load(learned) as llm:
            start = rows_of(llm, settings=replace(FAST, effect=effect))[0]
            assert self.measured(llm, start["sigma"]) == pytest.approx(effect, rel=0.4)

    def test_in_onnx_too(self) -> None:
        with runtime.load(onnx_bundles.without_template(), engine="onnx", n_ctx=64, n_threads=1) as llm:
            start = rows_of(llm)[0]
            assert 0.25 < self.measured(llm, start["sigma"]) < 1  # 20 tokens of answers tell no more

    def test_it_is_the_same_for_a_basis_in_other_units(
        self, load: Callable[..., TinyLoraLlama], tiny_bundles: dict[str, Path], tmp_path: Path
    ) -> None:
        basis = load_bundle(tiny_bundles["dense"]).basis
        p = np.random.default_rng(0).standard_normal((4, len(basis.modules), 2, 2)) / 4
        found = []
        for scale in (1, 8):
            made = basis.with_projections(scale * p)
            bundle = support.rebased(tiny_bundles["dense"], made, tmp_path / str(scale))
            with load(bundle) as llm:
                rows = rows_of(llm)
            found.append([row["sigma"] * scale for row in rows if "sigma" in row])
        np.testing.assert_allclose(found[0], found[1], rtol=1e-6)

    @pytest.mark.parametrize("effect", [0.0, -1.0, float("nan"), float("inf")])
    def test_an_effect_that_is_none(self, effect: float) -> None:
        with pytest.raises(TrainError, match="effect of more than 0 nats, not of"):
            TuneSettings(effect=effect)


class TestShape:
    def test_a_prior_is_a_basis_of_its_whitened_directions(
        self,
        load: Callable[..., TinyLoraLlama],
        tiny_bundles: dict[str, Path],
        tmp_path: Path,
    ) -> None:
        basis = load_bundle(tiny_bundles["dense"]).basis
        p = np.random.default_rng(0).standard_normal((4, len(basis.modules), 2, 2)).astype(np.float32)
        prior = np.zeros(4), covariance_of(4)
        learned = basis.with_projections(p, prior=prior)
        factor = learned.whitening.matrix
        assert factor is not None
        mixed = basis.with_projections(np.einsum("ij,i...->j...", factor, p))
        assert spread_of(learned) == pytest.approx(spread_of(mixed), rel=1e-5)
        settings = replace(FAST, effect=None, reach=0.6)
        found, means = [], []
        for name, each in (("learned", learned), ("mixed", mixed)):
            with load(support.rebased(tiny_bundles["dense"], each, tmp_path / name)) as llm:
                tuning = RewardLearner(llm, PROMPTS, favoured, **{**QUICK, "settings": settings})
                result = tuning.run("3ktokens")
                assert result.steps >= 3
                found.append((result.start_score, result.score, result.steps))
                means.append(result.vector.values.reshape(-1))
        assert found[0] == found[1]
        np.testing.assert_allclose(means[0], factor @ means[1], rtol=1e-4, atol=1e-5)

    def test_an_isotropic_prior_changes_nothing(
        self, load: Callable[..., TinyLoraLlama], tiny_bundles: dict[str, Path], tmp_path: Path
    ) -> None:
        basis = load_bundle(tiny_bundles["dense"]).basis
        round_one = with_prior(basis, np.float32(0.003) * np.eye(6, dtype=np.float32))
        bundle = support.rebased(tiny_bundles["dense"], round_one, tmp_path / "round")
        with load(bundle) as llm, load(tiny_bundles["dense"]) as plain:
            assert rows_of(llm) == rows_of(plain)

    def test_it_starts_at_a_vector_that_is_given(
        self, load: Callable[..., TinyLoraLlama], learned: Path
    ) -> None:
        with load(learned) as llm:
            own = MicroVector.random(llm.basis, 0.2, seed=3)
            tuning = RewardLearner(llm, PROMPTS, favoured, start=own, **QUICK)
            z = np.array(tuning.state.search["mean"])
            np.testing.assert_allclose(llm.basis.whitening.values(z), own.values.reshape(-1), atol=1e-7)
            assert tuning.state.start == own.values.reshape(-1).tolist()
            rows: list[dict[str, Any]] = []
            tuning = RewardLearner(llm, PROMPTS, favoured, start=own, report=rows.append, **QUICK)
            found = tuning.run("5ktokens")
            assert rows[0]["check"] == found.start_score
            assert found.steps >= 2
            assert found.improved or found.vector == own


class TestStates:
    def test_of_another_prior(
        self, load: Callable[..., TinyLoraLlama], learned: Path, tiny_bundles: dict[str, Path], tmp_path: Path
    ) -> None:
        state = tmp_path / "state"
        with load(learned) as llm:
            RewardLearner(llm, PROMPTS, favoured, path=state, **QUICK).run("4ktokens")
            digest = llm.basis.prior.digest if llm.basis.prior else ""
        with (
            load(tiny_bundles["dense"]) as llm,
            pytest.raises(TrainError, match=f"its prior is '{digest}', this run's is None"),
        ):
            RewardLearner(llm, PROMPTS, favoured, path=state, **QUICK)


def test_the_real_model_with_a_prior(smollm2_bundle: Path, tmp_path: Path) -> None:
    basis = load_bundle(smollm2_bundle).basis
    p = np.random.default_rng(0).standard_normal((13, 210, 2, 2)) * 0.14
    made = basis.with_projections(p, prior=(np.zeros(13), covariance_of(13)))
    rows: list[dict[str, Any]] = []
    with runtime.load(support.rebased(smollm2_bundle, made, tmp_path / "learned"), n_ctx=64) as llm:
        tuning = RewardLearner(
            llm,
            ["What is a river?", "What is rain?", "Name a fruit.", "What is snow?", "Say hello.", "Count."],
            lambda completion, sample: -float(len(completion.text)),
            settings=TuneSettings(prompts=1, population=4),
            max_tokens=6,
            report=rows.append,
            n_threads=1,
        )
        found = tuning.run("4ktokens")
        assert llm.basis.values(found.vector).shape == (1, 13)
    assert found.steps >= 2
    assert 0.005 < rows[0]["sigma"] < 1
