"""The benchmarks run, and hand out what they promise. No test here looks at a time."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import support

from tinylora_edge import MicroVector, load_basis
from tinylora_edge.system import cores

FOLDER = Path(__file__).parents[2] / "benchmarks"


def started(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / script), "--json", "-", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def refused(script: str, *arguments: str) -> str:
    done = started(script, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


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
    for strategy, figures in record["soak"].items():
        assert figures["opened"] == [], strategy
        assert figures.get("wchar", 0) == 0, strategy
        assert figures["growth"] < 5e6, strategy  # an adapter that is not freed takes megabytes
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


def test_frames_of_every_form_are_checked() -> None:
    record = run("frames.py", "--rounds", "2", "--calls", "3")
    found = record["milliseconds"]
    forms = {
        f"{dtype}, {form}"
        for dtype in ("fp32", "bf16")
        for form in ("raw payload", "CRC-32", "HMAC", "Ed25519")
    }
    assert forms < set(found)
    assert all(figures["rounds"] == 2 and figures["min"] > 0 for figures in found.values())
    signed, alone = (found[name]["median"] for name in ("fp32, Ed25519", "Ed25519 alone (cryptography)"))
    assert record["signed_over_bare_verification"] == pytest.approx(signed / alone)
    bounds = {target["name"].partition(":")[0]: target["bound"] for target in record["targets"]}
    assert bounds == {"raw payload": 0.1, "CRC-32": 0.1, "Ed25519": 1.0}


def test_grammars_of_both_kinds_allow_the_same_answers() -> None:
    record = run("grammars.py", "--rounds", "1", "--parts", "10")
    assert record["tokens"].keys() == record["ratios"].keys()
    assert record["tokens"].keys() > {"an object", "10 parts"}
    (target,) = record["targets"]
    assert target["value"] == max(ratio for name, ratio in record["ratios"].items() if name != "10 parts")


def test_a_store_is_filled_and_looked_into() -> None:
    record = run("store.py", "--users", "1500")
    assert record["users"] == 1500
    assert record["bytes"] > 1500 * 37
    assert set(record["seconds"]) == {"look-up", "look-up and check"}
    assert [target["bound"] for target in record["targets"]] == [50_000, 1.0, 1.0]


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


def test_science_goes_on_where_it_stopped(tmp_path: Path) -> None:
    study = tmp_path / "study.jsonl"
    arm = "SFT on the answers"
    arguments = ("--study", str(study), "--arms", arm, "--steps", "1", "--held-out", "8", "--workers", "1")
    (found,) = run("science.py", *arguments, "--seeds", "0")["summary"]
    assert (found["seeds"], found["values"], found["frame_bytes"], found["n"]) == (1, 13, 63, 8)
    first = json.loads(study.read_text())
    again = first | {"seed": 1, "difference": first["difference"] + 0.1}
    study.write_text("".join(json.dumps(r) + "\n" for r in (first, again, again | {"arm": "r = 1"})))
    (found,) = run("science.py", *arguments, "--seeds", "0", "1")["summary"]  # nothing is run again
    assert found["gain"] == pytest.approx(first["difference"] + 0.05)
    assert found["standard_error"] == pytest.approx(0.05)

    other = first | {"commit": "0123456789ab", "seed": 1}
    study.write_text("".join(json.dumps(r) + "\n" for r in (first, other)))
    error = refused("science.py", *arguments, "--seeds", "0", "1")
    assert f"study.jsonl has runs of commit 0123456789ab, and this is {first['commit']}: " in error
    assert run("science.py", *arguments, "--seeds", "0", "1", "--other-commits")["summary"][0]["seeds"] == 2
    study.write_text(json.dumps(first) + "\n" + json.dumps(other)[:99])
    assert "study.jsonl, line 2 is no record" in refused("science.py", *arguments)


def test_tune_goes_on_where_it_stopped(tmp_path: Path) -> None:
    study = tmp_path / "study.jsonl"
    arguments = ("--study", str(study), "--arms", "SPSA", "--tasks", "list-lookup", "--budget", "8ktokens")
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
    study, methods = tmp_path / "study.jsonl", ["clicks", "pairs", "duel", "online"]
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


def test_retention_compares_the_two_engines(smollm2_bundle: Path, tmp_path: Path) -> None:
    basis = load_basis(smollm2_bundle / "basis.gguf")
    (tmp_path / "v.bin").write_bytes(MicroVector.random(basis, 0.3, seed=1).to_bytes(basis))
    record = run(
        "retention.py",
        "--bundle",
        str(smollm2_bundle),
        "--vectors",
        str(tmp_path / "v.bin"),
        "--held-out",
        "8",
    )
    (vector,) = record["vectors"]
    assert set(vector["scores"]) == {"torch", "llama.cpp"}
    for engine, score in vector["scores"].items():
        assert vector["gains"][engine] == pytest.approx(score - record["base"][engine])
    assert record["targets"][0]["bound"] == 0.9


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


def test_onnx_bake_measures_and_cleans_up(tmp_path: Path) -> None:
    record = run("onnx_bake.py", "--scale", "0.02", "--rounds", "2", "--folder", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert len(record["bakes"]) == record["seconds"]["bake"]["rounds"] == 2
    for bake in record["bakes"]:
        assert bake["nodes"] == 2 * 6 + 2  # five layers and a split a block, embedding, head
        assert bake["added"] > 0
        assert bake["peak_bytes"] > record["data_bytes"] > 0  # numpy alone is larger than this model
    seconds, peak = record["targets"]
    assert (seconds["value"], seconds["bound"]) == (record["seconds"]["bake"]["median"], 60)
    assert (peak["value"], peak["bound"]) == (max(bake["peak_bytes"] for bake in record["bakes"]), 1e9)


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


def test_onnx_bake_says_what_does_not_fit(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "onnx_bake.py"), "--scale", "8", "--folder", str(tmp_path)]
    if shutil.disk_usage(tmp_path).free > 5e12:
        pytest.skip("the disk is so large that it would fit")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "GB free" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_drift_is_measured_once_and_gone_on_with(tmp_path: Path, smollm2_bundle: Path) -> None:
    basis = load_basis(smollm2_bundle / "basis.gguf")
    frames = []
    for norm in (0.01, 0.3):
        frames.append(tmp_path / f"{norm}.bin")
        frames[-1].write_bytes(MicroVector.random(basis, norm, seed=1).to_bytes(basis))
    asked = ["--study", str(tmp_path / "study.jsonl"), "--prompts", "2", "--workers", "1"]
    asked += ["--vectors", str(smollm2_bundle), *map(str, frames)]
    near, far = run("drift.py", *asked)["runs"]
    assert near["drift"]["kl"] < far["drift"]["kl"]
    assert far["drift"]["prompts"] == 2
    assert run("drift.py", *asked)["runs"] == [near, far]
    assert len((tmp_path / "study.jsonl").read_text().splitlines()) == 2


def test_vectors_of_runs_are_measured_on_other_prompts(tmp_path: Path, smollm2_bundle: Path) -> None:
    basis = load_basis(smollm2_bundle / "basis.gguf")
    study, kept = tmp_path / "study.jsonl", tmp_path / "kept.jsonl"
    arm = "default: r = 2, u = 1, G = 13, tiled"
    run_of = {"arm": arm, "task": "list-lookup", "base": 0.0, "difference": 0.0, "standard_error": 0.0}
    rows = []
    for seed, digest in enumerate((basis.digest, "00" * 32)):  # here, and where factors have other roundings
        frame = MicroVector.random(basis, 0.3, seed=1).to_bytes(basis)
        text = base64.urlsafe_b64encode(frame[:1] + bytes.fromhex(digest[:8]) + frame[5:]).decode()
        rows.append(run_of | {"seed": seed, "basis": digest, "frame": text})
    study.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = (str(study), "--measured", str(kept), "-n", "4", "--prompts", "usual", "--other-machines")
    run("held_out.py", *asked, "--workers", "1")
    one, other = (json.loads(line) for line in kept.read_text().splitlines())
    assert (one["n"], one["prompts"], one["measured_with"]) == (4, "usual", basis.digest)
    assert [one["base"], one["vector"]] == [other["base"], other["vector"]]
    run("held_out.py", *asked, "--tasks", "brevity", "--best-prompt", "--workers", "1")
    prompted = json.loads(kept.read_text().splitlines()[-1])
    assert (prompted["arm"], prompted["task"], prompted["frame"]) == (
        "the best prompt, no vector",
        "brevity",
        None,
    )
    assert prompted["vector"] - prompted["base"] == prompted["difference"]
    error = refused("held_out.py", *asked, "--tasks", "brevity")
    assert f"no vector of these tasks, arms and seeds; it has list-lookup: {arm}" in error
