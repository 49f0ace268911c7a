"""`run` against the library itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
from invocation import Cli

from tinylora_edge import Basis, runtime

PROMPT = "Describe the moon in one sentence."
SHORT = ("--threads", 1, "--max-tokens", 12)


def test_run_prints_the_librarys_answer(
    process: Cli, smollm2_bundle: Path, answer: Callable[..., str], vectors: Any
) -> None:
    path, vector = vectors["one"]
    base, personal = answer(None, PROMPT), answer(vector, PROMPT)
    assert base != personal

    assert process("run", smollm2_bundle, PROMPT, *SHORT).done() == base + "\n"
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


def test_run_with_a_system_message_and_sampling(
    cli: Cli, smollm2_bundle: Path, answer: Callable[..., str]
) -> None:
    system = "You are a pirate."
    run = ("run", smollm2_bundle, PROMPT, *SHORT)
    assert cli(*run, "--system", system).done() == answer(None, PROMPT, system=system) + "\n"
    sampled = [cli(*run, "--temperature", 1.5, "--seed", seed).done() for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert sampled[0] == answer(None, PROMPT, temperature=1.5, seed=1) + "\n"


def test_run_as_json(
    cli: Cli, smollm2_bundle: Path, basis: Basis, answer: Callable[..., str], vectors: Any
) -> None:
    path, vector = vectors["one"]
    record = cli("run", smollm2_bundle, PROMPT, "--vector", path, *SHORT, "--json").record()
    assert record["text"] == answer(vector, PROMPT)
    assert record["finish_reason"] == "length"
    assert record["basis_digest"] == basis.digest
    assert record["vector"]["values"] == vector.values.tolist()
    record = cli("run", smollm2_bundle, PROMPT, "--threads", 1, "--json").record()
    assert (record["finish_reason"], record["vector"]) == ("stop", None)


def test_run_with_a_raw_prompt(cli: Cli, smollm2_bundle: Path, llm: runtime.TinyLoraLlama) -> None:
    llm.clear()
    prompt = "The three primary colours are red, yellow and"
    expected: Any = llm.create_completion(prompt, max_tokens=12, temperature=0.0)
    text = cli("run", smollm2_bundle, prompt, "--raw-prompt", *SHORT).done()
    assert text == expected["choices"][0]["text"].removesuffix("\n") + "\n"
    cli("run", smollm2_bundle, prompt, "--raw-prompt", "--system", "x").misused("--system")


def test_run_streams(start: Callable[..., subprocess.Popen[bytes]], smollm2_bundle: Path) -> None:
    child = start(
        "run", smollm2_bundle, "Tell me a long story.", "--threads", 1, "--max-tokens", 40, bufsize=0
    )
    assert child.stdout is not None
    first = os.read(child.stdout.fileno(), 65536)
    running = child.poll() is None
    rest = child.stdout.read()
    assert running
    assert first
    assert len(rest) > len(first)
    assert child.wait() == 0


def test_a_prompt_that_does_not_fit(cli: Cli, smollm2_bundle: Path) -> None:
    run = ("run", smollm2_bundle, "word " * 300, "--n-ctx", 64, "--threads", 1)
    cli(*run).refused("256", "--n-ctx")
    cli(*run, "--raw-prompt").refused("256", "--n-ctx")
    cli("chat", smollm2_bundle, "--n-ctx", 64, "--threads", 1, stdin=b"word " * 300).refused("256", "/clear")


def test_a_prompt_that_is_none(cli: Cli, tiny_bundle: Path) -> None:
    run = ("run", tiny_bundle)
    cli(*run, "caf\udce9", *SHORT).refused("the prompt is not UTF-8: its character 4 is '\\udce9'", "iconv")
    cli(*run, "-", "--raw-prompt", *SHORT, stdin=b"\xff").refused("the prompt is not UTF-8: its character 1")
    cli(*run, "Hello", "--system", "\udcff", *SHORT).refused("the system message is not UTF-8")
    cli(*run, "", "--raw-prompt", *SHORT).refused("the prompt has no tokens")


def test_a_raw_vector_is_applied_with_a_warning(
    cli: Cli, smollm2_bundle: Path, answer: Callable[..., str]
) -> None:
    result = cli("run", smollm2_bundle, PROMPT, "--vector", "-", *SHORT, stdin=bytes(52))
    assert result.code == 0
    assert result.stdout == answer(None, PROMPT) + "\n"
    assert result.stderr.startswith("warning: a raw payload")
    assert result.stderr.count("\n") == 1


def test_plain_llama_agrees_with_the_base(cli: Cli, smollm2_bundle: Path, smollm2_gguf: Path) -> None:
    plain = llama_cpp.Llama(str(smollm2_gguf), n_ctx=2048, n_threads=1, n_threads_batch=1, verbose=False)
    messages: Any = [{"role": "user", "content": PROMPT}]
    response: Any = plain.create_chat_completion(messages, max_tokens=12, temperature=0.0)
    expected = response["choices"][0]["message"]["content"] + "\n"
    plain.close()
    assert cli("run", smollm2_bundle, PROMPT, *SHORT).done() == expected
