"""Copies of a model with weights of another type."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest

from tinylora_edge import MicroVector, load_bundle, runtime
from tinylora_edge.cli.demo import logits
from tinylora_edge.errors import TinyLoraError
from tinylora_edge.runtime.llama.model import TinyLoraLlama
from tinylora_edge.runtime.llama.requantize import half_copy, half_type, requantize


def test_a_half_copy_computes_the_same_and_is_not_kept(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, weights, tokens = tiny_bundle, half_type() or "BF16", [1, 5, 9, 3]
    with closing(runtime.load(bundle, n_ctx=64, n_threads=1)) as deployed:
        vector = MicroVector.random(deployed.bases.basis(numbers=13), 0.5, seed=1)
        deployed.swap(vector)
        expected = logits(deployed, tokens)
        with half_copy(bundle / "base.gguf", tmp_path / "rollout", deployed.bases, 1) as copy:
            (path,) = tmp_path.iterdir()
            assert path.name == f"rollout-{weights.lower()}.gguf"
            types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
            assert types["blk.0.ffn_up.weight"] == weights
            copy.swap(vector)
            np.testing.assert_allclose(logits(copy, tokens), expected, atol=0.02 * np.abs(expected).max())
    assert not list(tmp_path.iterdir())


def test_a_model_that_float16_does_not_hold_is_copied_in_bfloat16(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinylora_edge.runtime.llama.requantize.half_type", lambda: "F16")
    monkeypatch.setattr(TinyLoraLlama, "_finite", lambda _: False)
    bundle = tiny_bundle
    bases = load_bundle(bundle).bases
    with half_copy(bundle / "base.gguf", tmp_path / "rollout", bases, 1):
        assert [path.name for path in tmp_path.iterdir()] == ["rollout-bf16.gguf"]
    assert not list(tmp_path.iterdir())


def test_a_copy_that_cannot_be_made(tiny_gguf: Path, tmp_path: Path) -> None:
    for source, weights, message in (
        ("tiny.gguf", "Q9_9", "no file type 'Q9_9'"),
        ("missing.gguf", "BF16", "could not write a copy of .*as BF16"),
    ):
        with pytest.raises(TinyLoraError, match=message):
            requantize(tiny_gguf.with_name(source), tmp_path / "copy.gguf", weights)
    assert not list(tmp_path.iterdir())
