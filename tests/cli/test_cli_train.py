"""`train` and `eval` on a tiny model: what they print, write and refuse, alone and behind a prompt."""

from __future__ import annotations

import json
import re

import models
import pytest
import shared
import support
from invocation import write_vector

from tinylora_edge import MicroVector, load_bundle
from tinylora_edge.train.run import run_folder

pytestmark = pytest.mark.usefixtures("training_gains")
REWARD = ("--reward", "regex('^')")
TRAIN = ("--steps", 2, "--prompts", 4, "--samples", 4, "--lr", 0.1)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("task") / "task.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "answer": f"a{i}"}) + "\n" for i in range(160)))
    return path, *REWARD


def test_train_then_eval_behind_a_prompt(cli, tiny, task, tmp_path):
    out = tmp_path / "v.bin"
    prompt = ("--system", "Be brief.", "--examples", 2)
    train = ("train", tiny / "bundle", *task, "-o", out, *TRAIN, "--weights", tiny / "weights")
    trained = cli(*train, *prompt).ran()
    assert "which belongs to the vector" in trained.stdout
    manifest = json.loads((tmp_path / "v.bin.json").read_text())
    assert (manifest["numbers"], manifest["projection"]) == (896, "entries rank=8")
    assert out.stat().st_size == 572
    assert manifest["data"]["methods"] == ["sft", "grpo"]
    assert [phase["steps"] for phase in manifest["result"]["phases"]] == [2, 0]
    assert "examples to learn from, 25 held back" in trained.stderr
    assert manifest["preamble"]["system"] == "Be brief."
    assert len(manifest["preamble"]["examples"]) == 2
    assert manifest["drift"]["prompts"] == 32

    n = manifest["held_out"]["n"]
    measure = ("eval", tiny / "bundle", *task, "-n", n, "--vector", out, *prompt)
    found = cli(*measure, "--drift", "--json").record()
    arms = found["arms"]
    assert manifest["held_out"]["base"] == arms["prompt"]["mean"]
    assert manifest["held_out"]["vector"] == arms["vector + prompt"]["mean"]
    assert arms["base"]["n"] == arms["vector"]["n"] == n
    assert len(found["comparisons"]) == 6
    difference = arms["vector"]["mean"] - arms["base"]["mean"]
    assert found["comparisons"]["vector - base"]["difference"] == pytest.approx(difference)
    assert found["drift"]["prompts"] >= 200
    text = cli(*measure).done()
    assert "vector + prompt - prompt" in text
    assert found["ahead"] == found["comparisons"]["vector - prompt"]
    assert re.search(r"^ahead .*(vector|prompt)", text, re.M)
    assert text.count("prompt: p") == 3


