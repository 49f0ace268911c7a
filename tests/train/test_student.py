"""The student: its divergence, what it computes once, its device, and how far a fit goes."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest
import support
import torch

from tinylora_edge import Basis, load_bundle
from tinylora_edge.runtime.learning.contrast import Lesson
from tinylora_edge.train import learner
from tinylora_edge.train.distill import _EFFECT, spread_of
from tinylora_edge.train.learner import ForwardKL
from tinylora_edge.train.student import Student


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
    factors = load_bundle(tiny_bundle).factors
    pupil = Student(model, Basis(factors, support.learned(factors, 3, scale=0.3)))
    if not plain:
        monkeypatch.setattr(pupil, "_head", None)
    tokens: list[int] = []
    counter = model.get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: tokens.append(inputs[0].numel())
    )

    def results() -> tuple[list[float], np.ndarray, int]:
        tokens.clear()
        values, losses = pupil.fit(lesson(), steps=3, spread=0.1 * np.eye(3))
        return losses, values, sum(tokens)

    once = results()
    monkeypatch.setattr(learner, "_WORTH", 10**9)
    whole = results()
    counter.remove()
    pupil.close()
    for each, other in zip(once[:2], whole[:2], strict=True):
        np.testing.assert_allclose(each, other, rtol=1e-4, atol=1e-6)
    assert once[2] < whole[2] / 2
    assert once[1].any()


def many(dice: np.random.Generator, told: list[np.ndarray] | None = None) -> Lesson:
    """Sixteen questions of four tokens; the teacher is the model itself unless it is told more."""
    bare = [dice.integers(0, 256, 4).astype(np.int32) for _ in range(16)]
    answers = [dice.integers(0, 256, 12).astype(np.int32) for _ in range(16)]
    return Lesson("x", told or bare, bare, answers)


def divergence(pupil: Student, lesson: Lesson, r: np.ndarray) -> float:
    with torch.no_grad():
        return float(pupil._loss(lesson, pupil._teacher(lesson), torch.from_numpy(r)))


def test_without_a_prior_directions_move_tokens_by_an_effect(tiny_bundle: Path) -> None:
    """A step of one spread in a direction costs half of the effect's square, in the mean of directions."""
    basis = load_bundle(tiny_bundle).basis(numbers=13)
    model = models.tiny_model("llama")
    model.set_attn_implementation("eager")
    pupil, lesson_ = Student(model, basis), many(np.random.default_rng(3))
    spread = spread_of(basis, pupil, lesson_, seed=0)
    assert basis.prior is None
    np.testing.assert_array_equal(spread, spread[0, 0] * np.eye(basis.size))
    kls = [divergence(pupil, lesson_, basis.R(each)) for each in spread.astype(np.float32)]
    pupil.close()
    assert np.mean(kls) == pytest.approx(_EFFECT**2 / 2, rel=0.4)  # of tokens that were drawn


def test_a_fit_goes_as_far_as_answers_outweigh_the_prior(tiny_bundle: Path) -> None:
    """A narrower prior holds it nearer to 0, and one that allows nothing leaves it there."""
    basis, dice = load_bundle(tiny_bundle).basis(numbers=13), np.random.default_rng(5)
    model = models.tiny_model("llama")
    model.set_attn_implementation("eager")
    pupil = Student(model, basis)
    lesson_ = many(dice, told=[dice.integers(0, 256, 9).astype(np.int32) for _ in range(16)])
    fits = [pupil.fit(lesson_, steps=4, spread=each * np.eye(basis.size)) for each in (1e-4, 0.02, 0.2)]
    pupil.close()
    norms = [float(np.linalg.norm(values)) for values, _ in fits]
    assert norms[0] < 1e-3 < norms[1] < norms[2]
    assert fits[0][1][-1] > fits[1][1][-1] > fits[2][1][-1]
    assert fits[0][1][0] == fits[2][1][0], "the bare model"


# The divergence over the vocabulary: value and gradient against autograd in float64


@pytest.fixture
def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(7, 8), torch.randn(7, 8), torch.randn(50, 8)


def reference(h: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    target, own = (torch.log_softmax(each @ weight.T, -1) for each in (teacher, h))
    return (target.exp() * (target - own)).sum(-1)


@pytest.mark.parametrize("chunk", [1 << 24, 300, 1], ids=["whole", "three rows", "a row"])
def test_it_is_the_divergence_and_its_gradient(parts, chunk, monkeypatch):
    monkeypatch.setattr(learner, "_CHUNK", chunk)
    h, teacher, weight = parts
    own = h.clone().requires_grad_(True)
    found = ForwardKL.apply(own, teacher, weight)
    (found * torch.arange(1.0, 8)).sum().backward()
    exact = h.double().requires_grad_(True)
    expected = reference(exact, teacher.double(), weight.double())
    (expected * torch.arange(1.0, 8)).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)
