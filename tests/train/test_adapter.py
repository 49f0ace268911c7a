"""The adapter: the same function as merged weights, its gradient exact, the base untouched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import support
import torch
from architectures import GGUF_NAMES
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tinylora_edge import Bases, Basis, Factors, MicroVector, Policy, Projection, TrainError
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.factorization import factors, truncated_svd
from tinylora_edge.modules import canonical_order, is_adaptable
from tinylora_edge.train import learner as learner_module
from tinylora_edge.train.adapter import Adapter, Projected, SidePath
from tinylora_edge.train.learner import IMPORTANCE_CAP, Group, Learner, advantages, plain_head, token_loss

PROJECTIONS = {
    "tiled": lambda factors: Projection.random(factors.modules, 7),
    "learned": lambda factors: support.learned(factors, 5),
    "entries": lambda factors: Projection.entries(factors.modules, 2),
    "tall": lambda factors: Projection.entries(factors.modules, (5, 2)),
    "all entries": lambda factors: Projection.entries(factors.modules, factors.rank),
}


def basis_of(model: torch.nn.Module, kind: str, architecture: str = "llama") -> Basis:
    """Return a basis of factors of rank 3 and 5 outputs, of which most projections take the leading two."""
    weights = {n: w for n, w in models.gguf_tensors(model).items() if is_adaptable(n) and w.ndim == 2}
    modules = tuple(canonical_order(weights))
    a, b = zip(*(factors(truncated_svd(weights[m], 5)) for m in modules), strict=True)
    made = Factors(architecture=architecture, modules=modules, rank=3, a=tuple(each[:3] for each in a), b=b)
    return Basis(made, PROJECTIONS[kind](made))


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        *(("llama", kind) for kind in PROJECTIONS),
        *((architecture, "tiled") for architecture in GGUF_NAMES if architecture != "llama"),
    ],
)
def test_equals_merged_weights(architecture: str, kind: str) -> None:
    """The rows of q and k permuted, qkv and gate and up fused, grouped or not: all but the experts."""
    model = models.tiny_model(architecture)
    basis = basis_of(model, kind, GGUF_NAMES[architecture])
    vector = MicroVector.random(basis, 1.0, seed=3)
    tokens = [256, *range(40, 60)]
    plain = models.torch_logits(model, tokens)
    with Adapter(model, basis) as adapter:
        np.testing.assert_array_equal(models.torch_logits(model, tokens), plain)  # v = 0
        adapter.set(vector)
        attached = models.torch_logits(model, tokens)
        assert adapter.vector() == vector
    np.testing.assert_array_equal(models.torch_logits(model, tokens), plain)  # detached
    with models.merged(model, basis, vector):
        merged = models.torch_logits(model, tokens)
    effect = np.abs(merged - plain).max()
    assert effect > 0.1
    assert np.abs(attached - merged).max() < 1e-4 * effect


@pytest.mark.parametrize("sizes", [(3, 2), (1, 3), ((5, 2), (2, 3))])
def test_what_lies_beneath_acts_and_does_not_learn(sizes: tuple[Any, Any]) -> None:
    model = models.tiny_model("llama")
    factors = basis_of(model, "all entries").factors
    below, above = (Basis(factors, Projection.entries(factors.modules, size)) for size in sizes)
    shared, own = MicroVector.random(below, 2.0, seed=1), MicroVector.random(above, 1.0, seed=2)
    tokens = [256, *range(40, 60)]
    row = group(tokens[:9], [tokens[9:]])
    with Adapter(model, above, Policy().own(shared, Bases(factors))) as adapter:
        learner = Learner(model, adapter, temperature=1.0)
        alone, still = models.torch_logits(model, tokens), learner.pull([row])
        adapter.set(own)
        both, moved = models.torch_logits(model, tokens), learner.gradient([row])
        assert adapter.vector() == replace(own, under=shared)
        assert [each.shape for each in learner.moments([row])[0]] == [(q, q) for q in above.shape[::-1]]
        learner.close()
    assert still.loss == pytest.approx(0, abs=1e-5)  # what lies beneath is the base of the pull
    with models.merged(model, below, shared):
        expected = models.torch_logits(model, tokens)
        effect = np.abs(both - expected).max()
        assert np.abs(alone - expected).max() < 1e-4 * effect
        with models.merged(model, above, own):
            assert np.abs(both - models.torch_logits(model, tokens)).max() < 1e-4 * effect
    shape = tuple(np.maximum(below.shape, above.shape).tolist())
    with Adapter(model, Basis(factors, Projection.entries(factors.modules, shape))) as adapter:
        adapter.set(Policy().own(replace(own, under=shared), Bases(factors)).r.reshape(-1))
        learner = Learner(model, adapter, temperature=1.0)
        whole = learner.gradient([row]).grad.reshape(-1, *shape)
        learner.close()
    corner = whole[:, : above.shape[0], : above.shape[1]].reshape(-1)
    np.testing.assert_allclose(moved.grad, corner, atol=1e-4 * float(corner.abs().max()))


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_r_and_its_gradient_are_those_of_the_projection(kind: str) -> None:
    basis = Basis(made := support.random_factors(5, rank=3, outputs=5), PROJECTIONS[kind](made))
    v = torch.randn(basis.size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    r = Projected.apply(v, basis.projection)
    np.testing.assert_array_equal(r.detach(), basis.R(v.detach().numpy()))
    weight = torch.randn(r.shape, generator=torch.Generator().manual_seed(2))
    (grad,) = torch.autograd.grad((r * weight).sum(), v)
    rows = torch.from_numpy(np.array([basis.R(unit) for unit in np.eye(basis.size)]))
    torch.testing.assert_close(grad, torch.tensordot(rows, weight, 3))


def test_sidepath_gradcheck() -> None:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))

    x, r = random(2, 3, 7).requires_grad_(), random(4, 2).requires_grad_()
    assert torch.autograd.gradcheck(SidePath.apply, (x, r, random(2, 7), random(5, 4)))
    row, own = random(1, 3, 7).requires_grad_(), random(3, 4, 2).requires_grad_()  # an R a token
    assert torch.autograd.gradcheck(SidePath.apply, (row, own, random(2, 7), random(5, 4)))


@pytest.mark.parametrize("architecture", ["llama", "phi3"])  # q, k, v and gate, up separate, and fused
@pytest.mark.parametrize(("kind", "sampled"), [("tiled", True), ("learned", False), ("entries", True)])
def test_loss_gradient_is_the_finite_difference(architecture, kind, sampled, monkeypatch):
    """The whole learner in float64: dloss/dv within 1e-5 of a central difference, every entry of v."""
    model = models.tiny_model(architecture)
    basis = basis_of(model, kind, architecture)
    in_float64(model)
    rng = np.random.default_rng(5)
    adapter = Adapter(model, basis).double()
    at = rng.normal(0, 0.1, basis.size).astype(np.float32).astype(np.float64)
    learner = Learner(model, adapter, temperature=20.0)  # random weights are sure of themselves

    draw, fixed = np.random.default_rng(8), []
    for n_prompt in (4, 9):
        completions = [draw.integers(0, 256, n).astype(np.int32) for n in (5, 1, 3)]
        prompt, advantage = draw.integers(0, 256, n_prompt).astype(np.int32), draw.normal(0, 1, 3)
        fixed.append(Group(prompt, completions, advantage.astype(np.float32)))

    def set_v(value: np.ndarray) -> None:
        with torch.no_grad():
            adapter.v.copy_(torch.from_numpy(value))

    set_v(at)
    weights = [torch.ones(9, dtype=torch.float64)] * 2
    if sampled:  # with noise, so that the importance matters
        now = learner.measure(fixed)
        for group, row in zip(fixed, now, strict=True):
            drawn = row + torch.from_numpy(rng.normal(0, 0.5, 9))
            group.sampled = [each.numpy().astype(np.float32) for each in drawn.split([5, 1, 3])]
        weights = [
            (row - torch.from_numpy(np.concatenate(group.sampled))).exp().clamp(max=IMPORTANCE_CAP)
            for row, group in zip(now, fixed, strict=True)
        ]

    def surrogate(value: np.ndarray) -> float:
        set_v(value)
        terms = (
            -(row * weight * torch.from_numpy(group.advantage.repeat([5, 1, 3]))).sum()
            for row, weight, group in zip(learner.measure(fixed), weights, fixed, strict=True)
        )
        return float(sum(terms)) / sum(len(c) for group in fixed for c in group.completions)

    grad = learner.gradient(fixed).grad.numpy()
    h, numeric = 1e-5, np.empty_like(at)
    rows = torch.from_numpy(np.array([basis.R(unit) for unit in np.eye(basis.size)], np.float64))
    monkeypatch.setattr(adapter, "R", lambda: torch.tensordot(adapter.v, rows, 1))  # not rounded to float32
    for index in range(basis.size):
        ends = []
        for sign in (1, -1):
            moved = at.copy()
            moved[index] += sign * h
            ends.append(surrogate(moved))
        numeric[index] = (ends[0] - ends[1]) / (2 * h)
    learner.close()
    assert np.linalg.norm(grad) > 0.01
    np.testing.assert_allclose(grad, numeric, rtol=1e-5, atol=1e-5 * np.abs(numeric).max())


def in_float64(model: Any) -> None:
    """Make a model compute in float64 throughout: transformers' norms and eager softmax go to float32."""
    model.double().set_attn_implementation("sdpa")
    for module in model.modules():
        if type(module).__name__ in ("LlamaRMSNorm", "Phi3RMSNorm"):

            def norm(x: torch.Tensor, module: Any = module) -> torch.Tensor:
                scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
                return module.weight * (x * scale)

            module.forward = norm


