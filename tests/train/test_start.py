"""Training that begins with a vector: its values are where it starts, and others are refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinylora_edge import TrainError
from tinylora_edge.tasks import Task
from tinylora_edge.train import Options, train


def rewards(rows: list[dict[str, Any]]) -> list[float]:
    return [row["reward"] for row in rows if "step" in row]


def test_begins_with_the_values_that_it_is_given(
    tiny_bundle: Path, letters_task: Task, options: Options, tmp_path: Path
) -> None:
    first: list[dict[str, Any]] = []
    found = train(tiny_bundle, letters_task, tmp_path / "first", options=options, report=first.append)
    values = tuple(map(float, found.result.vector.values.reshape(-1)))
    assert any(values)
    further: list[dict[str, Any]] = []
    options = replace(options, start=values)
    train(tiny_bundle, letters_task, tmp_path / "further", options=options, report=further.append)
    assert further[0]["validation"] == pytest.approx(found.result.best_score)
    assert further[0]["validation"] != first[0]["validation"]
    assert rewards(further)[0] != rewards(first)[0]
    manifest = json.loads((tmp_path / "further.json").read_text())
    assert manifest["options"]["start"] == pytest.approx(list(values))


@pytest.mark.parametrize(
    ("start", "told"),
    [((0.1,) * 12, "12 values, and the basis has 13"), ((math.nan,) * 13, "finite values")],
)
def test_values_that_it_cannot_begin_with(
    tiny_bundle: Path,
    letters_task: Task,
    options: Options,
    tmp_path: Path,
    start: tuple[float, ...],
    told: str,
) -> None:
    with pytest.raises(TrainError, match=told):
        train(tiny_bundle, letters_task, tmp_path / "v", options=replace(options, start=start))
    assert list(tmp_path.iterdir()) == []
