"""Learning from clicks: what a click is made of, what is kept, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import llama_cpp
import models
import numpy as np
import pytest
import support

from tinylora_edge import BasisMismatchError, Bundle, MicroVector, TrainError, VectorError
from tinylora_edge.errors import TinyLoraError
from tinylora_edge.runtime import Answer, FeedbackLearner, TinyLoraLlama
from tinylora_edge.runtime.batch import Batch

PROMPTS = ("one two three", "quite another text", "a third prompt")
OPTIONS = {"max_tokens": 8, "n_ctx_seq": 64, "temperature": 1.0, "n_threads": 1}


@pytest.fixture
def llm(load: Callable[..., TinyLoraLlama], tiny_bundle: Path) -> TinyLoraLlama:
    return load(tiny_bundle, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)


@pytest.fixture
def tuner(llm: TinyLoraLlama, tmp_path: Path) -> Iterator[FeedbackLearner]:
    with FeedbackLearner(llm, tmp_path / "me.state", seed=3, **OPTIONS) as made:
        yield made


def logprob(llm: TinyLoraLlama, vector: MicroVector | None, prompt: list[int], tokens: list[int]) -> float:
    """Of a completion, by one evaluation of the whole sequence in the caller's own model."""
    llm.clear()
    if vector is not None:
        llm.swap(vector)
    rows = models.llama_logits(llm, [*prompt, *tokens])[len(prompt) - 1 : -1].astype(np.float64)
    rows -= rows.max(-1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(-1, keepdims=True))
    return float(rows[np.arange(len(tokens)), tokens].sum())


def click(tuner: FeedbackLearner, rounds: int) -> None:
    """A user of some taste: likes long words, and of two texts the one that comes first in the alphabet."""
    for number in range(rounds):
        prompt = PROMPTS[number % len(PROMPTS)]
        if number % 2:
            answers = sorted(tuner.ask_pair(prompt), key=lambda answer: answer.text)
            tuner.prefer(*answers)
        else:
            answer = tuner.ask(prompt)
            tuner.tell(answer, 1 if len(answer.text) > 6 else -1)


def test_a_score_is_the_gradient_of_what_the_model_says(llm: TinyLoraLlama, tuner: FeedbackLearner) -> None:
    tuner.tell(tuner.ask(PROMPTS[0]), 1)
    answer = tuner.ask(PROMPTS[1])
    shown = tuner._shown[answer.number]
    at, step = shown.at, 0.02
    assert at.any()
    tuner._state.step = step
    scores, ratios = tuner._score(tuner._state, [shown])

    def alone(values: np.ndarray) -> float:
        vector = MicroVector(values.astype(np.float32).reshape(llm.basis.groups, -1))
        return logprob(llm, vector, shown.prompt, shown.tokens)

    assert ratios[0] == pytest.approx(alone(at) - alone(np.zeros_like(at)), abs=2e-3)
    expected = [(alone(at + e) - alone(at - e)) / (2 * step) for e in step * np.eye(len(at))]
    np.testing.assert_allclose(scores[0], expected, atol=0.05)
    assert np.abs(expected).max() > 0.2


@pytest.mark.parametrize("reward", [1, -1])
def test_a_click_makes_such_answers_likelier_or_not(
    llm: TinyLoraLlama, tuner: FeedbackLearner, reward: int
) -> None:
    answer = tuner.ask(PROMPTS[0])
    shown = tuner._shown[answer.number]
    vector = tuner.tell(answer, reward)
    assert vector == tuner.vector
    assert vector.sequence == tuner.clicks == 1
    now, base = (logprob(llm, v, shown.prompt, shown.tokens) for v in (vector, None))
    assert (now - base) * reward > 0.02


def test_a_preference_parts_the_two(llm: TinyLoraLlama, tuner: FeedbackLearner) -> None:
    first, second = tuner.ask_pair(PROMPTS[0])
    assert first.text != second.text
    shown = [tuner._shown[answer.number] for answer in (second, first)]
    vector = tuner.prefer(second, first)
    better, worse = (
        logprob(llm, vector, s.prompt, s.tokens) - logprob(llm, None, s.prompt, s.tokens) for s in shown
    )
    assert better - worse > 0.02


def test_a_simulated_user_gets_more_of_what_it_likes(llm: TinyLoraLlama) -> None:
    """It likes answers of many low bytes, and what it gets has more of them after 40 clicks."""

    def share(tokens: Sequence[int]) -> float:
        return float(np.mean([token < 128 for token in tokens]))

    def measured(vector: MicroVector | None) -> float:
        prompts = [list(text.encode()) for text in PROMPTS]
        with Batch(llm, n_ctx_seq=64, sequences=16, n_threads=1) as batch:
            batch.swap(vector)
            drawn = batch.generate(prompts, samples=100, max_tokens=8, temperature=1.0, seed=99)
        return float(np.mean([share(generation.tokens) for generation in drawn]))

    gains = []
    for seed in range(2):
        with FeedbackLearner(llm, seed=seed, **OPTIONS) as tuner:
            for number in range(40):
                answer = tuner.ask(PROMPTS[number % len(PROMPTS)])
                tokens = tuner._shown[answer.number].tokens
                tuner.tell(answer, 1 if share(tokens) > 0.5 else -1)
            gains.append(measured(tuner.vector) - measured(None))
    assert np.mean(gains) > 0.02, gains


