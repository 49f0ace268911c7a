"""`add_base`: another deployed form of the same model is listed, and nothing else is."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor, wait

import models
import numpy as np
import pytest
import smollm2
import support

from tinylora_edge import BaseMismatchError, MicroVector, load_bundle
from tinylora_edge.exporters import add_base, add_projection, export_gguf
from tinylora_edge.formats.side_tensors import load_bases, save_bases
from tinylora_edge.formats.signatures import changing


@pytest.fixture
def bundle(tiny_gguf, tmp_path):
    return export_gguf(tiny_gguf, tmp_path / "bundle").output


def beside(bundle, base, directory):
    """The base with the bundle's basis beside it, as `runtime.load` finds both."""
    directory.mkdir()
    target = directory / "model.gguf"
    shutil.copy(base, target)
    shutil.copy(bundle / "basis.gguf", directory / "model.basis.gguf")
    return target


@pytest.mark.slow
def test_another_form_of_the_real_model(smollm2_gguf, tmp_path, load):
    other = smollm2.requantized(smollm2_gguf, smollm2.MOSTLY_Q4_K_M)
    bundle = tmp_path / "bundle"
    shutil.copytree(smollm2.f32_bundle(smollm2_gguf), bundle, copy_function=os.link)
    before = load_bundle(bundle).bases
    basis = before.basis(numbers=13)
    data = MicroVector.random(basis, 0.3).to_bytes(basis)
    with pytest.raises(BaseMismatchError):
        load(beside(bundle, other, tmp_path / "before"), data)

    bases, distance = add_base(bundle, other)
    assert 0 < distance < 0.1
    stored = load_bundle(bundle).bases
    assert stored.factors.digest == bases.factors.digest == before.factors.digest
    assert stored.fingerprints == bases.fingerprints
    assert stored.fingerprints[:1] == before.fingerprints
    assert len(stored.fingerprints) == 2

    logits = {}
    for form, base in (("F32", bundle), ("Q4_K_M", beside(bundle, other, tmp_path / "after"))):
        llm = load(base)
        prompt = llm.tokenize(smollm2.PROMPTS[0].encode(), special=True)
        plain = models.llama_logits(llm, prompt)
        llm.swap(data)
        logits[form] = plain, models.llama_logits(llm, prompt)
    # The vector does to the one what it does to the other, up to what quantization did to both.
    left, right = (after - before for before, after in logits.values())
    correlation = np.corrcoef(left.ravel(), right.ravel())[0, 1]
    assert correlation > 0.9


def test_projections_and_priors_stay(bundle, tiny_gguf, tmp_path):
    before = load_bundle(bundle).bases
    kept = support.learned(before.factors, 5)
    (bundle / "manifest.json").write_text('{"basis": []}')  # as an editor may leave it
    add_projection(bundle, kept, {"vectors": 3})
    described = load_bundle(bundle).manifest["basis"]
    assert (described["projections"], described["learned"]) == ([kept.descriptor], {"vectors": 3})
    add_base(bundle, models.quantize_file(tiny_gguf, tmp_path / "q8.gguf", 7))
    after = load_bases(bundle / "basis.gguf")
    assert len(after.fingerprints) == len(before.fingerprints) + 1
    (found,) = after.projections
    assert found.descriptor == kept.descriptor
    np.testing.assert_array_equal(found.prior.mean, kept.prior.mean)
    np.testing.assert_array_equal(found.prior.covariance, kept.prior.covariance)


def test_two_who_change_a_bundle_wait_for_each_other(bundle):
    with ThreadPoolExecutor() as pool, changing(bundle, None) as found:
        one, two = (support.learned(found.factors, n) for n in (5, 6))
        other = pool.submit(add_projection, bundle, two)
        assert not wait([other], 0.3).done
        save_bases(found.bases.with_projection(one), found.basis_path)
    other.result()
    assert [each.size for each in load_bundle(bundle).bases.projections] == [5, 6]


MODULE = "blk.1.ffn_up.weight"
OTHERS = {
    "missing": {"rename": lambda name: None if name == MODULE else name},
    "NaN": {"change": models.altered(MODULE, lambda w: np.where(w == w[5, 7], np.float32(np.nan), w))},
    "infinity": {"change": models.altered(MODULE, lambda w: np.where(w == w[5, 7], np.float32(np.inf), w))},
    "zeros": {"change": models.altered(MODULE, np.zeros_like)},
    "rows in another order": {"change": models.altered(MODULE, lambda w: w[::-1])},
    "scaled": {"change": models.altered(MODULE, lambda w: w * np.float32(2))},
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_one_weight_that_is_another(bundle, tiny_model, tmp_path, options):
    other, before = tmp_path / "other.gguf", (bundle / "basis.gguf").read_bytes()
    models.write_gguf(tiny_model, other, **options)
    missing = ".*no such tensor" if "rename" in options else ""
    with pytest.raises(BaseMismatchError, match=r"blk\.1\.ffn_up\.weight" + missing):
        add_base(bundle, other)
    assert (bundle / "basis.gguf").read_bytes() == before
