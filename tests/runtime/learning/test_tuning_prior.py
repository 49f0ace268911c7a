"""Tuning with the prior of a learned basis: the search has its shape, and every sigma its effect in nats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support
from planted import PROMPTS, QUICK, favoured

from tinylora_edge import MicroVector, Projection, TrainError, load_bundle
from tinylora_edge.runtime import RewardLearner, TinyLoraLlama
from tinylora_edge.runtime.learning import learner
from tinylora_edge.runtime.learning.search import change
from tinylora_edge.tasks import Sample


def bundle_of(bundle: Path, folder: Path, p: np.ndarray, covariance: np.ndarray | None = None) -> Path:
    bases, mean = load_bundle(bundle).bases, np.full(len(p), 0.1)
    prior = None if covariance is None else (mean, covariance)
    made = bases.with_projection(Projection.learned(bases.factors.modules, p, prior))
    return support.bundle_with(made, bundle / "base.gguf", folder)


def directions(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 14, 2, 2)) / 4


@pytest.fixture
def learned(tiny_bundle: Path, tmp_path: Path) -> Path:
    mixing = np.random.default_rng(3).standard_normal((6, 18)) * np.geomspace(0.1, 0.02, 6)[:, None]
    return bundle_of(tiny_bundle, tmp_path / "learned", directions(6), np.float32(mixing @ mixing.T))


def sigmas(llm: TinyLoraLlama, numbers: int, budget: str = "4ktokens", **options: Any) -> list[float]:
    rows: list[dict[str, Any]] = []
    options = {**QUICK, "basis": llm.bases.basis(numbers=numbers), "report": rows.append, **options}
    RewardLearner(llm, PROMPTS, favoured, **options).run(budget)
    return [row["sigma"] for row in rows if "sigma" in row]


@pytest.mark.parametrize("effect", [0.1, 0.5])
def test_the_first_sigma_has_the_effect(load, learned, effect, monkeypatch):
    monkeypatch.setattr(learner, "_EFFECT", effect)
    # Of 4 vectors and 4 prompts the effect is known to a factor of 2, by the factors of a processor.
    monkeypatch.setattr(learner, "_EFFECT_VECTORS", 24)
    monkeypatch.setattr(learner, "_EFFECT_PROMPTS", 10)
    samples = [Sample(prompt) for prompt in PROMPTS]
    with load(learned) as llm:
        basis, (sigma, *_) = llm.bases.basis(numbers=6), sigmas(llm, 6, budget="15ktokens")
        drawn = np.random.default_rng(9).standard_normal((40, basis.size))
        values = np.float32(sigma * basis.projection.whitening.values(drawn))
        vectors = [MicroVector(v, basis=basis.digest) for v in values]
        with llm.batch(samples, 5, sequences=8, n_threads=1) as batch:
            prompts = batch.encode(samples)
            answers = batch.generate(prompts, max_tokens=5, temperature=1.0, seed=8)
            found = batch.score_each([None, *vectors], prompts, [[each.tokens.tolist()] for each in answers])
        here, *there = (np.concatenate([row for (row,) in each]) for each in found)
        assert change(here, there) == pytest.approx(effect, rel=0.4)


def test_it_is_the_same_for_a_basis_in_other_units(load, tiny_bundle, tmp_path):
    found = []
    for scale in (1, 8):
        with load(bundle_of(tiny_bundle, tmp_path / str(scale), scale * directions(4))) as llm:
            found.append(scale * np.array(sigmas(llm, 4)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_it_starts_at_a_vector_that_is_given(load, learned):
    with load(learned) as llm:
        basis = llm.bases.basis(numbers=6)
        own = MicroVector.random(basis, 0.2, seed=3)
        tuning = RewardLearner(llm, PROMPTS, favoured, start=own, **QUICK)
        z = np.array(tuning.state.search["start"])
        np.testing.assert_allclose(basis.projection.whitening.values(z), own.values, atol=1e-7)
        assert tuning.state.start == own.values.tolist()


def test_a_state_of_another_prior(load, learned, tiny_bundle, tmp_path):
    with load(learned) as llm:
        prior = llm.bases.basis(numbers=6).projection.prior.digest
        sigmas(llm, 6, path=tmp_path / "state")
    plain = bundle_of(tiny_bundle, tmp_path / "plain", directions(6))
    with load(plain) as llm, pytest.raises(TrainError, match=f"its prior is '{prior}', this run's is None"):
        sigmas(llm, 6, path=tmp_path / "state")
