"""Every architecture: llama.cpp's logits under a vector are those of torch with the vector merged."""

from __future__ import annotations

import architectures
import models
import numpy as np
import pytest
import torch

from tinylora_edge import MicroVector
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.exporters.weights.gguf import TESTED

PROMPT = list(b"one two three four five")
GELU = ("gemma2", "gemma3", "falcon")  # which ggml looks up in a table of float16
KINDS = {"tiled": ExportSettings(groups=5), "dense": ExportSettings(u=3, groups=2)}


@pytest.fixture(scope="module", params=architectures.GGUF_NAMES)
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def model(architecture):
    """A small model, its GELU as ggml computes it: from a table in float16. Never change it."""
    model = models.tiny_model(architecture)
    for layer in model.modules():
        for name in ("act", "act_fn"):
            if "gelu" in type(getattr(layer, name, None)).__name__.lower():
                setattr(layer, name, GgmlGELU())
    return model


class GgmlGELU(torch.nn.Module):
    def forward(self, x):
        table = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, 0, torch.where(x >= 10, x, table))


@pytest.fixture(scope="module")
def base(model, tmp_path_factory):
    return models.write_gguf(model, tmp_path_factory.mktemp("base") / "base.gguf")


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_does_what_merging_it_does(kind, architecture, model, base, load, tmp_path, record_property):
    report = export_gguf(base, tmp_path / "bundle", settings=KINDS[kind])
    basis = report.basis
    assert basis.architecture == architectures.GGUF_NAMES[architecture]
    plain = models.torch_logits(model, PROMPT)
    llm = load(report.output)
    scale = np.abs(plain).max()
    tolerance = 1e-3 if architecture in GELU else 1e-4
    assert np.abs(models.llama_logits(llm, PROMPT) - plain).max() < tolerance * scale

    vector = MicroVector.random(basis, 1.0, seed=1)
    llm.swap(vector)
    with models.merged(model, basis, vector) as personal:
        expected = models.torch_logits(personal, PROMPT)
        tokens = models.torch_greedy(personal, PROMPT, 12)
    change = np.abs(expected - plain).max()
    share = np.abs(models.llama_logits(llm, PROMPT) - expected).max() / change
    record_property("measured", f"{share:.2g} of the largest change ({change:.3g})")
    print(f"{architecture} {kind}: {share:.2g} of the largest change ({change:.3g}, logits to {scale:.3g})")
    assert change > 0.05 * scale
    assert share < tolerance
    assert models.llama_greedy(llm, PROMPT, 12) == tokens


def test_every_module_has_an_effect(architecture, base, load, tmp_path):
    """An adapter on a tensor that llama.cpp's graph never asks about would load, and do nothing."""
    count = len(export_gguf(base, tmp_path / "one", settings=ExportSettings(groups=1)).basis.modules)
    report = export_gguf(base, tmp_path / "bundle", settings=ExportSettings(groups=count))
    llm = load(report.output)
    plain = models.llama_logits(llm, PROMPT)
    for position, module in enumerate(report.basis.modules):
        values = np.zeros((count, 1), np.float32)
        values[position] = 1
        llm.swap(MicroVector(values))
        assert np.abs(models.llama_logits(llm, PROMPT) - plain).max() > 1e-3, module


def test_a_hugging_face_directory_gives_the_same_basis(architecture, model, base, tmp_path):
    directory = models.write_hf(models.tiny_model(architecture), tmp_path / "hf", max_shard_size="150KB")
    from_gguf = export_gguf(base, tmp_path / "left", settings=KINDS["tiled"]).basis
    report = export_gguf(directory, tmp_path / "right", base=base, settings=KINDS["tiled"])
    assert report.quality.agreement < 1e-3
    assert report.basis.modules == from_gguf.modules
    assert report.basis.base_fingerprints == from_gguf.base_fingerprints
    spectrum = {m: w for m, w in models.gguf_tensors(model).items() if m in from_gguf.modules}
    compare(from_gguf, report.basis, spectrum)


def compare(left, right, weights):
    """dW is the same in every matrix whose singular values are apart."""
    vector, seen = MicroVector.random(left, 1.0, seed=5), 0
    for module, weight in weights.items():
        one, two = (b.delta(module, vector).reshape(-1, *weight.shape[-2:]) for b in (left, right))
        for number, matrix in enumerate(weight.reshape(-1, *weight.shape[-2:])):
            s = models.top_singular_values(matrix)
            if s[0] >= 1.01 * s[1] and s[1] >= 1.01 * s[2]:
                seen += 1
                gap = np.linalg.norm(one[number] - two[number]) / np.linalg.norm(one[number])
                assert gap < 1e-3, (module, number)
    assert seen >= len(weights) // 2


def test_the_list_of_tested_architectures_is_what_is_tested_here():
    assert set(architectures.GGUF_NAMES.values()) == TESTED
