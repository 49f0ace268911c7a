"""`run` and `chat` against the library itself, in pipes and on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from invocation import COMMAND, Cli, usual_signals

from tinylora_edge import Basis, MicroVector, runtime

PROMPT = "Describe the moon in one sentence."
SHORT = ("--threads", 1, "--max-tokens", 12)


@pytest.fixture(scope="module")
def llm(smollm2_bundle: Path) -> Iterator[runtime.TinyLoraLlama]:
    """What the command's answers are compared with; made with the command's defaults."""
    with_defaults = runtime.load(smollm2_bundle, n_ctx=2048, n_threads=1, n_threads_batch=1)
    yield with_defaults
    with_defaults.close()


@pytest.fixture
def answer(llm: runtime.TinyLoraLlama) -> Callable[..., str]:
    """Return the library's greedy answer to a conversation under a vector."""

    def ask(vector: MicroVector | None, *turns: str, system: str | None = None, **options: Any) -> str:
        llm.clear()
        if vector is not None:
            llm.swap(vector)
        messages = [{"role": "system", "content": system}] if system else []
        for number, text in enumerate(turns):
            messages.append({"role": ("user", "assistant")[number % 2], "content": text})
        options = {"max_tokens": 12, "temperature": 0.0, **options}
        response: Any = llm.create_chat_completion(messages, **options)
        text = response["choices"][0]["message"]["content"]
        assert isinstance(text, str)
        return text

    return ask


@pytest.fixture(scope="module")
def vectors(
    smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, MicroVector]]:
    """Vectors as files that `vector new` could have written."""
    from tinylora_edge import load_basis

    basis = load_basis(smollm2_bundle / "basis.gguf")
    directory = tmp_path_factory.mktemp("vectors")
    made = {}
    for name, seed in (("one", 0), ("two", 8)):
        vector = MicroVector.random(basis, 0.3, seed=seed, dtype="bf16")
        (directory / f"{name}.bin").write_bytes(vector.to_bytes(basis))
        made[name] = (directory / f"{name}.bin", vector)
    return made


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
    cli("chat", smollm2_bundle, "--n-ctx", 64, "--threads", 1, stdin=b"word " * 300).refused("256", "/reset")


def test_a_raw_vector_is_applied_with_a_warning(
    cli: Cli, smollm2_bundle: Path, answer: Callable[..., str]
) -> None:
    result = cli("run", smollm2_bundle, PROMPT, "--vector", "-", *SHORT, stdin=bytes(52))
    assert result.code == 0
    assert result.stdout == answer(None, PROMPT) + "\n"
    assert result.stderr.startswith("warning: a raw payload")
    assert result.stderr.count("\n") == 1


def test_chat_in_a_pipe(process: Cli, smollm2_bundle: Path, answer: Callable[..., str], vectors: Any) -> None:
    (one, first), (two, second) = vectors["one"], vectors["two"]
    question, more = "What is the sea?", "And the sky?"
    a = answer(first, question)
    b = answer(second, question, a, more)  # the conversation outlives a swap
    c = answer(None, question, a, more, b, question)
    d = answer(None, more)
    lines = [question, f"/swap {two}", "", more, "/clear", question, "/reset", more, "/exit", "never read"]

    result = process("chat", smollm2_bundle, "--vector", one, *SHORT, stdin="\n".join(lines).encode())

    assert result.code == 0
    assert result.stdout == "\n".join([a, b, c, d, ""])
    assert result.stderr.splitlines() == [
        f"swapped: 13 bf16 values, norm {second.norm:.4g}, sequence 0",
        "cleared: the base, without a vector",
        "the conversation is forgotten",
    ]


