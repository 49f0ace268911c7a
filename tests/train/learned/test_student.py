"""The student: what prompts begin with runs once, and a fit goes as far as its answers outweigh a prior."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest
import torch

from tinylora_edge import Bundle
from tinylora_edge.train import learner
from tinylora_edge.train.learned import Lesson, Student
from tinylora_edge.train.learned.distillation import _EFFECT, directions_of, spread_of


def lesson() -> Lesson:
    def tokens(*ids: int) -> np.ndarray:
        return np.array(ids, np.int32)

    told = [tokens(*range(60), 101, 102), tokens(*range(60), 103), tokens(*range(60), 104, 105, 106)]
    bare = [tokens(*range(100, 140), 1, 2), tokens(*range(100, 140), 5), tokens(*range(100, 140), 3, 4, 6)]
    return Lesson("x", told, bare, [tokens(7, 8, 9), tokens(3), tokens(3, 4)])


@pytest.mark.parametrize("plain", [True, False], ids=["from hidden states", "from logits"])
def test_what_prompts_begin_with_runs_once(
    tiny_bundle: Path, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A divergence and a fit are those of whole rows, by less than half of the work."""
    model = models.tiny_model("llama")
    model.set_attn_implementation("eager")
    student = Student(model, Bundle.find(tiny_bundle).basis)
    if not plain:
        monkeypatch.setattr(student, "_head", None)
    tokens: list[int] = []
    counter = model.get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: tokens.append(inputs[0].numel())
    )
    rng = np.random.default_rng(4)
    directions = rng.normal(0, 0.3, (3, *student._zeros.shape)).astype(np.float32)

    def results() -> tuple[float, tuple[float, ...], np.ndarray, int]:
        tokens.clear()
        fit = student.fit(lesson(), steps=3, spread=0.1, directions=directions)
        return student.divergence(lesson(), directions[0]), fit.losses, fit.values, sum(tokens)

    once = results()
    monkeypatch.setattr(learner, "_WORTH", 10**9)
    whole = results()
    counter.remove()
    student.close()
    for each, other in zip(once[:3], whole[:3], strict=True):
        np.testing.assert_allclose(each, other, rtol=1e-4, atol=1e-6)
    assert once[3] < whole[3] / 2
    assert not torch.equal(torch.tensor(once[2]), torch.zeros(3))


def many(dice: np.random.Generator, told: list[np.ndarray] | None = None) -> Lesson:
    """Sixteen questions of four tokens; the teacher is the model itself unless it is told more."""
    bare = [dice.integers(0, 256, 4).astype(np.int32) for _ in range(16)]
    answers = [dice.integers(0, 256, 12).astype(np.int32) for _ in range(16)]
    return Lesson("x", told or bare, bare, answers)


def test_without_a_prior_directions_move_tokens_by_an_effect(tiny_bundle: Path) -> None:
    """A step of one spread in a direction costs half of the effect's square, in the mean of directions."""
    basis = Bundle.find(tiny_bundle).basis
    model = models.tiny_model("llama")
    model.set_attn_implementation("eager")
    student, lesson_ = Student(model, basis), many(np.random.default_rng(3))
    spread = spread_of(basis, student, lesson_, seed=0)
    assert basis.prior is None
    np.testing.assert_array_equal(spread, spread[0, 0] * np.eye(basis.size))
    kls = [student.divergence(lesson_, spread[0, 0] * each) for each in directions_of(basis)]
    student.close()
    assert np.mean(kls) == pytest.approx(_EFFECT**2 / 2, rel=0.4)  # of tokens that were drawn


def test_a_fit_goes_as_far_as_answers_outweigh_the_prior(tiny_bundle: Path) -> None:
    """A narrower prior holds it nearer to 0, and one that allows nothing leaves it there."""
    basis, dice = Bundle.find(tiny_bundle).basis, np.random.default_rng(5)
    model = models.tiny_model("llama")
    model.set_attn_implementation("eager")
    student = Student(model, basis)
    lesson_ = many(dice, told=[dice.integers(0, 256, 9).astype(np.int32) for _ in range(16)])
    fits = [
        student.fit(lesson_, steps=4, spread=spread, directions=directions_of(basis))
        for spread in (1e-4, 0.02, 0.2)
    ]
    student.close()
    norms = [float(np.linalg.norm(fit.values)) for fit in fits]
    assert norms[0] < 1e-3 < norms[1] < norms[2]
    assert fits[0].losses[-1] > fits[1].losses[-1] > fits[2].losses[-1]
    assert fits[0].before == fits[2].before
