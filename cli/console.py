"""Output of the commands: reports on stdout; warnings, progress and the one line of an error on stderr.

In a pipe nothing here writes a control code, or folds a line to a terminal that is not there.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.text import Text

from ..errors import TinyLoraError, TinyLoraWarning

if TYPE_CHECKING:
    from rich.table import Table

NAME = "tinylora-edge"

_PIPE_WIDTH = 120  # rich assumes 80 columns where there is no terminal, and folds a digest at that
_PIPE_SECONDS = 10.0  # between lines of progress in a pipe
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class CommandError(TinyLoraError):
    """A command cannot do what it was asked to, for a reason that lies in the command line itself."""


class Show(Protocol):
    """Shows how far a command is: a text, and how much is done of how much. What is left out stays."""

    def __call__(
        self, text: str | None = None, *, done: float | None = None, total: float | None = None
    ) -> None:
        """Show them; from any thread."""


def stdout() -> Console:
    """A console on the present stdout."""
    return _console(stderr=False)


def stderr() -> Console:
    """A console on the present stderr."""
    return _console(stderr=True)


def say(text: str = "") -> None:
    """Print a line on stdout, as it is."""
    stdout().print(Text(harmless(text)), soft_wrap=True)


def prose(text: str, indent: int = 0) -> None:
    """Print sentences on stdout: a line in a pipe, and broken between words on a terminal."""
    out, lines = stdout(), [harmless(text)]
    if out.is_terminal:
        width = max(out.width - indent, 10)
        lines = textwrap.wrap(lines[0], width, break_on_hyphens=False, break_long_words=False) or [""]
    for line in lines:
        out.print(Text(" " * indent + line), soft_wrap=True)


def note(text: str, style: str = "") -> None:
    """Print sentences on stderr: a line in a pipe, and broken between words on a terminal."""
    _print_on_stderr(Text(_one_line(text), style))


def warn(text: str) -> None:
    """Print a warning on stderr."""
    _print_on_stderr(Text("warning: ", "yellow").append(_one_line(text), ""))


def acknowledge_interrupt() -> None:
    """Say at once that Ctrl-C was heard: from a signal handler, so past Python's buffers."""
    with suppress(OSError, ValueError):
        text = "stopping after the step at hand; Ctrl-C again stops at once\n"
        os.write(sys.stderr.fileno(), text.encode())


def fail(error: BaseException) -> None:
    """Print an error on stderr, in one line of a pipe."""
    _print_on_stderr(Text("error: ", "bold red").append(_one_line(describe(error)), "not bold default"))


def describe(error: BaseException) -> str:
    """Return what an error says, for a reader who did not write the program."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    return str(error) or type(error).__name__


def as_json(value: Any, *, ensure_ascii: bool = False) -> str:
    """Return a value as the JSON that commands report with."""
    return json.dumps(value, indent=2, ensure_ascii=ensure_ascii)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    encoding = (sys.stdout.encoding or "").lower()
    # What another encoding lacks would be escaped as Python does it (`survive_any_text`), which is no JSON.
    print(as_json(value, ensure_ascii=encoding not in ("utf-8", "utf8")))


def facts(rows: Sequence[tuple[str, str]], title: str = "") -> None:
    """Print labelled facts as a table on stdout."""
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0)
    )
    table.add_column(style="dim", overflow="fold")
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


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 prompt`, `1,024 prompts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def megabytes(size: float) -> str:
    """Return a size for reading: `4.7 GB`, `98.4 MB`, or `731 bytes`."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size:,.0f} bytes"


def harmless(text: str) -> str:
    """Return a text whose control characters are escaped: what files say must not command a terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def command(*words: object) -> str:
    """Return a command of ours as it is typed in a shell, from where the user stands."""
    return shlex.join([typed(), *map(str, words)])


def next_command(*words: object) -> None:
    """Print the command to type next."""
    say(f"next: {command(*words)}")


def typed() -> str:
    """Return what runs this program again: its name, or the path that was typed where PATH lacks it."""
    path = Path(sys.argv[0])
    if path.stem != NAME or not path.is_file():  # a test, or an app that calls the commands
        return NAME
    found = shutil.which(NAME)
    if found is not None and os.path.samefile(found, path):
        return NAME
    absolute, here = path.absolute(), Path.cwd()
    if not absolute.is_relative_to(here):
        return str(absolute)
    below = absolute.relative_to(here)
    return str(below) if len(below.parts) > 1 else os.path.join(os.curdir, below)


@contextmanager
def progress(what: str, total: float | None = None) -> Iterator[Show]:
    """Show how far a command is: live on a terminal; in a pipe a line every ten seconds, `... WHAT`.

    Args:
        what: is being done.
        total: of what is counted; None: nothing says how much is left.
    """
    screen = stderr()
    if screen.is_terminal and not screen.is_dumb_terminal:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        words = TextColumn(
            "{task.description}", markup=False, table_column=Column(no_wrap=False, overflow="fold")
        )
        bar = [BarColumn(bar_width=max(4, min(30, screen.width - 60)))] if total else []
        columns = (SpinnerColumn(), words, *bar, TimeElapsedColumn())
        with Progress(*columns, console=screen, transient=True) as shown:
            task = shown.add_task(harmless(what), total=total)

            def show(
                text: str | None = None, *, done: float | None = None, total: float | None = None
            ) -> None:
                said = None if text is None else harmless(text)
                shown.update(task, description=said, completed=done, total=total)

            yield show
        return
    now: dict[str, Any] = {"text": what, "done": None, "total": total}
    ended = threading.Event()

    def tell() -> None:
        began = time.monotonic()
        while not ended.wait(_PIPE_SECONDS):
            share = f", {now['done'] / now['total']:.0%}" if now["done"] and now["total"] else ""
            note(f"... {now['text']}{share} ({time.monotonic() - began:.0f} s)")

    def remember(text: str | None = None, *, done: float | None = None, total: float | None = None) -> None:
        now.update({k: v for k, v in (("text", text), ("done", done), ("total", total)) if v is not None})

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield remember
    finally:
        ended.set()
        teller.join()


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


def _print_on_stderr(text: Text) -> None:
    console = stderr()
    console.print(text, soft_wrap=not console.is_terminal)


def _one_line(text: str) -> str:
    return harmless(" ".join(text.splitlines()))
