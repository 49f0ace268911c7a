"""A prompt as a vector on the device: on tiny models of both engines it comes nearer to the prompted one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinylora_edge import MicroVector, NotImprovedWarning, TrainError, VectorError, runtime
from tinylora_edge.runtime import TinyLoraLlama, TinyLoraOnnx, TuneSettings
from tinylora_edge.runtime.learning.contrast import Contrast, Lesson, divergence
from tinylora_edge.runtime.model import PersonalizedModel
from tinylora_edge.tasks import Sample
from tinylora_edge.tasks.behaviours import Behaviour

QUESTIONS = [f"question {word}?" for word in "abcdefghijklmnopqrst"]
SHOUT = "!!!! HELLO !!!!"
QUICK: dict[str, Any] = {"max_tokens": 6, "n_threads": 1, "sequences": 8}


@pytest.fixture
def llama(load: Callable[..., TinyLoraLlama], tiny_bundle: Path) -> Iterator[TinyLoraLlama]:
    with load(tiny_bundle, chat_format="chatml") as opened:
        yield opened


def test_a_vector_comes_nearer_to_the_prompted_model(either: PersonalizedModel) -> None:
    own = MicroVector.random(either.bases.basis(numbers=5), 0.5, seed=2)
    either.swap(own)
    rows: list[dict[str, Any]] = []
    found = runtime.distill(either, SHOUT, QUESTIONS, budget="30ktokens", report=rows.append, **QUICK)
    assert either.vector is own
    assert found.improved
    assert found.replacement.share > 0
    assert len(found.replacement.before) == len(QUESTIONS) // 3
    assert found.replacement.told > found.replacement.bare
    assert len(found.replacement.shown) == 3
    assert all(each.prompted for each in found.replacement.shown)
    assert found.steps == rows[-1]["steps"] >= 3
    assert rows[-1]["tokens"] <= 33_000
    assert found.tokens > rows[-1]["tokens"], "measuring comes on top"
    either.clear()
    again = runtime.distill(either, SHOUT, QUESTIONS, budget="30ktokens", **QUICK)
    assert again.vector == found.vector, "the same seed, and the app's own vector makes no difference"
    np.testing.assert_array_equal(found.replacement.after, again.replacement.after)


def test_paused_it_goes_on(llama: TinyLoraLlama, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        **QUICK,
        "basis": llama.bases.basis(numbers=5),
        "settings": TuneSettings(held_back=4, prompts=4),
        "path": tmp_path / "s",
    }
    first, second = (runtime.distill(llama, SHOUT, QUESTIONS, budget="9ktokens", **options) for _ in range(2))
    assert 0 < first.steps < second.steps
    assert second.vector.basis == options["basis"].digest


def test_where_nothing_is_nearer_the_vector_is_zero(
    llama: TinyLoraLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Contrast.divergences

    def worse(self: Contrast, vector: MicroVector | None, questions: Any = None) -> Any:
        return found(self, vector, questions) + (100.0 if vector is not None and vector.values.any() else 0.0)

    monkeypatch.setattr(Contrast, "divergences", worse)
    with pytest.warns(NotImprovedWarning):
        result = runtime.distill(llama, SHOUT, QUESTIONS, budget="9ktokens", **QUICK)
    assert not result.improved
    assert not result.vector.values.any()


def test_both_engines_say_the_same(tiny_bundle: Path, onnx: TinyLoraOnnx) -> None:
    rng = np.random.default_rng(0)
    answers = [rng.integers(40, 90, length, dtype=np.int32) for length in (5, 3, 6, 1, 4, 6)]
    bare = [rng.integers(40, 90, 7 + i, dtype=np.int32) for i in range(len(answers))]
    lesson = Lesson("x", [np.concatenate([bare[0][::-1], each]) for each in bare], bare, answers)
    found = []
    with runtime.load(tiny_bundle, engine="llama", n_ctx=64, n_threads=1) as llama:
        for each in (llama, onnx):
            with each.batch([Sample("x" * 30, raw=True)], 40, sequences=4, n_threads=1) as batch:
                contrast = Contrast(batch, lesson)
                vector = MicroVector.random(each.bases.basis(numbers=5), 0.5, seed=3)
                found.append([*contrast.divergences(None), *contrast.divergences(vector, [1, 2])])
    assert found[0] == pytest.approx(found[1], rel=0.02)
    assert min(found[0]) > 0


def test_the_divergence_of_rows() -> None:
    rows = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    np.testing.assert_allclose(divergence(rows, rows[[1, 1]]), [expected, 0.0], atol=1e-12)


@pytest.mark.parametrize(
    ("prompt", "questions", "options", "message"),
    [
        (" ", QUESTIONS, {}, "blank text"),
        (SHOUT, QUESTIONS[:4] * 3, {}, "there are 4 different questions, expected at least 6"),
        (SHOUT, QUESTIONS[:3], {"held_out": ["x"]}, "there are 3 different questions, expected at least 4"),
        (SHOUT, QUESTIONS, {"held_out": QUESTIONS[:1]}, "'question a.' is on both sides"),
        (SHOUT, QUESTIONS, {"held_out": []}, "others than those to learn from, but there are none"),
        (SHOUT, QUESTIONS, {"max_tokens": 0}, "at least 1 token .* not 0 at 0.8"),
        (SHOUT, QUESTIONS, {"temperature": 0.0}, "temperature above 0, not 6 at 0.0"),
        (SHOUT, QUESTIONS, {"budget": "soon"}, "budget 'soon' is not valid"),
        (SHOUT, QUESTIONS, {"budget": "300tokens"}, r"300 tokens is too small: one step takes about \d+ s"),
        ("long " * 2000, QUESTIONS, {}, r"the longest prompt has \d+ tokens, which with 6 .* context of"),
    ],
)
def test_what_cannot_be_distilled(
    llama: TinyLoraLlama, prompt: str, questions: list[str], options: dict[str, Any], message: str
) -> None:
    own = MicroVector.random(llama.bases.basis(rank=3), 0.5, seed=2)
    llama.swap(own)
    with pytest.raises(TrainError, match=message):
        runtime.distill(llama, prompt, questions, **{"budget": "9ktokens", **QUICK, **options})
    assert llama.vector is own


def test_worked_examples_and_a_model_without_a_template(
    llama: TinyLoraLlama, load: Callable[..., TinyLoraLlama], tiny_bundle: Path
) -> None:
    shown = Behaviour("own", examples=(("a?", "HELLO !!!!"),))
    assert runtime.distill(llama, shown, QUESTIONS, budget="9ktokens", **QUICK).steps > 0
    with load(tiny_bundle) as plain, pytest.raises(VectorError, match="no chat template"):
        runtime.distill(plain, SHOUT, QUESTIONS, budget="9ktokens", **QUICK)


def test_a_prompt_that_changes_nothing_is_refused(
    load: Callable[..., TinyLoraLlama], smollm2_bundle: Path
) -> None:
    own = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # as its template says
    with load(smollm2_bundle) as real, pytest.raises(TrainError, match=r"changes nothing: .* 0\.0000 nats"):
        runtime.distill(real, own, QUESTIONS[:8], budget="6ktokens", max_tokens=4, n_threads=2)
