"""`eval` against prompts, examples and LoRAs, and the prompt beside what `train` finds, on a tiny model."""

from __future__ import annotations

import json

import models
import numpy as np
import pytest

from tinylora_edge import MicroVector, load_basis
from tinylora_edge.exporters import ExportSettings, export_gguf
from tinylora_edge.runtime import PromptSearch
from tinylora_edge.runtime.contests.search import Trial
from tinylora_edge.runtime.evaluation import Evaluation
from tinylora_edge.tasks import Preamble, Sample

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}a:"
REWARD = ("--reward", "regex('[a-z]')")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A bundle of a model with a chat template, a vector with a manifest, a LoRA, a task, candidates."""
    folder = tmp_path_factory.mktemp("against")
    metadata = {"tokenizer.chat_template": TEMPLATE}
    gguf = models.write_gguf(models.tiny_model("llama"), folder / "tiny.gguf", metadata=metadata)
    export_gguf(gguf, folder / "bundle", settings=ExportSettings(groups=13))
    basis = load_basis(folder / "bundle" / "basis.gguf")
    (folder / "v.bin").write_bytes(MicroVector.random(basis, 0.3, seed=1).to_bytes(basis))
    (folder / "v.bin.json").write_text(json.dumps({"result": {"seconds": 12.5}}))
    rng = np.random.default_rng(0)
    pairs = {"blk.0.attn_q.weight": (rng.normal(size=(4, 64)), rng.normal(size=(64, 4)) / 2)}
    models.write_lora(folder / "lora.gguf", "llama", pairs, alpha=4.0)
    rows = [{"prompt": f"p{i}", "answer": f"a{i}"} for i in range(60)]
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bare.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    (folder / "own.jsonl").write_text('{"system": "Be brief."}\n{"question": "q", "answer": "an answer"}\n')
    return folder


@pytest.fixture
def measure(cli, tiny):
    def run(*options, task="task.jsonl"):
        return cli("eval", tiny / "bundle", "--task", tiny / task, *REWARD, "-n", 6, "--show", 1, *options)

    return run


def test_on_shifted_prompts(cli, tiny, measure):
    rows = [{"prompt": f"p{i}", "split": ("train", "held_out")[i % 2]} for i in range(8)]
    rows += [{"prompt": f"q{i}", "split": "shifted"} for i in range(4)]
    (tiny / "shifted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("eval", tiny / "bundle", "--task", tiny / "shifted.jsonl", *REWARD, "--shifted", "-n")
    record = cli(*command, 4, "--json").record()
    assert (record["split"], record["base"]["n"]) == ("shifted", 4)
    assert "prompt: q" in cli(*command, 4, "--show", 1).done()
    cli(*command, 5).refused("shifted", "-n is 5")
    measure("--shifted", task="bare.jsonl").refused("bare.jsonl", "no shifted prompts", "--shifted")


def test_everything_at_once(measure, tiny):
    vector = ("--vector", tiny / "v.bin")
    search = ("--against", "prompt", "--candidates", tiny / "own.jsonl")
    prompts = ("--system", "One.", "--system", "Two.", "--examples", 2)
    record = measure(*vector, *prompts, "--lora", tiny / "lora.gguf", *search, "--json").record()
    others = ["system prompt 1", "system prompt 2", "2 examples", "LoRA", "prompt"]
    found = {each["name"]: each for each in record["against"]["contestants"]}
    assert list(found) == ["base", "vector", *(n for o in others for n in (o, f"vector + {o}"))]
    assert found["base"]["scores"] == record["base"]["scores"]
    assert found["vector"]["mean"] == record["vector"]["mean"]
    assert record["comparison"]["difference"] == pytest.approx(
        found["vector"]["mean"] - found["base"]["mean"]
    )
    frame, size = (tiny / "v.bin").stat().st_size, (tiny / "lora.gguf").stat().st_size
    assert found["vector + LoRA"]["cost"]["sent"] == frame + size
    assert (found["vector"]["cost"]["making_s"], found["LoRA"]["cost"]["making_s"]) == (12.5, None)
    assert found["system prompt 2"]["system"] == "Two."
    assert len(found["vector + 2 examples"]["examples"]) == 2
    assert record["search"]["tried"] == 4
    assert record["search"]["best"]["system"] == found["prompt"]["system"]


def test_the_tables_fit_a_terminal(measure, tiny):
    out = measure("--vector", tiny / "v.bin", "--examples", 2).done()
    tables, _, shown = out.partition("\nprompt: ")
    # A sentence is one line in a pipe: who reads it there breaks it.
    assert max(len(line) for line in tables.splitlines() if not line.startswith("Times are")) <= 80, tables
    for part in (
        "rewards on 6 held-out prompts",
        "vector, over 2 examples",
        "vector + 2 examples, over 2 examples",
        "Times are this machine's",
        "2 examples: 2 worked examples, the first 'p",
    ):
        assert part in tables
    assert shown.count("vector") == 2
    alone = measure("--system", "Be brief.").done()
    assert "system prompt: 'Be brief.'" in alone
    assert "what the vector does" not in alone


def test_written_examples_for_a_task_without_answers(measure, tiny):
    own = ("--candidates", tiny / "own.jsonl", "--json")
    record = measure("--examples", 1, *own, task="bare.jsonl").record()
    assert record["against"]["contestants"][1]["examples"] == [{"question": "q", "answer": "an answer"}]


def test_bad_input(measure, tiny, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes((tiny / "lora.gguf").read_bytes().replace(b"blk.0.attn_q", b"blk.9.attn_q"))
    measure("--lora", other).refused("is a LoRA of another model", "blk.9.attn_q.weight", "base.gguf")
    measure("--lora", tmp_path / "none").refused("there is no such LoRA")
    measure("--examples", 40).refused("behind 40 worked examples has", "context of 512: take fewer")
    measure("--examples", 60).refused("60 worked examples", "have an answer: ask for fewer")
    measure("--examples", 2, task="bare.jsonl").refused(
        "has no answers for worked examples", "on the command line: --candidates FILE.jsonl\n"
    )
    measure("--against", "best-prompt").refused("no candidates for a prompt are shipped", "--candidates")
    measure("--system", " ").refused("the system prompt is blank")


def test_train_measures_a_prompt_beside_the_vector(cli, tiny, tmp_path):
    models.write_hf(models.tiny_model("llama"), tmp_path / "weights")
    options = ["--steps", 1, "--prompts", 2, "--samples", 2, "--lr", 0.1, "--no-half-copy", "--workers", 1]
    options += ["--dtype", "bf16", "--weights", tmp_path / "weights", "--no-drift", "--json"]
    small = tmp_path / "task.jsonl"
    rows = [{"prompt": f"p{i}", "answer": f"a{i}"} for i in range(160)]
    small.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("train", tiny / "bundle", "--task", small, *REWARD, "-o", tmp_path / "v.bin", *options)
    assert done.code == 0, done.stderr
    record = json.loads(done.stdout)
    prompt = record["prompt"]
    assert prompt["tried"] == 2, "no prompt, and two examples"
    assert prompt["held_out"]["n"] == record["held_out"]["n"]
    gap = record["held_out"]["vector"] - prompt["held_out"]["mean"]
    assert prompt["duel"]["difference"] == pytest.approx(gap)
    without = cli(
        "train",
        tiny / "bundle",
        "--task",
        small,
        *REWARD,
        "-o",
        tmp_path / "w.bin",
        *options,
        "--against",
        "none",
    )
    assert "prompt" not in json.loads(without.stdout)


def test_the_prompt_that_train_prints(capsys):
    from tinylora_edge.cli.commands.training.standings import print_prompt
    from tinylora_edge.runtime import Duel

    prompt, vector = (Evaluation(np.array(scores), [""] * 4) for scores in ([0.0, 1, 0, 0], [1.0, 1, 0, 1]))
    preamble = Preamble("Be\nbrief.", (Sample("p1", "a1"),))
    search = PromptSearch((Trial(preamble, 0, 45.2, prompt),), (), 16, 176, 8.4, prompt)
    print_prompt(search, Duel.between(("prompt", prompt), ("vector", vector)))
    text = capsys.readouterr().out
    for part in (
        "0.250 +- 0.250, with 45 tokens a request",
        "'Be brief.' and 1 worked examples, the first 'p1' with 'a1'",
        "the best of 1 on up to 16 training prompts, 176 answers, 8 s",
        "+0.500 +- 0.289, paired, p = 0.5",
    ):
        assert part in text
