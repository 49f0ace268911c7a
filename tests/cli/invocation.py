"""What the tests of the command line share: what a command did, and what lies in a directory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect
import support
from typer.testing import CliRunner

from tinylora_edge import Basis, MicroVector
from tinylora_edge.formats.side_tensors import load_bases

COMMAND = Path(sys.executable).with_name("tinylora-edge")
"""The installed console script."""


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout_bytes: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode()

    def ran(self) -> Outcome:
        """Check that it succeeded, whatever it noted on stderr, and return it."""
        assert self.code == 0, self.stderr
        return self

    def done(self) -> str:
        """Check that it succeeded, silent on stderr, and return its stdout."""
        assert self.ran().stderr == ""
        return self.stdout

    def record(self) -> Any:
        """Check that it succeeded, and return the JSON on its stdout."""
        return json.loads(self.done())

    def refused(self, *parts: str) -> None:
        """Check that it failed as promised: code 1, nothing on stdout, one line on stderr with all parts."""
        assert self.code == 1, (self.code, self.stdout_bytes, self.stderr)
        assert self.stdout_bytes == b""
        assert self.stderr.startswith("error: ")
        assert self.stderr.count("\n") == 1, self.stderr
        assert self.stderr.endswith("\n"), self.stderr
        for part in parts:
            assert part in self.stderr, f"{part!r} is not in {self.stderr!r}"

    def misused(self, *parts: str) -> None:
        """Check that it was refused as wrong usage, with all parts on stderr."""
        assert self.code == 2, (self.code, self.stdout_bytes, self.stderr)
        assert self.stdout_bytes == b""
        for part in ("Usage: ", *parts):
            assert part in self.stderr, f"{part!r} is not in {self.stderr!r}"


Cli = Callable[..., Outcome]


def write_vector(
    path: Path, basis: Basis | Path, norm: float = 0.3, seed: int = 0, dtype: str = "fp32", sequence: int = 1
) -> Path:
    """Write a frame with a checksum, as `train` leaves it; of the 13 numbers of a file of side tensors."""
    found = basis if isinstance(basis, Basis) else load_bases(basis).basis(numbers=13)
    drawn = MicroVector.random(found, norm, seed=seed)
    path.write_bytes(MicroVector(drawn.values, dtype, sequence).to_bytes(found))
    return path


def contents(directory: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = str(path.readlink()).encode()
        elif path.is_dir():
            found[f"{name}/"] = b""
        else:
            found[name] = path.read_bytes()
    return found


def on_a_terminal(environment: dict[str, str], *args: object) -> pexpect.spawn:
    return pexpect.spawn(str(COMMAND), list(map(str, args)), env=environment, timeout=120, encoding="utf-8")


def press_until_it_ends(child: pexpect.spawn, key: str) -> int:
    """Press a key again each second until the command ends; return its exit code.

    Python's input() may miss a signal that comes between its prompt and its wait for a key; a
    person presses again, and so do we.
    """
    for _ in range(120):
        child.send(key)
        if child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=1) == 0:
            child.close()
            return child.exitstatus if child.signalstatus is None else -child.signalstatus
    raise AssertionError(f"it did not end: {child.before!r}")


def in_process() -> Cli:
    from tinylora_edge.cli.app import app

    def run(*args: object, stdin: bytes = b"") -> Outcome:
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout_bytes, support.without_progress(result.stderr))

    return run
