"""The benchmarks load, and what they share does what it says. `make bench` runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import support

FOLDER = Path(__file__).parents[2] / "benchmarks"
LOAD = """
import importlib, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
for path in sorted(Path(sys.argv[1]).glob("*.py")):
    importlib.import_module(path.stem)
"""


def test_every_benchmark_loads() -> None:
    done = subprocess.run([sys.executable, "-c", LOAD, FOLDER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("OMP_WAIT_POLICY", "OPENBLAS_NUM_THREADS"):  # importing sets them; this takes them back
        monkeypatch.setenv(name, "1")
    return support.script(FOLDER / "_common.py")


def test_every_contestant_takes_every_place_in_a_round(common: ModuleType) -> None:
    calls: list[str] = []

    def contestant(name: str) -> Any:
        def run() -> float:
            calls.append(name)
            return float(len(calls))

        return run

    times = common.interleave({name: contestant(name) for name in "abc"}, rounds=3, warmup=1)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, 12, 3)]
    assert rounds == ["cab", "abc", "bca", "cab"]
    assert times == {"a": [4, 9, 11], "b": [5, 7, 12], "c": [6, 8, 10]}  # the first round is thrown away


def test_a_missed_target_is_recorded_as_missed(
    common: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = common.Report("name", str(tmp_path / "record.json"))
    report.target("speed", 3.9, ">=", 4)
    report.target("size", 5, "<=", 5)
    report.finish()
    record = json.loads((tmp_path / "record.json").read_text("utf-8"))
    assert [(t["name"], t["met"]) for t in record["targets"]] == [("speed", False), ("size", True)]
    printed = capsys.readouterr().out
    assert "MISSED  speed: 3.9 (target >= 4)" in printed
    assert "met     size: 5 (target <= 5)" in printed