def group(prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> Group:
    n = len(completions)
    tokens = [np.array(c, np.int32) for c in completions]
    return Group(np.array(prompt, np.int32), tokens, np.ones(n, np.float32))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("common", "lengths"), [(0, (1, 30)), (40, (12, 12))])
@pytest.mark.parametrize(
    ("architecture", "plain"),  # Granite divides its logits; Gemma's blocks see 8 tokens, in turns
    [("qwen2", True), ("phi3", True), ("granite", False), ("gemma3", True)],
)
def test_one_pass_equals_whole_sequences(architecture, plain, lengths, common, attention, monkeypatch):
    """Groups are computed together; what they begin with, and equal completions, once; of attention nothing
    that a token does not see."""
    keys = []

    def record(module, query, key, *args, **options):
        keys.append(key.shape[2])
        return sdpa_attention_forward(module, query, key, *args, **options)

    monkeypatch.setattr(learner_module, "sdpa_attention_forward", record)
    monkeypatch.setattr(learner_module, "_BLOCK", 1)  # else these short ones attend together
    model = models.tiny_model(architecture)
    model.set_attn_implementation(attention)
    assert (plain_head(model) is not None) == plain
    basis = basis_of(model, "learned", architecture)
    adapter = Adapter(model, basis)
    adapter.set(MicroVector.random(basis, 0.5, seed=1))
    learner = Learner(model, adapter, temperature=0.6, workers=2)
    groups = [
        group([*range(common), *range(60, 60 + length)], completions)
        for length, completions in (
            (12, [[1, 2, 3, 257], [9, 257], [7, 7, 7, 7], [9, 257]]),
            (lengths[0], [[5, 5, 257]]),
            (lengths[1], [[4, 257], [6], [8, 8, 8, 8, 257]]),
        )
    ]
    scored = learner.logprobs(groups)
    longest = max(len(each.prompt) + len(own) - 1 for each in groups for own in each.completions)
    assert max(keys, default=None) == (longest if attention == "sdpa" else None)
    for group_, found in zip(groups, scored, strict=True):
        prompt = group_.prompt.tolist()
        rows = found.detach().split([*map(len, group_.completions)])
        for row, completion in zip(rows, group_.completions, strict=True):
            whole = torch.tensor([[*prompt, *completion.tolist()]])
            with torch.no_grad():
                scores = torch.log_softmax(model(whole).logits[0] / 0.6, -1)
            expected = [scores[len(prompt) - 1 + i, t].item() for i, t in enumerate(completion)]
            np.testing.assert_allclose(row, expected, atol=1e-4)
    learner.close()


