"""Whitened steps: moments are those of the model's own inputs and gradients, and directions count alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import models
import numpy as np
import pytest
import torch
from test_adapter import basis_of

from tinylora_edge import Basis, MicroVector, Projection
from tinylora_edge.train import Adapter, Group, Learner
from tinylora_edge.train.adapter import hf_names
from tinylora_edge.train.learner import DAMPING, ModuleWhitening, whitened
from tinylora_edge.train.trainer import fitted_lr
from tinylora_edge.wire.values import BITS


def groups() -> list[Group]:
    rng = np.random.default_rng(0)
    rows = [rng.integers(40, 120, size).astype(np.int32) for size in (9, 5, 6, 4, 12, 7)]
    one = np.ones(1, np.float32)
    return [Group(rows[i], rows[i + 1 : i + 2], one) for i in (0, 2, 4)]


@pytest.fixture(scope="module")
def found() -> tuple[Any, Basis, list[Any], ModuleWhitening]:
    """A model, a basis of 3 outputs and as many inputs, the moments of `groups` and what is made of them."""
    model = models.tiny_model("llama")
    factors = basis_of(model, "entries").factors
    basis = Basis(factors, Projection.entries(factors.modules, (3, 3)))
    with Adapter(model, basis) as adapter:
        learner = Learner(model, adapter, temperature=1.0, workers=2)
        moments = learner.moments(groups())
        whitening = whitened(learner, groups)
        learner.close()
    assert isinstance(whitening, ModuleWhitening)
    return model, basis, moments, whitening


def test_moments_are_those_of_inputs_and_of_gradients_at_outputs(found: Any) -> None:
    """By hooks of torch's own, a row a pass."""
    model, basis, moments, _ = found
    module = "blk.1.ffn_down.weight"
    layer, seen = model.get_submodule(hf_names(model, basis.factors)[module]), []

    def keep(_: Any, inputs: Any, output: torch.Tensor) -> None:
        output.requires_grad_().register_hook(lambda grad: seen.append((inputs[0][0].detach(), grad[0])))

    a, b = basis.factors.leading(module, basis.shape)
    c, d = np.zeros((2, 3, 3))
    handle = layer.register_forward_hook(keep)
    for group in groups():
        row, begin = torch.tensor([[*group.prompt, *group.completions[0]]]), len(group.prompt) - 1
        logprobs = torch.log_softmax(model(row[:, :-1]).logits, -1)
        logprobs[0, begin:].gather(-1, row[0, begin + 1 :, None]).sum().backward()
        x, gradient = (each.double().numpy() for each in seen.pop())
        c, d = c + (x @ a.T).T @ (x @ a.T), d + (gradient @ b).T @ (gradient @ b)
    handle.remove()
    for own, expected in zip(moments[basis.modules.index(module)], (c, d), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_directions_count_alike_and_modules_as_before(found: Any) -> None:
    _, basis, moments, whitening = found
    for position, (c, _) in enumerate(moments):
        left, right = whitening.left[position], whitening.right[position]
        values = np.linalg.eigvalsh(c)
        expected = values / (values + DAMPING * values.mean())
        np.testing.assert_allclose(np.linalg.eigvalsh(right @ c @ right), expected, rtol=1e-6)
        b = basis.factors.leading(basis.modules[position], basis.shape)[1].astype(np.float64)
        before = np.trace(b.T @ b) * np.trace(c)
        after = np.trace(left @ b.T @ b @ left) * np.trace(right @ c @ right)
        np.testing.assert_allclose(after, before, rtol=1e-3)  # B'B is diagonal but for rounding


def test_the_gradient_by_the_coordinates_is_the_adjoint(found: Any) -> None:
    _, basis, _, whitening = found
    z, by_v = np.random.default_rng(1).standard_normal((2, basis.size))
    np.testing.assert_allclose(by_v @ whitening.values(z), whitening.gradient(by_v) @ z, rtol=1e-9)


@pytest.mark.parametrize("dtype", BITS)
def test_rounded_columns_make_good_for_each_other(dtype: str) -> None:
    """Inputs that go together: errors of a row that cancel cost nothing."""
    rng, shape = np.random.default_rng(0), (2, 16, 4)
    values, vectors = np.linalg.eigh(np.ones((4, 4)) + np.diag([0.01, 0.02, 0.04, 0.03]))
    root = (vectors / np.sqrt(values)) @ vectors.T
    whitening = ModuleWhitening(np.stack([np.eye(16)] * 2), np.stack([root] * 2), shape)
    v = np.float32(rng.standard_normal(shape)).reshape(-1)
    found = whitening.rounded(v, dtype)
    assert (MicroVector(found, dtype, entries=shape).values == found).all()

    def cost(rounded: np.ndarray) -> float:
        return float(np.square((rounded - v).reshape(shape) @ np.linalg.inv(root)).sum())

    assert cost(found) < 0.7 * cost(MicroVector(v, dtype, entries=shape).values)


@pytest.mark.parametrize("times", [0.1, 1, 20])
def test_a_first_step_moves_what_is_predicted_by_the_same_whatever_the_scale(found: Any, times: int) -> None:
    """B of another scale: as with models whose weights differ, one length in R is another change."""
    model, basis, _, _ = found
    layers = [model.get_submodule(name) for name in hf_names(model, basis.factors).values()]
    for layer in layers:
        layer.weight.data *= times
    factors = basis_of(model, "entries").factors
    own = Basis(factors, Projection.entries(factors.modules, (3, 3)))
    start = np.random.default_rng(2).normal(0, 0.01, own.size).astype(np.float32)
    try:
        with Adapter(model, own) as adapter, torch.no_grad():
            learner = Learner(model, adapter, temperature=1.0, workers=1)
            coordinates = own.projection.whitening
            adapter.set(start)
            with torch.enable_grad():
                grad = learner.gradient(groups()).grad.numpy()
            before, lr = log_chances(model), fitted_lr(learner, coordinates, groups(), grad)
            assert (adapter.v.numpy() == start).all()
            adapter.set(start - np.float32(lr) * np.sign(grad))
            after = log_chances(model)
            learner.close()
    finally:
        for layer in layers:
            layer.weight.data /= times
    moved = float((before.exp() * (before - after)).sum(-1).mean())
    assert 0.5 / 3 < moved < 0.5 * 3


def log_chances(model: Any) -> torch.Tensor:
    """Return log-probabilities of all tokens at those of the completions of `groups`, by a row a pass."""
    found = []
    for group in groups():
        row = torch.tensor([[*group.prompt, *group.completions[0]]])
        found.append(torch.log_softmax(model(row).logits[0, len(group.prompt) - 1 : -1].double(), -1))
    return torch.cat(found)


def test_modules_with_fewer_rows_step_by_themselves(found: Any) -> None:
    """As those of as many rows do, and nothing of v is where they have none."""
    model, basis, _, _ = found
    factors = basis.factors
    cut = tuple(b[:, : 3 + 2 * (m % 2)] for m, b in enumerate(factors.b))
    small = replace(factors, rank=3, a=tuple(a[:3] for a in factors.a), b=cut)
    found_of = {}
    for shape in ((3, 3), (5, 3)):
        own = Basis(small, Projection.entries(small.modules, shape, small.rows))
        with Adapter(model, own) as adapter:
            learner = Learner(model, adapter, temperature=1.0, workers=1)
            found_of[shape] = own, whitened(learner, groups)
            learner.close()
    (_, narrow), (own, wide) = found_of.values()
    assert own.size == sum(small.rows) * 3 < len(small.modules) * 15
    z = np.random.default_rng(3).normal(0, 1, own.size).astype(np.float32)
    r = own.R(wide.values(z))
    for m, rows in enumerate(small.rows):
        assert not r[m, rows:].any()
        if rows == 3:
            np.testing.assert_allclose(wide.left[m][:3, :3], narrow.left[m], rtol=1e-4)
    for dtype in BITS:
        near = wide.rounded(np.float32(z), dtype)
        assert (MicroVector(near, dtype, entries=own.entries).values == near).all()


def test_few_inputs_and_numbers_that_are_not_all_of_r_keep_their_own_coordinates(found: Any) -> None:
    model, basis, _, _ = found
    for projection in (Projection.random(basis.modules, 4), Projection.entries(basis.modules, (3, 2))):
        own = Basis(basis.factors, projection)
        with Adapter(model, own) as adapter:
            learner = Learner(model, adapter, temperature=1.0)
            assert whitened(learner, lambda: pytest.fail("nothing to measure")) is own.projection.whitening
            learner.close()
