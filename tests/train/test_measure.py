"""What is measured after a run, on a small model: every arm, what lies beneath, and what goes wrong."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_bundles
import pytest
import trl_world

from tinylora_edge import MicroVector, TrainError, load_bundle, runtime
from tinylora_edge.cli import results
from tinylora_edge.eval import evaluate
from tinylora_edge.eval.measure import INTERRUPTED, prompts_for
from tinylora_edge.tasks import Completion, Sample, Task
from tinylora_edge.train import Options, train


@pytest.fixture(scope="module")
def both() -> Path:
    """A bundle of a model with a chat template."""
    return onnx_bundles.both()


@pytest.fixture
def task(letters_task: Task) -> Task:
    """72 prompts with answers, 8 of them held out: all of those are in a record."""
    return replace(letters_task, held_out=letters_task.held_out[:8], max_tokens=5)


@pytest.fixture
def quick(options: Options) -> Options:
    """Of two steps, from a vector that is written even where they bring nothing."""
    start = {"rank": 2, "numbers": None, "start": (0.02,) * 56}
    return replace(options, steps=2, validate_every=2, validation=8, evaluate=True, **start)


def run(bundle: Path, task: Task, folder: Path, options: Options, **more: Any) -> dict[str, Any]:
    train(bundle, task, folder / "v", options=options, **more)
    assert MicroVector.from_bytes((folder / "v").read_bytes(), load_bundle(bundle).bases)
    assert not (folder / "v.run").exists(), "nothing is left to resume"
    found: dict[str, Any] = json.loads((folder / "v.json").read_text())
    return found


def test_every_arm(both: Path, task: Task, quick: Options, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    record = run(both, task, tmp_path, quick, report=rows.append)
    size = (tmp_path / "v").stat().st_size
    arms, held = record["arms"], record["held_out"]
    assert [(name, arm["bytes"]) for name, arm in arms.items()] == [
        ("base", 0), ("vector", size), ("prompt", 0), ("vector + prompt", size),
    ]  # fmt: skip
    assert arms["prompt"]["tokens"] == arms["vector + prompt"]["tokens"] > arms["base"]["tokens"]
    assert [held[name] for name in ("base", "vector")] == [arms[n]["mean"] for n in ("base", "vector")]
    assert record["drift"]["prompts"] == 32
    assert "unmeasured" not in record
    answers = record["answers"]
    assert [each["asked"] for each in answers] == [sample.prompt for sample in task.held_out]
    assert set(answers[0]) == {"asked", "wanted", *arms}
    progress = [row for row in rows if row.get("event") == "measuring"]
    ends = {row["what"]: row["total"] for row in progress if row["done"] == row["total"]}
    assert ends["base on held-out prompts"] == ends["vector + prompt on held-out prompts"] == 8
    assert ends["prompts, on validation prompts"] == len(prompts_for(task)) * 8
    assert ends["drift on general prompts"] == 5 * 32
    assert record["ahead"]["difference"] == pytest.approx(arms["vector"]["mean"] - arms["prompt"]["mean"])


def test_what_lies_beneath_takes_the_place_of_the_base(both, task, quick, tmp_path):
    basis = load_bundle(both).basis(rank=8)
    shared = MicroVector.random(basis, 3.0, seed=6)
    record = run(both, task, tmp_path, replace(quick, under=shared.to_bytes(basis)))
    arms, held = record["arms"], record["held_out"]
    assert [(name, arm["bytes"] > 0) for name, arm in arms.items()] == [
        ("beneath", False), ("vector", True), ("prompt", False), ("vector + prompt", True),
    ]  # fmt: skip
    own = MicroVector.from_bytes((tmp_path / "v").read_bytes(), load_bundle(both).bases)
    with (
        runtime.load(both, engine="llama", n_ctx=64, n_threads=1) as llm,
        llm.batch(task.held_out, 5, n_threads=1) as batch,
    ):
        scores = [evaluate(batch, task, each).mean for each in (shared, replace(own, under=shared))]
    assert [held["base"], held["vector"]] == scores == [arms[name]["mean"] for name in ("beneath", "vector")]
    assert results.table(record)[1][0] == "what lies beneath"
    rows = dict(results.rows(record))
    assert "vector - beneath" in rows
    assert "from what lies beneath on 32 general prompts" in rows["drift"]


def test_a_graph_is_trained_for_with_the_weights_that_it_was_made_from(both, task, quick, tmp_path):
    """It draws the answers, which the weights find as likely, and is what is measured."""
    graph, rows = both / "onnx", list[dict[str, Any]]()
    with pytest.raises(TrainError, match=r"no weights to learn on: name the GGUF .* --weights"):
        train(graph, task, tmp_path / "v", options=replace(quick, weights=None))
    chosen = replace(quick, weights=str(both / "base.gguf"))
    record = run(graph, task, tmp_path, chosen, report=rows.append)
    assert 0 < max(row.get("mismatch", 0) for row in rows) < 1e-3
    assert "unmeasured" not in record


@pytest.mark.parametrize("at", ["vector on held-out prompts", "prompts, on validation prompts"])
def test_ctrl_c_loses_nothing_that_is_known(at, both, task, quick, tmp_path):
    def interrupt(row: dict[str, Any]) -> None:
        if row.get("what") == at and not row["done"]:
            signal.raise_signal(signal.SIGINT)

    record = run(both, task, tmp_path, quick, report=interrupt)
    known = at.startswith("prompts")
    lost = [*([] if known else ["base and vector"]), "prompt", "drift"]
    assert record["unmeasured"] == dict.fromkeys(lost, INTERRUPTED)
    assert list(record["arms"]) == (["base", "vector"] if known else ["base"])
    assert ("held_out" in record) == known


def test_what_fails_is_named_and_costs_no_vector(both, task, quick, tmp_path):
    unanswered = [replace(sample, answer=None) for sample in task.train]
    record = run(both, replace(task, train=unanswered), tmp_path, quick)
    assert list(record["unmeasured"]) == ["prompt"]
    assert "0 training prompts have an answer" in record["unmeasured"]["prompt"]
    assert (record["held_out"]["n"], record["drift"]["prompts"]) == (8, 32)

    def fails(completion: Completion, sample: Sample) -> float:
        return 1 / (sample not in task.held_out) * trl_world.letters(completion, sample)

    (folder := tmp_path / "failing").mkdir()
    record = run(both, replace(task, reward=fails), folder, quick)
    assert list(record["unmeasured"]) == ["base and vector"]
    assert "ZeroDivisionError" in record["unmeasured"]["base and vector"]
    assert "held_out" not in record

    (folder := tmp_path / "nothing").mkdir()
    record = run(both, replace(task, held_out=[]), folder, quick)
    assert record["unmeasured"] == {"base and vector": "task letters has no held-out prompts to measure on"}
