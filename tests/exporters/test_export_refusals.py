"""Models that cannot be exported: each its own error, naming the file and the module; nothing is written."""

from __future__ import annotations

import models
import numpy as np
import pytest

from tinylora_edge import BasisError, ExportError, UnsupportedModelError
from tinylora_edge.exporters import ExportSettings, export_gguf

MODULE = "blk.1.ffn_up.weight"


@pytest.fixture
def refuse(tmp_path):
    def check(error, match, path, settings=None):
        parent = tmp_path / "parent"
        parent.mkdir()
        with pytest.raises(error, match=match) as caught:
            export_gguf(path, parent / "bundle", settings=ExportSettings(**(settings or {"groups": 2})))
        assert list(parent.iterdir()) == []
        assert "\n" not in str(caught.value)
        return caught.value

    return check


def altered(change):
    return {"change": lambda name, array: change(array.copy()) if name == MODULE else array}


def put(value):
    def change(weight):
        weight[5, 7] = value
        return weight

    return change


# Files


@pytest.mark.parametrize("keep", [0, 3, 4, 23, 24, 200, 2000, -1])
def test_a_file_that_was_cut(refuse, llama_gguf, tmp_path, keep):
    path = tmp_path / "cut.gguf"
    path.write_bytes(llama_gguf.read_bytes()[:keep])
    refuse(ExportError, r"cut\.gguf", path)


def test_a_lora_adapter(refuse, tmp_path):
    pairs = {"blk.0.attn_q.weight": (np.ones((2, 64)), np.ones((64, 2)))}
    path = models.write_lora(tmp_path / "lora.gguf", "llama", pairs, alpha=1.0)
    refuse(ExportError, r"lora\.gguf holds a 'adapter', not a model", path)


def test_an_architecture_that_is_unknown(refuse, write):
    refuse(UnsupportedModelError, "'gpt9'", write(architecture="gpt9"))


def test_a_model_without_linear_layers_by_their_names(refuse, write):
    path = write(rename=lambda name: name.replace("blk.", "layer."))
    refuse(UnsupportedModelError, r"none of its \d+ tensors", path)


# Weights


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite(refuse, write, value):
    refuse(ExportError, rf"{MODULE}.*NaN", write(**altered(put(np.float32(value)))))


def test_a_weight_of_a_lower_rank(refuse, write):
    rank_one = altered(lambda w: np.outer(w[:, 0], w[0]).astype(np.float32))
    refuse(ExportError, rf"{MODULE}.*rank is below 2", write(**rank_one))


def test_weights_of_extreme_scales(write, tmp_path):
    for scale in (1e-12, 1e12):
        path = write(**altered(lambda w, scale=scale: w * np.float32(scale)))
        basis = export_gguf(path, tmp_path / f"{scale}", settings=ExportSettings(groups=2)).basis
        s = np.linalg.norm(basis.b[basis.index(MODULE)].astype(np.float64), axis=0)
        assert 0.1 * scale < s[1] < s[0] < 100 * scale


def test_factors_beyond_float16(refuse, write, tmp_path):
    path = write(**altered(lambda w: w * np.float32(1e5)))
    error = refuse(
        ExportError,
        "ffn_up in block 1.*65504.*--factor-dtype f32",
        path,
        {"groups": 2, "factor_dtype": "f16"},
    )
    assert "inf" not in str(error)
    export_gguf(path, tmp_path / "bundle", settings=ExportSettings(groups=2))


# Settings


@pytest.mark.parametrize("rank", [65, 1000])
def test_a_rank_larger_than_a_dimension(refuse, llama_gguf, rank):
    refuse((ExportError, BasisError), rf"blk\.0\.attn_q\.weight.*rank {rank}", llama_gguf, {"rank": rank})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"groups": 15}, "15 groups for 14 modules"),
        ({"groups": 0}, "0 groups"),
        ({"groups": -1}, "-1 groups"),
        ({"groups": 2, "tying": "full"}, "full"),
        ({"groups": 6, "tying": "structured"}, "7 kinds"),
        ({"tying": "woven"}, "woven"),
        ({"targets": ("attn_x",)}, "attn_x.*attn_q, attn_k"),
        ({"targets": ("attn_q", "blk.2.*")}, r"blk\.2"),
        ({"rank": 0, "groups": 2}, "rank 0"),
        ({"u": 0, "groups": 2}, "u 0"),
        ({"seed": -1, "groups": 2}, "seed -1"),
        ({"seed": 1 << 64, "groups": 2}, str(1 << 64)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_make_no_basis(refuse, llama_gguf, settings, match):
    refuse((BasisError, ExportError), match, llama_gguf, settings)
