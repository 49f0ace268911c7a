"""The device of a student: named or found, and a pass computes there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import models
import numpy as np
import pytest
import torch

from tinylora_edge import Bundle, TrainError
from tinylora_edge.train.learned import Lesson, Student, learn, student
from tinylora_edge.train.learned.device import find_device


def lesson() -> Lesson:
    def tokens(*ids: int) -> np.ndarray:
        return np.array(ids, np.int32)

    told = [tokens(1, 2, 3, 4), tokens(4, 5, 6)]
    return Lesson("x", told, [tokens(1, 2), tokens(5)], [tokens(7, 8, 9), tokens(3, 4)])


@pytest.fixture
def made(tiny_bundle: Path) -> Iterator[tuple[torch.nn.Module, Student]]:
    model = models.tiny_model("llama")
    model.set_attn_implementation("eager")
    found = Student(model, Bundle.find(tiny_bundle).basis)
    yield model, found
    found.close()


def test_a_device_is_named_or_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device() == torch.device("cpu")
    for name in ("meta", "toaster"):  # the one holds no data, the other is none
        with pytest.raises(TrainError, match=f"cannot compute on device '{name}' here: .* such as cpu"):
            find_device(name)


def test_a_device_that_is_not_there_leaves_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="device 'toaster'"):
        learn(tiny_bundle, tmp_path / "folder", device="toaster")
    assert list(tmp_path.iterdir()) == []


def test_slopes_come_back_to_the_host(made: tuple[torch.nn.Module, Student]) -> None:
    slopes = made[1].slopes(lesson(), seed=(0, 1))
    assert slopes.divergence.shape == slopes.score.shape == (2, 14, 2, 2)
    assert slopes.before > 0
    assert slopes.tokens.tolist() == [3, 2]
    assert np.isfinite(slopes.divergence).all()


@pytest.mark.parametrize("plain", [True, False], ids=["from hidden states", "from logits"])
def test_a_pass_computes_on_the_device_of_the_model(
    made: tuple[torch.nn.Module, Student], tiny_bundle: Path, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without data torch refuses to compute with data of another: it stops at the end."""
    model = made[0]
    made[1].close()
    model.to("meta")
    head = model.get_output_embeddings().weight if plain else None
    monkeypatch.setattr(student, "plain_head", lambda model: head)
    monkeypatch.setattr(torch, "Generator", lambda device: Dice(device))
    there = Student(model, Bundle.find(tiny_bundle).basis)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor") as raised:
        there.slopes(lesson(), seed=(0, 1))
    there.close()
    assert ".cpu()" in str(raised.traceback[-1].statement)


class Dice:
    """A generator where torch has none."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "meta"

    def manual_seed(self, seed: int) -> None:
        return None
