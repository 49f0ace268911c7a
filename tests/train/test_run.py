"""Whole runs on a tiny model through llama.cpp and torch: discipline, resumption, bad input."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import signal
import sys
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import converter
import models
import numpy as np
import pytest
import support

from tinylora_edge import BasisError, BasisMismatchError, MicroVector, TrainError, load_bundle, runtime
from tinylora_edge.errors import VectorError
from tinylora_edge.exporters import export_gguf
from tinylora_edge.runtime.learning.state import as_good
from tinylora_edge.tasks import Completion, Sample, Task
from tinylora_edge.tasks.rewards import text
from tinylora_edge.tasks.sample import spelled, untagged
from tinylora_edge.train import Learner, Options, adapter, grown, train, trainer
from tinylora_edge.train import run as run_module
from tinylora_edge.train.run import chosen_methods, in_own_form

Rows = list[dict[str, Any]]


def steps(rows: Rows) -> Rows:
    """Without what differs between two runs of the same thing: times."""
    return [{k: v for k, v in r.items() if not k.endswith("_s")} for r in rows if "step" in r]


@pytest.fixture
def easy(letters_task: Task) -> Task:
    """Whose reward is always 1: it stands against nothing, and GRPO learns nothing from it."""
    return replace(letters_task, reward=lambda completion, sample: 1.0)


def interrupted(
    bundle: Path, task: Task, output: Path, options: Options, *, at: int | str, resume: bool = False
) -> Any:
    rows: Rows = []

    def interrupt(metrics: dict[str, Any]) -> None:
        rows.append(metrics)
        if at in (metrics.get("step"), metrics.get("event")):
            signal.raise_signal(signal.SIGINT)

    return train(bundle, task, output, options=options, resume=resume, report=interrupt).result, rows


def test_learns_and_ships(tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path) -> None:
    rows: Rows = []
    chosen = replace(options, evaluate=True)
    outcome = train(tiny_bundle, letters_task, tmp_path / "v.bin", options=chosen, report=rows.append)
    bases = load_bundle(tiny_bundle).bases
    data = outcome.path.read_bytes()
    vector = MicroVector.from_bytes(data, bases)
    assert (len(data), vector.dtype) == (572, "q4")
    assert vector == outcome.result.vector, "what is measured is what the frame holds"
    manifest = json.loads((tmp_path / "v.bin.json").read_text())
    assert manifest["basis"] == vector.basis == bases.basis(rank=8).digest
    assert manifest["projection"] == "entries rank=8"
    assert manifest["numbers"] == 896
    assert manifest["held_out"]["n"] == len(letters_task.held_out)
    assert manifest["drift"] == outcome.measured["drift"]
    assert manifest["curve"] == [row for row in rows if row.get("event", "start") == "start"]
    assert rows[0] == {"event": "data", **manifest["data"]}
    assert (manifest["data"]["train"], manifest["data"]["validation"]) == (48, 16)
    (phase,) = manifest["result"]["phases"]
    assert (phase["method"], phase["steps"], phase["temperature"], phase["why"]) == ("grpo", 6, 1.0, None)
    took = [value for row in rows for key, value in row.items() if key.endswith("_s")]
    assert len(took) == 6 * 2 + 1 + 2  # drawn and learned in each step; validated 3 times
    assert manifest["seconds"] == phase["seconds"] > 0
    assert not (tmp_path / "v.bin.run").exists()
    with runtime.load(tiny_bundle, data, n_ctx=64) as llm:
        assert llm.vector == vector


@pytest.mark.usefixtures("training_gains")
def test_what_is_learned_on_a_shared_vector_is_written_alone(tiny_bundle, letters_task, short, tmp_path):
    """As if the run had begun with the shared one, of the same size: it has the same losses."""
    basis = load_bundle(tiny_bundle).basis(rank=8)
    shared = MicroVector.random(basis, 2.0, seed=4)
    runs = {
        "whole": replace(short, start=tuple(shared.values.tolist()), frame_dtype="int8"),
        "own": replace(short, start=None, under=shared.to_bytes(basis), frame_dtype="int8"),
    }
    curves, found, manifests = {}, {}, {}
    for name, options in runs.items():
        train(tiny_bundle, letters_task, tmp_path / name, options=options)
        manifests[name] = json.loads((tmp_path / f"{name}.json").read_text())
        curves[name] = [row["loss"] for row in manifests[name]["curve"] if "loss" in row]
        found[name] = MicroVector.from_bytes((tmp_path / name).read_bytes(), basis)
    assert len(curves["own"]) == 4
    assert curves["own"] == pytest.approx(curves["whole"], rel=1e-2)
    assert manifests["own"]["options"]["under"] == hashlib.sha256(runs["own"].under).hexdigest()
    away = found["whole"].values - shared.values - found["own"].values
    assert np.linalg.norm(away) < 0.1 * np.linalg.norm(found["own"].values)


@pytest.mark.usefixtures("training_gains")
@pytest.mark.parametrize("cut", [5, 11])
def test_a_killed_run_comes_to_the_same_bytes(cut, tiny_bundle, letters_task, options, tmp_path, monkeypatch):
    """Rehearsed: the base's own answers are drawn again, and are the same. SFT and GRPO: in either."""
    monkeypatch.setattr(trainer, "_PATIENCE", 0)  # at SFT's first validation it rounds, at the second it ends
    options = replace(options, method=None, steps=11, keep=True)
    whole: Rows = []
    train(tiny_bundle, letters_task, tmp_path / "whole", options=options, report=whole.append)
    methods = [row["method"] for row in steps(whole)]
    assert methods == ["sft"] * 6 + ["grpo"] * 5

    def crash(metrics: dict[str, Any]) -> None:
        if metrics.get("step") == cut:  # after a checkpoint, before the next
            raise EOFError

    with pytest.raises(EOFError):
        train(tiny_bundle, letters_task, tmp_path / "cut", options=options, report=crash)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(TrainError, match="--resume"):
        train(tiny_bundle, letters_task, tmp_path / "cut", options=options)
    if cut == 11:  # what GRPO has found is not given up for minutes that are over
        brief = replace(options, minutes=1e-4)
        with pytest.raises(TrainError, match=r"0\.0001 minutes are over: what came before grpo took"):
            train(tiny_bundle, letters_task, tmp_path / "cut", options=brief, resume=True)
    rest: Rows = []
    train(tiny_bundle, letters_task, tmp_path / "cut", options=options, resume=True, report=rest.append)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert 0 < len(steps(rest)) < len(steps(whole))
    assert steps(rest) == steps(whole)[-len(steps(rest)) :]
    assert steps(json.loads((tmp_path / "cut.json").read_text())["curve"]) == steps(whole)
    for each in set(methods):  # each falls to a tenth over what it may take
        sizes = [row["lr"] for row in steps(whole) if row["method"] == each]
        most = 11 if each == "sft" else len(sizes)
        np.testing.assert_allclose(sizes, np.linspace(0.2, 0.02, most)[: len(sizes)], rtol=1e-6)