def test_the_model_s_own_vector_is_left_alone(llm: TinyLoraLlama, tuner: FeedbackLearner) -> None:
    own = MicroVector.random(llm.basis, 0.3, seed=2)
    llm.swap(own)
    click(tuner, 2)
    assert llm.vector == own


def test_paused_and_resumed_is_as_if_it_never_stopped(llm: TinyLoraLlama, tmp_path: Path) -> None:
    with FeedbackLearner(llm, seed=5, **OPTIONS) as tuner:
        click(tuner, 8)
        whole = tuner.vector
    path = tmp_path / "me.state"
    for start in range(4):
        with FeedbackLearner(
            llm, path, seed=5 if start == 0 else 77, **OPTIONS
        ) as tuner:  # the state keeps its own
            assert tuner.clicks == 2 * start
            prompts = [PROMPTS[(2 * start + i) % len(PROMPTS)] for i in range(2)]
            answer = tuner.ask(prompts[0])
            tuner.tell(answer, 1 if len(answer.text) > 6 else -1)
            tuner.prefer(*sorted(tuner.ask_pair(prompts[1]), key=lambda answer: answer.text))
            paused = tuner.vector
    assert paused == whole
    assert paused.sequence == 8
    with FeedbackLearner(llm, seed=6, **OPTIONS) as tuner:
        click(tuner, 8)
        assert tuner.vector != whole


def test_the_state_holds_no_text(llm: TinyLoraLlama, tmp_path: Path) -> None:
    """Neither words nor tokens; and its length does not depend on what was said."""
    path, secret = tmp_path / "me.state", "my PIN is 4711, and I live at 12 Hill Road"
    lengths, said = set(), set()
    with FeedbackLearner(llm, path, **OPTIONS) as tuner:
        for number in range(6):
            prompt = secret if number else "x"
            answer = tuner.ask(prompt)
            tokens = tuner._shown[answer.number].tokens
            for text in (secret.encode(), answer.text.encode()):
                said |= {text[i : i + 5] for i in range(len(text) - 4)}
            for kind in ("<i2", "<i4", "<i8", "<f4", "<f8"):
                said |= {np.array(tokens[i : i + 3], kind).tobytes() for i in range(len(tokens) - 2)}
            tuner.tell(answer, 1 if number % 2 else -1)
            lengths.add(path.stat().st_size)
    data = path.read_bytes()
    n = llm.basis.size
    assert lengths == {8 + 32 + 4 + 5 * 8 + 8 * ((n + 1) ** 2 + n + 1 + n * n) + 32}
    assert len(said) > 100
    assert not [part for part in said if part in data]
    middle = np.frombuffer(data[84:-32], "<f8")  # all that is not in a fixed field of the header is a number
    assert len(middle) == (n + 1) ** 2 + n + 1 + n * n
    assert np.isfinite(middle).all()
    assert path.stat().st_mode & 0o077 == 0
    assert [p.name for p in tmp_path.iterdir()] == ["me.state"]


def test_damage_of_any_byte_is_refused(llm: TinyLoraLlama, tuner: FeedbackLearner, tmp_path: Path) -> None:
    click(tuner, 2)
    path = tmp_path / "me.state"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:-1], whole + b"x", whole[:40], b"", b"{}"]
    for position in (*range(84), *rng.integers(84, len(whole), 30).tolist()):
        damaged.append(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises((TrainError, BasisMismatchError), match=r"me\.state .*(begin anew)"):
            FeedbackLearner(llm, path, **OPTIONS)
        assert path.read_bytes() == data


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e300])
@pytest.mark.parametrize("place", [76, 84, -40])  # of the step, of the precision and of the information
def test_numbers_that_no_clicks_give_are_refused(
    llm: TinyLoraLlama, tuner: FeedbackLearner, tmp_path: Path, place: int, value: float
) -> None:
    click(tuner, 1)
    path = tmp_path / "me.state"
    data = bytearray(path.read_bytes())
    struct.pack_into("<d", data, place % len(data), value)
    data[-32:] = hashlib.sha256(data[:-32]).digest()
    path.write_bytes(data)
    with pytest.raises(TrainError, match=r"me\.state has numbers that no clicks give"):
        FeedbackLearner(llm, path, **OPTIONS)


def test_the_state_of_another_basis_is_refused(
    llm: TinyLoraLlama, tuner: FeedbackLearner, tmp_path: Path
) -> None:
    click(tuner, 1)
    path = tmp_path / "me.state"
    data = bytearray(path.read_bytes())
    data[8:40] = bytes.fromhex("ab" * 32)
    data[-32:] = hashlib.sha256(data[:-32]).digest()
    path.write_bytes(data)
    with pytest.raises(BasisMismatchError, match=f"abababab, but the loaded basis is {llm.basis.digest[:8]}"):
        FeedbackLearner(llm, path, **OPTIONS)


