"""The student: what all prompts begin with runs once, and nothing else changes by it."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest
import torch

from tinylora_edge import Bundle
from tinylora_edge.train import learner
from tinylora_edge.train.learned import Lesson, Student


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
