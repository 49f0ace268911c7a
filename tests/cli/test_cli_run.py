"""`run` against the library itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_bundles
import pytest
from invocation import Cli

from tinylora_edge import runtime
from tinylora_edge.cli.run import write

PROMPT = "Describe the moon in one sentence."
SHORT = ("--threads", 1, "--max-tokens", 12)


def test_run_prints_the_librarys_answer(
    process: Cli, smollm2_bundle: Path, answer: Callable[..., str], vectors: Any
) -> None:
    path, vector = vectors["one"]
    base, personal = answer(None, PROMPT), answer(vector, PROMPT)
    assert base != personal

    assert process("run", smollm2_bundle, PROMPT, *SHORT).done() == base + "\n"
    system = "You are a pirate."
    sampled_answer = answer(None, PROMPT, system=system, temperature=1.5, seed=1) + "\n"
    sampled = ("--system", system, "--temperature", 1.5, "--seed", 1)
    assert process("run", smollm2_bundle, PROMPT, *SHORT, *sampled).done() == sampled_answer
    assert process("run", smollm2_bundle, PROMPT, "--vector", path, *SHORT).done() == personal + "\n"


def test_run_takes_vector_or_prompt_from_stdin(
    cli: Cli, smollm2_bundle: Path, answer: Callable[..., str], vectors: Any
) -> None:
    path, vector = vectors["one"]
    expected = answer(vector, PROMPT) + "\n"
    run = ("run", smollm2_bundle, *SHORT, "--vector")
    assert cli(*run, "-", PROMPT, stdin=path.read_bytes()).done() == expected
    assert cli(*run, path, "-", stdin=PROMPT.encode()).done() == expected
    cli(*run, "-", "-").misused("PROMPT")


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


def test_a_prompt_that_does_not_fit(cli: Cli, smollm2_bundle: Path) -> None:
    run = ("run", smollm2_bundle, "word " * 300, "--threads", 1, "--n-ctx")
    cli(*run, 256).refused("256", "--n-ctx")
    cli(*run, 8).refused("256", "--n-ctx")  # llama.cpp's contexts are multiples of 256 tokens
    chat = ("chat", smollm2_bundle, "--threads", 1, "--n-ctx", 256)
    cli(*chat, stdin=b"word " * 300).refused("256", "/clear")


def test_a_context_that_no_model_has(cli: Cli, smollm2_bundle: Path) -> None:
    for command in (("run", smollm2_bundle, "Hello"), ("chat", smollm2_bundle)):
        cli(*command, "--n-ctx", 10**9).refused("1,000,000,000 tokens (--n-ctx)", "the 8,192 that the model")
    cli("run", smollm2_bundle, "Hello", "--temperature", "inf").misused("--temperature", "finite")


def test_what_a_model_says_cannot_turn_a_line_around(capsys: pytest.CaptureFixture[str]) -> None:
    write("pay \u202e001\u202c to \u2067x\u2069, \x1b[2J\u05d0\u0301 \U0001f468\u200d\U0001f469\n")
    escaped = "pay \\u202e001\\u202c to \\u2067x\\u2069, \\x1b[2J\u05d0\u0301 \U0001f468\u200d\U0001f469\n"
    assert capsys.readouterr().out == escaped


def test_a_prompt_that_is_none(cli: Cli, tiny_bundle: Path) -> None:
    run = ("run", tiny_bundle)
    cli(*run, "caf\udce9", *SHORT).refused("the prompt is not UTF-8: its character 4 is '\\udce9'")
    cli(*run, "-", *SHORT, stdin=b"\xff").refused("the prompt is not UTF-8: its character 1")
    cli(*run, "Hello", "--system", "\udcff", *SHORT).refused("the system message is not UTF-8")
