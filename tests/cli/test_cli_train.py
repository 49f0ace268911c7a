"""`train`, `eval` and `tasks` on a tiny model: what they print, write and refuse."""

from __future__ import annotations

import json

import models
import pytest
from invocation import on_a_terminal

from tinylora_edge.exporters import ExportSettings, export_gguf

OPTIONS = ["--steps", "2", "--prompts", "4", "--samples", "4", "--lr", "0.1", "--no-half-copy"]
OPTIONS += ["--workers", "1", "--dtype", "bf16", "--json"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A bundle, its Hugging Face weights and a task file, as paths."""
    folder = tmp_path_factory.mktemp("train")
    model = models.tiny_model("llama")
    gguf = models.write_gguf(model, folder / "tiny.gguf")
    export_gguf(gguf, folder / "bundle", settings=ExportSettings(groups=13))
    models.write_hf(model, folder / "weights")
    rows = [{"prompt": f"prompt {i}", "answer": f"answer {i}"} for i in range(160)]
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_eval_shows_how_many_prompts_are_answered(tiny, environment):
    task = ("--task", tiny / "task.jsonl", "--reward", "regex('[a-z]')")
    shown = on_a_terminal(environment, 80, "eval", tiny / "bundle", *task, "-n", "16", "--show", "0")
    assert "the base answers" in shown
    assert "16/16" in shown


def test_train_then_eval(cli, tiny, tmp_path):
    task = ["--task", str(tiny / "task.jsonl"), "--reward", "regex('[a-z]')"]
    trained = cli(
        "train",
        tiny / "bundle",
        *task,
        "-o",
        tmp_path / "v.bin",
        "--weights",
        tiny / "weights",
        *OPTIONS,
    )
    assert trained.code == 0, trained.stderr
    record = json.loads(trained.stdout)
    assert record["stopped"] == "done"
    assert len(record["values"]) == 13
    assert (tmp_path / "v.bin").stat().st_size == 37
    assert record["drift"]["prompts"] == record["drift"]["repeating"]["judged"] == 32
    assert record["drift"] == json.loads((tmp_path / "v.bin.json").read_text())["drift"]
    measure = ("eval", tiny / "bundle", *task, "-n", "16")
    measured = cli(*measure, "--vector", tmp_path / "v.bin", "--drift", "--json")
    assert measured.code == 0, measured.stderr
    record = json.loads(measured.stdout)
    assert record["drift"]["prompts"] >= 200
    refused = cli(*measure, "--drift")
    assert refused.code == 2
    assert "say which, with --vector" in refused.stderr
    assert record["base"]["n"] == record["vector"]["n"] == 16
    assert record["comparison"]["gained"] >= 0


def test_train_tries_step_sizes(cli, tiny, tmp_path):
    task = ("--task", tiny / "task.jsonl", "--reward", "regex('[a-z]')")
    run = ("train", tiny / "bundle", *task, "-o", tmp_path / "v.bin", "--weights", tiny / "weights", *OPTIONS)
    ran = cli(*run, "--trial", "0.5", "--trial", "2", "--no-evaluate")
    assert ran.code == 0, ran.stderr
    manifest = json.loads((tmp_path / "v.bin.json").read_text())
    tried = [row for row in manifest["curve"] if row.get("event") == "trial"]
    assert [row["lr"] for row in tried] == [0.05, 0.2]  # of --lr 0.1
    best = max(tried, key=lambda row: (row["validation"], -row["lr"]))
    assert {row["lr"] for row in manifest["curve"] if row.get("step") == 1} == {best["lr"]}
    cli(*run, "--trial", "0", "--resume").refused("multiples above 0, not at 0.0")


def test_eval_says_that_a_file_has_fewer_prompts_than_it_is_asked_for(cli, tiny, tmp_path):
    short = tmp_path / "short.jsonl"
    rows = [{"prompt": f"prompt {i}", "split": "held_out" if i < 2 else "train"} for i in range(12)]
    short.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("eval", tiny / "bundle", "--task", short, "--reward", "regex('[a-z]')", "--json")
    cli(*command, "-n", 8).refused("2 held-out prompts", "-n is 8")
    measured = cli(*command)
    assert measured.code == 0, measured.stderr
    assert json.loads(measured.stdout)["base"]["n"] == 2
    assert "2 held-out prompts" in measured.stderr
    assert "128" in measured.stderr
    assert cli(*command, "-n", 2).record()["base"]["n"] == 2


def test_eval_takes_a_limit_of_answers(cli, tiny):
    """A task from a file stops at 64 tokens, and what was trained may need more; a token is a byte here."""
    command = ("eval", tiny / "bundle", "--task", tiny / "task.jsonl", "--reward", "regex('[a-z]')", "-n", 2)
    whole, cut = (
        cli(*command, "--json", *more).record()["base"]["answers"] for more in ((), ("--max-tokens", 3))
    )
    assert all(long.startswith(short[:1]) for short, long in zip(cut, whole, strict=True))
    assert (
        max(map(len, cut)) < 12 < max(map(len, whole))
    )  # a byte that is no text is shown in three characters
    cli(*command, "--max-tokens", 0).misused("--max-tokens")


@pytest.mark.parametrize("command", ["train", "eval", "tune"])
def test_a_task_that_was_mistyped_is_named(cli, tiny, tmp_path, command):
    output = () if command == "eval" else ("-o", tmp_path / "v.bin")
    (tmp_path / "mine.jsonl").write_text("")
    run = (command, tiny / "bundle", "--task")
    cli(*run, "brevty", *output).refused("did you mean brevity?")
    cli(*run, tmp_path / "mien.jsonl", *output).refused(f"did you mean {tmp_path / 'mine.jsonl'}?")


@pytest.mark.parametrize("command", ["train", "eval"])
def test_an_unknown_task(cli, tiny, tmp_path, command):
    output = ("-o", tmp_path / "v.bin") if command == "train" else ()
    cli(command, tiny / "bundle", "--task", "lst-lookup", *output).refused("lst-lookup", "list-lookup")
    assert list(tmp_path.iterdir()) == []