@pytest.mark.parametrize("at", ["start", "temperature", 6])
def test_sigint_saves_and_leaves(at, tiny_bundle, letters_task, options, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        if at != 6:  # before the first step, for which coordinates are found
            patch.setattr(trainer, "whitened", lambda *_: pytest.fail("there is nothing to round"))
        result, _ = interrupted(tiny_bundle, letters_task, tmp_path / "v", options, at=at)
    assert (result.stopped, result.steps) == ("interrupted", at if isinstance(at, int) else 0)
    assert not (tmp_path / "v").exists()
    resumed = train(tiny_bundle, letters_task, tmp_path / "v", options=options, resume=True).result
    assert (resumed.stopped, resumed.steps) == ("done", 6)


def test_a_resumed_run_has_the_minutes_that_it_began_with(tiny_bundle, letters_task, short, tmp_path):
    run = tiny_bundle, letters_task, tmp_path / "v"
    interrupted(*run, replace(short, steps=None, minutes=30), at=2)
    path = tmp_path / "v.run" / "sft.json"
    saved = json.loads(path.read_text())
    saved["state"]["seconds"] = 400  # more than the five minutes of a run that says none
    path.write_text(json.dumps(saved))
    result, _ = interrupted(*run, replace(short, steps=None), at=3, resume=True)
    assert (result.stopped, result.steps) == ("interrupted", 3)
    with pytest.raises(TrainError, match=r"no grpo\.json to resume from: go on with --method sft"):
        train(*run, options=replace(short, method="grpo"), resume=True)


def test_a_resumed_run_has_the_dtype_that_it_began_with(
    tiny_bundle, letters_task, short, tmp_path, monkeypatch
):
    run, free = (tiny_bundle, letters_task, tmp_path / "v"), replace(short, dtype=None)
    monkeypatch.setattr(run_module, "default_dtype", lambda: "bf16")
    interrupted(*run, free, at=2)
    with pytest.raises(TrainError, match="its dtype is 'bf16', this run's is 'fp32'"):
        train(*run, options=replace(short, dtype="fp32"), resume=True)
    monkeypatch.setattr(run_module, "default_dtype", lambda: "fp32")  # what is faster may change by then
    interrupted(*run, free, at=3, resume=True)
    saved = json.loads((tmp_path / "v.run" / "sft.json").read_text())
    assert (saved["identity"]["dtype"], saved["state"]["step"]) == ("bf16", 3)


@pytest.mark.usefixtures("training_gains")
@pytest.mark.parametrize(
    ("change", "size"),
    [
        ({"method": "sft", "rank": None, "start": None, "lr": None}, 572),  # q4
        ({"rank": None, "numbers": 13, "start": (0.1,) * 13}, 37),  # bf16
    ],
)
def test_every_option_runs(change, size, tiny_bundle, letters_task, options, tmp_path):
    rows: Rows = []
    changed = replace(options, **{"steps": 4, "validate_every": 2, **change})
    outcome = train(tiny_bundle, letters_task, tmp_path / "v", options=changed, report=rows.append)
    assert len(outcome.path.read_bytes()) == size
    learned = [row for row in rows if "grad" in row]
    assert learned
    assert all(math.isfinite(row["grad"]) and row["lr"] > 0 and row["mismatch"] < 0.05 for row in learned)


def test_grpo_learns_among_what_a_schema_allows(tiny_bundle, letters_task, options, tmp_path):
    """Tokens that are forced have no gradient, and what is chosen has that of the choice."""
    rows: Rows = []
    labels = tuple(f"{letter}, then" for letter in "abcdefghijklmnop")
    task = replace(letters_task, schema=labels, reward=lambda each, _: labels.index(each.text), max_tokens=9)
    train(tiny_bundle, task, tmp_path / "v", options=replace(options, steps=2), report=rows.append)
    learned = [row for row in rows if "grad" in row]
    assert learned
    assert all(row["grad"] > 0 and row["mismatch"] < 1e-3 for row in learned)


@pytest.mark.parametrize("patience", [4, 0])
def test_few_bits_are_judged_and_learned_with(patience, tiny_bundle, easy, short, tmp_path, monkeypatch):
    """From two thirds on, or where nothing gets better; what is written was judged."""
    monkeypatch.setattr(trainer, "_PATIENCE", patience)
    basis, seen = load_bundle(tiny_bundle).bases.basis(rank=8), list[tuple[str, bool]]()
    judged_values = list[bytes]()

    def watch(name: str, at: int) -> None:
        own = getattr(trainer.Trainer, name)

        def watched(*arguments: Any) -> Any:
            held = MicroVector(arguments[at], "q2", entries=basis.entries).values
            seen.append((name, bool((held == arguments[at]).all())))
            judged_values.extend([held.tobytes()] * (name == "validate"))
            return own(*arguments)

        monkeypatch.setattr(trainer.Trainer, name, watched)

    watch("_learn", 2)
    watch("validate", 1)
    chosen = replace(short, steps=6 if patience else 40, validate_every=3, frame_dtype="q2")
    outcome = train(tiny_bundle, easy, tmp_path / "v", options=chosen)
    learned, rounded, judged = ("_learn", False), ("_learn", True), ("validate", True)
    then = [learned, *[rounded] * 2] if patience else [rounded] * 3
    assert seen == [judged, *[learned] * 3, judged, *then, judged]
    assert outcome.result.vector.values.tobytes() in judged_values
    data = outcome.path.read_bytes()
    assert len(data) == 8 + 14 * 8 + 896 // 4 + 4
    assert MicroVector.from_bytes(data, basis) == outcome.result.vector


def test_a_vector_grows_exactly_or_not_at_all(tiny_bundle: Path) -> None:
    bases = load_bundle(tiny_bundle).bases
    tiled, two, eight = bases.basis(numbers=13), bases.basis(rank=2), bases.basis(rank=8)
    small = MicroVector.random(tiled, 1.0, dtype="bf16")
    assert grown(small, bases, tiled) == tuple(small.values.tolist())
    values = np.array(grown(small, bases, eight), np.float32)
    np.testing.assert_array_equal(eight.R(values)[:, :2, :2], tiled.R(small))
    assert grown(MicroVector(values), bases, two) == grown(small, bases, two)  # the rest is zeros
    with pytest.raises(TrainError, match=r"56 numbers cannot hold a vector of 896 others: .*--rank 8"):
        grown(MicroVector.random(eight, 1.0), bases, two)
    with pytest.raises(TrainError, match=r"13 numbers cannot hold a vector of 56 others: .*--rank 2"):
        grown(MicroVector.random(two, 1.0), bases, tiled)
    tall, within = (bases.basis(rank=shape) for shape in ((6, 3), (6, 8)))
    vector = MicroVector.random(tall, 1.0, dtype="bf16")
    values = np.array(grown(vector, bases, within), np.float32)
    np.testing.assert_array_equal(within.R(values)[:, :6, :3], tall.R(vector))
    assert within.norm(values) == tall.norm(vector), "the rest is zeros"
    with pytest.raises(TrainError, match="--rank 6x3, or of a higher one"):
        grown(vector, bases, two)
    other = support.random_basis(groups=13, blocks=5)
    with pytest.raises(BasisMismatchError, match="none of factors"):
        grown(MicroVector.random(other, 1.0), bases, two)


def test_the_harder_it_rehearses_the_nearer_v_stays(tiny_bundle, letters_task, short, tmp_path, monkeypatch):
    found = {}
    for weight in (None, 1.0, 100.0):
        monkeypatch.setattr(trainer, "KEEP", weight)
        chosen = replace(short, steps=8, keep=weight is not None, start=None)
        _, rows = interrupted(tiny_bundle, letters_task, tmp_path / f"{weight}", chosen, at=8)
        found[weight] = steps(rows)
    assert "moved" not in found[None][0]
    assert found[1.0][0]["moved"] == pytest.approx(0, abs=1e-6), "the base is at no distance from itself"
    last = {weight: rows[-1] for weight, rows in found.items()}
    assert last[100.0]["norm"] < last[1.0]["norm"] < last[None]["norm"]
    assert last[100.0]["moved"] < last[1.0]["moved"]


def test_what_is_trained_longer_is_kept_within_the_noise() -> None:
    top = np.array([1.0] * 12 + [0.0] * 12)
    one_lost, three_lost = top.copy(), top.copy()
    one_lost[0] = three_lost[:3] = 0
    assert as_good(top, top)
    assert as_good(one_lost, top)  # -1/24: its standard error is as large
    assert not as_good(three_lost, top)
    assert as_good(1 - top, top)  # as many won as lost
    assert not as_good(top - 0.01, top)  # a little lower everywhere: no noise in that


@pytest.mark.parametrize("last", [1.0, 0.0], ids=["the last one", "the start, to which it goes back"])
def test_signal_that_dries_up_ends_a_run(last, tiny_bundle, letters_task, options, tmp_path, monkeypatch):
    calls = itertools.count()

    def drying(completion: Completion, sample: Sample) -> float:
        # Validation 16, to find a temperature 24, of which the first step learns.
        return letters_task.reward(completion, sample) if next(calls) < 16 + 24 else last

    monkeypatch.setattr(trainer, "_SILENCE", 3)
    quick = replace(options, steps=30, start=None, validate_every=1 if last == 0 else 50)
    rows: Rows = []
    dry = replace(letters_task, reward=drying)
    more = {"options": quick, "report": rows.append}
    if last:
        outcome = train(tiny_bundle, dry, tmp_path / "v", **more)
        assert (outcome.result.stopped, outcome.result.best_step) == ("silence", 4)
        quiet = [row["norm"] for row in rows if row.get("signal") == 0]
        assert len(quiet) == 3
        assert len(set(quiet)) == 1  # v did not move
    else:
        with pytest.raises(TrainError, match=r"held back never rose above 0\.\d\d\d: give it more"):
            train(tiny_bundle, dry, tmp_path / "v", **more)
        assert any(row.get("event") == "back-off" for row in rows)
        assert list(tmp_path.iterdir()) == []
    assert [row["reward"] for row in rows if row.get("event") == "silent"] == [last]


def test_no_signal_is_said_before_the_first_step(tiny_bundle, easy, options, tmp_path):
    rows: Rows = []
    options = replace(options, start=None)
    with pytest.raises(TrainError, match="no signal: all sampled answers"):
        train(tiny_bundle, easy, tmp_path / "v", options=options, report=rows.append)
    assert [row["temperature"] for row in rows if row.get("event") == "temperature"] == [1.0, 1.3]
    assert list(tmp_path.iterdir()) == []


def test_sft_that_lowers_the_loss_is_progress(tiny_bundle, letters_task, short, tmp_path, monkeypatch):
    """Without any reward: GRPO, which would learn from nothing, is left out, and the vector is SFT's."""
    none = replace(letters_task, reward=lambda completion, sample: 0.0)

    def validate(self: trainer.Trainer, v: np.ndarray) -> tuple[np.ndarray, float]:
        return np.zeros(16), 1 / (1 + self.state.step)

    monkeypatch.setattr(trainer.Trainer, "validate", validate)
    monkeypatch.setattr(trainer, "_PATIENCE", 0)
    chosen = replace(short, method=None, steps=8, validate_every=4, start=None, frame_dtype="int8")
    found = train(tiny_bundle, none, tmp_path / "v", options=chosen).result
    sft, grpo = found.phases
    assert (sft.method, sft.start_score, sft.best_score, sft.steps) == ("sft", 0.0, 0.0, 4)
    assert (sft.start_loss, sft.best_loss, found.best_step) == (1, 0.2, 4)
    assert (grpo.method, grpo.steps, grpo.stopped) == ("grpo", 0, "no signal")
    assert "hardly any group" in str(grpo.why)


def test_a_step_goes_against_the_gradient(tiny_bundle, letters_task, short, tmp_path, monkeypatch):
    gradients, moves, own, update = list[Any](), list[Any](), Learner.gradient, trainer.Trainer._update

    def gradient(self: Learner, groups: Any) -> Any:
        gradients.append((found := own(self, groups)).grad.numpy())
        return found

    def updated(self: trainer.Trainer, grad: np.ndarray, lr: float) -> None:
        before = self.state.v.copy()
        update(self, grad, lr)
        moves.append(self.state.v - before)

    monkeypatch.setattr(Learner, "gradient", gradient)
    monkeypatch.setattr(trainer.Trainer, "_update", updated)
    interrupted(tiny_bundle, letters_task, tmp_path / "v", short, at=1)
    assert moves[0] @ gradients[-1] < 0


def test_free_text_is_judged_by_its_nats(tiny_bundle, letters_task, short, tmp_path):
    free = replace(letters_task, reward=text)
    (phase,) = train(tiny_bundle, free, tmp_path / "v", options=replace(short, method=None)).result.phases
    assert (phase.method, phase.steps) == ("sft", 4)
    assert phase.start_score == pytest.approx(-phase.start_loss, rel=0.01)  # all answers are about as long
    still = replace(short, method=None, start=None, lr=1e-30)
    with pytest.raises(TrainError, match=r"at best afterwards: add examples, give it more"):
        train(tiny_bundle, free, tmp_path / "still", options=still)
    last = replace(free.train[-1], answer="x" * 600)  # of a context of 512
    long = replace(free, train=[*free.train[:-1], last], max_tokens=512)
    with pytest.raises(TrainError, match=r"train sample 63 .* with 60\d to answer"):
        train(tiny_bundle, long, tmp_path / "long", options=still)
    with pytest.raises(TrainError, match="no reward judges"):
        train(tiny_bundle, free, tmp_path / "w", options=replace(short, method="grpo"))
    with pytest.raises(TrainError, match=r"1 of 1 training prompts .* have no answer: SFT needs one"):
        chosen_methods(replace(free, train=[Sample("Hi")]), Options())


def test_a_run_that_finds_nothing_says_what_was_seen(tiny_bundle, letters_task, short, tmp_path):
    """SFT ends in its second half where nothing gets better."""
    short = replace(short, start=None)
    still = replace(short, steps=50, validate_every=1, lr=1e-30)
    with pytest.raises(TrainError, match=r"sft, 32 steps: on answers .*: add examples, .* or another --lr"):
        train(tiny_bundle, letters_task, tmp_path / "v", options=still)
    calls = itertools.count()
    falling = replace(letters_task, reward=lambda completion, sample: float(next(calls) < 16))
    with pytest.raises(TrainError, match=r"at best afterwards: add examples, .*\(--reward\)"):
        train(tiny_bundle, falling, tmp_path / "v", options=short)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_rises_first_does_not_end_a_run(tiny_bundle, letters_task, short, tmp_path, monkeypatch):
    losses = iter([2.0, 2.1, 2.1, 2.1, 2.1, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0])

    def validate(self: trainer.Trainer, v: np.ndarray) -> tuple[np.ndarray, float]:
        loss = next(losses)
        return np.full(16, -loss), loss

    monkeypatch.setattr(trainer.Trainer, "validate", validate)
    chosen = replace(short, method="sft", steps=10, validate_every=1)
    (phase,) = train(tiny_bundle, letters_task, tmp_path / "v", options=chosen).result.phases
    assert (phase.best_loss, phase.best_step, phase.stopped) == (1.0, 10, "done")


@pytest.mark.usefixtures("training_gains")
def test_minutes_end_a_run_and_let_the_step_size_fall(tiny_bundle, easy, short, tmp_path, monkeypatch):
    clock = itertools.count(math.ceil(time.monotonic()))  # a second a call: as quick on every machine
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    rows: Rows = []
    brief = replace(short, steps=None, minutes=1.5)
    outcome = train(tiny_bundle, easy, tmp_path / "v", options=brief, report=rows.append)
    (phase,) = outcome.result.phases
    sizes = [row["lr"] for row in rows if "lr" in row]
    assert (phase.stopped, phase.steps > 1) == ("done", True)
    assert sizes == sorted(sizes, reverse=True)
    assert 0.02 <= sizes[-1] <= sizes[0] <= 0.2


def test_validations_say_how_far_they_are(tiny_bundle, easy, short, tmp_path):
    rows: Rows = []
    train(tiny_bundle, easy, tmp_path / "v", options=replace(short, start=None), report=rows.append)
    measured = [row for row in rows if row.get("event") == "measuring" and "held-back" in row["what"]]
    by_what: dict[str, list[int]] = {}
    for row in measured:
        by_what.setdefault(row["what"], []).append(row["done"])
    kinds = "loss of held-back answers", "answers to held-back prompts"
    assert list(by_what) == [f"{at}, {kind}" for at in ("the start", "step 2", "step 4") for kind in kinds]
    for what, done in by_what.items():
        assert done == sorted(done), what
        assert done[-1] == measured[0]["total"], what


@pytest.mark.usefixtures("training_gains")
def test_more_minutes_are_the_last_methods(tiny_bundle, letters_task, options, tmp_path, monkeypatch):
    """GRPO has begun from SFT's end, which more minutes let be."""
    monkeypatch.setattr(trainer, "_PATIENCE", 0)
    run, chosen = (tiny_bundle, letters_task, tmp_path / "v"), replace(options, method=None, steps=None)
    first, _ = interrupted(*run, replace(chosen, minutes=30), at="temperature")
    path = tmp_path / "v.run" / "sft.json"
    path.write_text(path.read_text().replace('"patience"', '"done"'))
    more, at = replace(chosen, minutes=60), first.steps + 1
    second, _ = interrupted(*run, more, at=at, resume=True)
    assert second.phases[0] == replace(first.phases[0], stopped="done", gaining=True)
    assert (second.phases[1].method, second.phases[1].steps) == ("grpo", 1)


@pytest.mark.usefixtures("training_gains")
@pytest.mark.parametrize("steps", [None, 50])
def test_a_run_whose_minutes_find_nothing_goes_on_with_more(
    steps, tiny_bundle, easy, short, tmp_path, monkeypatch
):
    clock = itertools.count(math.ceil(time.monotonic()))
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    run, brief = (tiny_bundle, easy, tmp_path / "v"), replace(short, start=None, steps=steps, minutes=1.5)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "as_good", lambda *_: False)
        for resume in (False, True):
            with pytest.raises(TrainError, match="to go on from there, give --resume and more --minutes"):
                train(*run, options=brief, resume=resume)
    taken = json.loads((tmp_path / "v.run" / "sft.json").read_text())["state"]["step"]
    result = train(*run, options=replace(brief, minutes=3), resume=True).result
    assert 0 < taken < result.best_step
    assert not (tmp_path / "v.run").exists()


