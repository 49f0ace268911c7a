"""`tune` on a tiny model: what it prints, writes and refuses."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from pathlib import Path

import pytest
import support
from invocation import Cli, on_a_terminal, write_vector

from tinylora_edge import MicroVector, load_bundle


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("task") / "task.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"prompt {i}"}) + "\n" for i in range(60)))
    return [str(path), "--reward", "regex('[a-z]')"]


OPTIONS = ["--threads", "1"]


def test_tune_writes_a_frame_and_its_story(cli, tiny_bundle, task, tmp_path):
    out = tmp_path / "v.bin"
    ran = cli("tune", tiny_bundle, *task, "--budget", "20ktokens", "-o", out, "--json", *OPTIONS).ran()
    record = json.loads(ran.stdout)
    basis = load_bundle(tiny_bundle).basis(numbers=13)
    vector = MicroVector.from_bytes(out.read_bytes(), basis)
    assert (vector.dtype, vector.sequence) == ("fp32", 1)
    assert vector.values.tolist() == record["values"]
    manifest = json.loads((tmp_path / "v.bin.json").read_text())
    assert manifest["basis"] == basis.digest
    assert all(manifest[name] == record[name] for name in ("held_out", "drift"))
    assert record["drift"]["prompts"] == 32
    assert list(manifest["arms"]) == ["base", "vector"]
    assert str(len(out.read_bytes())) in cli("eval", f"{out}.json").done(), (
        "its record is drawn, as one of `train` is"
    )
    assert manifest["result"]["steps"] == len([row for row in manifest["curve"] if "reward" in row]) > 0
    assert ("warning: " in ran.stderr) == (not record["result"]["improved"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.bin", "v.bin.json"]


def test_a_terminal_shows_how_far_it_is(environment, tiny_bundle, task, tmp_path):
    options = (*OPTIONS, "--budget", "20ktokens", "--prompts", "2", "-o", tmp_path / "v.bin")
    interrupted = on_a_terminal(environment, "tune", tiny_bundle, *task, *options)
    interrupted.expect("measuring: base on")
    screen = interrupted.before + interrupted.after
    interrupted.send("\x03")
    screen += interrupted.read()
    text = " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen).split())
    assert "nan" not in text
    assert re.search(r"held back [01]\..* measuring: base on held-out prompts", text)
    # A fast processor has measured the vector before the key arrives.
    assert re.search(r"not measured (base and vector, )?drift: interrupted; the vector is written", text)
    assert (tmp_path / "v.bin").exists()
    again = on_a_terminal(environment, "eval", tiny_bundle, *task, "-n", "4").read()
    assert "measuring: base on held-out prompts" in again


def test_an_interrupted_run_goes_on(start, cli, tiny_bundle, task, tmp_path):
    out, state = tmp_path / "v.bin", tmp_path / "v.bin.state"
    command = ["tune", tiny_bundle, *task, "-o", out, "--no-evaluate", *OPTIONS]
    child = start(*command, "--budget", "1h")
    support.wait_until(lambda: state.exists() or child.poll() is not None, 120)
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=120)
    assert (child.returncode, stdout) == (130, b"")
    assert b"stopping after the step at hand" in stderr
    assert b"--resume" in stderr
    assert not out.exists()
    cli(*command).refused("v.bin.state", "--resume")
    saved = json.loads(text := state.read_text())
    state.write_text(text.replace(json.dumps(saved["state"]["start"]), json.dumps([0.1] * 13)))
    cli(*command, "--resume").refused("began with a vector", "--start")
    state.write_text(text)
    spent = saved["state"]["tokens"]
    done = cli(*command, "--resume", "--json", "--budget", f"{spent + 12_000}tokens").ran()
    assert json.loads(done.stdout)["result"]["tokens"] > spent > 0
    assert not state.exists()


def test_how_many_numbers(cli: Cli, tiny_bundle: Path, task: list[str], key: Path, tmp_path: Path) -> None:
    command = ["tune", tiny_bundle, *task, "--no-evaluate", *OPTIONS, "--budget", "12ktokens", "-o"]
    five, again = tmp_path / "five.bin", tmp_path / "again.bin"
    ran = cli(*command, five, "--numbers", 5).ran()
    assert five.stat().st_size == 7 + 5 * 4 + 4
    cli(*command, again, "--start", five, "--numbers", 7).refused(
        "and not of", load_bundle(tiny_bundle).basis(numbers=7).id
    )
    ran = cli(*command, again, "--start", five, "--json").ran()
    assert len(json.loads(ran.stdout)["values"]) == 5
    shared, mine = tmp_path / "shared.bin", tmp_path / "mine.bin"
    drawn = write_vector(tmp_path / "drawn.bin", load_bundle(tiny_bundle).basis(rank=8), 2.0)
    cli("pack", drawn, tiny_bundle, "-o", shared, "--key", key).done()
    cli("pack", five, tiny_bundle, "-o", mine, "--key", key, "--user", "al").done()
    signed = ("--start", mine, "--under", shared, "--key", f"{key}.pub", "--user", "al")
    ran = cli(*command, tmp_path / "own.bin", *signed, "--json").ran()
    record = json.loads(ran.stdout)
    assert record["under"] == hashlib.sha256(shared.read_bytes()).hexdigest()
    assert MicroVector.from_bytes((tmp_path / "own.bin").read_bytes(), load_bundle(tiny_bundle).bases)


def test_refusals_leave_nothing(cli: Cli, tiny_bundle: Path, task: list[str], tmp_path: Path) -> None:
    command = ["tune", tiny_bundle, *task, "-o", tmp_path / "v.bin", *OPTIONS]
    cli(*command, "--numbers", "56").refused("no projection has 56 numbers: these are all entries of rank 2")
    cli(*command, "--numbers", "15").refused("no projection has 15 numbers", "tiled ones of 1 to 14")
    cli(*command, "--budget", "soon").refused("soon", "5m")
    cli(*command, "--budget", "9tokens").refused("9 tokens", "too small", "one step takes")
    cli(*command, "--resume").refused("no state", "v.bin.state")
    for nowhere in ("-", "", "/"):
        cli("tune", tiny_bundle, *task, "-o", nowhere).misused("stdout cannot take")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "v.bin").write_bytes(b"mine")
    cli(*command).refused("v.bin", "exists")


@pytest.mark.usefixtures("tuning_gains")
def test_a_users_own_texts_need_no_reward(cli: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.txt", tmp_path / "v.bin"
    mine.write_text("".join(f"on my way, {n} min\n" for n in range(60)))
    shared = write_vector(tmp_path / "shared.bin", load_bundle(tiny_bundle).basis(rank=8), 2.0)
    tune = ("tune", tiny_bundle, mine, "--under", shared, "--budget", "12ktokens", "-o", out)
    ran = cli(*tune, *OPTIONS).ran()
    assert "texts without prompts: learned as they are" in ran.stderr
    told = re.search(r"held back 1\.0+ -> 0\.\d+ nats a token", " ".join(ran.stdout.split()))
    assert told, "the first check, and a later one"
    assert re.search(r"\nwhat lies beneath +\d", ran.stdout), "nats have no minus"
    record = json.loads((tmp_path / "v.bin.json").read_text())
    stack = ("--vector", shared, "--vector", out, "-n", record["held_out"]["n"])
    found = json.loads(cli("eval", tiny_bundle, mine, *stack, "--json", *OPTIONS).stdout)
    held = [record["held_out"][arm] for arm in ("base", "vector")]
    assert held == pytest.approx([found["arms"][arm]["mean"] for arm in ("beneath", "vector")], abs=1e-3)
    assert record["result"]["rollouts"] > 0
    cli("tune", tiny_bundle, mine, "--reward", "max_words(3)", "-o", tmp_path / "w.bin").refused(
        "without prompts"
    )
