"""Texts on a shared vector: full steps in the coordinates of others' texts, from all texts, in one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tinylora_edge import MicroVector, TrainError, load_bundle
from tinylora_edge.tasks import Sample, load_task
from tinylora_edge.tasks.files import rank
from tinylora_edge.train import Options, train
from tinylora_edge.train.learner import Gradient, Group, ModuleWhitening, whitened
from tinylora_edge.train.texts import (
    LENGTHS,
    PLAIN,
    Texts,
    for_whitening,
    in_full_steps,
    make_whitening,
    read_whitening,
    steps_of,
    tenth,
)
from tinylora_edge.wire.values import spread


def samples(count: int, word: str = "c u at") -> list[Sample]:
    return [Sample("", f"{word} {number}, k?", raw=True) for number in range(count)]


@pytest.fixture(scope="module")
def options(tiny: Path) -> Options:
    bases = load_bundle(tiny / "bundle").bases
    shared = MicroVector.random(bases.basis(rank=2), 0.5).to_bytes(bases.basis(rank=2))
    how = {"weights": str(tiny / "weights"), "dtype": "fp32", "workers": 1}
    return Options(under=shared, rank=(6, 4), frame_dtype="fp32", **how)


@pytest.fixture(scope="module")
def whitening(tiny: Path, options: Options) -> bytes:
    return make_whitening(tiny / "bundle", options, samples(40, "others wrote"))


@pytest.fixture
def texts(tiny: Path, options: Options, whitening: bytes) -> Iterator[Texts]:
    with closing(Texts(tiny / "bundle", replace(options, whitening=whitening))) as found:
        yield found


def test_the_first_step_goes_against_the_gradient_of_all_texts_with_equal_singular_values(
    texts: Texts,
) -> None:
    own, told = samples(24), list[dict]()
    found = texts.learn(own, report=told.append)
    assert [each["step"] for each in told] == [1, 2, 3] == [*range(1, steps_of(24) + 1)]
    assert len(found.losses) == 3
    groups, adapter = texts.groups(own), texts.learner.adapter
    adapter.set(np.zeros(texts.basis.size))
    first = texts.learner.gradient(groups)
    assert found.losses[0] == pytest.approx(first.loss, rel=1e-4)
    assert found.tokens == sum(len(group.completions[0]) for group in groups)
    stepped = {}
    for count in (1, 2):
        texts.lengths = LENGTHS[:count]
        stepped[count] = texts.learn(own).values
    within = texts.coordinates_for(groups)
    assert isinstance(within, ModuleWhitening)
    step = np.linalg.solve(within.left, spread(stepped[1], within.entries)) @ np.linalg.inv(within.right)
    downhill = -spread(within.gradient(first.grad.numpy()), within.entries)
    lengths = np.linalg.svd(step, compute_uv=False)
    np.testing.assert_allclose(lengths, lengths.mean(), rtol=1e-3)
    steepest = np.linalg.svd(downhill, compute_uv=False).sum((0, 1)) * lengths.mean()
    assert np.vdot(step, downhill) == pytest.approx(steepest, rel=1e-3), "no such step goes further down"
    assert np.linalg.norm(stepped[1]) == pytest.approx(LENGTHS[0], rel=1e-4)
    assert np.linalg.norm(stepped[2] - stepped[1]) == pytest.approx(LENGTHS[1], rel=1e-4)


def test_steps_are_shorter_where_r_is_not_whitened(tiny: Path, options: Options) -> None:
    with closing(Texts(tiny / "bundle", replace(options, rank=2))) as texts:
        texts.lengths = LENGTHS[:1]
        v = texts.learn(samples(24)).values
        assert np.linalg.norm(texts.basis.R(v)) == pytest.approx(PLAIN * LENGTHS[0], rel=1e-4)


def test_coordinates_are_those_of_the_file_in_every_size(
    tiny: Path, options: Options, whitening: bytes
) -> None:
    others = samples(40, "others wrote")
    for shape in ((6, 4), (8, 8)):
        sized = replace(options, rank=shape)
        with closing(Texts(tiny / "bundle", replace(sized, whitening=whitening))) as texts:
            found = texts.coordinates_for([])
            texts.learner.adapter.set(np.zeros(texts.basis.size))
            exact = whitened(texts.learner, lambda texts=texts: texts.groups(others))
        assert isinstance(found, ModuleWhitening)
        assert isinstance(exact, ModuleWhitening)
        z = np.random.default_rng(0).standard_normal(texts.basis.size).astype(np.float32)
        wanted = exact.values(z)
        assert np.linalg.norm(found.values(z) - wanted) < 0.02 * np.linalg.norm(wanted), "of float16"


def test_a_file_of_another_shared_vector_or_a_damaged_one(
    tiny: Path, options: Options, whitening: bytes
) -> None:
    bases = load_bundle(tiny / "bundle").bases
    other = MicroVector.random(bases.basis(rank=2), 0.5, seed=1).to_bytes(bases.basis(rank=2))
    for wrong, message in (
        (replace(options, whitening=whitening, under=other), "was made for another one"),
        (replace(options, whitening=whitening[:-40]), "is damaged"),
        (replace(options, whitening=b"\xff" * 9), "is damaged"),
        (replace(options, whitening=b""), "is damaged"),
    ):
        with pytest.raises(TrainError, match=message):
            Texts(tiny / "bundle", wrong)


def test_measured_texts_are_learned_by_the_last_run_alone(texts: Texts) -> None:
    own = [*samples(30), samples(30)[3]]  # one is there twice
    held = tenth(own)
    assert len(held) in (5, 6)
    assert {rank(each) for each in held}.isdisjoint(rank(each) for each in own if each not in held)
    found = texts.learn(own, held)
    assert found.measured is not None
    assert found.measured[0].shape == found.measured[1].shape == (len(held),)
    assert found.gain == pytest.approx(float((found.measured[1] - found.measured[0]).mean()))
    assert np.array_equal(found.values, texts.learn(own).values), "all texts are learned from, in the end"


def test_a_step_takes_a_part_of_long_texts_and_the_next_one_another(
    texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, gradient = list[set[int]](), texts.learner.gradient

    def record(groups: Sequence[Group]) -> Gradient:
        taken.append({id(group) for group in groups})
        return gradient(groups)

    monkeypatch.setattr(texts.learner, "gradient", record)
    texts.learn(samples(24))
    assert [len(each) for each in taken] == [24] * 3
    monkeypatch.setattr("tinylora_edge.train.texts.TOKENS", texts.learn(samples(24)).tokens / 100 / 2)
    taken.clear()
    texts.learn(samples(24))
    assert [len(each) for each in taken] == [12] * 3
    assert len(taken[0] | taken[1]) == 24


def test_too_few_and_too_long(texts: Texts) -> None:
    with pytest.raises(TrainError, match="19 texts, and at least 20 are needed"):
        texts.learn(samples(19))
    with pytest.raises(TrainError, match="pass the model's context of"):
        texts.learn([*samples(20), Sample("", "long " * 5000, raw=True)])
    alike = samples(5) * 4
    with pytest.raises(TrainError, match="5 of 20 texts differ, and all of these are held out"):
        texts.learn(alike, tenth(alike))


def test_which_runs_take_full_steps(tmp_path: Path, options: Options) -> None:
    (tmp_path / "mine.txt").write_text("".join(f"c u at {i}, k?\n" for i in range(60)))
    (tmp_path / "asked.jsonl").write_text(
        "".join(f'{{"prompt": "{i}", "answer": "a{i}"}}\n' for i in range(60))
    )
    task = load_task(tmp_path / "mine.txt", reward="text")
    assert in_full_steps(task, options)
    for other in ({"under": None}, {"minutes": 1.0}, {"steps": 3}, {"lr": 0.1}, {"keep": True}):
        assert not in_full_steps(task, replace(options, **other))
    assert not in_full_steps(load_task(tmp_path / "asked.jsonl", reward="text"), options)


@pytest.mark.slow
def test_train_learns_all_texts_and_a_shared_one_gets_its_whitening(
    tiny: Path, options: Options, tmp_path: Path
) -> None:
    (tmp_path / "others.txt").write_text("".join(f"others wrote {i}!\n" for i in range(80)))
    others = load_task(tmp_path / "others.txt")
    shared = replace(
        options, under=None, steps=4, lr=0.1, rank=8, keep=False, evaluate=False, frame_dtype=None
    )
    train(tiny / "bundle", others, tmp_path / "shared.bin", options=shared)
    data = (tmp_path / "shared.bin.whitening").read_bytes()
    (tmp_path / "mine.txt").write_text("".join(f"c u at {i}, k?\n" for i in range(60)))
    own = replace(options, under=(tmp_path / "shared.bin").read_bytes(), whitening=data)
    outcome = train(tiny / "bundle", load_task(tmp_path / "mine.txt"), tmp_path / "v.bin", options=own)
    assert outcome.measured["held_out"]["n"] in range(5, 8)
    bare = replace(own, evaluate=False)
    train(tiny / "bundle", load_task(tmp_path / "mine.txt"), tmp_path / "w.bin", options=bare)
    assert (tmp_path / "v.bin").read_bytes() == (tmp_path / "w.bin").read_bytes()
    bases = load_bundle(tiny / "bundle").bases
    texts = Texts(tiny / "bundle", bare)
    with closing(texts):
        learned = texts.learn(
            [*load_task(tmp_path / "mine.txt").train, *load_task(tmp_path / "mine.txt").drawn]
        )
        assert len(texts.options.under or b"") > 0
        assert read_whitening(data, bases.basis(rank=(6, 4)), texts.shared)
    np.testing.assert_array_equal(
        MicroVector.from_bytes((tmp_path / "v.bin").read_bytes(), bases).values, learned.values
    )
    assert for_whitening(own, bases).rank == bases.factors.shape
