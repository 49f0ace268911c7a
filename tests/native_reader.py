"""native/tinylora.c behind tests/native/reader.c: built with CC, and run behind RUNNER.

CC=aarch64-linux-gnu-gcc RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu" pytest tests/native/test_reader.py
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import support

from tinylora_edge import Bases, FrameError, MicroVector, Policy, VectorError, errors
from tinylora_edge.vector import content
from tinylora_edge.wire.frame import day_number

NATIVE = Path(__file__).parents[1] / "native"
RUNNER = shlex.split(os.environ.get("RUNNER", ""))
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_STRICT = ("-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{NATIVE}")
_CODES = re.findall(r"^    TINYLORA_(?:E_)?([A-Z]+)\b", (NATIVE / "tinylora.h").read_text("utf-8"), re.M)
_ERRORS = {
    "FRAME": FrameError,
    "UNKNOWN": errors.BasisMismatchError,
    "CHECKSUM": errors.ChecksumError,
    "SIGNATURE": errors.SignatureError,
    "EXPIRED": errors.ExpiredError,
    "VALUES": VectorError,
    "ROLLBACK": errors.RollbackError,
}


def compilers() -> list[list[str]]:
    """Return CC alone where it is set, else gcc and clang as they are installed, else what cc is."""
    if named := os.environ.get("CC"):
        return [shlex.split(named)]
    found = [[name] for name in ("gcc", "clang") if shutil.which(name)]
    return found or [["cc"]] * bool(shutil.which("cc"))


def llama() -> Path:
    """Return the folder where the llama.cpp of llama-cpp-python has `include` and `lib`."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    site = Path(spec.origin).parents[1]
    if not compilers() or not (site / "include" / "llama.h").exists():
        pytest.skip("this takes a C compiler, and a llama-cpp-python that was built from its sources")
    return site


def build(
    folder: Path,
    *flags: str,
    compiler: Sequence[str] = (),
    watched: bool = False,
    source: str = "reader.c",
    libraries: Sequence[str] = ("-lm",),
) -> Path:
    """Compile a program of tests/native without a warning; `watched`: with sanitizers, where they run."""
    path = Path(__file__).with_name("native") / source
    program = folder / path.stem
    command = [*(compiler or compilers()[0]), *_STRICT, *flags, str(path), "-o", str(program), *libraries]
    if watched and not RUNNER:
        subprocess.run([*command, *SANITIZERS], capture_output=True, check=False)
        if program.exists() and subprocess.run([program], check=False).returncode == 0:
            return program
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, ""), made.stderr
    return program


@cache
def _home() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tinylora-reader-")


@cache
def watched() -> Path:
    """Return the reader with sanitizers, built once for all tests of a process."""
    return build(Path(_home().name), watched=True)


def run(program: Path, *arguments: object, lines: Sequence[str] = ()) -> str:
    """Run the reader, and return what it printed, or the one line on stderr with which it exits with 1."""
    done = subprocess.run(
        [*RUNNER, str(program), *map(str, arguments)],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 or (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    return done.stdout or done.stderr


class Conversation:
    """The reader that waits for lines on stdin; a sanitizer that finds something ends it."""

    def __init__(self, program: Path, *arguments: object) -> None:
        command, pipe = [*RUNNER, str(program), *map(str, arguments)], subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        assert self._process.returncode == 0  # nor is anything left behind

    def ask(self, line: str) -> list[str]:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        answer = [self._line()]
        while answer[-1].startswith("signed "):
            answer.append(self._line())
        first = answer[-1].split()[:1]
        more = {"ok": 1, "modules": 1 + int(answer[-1].split()[-1]) if first == ["modules"] else 0}
        return answer + [self._line() for _ in range(more.get("".join(first), 0))]

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the reader ended with {self._process.wait()}"
        return line.rstrip("\n")


def accepted(vector: MicroVector, digest: str, kind: int, until: int | None = None) -> str:
    """Return what the reader says of a vector that it takes, checked by its first key where it has a tag."""
    mark = content(digest, vector.dtype, vector.values) if kind else "0" * 32
    head = f"ok dtype {support.DTYPE_CODES[vector.dtype]} tag {kind} sequence {vector.sequence}"
    last = f"until {-1 if until is None else until} key {0 if kind else -1} content {mark}"
    return f"{head} {last} values {vector.values.astype('<f4').tobytes().hex()}"


def refused(line: str) -> type[VectorError]:
    """Return the error of the package that the reader's status stands for."""
    assert line.startswith("refused "), line
    return _ERRORS[_CODES[int(line.split()[1])]]


def agree(
    reader: Conversation, policy: Policy, data: bytes, bases: Bases, *, record: bool = False
) -> VectorError | None:
    """Check that both say the same of bytes: a refusal, which is returned, or a vector with its R."""
    line, *r = reader.ask(data.hex())
    error: VectorError | None = None
    try:
        vector = policy.check(data, bases)
    except VectorError as found:
        error = found
    if error is not None:
        assert isinstance(error, refused(line)), (line, error, data.hex())
        return error
    until = None if vector.until is None else day_number(vector.until)
    basis = bases.of_frame(data)
    assert line == accepted(vector, basis.digest, data[0] >> 2 & 3, until), data.hex()
    assert r == [f"{basis.R(vector).astype('<f4').tobytes().hex()} {basis.projection.descriptor}"]
    if record:
        policy.record(vector)
    return None