def test_too_few_minutes_are_refused_before_a_step(tiny_bundle, letters_task, options, short, tmp_path):
    """SFT foresees it by a short pass; GRPO, whose answers nobody knows, gives up what it draws."""
    brief = {"steps": None, "minutes": 1e-5}
    with pytest.raises(TrainError, match=r"1e-05 minutes are too few.*--minutes 1, or shorten"):
        train(tiny_bundle, letters_task, tmp_path / "v", options=replace(short, **brief))
    with pytest.raises(TrainError, match=r"1e-05 minutes are over.*allow more minutes"):
        train(tiny_bundle, letters_task, tmp_path / "v", options=replace(options, **brief))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "work_of", lambda groups: 1 if len(groups) == short.workers else 10**6)
        with pytest.raises(TrainError, match=r"takes about [\d,]+ minutes here"):
            train(tiny_bundle, letters_task, tmp_path / "v", options=replace(short, steps=None, minutes=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("training_gains")
@pytest.mark.parametrize("part", ["forward", "backward"])
def test_a_step_that_passes_the_minutes_is_given_up(part, tiny_bundle, easy, short, tmp_path, monkeypatch):
    """In the middle of a pass; what was found until then is written."""

    def over(metrics: dict[str, Any]) -> None:
        if metrics.get("step") == 2:
            monkeypatch.setattr(adapter.time, "monotonic", lambda: math.inf if inside(part) else 0.0)

    chosen = replace(short, steps=50, minutes=60.0, validate_every=1)
    result = train(tiny_bundle, easy, tmp_path / "v", options=chosen, report=over).result
    assert (result.stopped, result.steps) == ("done", 2)
    assert result.phases[0].seconds >= 60 * chosen.minutes  # of which no other method gets any
    assert result.best_step
    assert (tmp_path / "v").exists()


def inside(part: str) -> bool:
    """Whether the side path's forward or backward asks for the time."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code.co_qualname == f"SidePath.{part}":
            return True
    return False


@pytest.mark.usefixtures("training_gains")
def test_steps_decide_when_it_validates_and_not_seconds(tiny_bundle, easy, short, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "_APART", math.inf)  # no validation is quick enough for minutes
    rows: Rows = []
    train(tiny_bundle, easy, tmp_path / "v", options=replace(short, minutes=60.0), report=rows.append)
    assert [row["step"] for row in steps(rows) if "validation" in row] == [2, 4]
    np.testing.assert_allclose([row["lr"] for row in steps(rows)], np.linspace(0.2, 0.02, 4), rtol=1e-6)


@pytest.mark.usefixtures("training_gains")
def test_what_is_done_once_is_not_expected_of_every_step(tiny_bundle, easy, short, tmp_path, monkeypatch):
    clock, late, made = trainer.time.monotonic, [0.0], trainer.whitened

    def slow(*arguments: Any) -> Any:
        late[0] += 1000
        return made(*arguments)

    monkeypatch.setattr(trainer.time, "monotonic", lambda: clock() + late[0])
    monkeypatch.setattr(trainer, "whitened", slow)
    result = train(tiny_bundle, easy, tmp_path / "v", options=replace(short, minutes=25.0)).result
    assert (late, result.steps) == ([1000], 4)


def test_what_is_held_back_depends_on_the_prompts_alone(letters_task: Task) -> None:
    options = Options()
    held, train_on = options.split(letters_task)
    other, _ = options.split(replace(letters_task, train=letters_task.train[::-1]))
    assert (len(held), len(train_on)) == (12, 52)
    assert {sample.prompt for sample in held} == {sample.prompt for sample in other}
    assert held != list(letters_task.train[:12])
    twice = [replace(sample, answer=answer) for sample in letters_task.train for answer in ("a", "b")]
    held, train_on = options.split(replace(letters_task, train=twice))
    assert not {sample.prompt for sample in held} & {sample.prompt for sample in train_on}
    with pytest.raises(TrainError, match="has 19 examples to train on, and at least 20"):
        options.split(replace(letters_task, train=letters_task.train[:19]))


def test_weights_that_cannot_be_read_are_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "short.gguf").write_bytes(b"GGUF")
    with pytest.raises(TrainError, match=r"cannot load .*short\.gguf for training: .* --weights DIR"):
        adapter.load_model(tmp_path / "short.gguf")


LONG = [Sample(f"{n}", answer="y" * 600) for n in range(64)]


@pytest.mark.parametrize(
    ("task", "chosen", "message"),
    [
        ({"train": [Sample(str(n) + "x" * 600) for n in range(64)]}, {}, r"train sample 0 .* 60\d tokens, "),
        ({"train": [Sample("too few")]}, {}, "1 training prompts"),
        ({}, {"start": (0.1,) * 12}, r"12 values, .* takes 896 numbers"),
        (
            {},
            {"rank": None, "numbers": 13, "frame_dtype": "q4"},
            "q4 is for all entries of R, which these 13",
        ),
        ({}, {"rank": 9}, "rank 9 is not among 1 to 8"),
        ({}, {"rank": None, "numbers": 56}, "these are all entries of rank 2: say --rank 2"),
        ({}, {"rank": None, "numbers": 57}, "no projection has 57 numbers: this model takes all entries"),
        ({}, {"numbers": 13}, "pass one of the two"),
        ({"train": LONG}, {"method": "sft"}, r"train sample 0 .*\d+.*60\d"),
        ({}, {"weights": "no/such/folder"}, "no/such/folder does not exist: pass a directory"),
        ({"reward": lambda completion, sample: math.nan}, {}, r"task letters .*returned nan"),
        ({"train": [Sample("x")] * 64}, {"method": "sft"}, "64 of 64 training prompts .* have no answer"),
    ],
)
def test_what_is_refused_leaves_nothing(task, chosen, message, tiny_bundle, letters_task, options, tmp_path):
    changed = replace(letters_task, **task)
    with pytest.raises((TrainError, BasisError, VectorError, OSError), match=message):
        train(tiny_bundle, changed, tmp_path / "v", options=replace(options, **chosen))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dpo"}, "unknown method 'dpo'"),
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"workers": -1}, "workers is -1, expected at least 1"),
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"minutes": 0.0}, "more than 0 minutes, not 0"),
        ({"lr": 1e308}, r"at most 1e6, not 1e\+308"),
        ({"sequence": 1 << 16}, "sequence 65536"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        Options(**options)


def test_a_checkpoint_of_another_run_is_refused_before_the_model_is_loaded(
    tiny_bundle, tiny_weights, letters_task, options, tmp_path, monkeypatch
):
    """Of the same name: other options, prompts, answers, facts for the reward, limits, or another reward."""
    options = replace(options, start=None)
    with pytest.raises(TrainError, match=r"no grpo\.json"):
        train(tiny_bundle, letters_task, tmp_path / "v", options=options, resume=True)
    assert list(tmp_path.iterdir()) == []
    interrupted(tiny_bundle, letters_task, tmp_path / "v", options, at=1)
    monkeypatch.setattr(runtime, "load", None)
    (tmp_path / "other").symlink_to(tiny_weights)
    basis = load_bundle(tiny_bundle).basis(rank=1)
    first, *rest = letters_task.train
    changes: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("seed is 1, this run's is 2", {}, {"seed": 2}),
        ("basis is '", {}, {"rank": 1}),
        ("start is None, this run's is '", {}, {"start": (0.1,) * 896}),
        ("under is None, this run's is '", {}, {"under": MicroVector.zeros(basis).to_bytes(basis)}),
        ("keep", {}, {"keep": True}),
        ("weights", {}, {"weights": str(tmp_path / "other")}),
        ("max_tokens is 6, this run's is 5", {"max_tokens": 5}, {}),
        ("temperature is 1.0, this run's is 0.5", {"temperature": 0.5}, {}),
        ("reward is 'letters'", {"reward": lambda completion, sample: 1.0}, {}),
        ("prompts_sha256", {"train": [replace(first, data={"reward": "max_words(3)"}), *rest]}, {}),
        ("prompts_sha256", {"train": [replace(first, tools=({"name": "wave"},)), *rest]}, {}),
    ]
    for message, task, chosen in changes:
        changed = replace(letters_task, **task), tmp_path / "v"
        with pytest.raises(TrainError, match=re.escape(f"belongs to another run: its {message}")):
            train(tiny_bundle, *changed, options=replace(options, **chosen), resume=True)


def document(**changes: Any) -> dict[str, Any]:
    state: dict[str, Any] = {name: [0.0, 1.0] for name in ("v", "m", "s", "best_v")}
    state |= {"top_scores": [0, 1, 0.5], "best_scores": [1], "step": 3, "norms": [1, 2.5]}
    return {"format": 3, "identity": {}, "state": state | changes}


OTHERS = [{**document(), "identity": 7}, {**document(), "format": 2}]


@pytest.mark.parametrize("content", [b"", *OTHERS, document(unknown=1), document(v=[[0.0], [1.0]])])
def test_a_checkpoint_that_is_none(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "checkpoint.json"
    path.write_text(json.dumps(document()))
    assert trainer.read_checkpoint(path, {}).norms == [1, 2.5]
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(TrainError, match="not a usable state"):
        trainer.read_checkpoint(path, {})


@pytest.mark.parametrize("trained", [True, False])
def test_calls_are_learned_in_a_form_that_the_model_can_write(trained, tmp_path, monkeypatch):
    """A token whose row of the output layer is that of the unused end is one that no vector makes likely."""

    def change(name: str, array: np.ndarray) -> np.ndarray:
        return array if trained or name != "output.weight" else array[[*range(258), 259, 259]]

    monkeypatch.setattr(converter, "_add_vocabulary", partial(converter._add_vocabulary, third="<tool_call>"))
    base = converter.write_gguf(models.tiny_model("llama"), tmp_path / "model.gguf", change=change)
    export_gguf(base, tmp_path / "bundle")
    call = spelled("wave", {"hands": 2})
    train_on, held_out = [Sample("a", answer=call), Sample("b", answer="no")], [Sample("c", answer=call)]
    task = Task("calls", train_on, held_out, text)
    twice = replace(task, train=[Sample("d", answer=f"{call}\n{call}")])
    model = adapter.load_model(base)
    with closing(runtime.load(tmp_path / "bundle", n_ctx=64)) as llm:
        if trained:
            assert in_own_form(task, llm, model) is task
            return
        found = in_own_form(task, llm, model)
        with pytest.raises(TrainError, match=r"never trained to write <tool_call>.* not one call alone"):
            in_own_form(twice, llm, model)
    answers = [str(sample.answer) for sample in (*found.train, *found.held_out)]
    assert [untagged(answer) and untagged(answer)[0] for answer in answers] == ["wave", None, "wave"]
    assert answers[1] == "no"
    assert "fence of JSON" in found.notes[-1]
