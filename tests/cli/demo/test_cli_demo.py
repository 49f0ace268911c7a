"""`demo`: what it claims is checked against the library, on a training made short."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import llama_cpp
import numpy as np
import pytest
from invocation import Cli, contents

from tinylora_edge import MicroVector, load_basis, runtime
from tinylora_edge.cli.demo.proof import DemoError, logits, prove
from tinylora_edge.cli.demo.story import TASK
from tinylora_edge.tasks import load_task

SHORT = ("--quick", "--steps", 1, "--held-out", 8, "--threads", 2)
MADE = {"base.gguf", "basis.gguf", "manifest.json", "report.html", "report.json"}
MADE |= {"vector.bin", "vector.bin.json"}


class Page(HTMLParser):
    """The tags of a page, and every attribute that could fetch or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [
            name for name, _ in attributes if name in ("src", "href", "style") or name[:2] == "on"
        ]


def check_report(path: Path, frame: bytes) -> str:
    """Check that a report is whole and needs nothing else; return its text."""
    page = path.read_text("utf-8")
    html = Page(page)
    assert {"svg", "table", "h1"} <= set(html.tags)
    assert not {"script", "link", "img", "iframe"} & set(html.tags)
    assert html.outside == []
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page
    root = ElementTree.fromstring(page)  # every element is closed, every text escaped
    assert frame.hex() in page
    return "".join(root.itertext())


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, process: Cli) -> tuple[Path, str]:
    """The folder that a demo was run in, in a pipe, and what it said."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, process("demo", *SHORT, "--seed", 3, cwd=folder, timeout=900).done()


def test_the_demo_in_a_pipe(told: tuple[Path, str], process: Cli) -> None:
    folder, text = told
    assert "\x1b" not in text
    assert "\r" not in text
    said, commands = re.split(r"^.*Type next.*:\n", text, flags=re.M)
    assert max(len(line) for line in said.splitlines()) <= 120
    assert [int(n) for n in re.findall(r"^(\d)\. ", said, re.M)] == list(range(1, 10))
    assert re.search(r"worst residual \d\.\de-0[34]", said)
    assert "bit for bit" in " ".join(said.split())
    out = folder / "out" / "demo"
    frame = (out / "vector.bin").read_bytes()
    assert re.search(rf"^ *{frame.hex()}$", said, re.M)
    assert f"wire: {len(frame)} bytes" in said
    assert len(frame) == 37
    assert frame[0] == 0x21  # version 2, bf16, CRC-32
    prompts = [sample.text for sample in load_task(TASK, held_out=8).held_out]
    cells = " ".join(re.sub(r"[│┃]", " ", said).split())
    assert all(prompt.split()[1] in cells for prompt in prompts[:4])
    assert "tinylora-edge chat out/demo --vector out/demo/vector.bin" in commands

    report = check_report(out / "report.html", frame)
    verdict = re.search(r"(The difference is within two|The vector (?:raises|lowers)).*?\.", report, re.S)
    assert verdict is not None
    assert verdict[0] in " ".join(said.split())
    process("demo", *SHORT, cwd=folder).refused("out/demo", "exists already", "remove it")


def test_the_figures_of_the_demo(told: tuple[Path, str], cli: Cli) -> None:
    out = told[0] / "out" / "demo"
    record = json.loads((out / "report.json").read_text("utf-8"))

    assert {path.name for path in out.iterdir()} == MADE | {"vector.bin.run"}
    assert sorted((out / "vector.bin.run").glob("*.gguf")) == []
    frame = (out / "vector.bin").read_bytes()
    basis = load_basis(out / "basis.gguf")
    vector = MicroVector.from_bytes(frame, basis)
    assert record["frame"]["hex"] == frame.hex() == "".join(data for data, _ in record["frame"]["parts"])
    assert record["frame"]["bytes"] == len(frame) == 37
    assert record["frame"]["values"] == vector.values.reshape(-1).tolist()
    assert record["export"]["digest"] == basis.digest

    training = record["training"]
    manifest = json.loads((out / "vector.bin.json").read_text("utf-8"))
    assert training["curve"] == manifest["curve"]
    assert training["best_score"] == manifest["result"]["best_score"] >= training["start_score"]
    assert training["options"]["settings"]["seed"] == 3
    assert training["steps"] == 1
    assert vector.values.any() == (training["best_step"] > 0)

    held_out = record["held_out"]
    measured = cli("eval", out, "--vector", out / "vector.bin", "--task", TASK, "-n", 8, "--json").record()
    assert held_out["n"] == 8
    # To a prompt: eval runs with other threads, and Q4_1 rounds.
    assert held_out["base"] == pytest.approx(measured["base"]["mean"], abs=0.13)
    assert held_out["difference"] == pytest.approx(held_out["vector"] - held_out["base"])
    prompted = record["prompted"]
    assert prompted["difference"] == pytest.approx(held_out["vector"] - prompted["prompt"])
    assert (prompted["tried"], prompted["answers"]) == (11, 176)
    check_answers(record["answers"])
    pairs = zip(measured["base"]["answers"], measured["vector"]["answers"], strict=True)
    assert record["answers"]["changed"] == pytest.approx(sum(a != b for a, b in pairs), abs=1)

    assert record["proof"]["restored_bit_for_bit"] is True
    assert record["proof"]["restored_difference"] == 0
    assert (record["proof"]["vector_difference"] > 0) == vector.values.any()
    assert record["report_file"] == str(Path("out", "demo", "report.html"))
    text = check_report(out / "report.html", frame)
    svg = ElementTree.fromstring((out / "report.html").read_text("utf-8")).find(".//svg[@class='curve']")
    assert svg is not None
    assert len(svg.findall("circle")) == sum("validation" in row for row in training["curve"])
    for value in (held_out["base"], held_out["vector"]):
        assert f"{value:.3f}" in text
    for answer in [*record["answers"]["first"], *record["answers"]["differing"]]:
        assert answer["personalized"] in text


def check_answers(answers: dict[str, Any]) -> None:
    """Answers are chosen by the rule, and have the rewards that the task gives them."""
    from tinylora_edge.tasks import Completion

    task = load_task(TASK, held_out=8)
    samples = {sample.text: sample for sample in task.held_out}
    assert [answer["prompt"] for answer in answers["first"]] == list(samples)[:4]
    assert all(answer["base"] != answer["personalized"] for answer in answers["differing"])
    assert {answer["prompt"] for answer in answers["differing"]} <= set(list(samples)[4:])
    for answer in [*answers["first"], *answers["differing"]]:
        sample = samples[answer["prompt"]]
        for key in ("base", "personalized"):
            scores = {task.score(Completion(answer[key], ended, 8), sample) for ended in (True, False)}
            assert answer[f"{key}_reward"] in scores


def test_an_output_that_exists_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    for more in ((), ("--json",), ("--quick",)):
        cli("demo", "-o", tmp_path, *more).refused(str(tmp_path), "exists already", "-o DIR")
    assert contents(tmp_path) == {"file": b"precious"}
    cli("demo", "-o", tmp_path / "no" / "where").refused(str(tmp_path / "no"), "make it first")


def test_an_interrupted_demo_leaves_nothing(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    child = start("demo", *SHORT, "-o", tmp_path / "out")
    deadline = time.monotonic() + 240
    while not (tmp_path / "out" / "vector.bin.run").exists():  # the bundle is there, training begins
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=120)
    assert child.returncode == 130, stderr
    assert contents(tmp_path) == {}


def test_the_proof_fails_where_a_promise_is_broken(smollm2_bundle: Path) -> None:
    """Real logits: of a plain Llama, under a vector, and of a `clear` that was forgotten."""
    llm = runtime.load(smollm2_bundle, n_ctx=512, n_threads=1, n_threads_batch=1)
    plain = llama_cpp.Llama(
        str(smollm2_bundle / "base.gguf"), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False
    )
    tokens = llm.tokenize(b"Explain gravity to a child in one sentence.")
    base = [logits(plain, tokens)]
    llm.swap(MicroVector.random(llm.basis, 0.2, seed=9))
    changed = [logits(llm, tokens)]
    with pytest.raises(DemoError, match=r"not restored: .* differ by up to [1-9]"):
        prove(base, changed, changed)
    llm.clear()
    restored = [logits(llm, tokens)]
    with pytest.raises(DemoError, match="changed no logit"):
        prove(base, restored, restored)
    proof = prove(base, changed, restored)
    assert (proof.restored_difference, proof.logits) == (0, llm.n_vocab())
    assert proof.vector_difference > 0.1
    one_bit = [np.nextafter(restored[0], np.float32(np.inf))]
    with pytest.raises(DemoError, match="not restored"):
        prove(base, changed, one_bit)
    llm.swap(MicroVector.zeros(llm.basis))
    nothing = [logits(llm, tokens)]
    assert prove(base, nothing, restored, zero=True).vector_difference == 0
    with pytest.raises(DemoError, match="a vector of zeros changed"):
        prove(base, changed, restored, zero=True)
    llm.close()
    plain.close()
