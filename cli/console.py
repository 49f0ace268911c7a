"""Output of the commands: reports on stdout; warnings, progress and errors on stderr.

In a pipe there are no control codes, and lines are not folded.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from tinylora_edge.errors import TinyLoraError, TinyLoraWarning
from tinylora_edge.jsonio import plain

NAME = "tinylora-edge"

Show = Callable[..., None]
"""Shows the progress of a command, from any thread: show(text, done=N, total=N). What is left out stays."""

_PIPE_WIDTH = 120  # columns of a table in a pipe, for which rich assumes 80, and would fold digests
_PIPE_SECONDS = 10.0  # time between two lines of progress in a pipe
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class CommandError(TinyLoraError):
    """A command cannot do what it was asked to, for a reason of the command line's own."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # `app` handles it; rich would end the process with 1 and no message


def stdout() -> Console:
    """Return a console on the present stdout."""
    return _console(stderr=False)


def stderr() -> Console:
    """Return a console on the present stderr."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = _Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.width or (not console.is_terminal and "COLUMNS" not in os.environ):
        console.width = _PIPE_WIDTH  # a width of 0 is that of COLUMNS=0, with which rich prints nothing
    return console


def say(text: str = "") -> None:
    """Print a line on stdout, which is not folded, so that it can be copied."""
    stdout().print(Text(harmless(text)), soft_wrap=True)


def prose(text: str) -> None:
    """Print sentences on stdout: folded between words on a terminal, one line in a pipe."""
    _print(stdout(), Text(harmless(text)))


def note(text: str, style: str = "") -> None:
    """Print sentences on stderr, as `prose` does."""
    _print(stderr(), Text(_one_line(text), style))


def warn(text: str) -> None:
    """Print a warning on stderr."""
    _print(stderr(), Text("warning: ", "yellow").append(_one_line(text), ""))


def fail(error: BaseException) -> None:
    """Print an error on stderr: one line in a pipe."""
    text = str(error) or type(error).__name__
    if isinstance(error, UnicodeError):
        text = f"a text is not UTF-8: {text}"
    elif isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        text = f"{where}{error.strerror}"
    _print(stderr(), Text("error: ", "bold red").append(_one_line(text), "not bold default"))


def acknowledge_interrupt(text: str = "stopping after the step at hand; Ctrl-C again stops at once") -> None:
    """Say at once that Ctrl-C was heard. Signal handlers call it, so it does not use Python's buffers."""
    with suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"{text}\n".encode())


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(plain(value), indent=2))


def facts(rows: Iterable[tuple[str, str]]) -> None:
    """Print (label, text) as a table on stdout."""
    _table([Column(style="dim", overflow="fold"), Column(overflow="fold")], rows, show_header=False)


def report(record: Any, as_json: bool, *sentences: str, rows: Iterable[tuple[str, str]] = ()) -> None:
    """Print a record as JSON, or else sentences and `rows` (see `facts`) in its place."""
    if as_json:
        print_json(record)
        return
    for sentence in sentences:
        prose(sentence)
    facts(rows)


def grid(rows: Sequence[Sequence[str]]) -> None:
    """Print rows as a table on stdout, the first as its header; without rows print nothing."""
    for header in rows[:1]:
        columns = [Column(Text(harmless(label)), justify="right") for label in header]
        columns[0].justify = "left"
        _table(columns, rows[1:], header_style="dim")


def flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield a record as (label, text) for `facts`; an inner record is one text, such as `raw 26, crc-32 37`,
    and what is empty is left out."""
    for key, value in record.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            yield from flat(value, f"{name}.")
        elif isinstance(value, dict):
            inner = ((inner, _readable(each)) for inner, each in value.items())
            yield name, ", ".join(f"{label} {text}" for label, text in inner if text)
        elif _readable(value):
            yield name, _readable(value)


def _table(columns: Sequence[Column], rows: Iterable[Sequence[str]], **options: Any) -> None:
    """Print a table on stdout, without spaces at the end of lines."""
    console, table = stdout(), Table(*columns, box=None, padding=(0, 2, 0, 0), **options)
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        print(line.rstrip(), file=console.file)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 prompt`, `1,024 prompts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def megabytes(size: float) -> str:
    """Return a size in bytes as text: `4.7 GB`, `98.4 MB`, or `731 bytes`."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size:,.0f} bytes"


def harmless(text: str) -> str:
    """Return a text in which control characters, also those of writing direction, are escaped.

    Texts of files and models must not control a terminal, nor be shown in another order.
    """
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


def command(*words: object) -> str:
    """Return a command of this program as it is typed in a shell."""
    return shlex.join([NAME, *map(str, words)])


def next_command(*words: object) -> None:
    """Print the command to type next."""
    say(f"next: {command(*words)}")


@contextmanager
def progress(what: str, total: float | None = None) -> Iterator[Show]:
    """Show the progress of a command: live on a terminal; in a pipe as a line `... WHAT` every 10 seconds."""
    screen, ended = stderr(), threading.Event()
    live = screen.is_terminal and not screen.is_dumb_terminal
    whole = Column(no_wrap=False, overflow="fold")
    words = TextColumn("{task.description}", markup=False, table_column=whole)
    bar = [BarColumn(bar_width=max(4, min(30, screen.width - 60)))] if total else []
    columns = (SpinnerColumn(), words, *bar, TimeElapsedColumn())
    display = Progress(*columns, console=screen, transient=True, disable=not live)
    task = display.add_task(harmless(what), total=total)

    def print_lines() -> None:
        (now,) = display.tasks
        while not ended.wait(_PIPE_SECONDS):
            share = f", {now.percentage:.0f}%" if now.completed and now.total else ""
            note(f"... {now.description}{share} ({now.elapsed:.0f} s)")

    def show(text: str | None = None, *, done: float | None = None, total: float | None = None) -> None:
        new = None if text is None else harmless(text)  # a new text is shown at once, not at the next refresh
        display.update(task, description=new, completed=done, total=total, refresh=new is not None)

    if not live:
        threading.Thread(target=print_lines, daemon=True).start()
    try:
        with display:
            yield show
    finally:
        ended.set()


def measuring(show: Show) -> Callable[[dict[str, Any]], None]:
    """Return a `report` that shows the progress of a measurement."""
    return lambda event: show(f"measuring: {event['what']}", done=event["done"], total=event["total"])


@contextmanager
def readable_warnings() -> Iterator[None]:
    """Print this package's warnings as one line, without their place in the source."""
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


def prepare_streams() -> None:
    """Have stdout and stderr escape what their encoding lacks. A closed standard stream ends the process.

    A file that is opened later would get the number of a closed stream, and with it what libraries print.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):
        sys.exit("error: stdin, stdout or stderr is closed: redirect it, to /dev/null say")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=not console.is_terminal)


def _readable(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(map(_readable, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _one_line(text: str) -> str:
    return harmless(" ".join(text.splitlines()))
