"""PEFT checkpoints, both ways, with PEFT itself as the other side."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import models
import numpy as np
import peft
import pytest
import support
import torch
from peft import PeftModel, TinyLoraConfig, get_peft_model
from peft.tuners.tinylora.layer import TinyLoraLayer

from tinylora_edge import (
    BaseMismatchError,
    ExportError,
    MicroVector,
    TinyLoraError,
    UnsupportedModelError,
    load_basis,
    runtime,
)
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.exporters.interop import peft as interop
from tinylora_edge.exporters.weights.safetensors import read_safetensors, write_safetensors

TOKENS = [1, 5, 9, 33, 7, 21]
EXACT = {"type_k": 0, "type_v": 0}  # the KV cache in F32, as torch has it
OPTIONS = {"n_ctx": 64, "n_threads": 1, "n_threads_batch": 1, "logits_all": True, "verbose": False, **EXACT}

pytestmark = pytest.mark.filterwarnings("ignore")


class World:
    """One tiny model: in torch, as a Hugging Face directory and as F32 GGUF."""

    def __init__(self, root: Path) -> None:
        self.model = models.tiny_model("llama")
        self.hf = models.write_hf(self.model, root / "hf")
        self.gguf = models.write_gguf(self.model, root / "tiny.gguf")

    def trained(self, path: Path, *, dtype: torch.dtype = torch.float32, **config: Any) -> PeftModel:
        """A PEFT TinyLoRA with a random v, saved to a path."""
        options = {"r": 2, "u": 3, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | config
        wrapped = get_peft_model(copy.deepcopy(self.model).to(dtype), TinyLoraConfig(**options))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for row in wrapped.base_model.tinylora_v["default"].values():
                row.copy_(torch.randn(row.shape, generator=generator) * 0.1)
        wrapped.save_pretrained(path)
        return wrapped.eval()

    def loaded(self, path: Path) -> PeftModel:
        return PeftModel.from_pretrained(copy.deepcopy(self.model), path).eval()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("peft"))


def logits(model: Any) -> np.ndarray:
    return models.torch_logits(model, TOKENS)


def merged_logits(world: World, basis: Any, vector: MicroVector) -> np.ndarray:
    with models.merged(world.model, basis, vector) as model:
        return models.torch_logits(model, TOKENS)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"weight_tying": 1.0, "u": 13},
        {"weight_tying": 0.7, "u": 1},
        {"weight_tying": 0.63, "r": 3},
        {"target_modules": ["q_proj", "down_proj"], "weight_tying": 0.5},
        {"save_projection": False, "projection_seed": 7, "weight_tying": 0.4},
    ],
    ids=lambda config: ",".join(f"{key}={value}" for key, value in config.items()) or "default",
)
def test_a_checkpoint_becomes_a_basis_and_a_vector_with_the_same_function(
    world: World, tmp_path: Path, config: dict[str, Any]
) -> None:
    trained = world.trained(tmp_path / "peft", **config)
    basis, vector = interop.read_tinylora(tmp_path / "peft", world.hf, base=world.gguf)
    base = models.torch_logits(world.model, TOKENS)
    assert np.abs(logits(trained) - base).max() > 1e-3, "the adapter does something"
    np.testing.assert_allclose(merged_logits(world, basis, vector), logits(trained), atol=1e-4)
    if config.get("save_projection", True):
        layers = {n: m for n, m in trained.base_model.model.named_modules() if isinstance(m, TinyLoraLayer)}
        for position, module in enumerate(basis.modules):
            layer = layers[interop.Layers(world.hf).name(module)]
            assert layer._tinylora_v_key["default"] == str(basis.tying[position])
            np.testing.assert_array_equal(basis.projections[position], layer.tinylora_P["default"].numpy())


def test_it_runs_in_llama_cpp_as_a_bundle(world: World, tmp_path: Path) -> None:
    """The same logits again, from the deployed GGUF with the imported basis beside it."""
    from tinylora_edge import save_basis

    trained = world.trained(tmp_path / "peft", weight_tying=0.7, u=1)
    basis, vector = interop.read_tinylora(tmp_path / "peft", world.hf, base=world.gguf)
    shutil.copy(world.gguf, tmp_path / "m.gguf")
    save_basis(basis, tmp_path / "m.basis.gguf")
    llm = runtime.load(tmp_path / "m.gguf", vector.to_bytes(basis), **OPTIONS)
    np.testing.assert_allclose(models.llama_logits(llm, TOKENS), logits(trained), atol=1e-4)
    llm.close()


def test_bfloat16_factors_are_read(world: World, tmp_path: Path) -> None:
    world.trained(tmp_path / "peft", dtype=torch.bfloat16)
    basis, vector = interop.read_tinylora(tmp_path / "peft", world.hf)
    again = world.loaded(tmp_path / "peft")  # the same bfloat16 factors, in a float32 model
    np.testing.assert_allclose(merged_logits(world, basis, vector), logits(again), atol=1e-4)
    assert basis.base_fingerprints == ()


@pytest.mark.parametrize(
    "settings",
    [
        ExportSettings(groups=7),
        ExportSettings(u=5, tying="full"),
        ExportSettings(groups=14, u=2),
        ExportSettings(groups=2, factorization="sqrt"),
    ],
    ids=["7 of 14", "full", "one each", "sqrt"],
)
def test_peft_loads_what_it_can_express(world: World, tmp_path: Path, settings: ExportSettings) -> None:
    bundle = export_gguf(world.gguf, tmp_path / "bundle", settings=settings).output
    basis = load_basis(bundle / "basis.gguf")
    vector = MicroVector.random(basis, 0.5, seed=1)
    interop.write_tinylora(basis, vector, tmp_path / "peft", world.hf)
    loaded = world.loaded(tmp_path / "peft")
    assert len(loaded.base_model.tinylora_v["default"]) == basis.groups
    np.testing.assert_allclose(logits(loaded), merged_logits(world, basis, vector), atol=1e-4)
    back, same = interop.read_tinylora(tmp_path / "peft", world.hf)
    assert same == vector
    np.testing.assert_array_equal(back.tying, basis.tying)
    for mine, its in zip(basis.b, back.b, strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize(("form", "n"), [("dense", 13), ("tiled", 7), ("all entries", 7)])
def test_peft_loads_learned_projections(world: World, tmp_path: Path, form: str, n: int) -> None:
    """Its layers hold any P; names and prior have no place there."""
    plain = export_gguf(world.gguf, tmp_path / "bundle", settings=ExportSettings(groups=7)).basis
    basis = support.learned_forms(plain, n, scale=0.7)[form]
    vector = MicroVector.random(basis, 0.5, seed=1)
    interop.write_tinylora(basis, vector, tmp_path / "peft", world.hf)
    loaded = world.loaded(tmp_path / "peft")
    expected = merged_logits(world, basis, vector)
    assert np.abs(expected - models.torch_logits(world.model, TOKENS)).max() > 1e-3
    np.testing.assert_allclose(logits(loaded), expected, atol=1e-4)
    back, same = interop.read_tinylora(tmp_path / "peft", world.hf)
    assert same == vector
    np.testing.assert_array_equal(back.projections, basis.projections)
    assert (back.axes, back.has_prior) == ((), False)
    interop.write_lora(basis, vector, tmp_path / "lora", world.hf)
    np.testing.assert_allclose(logits(world.loaded(tmp_path / "lora")), expected, atol=1e-4)


def test_learned_tiles_that_peft_cannot_express(world: World, tmp_path: Path) -> None:
    plain = export_gguf(world.gguf, tmp_path / "bundle", settings=ExportSettings(groups=7)).basis
    basis = support.learned_forms(plain, 5, scale=0.7)["tiled"]
    vector = MicroVector.random(basis, 0.5, seed=1)
    with pytest.raises(ExportError, match=r"5 groups of 2 to 3 on 14 modules"):
        interop.write_tinylora(basis, vector, tmp_path / "peft", world.hf)
    interop.write_tinylora(basis, vector, tmp_path / "peft", world.hf, untie=True)
    expected = merged_logits(world, basis, vector)
    np.testing.assert_allclose(logits(world.loaded(tmp_path / "peft")), expected, atol=1e-4)


def test_a_tying_that_peft_cannot_express_is_refused_by_name(world: World, tmp_path: Path) -> None:
    bundle = export_gguf(world.gguf, tmp_path / "bundle", settings=ExportSettings(groups=5)).output
    basis = load_basis(bundle / "basis.gguf")
    vector = MicroVector.random(basis, 0.5, seed=1)
    with pytest.raises(
        ExportError, match=r"5 groups of 2 to 3 on 14 modules.*4 groups of 2 neighbours and one of 6"
    ):
        interop.write_tinylora(basis, vector, tmp_path / "peft", world.hf)
    assert not (tmp_path / "peft").exists()
    interop.write_tinylora(basis, vector, tmp_path / "peft", world.hf, untie=True)
    loaded = world.loaded(tmp_path / "peft")
    assert len(loaded.base_model.tinylora_v["default"]) == 14
    np.testing.assert_allclose(logits(loaded), merged_logits(world, basis, vector), atol=1e-4)


@pytest.mark.parametrize("count", [1, 14, 30, 196, 210])
def test_the_formula_is_peft_s(count: int) -> None:
    """All groups that any weight_tying makes, against the lines of its `_create_and_replace`."""
    for thousandth in range(1001):
        tying = thousandth / 1000
        groups = max(1, round(count * (1.0 - tying)))
        size = max(1, count // groups)
        expected = [min(index // size, groups - 1) for index in range(count)]
        assert interop.peft_tying(count, groups).tolist() == expected
    for groups in range(1, count + 1):
        written = 1 - groups / count if groups > 1 else 1.0
        assert max(1, round(count * (1.0 - written))) == groups


def test_a_plain_lora(world: World, tmp_path: Path) -> None:
    bundle = export_gguf(world.gguf, tmp_path / "bundle", settings=ExportSettings(groups=5)).output
    basis = load_basis(bundle / "basis.gguf")
    vector = MicroVector.random(basis, 0.5, seed=1)
    interop.write_lora(basis, vector, tmp_path / "lora", world.hf)
    loaded = world.loaded(tmp_path / "lora")
    assert loaded.peft_config["default"].peft_type == peft.PeftType.LORA
    np.testing.assert_allclose(logits(loaded), merged_logits(world, basis, vector), atol=1e-4)
    assert not list((tmp_path / "lora").glob(".*"))


def test_a_plain_lora_of_fused_layers(tmp_path: Path) -> None:
    """Falcon keeps the rows of q, k and v head by head, and its GGUF all q, then all k, then all v."""
    model = models.tiny_model("falcon")
    hf = models.write_hf(model, tmp_path / "hf")
    settings = ExportSettings(groups=4, targets=("attn_qkv", "ffn_up"))
    basis = export_gguf(
        models.write_gguf(model, tmp_path / "f.gguf"), tmp_path / "b", settings=settings
    ).basis
    vector = MicroVector.random(basis, 0.5, seed=1)
    interop.write_lora(basis, vector, tmp_path / "lora", hf)
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "lora").eval()
    with models.merged(model, basis, vector) as personal:
        expected = logits(personal)
    np.testing.assert_allclose(logits(loaded), expected, atol=1e-4)


class TestRefusals:
    @pytest.fixture
    def checkpoint(self, world: World, tmp_path: Path) -> Path:
        world.trained(tmp_path / "peft", weight_tying=0.5)
        return tmp_path / "peft"

    def edit(self, checkpoint: Path, **values: Any) -> None:
        path = checkpoint / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    @pytest.mark.parametrize(
        ("values", "error", "said"),
        [
            ({"peft_type": "LORA"}, ExportError, "type LORA, not TINYLORA"),
            ({"r": 0}, ExportError, "r = 0"),
            ({"u": "3"}, ExportError, "u = '3'"),
            ({"fan_in_fan_out": True}, UnsupportedModelError, "Conv1D"),
            ({"r": 3}, UnsupportedModelError, "rank 2, and the others 3"),
        ],
    )
    def test_configurations(self, world, checkpoint, values, error, said) -> None:
        self.edit(checkpoint, **values)
        with pytest.raises(error, match=said):
            interop.read_tinylora(checkpoint, world.hf)

    def test_files_that_are_missing_or_damaged(self, world, checkpoint, tmp_path) -> None:
        with pytest.raises(ExportError, match=r"lacks adapter_config\.json"):
            interop.read_tinylora(tmp_path, world.hf)
        weights = checkpoint / "adapter_model.safetensors"
        whole = weights.read_bytes()
        for cut in (0, 7, 9, 500, len(whole) - 1):
            weights.write_bytes(whole[:cut])
            with pytest.raises(ExportError, match="safetensors"):
                interop.read_tinylora(checkpoint, world.hf)
        weights.unlink()
        with pytest.raises(ExportError, match="lacks adapter_model"):
            interop.read_tinylora(checkpoint, world.hf)
        (checkpoint / "adapter_config.json").write_text("[]")
        with pytest.raises(ExportError, match="no configuration"):
            interop.read_tinylora(checkpoint, world.hf)

    @pytest.mark.parametrize(
        ("ending", "shape"),
        [
            ("tinylora_v.0", (4,)),
            ("tinylora_v.0", ()),
            ("tinylora_v.0", (1, 3)),
            ("q_proj.tinylora_A", (2,)),
            ("q_proj.tinylora_A", ()),
            ("q_proj.tinylora_A", (1, 2, 64)),
            ("q_proj.tinylora_B", (64,)),
            ("q_proj.tinylora_P", (3, 2)),
            ("q_proj.tinylora_P", (2, 2, 2)),
        ],
    )
    def test_factors_of_a_wrong_shape(self, world, checkpoint, ending, shape) -> None:
        path = checkpoint / "adapter_model.safetensors"
        tensors = {name: stored.array(name) for name, stored in read_safetensors(path).items()}
        damaged = [name for name in tensors if name.endswith(ending)]
        assert damaged
        write_safetensors(path, tensors | {damaged[0]: np.ones(shape, np.float32)})
        with pytest.raises(TinyLoraError, match=r"shape|rank|size"):
            interop.read_tinylora(checkpoint, world.hf)

    @pytest.mark.parametrize("ending", ["q_proj.tinylora_A", "q_proj.tinylora_B"])
    def test_factors_of_another_model(self, world, checkpoint, ending) -> None:
        """Whole, of one rank, and for layers of another size; no base is there to tell."""
        path = checkpoint / "adapter_model.safetensors"
        tensors = {name: stored.array(name) for name, stored in read_safetensors(path).items()}
        name = next(name for name in tensors if name.endswith(ending))
        axis = 1 if ending.endswith("A") else 0
        other = np.concatenate([tensors[name], tensors[name]], axis)
        write_safetensors(path, tensors | {name: other})
        with pytest.raises(ExportError, match="was trained on another model"):
            interop.read_tinylora(checkpoint, world.hf)

    @pytest.mark.parametrize("seed", ["x", None, [1], 1.5, {}, 1 << 64, -(1 << 63) - 1, 10**39])
    def test_a_seed_that_is_none(self, world, checkpoint, seed) -> None:
        self.edit(checkpoint, projection_seed=seed)
        with pytest.raises(ExportError, match="projection_seed"):
            interop.read_tinylora(checkpoint, world.hf)

    def test_what_a_vector_cannot_carry(self, world, tmp_path) -> None:
        world.trained(tmp_path / "peft", target_modules=["q_proj"], modules_to_save=["lm_head"])
        with pytest.raises(UnsupportedModelError, match=r"no part of a TinyLoRA, such as .*lm_head"):
            interop.read_tinylora(tmp_path / "peft", world.hf)

    def test_embeddings(self, world, tmp_path) -> None:
        world.trained(tmp_path / "peft", target_modules=["q_proj", "embed_tokens"])
        with pytest.raises(UnsupportedModelError, match="embed_tokens"):
            interop.read_tinylora(tmp_path / "peft", world.hf)

    def test_another_model(self, world, checkpoint, tmp_path) -> None:
        other = models.write_gguf(models.tiny_model("llama", seed=9), tmp_path / "other.gguf")
        with pytest.raises(BaseMismatchError, match="away from the factors"):
            interop.read_tinylora(checkpoint, world.hf, base=other)
