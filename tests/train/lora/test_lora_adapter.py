"""A LoRA in the learner and in the deployed engine: PEFT's own gradient, and stock llama.cpp's logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import models
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tinylora_edge import Bundle, MicroVector, NonFiniteError, runtime
from tinylora_edge.runtime.llama.batch import Batch
from tinylora_edge.runtime.llama.model import TinyLoraLlama
from tinylora_edge.train import Learner, Loss
from tinylora_edge.train.grpo import token_loss
from tinylora_edge.train.layers import hf_names
from tinylora_edge.train.learner import Group
from tinylora_edge.train.lora.adapter import LoraAdapter
from tinylora_edge.train.lora.batch import LoraBatch
from tinylora_edge.train.lora.shape import LoraShape

FULL_PRECISION = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
RANK = 3
PROMPTS = [[256, *range(40, 52)], [256, 70, 71, 72]]
DRAWN = [[[1, 2, 3, 257], [9, 257], [7, 7]], [[5, 5, 257], [4]]]


@pytest.fixture(scope="module")
def deployed(tiny_bundle: Path) -> Iterator[TinyLoraLlama]:
    with runtime.load(tiny_bundle, engine="llama", n_ctx=64, **FULL_PRECISION) as llm:
        yield llm


def numbers(shape: LoraShape, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((1, shape.size))).astype(np.float32)


def groups(scores: list[list[np.ndarray]] | None = None) -> list[Group]:
    found = []
    for i, (prompt, drawn) in enumerate(zip(PROMPTS, DRAWN, strict=True)):
        tokens = [np.array(c, np.int32) for c in drawn]
        sampled = [np.zeros(len(c), np.float32) for c in drawn] if scores is None else scores[i]
        advantage = np.linspace(1, -0.7, len(drawn)).astype(np.float32)
        weight = np.full(len(drawn), 0.1, np.float32)
        found.append(Group(np.array(prompt, np.int32), tokens, sampled, advantage, weight))
    return found


def test_the_gradient_is_that_of_plain_peft(tiny_bundle: Path) -> None:
    """PEFT's own model, whole sequences one by one, no cache of keys: every entry of A and B."""
    basis, model = Bundle.find(tiny_bundle).basis, models.tiny_model("llama")
    names, plain = hf_names(model, basis), models.tiny_model("llama")
    values = numbers(LoraShape.on(basis, RANK))
    with LoraAdapter(model, basis, RANK) as adapter:
        adapter.set(values)
        np.testing.assert_array_equal(adapter.vector().values, values)
        learner = Learner(model, adapter, temperature=0.7, workers=2)
        found = learner.gradient(groups(), Loss(importance_cap=0))
        learner.close()

    peft = get_peft_model(plain, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(names.values())))
    layers = {m: peft.base_model.model.get_submodule(name) for m, name in names.items()}
    for module, (a, b) in adapter.shape.pairs(values).items():
        layers[module].lora_A["default"].weight.data = torch.from_numpy(a.copy())
        rows = models.to_hf_rows(plain, module, b)
        layers[module].lora_B["default"].weight.data = torch.from_numpy(rows)
    total = torch.zeros(())
    for group in groups():
        for completion, advantage, weight in zip(
            group.completions, group.advantage, group.weight, strict=True
        ):
            whole = torch.tensor([[*group.prompt.tolist(), *completion.tolist()]])
            scores = torch.log_softmax(peft(whole).logits[0, len(group.prompt) - 1 : -1] / 0.7, -1)
            chosen = scores.gather(-1, torch.from_numpy(completion).long()[:, None]).T
            zeros, given = torch.zeros_like(chosen), torch.tensor([[float(advantage)]])
            options = {"sampled": zeros, "old": chosen.detach(), "reference": None, "advantage": given}
            total = total + float(weight) * token_loss(chosen, loss=Loss(importance_cap=0), **options).sum()
    total.backward()
    assert found.loss == pytest.approx(total.item(), rel=1e-4)
    for module, (a, b) in adapter.shape.pairs(found.grad.numpy()).items():
        expected = layers[module].lora_A["default"].weight.grad.numpy()
        np.testing.assert_allclose(a, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        expected = layers[module].lora_B["default"].weight.grad.numpy()
        by_b = models.to_hf_rows(plain, module, b)
        np.testing.assert_allclose(by_b, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        assert np.abs(a).max() > 1e-5
        assert np.abs(b).max() > 1e-5


def test_it_starts_at_the_base_and_leaves_it_behind(tiny_bundle: Path) -> None:
    model = models.tiny_model("llama")
    plain = models.torch_logits(model, PROMPTS[0])
    with LoraAdapter(model, Bundle.find(tiny_bundle).basis, RANK, seed=4) as adapter:
        first = adapter.start
        assert all(a.any() and not b.any() for a, b in adapter.shape.pairs(first).values())
        np.testing.assert_array_equal(models.torch_logits(model, PROMPTS[0]), plain)
        adapter.set(numbers(adapter.shape))
        assert np.abs(models.torch_logits(model, PROMPTS[0]) - plain).max() > 0.1
        adapter.set(np.zeros_like(first))
        np.testing.assert_array_equal(models.torch_logits(model, PROMPTS[0]), plain)
        adapter.set(numbers(adapter.shape))
    np.testing.assert_array_equal(models.torch_logits(model, PROMPTS[0]), plain)
    with LoraAdapter(model, Bundle.find(tiny_bundle).basis, RANK, seed=4) as again:
        np.testing.assert_array_equal(again.start, first)
    with LoraAdapter(model.bfloat16(), Bundle.find(tiny_bundle).basis, RANK, seed=5) as other:
        assert all(tensor.dtype == torch.float32 for tensor in other.trained)
        assert not np.array_equal(other.start, first)


def test_stock_llama_has_the_same_logits(tiny_bundle: Path, tmp_path: Path) -> None:
    model = models.tiny_model("llama")
    tokens = PROMPTS[0]
    with LoraAdapter(model, Bundle.find(tiny_bundle).basis, RANK) as adapter:
        values = numbers(adapter.shape)
        adapter.set(values)
        expected = models.torch_logits(model, tokens)
    path = tmp_path / "lora.gguf"
    path.write_bytes(adapter.shape.to_gguf(values))
    options = {"n_ctx": 64, "n_threads": 1, "logits_all": True, "verbose": False}
    llm = llama_cpp.Llama(str(tiny_bundle / "base.gguf"), lora_path=str(path), **options, **FULL_PRECISION)
    found = models.llama_logits(llm, tokens)
    llm.close()
    assert np.abs(found - expected).max() < 1e-3
    assert np.abs(expected - models.torch_logits(model, tokens)).max() > 0.1


def test_engine_and_learner_agree_on_what_was_drawn(tiny_bundle: Path, deployed: TinyLoraLlama) -> None:
    model, basis = models.tiny_model("llama"), deployed.basis
    shape = LoraShape.on(basis, RANK)
    with Batch(deployed, n_ctx_seq=32, sequences=8, n_threads=1) as batch:
        plain = batch.score(PROMPTS, DRAWN)
        with LoraBatch(batch, shape) as lora, LoraAdapter(model, basis, RANK) as adapter:
            learner = Learner(model, adapter, temperature=1.0)
            for seed in (1, 2):
                values = MicroVector(numbers(shape, seed))
                lora.swap(values)
                adapter.set(values)
                scores = batch.score(PROMPTS, DRAWN)
                assert learner.gradient(groups(scores), Loss()).mismatch < 1e-3
                assert learner.gradient(groups(plain), Loss()).mismatch > 0.05
                drawn = lora.generate(PROMPTS, samples=2, max_tokens=4, temperature=1.0, seed=(3,))
                again = batch.score(PROMPTS, [[g.tokens for g in drawn[:2]], [g.tokens for g in drawn[2:]]])
                for one, generation in zip([s for each in again for s in each], drawn, strict=True):
                    np.testing.assert_allclose(generation.logprobs, one, atol=1e-3)
            learner.close()
            with pytest.raises(NonFiniteError):
                lora.swap(MicroVector(np.full((1, shape.size), np.nan, np.float32)))
            lora.swap(None)
            assert [[*map(list, each)] for each in batch.score(PROMPTS, DRAWN)] == [
                [*map(list, each)] for each in plain
            ]
