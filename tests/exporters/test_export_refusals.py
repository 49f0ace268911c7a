"""Models that cannot be exported: each its own error, naming the file and the module; nothing is written."""

from __future__ import annotations

import models
import numpy as np
import pytest

from tinylora_edge import BasisError, ExportError, UnsupportedModelError
from tinylora_edge.exporters import ExportSettings, export_gguf

MODULE = "blk.1.ffn_up.weight"


def test_an_architecture_that_is_unknown(refuse, write):
    refuse(UnsupportedModelError, "'gpt9'", write(architecture="gpt9"))


def test_a_model_without_linear_layers_by_their_names(refuse, write):
    path = write(rename=lambda name: name.replace("blk.", "layer."))
    refuse(UnsupportedModelError, "none is named like", path)


def test_a_model_without_a_module_of_the_base(refuse, write, tiny_gguf):
    path = write(rename=lambda name: name.replace("blk.1.", "blk.2."))
    refuse(ExportError, r"model\.gguf has no tensor blk\.1\.attn_q", path, base=tiny_gguf)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite(refuse, write, value):
    one = models.altered(MODULE, lambda w: np.where(w == w[5, 7], np.float32(value), w))
    refuse(ExportError, rf"{MODULE}.*NaN", write(change=one))


def test_a_weight_of_a_lower_rank(refuse, write):
    rank_one = models.altered(MODULE, lambda w: np.outer(w[:, 0], w[0]).astype(np.float32))
    refuse(ExportError, rf"{MODULE}.*rank is below 32.*or lower --rank", write(change=rank_one))


@pytest.mark.parametrize("scale", [1e-6, 1e5])
def test_factors_beyond_float16(refuse, write, tmp_path, scale):
    path = write(change=models.altered(MODULE, lambda w: w * np.float32(scale)))
    error = refuse(ExportError, r"ffn_up in block 1 .*float16.*--factor-dtype f32", path)
    assert "inf" not in str(error)
    export_gguf(path, tmp_path / "bundle", settings=ExportSettings(factor_dtype="f32"))


def test_no_more_outputs_than_a_layer_has(refuse, tiny_gguf, tmp_path):
    assert export_gguf(tiny_gguf, tmp_path / "bundle").bases.factors.shape == (32, 8)
    refuse(BasisError, r"65 outputs .* do not fit any weight: choose at most 64", tiny_gguf, outputs=65)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"targets": ("attn_x",)}, "attn_x.*attn_q, attn_k"),
        ({"targets": ("attn_q", "blk.2.*")}, r"blk\.2"),
        ({"rank": 0}, "rank 0 and 0 outputs"),
        ({"rank": 2.5}, "whole number"),
        ({"rank": 65}, r"blk\.0\.attn_q\.weight.*rank 65 .* at most 64"),
        ({"rank": 257}, "rank 257 and 257"),
        ({"outputs": 7}, "rank 8 and 7 outputs.* 256"),
        ({"rank": 150, "outputs": 250}, "250 outputs .* of 14 .* 525,000 numbers, and at most 500,000"),
        ({"factor_dtype": "bf16"}, "'bf16'.*'f32' or 'f16'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_make_no_factors(refuse, tiny_gguf, settings, match):
    refuse((BasisError, ExportError), match, tiny_gguf, **settings)
