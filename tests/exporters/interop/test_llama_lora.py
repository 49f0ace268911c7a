"""Stock GGUF LoRAs: what llama.cpp alone makes of them is what our runtime makes of the vector."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import llama_cpp
import models
import numpy as np
import pytest
import support

from tinylora_edge import BasisMismatchError, ExportError, MicroVector, VectorError, load_basis, runtime
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.exporters.interop import llama_lora
from tinylora_edge.formats.gguf import FLOAT32, STRING, UINT32, GGUFFile, write

OPTIONS = {"n_ctx": 64, "n_threads": 1, "n_threads_batch": 1, "logits_all": True, "verbose": False}
# Rounded to float16, keys and values that are 1e-7 apart are 1e-3 apart now and then.
OPTIONS |= {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
TOKENS = [1, 5, 9, 33, 7, 21]
SETTINGS = {
    "u=1": ExportSettings(groups=5),
    "u=3": ExportSettings(groups=2, u=3),
    "f16": ExportSettings(groups=3, factor_dtype="f16"),
}
LEARNED = ("dense", "tiled", "all entries")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("lora")
    base = models.write_gguf(models.tiny_model("llama"), root / "tiny.gguf")
    made = {name: export_gguf(base, root / name, settings=s).output for name, s in SETTINGS.items()}
    forms = support.learned_forms(load_basis(made["u=1"] / "basis.gguf"), 5)
    return made | {name: support.bundle_with(basis, base, root / name) for name, basis in forms.items()}


def ours(bundle: Path, vector: MicroVector) -> np.ndarray:
    llm = runtime.load(bundle, vector, **OPTIONS)
    logits = models.llama_logits(llm, TOKENS)
    llm.close()
    return logits


def stock(bundle: Path, adapters: list[tuple[Path, float]]) -> np.ndarray:
    """Logits of plain llama.cpp with LoRA files at scales, through its C interface alone."""
    llm = llama_cpp.Llama(str(bundle / "base.gguf"), **OPTIONS)
    model, context = llm._model.model, llm._ctx.ctx
    loaded = [llama_cpp.llama_adapter_lora_init(model, str(path).encode()) for path, _ in adapters]
    assert all(loaded)
    handles = (llama_cpp.llama_adapter_lora_p_ctypes * len(loaded))(*loaded)
    numbers = (ctypes.c_float * len(loaded))(*[scale for _, scale in adapters])
    assert llama_cpp.llama_set_adapters_lora(context, handles, len(loaded), numbers) == 0
    logits = models.llama_logits(llm, TOKENS)
    llm.close()
    return logits


@pytest.mark.parametrize("name", ["u=1", "f16", "tiled"])
def test_scales_of_stock_adapters_are_the_vector(bundles: dict[str, Path], tmp_path: Path, name: str) -> None:
    basis = load_basis(bundles[name] / "basis.gguf")
    paths = llama_lora.write_groups(basis, tmp_path / "groups")
    assert [path.name for path in paths] == [f"group-{g:02d}.gguf" for g in range(basis.groups)]
    for seed in (1, 2):
        vector = MicroVector.random(basis, 0.5, seed=seed)
        scales = json.loads(json.dumps(llama_lora.scales(basis, vector)))
        assert [entry["id"] for entry in scales] == list(range(basis.groups))
        found = stock(
            bundles[name], [(path, entry["scale"]) for path, entry in zip(paths, scales, strict=True)]
        )
        np.testing.assert_array_equal(found, ours(bundles[name], vector))


@pytest.mark.parametrize("name", [*SETTINGS, *LEARNED])
def test_a_folded_adapter_is_the_vector(bundles: dict[str, Path], tmp_path: Path, name: str) -> None:
    bundle = bundles[name]
    basis = load_basis(bundle / "basis.gguf")
    vector = MicroVector.random(basis, 0.5, seed=3)
    llama_lora.write_folded(basis, vector, tmp_path / "v.gguf")
    found = stock(bundle, [(tmp_path / "v.gguf", 1.0)])
    base = ours(bundle, MicroVector.zeros(basis))
    assert np.abs(found - base).max() > 0.01, "the vector does something"
    np.testing.assert_allclose(found, ours(bundle, vector), atol=2e-5)


@pytest.mark.parametrize("name", [*SETTINGS, *LEARNED])
def test_a_folded_adapter_gives_the_vector_back(bundles: dict[str, Path], tmp_path: Path, name: str) -> None:
    basis = load_basis(bundles[name] / "basis.gguf")
    for norm in (1e-3, 0.5, 20.0):
        vector = MicroVector.random(basis, norm, seed=4)
        llama_lora.write_folded(basis, vector, tmp_path / "v.gguf")
        back = llama_lora.from_folded(basis, tmp_path / "v.gguf")
        np.testing.assert_allclose(back.values, vector.values, atol=1e-6 * norm)
    llama_lora.write_folded(basis, MicroVector.zeros(basis), tmp_path / "zero.gguf")
    assert not llama_lora.from_folded(basis, tmp_path / "zero.gguf").values.any()


@pytest.mark.parametrize("name", LEARNED)
def test_a_folded_adapter_of_a_learned_basis_is_B_R_A(
    bundles: dict[str, Path], tmp_path: Path, name: str
) -> None:
    basis = load_basis(bundles[name] / "basis.gguf")
    vector = MicroVector.random(basis, 0.5, seed=5)
    llama_lora.write_folded(basis, vector, tmp_path / "v.gguf")
    file = GGUFFile(tmp_path / "v.gguf")
    for module in basis.modules:
        a, b = (file.array(file.tensors[f"{module}.lora_{side}"]) for side in "ab")
        np.testing.assert_allclose(b @ a, basis.delta(module, vector), rtol=1e-5, atol=1e-6)


def test_what_was_folded_into_another_basis_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    basis, other = (load_basis(bundles[name] / "basis.gguf") for name in ("u=1", "u=3"))
    llama_lora.write_folded(other, MicroVector.random(other, 1), tmp_path / "v.gguf")
    with pytest.raises(BasisMismatchError, match="away from anything that basis"):
        llama_lora.from_folded(basis, tmp_path / "v.gguf")
    llama_lora.write_folded(small := support.random_basis(), MicroVector.zeros(small), tmp_path / "s.gguf")
    with pytest.raises(BasisMismatchError, match=r"\d+ tensors differ"):
        llama_lora.from_folded(basis, tmp_path / "s.gguf")
    with pytest.raises(BasisMismatchError, match="another A"):
        llama_lora.from_folded(support.random_basis(rng=1), tmp_path / "s.gguf")
    with pytest.raises(VectorError, match=r"adapter\.type is 'tinylora'"):
        llama_lora.from_folded(basis, bundles["u=1"] / "basis.gguf")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(VectorError, match="no usable GGUF LoRA"):
        llama_lora.from_folded(basis, tmp_path / "x.gguf")


@pytest.mark.parametrize(
    "key",
    [("adapter.type", [1, 2], UINT32), ("adapter.lora.alpha", [1.0, 2.0], FLOAT32)],
    ids=lambda key: key[0],
)
def test_a_key_that_is_an_array(tmp_path: Path, key: tuple[str, Any, Any]) -> None:
    keys = {"adapter.type": ("adapter.type", "lora", STRING)} | {key[0]: key}
    with (tmp_path / "x.gguf").open("wb") as file:
        write(file, "llama", list(keys.values()), {})
    with pytest.raises(VectorError, match=rf"no usable GGUF LoRA: its key {key[0]} is array"):
        llama_lora.from_folded(support.random_basis(), tmp_path / "x.gguf")


def test_scales_round_trip_and_what_is_none() -> None:
    basis = support.random_basis(groups=3)
    vector = MicroVector.random(basis, 0.3)
    scales = llama_lora.scales(basis, vector)
    assert llama_lora.from_scales(basis, json.dumps(scales)) == vector
    served = [{"id": e["id"], "path": "x", "task_name": "", "scale": e["scale"]} for e in reversed(scales)]
    assert llama_lora.from_scales(basis, served) == vector
    two = scales[:2]
    for wrong in ("", "{", "{}", "[1]", "[]", json.dumps(scales[:2]), json.dumps([*scales, scales[0]]),
                  json.dumps([*two, {"id": 2, "scale": "1"}]), json.dumps([*two, {"id": 2, "scale": True}]),
                  json.dumps([*two, {"id": 2, "scale": float("nan")}])):  # fmt: skip
        with pytest.raises(VectorError, match="list"):
            llama_lora.from_scales(basis, wrong)


def test_more_than_one_u_is_no_list_of_scales(tmp_path: Path) -> None:
    basis = support.random_basis(u=2)
    for attempt in (
        lambda: llama_lora.write_groups(basis, tmp_path / "g"),
        lambda: llama_lora.scales(basis, MicroVector.zeros(basis)),
        lambda: llama_lora.from_scales(basis, "[]"),
    ):
        with pytest.raises(ExportError, match="has u = 2"):
            attempt()
    assert not (tmp_path / "g").exists()


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    basis = support.random_basis()
    with pytest.raises(ExportError, match="could not be written"):
        llama_lora.write_groups(basis, tmp_path / "no" / "g")
    with pytest.raises(ExportError, match="could not be written"):
        llama_lora.write_folded(basis, MicroVector.zeros(basis), tmp_path / "no" / "v.gguf")
