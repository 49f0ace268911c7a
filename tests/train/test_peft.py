"""The PEFT side: the same function and gradient as the adapter; merge, save, load."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import models
import numpy as np
import peft
import pytest
import torch
from test_adapter import PROJECTIONS, basis_of
from torch import Tensor

from tinylora_edge import Basis, BasisMismatchError, MicroVector, TrainError
from tinylora_edge.train.adapter import Adapter
from tinylora_edge.train.peft_adapter import PEFT_TYPE, peft_model, vector_of

TOKENS = torch.tensor([[256, *range(40, 60)], [256, *range(70, 90)]])


def make(architecture: str = "llama", kind: str = "tiled") -> tuple[Any, Basis, MicroVector]:
    model = models.tiny_model(architecture)
    basis = basis_of(model, kind, architecture)
    return model, basis, MicroVector.random(basis, 1.0, seed=3)


def logits_and_gradient(model: Any, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of a loss over all of them with respect to the rows of v: [n]."""
    logits = model(TOKENS).logits
    target = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    grads = torch.autograd.grad((torch.tanh(logits / 10) * target).sum(), rows)
    return logits.detach(), torch.stack(list(grads)).reshape(-1)


def rows_of(wrapped: peft.PeftModel) -> list[Tensor]:
    found = wrapped.base_model.tinylora_v["default"]
    return [found[str(group)] for group in range(len(found))]


def set_vector(wrapped: peft.PeftModel, v: Any) -> None:
    rows = rows_of(wrapped)
    values = np.asarray(getattr(v, "values", v), np.float32).reshape(len(rows), -1)
    with torch.no_grad():
        for row, value in zip(rows, values, strict=True):
            row.copy_(torch.tensor(value))


KINDS = [("llama", each) for each in PROJECTIONS if each != "tall"]


@pytest.mark.parametrize(("architecture", "kind"), [*KINDS, ("qwen2", "tiled")])
def test_equals_the_adapter(architecture: str, kind: str) -> None:
    model, basis, vector = make(architecture, kind)
    plain = model(TOKENS).logits
    with Adapter(model, basis) as adapter:
        adapter.set(vector)
        expected = logits_and_gradient(model, [adapter.v])
    wrapped = peft_model(model, basis)
    assert torch.equal(wrapped(TOKENS).logits, plain)  # v = 0
    set_vector(wrapped, vector)
    assert vector_of(wrapped) == vector
    found = logits_and_gradient(wrapped, rows_of(wrapped))
    effect = (expected[0] - plain).abs().max()
    assert effect > 0.1
    assert (found[0] - expected[0]).abs().max() < 1e-4 * effect
    assert expected[1].all()
    assert expected[1].abs().max() > 1
    assert (found[1] - expected[1]).abs().max() < 1e-4 * expected[1].abs().max()
    trainable = {id(p) for p in wrapped.parameters() if p.requires_grad}
    assert trainable == {id(row) for row in rows_of(wrapped)}


def test_refuses_an_R_that_is_not_square() -> None:
    model, basis, _ = make(kind="tall")
    with pytest.raises(TrainError, match="a square R, and not 5x2"):
        peft_model(model, basis)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saves_and_loads(tmp_path: Path, dtype: torch.dtype) -> None:
    model, basis, vector = make()
    wrapped = peft_model(model.to(dtype), basis)
    set_vector(wrapped, vector)
    expected = wrapped(TOKENS).logits
    wrapped.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == PEFT_TYPE
    assert config["digest"] == basis.digest
    loaded = peft.PeftModel.from_pretrained(models.tiny_model("llama").to(dtype), tmp_path)
    assert torch.equal(loaded(TOKENS).logits, expected)
    assert vector_of(loaded) == vector
    assert rows_of(loaded)[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unmerging_restores_every_bit(dtype: torch.dtype) -> None:
    model, basis, vector = make()
    wrapped = peft_model(model.to(dtype), basis)
    base = [layer for name, layer in wrapped.named_modules() if name.endswith("base_layer")]
    before = [layer.weight.clone() for layer in base]
    set_vector(wrapped, vector)
    wrapped.merge_adapter()
    assert all(not torch.equal(b.weight, old) for b, old in zip(base, before, strict=True))
    set_vector(wrapped, MicroVector.zeros(basis))  # what happens to v meanwhile does not matter
    wrapped.unmerge_adapter()
    assert all(torch.equal(b.weight, old) for b, old in zip(base, before, strict=True))


def test_gives_vllm_the_merged_model_under_its_own_names() -> None:
    """The walk by which TRL hands weights to vLLM, run on what would be sent."""
    from contextlib import nullcontext

    from trl.generation.vllm_generation import VLLMGeneration

    model, basis, vector = make()
    base = models.tiny_model("llama")
    with models.merged(base, basis, vector) as merged:
        expected = {name: weight.clone() for name, weight in merged.named_parameters()}
    wrapped = peft_model(model, basis)
    set_vector(wrapped, vector)
    sender = object.__new__(VLLMGeneration)  # its constructor starts vLLM
    sender.model = wrapped
    sender._dist = SimpleNamespace(gather_params=lambda parameters: nullcontext(), is_fsdp=False)
    sent = {name: weight.clone() for name, weight in sender._iter_named_params()}
    assert set(sent) == set(expected)
    assert any(not torch.equal(sent[name], weight) for name, weight in base.named_parameters())
    for name, weight in expected.items():
        assert torch.allclose(sent[name], weight, atol=1e-5), name
    weights = {name.replace(".base_layer", ""): p for name, p in model.named_parameters()}
    for name, weight in base.named_parameters():
        assert torch.equal(weights[name], weight)  # and the base is itself again


def test_v_counts_in_float32_on_a_bfloat16_base() -> None:
    """Also under autocast: a step of v that bfloat16 would round away changes the output."""
    model, basis, vector = make()
    wrapped = peft_model(model.bfloat16(), basis)
    layer = model.model.layers[0].self_attn.v_proj
    assert layer.tinylora_A["default"].dtype == torch.bfloat16  # in float32 every input would be copied
    layer.base_layer.weight.zero_()
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    outputs = []
    for scale in (1, 1 + 1e-4):
        set_vector(wrapped, vector.values * scale)
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(layer(x))
    assert outputs[0].dtype == torch.bfloat16
    assert not torch.equal(*outputs)
    with torch.autocast("cpu", torch.bfloat16):
        _, grad = logits_and_gradient(wrapped, rows_of(wrapped))
    assert grad.dtype == torch.float32
    assert grad.abs().min() > 0


def test_refuses_what_does_not_fit() -> None:
    model, basis, _ = make()
    wrapped = peft_model(model, basis)
    other = replace(wrapped.peft_config["default"], digest="another")
    with pytest.raises(BasisMismatchError, match="adapter more is of another basis"):
        wrapped.add_adapter("more", other)
    with pytest.raises(TrainError, match="no TinyLoRA adapter 'missing'"):
        vector_of(wrapped, adapter_name="missing")
