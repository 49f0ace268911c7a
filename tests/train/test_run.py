"""Whole runs on a tiny model through llama.cpp and torch: discipline, resumption, bad input."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from short_runs import FAST

from tinylora_edge import BaseMismatchError, Bundle, MicroVector, TrainError, runtime
from tinylora_edge.formats.gguf import GGUFFile
from tinylora_edge.tasks import Completion, Sample, Task
from tinylora_edge.train import Loss, Options, train
from tinylora_edge.train.trainer import as_good, unusual


def steps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what differs between two runs of the same thing: times."""
    return [{k: v for k, v in r.items() if not k.endswith("_s")} for r in rows if "step" in r]


def test_learns_and_ships(tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    settings = replace(FAST, steps=48, prompts=8, validate_every=16, lr=0.3)
    longer = replace(options, settings=settings, samples=8, wire="bf16", sequence=3, drift=4)
    outcome = train(tiny_bundle, letters_task, tmp_path / "v.bin", options=longer, report=rows.append)
    assert outcome.result.best_score >= outcome.result.start_score
    basis = Bundle.find(tiny_bundle).basis
    data = outcome.path.read_bytes()
    vector = MicroVector.from_bytes(data, basis)
    assert (len(data), vector.dtype, vector.sequence) == (37, "bf16", 3)
    manifest = json.loads((tmp_path / "v.bin.json").read_text())
    assert manifest["basis"] == basis.digest
    assert manifest["held_out"]["n"] == len(letters_task.held_out)
    assert manifest["held_out"]["difference"] == pytest.approx(
        manifest["held_out"]["vector"] - manifest["held_out"]["base"]
    )
    assert outcome.drift is not None
    assert manifest["drift"] == outcome.drift.record()
    assert manifest["drift"]["prompts"] == 4
    assert manifest["drift"]["kl"] > 0
    assert steps(manifest["curve"]) == steps(rows)
    assert len(steps(rows)) == 48
    took = [value for row in rows for key, value in row.items() if key.endswith("_s")]
    # drawn and learned from in each step; validated at the start, and after steps 16, 32 and 48
    assert len(took) == 48 * 2 + 1 + 3
    assert manifest["seconds"] == pytest.approx(sum(took), abs=0.1)
    assert manifest["seconds"] > 0
    with_vector = runtime.load(tiny_bundle, data, n_ctx=64)
    assert with_vector.vector == vector
    with_vector.close()


def test_same_seed_same_bytes_and_resume_is_identical(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    whole: list[dict[str, Any]] = []
    train(tiny_bundle, letters_task, tmp_path / "whole", options=options, report=whole.append)

    class StopError(Exception):
        pass

    def crash(metrics: dict[str, Any]) -> None:
        if metrics.get("step") == 5:  # after the checkpoint of step 4, before that of step 6
            raise StopError

    with pytest.raises(StopError):
        train(tiny_bundle, letters_task, tmp_path / "cut", options=options, report=crash)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(TrainError, match="--resume"):
        train(tiny_bundle, letters_task, tmp_path / "cut", options=options)
    rest: list[dict[str, Any]] = []
    train(tiny_bundle, letters_task, tmp_path / "cut", options=options, resume=True, report=rest.append)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert steps(rest) == steps(whole)[4:]
    curve = json.loads((tmp_path / "cut.json").read_text())["curve"]
    assert steps(curve) == steps(whole)
    assert not (tmp_path / "cut.run" / "checkpoint.npz").exists()


@pytest.mark.parametrize("at", ["start", 3, FAST.steps])
def test_sigint_saves_and_leaves(
    at: int | str, tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    def interrupt(metrics: dict[str, Any]) -> None:
        if at in (metrics.get("step"), metrics.get("event")):
            signal.raise_signal(signal.SIGINT)

    outcome = train(tiny_bundle, letters_task, tmp_path / "v", options=options, report=interrupt)
    assert (outcome.result.stopped, outcome.result.steps) == ("interrupted", 0 if at == "start" else at)
    assert not (tmp_path / "v").exists()
    train(tiny_bundle, letters_task, tmp_path / "v", options=options, resume=True)
    train(tiny_bundle, letters_task, tmp_path / "w", options=options)
    assert (tmp_path / "v").read_bytes() == (tmp_path / "w").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"loss": Loss(kind="dr_grpo", scale=False)},
        {"loss": Loss(kind="grpo", clip=0.2, kl=0.05), "settings": replace(FAST, epochs=2)},
        {"method": "sft"},
        {"half_copy": True},
        {"settings": replace(FAST, lr=None)},
        {"settings": replace(FAST, anchor=0.5)},
    ],
)
def test_every_option_runs(
    change: dict[str, Any], tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = []
    changed = replace(options, **{"settings": replace(FAST, steps=3), **change})
    outcome = train(tiny_bundle, letters_task, tmp_path / "v", options=changed, report=rows.append)
    assert len(outcome.path.read_bytes()) == 63
    learned = [row for row in rows if "grad" in row]
    assert learned
    assert all(math.isfinite(row["grad"]) and row["lr"] > 0 for row in learned)
    if change.get("method") != "sft":
        assert all(row["mismatch"] < 0.05 for row in learned)


def test_what_is_trained_longer_is_kept_within_the_noise() -> None:
    top = np.array([1.0] * 12 + [0.0] * 12)
    assert as_good(top, top)
    one_lost = top.copy()
    one_lost[0] = 0
    assert as_good(one_lost, top)  # -1/24: its standard error is as large
    three_lost = top.copy()
    three_lost[:3] = 0
    assert not as_good(three_lost, top)
    assert as_good(1 - top, top)  # as many won as lost
    assert not as_good(top - 0.01, top)  # a little lower everywhere: no noise in that


def test_a_collapse_is_looked_at_at_once(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    """Rewards that break off between two validations: the next step validates, and goes back."""
    recent = [[0.4, 10.0]] * 5
    assert not unusual([0.2, 12.0], recent)
    assert unusual([0.1, 10.0], recent)
    assert unusual([0.4, 4.0], recent)
    assert unusual([0.4, 21.0], recent)

    spent = [0]

    def breaking(completion: Completion, sample: Sample) -> float:
        spent[0] += 1
        return letters_task.reward(completion, sample) if spent[0] <= 16 + 6 * 24 else 0.0

    rows: list[dict[str, Any]] = []
    long = replace(FAST, steps=9, validate_every=100, silence=20)
    task = replace(letters_task, reward=breaking)
    train(tiny_bundle, task, tmp_path / "v", options=replace(options, settings=long), report=rows.append)
    validated = [row["step"] for row in steps(rows) if "validation" in row and "event" not in row]
    assert validated[0] == 7  # the first whose rewards are all 0
    assert next(row["step"] for row in rows if row.get("event") == "back-off") == 7


def test_step_sizes_fall_to_a_tenth(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = []
    train(tiny_bundle, letters_task, tmp_path / "v", options=options, report=rows.append)
    sizes = [row["lr"] for row in steps(rows)]
    np.testing.assert_allclose(sizes, np.linspace(0.2, 0.02, len(sizes)), rtol=1e-6)


def test_one_prompt_does_not_validate(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    one = replace(options, settings=replace(FAST, validation=1))
    with pytest.raises(TrainError, match=r"1 prompts for validation: at least 2"):
        train(tiny_bundle, letters_task, tmp_path / "v", options=one)


@pytest.mark.parametrize(
    ("task", "chosen", "more"),
    [
        ({"train": [Sample("x" * 600)] * 64}, {}, {}),  # passes the context
        ({"train": [Sample("too few")]}, {"half_copy": True}, {}),  # refused after the copy was made
        ({}, {"weights": "no/such/folder"}, {}),
        ({}, {}, {"resume": True}),  # from no checkpoint
        ({"reward": lambda completion, sample: math.nan}, {"half_copy": False}, {}),
    ],
    ids=["long prompt", "few prompts", "no weights", "no checkpoint", "bad reward"],
)
@pytest.mark.parametrize("before", [(), ("old", "old/v.run", "old/v.run/metrics.jsonl")])
def test_what_is_refused_leaves_nothing(
    task: dict[str, Any],
    chosen: dict[str, Any],
    more: dict[str, Any],
    before: tuple[str, ...],
    tiny_bundle: Path,
    letters_task: Task,
    options: Options,
    tmp_path: Path,
) -> None:
    if before:
        (tmp_path / "old/v.run").mkdir(parents=True)
        (tmp_path / "old/v.run/metrics.jsonl").write_text('{"step": 1}\n')
    output = tmp_path / "old" / "v"
    with pytest.raises((TrainError, OSError)):
        train(tiny_bundle, replace(letters_task, **task), output, options=replace(options, **chosen), **more)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == list(before)
    if before:
        assert (tmp_path / "old/v.run/metrics.jsonl").read_text() == '{"step": 1}\n'


def test_no_signal_is_said(tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path) -> None:
    dull = replace(letters_task, reward=lambda completion, sample: 1.0)
    quick = replace(options, settings=replace(FAST, steps=20, silence=2))
    with pytest.raises(TrainError, match="no signal: in 2 steps"):
        train(tiny_bundle, dull, tmp_path / "v", options=quick)
    assert not (tmp_path / "v").exists()


def test_no_update_without_signal_keeps_the_best(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    """Signal that dries up ends the run, and what was found until then is written."""
    calls = 0

    def drying(completion: Completion, sample: Sample) -> float:
        nonlocal calls
        calls += 1
        return letters_task.reward(completion, sample) if calls < 16 + 3 * 24 else 0.5

    quick = replace(options, settings=replace(FAST, steps=30, silence=3, validate_every=50), evaluate=False)
    rows: list[dict[str, Any]] = []
    dry = replace(letters_task, reward=drying)
    outcome = train(tiny_bundle, dry, tmp_path / "v", options=quick, report=rows.append)
    assert outcome.result.stopped == "silence"
    quiet = [row["norm"] for row in rows if row.get("signal") == 0]
    assert len(quiet) == 3
    assert len(set(quiet)) == 1  # v did not move
    assert (tmp_path / "v").exists()


def test_silence_after_a_back_off_still_returns_the_best(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    """Going back to the best forgets Adam's steps, not that there was signal."""
    calls = 0

    def drying(completion: Completion, sample: Sample) -> float:
        nonlocal calls
        calls += 1  # validation 16, a step 24, validation 16, and nothing to learn from then on
        return letters_task.reward(completion, sample) if calls <= 16 + 24 else 0.0

    settings = replace(FAST, steps=30, silence=2, validate_every=1)
    rows: list[dict[str, Any]] = []
    outcome = train(
        tiny_bundle,
        replace(letters_task, reward=drying),
        tmp_path / "v",
        options=replace(options, settings=settings, evaluate=False),
        report=rows.append,
    )
    assert any(row.get("event") == "back-off" for row in rows)
    assert outcome.result.stopped == "silence"
    assert outcome.result.best_score == outcome.result.start_score
    assert (tmp_path / "v").exists()


def failing(completion: Completion, sample: Sample) -> float:
    raise KeyError("oops")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (failing, "oops"),
        (lambda completion, sample: math.nan, "nan"),
        (lambda completion, sample: "1", "str"),
    ],
)
def test_bad_rewards_name_the_sample(
    reward: Callable[..., Any],
    message: str,
    tiny_bundle: Path,
    letters_task: Task,
    options: Options,
    tmp_path: Path,
) -> None:
    with pytest.raises(TrainError, match=message) as error:
        train(tiny_bundle, replace(letters_task, reward=reward), tmp_path / "v", options=options)
    assert "prompt" in str(error.value)


def test_prompt_longer_than_the_context(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    long = replace(letters_task, train=[*letters_task.train, Sample("x" * 600)])
    with pytest.raises(TrainError, match=r"60\d tokens.*512"):
        train(tiny_bundle, long, tmp_path / "v", options=options)


def test_chat_prompts_without_a_template(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    chat = [Sample(({"role": "user", "content": "hello"},))] * 64
    with pytest.raises(ValueError, match="no chat template"):
        train(tiny_bundle, replace(letters_task, train=chat), tmp_path / "v", options=options)


def test_too_few_prompts(tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path) -> None:
    few = replace(letters_task, train=letters_task.train[:10])
    with pytest.raises(TrainError, match="10 training prompts"):
        train(tiny_bundle, few, tmp_path / "v", options=options)


def test_checkpoints_of_other_runs_are_refused(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match="no checkpoint"):
        train(tiny_bundle, letters_task, tmp_path / "v", options=options, resume=True)
    checkpoint = tmp_path / "v.run" / "checkpoint.npz"

    def interrupt(metrics: dict[str, Any]) -> None:
        if metrics.get("step") == 2:
            signal.raise_signal(signal.SIGINT)

    train(tiny_bundle, letters_task, tmp_path / "v", options=options, report=interrupt)
    for change in ({"seed": 2}, {"anchor": 0.5}):
        other = replace(options, settings=replace(FAST, **change))
        with pytest.raises(TrainError, match="another run"):
            train(tiny_bundle, letters_task, tmp_path / "v", options=other, resume=True)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(TrainError, match="not a usable checkpoint"):
        train(tiny_bundle, letters_task, tmp_path / "v", options=options, resume=True)


def test_basis_of_another_base(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "basis.gguf").write_bytes((tiny_bundle / "basis.gguf").read_bytes())
    base = bytearray((tiny_bundle / "base.gguf").read_bytes())
    base[GGUFFile(tiny_bundle / "base.gguf").tensors["blk.0.attn_q.weight"].offset] ^= 1
    (bundle / "base.gguf").write_bytes(base)
    with pytest.raises(BaseMismatchError):
        train(bundle, letters_task, tmp_path / "v", options=options)


def test_refuses_to_overwrite(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    (tmp_path / "v").write_bytes(b"precious")
    with pytest.raises(TrainError, match="exists already"):
        train(tiny_bundle, letters_task, tmp_path / "v", options=options)
    assert (tmp_path / "v").read_bytes() == b"precious"