def test_a_large_model_learns_in_more_passes_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.tiny_model("llama")
    basis, groups = basis_of(model, "tiled"), [group([1, 2, 3, 4], [[5, 6]]), group([1, 2, 9], [[7], [8]])]
    found = []
    for outputs in (1 << 27, 1):
        monkeypatch.setattr(learner_module, "_OUTPUTS", outputs)
        with Adapter(model, basis) as adapter:
            learner = Learner(model, adapter, temperature=1.0)
            found.append((learner.gradient(groups).grad.numpy(), len(learner._passes(groups))))
            learner.close()
    (one, passes), (each, more) = found
    assert (passes, more) == (1, 2)
    np.testing.assert_allclose(each, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma3"])  # Gemma's windows go by blocks
def test_short_texts_attend_as_batches(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than a batch has, of several lengths: as by blocks, and so is the gradient."""
    model = models.tiny_model(architecture)
    basis = basis_of(model, "entries", architecture)
    groups = [group([256], [[*range(40, 40 + length), 257]]) for length in (1, 9, 3, 17, 3, 12, 5)]
    found = []
    with Adapter(model, basis) as adapter:
        adapter.set(MicroVector.random(basis, 0.5, seed=1))
        learner = Learner(model, adapter, temperature=0.6)
        for texts in (0, 3):
            if texts and architecture != "gemma3":
                monkeypatch.setattr(learner_module, "sdpa_attention_forward", None)
            monkeypatch.setattr(learner_module, "_SHORT", 128 * bool(texts))
            monkeypatch.setattr(learner_module, "_TEXTS", max(texts, 1))
            found.append((torch.cat(learner.measure(groups)), learner.gradient(groups).grad))
        learner.close()
    (scores, grad), (own_scores, own_grad) = found
    torch.testing.assert_close(own_scores, scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own_grad, grad, rtol=1e-3, atol=1e-5 * float(grad.abs().max()))


def test_bfloat16_base_keeps_v_in_float32() -> None:
    model = models.tiny_model("llama").bfloat16()
    basis = basis_of(models.tiny_model("llama"), "tiled")
    with Adapter(model, basis) as adapter:
        Learner(model, adapter, temperature=0.5).close()  # the adapter is the next one's then
        learner = Learner(model, adapter, temperature=1.0)
        prompt, *completions = (np.array(each, np.int32) for each in ([1, 2], [3], [4]))
        group = Group(prompt, completions, np.array([1, -1], np.float32))
        gradient = learner.gradient([group])
        learner.close()
    assert adapter.v.dtype == gradient.grad.dtype == torch.float32
    assert gradient.grad.abs().min() > 0
    assert not any(p.requires_grad for p in model.parameters())


def test_refuses_another_model() -> None:
    model = models.tiny_model("llama")
    other = basis_of(models.tiny_model("llama", hidden=128), "tiled")
    with pytest.raises(TrainError, match=r"64 x 64.*128 x 128"):
        Adapter(model, other)
    deeper = basis_of(models.tiny_model("llama", blocks=3), "tiled")
    with pytest.raises(TrainError, match=r"blk\.2"):
        Adapter(model, deeper)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_refuses_the_factors_of_other_weights(dtype: torch.dtype) -> None:
    """The same shapes: without a look at the weights it would train, and ship what does nothing."""
    other = basis_of(models.tiny_model("llama", seed=1), "tiled")
    model = models.tiny_model("llama").to(dtype)
    tokens = torch.tensor([[1, 2, 3]])
    plain = model(tokens).logits
    with pytest.raises(TrainError, match=r"q_proj is 1\.\d+ away from the factors of blk\.0\.attn_q\.weight"):
        Adapter(model, other)
    assert torch.equal(model(tokens).logits, plain)
    Adapter(model, basis_of(models.tiny_model("llama"), "tiled")).detach()


def test_experts_are_refused_by_name(tmp_path: Path) -> None:
    model = models.tiny_model("qwen3moe")
    base = models.write_gguf(model, tmp_path / "base.gguf")
    basis = export_gguf(base, tmp_path / "all").bases.basis(numbers=2)
    with pytest.raises(TrainError, match=r"6 of .*ffn_gate_exps\.weight.*--targets '!\*_exps'"):
        Adapter(model, basis)
    settings = ExportSettings(targets=("!*_exps",))
    some = export_gguf(base, tmp_path / "some", settings=settings).bases
    Adapter(model, some.basis(numbers=2)).detach()


# The arithmetic of GRPO against the formulas of its papers


def test_advantages_by_hand() -> None:
    np.testing.assert_allclose(advantages([1, 0, 0, 0]), np.array([3, -1, -1, -1]) / np.sqrt(3), rtol=1e-6)
    assert not advantages([0.3] * 4).any(), "no signal"


@pytest.mark.parametrize(("sampled", "weight"), [(-2.0, 1.0), (-2.5, np.exp(0.5)), (-9.0, 2.0), (None, 1.0)])
def test_the_gradient_is_minus_the_advantage_weighed_by_truncated_importance(sampled, weight):
    value = torch.tensor([[-2.0]], requires_grad=True)
    drawn = None if sampled is None else torch.tensor([[sampled]])
    (grad,) = torch.autograd.grad(token_loss(value, torch.tensor([[1.5]]), drawn).sum(), value)
    assert grad.item() == pytest.approx(-1.5 * weight)
