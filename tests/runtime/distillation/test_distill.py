"""A prompt as a vector on the device: on a tiny model it learns, on the real one it closes a share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinylora_edge import MicroVector, TrainError, VectorError, runtime
from tinylora_edge.runtime import Budget, NotImprovedWarning, TinyLoraLlama
from tinylora_edge.tasks.behaviours import Behaviour

QUESTIONS = [f"question {word}?" for word in "abcdefghijklmnopqrst"]
SHOUT = [{"role": "system", "content": "!!!! HELLO !!!!"}]
QUICK: dict[str, Any] = {"max_tokens": 6, "n_threads": 1, "sequences": 8}


@pytest.fixture
def llm(load: Callable[..., TinyLoraLlama], tiny_bundle: Path) -> Iterator[TinyLoraLlama]:
    with load(tiny_bundle, chat_format="chatml") as opened:
        yield opened


@pytest.fixture
def real(load: Callable[..., TinyLoraLlama], smollm2_bundle: Path) -> Iterator[TinyLoraLlama]:
    with load(smollm2_bundle) as opened:
        yield opened


def test_a_vector_comes_nearer_to_the_prompted_model(llm: TinyLoraLlama) -> None:
    rows: list[dict[str, Any]] = []
    found = runtime.distill(llm, SHOUT, QUESTIONS, budget="25ktokens", report=rows.append, **QUICK)
    assert found.improved
    assert found.share == found.replacement.share > 0
    assert found.vector.values.any()
    assert found.vector.values.shape == (llm.basis.groups, llm.basis.u)
    plan, *steps, end = rows
    assert (plan["event"], end["event"]) == ("plan", "end")
    assert found.steps == sum(row["taken"] for row in steps) >= 1
    taken = [row["divergence"] for row in steps if row["taken"]]
    assert taken == sorted(taken, reverse=True), "only what is nearer is taken"
    assert found.questions + plan["deciding"] + plan["held"] <= len(QUESTIONS)
    assert len(found.replacement.before) == plan["held"]
    assert found.replacement.told > found.replacement.bare
    assert found.tokens == end["tokens"] <= 25_000


def test_the_model_is_left_alone(llm: TinyLoraLlama) -> None:
    own = MicroVector.random(llm.basis, 0.5, seed=2)
    llm.swap(own)
    llm.eval([1, 2, 3])
    found = runtime.distill(llm, SHOUT, QUESTIONS, budget="8ktokens", **QUICK)
    assert llm.vector is own
    assert llm.n_tokens == 3
    assert not llm._dependents, "the batches over it are closed"
    assert found.vector != own


def test_same_seed_same_vector(llm: TinyLoraLlama) -> None:
    found = [
        runtime.distill(llm, SHOUT, QUESTIONS, budget="20ktokens", seed=seed, **QUICK) for seed in (1, 1, 2)
    ]
    assert found[0].vector == found[1].vector != found[2].vector
    np.testing.assert_array_equal(found[0].replacement.after, found[1].replacement.after)


def test_a_vector_of_the_model_makes_no_difference(llm: TinyLoraLlama) -> None:
    """The bare model is the base, whatever vector the app has active."""
    bare = runtime.distill(llm, SHOUT, QUESTIONS, budget="9ktokens", **QUICK)
    llm.swap(MicroVector.random(llm.basis, 1.0, seed=2))
    found = runtime.distill(llm, SHOUT, QUESTIONS, budget="9ktokens", **QUICK)
    assert found.vector == bare.vector
    assert found.replacement.shown == bare.replacement.shown


def test_a_budget_of_seconds(llm: TinyLoraLlama) -> None:
    found = runtime.distill(llm, SHOUT, QUESTIONS, budget=Budget(seconds=60, tokens=6000), **QUICK)
    assert found.tokens <= 6000
    with pytest.raises(
        TrainError, match=r"a budget of 0 s is too small: one step takes about \d+ tokens and"
    ):
        runtime.distill(llm, SHOUT, QUESTIONS, budget=0.001, **QUICK)


def test_where_nothing_is_nearer_the_vector_is_zero(
    llm: TinyLoraLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are shortened until none is left: here, because every one of them counts as worse."""
    from tinylora_edge.runtime.distillation.fitting import Fit

    decide = Fit._decide
    monkeypatch.setattr(Fit, "_decide", lambda self, v: decide(self, v) + (100.0 if v.any() else 0.0))
    with pytest.warns(NotImprovedWarning, match="no step came nearer"):
        found = runtime.distill(llm, SHOUT, QUESTIONS, budget="9ktokens", **QUICK)
    assert (found.improved, found.steps) == (False, 0)
    assert not found.vector.values.any()