def test_a_state_that_cannot_be_written_loses_nothing(
    llm: TinyLoraLlama, tuner: FeedbackLearner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    click(tuner, 1)
    before, kept = tuner.vector, (tmp_path / "me.state").read_bytes()
    answer = tuner.ask(PROMPTS[0])
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            tuner.tell(answer, 1)
    assert (tuner.vector, tuner.clicks) == (before, 1)
    assert (tmp_path / "me.state").read_bytes() == kept
    assert tuner.tell(answer, 1) != before  # it can be told again


def test_what_was_not_asked_for_is_refused(
    llm: TinyLoraLlama, tuner: FeedbackLearner, tmp_path: Path
) -> None:
    with FeedbackLearner(llm, **OPTIONS) as another:
        for _ in range(3):
            foreign = another.ask(PROMPTS[1])
    answer = tuner.ask(PROMPTS[0])
    first, second = tuner.ask_pair(PROMPTS[0])
    third, _ = tuner.ask_pair(PROMPTS[0])
    for reward in (0, 2, 0.5, True, None, "1", float("nan")):
        with pytest.raises(TrainError, match=r"a click is \+1 or -1, not"):
            tuner.tell(answer, reward)  # type: ignore[arg-type]
    for stranger in (foreign, Answer("made up", True, 99)):
        with pytest.raises(TrainError, match=f"answer {stranger.number} was not asked of this tuner"):
            tuner.tell(stranger, 1)
        with pytest.raises(TrainError, match="was not asked"):
            tuner.prefer(stranger, first)
    for other in (first, third, answer):
        with pytest.raises(TrainError, match="not the two of one pair"):
            tuner.prefer(first, other)
    assert tuner.clicks == 0
    assert not (tmp_path / "me.state").exists()
    tuner.tell(answer, 1)
    tuner.prefer(second, first)
    for told in (answer, first, second):
        with pytest.raises(TrainError, match="told about already"):
            tuner.tell(told, 1)
    assert tuner.clicks == 2


def test_to_prefer_one_of_two_that_are_the_same_is_refused(llm: TinyLoraLlama) -> None:
    with FeedbackLearner(llm, **OPTIONS | {"temperature": 1e-3}) as cold:
        for prompt in PROMPTS:
            first, second = cold.ask_pair(prompt)
            if first.text == second.text:
                break
        with pytest.raises(TrainError, match="the two answers are the same"):
            cold.prefer(first, second)
        assert cold.clicks == 0


def test_arguments_out_of_their_range_are_refused(llm: TinyLoraLlama, tmp_path: Path) -> None:
    for options, message in (
        ({"seed": -1}, "seed -1"),
        ({"temperature": 0.0}, "above 0, not at 0"),
        ({"max_tokens": 0}, "answers of 0 tokens"),
        ({"max_tokens": 64}, "answers of 64 tokens leave no room for a prompt in 64"),
    ):
        with pytest.raises(TrainError, match=message):
            FeedbackLearner(llm, **{**OPTIONS, **options})
    with pytest.raises(TrainError, match=r'this is a str.*engine="llama"'):
        FeedbackLearner("model")  # type: ignore[arg-type]
    with FeedbackLearner(llm, **OPTIONS) as tuner:
        with pytest.raises(VectorError, match="the prompt has 57 tokens, which with 8 to answer pass the 64"):
            tuner.ask("x" * 57)
        answer = tuner.ask(PROMPTS[0])
    with pytest.raises(TinyLoraError, match="closed"):
        tuner.tell(answer, 1)
    with pytest.raises(FileNotFoundError, match="missing does not exist: make it"):
        FeedbackLearner(llm, tmp_path / "missing" / "x.state", **OPTIONS)


def test_a_learned_basis_lends_its_prior(
    load: Callable[..., TinyLoraLlama], tiny_bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Paused and resumed it is the same; and a state from before there was a prior keeps its clicks."""
    bundle = tiny_bundles["dense"]
    mean, covariance = np.full(6, 0.05, np.float32), 0.01 * np.eye(6, dtype=np.float32)
    covariance[0, 1] = covariance[1, 0] = 0.004
    basis = dataclasses.replace(Bundle.find(bundle).basis, prior_mean=mean, prior_covariance=covariance)
    path = tmp_path / "me.state"
    with (
        load(support.rebased(bundle, basis, tmp_path / "learned")) as llm,
        FeedbackLearner(llm, path, seed=3, **OPTIONS) as tuner,
    ):
        assert not tuner.vector.values.any()
        click(tuner, 2)
        posterior = tuner._state.posterior
        np.testing.assert_array_equal(posterior.prior.covariance, covariance.astype(float))
        assert posterior.solved()[0][:6] @ mean > 0
        with FeedbackLearner(llm, path, **OPTIONS) as again:
            assert again.vector == tuner.vector
        with load(bundle) as plain, FeedbackLearner(plain, path, **OPTIONS) as without:
            assert without.clicks == 2
            assert without.vector != tuner.vector
            np.testing.assert_array_equal(without._state.posterior.shift, posterior.shift)
