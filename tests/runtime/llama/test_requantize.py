"""Copies of a model with weights of another type."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from tinylora_edge.errors import TinyLoraError
from tinylora_edge.runtime.llama.requantize import requantize


@pytest.mark.parametrize(("weights", "expected"), [("BF16", "BF16"), ("Q8_0", "Q8_0")])
def test_a_copy_has_the_type_asked_for(tiny_gguf: Path, tmp_path: Path, weights: str, expected: str) -> None:
    target = tmp_path / "copy.gguf"
    requantize(tiny_gguf, target, weights)
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(target).tensors}
    assert types["blk.0.ffn_up.weight"] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["copy.gguf"]


@pytest.mark.parametrize(
    ("source", "weights", "message"),
    [
        ("base.gguf", "Q9_9", "no file type 'Q9_9'"),
        ("missing.gguf", "BF16", "could not write a copy of .*as BF16"),
    ],
)
def test_a_copy_that_cannot_be_made(
    tiny_gguf: Path, tmp_path: Path, source: str, weights: str, message: str
) -> None:
    with pytest.raises(TinyLoraError, match=message):
        requantize(tiny_gguf.with_name(source), tmp_path / "copy.gguf", weights)
    assert not list(tmp_path.iterdir())
