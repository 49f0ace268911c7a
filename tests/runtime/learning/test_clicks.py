"""Learning from clicks: what a click is made of, what is kept, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import models
import numpy as np
import pytest
import support

from tinylora_edge import BasisMismatchError, MicroVector, Projection, TrainError, load_bundle
from tinylora_edge.runtime import Clicks, SampledAnswer, TinyLoraLlama

PROMPTS = ("one two three", "quite another text", "a third prompt")
OPTIONS = {"max_tokens": 8, "temperature": 1.0}


@pytest.fixture
def llm(load: Callable[..., TinyLoraLlama], tiny_bundle: Path) -> TinyLoraLlama:
    return load(tiny_bundle, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)


@pytest.fixture
def clicks(llm: TinyLoraLlama) -> Clicks:
    return Clicks(llm, basis=llm.bases.basis(numbers=5), n_threads=1)


def logprob(llm: TinyLoraLlama, vector: MicroVector | None, clicked: SampledAnswer) -> float:
    llm.clear()
    if vector is not None:
        llm.swap(vector)
    rows = models.llama_logits(llm, [*clicked.prompt, *clicked.tokens]).astype(np.float64)
    rows = rows[len(clicked.prompt) - 1 : -1]
    rows -= rows.max(-1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(-1, keepdims=True))
    return float(rows[np.arange(len(clicked.tokens)), clicked.tokens].sum())


def click(clicks: Clicks, state: Path, rounds: int) -> MicroVector:
    for _ in range(rounds):
        number = (vector := clicks.vector(state)).sequence
        answers = clicks.ask(PROMPTS[number % len(PROMPTS)], vector, count=2, seed=number, **OPTIONS)
        if number % 2:
            clicks.prefer(state, *sorted(answers, key=lambda answer: answer.text))
        else:
            clicks.tell(state, answers[0], 1 if len(answers[0].text) > 6 else -1)
    return clicks.vector(state)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_score_is_the_gradient_of_what_the_model_says(llm, tmp_path, stacked):
    under = MicroVector.random(llm.bases.basis(rank=8), 3.0, seed=7) if stacked else None
    clicks = Clicks(llm, basis=llm.bases.basis(numbers=5), under=under, n_threads=1)
    vector = click(clicks, tmp_path / "s", 1)
    assert vector.under == under
    (clicked,) = clicks.ask(PROMPTS[1], vector, count=1, **OPTIONS)
    posterior = clicks._read(tmp_path / "s")
    posterior.step = step = 0.02
    scores, ratios, at = clicks._score(posterior, [clicked])
    assert at.any()

    def alone(values: np.ndarray) -> float:
        return logprob(llm, MicroVector(values.astype(np.float32), under=under), clicked)

    assert ratios[0] == pytest.approx(alone(at) - alone(np.zeros_like(at)), abs=2e-3)
    expected = [(alone(at + e) - alone(at - e)) / (2 * step) for e in step * np.eye(len(at))]
    np.testing.assert_allclose(scores[0], expected, atol=0.05)
    assert np.abs(expected).max() > 0.2
    for wrong in (replace(vector, under=vector), *([None] if stacked else [])):
        with pytest.raises(TrainError, match="another vector beneath"):
            clicks.tell(tmp_path / "s", replace(clicked, vector=wrong), 1)
    assert not clicks._score(posterior, [replace(clicked, vector=under)])[2].any()


@pytest.mark.parametrize("reward", [1, -1])
def test_a_click_goes_along_the_gradient_or_against_it(llm, clicks, tmp_path, reward):
    own = MicroVector.random(llm.bases.basis(rank=2), 0.3, seed=2)
    llm.swap(own)
    (clicked,) = clicks.ask(PROMPTS[0], None, count=1, **OPTIONS)
    vector = clicks.tell(tmp_path / "s", clicked, reward)
    assert llm.vector == own
    assert vector == clicks.vector(tmp_path / "s")
    assert vector.sequence == 1
    scores, _, _ = clicks._score(clicks._read(tmp_path / "s"), [clicked])
    assert reward * scores[0] @ vector.values > 0


def test_a_preference_parts_the_two(clicks: Clicks, tmp_path: Path) -> None:
    first, second = clicks.ask(PROMPTS[0], None, **OPTIONS)
    assert first.text != second.text
    vector = clicks.prefer(tmp_path / "s", second, first)
    scores, _, _ = clicks._score(clicks._read(tmp_path / "s"), [second, first])
    assert (scores[0] - scores[1]) @ vector.values > 0


def test_paused_and_resumed_is_as_if_it_never_stopped(llm, clicks, tmp_path):
    whole = click(clicks, tmp_path / "whole", 6)
    for _ in range(3):
        click(Clicks(llm, basis=llm.bases.basis(numbers=5), n_threads=1), tmp_path / "cut", 2)
    assert clicks.vector(tmp_path / "cut") == whole
    assert whole.sequence == 6


def test_the_state_holds_numbers_and_no_text(clicks: Clicks, tmp_path: Path) -> None:
    secret, path = "my PIN is 4711, and I live at 12 Hill Road", tmp_path / "me.state"
    (clicked,) = clicks.ask(secret, None, count=1, **OPTIONS)
    clicks.tell(path, clicked, 1)
    content = json.loads(path.read_text())
    assert content["identity"] == {"basis": clicks._basis.digest}
    lists = [value for value in content["state"].values() if isinstance(value, list)]
    n = clicks._basis.size
    assert sorted(map(len, lists)) == sorted([(n + 1) ** 2, n + 1, n * n])
    assert all(isinstance(number, float) for numbers in lists for number in numbers)
    assert path.stat().st_mode & 0o077 == 0
    assert [p.name for p in tmp_path.iterdir()] == ["me.state"]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(identity={"basis": "ab" * 32}),
        lambda content: content["state"].update(shift=[0.0]),
        lambda content: content["state"].update(step=0.0),
        lambda content: content["state"].update(clicks=-1),
        lambda content: content["state"]["fisher"].__setitem__(0, float("nan")),
        lambda content: content["state"]["shift"].__setitem__(0, "1"),
    ],
)
def test_a_state_that_no_clicks_gave_is_refused_and_left(clicks: Clicks, tmp_path: Path, change: Any) -> None:
    path = tmp_path / "me.state"
    click(clicks, path, 1)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    damaged = path.read_bytes()
    with pytest.raises(TrainError, match=r"me\.state .*[Rr]emove it to start again"):
        click(clicks, path, 1)
    assert path.read_bytes() == damaged


def test_a_state_that_cannot_be_written_loses_nothing(clicks, tmp_path, monkeypatch):
    path = tmp_path / "me.state"
    before = click(clicks, path, 1)
    kept = path.read_bytes()
    (clicked,) = clicks.ask(PROMPTS[0], before, count=1, **OPTIONS)
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            clicks.tell(path, clicked, 1)
    assert path.read_bytes() == kept
    assert clicks.tell(path, clicked, 1) != before
    with pytest.raises(FileNotFoundError, match="missing does not exist: make this directory"):
        clicks.tell(tmp_path / "missing" / "x.state", clicked, 1)


def test_what_says_nothing_is_refused(clicks: Clicks, tmp_path: Path) -> None:
    clicked = SampledAnswer((1, 2), (3,), None)
    for reward in (0, 2, 0.5, True, None, "1", float("nan")):
        with pytest.raises(TrainError, match=r"a click must be \+1 or -1, not"):
            clicks.tell(tmp_path / "s", clicked, reward)  # type: ignore[arg-type]
    with pytest.raises(TrainError, match="without a token"):
        clicks.tell(tmp_path / "s", SampledAnswer((1, 2), (), None), 1)
    with pytest.raises(TrainError, match="answers to one prompt"):
        clicks.prefer(tmp_path / "s", clicked, SampledAnswer((1,), (4,), None))
    with pytest.raises(TrainError, match=r"at temperatures 1 and 0\.5, so"):
        clicks.prefer(tmp_path / "s", clicked, SampledAnswer((1, 2), (4,), None, 0.5))
    with pytest.raises(TrainError, match="the two answers are the same"):
        clicks.prefer(tmp_path / "s", clicked, clicked)
    with pytest.raises(TrainError, match=r"longest prompt has \d+ tokens, which with 64 to"):
        clicks.ask("x" * 10_000, None)
    assert not list(tmp_path.iterdir())


def test_an_answer_of_another_vector_is_refused(llm: TinyLoraLlama, tmp_path: Path) -> None:
    five, usual = (llm.bases.basis(numbers=n) for n in (5, 13))
    clicks = Clicks(llm, basis=five, n_threads=1)
    assert clicks.tell(tmp_path / "s", SampledAnswer((1, 2), (3,), None), 1).basis == five.digest
    with pytest.raises(BasisMismatchError):
        clicks.tell(tmp_path / "s", SampledAnswer((1, 2), (3,), MicroVector.zeros(usual)), 1)


def test_clicks_move_the_vector_that_they_start_with(llm: TinyLoraLlama, tmp_path: Path) -> None:
    start = MicroVector.random(llm.bases.basis(numbers=13), 0.4, seed=1)
    prompt, tokens = tuple(PROMPTS[0].encode()), tuple(b"four five")
    moved = {}
    for name, begun, at in (("from", start, start), ("base", None, None), ("forgotten", None, start)):
        clicks = Clicks(llm, start=begun, n_threads=1)
        moved[name] = clicks.tell(tmp_path / name, SampledAnswer(prompt, tokens, at), 1).values
        assert not np.array_equal(moved["from"], start.values)
    # Without the start one click forgets the vector that drew the answer: it is a step from the base.
    away = np.linalg.norm(moved["from"] - start.values)
    assert away < np.linalg.norm(moved["forgotten"] - start.values)


def test_learned_directions_lend_their_prior(load, tiny_bundle, tmp_path):
    bases = load_bundle(tiny_bundle).bases
    p = np.random.default_rng(0).standard_normal((13, len(bases.factors.modules), 2, 2)) / 4
    bundles = []
    for name, prior in {"known": (np.full(13, 0.05), 0.01 * np.eye(13)), "none": None}.items():
        made = bases.with_projection(Projection.learned(bases.factors.modules, p, prior))
        bundles.append(support.bundle_with(made, tiny_bundle / "base.gguf", tmp_path / name))
    with load(bundles[0]) as learned, load(bundles[1]) as plain:
        with_prior, without = (Clicks(each, n_threads=1) for each in (learned, plain))
        assert not with_prior.vector(tmp_path / "s").values.any()
        vector = click(with_prior, tmp_path / "s", 2)
        assert without.vector(tmp_path / "s").sequence == 2
        assert without.vector(tmp_path / "s") != vector
