"""Learning a basis and distilling a prompt, on the real model, as small as they get."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinylora_edge import Basis, BasisError, TrainError, load_basis, runtime, save_basis
from tinylora_edge.runtime.llama.batch import Batch
from tinylora_edge.tasks.behaviours import Behaviour, Contrast
from tinylora_edge.train.learned import Learned, LearnSettings, Metric, learn, questions_of
from tinylora_edge.train.learned.distillation import DistillSettings, directions_of, distill

SETTINGS = LearnSettings(directions=2, questions=2, max_tokens=6)
BEHAVIOURS = (
    Behaviour("pirate", "persona", "Talk like a pirate."),
    Behaviour("capitals", "casing", "WRITE EVERYTHING IN CAPITAL LETTERS."),
    Behaviour("french", "language", "Answer in French."),
)
TONGUE = Contrast(
    "tongue",
    (Behaviour("tongue +1", system="Speak French in every answer."),),
    (Behaviour("tongue -1", system="Answer as you always do."),),
)
NAMING = LearnSettings(directions=2, questions=2, max_tokens=6, axis_questions=16, axis_tokens=6)
QUESTIONS = [
    "What is a river?",
    "Describe a guitar.",
    "Why do people like gardens?",
    "How does a clock work?",
]
HELD_OUT = ["What is a harbor?", "Describe a candle."]


def run(bundle: Path, folder: Path, **options: Any) -> Learned:
    options = {"behaviours": BEHAVIOURS, "settings": SETTINGS, "dtype": "fp32", "workers": 2, **options}
    return learn(bundle, folder, **options)


@pytest.fixture(scope="module")
def learned(
    smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Learned, Path, list[Any]]:
    """A basis, the folder that it was learned in, and what was reported."""
    folder, figures = tmp_path_factory.mktemp("learned") / "sub" / "folder", []
    return run(smollm2_bundle, folder, report=figures.append), folder, figures


def test_what_is_learned_is_a_basis_of_the_same_factors(smollm2_bundle, learned):
    made, before = learned[0].basis, load_basis(smollm2_bundle / "basis.gguf")
    assert (made.projection, made.u, made.groups, made.size) == ("explicit", 2, 1, 2)
    assert made.modules == before.modules
    assert made.base_fingerprints == before.base_fingerprints
    assert all(np.array_equal(x, y) for x, y in zip((*made.a, *made.b), (*before.a, *before.b), strict=True))
    assert made.digest != before.digest
    assert made.prior_mean.shape == (2,)


def test_a_unit_of_a_direction_is_a_unit_of_effect(learned):
    made, folder, _ = learned
    slopes = [np.load(path) for path in sorted(folder.glob("*.npz"))]
    scores = np.concatenate([each["score"].reshape(-1, 840) for each in slopes])
    metric = Metric.of(scores, sum(int(each["tokens"].sum()) for each in slopes))
    flat = directions_of(made.basis).reshape(2, -1).astype(np.float64)
    np.testing.assert_allclose(flat @ metric.information @ flat.T, np.eye(2), atol=1e-4)


def test_each_behaviour_is_reported(learned):
    made, _, figures = learned
    assert [name for name, _, _ in made.behaviours] == ["pirate", "capitals", "french"]
    before, held = np.array([each[1:] for each in made.behaviours]).T
    assert (before > 0.05).all()
    assert (held > 0.2).all(), "2 directions hold most of what 3 behaviours ask for"
    assert 0.5 < made.energy.sum() <= 1.0001
    assert [(f["event"], f["done"], f["of"]) for f in figures] == [
        (event, done, 3) for event in ("answers", "behaviour") for done in (1, 2, 3)
    ]
    assert len(repr(made)) < 400


def test_what_is_done_is_not_done_again(smollm2_bundle, learned):
    made, folder, _ = learned
    again: list[Any] = []
    same = run(smollm2_bundle, folder, report=again.append)
    assert again == []
    assert same.basis.digest == made.basis.digest


@pytest.mark.parametrize(("event", "slopes", "answers"), [("answers", 0, 2), ("behaviour", 1, 2)])
def test_an_interrupted_run_goes_on_to_the_same_basis(
    smollm2_bundle, learned, tmp_path, monkeypatch, event, slopes, answers
):
    """Neither an answer nor a slope is made twice, and what is kept is gone at the end."""

    def stop(figures: dict[str, Any]) -> None:
        if figures["event"] == event and figures["done"] >= answers - slopes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(smollm2_bundle, tmp_path, report=stop)
    assert len(list(tmp_path.glob("*.npz"))) == slopes
    assert len(list(tmp_path.glob("*.answers"))) == answers
    drawn: list[Any] = []
    generate = Batch.generate
    monkeypatch.setattr(Batch, "generate", lambda *a, **k: drawn.append(1) or generate(*a, **k))
    rest: list[Any] = []
    resumed = run(smollm2_bundle, tmp_path, report=rest.append)
    assert len(drawn) == 3 - slopes - answers
    assert [f["done"] for f in rest if f["event"] == "behaviour"] == list(range(slopes + 1, 4))
    assert resumed.basis.digest == learned[0].basis.digest
    assert not list(tmp_path.glob("*.answers"))


def test_the_tiled_form_keeps_scales(smollm2_bundle, learned):
    tiled = run(
        smollm2_bundle, learned[1], settings=LearnSettings(**{**vars(SETTINGS), "form": "tiled"})
    ).basis
    assert (tiled.u, tiled.groups, tiled.scheme, tiled.projection) == (1, 2, "tiled", "explicit")


def test_a_named_axis_is_the_first_value(smollm2_bundle, learned, tmp_path):
    state = shutil.copytree(learned[1], tmp_path / "state")
    before = len(list(state.glob("*.npz")))
    done: list[Any] = []
    found = run(smollm2_bundle, state, axes=[TONGUE], settings=NAMING, report=done.append)
    assert found.basis.axes == ("tongue", "learned-1")
    taken = [f for f in done if f["event"] == "behaviour"]
    assert [(f["name"], f["done"], f["of"]) for f in taken] == [("tongue +1", 4, 5), ("tongue -1", 5, 5)]
    assert len(list(state.glob("*.npz"))) == before + 2, "the behaviours are not done again"
    (axis,) = found.axes
    assert (axis.name, axis.own) == ("tongue", 1)
    assert axis.length > 0.1
    assert 0.3 < axis.signal <= 1
    assert [name for name, _, _ in found.behaviours] == ["pirate", "capitals", "french"]
    files = [np.load(path) for path in state.glob("*.npz")]
    flat = directions_of(found.basis).reshape(2, -1)
    along = [
        float(flat[0] @ each["divergence"].sum(0).reshape(-1)) for each in files if len(each["tokens"]) == 16
    ]
    assert min(along) < 0, "more of the axis is nearer to French"
    again = run(smollm2_bundle, state, axes=[TONGUE], settings=NAMING, report=done.append)
    assert len(done) == 4, "two answers and two slopes, from before"
    assert again.basis.digest == found.basis.digest


def test_a_prompt_becomes_a_vector_that_the_deployed_model_runs(smollm2_bundle, learned, tmp_path):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "base.gguf").symlink_to(smollm2_bundle / "base.gguf")
    save_basis(learned[0].basis, bundle / "basis.gguf")
    settings = DistillSettings(max_tokens=8, steps=6)
    found = distill(bundle, BEHAVIOURS[0], QUESTIONS, HELD_OUT, settings=settings, dtype="fp32", workers=2)
    replacement = found.replacement
    assert found.share == replacement.share == 1 - replacement.after.sum() / replacement.before.sum()
    assert found.share > 0.05, "a direction of the pirate's was learned"
    assert found.vector.values.shape == (1, 2)
    assert (replacement.told, replacement.bare) == (23.5, 34.5), "the template has a system prompt of its own"
    assert [each.question for each in replacement.shown] == HELD_OUT
    with runtime.load(bundle, found.vector, engine="llama", n_ctx=256, n_threads=2) as llm:
        done: Any = llm.create_chat_completion(
            BEHAVIOURS[0].bare(HELD_OUT[0]), max_tokens=40, temperature=0.0
        )
    assert done["choices"][0]["message"]["content"] == replacement.shown[0].personalized


NOTHING = Behaviour(
    "nothing", "nothing", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
)  # which is what the model's own template says where nobody says anything


def test_a_teacher_that_changes_nothing_is_refused(smollm2_bundle, tmp_path):
    with pytest.raises(TrainError, match=r"'nothing' changes nothing: its answers are 0\.0000 nats a token"):
        run(smollm2_bundle, tmp_path, behaviours=[NOTHING, *BEHAVIOURS[:1]])
    settings = DistillSettings(max_tokens=2, steps=1)
    with pytest.raises(TrainError, match=r"the prompt changes nothing: .* 0\.0000 nats a token"):
        distill(smollm2_bundle, NOTHING, QUESTIONS[:1], HELD_OUT[:1], settings=settings, dtype="fp32")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"behaviours": BEHAVIOURS[:1]}, "1 behaviours cannot teach 2 directions"),
    ({"settings": LearnSettings(directions=841), "behaviours": BEHAVIOURS * 300}, "R has 840 numbers, fewer"),
    (
        {"behaviours": [Behaviour("few", "f", "Be brief.", (), tuple(QUESTIONS)), *BEHAVIOURS],
         "settings": LearnSettings(directions=2, questions=5)},
        "'few' has 4 questions, and 5 are asked",
    ),
    (
        {"behaviours": [Behaviour("long", "l", "word " * 9000), *BEHAVIOURS]},
        "'long' has a prompt of .* context of",
    ),
    ({"axes": [TONGUE], "settings": LearnSettings(directions=2, form="tiled")}, "'tiled' is one tile of"),
    ({"axes": [TONGUE, TONGUE, TONGUE]}, "3 named axes do not fit into 2 numbers"),
    ({"axes": [TONGUE], "settings": LearnSettings(directions=5)}, "3 behaviours cannot teach 4 directions"),
]  # fmt: skip
IDS = ["few", "numbers", "questions", "long", "tiled", "axes", "few beside axes"]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=IDS)
def test_what_cannot_be_learned_is_refused(smollm2_bundle, tmp_path, options, message):
    with pytest.raises(TrainError, match=message):
        run(smollm2_bundle, tmp_path / "state", **options)
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize("names", [("learned-1",), ("tongue", "tongue"), (" ",)])
def test_names_that_axes_cannot_have_are_refused_before_anything_is_done(smollm2_bundle, tmp_path, names):
    axes = [replace(TONGUE, name=name) for name in names]
    settings = LearnSettings(directions=3)
    with pytest.raises(BasisError, match=r"both called|characters"):
        run(smollm2_bundle, tmp_path / "state", axes=axes, settings=settings)
    assert not (tmp_path / "state").exists()


def test_a_learned_basis_is_not_learned_again(smollm2_bundle, learned, tmp_path):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "base.gguf").symlink_to(smollm2_bundle / "base.gguf")
    save_basis(learned[0].basis, bundle / "basis.gguf")
    with pytest.raises(TrainError, match=f"basis {learned[0].basis.id} has explicit projections already"):
        run(bundle, tmp_path / "state")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LearnSettings(form="flat"), "unknown form 'flat': choose one of dense, tiled"),
        (lambda: LearnSettings(questions=0), "at least 1"),
        (lambda: DistillSettings(steps=0), "at least 1"),
        (lambda: LearnSettings(axis_questions=7), "at least 8 questions"),
    ],
)
def test_settings_are_checked(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        make()


def test_questions_are_divided(smollm2_bundle):
    with pytest.raises(TrainError, match="not 4 and 2 with 1 on both sides"):
        distill(smollm2_bundle, BEHAVIOURS[0], QUESTIONS, [HELD_OUT[0], QUESTIONS[0]])


def test_questions_are_drawn_by_seed_and_name():
    general = [f"Question {i}?" for i in range(40)]
    drawn = questions_of(BEHAVIOURS[0], general, LearnSettings())
    assert len(set(drawn)) == 8
    assert drawn == questions_of(BEHAVIOURS[0], general, LearnSettings())
    assert drawn != questions_of(BEHAVIOURS[1], general, LearnSettings())
    assert drawn != questions_of(BEHAVIOURS[0], general, LearnSettings(seed=1))


@pytest.mark.parametrize(("groups", "u"), [(3, 1), (2, 3), (1, 4)])
def test_directions_of_a_basis_are_what_its_values_add_to_r(tiny_basis: Callable[..., Basis], groups, u):
    basis = tiny_basis(groups=groups, u=u)
    values = np.random.default_rng(0).standard_normal(basis.size).astype(np.float32)
    summed = np.tensordot(values, directions_of(basis), 1)
    np.testing.assert_allclose(summed, basis.R(values), rtol=1e-5, atol=1e-6)
