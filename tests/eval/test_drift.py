"""Drift: its arithmetic, the rules that judge answers, and zero, small and large vectors on models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_bundles
import pytest

from tinylora_edge import MicroVector, TrainError, VectorError, runtime
from tinylora_edge.eval import measure_drift
from tinylora_edge.eval.drift import divergence, faults, is_right, repeats_itself, right_answers
from tinylora_edge.runtime import TinyLoraLlama
from tinylora_edge.tasks import Sample

PROMPTS = ["prompt a", "another prompt", Sample("a third", answer="e"), Sample("raw", raw=True)]


class TestArithmetic:
    def test_the_mean_and_its_error_between_answers(self) -> None:
        mean, error = divergence([np.array([math.log(2)]), np.zeros(2)])
        assert mean == pytest.approx(math.log(2) / 3)
        gaps = np.array([math.log(2) - mean, -2 * mean])
        assert error == pytest.approx(math.sqrt(2 * (gaps**2).sum()) / 3)

    def test_it_is_the_divergence_where_the_base_draws(self) -> None:
        rng = np.random.default_rng(0)
        p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
        tokens = rng.choice(5, 40_000, p=p)
        found, error = divergence(np.log(p / q)[tokens].reshape(400, 100))
        assert abs(found - float((p * np.log(p / q)).sum())) < 4 * error

    def test_faults_are_counted(self) -> None:
        assert faults([False], [True]) == {"judged": 1, "base": 0, "vector": 1, "new": 1}


def test_a_longer_vector_drifts_further(llm: TinyLoraLlama) -> None:
    vectors = [MicroVector.random(llm.bases.basis(numbers=13), norm, seed=1) for norm in (0.2, 2.0)]
    own = llm.swap(vectors[0])
    zero, none, short, long = (
        measure_drift(llm, vector, PROMPTS, n_threads=1)
        for vector in (MicroVector.zeros(llm.bases.basis(rank=2)), None, *vectors)
    )
    assert zero.kl == none.kl == zero.repeating["new"] == zero.wrong["new"] == 0
    assert long.kl > short.kl + 3 * long.standard_error
    assert long.prompts == 4
    assert long.wrong["judged"] == 1
    assert llm.vector == own, "measuring changes nothing"
    assert measure_drift(llm, vectors[1], PROMPTS, n_threads=1) == long


def test_what_cannot_be_measured(llm: TinyLoraLlama) -> None:
    with pytest.raises(TrainError, match="no prompts"):
        measure_drift(llm, None, [])
    with pytest.raises(TrainError, match="no prompts"):
        measure_drift(llm, None, PROMPTS, count=0)
    with pytest.raises(VectorError, match="99"):
        measure_drift(llm, MicroVector(np.zeros(99)), PROMPTS)


def test_in_onnx_too() -> None:
    with runtime.load(onnx_bundles.without_template(), engine="onnx", n_ctx=128, n_threads=1) as llm:
        basis = llm.bases.basis(numbers=13)
        vectors = [MicroVector.zeros(basis), MicroVector.random(basis, 2.0, seed=1)]
        zero, long = (measure_drift(llm, vector, PROMPTS) for vector in vectors)
        assert abs(zero.kl) < 1e-4
        assert long.kl > 0.01


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("laugh, laugh, laugh", True),
        ("The old pond. The old pond! The old pond.", True),
        ("We go to the sea. Then we go to the hills. At last we go to the inn.", True),
        ("", False),
        ("very, very good", False),
        ("We go to the sea, and we go to the hills.", False),
        ("An old silent pond, a frog jumps into the pond, splash! Silence again.", False),
        ("One apple, two apples, three apples", False),
    ],
)
def test_what_repeats_itself(text: str, repeats: bool) -> None:
    assert repeats_itself(text) == repeats


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        ("7 + 5 = 12.", ["12"], True),
        ("The sum is twelve!", ["12", "twelve"], True),
        ("(12)", ["12"], True),
        ("It is MARS", ["Mars"], True),
        ("A kilometer has 1,000 meters.", ["1000", "1,000"], True),
        ("It says *Guten  Morgen*", ["guten  morgen"], True),
        *((text, ["12"], False) for text in ("", "112", "1,012", "12.5", "12,000", "0.12", "12th", "a12")),
        ("It is 13.", ["12"], False),
    ],
)
def test_what_is_right(text: str, answers: list[str], right: bool) -> None:
    assert is_right(text, answers) == right


@pytest.mark.parametrize(
    ("data", "known"), [({"answers": "Oslo"}, ("Oslo",)), ({"answers": [4, "four"]}, ("4", "four")), ({}, ())]
)
def test_which_answers_are_right(data: dict[str, Any], known: tuple[str, ...]) -> None:
    assert right_answers(Sample("p", data=data)) == known
