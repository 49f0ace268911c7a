"""Types as users see them: mypy and pyright on a program, against a wheel and against an editable install."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_packaging import ROOT, pip, wheel  # noqa: F401 - a fixture

PROGRAM = """\
from tinylora_edge import MicroVector, Policy, load_basis, runtime

policy = Policy(keys=())
llm = runtime.load("bundle", b"frame", policy=policy)
llama = runtime.load("bundle", engine="llama")
active = llama.swap(MicroVector.random(load_basis("basis.gguf"), 0.3))
reveal_type((policy, llama, llama.basis, active))
reveal_type(llama.create_chat_completion)
reveal_type(llm.create_chat_completion)
wrong: int = MicroVector.from_bytes(b"", llama.basis, policy)
"""


@dataclass(frozen=True)
class Environment:
    """Where the package is installed, and what the type checkers keep between their runs."""

    python: Path
    cache: Path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mypy's cache, for both environments: most of its time goes to numpy and llama_cpp."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=["wheel", "editable"])
def environment(
    request: pytest.FixtureRequest,
    cache: Path,
    wheel: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Environment:
    """An environment with the package installed in it, and all other packages of this one."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder, symlinks=os.name != "nt")
    what = [str(wheel)] if request.param == "wheel" else ["--editable", str(ROOT)]
    pip("install", "--no-deps", "--no-build-isolation", "--ignore-installed", f"--prefix={folder}", *what)
    (packages,) = folder.glob("**/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    return Environment(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"), cache)


def mypy(environment: Environment, program: Path) -> Iterator[tuple[int, str]]:
    options = [f"--python-executable={environment.python}", f"--cache-dir={environment.cache}"]
    command = [sys.executable, "-m", "mypy", "--strict", *options, program.name]
    return said(command, program, r"user\.py:(\d+): (error: .*|note: Revealed .*)")


def pyright(environment: Environment, program: Path) -> Iterator[tuple[int, str]]:
    command = [sys.executable, "-m", "pyright", f"--pythonpath={environment.python}", program.name]
    return said(command, program, r"user\.py:(\d+):\d+ - (error: .*|information: Type of .*)")


def said(command: list[str], program: Path, pattern: str) -> Iterator[tuple[int, str]]:
    """Yield the lines and messages of a type checker."""
    quiet = {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}  # of newer versions, which it would ask the network for
    done = subprocess.run(
        command, cwd=program.parent, env=os.environ | quiet, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    for found in re.finditer(pattern, done.stdout):
        yield int(found[1]), found[2]


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_program_sees_the_types(checker, environment: Environment, tmp_path: Path) -> None:
    names, completion, _, wrong = reported(checker, environment, tmp_path)
    for name in ("Policy", "TinyLoraLlama", "Basis", "MicroVector"):
        assert name in names
    assert "CreateChatCompletionResponse" in completion
    assert "Unknown" not in names + completion
    assert wrong.startswith("error: ")
    assert "CheckedVector" in wrong


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_load_without_an_engine_has_a_type(checker, environment: Environment, tmp_path: Path) -> None:
    _, _, completion, _ = reported(checker, environment, tmp_path)
    assert "messages" in completion


def reported(checker, environment: Environment, folder: Path) -> list[str]:
    """What a type checker says of lines 7 to 10, and of no other."""
    program = folder / "user.py"
    program.write_text(PROGRAM)
    found = sorted(checker(environment, program))
    assert [line for line, _ in found] == [7, 8, 9, 10], found
    return [message for _, message in found]