def test_prompts_of_every_form(llm: TinyLoraLlama) -> None:
    text = SHOUT[0]["content"]
    vectors = [
        runtime.distill(llm, messages, QUESTIONS, budget="6ktokens", **QUICK).vector
        for messages in (text, SHOUT, tuple(SHOUT), Behaviour("own", system=text))
    ]
    assert all(vector == vectors[0] for vector in vectors)
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "HELLO !!!!"}]
    assert runtime.distill(llm, turns, QUESTIONS, budget="9ktokens", **QUICK).vector != vectors[0]


@pytest.mark.parametrize(
    ("messages", "questions", "options", "message"),
    [
        (" ", QUESTIONS, {}, "the prompt is blank"),
        ([], QUESTIONS, {}, "the prompt has no messages"),
        ([{"role": "user", "content": "x"}], QUESTIONS, {}, "last message is one of the user"),
        (SHOUT, QUESTIONS[:4] * 3, {}, "there are 4 different questions, expected at least 6"),
        (SHOUT, QUESTIONS[:3], {"held_out": ["x"]}, "there are 3 different questions, expected at least 4"),
        (SHOUT, QUESTIONS, {"held_out": QUESTIONS[:1]}, "'question a.' is on both sides"),
        (SHOUT, QUESTIONS, {"held_out": []}, "others than those to learn from, but there are none"),
        (SHOUT, QUESTIONS, {"max_tokens": 0}, "at least 1 token .* not 0 at 0.8"),
        (SHOUT, QUESTIONS, {"temperature": 0.0}, "temperature above 0, not 6 at 0.0"),
        (SHOUT, QUESTIONS, {"budget": "soon"}, "budget 'soon' is not valid"),
        (SHOUT, QUESTIONS, {"budget": "300tokens"}, r"300 tokens is too small: one step takes about \d+ tok"),
        ("long " * 2000, QUESTIONS, {}, r"the longest prompt has \d+ tokens, which with 6 .* context of"),
    ],
)
def test_what_cannot_be_distilled(
    llm: TinyLoraLlama, messages: Any, questions: list[str], options: dict[str, Any], message: str
) -> None:
    own = MicroVector.random(llm.basis, 0.5, seed=2)
    llm.swap(own)
    with pytest.raises(TrainError, match=message):
        runtime.distill(llm, messages, questions, **{"budget": "9ktokens", **QUICK, **options})
    assert llm.vector is own
    assert not llm._dependents


def test_a_model_without_a_template(load: Callable[..., TinyLoraLlama], tiny_bundle: Path) -> None:
    with load(tiny_bundle) as llm, pytest.raises(VectorError, match="no chat template"):
        runtime.distill(llm, SHOUT, QUESTIONS, budget="9ktokens", **QUICK)


ASKED = [
    "What is a river?",
    "Describe a guitar.",
    "Why do people like gardens?",
    "How does a clock work?",
    "What is bread made of?",
    "Name three animals.",
    "How can I sleep better?",
    "What is a good gift?",
]


def test_a_prompt_that_changes_nothing_is_refused(real: TinyLoraLlama) -> None:
    own = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # as its template says
    with pytest.raises(TrainError, match=r"the prompt changes nothing: .* 0\.0000 nats a token"):
        runtime.distill(real, own, ASKED, budget="6ktokens", max_tokens=4, n_threads=2)
