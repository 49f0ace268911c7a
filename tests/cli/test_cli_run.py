"""`run` against the library itself."""

from __future__ import annotations

import os
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
from hypothesis import given
from hypothesis import strategies as st
from invocation import Cli

from tinylora_edge import Basis
from tinylora_edge.cli.run import Wrapped

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
    run = ("run", smollm2_bundle, "word " * 300, "--threads", 1, "--n-ctx")
    cli(*run, 256).refused("256", "--n-ctx")
    for asked, above in ((8, 256), (64, 256), (300, 512)):
        cli(*run, asked).refused(f"--n-ctx {asked}: llama.cpp's contexts are", f"pass {above}")
    chat = ("chat", smollm2_bundle, "--threads", 1, "--n-ctx", 256)
    cli(*chat, stdin=b"word " * 300).refused("256", "/clear")


def test_a_prompt_that_is_none(cli: Cli, tiny_bundle: Path) -> None:
    run = ("run", tiny_bundle)
    cli(*run, "caf\udce9", *SHORT).refused("the prompt is not UTF-8: its character 4 is '\\udce9'", "iconv")
    cli(*run, "-", *SHORT, stdin=b"\xff").refused("the prompt is not UTF-8: its character 1")
    cli(*run, "Hello", "--system", "\udcff", *SHORT).refused("the system message is not UTF-8")


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


# ---- Word wrap of a text that comes by pieces

TEXT = (
    "The moon is a rocky body, which orbits the Earth.\n\n- one item that is long enough to be broken\n"
    "    indented text stays so\nend.  Two  blanks.\n"
)


def wrapped(text: str, columns: int, cuts: list[int]) -> str:
    out: list[str] = []
    wrap = Wrapped(out.append, lambda: columns)
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        wrap.add(text[begin:end])
    wrap.end()
    return "".join(out)


@given(st.lists(st.integers(0, len(TEXT)), max_size=30).map(sorted))
def test_lines_do_not_depend_on_the_pieces(cuts: list[int]) -> None:
    whole = wrapped(TEXT, 30, [])
    assert wrapped(TEXT, 30, cuts) == whole
    assert all(len(line) < 30 for line in whole.splitlines())
    assert whole.split() == TEXT.split()
    assert wrapped(TEXT, 200, cuts) == TEXT


def test_a_paragraph_is_wrapped_as_usual() -> None:
    text = "The moon is a rocky body, which orbits the Earth, and nobody lives there."
    assert wrapped(text, 31, []).splitlines() == textwrap.wrap(text, 30)


def test_a_long_word_is_left_to_the_terminal() -> None:
    address = "https://example.org/" + "a" * 60
    for cuts in ([], [10], list(range(0, 90, 3))):
        assert wrapped(f"See {address} now.", 30, cuts).split() == ["See", address, "now."]
