"""The loop: Adam in the coordinates in which a prior is round, and step sizes that are tried."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support

from tinylora_edge import Basis, Bundle, TrainError
from tinylora_edge.tasks import Completion, Sample, Task
from tinylora_edge.tasks.rewards import parse_reward
from tinylora_edge.train import Options, TrainSettings, train

MIXED = parse_reward("0.5*max_words(3) + ends_itself")
FAST = TrainSettings(steps=4, prompts=4, validate_every=2, validation=16, checkpoint_every=1, seed=1)


@pytest.fixture
def options(short: Options) -> Options:
    """Of SFT, which draws nothing to train on: two runs differ by rounding alone."""
    return replace(short, settings=FAST)


def learned(basis: Basis, covariance: np.ndarray | None) -> Basis:
    p = np.random.default_rng(0).standard_normal((4, len(basis.modules), 2, 2))
    return basis.with_projections(p, prior=None if covariance is None else (np.full(4, 0.1), covariance))


def covariance() -> np.ndarray:
    mixing = np.random.default_rng(3).standard_normal((4, 9)) * np.array([[1.0], [0.4], [0.2], [0.1]])
    return (mixing @ mixing.T).astype(np.float32)


@pytest.mark.parametrize("lr", [None, 0.05])
def test_a_prior_is_a_basis_of_its_whitened_directions(
    lr: float | None, tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    """v = L z: the same steps, lengths and gradients as with the directions that L makes of the basis's."""
    basis = learned(Bundle.find(tiny_bundle).basis, covariance())
    factor = basis.whitening.matrix
    assert factor is not None
    mixed = basis.with_projections(np.einsum("ij,i...->j...", factor, np.stack(basis.p, axis=1)))
    options = replace(options, settings=replace(FAST, lr=lr))
    rows: dict[str, list[dict[str, Any]]] = {"learned": [], "mixed": []}
    ends = []
    for name, each in (("learned", basis), ("mixed", mixed)):
        bundle = support.rebased(tiny_bundle, each, tmp_path / name)

        def interrupt(metrics: dict[str, Any], name: str = name) -> None:
            rows[name].append(metrics)
            if metrics.get("step") == 3:
                signal.raise_signal(signal.SIGINT)

        output = tmp_path / f"{name}.bin"
        train(bundle, letters_task, output, options=options, report=interrupt)
        with np.load(tmp_path / f"{name}.bin.run" / "checkpoint.npz") as archive:
            ends.append(archive["v"].reshape(-1))
    np.testing.assert_allclose(ends[0], factor @ ends[1], rtol=1e-3, atol=1e-5)
    assert np.abs(ends[1]).max() > 1e-3
    for key in ("lr", "grad"):
        found = [[row[key] for row in rows[name] if key in row] for name in rows]
        assert len(found[0]) == 3
        np.testing.assert_allclose(found[0], found[1], rtol=1e-3)


