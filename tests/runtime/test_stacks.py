"""Vectors that act together: their R add up, and each is checked by itself."""

from __future__ import annotations

import pickle
from contextlib import ExitStack
from dataclasses import replace
from datetime import date

import models
import numpy as np
import onnx_bundles
import onnx_models
import pytest
import support
import torch

from tinylora_edge import Bases, MicroVector, Policy, load_bundle, runtime
from tinylora_edge.basis import Basis
from tinylora_edge.errors import BasisMismatchError, ExpiredError, FrameError, RollbackError, VectorError
from tinylora_edge.runtime.batch import Batch
from tinylora_edge.wire.tags import Hmac

PROMPT, ANSWERS = [72, 101, 108, 108, 111, 32, 119], [[104, 105, 32, 116], [98, 121, 101]]
KEY = Hmac(b"k" * 32)


@pytest.fixture(scope="module")
def bundle():
    return onnx_bundles.both()


@pytest.fixture(scope="module")
def bases(bundle):
    return load_bundle(bundle).bases


@pytest.fixture(scope="module")
def shared(bases):
    return support.of_norm(bases.basis(rank=8), 4.0, 1)


@pytest.fixture(scope="module")
def own(bases):
    return support.of_norm(bases.basis(rank=2), 3.0, 2)


@pytest.fixture(scope="module")
def frames(bases, shared, own):
    return [vector.to_bytes(bases.of(vector)) for vector in (shared, own)]


@pytest.fixture(params=["llama", "onnx"])
def llm(request, bundle):
    with runtime.load(bundle, engine=request.param, n_ctx=64, n_threads=1) as opened:
        yield opened


def logprobs(llm, vectors):
    with Batch(llm, n_ctx_seq=32, sequences=8, n_threads=1) as batch:
        return [np.concatenate(rows) for (rows,) in batch.score_each(vectors, [PROMPT], [ANSWERS])]


def merged(bases, *vectors):
    """The same of torch, with vectors merged into the weights one after the other."""
    model, found = onnx_models.tiny("llama"), []
    with ExitStack() as stack:
        for vector in vectors:
            stack.enter_context(models.merged(model, bases.of(vector), vector))
        for answer in ANSWERS:
            logits = models.torch_logits(model, PROMPT + answer)[len(PROMPT) - 1 : -1]
            rows = torch.log_softmax(torch.from_numpy(logits), -1)
            found.append(rows[range(len(answer)), answer].numpy())
    return np.concatenate(found)


def test_a_stack_equals_both_merged_into_the_weights_in_calls_and_rows(llm, bases, shared, own, frames):
    stack = llm.swap(frames)
    assert llm.vector is stack == replace(own, under=shared)
    assert (stack != own, stack.under == shared) == (True, True)
    assert llm.vector.to_bytes(bases.of(stack)) == frames[1]
    rows = logprobs(llm, [stack, None, shared, own, replace(own, under=shared)])
    assert np.array_equal(rows[0], rows[4])
    effect = min(np.abs(rows[0] - each).max() for each in rows[1:4])
    for found, vectors in zip(rows, [(shared, own), (), (shared,), (own,)], strict=False):
        assert np.abs(found - merged(bases, *vectors)).max() < 0.01 * effect
    active = replies(llm)
    llm.swap(frames[0])
    alone = replies(llm)
    with llm.using(tuple(frames)):
        assert replies(llm) == active != alone


def replies(llm):
    """Tokens that a call draws, which a row draws too."""
    llama = hasattr(llm, "eval")
    called = models.llama_greedy(llm, PROMPT, 8) if llama else [*llm.generate(PROMPT, max_tokens=8)]
    with Batch(llm, n_ctx_seq=32, n_threads=1) as batch:
        drawn = batch.generate([PROMPT], vectors=llm.vector, max_tokens=8)[0]
    count = len(drawn.tokens) - drawn.ended
    assert count > 1
    assert drawn.tokens[:count].tolist() == called[:count]
    return called


def test_r_of_a_stack_is_the_sum_in_the_larger_shape_and_what_caches_go_by(bases, shared, own):
    policy = Policy()
    large, small = policy.own(shared, bases), policy.own(own, bases)
    for pair in ((large, small), (small, large)):
        expected = np.array(large.r)
        expected[:, :2, :2] += small.r
        stack = policy.stacked(*pair)
        assert np.array_equal(stack.r, expected)
        assert stack.digest == policy.stacked(*reversed(pair)).digest != pair[1].digest
        again = pickle.loads(pickle.dumps(stack))
        assert again == stack
        assert np.array_equal(again.r, stack.r)
    wide, tall = (pickle.loads(pickle.dumps(small)) for _ in range(2))
    for each, shape in ((wide, (2, 8)), (tall, (8, 2))):
        vars(each)["r"] = np.ones((len(bases.factors.modules), *shape), np.float32)
    expected = np.zeros((14, 8, 8))
    expected[:, :, :2] += 1
    expected[:, :2] += 1
    assert np.array_equal(policy.stacked(tall, wide).r, expected)


