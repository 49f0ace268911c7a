"""Output of the commands: reports on stdout, warnings, progress and the error line on stderr.

In a pipe nothing here writes a control code or wraps a line to a terminal that is not there.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ...errors import TinyLoraError, TinyLoraWarning
from . import program

ADVICE = "command_line_advice"
"""Name of the attribute of an error that holds what `advice.advise` added to it."""

_PIPE_WIDTH = 120  # rich assumes 80 columns where there is no terminal, and folds a digest at that
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class CommandError(TinyLoraError):
    """A command cannot do what it was asked to, for a reason that lies in the command line itself."""


def stdout() -> Console:
    """A console on the present stdout."""
    return _console(stderr=False)


def stderr() -> Console:
    """A console on the present stderr."""
    return _console(stderr=True)


def say(text: str = "") -> None:
    """Print a line on stdout, as it is."""
    stdout().print(Text(harmless(text)), soft_wrap=True)


def note(text: str) -> None:
    """Print a line on stderr, as it is."""
    stderr().print(Text(_one_line(text)), soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    stderr().print(Text("warning: ", "yellow").append(_one_line(text), ""), soft_wrap=True)


def fail(error: BaseException) -> None:
    """Print an error on stderr, in one line."""
    stderr().print(
        Text("error: ", "bold red").append(_one_line(describe(error)), "not bold default"), soft_wrap=True
    )


def describe(error: BaseException) -> str:
    """Return what an error says, for a reader who did not write the program."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    advice = getattr(error, ADVICE, "")
    return (str(error) or type(error).__name__) + (f"; {advice}" if advice else "")


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def facts(rows: Sequence[tuple[str, str]], title: str = "") -> None:
    """Print labelled facts as a table on stdout."""
    table = Table(
        title=title or None, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(Text(harmless(label)), Text(harmless(value)))
    print_table(table)


def print_table(table: Table) -> None:
    """Print a table on stdout, without the blanks that pad its lines."""
    console = stdout()
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        print(line.rstrip(), file=console.file)


def harmless(text: str) -> str:
    """Return a text whose control characters are escaped: what files say must not command a terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def command(*words: object) -> str:
    """Return a command of ours as it is typed in a shell, from where the user stands."""
    return shlex.join([program.typed(), *map(str, words)])


def next_command(*words: object) -> None:
    """Print the command to type next."""
    say(f"next: {command(*words)}")


def megabytes(size: int) -> str:
    """Return a size for reading: `98.4 MB`, or `731 bytes`."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size:,} bytes"


def bars(*columns: ProgressColumn) -> Progress:
    """Return progress bars that go when they are done; in a pipe, nothing."""
    screen = stderr()
    return Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)


@contextmanager
def progress(modules: int, size: int) -> Iterator[Callable[[str, int], None]]:
    """Show how far an export is: modules done, bytes of weights, time left. In a pipe, nothing.

    Args:
        modules: how many there are.
        size: bytes of their weights.
    """
    console = stderr()
    if not console.is_terminal:
        yield lambda module, size: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[done]}/{task.fields[modules]} modules"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=size, done=0, modules=modules)
        done = 0

        def step(module: str, size: int) -> None:
            nonlocal done
            done += 1
            bar.update(task, advance=size, done=done)

        yield step


@contextmanager
def readable_warnings() -> Iterator[None]:
    """Print the library's own warnings as one line, without the place in the source."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **named: Any) -> None:
            if issubclass(category, TinyLoraWarning):
                warn(str(message))
            else:
                usual(message, category, *place, **named)

        warnings.showwarning = show
        warnings.simplefilter("always", TinyLoraWarning)
        yield


def survive_any_text() -> None:
    """Let text that the terminal's encoding lacks be escaped rather than end the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class _ClosedStream(io.TextIOBase):
    """A standard stream that this process was started without."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    @property
    def buffer(self) -> Any:
        raise self._error()

    def read(self, size: int | None = -1, /) -> str:
        raise self._error()

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        raise self._error()

    def write(self, text: str, /) -> int:
        raise self._error()

    def _error(self) -> CommandError:
        return CommandError(f"{self._name} is closed, and this command needs it: redirect it")


def replace_closed_streams() -> None:
    """Put something in the place of standard streams that are closed: what uses one is told.

    The descriptors are taken, so that no file that is opened later becomes what native code prints to.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            # Nobody can be told that errors go nowhere.
            stream = open(os.devnull, "w") if name == "stderr" else _ClosedStream(name)  # noqa: SIM115
            setattr(sys, name, stream)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console


def _one_line(text: str) -> str:
    return harmless(" ".join(text.splitlines()))
