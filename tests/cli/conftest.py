"""How the tests of the command line run it: in this process, or as a process of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import models
import pytest
from invocation import COMMAND, Cli, Outcome, in_process, usual_signals

from tinylora_edge import Basis, load_basis


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
        return Outcome(done.returncode, done.stdout, done.stderr.decode())

    return run


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the installed console script, or another `program`, and leave it running.

    It is killed at the end of the test.
    """
    started: list[subprocess.Popen[bytes]] = []

    def launch(
        *args: object, program: Sequence[object] = (COMMAND,), **options: Any
    ) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options = {"env": environment, "preexec_fn": usual_signals, **pipes, **options}
        child = subprocess.Popen([str(word) for word in (*program, *args)], **options)
        started.append(child)
        return child

    yield launch
    for child in started:
        child.kill()
        child.communicate()


@pytest.fixture(scope="session")
def basis(smollm2_bundle: Path) -> Basis:
    """The basis of the real model."""
    return load_basis(smollm2_bundle / "basis.gguf")


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights: 2 blocks, 14 modules, Llama architecture. Never write to it."""
    return models.write_gguf(models.tiny_model("llama"), tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the small model. Never write to it."""
    from tinylora_edge.exporters.gguf import export_gguf

    return export_gguf(tiny_gguf, tmp_path_factory.mktemp("tiny-bundle") / "bundle").output
