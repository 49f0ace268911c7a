"""Output of the commands: reports on stdout, warnings, progress and the error line on stderr.

In a pipe nothing here writes a control code or wraps a line to a terminal that is not there.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ..errors import TinyLoraError, TinyLoraWarning
from . import shell

if TYPE_CHECKING:
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.table import Table

_NARROW = 60  # columns below which labels may be broken
_SHORTEST, _LONGEST = 4, 40  # columns of a bar
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


def prose(text: str) -> None:
    """Print sentences on stdout: a line in a pipe, and broken between words on a terminal."""
    indented(text, 0)


def indented(text: str, columns: int, screen: Console | None = None) -> None:
    """Print sentences, indented: a line in a pipe, and broken between words on a terminal.

    Args:
        text: the sentences.
        columns: of the indent.
        screen: where; None for stdout.
    """
    out = screen or stdout()
    lines = [harmless(text)]
    if out.is_terminal:
        lines = _wrapped(lines[0], out.width - columns)
    for line in lines:
        out.print(Text(" " * columns + line), soft_wrap=True)


def titled(title: str, text: str) -> None:
    """Print a title, and a sentence behind it."""
    _print_prose(stdout(), Text(harmless(title), "bold").append(f": {harmless(text)}", "not bold"))


def note(text: str, style: str = "") -> None:
    """Print sentences on stderr: a line in a pipe, and broken between words on a terminal."""
    _print_prose(stderr(), Text(_one_line(text), style))


def warn(text: str) -> None:
    """Print a warning on stderr."""
    _print_prose(stderr(), Text("warning: ", "yellow").append(_one_line(text), ""))


def fail(error: BaseException) -> None:
    """Print an error on stderr, in one line of a pipe."""
    _print_prose(stderr(), Text("error: ", "bold red").append(_one_line(describe(error)), "not bold default"))


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
    table.add_column(style="dim", overflow="fold", no_wrap=width() >= _NARROW)
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


def width() -> int:
    """Return the columns of stdout: those of the terminal, or those that a pipe is given."""
    return stdout().width


def fits(table: Table) -> bool:
    """Tell whether a table fits stdout with no cell broken."""
    from rich.measure import Measurement

    screen = stdout()
    return Measurement.get(screen, screen.options.update(width=10_000), table).maximum <= screen.width


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 prompt`, `1,024 prompts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def harmless(text: str) -> str:
    """Return a text whose control characters are escaped: what files say must not command a terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


command = shell.command
"""Return a command of ours as it is typed in a shell."""


def next_command(*words: object) -> None:
    """Print the command to type next."""
    text = f"next: {command(*words)}"
    if len(text) <= width() or not stdout().is_terminal:
        say(text)
    else:
        say("next:")
        _say_command(command(*words))


def next_commands(steps: Sequence[tuple[Sequence[object], str]]) -> None:
    """Print commands to choose the next from, each with what it does, side by side where there is room."""
    typed = [command(*words) for words, _ in steps]
    longest = max(map(len, typed))
    say("next:")
    for text, (_, purpose) in zip(typed, steps, strict=True):
        if longest + len(purpose) + 6 <= width():
            say(f"  {text:<{longest}}  # {purpose}")
        else:
            indented(f"# {purpose}", 2)
            _say_command(text)


def _say_command(text: str) -> None:
    for line in shell.broken(text, width() - 2 if stdout().is_terminal else None):
        say(f"  {line}")


def megabytes(size: int) -> str:
    """Return a size for reading: `98.4 MB`, or `731 bytes`."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size:,} bytes"


def bars(*columns: ProgressColumn) -> Progress:
    """Return progress bars that go when they are done; in a pipe, nothing."""
    from rich.progress import Progress

    screen = stderr()
    quiet = not screen.is_terminal or screen.is_dumb_terminal
    return Progress(*columns, console=screen, transient=True, disable=quiet)


def words(template: str) -> TextColumn:
    """Return a column of progress bars with text, which a narrow terminal breaks between words."""
    from rich.progress import TextColumn
    from rich.table import Column

    return TextColumn(template, markup=False, table_column=Column(no_wrap=False, overflow="fold"))


def bar(beside: int) -> BarColumn:
    """Return the bar of progress bars, as long as the terminal has room for beside the other columns."""
    from rich.progress import BarColumn

    return BarColumn(bar_width=max(_SHORTEST, min(_LONGEST, stderr().width - beside)))


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is being done, and for how long, where nothing says how much is left.

    Gives what says the next thing; it may be called after the end, and does nothing then.
    """
    from rich.progress import SpinnerColumn, TimeElapsedColumn

    with bars(SpinnerColumn(), words("{task.description}"), TimeElapsedColumn()) as shown:
        task = shown.add_task(harmless(what), total=None)

        def go_on(what: str) -> None:
            shown.update(task, description=harmless(what))

        yield go_on


@contextmanager
def progress(modules: int, size: int) -> Iterator[Callable[[str, int], None]]:
    """Show how far an export is: modules done, bytes of weights, time left. In a pipe, nothing.

    Args:
        modules: how many there are.
        size: bytes of their weights.
    """
    from rich.progress import DownloadColumn, SpinnerColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        words("{task.fields[done]}/{task.fields[modules]} modules"),
        bar(beside=45),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with bars(*columns) as shown:
        task = shown.add_task("", total=size, done=0, modules=modules)
        done = 0

        def step(module: str, size: int) -> None:
            nonlocal done
            done += 1
            shown.update(task, advance=size, done=done)

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


def _wrapped(text: str, columns: int) -> list[str]:
    """Break a text between words; one that is longer than a line, a path say, is left to the terminal."""
    return textwrap.wrap(text, max(columns, 10), break_on_hyphens=False, break_long_words=False) or [""]


def _print_prose(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=not console.is_terminal)


def _one_line(text: str) -> str:
    return harmless(" ".join(text.splitlines()))
