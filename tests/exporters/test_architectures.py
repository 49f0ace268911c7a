"""Every architecture: llama.cpp's logits under a vector are those of torch with the vector merged."""

from __future__ import annotations

import architectures
import llama_cpp
import models
import noise
import numpy as np
import pytest
import torch

from tinylora_edge import ExportError, MicroVector
from tinylora_edge.exporters import export_gguf
from tinylora_edge.exporters.weights.gguf import TESTED
from tinylora_edge.runtime.engine import Part

PROMPT = list(b"one two three four five")
SIZES = {"5 numbers": ({"numbers": 5}, 1.0), "rank 8": ({"rank": 8}, 4.0)}


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


@pytest.fixture(scope="module")
def exported(base, tmp_path_factory):
    return export_gguf(base, tmp_path_factory.mktemp("exported") / "bundle")


@pytest.fixture
def bound(architecture, model, exported, load):
    """Of logits: from two orders in llama.cpp, and from what the table of a GELU rounds."""
    vectors = [
        None,
        *(MicroVector.random(exported.bases.basis(**s), norm, seed=1) for s, norm in SIZES.values()),
    ]
    table = (models.torch_logits(each, PROMPT) for each in (model, models.tiny_model(architecture)))
    return max(noise.of(load(exported.output), PROMPT, vectors), noise.bound(*table))


def test_rows_of_different_vectors_are_evaluated_together(exported, bound, load):
    """Prompts of several lengths, two of one, and then tokens of each row are what each vector does alone."""
    bases = [exported.bases.basis(rank=rank) for rank in (1, 2, exported.bases.factors.shape, 2)]
    vectors = [None, *(MicroVector.random(basis, 3.0, seed=1) for basis in bases)]
    prompts = [PROMPT[i % 2 : 5 + 5 * (i % 3)] for i in range(len(vectors))]
    options = dict.fromkeys(("type_k", "type_v"), llama_cpp.GGML_TYPE_F32)
    llm = load(exported.output, **options)
    expected = []
    for vector, prompt in zip(vectors, prompts, strict=True):
        llm.clear() if vector is None else llm.swap(vector)
        expected.append(models.llama_logits(llm, [*prompt, 65, 66])[-3:])
    engine = llm.engine(rows=len(vectors) + 1, n_ctx=64, n_threads=1)
    rows = np.random.default_rng(0).permutation(len(vectors) + 1)[:-1].tolist()
    for row, vector in zip(rows, vectors, strict=True):
        engine.set_r(row, None if vector is None else llm.own(vector).r)
    found = [engine.evaluate([Part(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]).copy()]
    for token in (65, 66):
        found.append(engine.evaluate([Part(row, [token]) for row in rows]).copy())
    for row, (alone, beside) in enumerate(zip(expected, np.stack(found, 1), strict=True)):
        assert np.abs(beside - alone).max() < bound, row
    assert np.abs(found[1][0] - found[1][-1]).max() > 10 * bound, "the vectors differ"


@pytest.mark.parametrize("size", SIZES)
def test_a_vector_does_what_merging_it_does(size, architecture, model, exported, bound, load):
    named, norm = SIZES[size]
    basis = exported.bases.basis(**named)
    assert basis.factors.architecture == architectures.GGUF_NAMES[architecture]
    plain = models.torch_logits(model, PROMPT)
    llm = load(exported.output)
    assert np.abs(models.llama_logits(llm, PROMPT) - plain).max() < bound

    vector = MicroVector.random(basis, norm, seed=1)
    llm.swap(vector)
    with models.merged(model, basis, vector) as personal:
        expected = models.torch_logits(personal, PROMPT)
        tokens = models.torch_greedy(personal, PROMPT, 12)
    assert np.abs(expected - plain).max() > 0.05 * np.abs(plain).max()
    assert np.abs(models.llama_logits(llm, PROMPT) - expected).max() < bound
    assert models.llama_greedy(llm, PROMPT, 12) == tokens


def test_every_module_has_an_effect(exported, bound, load):
    """An adapter on a tensor that llama.cpp's graph never asks about would load, and do nothing."""
    modules = exported.bases.factors.modules
    llm = load(exported.output)
    plain = models.llama_logits(llm, PROMPT)
    for position, module in enumerate(modules):
        values = np.zeros(len(modules), np.float32)
        values[position] = 1
        llm.swap(MicroVector(values))
        assert np.abs(models.llama_logits(llm, PROMPT) - plain).max() > bound, module


def test_a_hugging_face_directory_gives_the_same_factors(architecture, model, base, exported, tmp_path):
    """Of experts too few are read to do that, and the export says so."""
    directory = models.write_hf(models.tiny_model(architecture), tmp_path / "hf", max_shard_size="150KB")
    if any("_exps" in module for module in exported.bases.factors.modules):
        with pytest.raises(ExportError, match="experts are read from the GGUF alone"):
            export_gguf(directory, tmp_path / "right", base=base)
        assert not (tmp_path / "right").exists()
        return
    report = export_gguf(directory, tmp_path / "right", base=base)
    assert report.quality["agreement"] < 1e-3
    left, right = exported.bases, report.bases
    assert left.factors.modules == right.factors.modules
    assert left.fingerprints == right.fingerprints
    # dW is the same in every matrix whose singular values are apart.
    bases = [each.basis(numbers=5) for each in (left, right)]
    vector, seen, weights = MicroVector.random(bases[0], 1.0, seed=5).values, 0, models.gguf_tensors(model)
    for module in left.factors.modules:
        one, two = (basis.delta(module, vector) for basis in bases)
        s = models.top_singular_values(weights[module])
        if s[0] >= 1.01 * s[1] and s[1] >= 1.01 * s[2]:
            seen += 1
            assert np.linalg.norm(one - two) / np.linalg.norm(one) < 1e-3, module
    assert seen >= len(left.factors.modules) // 2


def test_the_list_of_tested_architectures_is_what_is_tested_here():
    assert set(architectures.GGUF_NAMES.values()) == TESTED