def test_chat_ends_at_the_end_of_input_and_at_the_first_error(cli: Cli, smollm2_bundle: Path) -> None:
    chat = ("chat", smollm2_bundle, *SHORT)
    assert cli(*chat, stdin=b"").done() == ""
    cli(*chat, stdin=b"/nonsense\nHello\n").refused("'/nonsense'", "/swap FILE")
    cli(*chat, stdin=b"/swap\nHello\n").refused("/swap FILE")
    cli(*chat, stdin=b"/swap /no/such/file\nHello\n").refused("/no/such/file")
    cli(*chat, "--vector", "-").misused("--vector")


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, environment: dict[str, str], *args: object) -> None:
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            usual_signals()
            os.execve(COMMAND, [str(COMMAND), *map(str, args)], environment)
        self.shown = ""
        self.ended = False

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def until(self, pattern: str) -> str:
        """Return what is shown up to and with a pattern, and forget it."""
        deadline = time.monotonic() + 120
        while not (match := re.search(pattern, self.shown)):
            assert time.monotonic() < deadline, f"{pattern!r} did not come: {self.shown!r}"
            assert not self.ended, f"{pattern!r} did not come: {self.shown!r}"
            self._read()
        seen, self.shown = self.shown[: match.end()], self.shown[match.end() :]
        return seen

    def type_until_it_ends(self, key: str) -> int:
        """Press a key again each second until the command ends; return its exit code.

        Python's input() may miss a signal that comes between its prompt and its wait for a key; a
        person presses again, and so do we.
        """
        deadline = time.monotonic() + 120
        while not self.ended:
            assert time.monotonic() < deadline, f"it did not end: {self.shown!r}"
            with suppress(OSError):  # it may be ending
                self.type(key)
            self._read()
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def close(self) -> None:
        if not self.ended:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._fd)

    def _read(self) -> None:
        if select.select([self._fd], [], [], 1)[0]:
            try:
                self.shown += os.read(self._fd, 65536).decode(errors="replace")
            except OSError:  # EIO: the command has ended
                self.ended = True


@pytest.fixture
def terminal(environment: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    """Start a command on a terminal."""
    opened: list[Terminal] = []

    def start(*args: object) -> Terminal:
        opened.append(Terminal(environment, *args))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_chat_on_a_terminal(
    terminal: Callable[..., Terminal],
    smollm2_bundle: Path,
    answer: Callable[..., str],
    vectors: Any,
    tmp_path: Path,
) -> None:
    path, vector = vectors["one"]
    bad = tmp_path / "bad.bin"
    bad.write_bytes(path.read_bytes()[:-1] + b"!")
    chat = terminal("chat", smollm2_bundle, "--vector", path, *SHORT)

    assert "/help" in chat.until("> ")
    chat.type("/help\n")
    assert "/reset" in chat.until("> ")
    chat.type(f"/swap {bad}\n")
    assert "checksum" in chat.until("> ")  # and the conversation goes on, with the old vector
    chat.type(f"{PROMPT}\n")
    shown = chat.until("\n> ")
    assert answer(vector, PROMPT) in shown.replace("\r\n", "\n")
    assert chat.type_until_it_ends("\x04") == 0  # end of input


def test_an_interrupt_ends_the_answer_and_then_the_chat(
    terminal: Callable[..., Terminal], smollm2_bundle: Path
) -> None:
    chat = terminal("chat", smollm2_bundle, "--threads", 1, "--max-tokens", 0)
    chat.until("> ")
    chat.type("Write a very long story about a dragon.\n")
    chat.until("dragon.\r\n")
    chat.until(r"\w+ \w+")  # it speaks
    chat.type("\x03")
    chat.until("\n> ")
    chat.type("/reset\n")
    chat.until("forgotten")
    chat.until("> ")
    assert chat.type_until_it_ends("\x03") == 130


def test_plain_llama_agrees_with_the_base(cli: Cli, smollm2_bundle: Path, smollm2_gguf: Path) -> None:
    plain = llama_cpp.Llama(str(smollm2_gguf), n_ctx=2048, n_threads=1, n_threads_batch=1, verbose=False)
    messages: Any = [{"role": "user", "content": PROMPT}]
    response: Any = plain.create_chat_completion(messages, max_tokens=12, temperature=0.0)
    expected = response["choices"][0]["message"]["content"] + "\n"
    plain.close()
    assert cli("run", smollm2_bundle, PROMPT, *SHORT).done() == expected
