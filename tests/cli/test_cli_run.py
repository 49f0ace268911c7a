"""`run` against the library itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_bundles
import pytest
from invocation import Cli

from tinylora_edge import MicroVector, load_bundle, runtime
from tinylora_edge.cli import console
from tinylora_edge.cli.run import write

PROMPT = "Describe the moon in one sentence."
SHORT = ("--threads", 1, "--max-tokens", 12)


def test_run_prints_the_librarys_answer(process, smollm2_bundle, answer, vectors):
    path, vector = vectors["one"]
    base, personal = answer(None, PROMPT), answer(vector, PROMPT)
    assert base != personal

    assert process("run", smollm2_bundle, PROMPT, *SHORT).done() == base + "\n"
    system = "You are a pirate."
    sampled_answer = answer(None, PROMPT, system=system, temperature=1.5, seed=1) + "\n"
    sampled = ("--system", system, "--temperature", 1.5, "--seed", 1)
    assert process("run", smollm2_bundle, PROMPT, *SHORT, *sampled).done() == sampled_answer
    assert process("run", smollm2_bundle, PROMPT, "--vector", path, *SHORT).done() == personal + "\n"


def test_run_takes_vector_or_prompt_from_stdin(cli, smollm2_bundle, answer, vectors):
    path, vector = vectors["one"]
    expected = answer(vector, PROMPT) + "\n"
    run = ("run", smollm2_bundle, *SHORT, "--vector")
    assert cli(*run, "-", PROMPT, stdin=path.read_bytes()).done() == expected
    assert cli(*run, path, "-", stdin=PROMPT.encode()).done() == expected
    cli(*run, "-", "-").misused("PROMPT")
    cli(*run, "-", "--vector", "-", PROMPT).misused("--vector")


def test_run_as_json(cli: Cli, smollm2_bundle: Path, answer: Callable[..., str], vectors: Any) -> None:
    path, vector = vectors["one"]
    record = cli("run", smollm2_bundle, PROMPT, "--vector", path, *SHORT, "--json").record()
    assert (record["text"], record["finish_reason"]) == (answer(vector, PROMPT), "length")
    assert (record["vector"]["basis"], record["vector"]["values"]) == (vector.basis, vector.values.tolist())
    record = cli("run", smollm2_bundle, PROMPT, "--threads", 1, "--json").record()
    assert (record["finish_reason"], record["vector"]) == ("stop", None)


def test_a_graph_answers_too(cli: Cli, smollm2_bundle: Path, tmp_path: Path) -> None:
    bundle, path = onnx_bundles.tiny(), tmp_path / "v.bin"
    (vector,) = onnx_bundles.vectors(bundle, 1)
    path.write_bytes(vector.to_bytes(onnx_bundles.basis(bundle)))
    for options, by in (((), None), (("--vector", path), vector)):
        with runtime.load(bundle, by, engine="onnx", n_ctx=200, n_threads=1) as llm:
            reply: Any = llm.create_chat_completion(
                [{"role": "user", "content": "Hi"}], max_tokens=12, temperature=0.0
            )
        record = cli(
            "run", bundle, "Hi", *options, *SHORT, "--n-ctx", 200, "--engine", "onnx", "--json"
        ).record()
        assert record["text"] == reply["choices"][0]["message"]["content"]
        assert bool(record["vector"]) == bool(options)
    cli("run", bundle, "Hi", "--engine", "llama").refused("lacks a GGUF base")
    cli("chat", smollm2_bundle, "--engine", "onnx", stdin=b"").refused("lacks an ONNX graph")
    cli("run", bundle, "Hi", "--engine", "vllm").misused("--engine")


def test_a_stack_answers_and_its_last_vector_is_exchanged_and_moves(cli: Cli, tmp_path: Path) -> None:
    bundle = onnx_bundles.tiny()
    bases, files = load_bundle(bundle).bases, {}
    for name, basis, norm in (("shared", bases.basis(rank=8), 4.0), ("own", bases.basis(numbers=13), 2.0)):
        files[name] = tmp_path / name
        files[name].write_bytes(MicroVector.random(basis, norm, seed=2).to_bytes(basis))
    shared, own = files.values()
    answers = []
    with runtime.load(bundle, engine="onnx", n_ctx=256, n_threads=1) as llm:
        for vector in (own, [shared, own], shared):
            llm.swap(vector)
            reply = llm.create_chat_completion(
                [{"role": "user", "content": "hi"}], temperature=0.0, max_tokens=9
            )
            answers.append(console.harmless(reply["choices"][0]["message"]["content"]))
    assert answers[0] != answers[1] != answers[2]
    run = ("run", bundle, "hi", "--engine", "onnx", "--threads", 1, "--max-tokens", 9)
    assert cli(*run, "--vector", shared, "--vector", own).done().rstrip("\n") == answers[1].rstrip("\n")
    cli(*run, "--vector", own, "--vector", tmp_path / "none").refused("none")
    lines = f"/vector {own}\n/vector\nhi\n/like\n/vector\n/save {tmp_path / 'saved'}\n/base\n/vector\n"
    chat = ("chat", bundle, "--engine", "onnx", "--threads", 1, "--max-tokens", 9, "--vector", shared)
    talked = cli(*chat, "--vector", own, stdin=lines.encode()).ran()
    assert talked.stderr.count("on what lies beneath") == 5  # three times asked, after a click, when saved
    saved = MicroVector.from_bytes((tmp_path / "saved").read_bytes(), bases)
    assert (saved.values.size, saved == MicroVector.from_bytes(own.read_bytes(), bases)) == (13, False)


def test_a_prompt_that_does_not_fit(cli: Cli, smollm2_bundle: Path) -> None:
    run = ("run", smollm2_bundle, "word " * 300, "--threads", 1, "--n-ctx")
    cli(*run, 256).refused("256", "--n-ctx")
    cli(*run, 8).refused("256", "--n-ctx")  # llama.cpp's contexts are multiples of 256 tokens
    cli(*run, 1 << 32).misused("--n-ctx")  # llama.cpp would take its lower 32 bits
    chat = ("chat", smollm2_bundle, "--threads", 1, "--n-ctx", 256)
    cli(*chat, stdin=b"word " * 300).refused("256", "/clear")


def test_a_temperature_that_is_none(cli: Cli, smollm2_bundle: Path) -> None:
    cli("run", smollm2_bundle, "Hello", "--temperature", "inf").misused("--temperature", "100")


def test_what_a_model_says_cannot_turn_a_line_around(capsys: pytest.CaptureFixture[str]) -> None:
    write("pay \u202e001\u202c to \u2067x\u2069, \x1b[2J\u05d0\u0301 \U0001f468\u200d\U0001f469\n")
    escaped = "pay \\u202e001\\u202c to \\u2067x\\u2069, \\x1b[2J\u05d0\u0301 \U0001f468\u200d\U0001f469\n"
    assert capsys.readouterr().out == escaped


def test_a_prompt_that_is_none(cli: Cli, tiny_bundle: Path) -> None:
    run = ("run", tiny_bundle)
    cli(*run, "caf\udce9", *SHORT).refused("not UTF-8: ", "can't encode character '\\udce9' in position")
    cli(*run, "-", *SHORT, stdin=b"\xff").refused("not UTF-8: ", "can't decode byte 0xff in position 0")
    cli(*run, "Hello", "--system", "Be brief.", *SHORT).refused("the model has no chat template")
    with runtime.load(tiny_bundle, n_ctx=256, n_threads=1) as llm:  # a text is continued, as in training
        text = llm.create_completion("Hello", max_tokens=12, temperature=0)["choices"][0]["text"]
    assert cli(*run, "Hello", *SHORT, "--json").record()["text"] == text
