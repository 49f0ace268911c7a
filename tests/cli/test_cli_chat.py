"""`chat` against the library itself, in pipes and on a terminal."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx_bundles
from invocation import Cli, on_a_terminal, press_until_it_ends, write_vector

from tinylora_edge import MicroVector, Policy, load_bundle, runtime
from tinylora_edge.cli.chat import clickable
from tinylora_edge.exporters import export_gguf

PROMPT = "Describe the moon in one sentence."
SHORT = ("--threads", 1, "--max-tokens", 12)


def test_chat_in_a_pipe(process: Cli, smollm2_bundle: Path, answer: Callable[..., str], vectors: Any) -> None:
    (one, first), (two, second) = vectors["one"], vectors["two"]
    question, more = "What is the sea?", "And the sky?"
    a = answer(first, question)
    b = answer(second, question, a, more)  # the conversation outlives a swap
    c = answer(None, question, a, more, b, question)
    d = answer(None, more)
    lines = [question, f"/vector {two}", "", more, "/base", question, "/clear", more, "/quit", "never read"]

    result = process("chat", smollm2_bundle, "--vector", one, *SHORT, stdin="\n".join(lines).encode())

    assert result.code == 0
    assert result.stdout == "\n".join([a, b, c, d, ""])
    assert result.stderr.splitlines() == [
        f"vector: 840 bf16 values, norm {second.norm:.4g}, sequence 1",
        "the base, with no vector",
        "the conversation is forgotten",
    ]


def test_chat_ends_at_the_end_of_input_and_at_the_first_error(cli: Cli, smollm2_bundle: Path) -> None:
    chat = ("chat", smollm2_bundle, *SHORT)
    assert cli(*chat, stdin=b"").done() == ""
    for line, *parts in (
        ("/nonsense\nHello", "'/nonsense'", "/help"),
        ("/vectr x", "'/vectr x'", "/help"),
        ("/save", "/save FILE"),
        ("/save x.bin", "no vector to save", "/like"),
        ("/save -", "stdout is used for the answers"),
        ("/like", "no answer to rate"),
        ("/vector /no/such/file\nHello", "/no/such/file"),
        ("/vector -", "stdin is used for the conversation"),
    ):
        cli(*chat, stdin=f"{line}\n".encode()).refused(*parts)
    cli(*chat, "--vector", "-").misused("--vector")


def test_chat_on_a_terminal(environment, smollm2_bundle, answer, vectors, tmp_path):
    path, vector = vectors["one"]
    bad = tmp_path / "bad.bin"
    bad.write_bytes(path.read_bytes()[:-1] + b"!")
    chat = on_a_terminal(environment, "chat", smollm2_bundle, "--vector", path, *SHORT)

    chat.expect("> ")
    assert "/help" in chat.before
    chat.send("/help\n")
    chat.expect("> ")
    assert "/save FILE" in chat.before
    chat.send(f"/vector {bad}\n")
    chat.expect("> ")
    assert "checksum" in chat.before  # and the conversation goes on, with the old vector
    chat.send(f"{PROMPT}\n")
    chat.expect("\n> ")
    assert answer(vector, PROMPT) in chat.before.replace("\r\n", "\n")
    assert press_until_it_ends(chat, "\x04") == 0  # end of input


def test_an_interrupt_ends_the_answer_and_then_the_chat(environment, smollm2_bundle):
    chat = on_a_terminal(environment, "chat", smollm2_bundle, "--threads", 1, "--max-tokens", 0)
    chat.expect("> ")
    chat.send("Write a very long story about a dragon.\n")
    chat.expect("dragon.\r\n")
    chat.expect(r"\w+ \w+")  # it speaks
    chat.send("\x03")
    chat.expect("\n> ")
    chat.send("/clear\n")
    chat.expect("forgotten")
    chat.expect("> ")
    assert press_until_it_ends(chat, "\x03") in (130, -signal.SIGINT)


def test_a_like_moves_the_vector_and_it_can_be_saved(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.bin" for name in ("first", "second", "third"))
    write_vector(first, tiny / "bundle" / "basis.gguf", sequence=7)
    chat = ("chat", tiny / "bundle", "--threads", 1, "--max-tokens", 8)
    lines = (
        f"hello\n/like\n/save {second}\nmore\n/dislike\n/vector {first}\n/base\nhello\n/like\n/save {third}"
    )
    result = cli(*chat, "--vector", first, stdin=lines.encode()).ran()
    assert re.findall(r"^learned from (\d click)", result.stderr, re.M) == ["1 click", "2 click", "1 click"]
    basis = load_bundle(tiny / "bundle").basis(numbers=13)
    start, moved, last = (MicroVector.from_bytes(p.read_bytes(), basis) for p in (first, second, third))
    assert not np.array_equal(start.values, moved.values)
    assert np.linalg.norm(moved.values - start.values) < moved.norm  # it was moved, not forgotten
    assert last.values.any()
    assert moved.sequence == 8
    again = cli(*chat, stdin=f"hello\n/like\n/save {second}\n".encode())
    assert again.code == 1
    assert again.stderr.endswith("exists already: choose another output, or remove it first\n")
    assert MicroVector.from_bytes(second.read_bytes(), basis) == moved


def test_a_like_takes_as_long_whatever_vector_is_loaded(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    """Along 13 directions, on top of a vector of many numbers, which stays as it is."""
    bases = load_bundle(tiny / "bundle").bases
    large, saved, other = (tmp_path / f"{name}.bin" for name in ("large", "saved", "other"))
    write_vector(large, bases.basis(rank=8), 0.5)
    write_vector(other, bases.basis(rank=2), 0.5)
    lines = f"hello\n/like\n/save {saved}\n/vector {other}\n/vector\n"
    chat = ("chat", tiny / "bundle", "--threads", 1, "--max-tokens", 8)
    result = cli(*chat, "--vector", large, stdin=lines.encode()).ran()
    assert "learned from 1 click: 13 fp32 values" in result.stderr
    assert f"--vector THAT --vector {saved}" in result.stderr
    assert "on what lies beneath" not in result.stderr.splitlines()[-1], (
        "the next file takes the large one's place"
    )
    learned = MicroVector.from_bytes(saved.read_bytes(), bases)
    assert learned.values.size == 13
    with runtime.load(tiny / "bundle", [large.read_bytes(), saved.read_bytes()], n_threads=1) as llm:
        assert llm.vector is not None
        assert np.array_equal(llm.vector.values, learned.values)
        answer = llm.encode("hello")[0]
        shown = list[tuple[int, int]]()
        clicks = runtime.Clicks(llm, under=llm.vector.under, n_threads=1)
        told = runtime.SampledAnswer(tuple(answer), (*b"abc",), llm.vector.under)
        clicks.tell(tmp_path / "state", told, 1, scored=lambda *at: shown.append(at))
        assert shown == [(n, 26) for n in range(1, 27)]


def test_a_like_on_a_graph(cli: Cli, tmp_path: Path) -> None:
    bundle, saved = onnx_bundles.tiny(), tmp_path / "saved.bin"
    chat = ("chat", bundle, "--engine", "onnx", "--threads", 1, "--max-tokens", 8, "--user", "al")
    assert cli(*chat, stdin=f"hello\n/like\n/save {saved}\n/vector {saved}\n".encode()).code == 0
    assert Policy().check(saved.read_bytes(), load_bundle(bundle).bases, user="al").values.any()


def test_a_turn_that_ended_is_scored_with_what_ends_turns(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}<pad>{% endfor %}"
    metadata: dict[str, str | int] = {"tokenizer.chat_template": template, "tokenizer.ggml.eot_token_id": 258}
    gguf = models.write_gguf(models.tiny_model("llama"), tmp_path / "tiny.gguf", metadata=metadata)
    bundle = export_gguf(gguf, tmp_path / "bundle").output
    with runtime.load(bundle, engine="llama", n_ctx=64, n_threads=1) as llm:
        messages = [{"role": "user", "content": "hello"}]
        assert clickable(llm, messages, "abc", True, 0.0).tokens == (*b"abc", 258)
        assert clickable(llm, messages, "abc", False, 0.0).tokens == (*b"abc",)