def test_an_isotropic_prior_changes_nothing(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    """With GRPO and a step size that is derived: the same bytes."""
    options = replace(options, method="grpo", settings=replace(FAST, validate_every=1))
    data = []
    for name, each in (("plain", None), ("round", np.float32(0.003) * np.eye(4))):
        basis = learned(Bundle.find(tiny_bundle).basis, each)
        bundle = support.rebased(tiny_bundle, basis, tmp_path / name)
        rows: list[dict[str, Any]] = []
        output = tmp_path / f"{name}.bin"
        train(bundle, letters_task, output, options=options, report=rows.append)
        steps = [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows]
        data.append((output.read_bytes(), steps))
    assert data[0] == data[1]


def test_a_checkpoint_of_another_prior_is_refused(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    """The digest does not cover the prior; and with the same one the run is the same as in one go."""
    base = Bundle.find(tiny_bundle).basis
    basis = learned(base, covariance())
    bundle = support.rebased(tiny_bundle, basis, tmp_path / "learned")
    other = support.rebased(tiny_bundle, learned(base, None), tmp_path / "without")

    def interrupt(metrics: dict[str, Any]) -> None:
        if metrics.get("step") == 2:
            signal.raise_signal(signal.SIGINT)

    train(bundle, letters_task, tmp_path / "v", options=options, report=interrupt)
    with pytest.raises(TrainError, match="belongs to another run: its prior is"):
        train(other, letters_task, tmp_path / "v", options=options, resume=True)
    train(bundle, letters_task, tmp_path / "v", options=options, resume=True)
    train(bundle, letters_task, tmp_path / "w", options=options)
    assert (tmp_path / "v").read_bytes() == (tmp_path / "w").read_bytes()


def interrupted(bundle: Path, task: Task, output: Path, options: Options, *, after: int) -> None:
    """Train until a step, and leave the checkpoint of it."""

    def interrupt(metrics: dict[str, Any]) -> None:
        if metrics.get("step") == after:
            signal.raise_signal(signal.SIGINT)

    train(bundle, task, output, options=options, report=interrupt)


def test_a_checkpoint_of_another_task_or_other_weights_is_refused(
    tiny_bundle: Path, tiny_weights: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    """Of the same name: other prompts, answers, facts for the reward, limits, or another reward."""
    options, output = replace(options, settings=replace(FAST, lr=0.1)), tmp_path / "v"
    interrupted(tiny_bundle, letters_task, output, options, after=1)
    other = tmp_path / "other"
    other.symlink_to(tiny_weights)
    first, *rest = letters_task.train
    changes: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("weights", {}, {"weights": str(other)}),
        ("max_tokens is 6, this run's is 5", {"max_tokens": 5}, {}),
        ("temperature is 1.0, this run's is 0.5", {"temperature": 0.5}, {}),
        ("reward is 'letters', this run's is '(0.5*max_words(3) + 1.0*ends_itself)'", {"reward": MIXED}, {}),
    ]
    for changed in (
        replace(first, prompt="another"),
        replace(first, answer="another"),
        replace(first, data={"reward": "max_words(3)"}),
    ):
        changes.append(("prompts_sha256", {"train": [changed, *rest]}, {}))
    for told, task, chosen in changes:
        with pytest.raises(TrainError, match=re.escape(f"belongs to another run: its {told}")):
            train(
                tiny_bundle,
                replace(letters_task, **task),
                output,
                options=replace(options, **chosen),
                resume=True,
            )


def test_what_explodes_gets_the_lowest_reward_of_before_the_interruption_too(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    """A step size at which everything explodes from the second step on, and rewards below 0."""

    def negative(completion: Completion, sample: Sample) -> float:
        return letters_task.reward(completion, sample) - 2

    task = replace(letters_task, reward=negative)
    options = replace(options, method="grpo", settings=replace(FAST, lr=1e18))
    whole: list[dict[str, Any]] = []
    train(tiny_bundle, task, tmp_path / "whole", options=options, report=whole.append)
    interrupted(tiny_bundle, task, tmp_path / "cut", options, after=1)
    rest: list[dict[str, Any]] = []
    train(tiny_bundle, task, tmp_path / "cut", options=options, resume=True, report=rest.append)
    found, expected = (
        [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows if row.get("step", 0) > 1]
        for rows in (rest, whole)
    )
    assert found == expected
    assert [row["reward"] for row in found if row.get("exploded") == 16]
    assert all(row["reward"] < -1 for row in found if "reward" in row)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_run_without_any_signal_is_refused_at_its_end_too(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    """With fewer steps than it takes to stop for silence."""
    dull = replace(letters_task, reward=lambda completion, sample: 1.0)
    options = replace(options, method="grpo", settings=replace(FAST, steps=2))
    with pytest.raises(TrainError, match="no signal: in 2 steps"):
        train(tiny_bundle, dull, tmp_path / "v", options=options)
    assert not (tmp_path / "v").exists()
