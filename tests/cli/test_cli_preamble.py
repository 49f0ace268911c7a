"""A prompt that a search found, saved, and a vector that is trained or tuned behind it, on a tiny model."""

from __future__ import annotations

import json

import models
import pytest

from tinylora_edge.exporters import ExportSettings, export_gguf

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}a:"
TRAIN = ["--steps", 1, "--prompts", 2, "--samples", 2, "--lr", 0.1, "--no-half-copy", "--workers", 1]
TUNE = ["--budget", "16ktokens", "--prompts", 2, "--max-tokens", 3, "--threads", 1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A bundle of a model with a chat template, its weights, a task, candidates."""
    folder = tmp_path_factory.mktemp("preamble")
    model, metadata = models.tiny_model("llama"), {"tokenizer.chat_template": TEMPLATE}
    gguf = models.write_gguf(model, folder / "tiny.gguf", metadata=metadata)
    export_gguf(gguf, folder / "bundle", settings=ExportSettings(groups=13))
    models.write_hf(model, folder / "weights")
    rows = [{"prompt": f"p{i}", "answer": f"a{i}"} for i in range(160)]
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.jsonl").write_text('{"system": "Be brief."}\n')
    return folder


@pytest.fixture
def task(tiny):
    return "--task", tiny / "task.jsonl", "--reward", "regex('[a-z]')"


def test_what_a_search_found_is_what_a_vector_is_trained_behind(cli, tiny, task, tmp_path):
    found = tmp_path / "prompt.json"
    search = ("--against", "prompt", "--candidates", tiny / "own.jsonl", "--save-preamble", found)
    searched = cli("eval", tiny / "bundle", *task, "-n", 8, *search, "--json").record()
    saved = json.loads(found.read_text())
    assert saved == {key: searched["search"]["best"][key] for key in ("system", "examples")}
    if not (saved["system"] or saved["examples"]):  # that no prompt was the best is for other tests
        saved = {"system": "Be brief.", "examples": []}
        found.write_text(json.dumps(saved))

    out = tmp_path / "v.bin"
    options = (*TRAIN, "--weights", tiny / "weights", "--preamble", found)
    done = cli("train", tiny / "bundle", *task, "-o", out, *options).done()
    assert "which belong to the vector: put them before every request" in " ".join(done.split())
    manifest = json.loads((tmp_path / "v.bin.json").read_text())
    assert manifest["preamble"] == saved
    report = (tmp_path / "v.bin.html").read_text()
    for text in (saved["system"], *(example["answer"] for example in saved["examples"])):
        assert text is None or text in report
    options = ("-n", 32, "--vector", out, "--preamble", found, "--json")
    measured = cli("eval", tiny / "bundle", *task, *options).record()["against"]["contestants"]
    means = {each["name"]: each["mean"] for each in measured}
    assert manifest["held_out"]["base"] == means["preamble"]
    assert manifest["held_out"]["vector"] == means["vector + preamble"]


def test_a_vector_is_tuned_behind_a_system_prompt_and_examples(cli, tiny, task, tmp_path):
    out = tmp_path / "v.bin"
    shown = ("--system", "Be brief.", "--examples", 2)
    ran = cli("tune", tiny / "bundle", *task, "-o", out, *TUNE, *shown, "--json")
    assert ran.code == 0, ran.stderr
    record = json.loads(ran.stdout)  # not `record()`: that nothing did better than the start may be warned of
    manifest = json.loads((tmp_path / "v.bin.json").read_text())
    assert manifest["preamble"] == record["preamble"]
    assert manifest["preamble"]["system"] == "Be brief."
    assert len(manifest["preamble"]["examples"]) == 2
    saved = tmp_path / "prompt.json"
    saved.write_text(json.dumps(manifest["preamble"]))
    options = ("-n", record["held_out"]["n"], "--max-tokens", 3, "--preamble", saved, "--json")
    measured = cli("eval", tiny / "bundle", *task, *options).record()["against"]["contestants"]
    assert measured[1]["mean"] == record["held_out"]["base"]


def test_bad_input(cli, tiny, task, tmp_path):
    run = ("train", tiny / "bundle", *task, "-o", tmp_path / "v.bin")
    (tmp_path / "no.json").write_text('{"examples": [{"question": "p"}]}')
    cli(*run, "--preamble", tmp_path / "no.json").refused("no.json is no preamble: example 1: expected")
    cli(*run, "--preamble", tmp_path / "none.json").refused("none.json")
    both = cli(*run, "--preamble", tmp_path / "no.json", "--system", "x")
    assert both.code == 2
    assert "leave --system and --examples out" in " ".join(both.stderr.split())
    cli(*run, "--system", " ").refused("the system prompt is blank")
    cli(*run, "--examples", 500).refused("500 worked examples", "ask for fewer")
    alone = cli("eval", tiny / "bundle", *task, "--save-preamble", tmp_path / "x.json")
    assert alone.code == 2
    assert "add --against" in alone.stderr
    assert not (tmp_path / "v.bin").exists()