def test_a_users_own_messages(cli, tiny, tmp_path):
    """Learned as they are; earlier ones stand in a prompt beside the vector; and eval measures the same."""
    texts = tmp_path / "mine.txt"
    texts.write_text("".join(f"c u at {i}, k?\n" for i in range(160)))
    out, few = tmp_path / "v.bin", ("--steps", 4, "--lr", 0.1, "--no-keep")
    trained = cli("train", tiny / "bundle", texts, "-o", out, "--weights", tiny / "weights", *few).ran()
    assert "160 texts without prompts: learned as they are" in trained.stderr
    assert "reward text; SFT on 896 numbers" in trained.stderr
    assert "nats a token, less is better" in trained.stdout
    manifest = json.loads((tmp_path / "v.bin.json").read_text())
    count = len(manifest["prompt"]["examples"])
    assert f"vector + {count} earlier texts" in trained.stdout
    (phase,) = manifest["result"]["phases"]
    assert (phase["method"], phase["best_score"] > phase["start_score"]) == ("sft", True)
    arms, n = manifest["arms"], manifest["held_out"]["n"]
    assert arms["base"]["tokens"] == 1
    assert arms["prompt"]["tokens"] > 1 + 12 * count, "a token a byte"
    eval_ = ("eval", tiny / "bundle", texts, "--vector", out, "-n", n)
    found = json.loads(cli(*eval_, "--examples", 2, "--json").stdout)
    assert {name: found["arms"][name]["mean"] for name in ("base", "vector")} == pytest.approx(
        {name: arms[name]["mean"] for name in ("base", "vector")}, abs=1e-3
    )
    assert found["arms"]["prompt"]["tokens"] > 24
    (tmp_path / "few.txt").write_text("one\ntwo\nthree\n")  # one is held out: there is no error of its mean
    for wanted in ((), ("--json",)):
        few = cli("eval", tiny / "bundle", tmp_path / "few.txt", "--vector", out, *wanted)
        assert (few.code, "nan" in few.stdout.lower()) == (0, False), few.stdout
    other = (tiny / "bundle", texts, "-o", tmp_path / "w")
    for wrong, why in (
        ((*eval_, "--system", "Be brief."), "no system prompt can stand before it"),
        (("train", *other, "--method", "grpo"), "no reward judges"),
    ):
        refused = cli(*wrong)
        (error,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
        assert (refused.code, why in error) == (1, True), refused.stderr


def test_train_alone(cli, tiny, task, tmp_path):
    run = ("train", tiny / "bundle", *task, "-o", tmp_path / "v.bin", "--weights", tiny / "weights", *TRAIN)
    with run_folder(tmp_path / "v.bin"):
        cli(*run).refused("another process writes")
        assert (tmp_path / "v.bin.run").exists()
    cli(*run[: -len(TRAIN) - 1], tmp_path / "none", *TRAIN).refused("none does not exist")
    found = cli(*run, "--no-evaluate", "--json").ran()
    record = json.loads(found.stdout)
    assert record["result"]["stopped"] == "done"
    assert "held_out" not in record
    assert "prompt" in str(record["unmeasured"])
    page = tmp_path / "v.html"
    assert page.read_text("utf-8").startswith("<!doctype html>")
    cli(*run).refused("v.html exists already")
    page.unlink()
    cli(*run).refused("v.bin exists already")
    (tmp_path / "v.bin").unlink()
    cli(*run).refused("v.bin.json exists already")
    cli("train", *run[1:3], *REWARD, "-o", page).misused("such as v.bin")
    cli("tune", *run[1:5], "-o", tmp_path / "v.bin").refused("v.bin.json exists already")
    cli("train", tiny / "bundle", *task, "-o", "-").misused("stdout cannot take")


def test_a_vector_grows_whoever_signed_it(cli, tiny, task, key, tmp_path):
    run = ("train", tiny / "bundle", *task, "--weights", tiny / "weights", *TRAIN, "--no-evaluate")
    cli(*run, "--numbers", 13, "-o", tmp_path / "first.bin")
    pack = ("pack", tmp_path / "first.bin", tiny / "bundle", "--sequence", 7, "--key", key)
    cli(*pack, "--user", "al", "-o", tmp_path / "al.bin").done()
    cli(*pack, "-o", tmp_path / "shared.bin").done()
    run = (*run, "--rank", 8, "--start", tmp_path / "al.bin", "--under", tmp_path / "shared.bin")
    cli(*run, "-o", tmp_path / "896.bin").refused("no Ed25519 key to check it", "--key FILE")
    assert cli(*run, "-o", tmp_path / "896.bin", "--key", f"{key}.pub", "--user", "al").code == 0
    assert [(tmp_path / f"{n}.bin").stat().st_size for n in ("first", 896)] == [37, 572]
    grown = MicroVector.from_bytes((tmp_path / "896.bin").read_bytes(), load_bundle(tiny / "bundle").bases)
    assert grown.sequence == 8, "a receiver of the one before takes it"


def test_a_tall_vector(cli, tiny, task, tmp_path):
    run = ("train", tiny / "bundle", *task, "--weights", tiny / "weights", *TRAIN, "--no-evaluate")
    small, tall = tmp_path / "2.bin", tmp_path / "6x2.bin"
    cli(*run, "--size", "small", "-o", small)
    assert small.stat().st_size == 123, "bf16"
    cli(*run, "--rank", "6x2", "--start", small, "-o", tall)
    bases = load_bundle(tiny / "bundle").bases
    vector = MicroVector.from_bytes(tall.read_bytes(), bases)
    assert (bases.of(vector).shape, vector.values.size) == ((6, 2), 168)
    assert json.loads((tmp_path / "6x2.bin.json").read_text())["options"]["rank"] == [6, 2]
    cli("inspect", tall, tiny / "bundle").done()
    cli(*run, "--rank", "2x9", "-o", tmp_path / "v.bin").refused("rank 2x9 is not among 1 to 8", "--rank 9")
    wide = (*run, "-o", tmp_path / "v.bin")
    cli(*wide, "--rank", "64x8").refused("export again with --rank 8 --outputs 64")
    cli(*wide, "--size", "large", "--rank", 2).misused("pass one of --size, --rank and --numbers")
    for text in ("x2", "2x", "2x2x2", "-1", "two"):
        cli(*run, f"--rank={text}", "-o", tmp_path / "v.bin").misused(f"'{text}' is not a rank")


def test_a_vector_on_top_of_another(cli, tiny, task, tmp_path):
    bases = load_bundle(tiny / "bundle").bases
    shared, own = tmp_path / "shared.bin", tmp_path / "own.bin"
    write_vector(shared, bases.basis(rank=8), 2.0)
    run = ("train", tiny / "bundle", *task, "--weights", tiny / "weights", *TRAIN, "--no-evaluate")
    cli(*run, "--rank", 2, "--under", shared, "-o", own)
    vector = MicroVector.from_bytes(own.read_bytes(), bases)
    assert vector.basis == bases.basis(rank=2).digest
    found = ("eval", tiny / "bundle", *task, "-n", 4, "--drift", "--vector", shared, "--vector", own)
    record = cli(*found, "--json").record()
    arms = record["arms"]
    assert list(arms) == ["base", "beneath", "vector"]
    assert [arm["bytes"] for arm in arms.values()] == [0, 0, len(own.read_bytes())]
    assert list(record["comparisons"]) == ["beneath - base", "vector - base", "vector - beneath"]
    shown = cli(*found).done()
    assert "what lies beneath" in shown
    other = support.random_basis(groups=13, blocks=5)
    theirs = write_vector(tmp_path / "other.bin", other)
    refused = cli(*run, "--rank", 2, "--under", theirs, "-o", tmp_path / "v.bin")
    refused.refused(f"is for basis {other.id}", f"none of factors {bases.id}")
    assert not list(tmp_path.glob("v.bin*"))


def test_eval_on_shifted_prompts(cli, tiny, task, tmp_path):
    rows = [{"prompt": f"p{i}", "split": ("train", "held_out")[i % 2]} for i in range(8)]
    rows += [{"prompt": f"q{i}", "split": "shifted"} for i in range(4)]
    (tmp_path / "shifted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("eval", tiny / "bundle", tmp_path / "shifted.jsonl", *REWARD, "--shifted", "-n")
    record = cli(*command, 4, "--json").record()
    assert (record["split"], record["arms"]["base"]["n"]) == ("shifted", 4)
    cli("eval", tiny / "bundle", *task, "--shifted").refused("no shifted prompts", "--shifted")


def test_scores_are_not_lost_where_the_drift_has_no_room(cli, task, tmp_path):
    model, bundle = models.tiny_model("llama"), tmp_path / "bundle"
    model.config.max_position_embeddings = 96
    shared.export(models.write_gguf(model, tmp_path / "short.gguf"), bundle)
    vector = write_vector(tmp_path / "v.bin", load_bundle(bundle).basis(numbers=13))
    found = cli("eval", bundle, *task, "-n", 4, "--vector", vector, "--drift", "--json")
    record = json.loads(found.stdout)
    assert record["unmeasured"]["drift"].startswith("the longest prompt has")
    assert (found.code, len(record["arms"]["vector"]["scores"]), "drift" in record) == (0, 4, False)


def test_bad_input(cli, tiny, task, tmp_path):
    train = ("train", tiny / "bundle", *task, "-o", tmp_path / "v.bin")
    cli(*train, "--examples", 500).refused("500 worked examples", "ask for fewer")
    cli("eval", tiny / "bundle", *task, "--drift").misused("pass --vector")
    cli("eval", tiny / "bundle", *task, "--vector", tmp_path / "none").refused("none: No such file")
    for command in ("train", "eval", "tune"):
        output = () if command == "eval" else ("-o", tmp_path / "v.bin")
        cli(command, tiny / "bundle", "lst-lookup", *output).refused("lst-lookup", "list-lookup")
    assert list(tmp_path.iterdir()) == []
