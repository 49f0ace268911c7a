"""Clicks of many users: each learns what a learner of his own would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tinylora_edge import MicroVector, TrainError
from tinylora_edge.runtime import FeedbackLearner, TinyLoraLlama
from tinylora_edge.runtime.batch import Batch
from tinylora_edge.runtime.feedback.clicks import Clicks
from tinylora_edge.runtime.feedback.given import Given

PROMPT = "one two three"


def clicks_of(llm: TinyLoraLlama, start: MicroVector | None = None) -> Clicks:
    return Clicks(llm.basis, Batch(llm, n_ctx_seq=64, sequences=2, n_threads=1), start=start)


def test_a_user_learns_what_his_own_learner_would(
    load: Callable[..., TinyLoraLlama], tiny_bundle: Path, tmp_path: Path
) -> None:
    llm = load(tiny_bundle, n_ctx=64)
    learner = FeedbackLearner(llm, max_tokens=8, n_ctx_seq=64, n_threads=1)
    clicks = clicks_of(llm)
    first = learner.ask(PROMPT, raw=True)
    better, worse = learner.ask_pair(PROMPT, raw=True)
    given = [
        Given(tuple(PROMPT.encode()), tuple(learner._shown[answer.number].tokens), None, 0.7)
        for answer in (first, better, worse)
    ]
    alice, bob = tmp_path / "alice.state", tmp_path / "bob.state"
    for expected, found in (
        (learner.tell(first, 1), clicks.tell(alice, given[0], 1)),
        (learner.prefer(better, worse), clicks.prefer(alice, given[1], given[2])),
    ):
        np.testing.assert_array_equal(found.values, expected.values)
    assert np.abs(found.values).max() > 0
    assert not bob.exists()
    other = clicks.tell(bob, given[0], -1)
    assert np.abs(other.values - found.values).max() > 0
    before = alice.read_bytes()
    for call in (
        lambda: clicks.tell(alice, given[0], 0),
        lambda: clicks.tell(alice, Given((1, 2), (), None), 1),
        lambda: clicks.prefer(alice, given[0], Given((1, 2), (3,), None)),
        lambda: clicks.prefer(alice, given[0], given[0]),
    ):
        with pytest.raises(TrainError):
            call()
    assert alice.read_bytes() == before
    clicks.close()
    learner.close()


def test_clicks_move_the_vector_that_they_start_with(
    load: Callable[..., TinyLoraLlama], tiny_bundle: Path, tmp_path: Path
) -> None:
    llm = load(tiny_bundle, n_ctx=64)
    shape = (llm.basis.groups, llm.basis.u)
    start = MicroVector(np.linspace(-0.2, 0.2, llm.basis.size, dtype=np.float32).reshape(shape))
    prompt, tokens = tuple(PROMPT.encode()), tuple(b"four five")
    zero = MicroVector(np.zeros_like(start.values))
    moved = {}
    for name, begun, at in (
        ("from", start, start),
        ("base", None, None),
        ("zero", zero, None),
    ):
        clicks = clicks_of(llm, begun)
        moved[name] = clicks.tell(tmp_path / f"{name}.state", Given(prompt, tokens, at), 1).values
        clicks.close()
    np.testing.assert_array_equal(moved["zero"], moved["base"])  # a basis without a prior
    assert not np.array_equal(moved["from"], start.values)
    # Without the start one click forgets the vector that drew the answer: it is a step from the base.
    clicks = clicks_of(llm)
    forgotten = clicks.tell(tmp_path / "forgotten.state", Given(prompt, tokens, start), 1).values
    clicks.close()
    assert np.linalg.norm(moved["from"] - start.values) < np.linalg.norm(forgotten - start.values)
