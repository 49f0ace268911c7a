"""Copies of a model with weights of another type."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import gguf
import models
import numpy as np
import pytest

from tinylora_edge import MicroVector, load_basis, runtime
from tinylora_edge.cli.demo import logits
from tinylora_edge.errors import TinyLoraError
from tinylora_edge.exporters import export_gguf
from tinylora_edge.runtime.llama.model import TinyLoraLlama
from tinylora_edge.runtime.llama.requantize import half_copy, half_type, requantize


@pytest.mark.parametrize(("weights", "expected"), [("BF16", "BF16"), ("Q8_0", "Q8_0")])
def test_a_copy_has_the_type_asked_for(tiny_gguf: Path, tmp_path: Path, weights: str, expected: str) -> None:
    target = tmp_path / "copy.gguf"
    requantize(tiny_gguf, target, weights)
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(target).tensors}
    assert types["blk.0.ffn_up.weight"] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["copy.gguf"]


@pytest.fixture
def large_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose feed-forward layers compute more on the way than float16 holds."""
    model, folder = models.tiny_model("llama"), tmp_path_factory.mktemp("large")
    for block in model.model.layers:
        block.mlp.up_proj.weight *= 3e4
        block.mlp.down_proj.weight /= 3e4
    return export_gguf(models.write_gguf(model, folder / "large.gguf"), folder / "bundle").output


def test_a_model_that_float16_does_not_hold_is_copied_in_bfloat16(
    large_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinylora_edge.runtime.llama.requantize.half_type", lambda: "F16")
    basis, base = load_basis(large_bundle / "basis.gguf"), large_bundle / "base.gguf"
    with half_copy(base, tmp_path / "rollout", basis, 1) as copy:
        assert [path.name for path in tmp_path.iterdir()] == ["rollout-bf16.gguf"]
        assert np.isfinite(logits(copy, [1, 5, 9, 3])).all()
    assert not list(tmp_path.iterdir())
    requantize(base, tmp_path / "f16.gguf", "F16")
    with closing(TinyLoraLlama(str(tmp_path / "f16.gguf"), basis=basis, n_ctx=64, verbose=False)) as half:
        assert not np.isfinite(logits(half, [1, 5, 9, 3])).all()


def test_a_half_copy_computes_the_same_and_is_not_kept(tiny_bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle, weights, tokens = tiny_bundles["tiled"], half_type() or "BF16", [1, 5, 9, 3]
    with closing(runtime.load(bundle, n_ctx=64, n_threads=1)) as deployed:
        vector = MicroVector.random(deployed.basis, 0.5, seed=1)
        deployed.swap(vector)
        expected = logits(deployed, tokens)
        with half_copy(bundle / "base.gguf", tmp_path / "rollout", deployed.basis, 1) as copy:
            (path,) = tmp_path.iterdir()
            assert path.name == f"rollout-{weights.lower()}.gguf"
            types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
            assert types["blk.0.ffn_up.weight"] == weights
            copy.swap(vector)
            np.testing.assert_allclose(logits(copy, tokens), expected, atol=0.02 * np.abs(expected).max())
    assert not list(tmp_path.iterdir())


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
