"""Somebody who types what a document says, in a folder that holds what it assumes."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import servers
from blocks import Unit
from departures import ADDED, REPLACED
from typer.testing import CliRunner

from tinylora_edge.cli.app import app

COMMAND = [sys.executable, "-c", "from tinylora_edge.cli import main; main()"]
OURS = f'tinylora-edge() {{ {shlex.join(COMMAND)} "$@"; }}; python() {{ "{sys.executable}" "$@"; }}; '


class Reader:
    """A session: what is run in it, in order, shares the folder and the names of Python.

    Args:
        folder: the current directory; what is published there, below `srv`, a server of its own serves.
    """

    def __init__(self, folder: Path) -> None:
        self.printed: list[str] = []
        self._folder = folder
        self._names: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()
        self._port = ""

    def __enter__(self) -> Self:
        (self._folder / "srv").mkdir()
        self._address, _ = self._stack.enter_context(servers.static(self._folder / "srv"))
        self._running = self._stack.enter_context(asyncio.Runner())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for value in self._names.values():
            if hasattr(type(value), "close"):
                value.close()

    def follow(self, unit: Unit) -> None:
        """Run a unit, and keep what it prints."""
        text = unit.text.replace("https://example.org/vectors", self._address)
        for name, found in REPLACED.items():
            text = re.sub(rf"(?<![\w/]){name}\b", found, text)
        if self._port:
            text = text.replace("127.0.0.1:8000", f"127.0.0.1:{self._port}")
        if unit.language == "python":
            self.printed.append(self._python(text))
        elif unit.language == "sh":
            self.printed.append(self._command(text))
        else:
            raise AssertionError(f"nothing runs {unit.language}: name it in departures.py")

    def _python(self, text: str) -> str:
        code = compile(text, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            found = eval(code, self._names)
            if asyncio.iscoroutine(found):
                self._running.run(found)
        return printed.getvalue()

    def _command(self, text: str) -> str:
        added = next((words for start, (words, _) in ADDED.items() if text.startswith(start)), "")
        words = [*shlex.split(text, comments=True), *shlex.split(added)]
        if text.startswith(("tinylora-edge serve ", "tinylora-edge play ")):
            return self._serve(words[1:])
        if not text.startswith("tinylora-edge ") or re.search(r"[$|>*]|&&", text):
            done = subprocess.run(
                ["bash", "-c", f"{OURS}{text} {added}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout
        told = CliRunner().invoke(app, words[1:])
        if told.exception is not None and not isinstance(told.exception, SystemExit):
            raise told.exception
        assert told.exit_code == 0, told.stderr
        return told.stdout

    def _serve(self, words: list[str]) -> str:
        """Start a server, which ends with the session; its address is the one that is asked from now on."""
        process = subprocess.Popen(
            [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        assert process.stdout is not None
        self._stack.callback(process.stdout.close)
        said = ""
        for line in process.stdout:
            said += line
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self._port = found[1]
                return said
        raise AssertionError(f"it ended with {process.wait()}: {said}")