def test_it_is_made_once_at_admission(llm, bases, frames, monkeypatch):
    made, real = [], Basis.R
    monkeypatch.setattr(Basis, "R", lambda self, v: made.append(self.id) or real(self, v))
    llm.swap(frames)
    replies(llm)
    logprobs(llm, [llm.vector, llm.vector])
    assert sorted(made) == sorted(bases.of_frame(frame).id for frame in frames)


def test_all_or_nothing(llm, bases, own, frames, tmp_path):
    before = llm.swap(own)
    other = onnx_bundles.tiny(architecture="qwen2")
    foreign = load_bundle(other).basis(rank=2)
    their = MicroVector.random(foreign, 1.0).to_bytes(foreign)
    text = f"vector 1 of a stack: the vector is for basis {foreign.id}, .* of factors {bases.id}"
    past = own.to_bytes(bases.of(own), until=date(2026, 1, 2))
    large = [support.of_norm(bases.basis(rank=8), 160.0, 5)] * 2
    for stack, error, message in (
        ([their, frames[1]], BasisMismatchError, text),
        ([frames[0], frames[1][:-2]], FrameError, "vector 2 of a stack"),
        ([past, frames[1]], ExpiredError, "vector 1 of a stack"),
        (large, VectorError, "R of the stack has the norm 320, but the policy accepts at most 256"),
        ([], VectorError, "a stack has at least one vector"),
        ([None, frames[1]], VectorError, r"for the base alone call clear\(\)"),
        ([frames[0], tmp_path / "none.bin"], FileNotFoundError, "none.bin"),
    ):
        with pytest.raises(error, match=message):
            llm.swap(stack)
        assert llm.vector is before


def test_sequences_rise_of_each_by_itself(tmp_path, bases, shared, own):
    def frame(vector, sequence, user=""):
        return replace(vector, sequence=sequence).to_bytes(bases.of(vector), KEY, user=user)

    def swap(*frames, user="alice"):
        policy = Policy(keys=[KEY], state=tmp_path / "sequences")  # a device that was started again
        with runtime.model.admitted(frames, bases, policy, user=user) as vector:
            return vector.under.sequence, vector.sequence

    assert swap(frame(shared, 5), frame(own, 2, "alice")) == (5, 2)
    with pytest.raises(RollbackError, match=r"sequence 4, but 5 .*beneath 1"):
        swap(frame(shared, 4), frame(own, 9, "alice"))
    with pytest.raises(RollbackError, match=r"sequence 1, but 2 .*'alice'"):
        swap(frame(shared, 6), frame(own, 1, "alice"))
    assert swap(frame(shared, 5), frame(own, 2, "alice")) == (5, 2)  # nothing of those was recorded
    assert swap(frame(shared, 5), frame(own, 1), user="") == (5, 1)  # beneath, the same user is apart
    assert swap(frame(shared, 5), frame(own, 9, "(beneath 1)"), user="(beneath 1)") == (5, 9)
    assert swap(frame(shared, 5), frame(own, 2, "alice")) == (5, 2)  # whatever other users are called


def test_sessions_take_a_stack_a_row(bundle, shared, frames):
    session = runtime.OnnxSession(bundle)
    rows = session.rows([frames, frames[1], None]).reshape(3, -1, 8, 8)
    r = session.bases.of(shared).R(shared)
    assert np.array_equal(rows[0, :, :2, :2], r[:, :2, :2] + rows[1, :, :2, :2])
    assert [row.any() for row in rows] == [True, True, False]


def test_bases_are_those_of_the_model(bases: Bases) -> None:
    """A vector of other factors beneath is refused also where the app made it itself."""
    foreign = load_bundle(onnx_bundles.tiny(architecture="qwen2")).basis(rank=2)
    theirs, ours = MicroVector.random(foreign, 1.0), MicroVector.random(bases.basis(rank=2), 1.0)
    with pytest.raises(BasisMismatchError):
        Policy().own(replace(ours, under=theirs), bases)
