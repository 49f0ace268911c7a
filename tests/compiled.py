"""Programs in C around native/: built with CC, and run behind RUNNER where they are of another machine.

CC=aarch64-linux-gnu-gcc RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu" pytest tests/native/test_reader.py
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[1] / "native"
STRICT = ("-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{NATIVE}")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
RUNNER = shlex.split(os.environ.get("RUNNER", ""))

Program = Callable[..., subprocess.CompletedProcess[str]]


def compilers() -> list[list[str]]:
    """CC alone where it is set, else those that are installed; skips the test where there is none."""
    named = os.environ.get("CC")
    found = [shlex.split(named)] if named else [[cc] for cc in ("gcc", "clang", "cc") if shutil.which(cc)]
    return found[:2] or pytest.skip("there is no C compiler: install one, or name it in CC")


def build(program: Path, *sources: Path, flags: Sequence[str] = (), compiler: Sequence[str] = ()) -> None:
    """Compile and link; any warning ends the test."""
    command = [*(compiler or compilers()[0]), *STRICT, *flags, *map(str, sources), "-o", str(program), "-lm"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, ""), made.stderr


def can_sanitize(folder: Path) -> bool:
    """Whether programs with the address and undefined behaviour sanitizers link and run here."""
    source = folder / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    command = [*compilers()[0], *SANITIZERS, str(source), "-o", str(folder / "empty")]
    if RUNNER or subprocess.run(command, capture_output=True, check=False).returncode:
        return False
    return subprocess.run([str(folder / "empty")], capture_output=True, check=False).returncode == 0


def run(program: Path, *arguments: object, lines: Sequence[str] = (), behind: Sequence[str] = ()) -> str:
    """Run a program, and return what it printed, or the one line on stderr with which it exits with 1."""
    done = subprocess.run(
        [*RUNNER, *behind, str(program), *map(str, arguments)],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        env=os.environ | {"ASAN_OPTIONS": "exitcode=99", "UBSAN_OPTIONS": "exitcode=99"},
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert done.returncode == 0 or done.stderr.count("\n") == 1, done.stderr
    return done.stdout or done.stderr
