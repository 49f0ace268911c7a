"""The benchmarks run, and hand out what they promise. No test here looks at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import support

from tinylora_edge.system import cores

FOLDER = Path(__file__).parents[2] / "benchmarks"


def started(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / script), "--json", "-", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run(script: str, *arguments: str) -> dict[str, Any]:
    done = started(script, *arguments)
    assert done.returncode == 0, done.stderr
    assert "load average" in done.stderr, "the table belongs on stderr when the record takes stdout"
    record: dict[str, Any] = json.loads(done.stdout)
    assert record["environment"]["versions"]["tinylora-edge"]
    assert record["environment"]["variables"]["OMP_WAIT_POLICY"]
    return record


def test_swaps_of_both_strategies_leave_nothing_behind() -> None:
    record = run("swap.py", "--rounds", "2", "--loads", "1", "--swaps", "40")
    for kind, figures in record["soak"].items():
        assert figures["opened"] == [], kind
        assert figures.get("wchar", 0) == 0, kind
        assert figures["growth"] < 5e6, kind  # an adapter that is not freed takes megabytes
    values = {target["name"]: target["value"] for target in record["targets"]}
    assert values["u = 1 swap: bytes written + files opened"] == 0
    assert values["folded swap / stock adapter init"] > 0


def test_decode_compares_all_with_the_stock_lora() -> None:
    record = run("decode.py", "--rounds", "3", "--tokens", "2", "--threads", "1")
    (results,) = record["results_by_threads"].values()
    stock = results["stock rank-2 LoRA"]
    assert stock["speed_vs_stock"] == 1
    assert len(results) == 4
    for figures in results.values():
        assert figures["speed_vs_stock"] == pytest.approx(stock["median"] / figures["median"])
    ratios = [target["value"] for target in record["targets"]]
    assert ratios == [f["speed_vs_stock"] for name, f in results.items() if name.startswith("ours")]


def test_onnx_decode_compares_all_with_the_base() -> None:
    arguments = ("--rounds", "1", "--tokens", "2", "--threads", "1", "--precision", "int4", "--users", "2")
    record = run("onnx_decode.py", *arguments)["int4"]
    nodes, found = record["nodes"], record["1 threads"]
    assert nodes["base"] < nodes["ours"] < nodes["naive side path"]
    assert found["single"]["base"]["time_over_reference_paired"] == 1
    assert found["batch"]["one vector for all"]["time_over_reference_paired"] == 1
    assert len(found["single"]) == len(found["batch"]) == 3


def test_grpo_times_both_engines_and_all_rollouts() -> None:
    small = ("--steps", "1", "--prompts", "2", "--samples", "2", "--tokens", "16")
    record = run("grpo.py", "--rounds", "1", *small)
    assert {name: r["rounds"] for name, r in record["steps"].items()} == {"ours": 1, "TRL, stock": 1}
    assert len(record["rollouts"]) == 3
    values = [target["value"] for target in record["targets"]]
    drawn, stock = record["rollouts"][record["drawn_with"]], record["rollouts"]["generate"]
    ours, trl = record["steps"]["ours"], record["steps"]["TRL, stock"]
    assert values == [stock["median"] / drawn["median"], trl["median"] / ours["median"]]


def test_tune_goes_on_where_it_stopped(tmp_path: Path) -> None:
    study = tmp_path / "study.jsonl"
    arguments = ("--study", str(study), "--arms", "CMA-ES", "--tasks", "list-lookup", "--budget", "8ktokens")
    arguments += ("--held-out", "8")
    (found,) = run("tune.py", *arguments, "--seeds", "0")["summary"]
    first = json.loads(study.read_text())
    assert (first["steps"] > 0, first["n"], first["tokens"] <= 9_000) == (True, 8, True)
    assert first["difference"] == pytest.approx(first["vector"] - first["base"])
    again = first | {"seed": 1, "difference": first["difference"] + 0.1}
    other = again | {"settings": first["settings"] | {"reach": 1.0}}
    others = other, again | {"n": 128}, again | {"weights": "BF16"}
    study.write_text("".join(json.dumps(r) + "\n" for r in (first, again, *others)))
    (found,) = run("tune.py", *arguments, "--seeds", "0", "1")["summary"]  # nothing is run again
    assert (found["seeds"], found["gain"]) == (2, pytest.approx(first["difference"] + 0.05))


def test_feedback_measures_every_way_to_learn(tmp_path: Path) -> None:
    study, methods = tmp_path / "study.jsonl", ["clicks", "pairs"]
    record = run(
        "feedback.py",
        *("--preferences", "correct", "--methods", *methods, "--clicks", "1", "--users", "0"),
        *("--prompts", "8", "--study", str(study)),
        *("--answers", str(FOLDER / "results" / "feedback-answers.jsonl")),
    )
    sessions = [json.loads(line) for line in study.read_text().splitlines()]
    assert sessions == record["sessions"]
    assert [s["method"] for s in sessions] == ["base", *methods]
    assert all(s["n"] == 8 for s in sessions)
    moved = {s["method"] for s in sessions if s["norm"] > 0}
    assert moved - {"duel"} == {"clicks", "pairs", "online"}, "ten duels may all have been draws"
    gains = {found["method"]: found["gain"] for found in record["summary"]}
    assert gains == {s["method"]: pytest.approx(s["liked"] - sessions[0]["liked"]) for s in sessions[1:]}


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


def test_export_7b_measures_and_cleans_up(tmp_path: Path) -> None:
    small = ("--blocks", "2", "--scale", "0.07", "--rounds", "1", "--folder", str(tmp_path))
    record = run("export_7b.py", *small)
    assert list(tmp_path.iterdir()) == []
    exports = {name: runs[0] for name, runs in record["runs"].items() if name.startswith("export")}
    alone = cores() == 1  # then one worker and all cores are the same
    assert len(exports) >= (2 if alone else 3)
    for name, found in exports.items():
        assert found["matrices"] == 14, name
        assert 3 * 14 <= found["passes"] <= 40 * 14
        assert found["residual"] <= 1e-3
        assert found["unconverged"] == 0
        assert found["anonymous_bytes"] > 0
    assert len({found["digest"] for name, found in exports.items() if "bf16" in name}) == 1
    assert set(record["one_block"]) == {"ours", "svds", "svd_lowrank", "PEFT init"}
    assert [target["bound"] for target in record["targets"]] == [1.5e9, 6, 1, 40]
