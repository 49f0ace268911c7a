"""How the tests of the command line run it: in this process, or as a process of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import models
import pytest
import shared
import support
from invocation import COMMAND, Cli, Outcome, in_process, write_vector

from tinylora_edge import Basis, MicroVector, load_bundle, runtime
from tinylora_edge.formats.side_tensors import save_bases

CHAT = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}a:"


@pytest.fixture
def cli() -> Cli:
    """Run a command in this process: cli("inspect", path, stdin=b"")."""
    return in_process()


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of a process: one thread, since the tests share the machine, and nothing of our own terminal."""
    terminal = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    kept = {key: value for key, value in os.environ.items() if key not in terminal}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TERM": "xterm-256color"}


@pytest.fixture(scope="session")
def process(environment: dict[str, str]) -> Cli:
    """Run the installed console script as a process: process("inspect", path, stdin=b"")."""

    def run(*args: object, stdin: bytes = b"", **options: Any) -> Outcome:
        command = [COMMAND, *map(str, args)]
        options = {"env": environment, "timeout": 300, "capture_output": True, **options}
        done = subprocess.run(command, input=stdin, check=False, **options)
        return Outcome(done.returncode, done.stdout, support.without_progress(done.stderr.decode()))

    return run


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the installed console script, or another `program`, and leave it running.

    It is killed at the end of the test.
    """
    started: list[subprocess.Popen[bytes]] = []

    def launch(*args: object, program: Sequence[object] = (COMMAND,), **options: Any):
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options = {"env": environment, **pipes, **options}
        child = subprocess.Popen([str(word) for word in (*program, *args)], **options)
        started.append(child)
        return child

    yield launch
    for child in started:
        child.kill()
        child.communicate()


@pytest.fixture(scope="session")
def basis(smollm2_bundle: Path) -> Basis:
    """The real model's 13 learned numbers."""
    return load_bundle(smollm2_bundle).basis(numbers=13)


@pytest.fixture(scope="module")
def small(small_basis: Basis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.basis.gguf"
    save_bases(support.bases_with(small_basis), path)
    return path


@pytest.fixture(scope="module")
def small_basis() -> Basis:
    return support.random_basis(blocks=5, groups=13)


@pytest.fixture
def trained(small_basis: Basis, tmp_path: Path) -> Path:
    path = tmp_path / "trained.bin"
    return write_vector(path, small_basis, sequence=3)


@pytest.fixture
def key(cli: Cli, tmp_path: Path) -> Path:
    cli("keygen", tmp_path / "fleet.key").done()
    return tmp_path / "fleet.key"


@pytest.fixture(scope="module")
def llm(smollm2_bundle: Path) -> Iterator[runtime.TinyLoraLlama]:
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


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model of random weights that renders chats: `bundle` and `weights`."""
    folder, model = tmp_path_factory.mktemp("chat"), models.tiny_model("llama")
    gguf = models.write_gguf(model, folder / "tiny.gguf", metadata={"tokenizer.chat_template": CHAT})
    shared.export(gguf, folder / "bundle")
    models.write_hf(model, folder / "weights")
    return folder


@pytest.fixture(scope="module")
def vectors(basis, smollm2_bundle, tmp_path_factory):
    """Two of the real model, with their files: one of 13 numbers, and one of 840."""
    whole = load_bundle(smollm2_bundle).basis(rank=2)
    directory = tmp_path_factory.mktemp("vectors")
    made = {}
    for name, each, norm in (("one", basis, 1.0), ("two", whole, 6.0)):
        vector = MicroVector.random(each, norm, dtype="bf16")
        (directory / f"{name}.bin").write_bytes(vector.to_bytes(each))
        made[name] = (directory / f"{name}.bin", vector)
    return made
