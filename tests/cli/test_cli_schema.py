"""`--schema` in `eval`, `tune` and `run`, and free text in `eval`, on a tiny model with a chat template."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import models
import numpy as np
import pytest
from invocation import Cli

from tinylora_edge import runtime
from tinylora_edge.tasks import load_task

LABELS = ["cancel", "cancel order", "track"]
SCHEMA = {"type": "array", "items": {"enum": [1, 2, "x"]}, "minItems": 1, "maxItems": 3}
SMALL = ("--threads", 1)


@pytest.fixture
def bundle(tiny: Path) -> Path:
    return tiny / "bundle"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return rows(tmp_path, lambda i: LABELS[i % 3])


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    (tmp_path / "schema.json").write_text(f"\ufeff{json.dumps(SCHEMA)}")  # as some editors do
    return tmp_path / "schema.json"


def rows(folder: Path, answer: Callable[[int], str]) -> Path:
    lines = [json.dumps({"prompt": f"prompt {i}", "answer": answer(i)}) for i in range(60)]
    (folder / "task.jsonl").write_text("\n".join(lines))
    return folder / "task.jsonl"


def test_eval_measures_answers_that_are_held_to_a_schema(cli, bundle, labels, schema):
    command = ("eval", bundle, labels, "--reward", "label", "-n", 6, *SMALL)
    found = cli(*command, "--schema", "label", "--json").record()
    assert {row["base"] for row in found["answers"]} <= set(LABELS)
    assert (
        found["arms"]["base"]["tokens"] == len("u:prompt 10\na:") - sum(i < 10 for i in held_out(labels)) / 6
    )
    lists = cli(*command, "--schema", schema, "--max-tokens", 60, "--json").record()["answers"]
    assert len(lists) == 6
    for answer in lists:
        jsonschema.validate(json.loads(answer["base"]), SCHEMA)
    assert "tokens a request" in cli(*command, "--schema", "label").done()


def held_out(path: Path) -> list[int]:
    return [int(str(each.prompt).split()[1]) for each in load_task(path, held_out=6).held_out]


def test_tune_learns_from_answers_that_are_held_to_labels(cli, bundle, labels, tmp_path):
    out = ("-o", tmp_path / "v.bin", "--budget", "6ktokens", "--prompts", 2, "--no-evaluate", *SMALL)
    found = cli("tune", bundle, labels, "--reward", "label", "--schema", "label", *out, "--json").ran()
    # A model of random weights never writes a label by itself.
    assert json.loads(found.stdout)["result"]["start_score"] > 0


def test_run_answers_as_serve_does(cli: Cli, bundle: Path, schema: Path) -> None:
    command = ("run", bundle, "hello", "--schema", schema, "--temperature", 1, "--seed", 3, *SMALL)
    printed = cli(*command).done()
    jsonschema.validate(json.loads(printed), SCHEMA)
    with runtime.Pool(bundle, n_threads=1) as pool:
        how: Any = {"schema": SCHEMA, "temperature": 1, "seed": 3, "max_tokens": 256}
        answer = asyncio.run(pool.chat("hello", **how))
    assert printed == answer.text + "\n"
    record = cli(*command, "--json").record()
    assert (record["text"], record["finish_reason"]) == (answer.text, "stop")


def test_free_text_is_measured_by_the_nats_of_its_answers(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    task = rows(tmp_path, lambda i: f"Reply {i}")
    command = ("eval", bundle, task, "--reward", "text", "-n", 5, *SMALL)
    record = cli(*command, "--json").record()
    assert record["unit"] == "nats a token"
    assert [row["wanted"] for row in record["answers"]] == [f"Reply {i}" for i in held_out(task)[:5]]
    assert all(row["base"] for row in record["answers"]), "free text has answers, too"
    expected = []
    with runtime.load(bundle, n_ctx=256, n_threads=1, logits_all=True) as llm:
        assert isinstance(llm, runtime.TinyLoraLlama)
        for i in held_out(task)[:5]:
            prompt, _ = llm.encode(f"prompt {i}")
            answer = [*llm.tokenize(f"Reply {i}".encode(), add_bos=False), llm.token_eos()]
            logits = models.llama_logits(llm, [*prompt, *answer])[len(prompt) - 1 : -1].astype(np.float64)
            nats = np.log(np.exp(logits).sum(1)) - logits[range(len(answer)), answer]
            expected.append(-nats.mean())
    assert sorted(record["arms"]["base"]["scores"]) == pytest.approx(sorted(expected), abs=1e-3)
    assert "nats a token, less is better" in (printed := cli(*command).done())
    assert f"{-np.mean(expected):.3f}" in printed


def test_what_no_answer_can_keep_to(cli: Cli, bundle: Path, labels: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    bad, broken = tmp_path / "bad.json", tmp_path / "broken.json"
    bad.write_text('{"type": "string", "pattern": "^(?=a)a$"}')
    broken.write_text("{")
    tune = ("tune", bundle, labels, "--reward", "label", "-o", tmp_path / "v.bin", *SMALL)
    commands = ("eval", bundle, labels, "--reward", "label", "-n", 6), tune, ("run", bundle, "x")
    for command in commands:
        cli(*command, "--schema", bad).refused("llguidance makes no grammar of this schema")
        cli(*command, "--schema", broken).refused("broken.json: not JSON")
        cli(*command, "--schema", tmp_path / "none").refused("none", "No such file")
    cli("run", bundle, "x", "--schema", "label").refused("--schema label", "pass a file")
    assert sorted(tmp_path.iterdir()) == sorted([*before, bad, broken])
