"""A model in several GGUF files: exported, loaded and listed like a whole one."""

from __future__ import annotations

import models
import numpy as np

from tinylora_edge import MicroVector, load_bundle
from tinylora_edge.exporters import export_gguf

PROMPT = list(b"one two three")


def test_the_bundle_of_a_split_model_is_that_of_the_whole(llama_gguf, tmp_path, load):
    parts = models.split_gguf(llama_gguf, tmp_path, 6)
    whole = export_gguf(llama_gguf, tmp_path / "whole")
    split = export_gguf(parts[0], tmp_path / "bundle")
    assert split.bases.factors.digest == whole.bases.factors.digest
    assert split.bases.fingerprints == whole.bases.fingerprints
    placed = sorted(path.name for path in split.output.glob("*.gguf") if path.name != "basis.gguf")
    assert placed == [f"base-{i + 1:05}-of-{len(parts):05}.gguf" for i in range(len(parts))]
    bundle = load_bundle(split.output)
    assert bundle.base.name == placed[0]
    assert bundle.manifest["base"]["bytes"] == sum(path.stat().st_size for path in parts)
    assert bundle.manifest["base"]["file"] == placed[0]
    assert load_bundle(bundle.base) == bundle

    vector = MicroVector.random(split.bases.basis(rank=8), 0.5)
    one, two = load(whole.output, vector), load(split.output, vector)
    assert np.array_equal(models.llama_logits(one, PROMPT), models.llama_logits(two, PROMPT))
