"""Help pages: the same text on a terminal and in a pipe, as wide as the terminal, coloured where it can be.

Nothing is cut off. Where the terminal is narrow, what an option does stands below the option.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from ..shared import shell

Rows: TypeAlias = Sequence[tuple[str, str]]
"""What is described, and how."""

Sections: TypeAlias = Sequence[tuple[str, Rows]]
"""Titles, and what stands below each."""

_WIDEST = 100  # longer lines are hard to read
_PIPE = 80
_LEAST = 20
_NAMES = 26  # the widest column of names; what is longer has a line of its own
_BESIDE = 26  # columns that a description needs beside its name
_EXAMPLES = ("Example:", "Examples:")
_BOLD, _NAME, _DIM, _PLAIN = "\x1b[1m", "\x1b[36m", "\x1b[2m", "\x1b[0m"
_REMARK = re.compile(r"(?:\s?\[[^\[\]]*\])+$")
"""What typer adds to a help text: defaults and ranges."""


def page(command: Any, context: Any, sections: Sections = ()) -> str:
    """Return the help page of a command.

    Args:
        command: a click command, which typer brings under a name of its own.
        context: its click context.
        sections: those of a group's commands.
    """
    out = _Page(width(), coloured())
    out.usage(context.command_path, command.collect_usage_pieces(context))
    examples: list[str] = []
    for paragraph in _paragraphs(command.help or ""):
        if paragraph[0] == "\b" and len(paragraph) > 1 and paragraph[1].strip() in _EXAMPLES:
            examples = paragraph[1:]
        elif paragraph[0] == "\b":
            out.lines(paragraph[1:])
        else:
            out.text(" ".join(line.strip() for line in paragraph))
    if examples:
        out.examples(examples[0].strip(), shell.joined(examples[1:]))
    for title, rows in [*sections, *_parameters(command, context)]:
        out.section(title, rows)
    if command.epilog:
        out.text(command.epilog)
    return out.written()


def usage_pieces(command: Any, more: Sequence[str] = ()) -> list[str]:
    """Return what stands behind a command in its usage: options, arguments, and what more there is."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [command.options_metavar] if command.options_metavar else []
    return [*options, *map(_argument, arguments), *more]


def usage(command: Any, context: Any) -> str:
    """Return the usage of a command alone, as a usage error shows it."""
    out = _Page(width(), colour=False)
    out.usage(context.command_path, command.collect_usage_pieces(context))
    return out.written()


def first_sentence(command: Any) -> str:
    """Return the first paragraph of a command's help, in one line."""
    found = next(_paragraphs(command.help or ""), [])
    return " ".join(line.strip() for line in found)


def width() -> int:
    """Return how many columns help may take: those of the terminal, or 80 in a pipe."""
    columns = shutil.get_terminal_size((_PIPE, 24)).columns
    return max(min(columns, _WIDEST), _LEAST)


def coloured() -> bool:
    """Tell whether help is coloured: on a terminal that can, unless NO_COLOR is set."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown", ""):
        return False
    return hasattr(sys.stdout, "isatty") and sys.stdout.isatty()


class _Page:
    """The text of a page, as it grows."""

    def __init__(self, columns: int, colour: bool) -> None:
        self._columns, self._colour = columns, colour
        self._blocks: list[list[str]] = []

    def written(self) -> str:
        return "\n\n".join("\n".join(block) for block in self._blocks) + "\n"

    def usage(self, name: str, pieces: Sequence[str]) -> None:
        start = "Usage: "
        lines = _fill(f"{name} {' '.join(pieces)}".strip(), self._columns - len(start))
        lines = [f"{start if i == 0 else ' ' * len(start)}{line}" for i, line in enumerate(lines)]
        lines[0] = self._style(_BOLD, start.strip()) + lines[0][len(start) - 1 :]
        self._blocks.append(lines)

    def text(self, text: str) -> None:
        self._blocks.append([f"  {line}" for line in _fill(text, self._columns - 2)])

    def lines(self, lines: Sequence[str]) -> None:
        self._blocks.append([f"  {line}" for line in lines])

    def examples(self, title: str, commands: Sequence[str]) -> None:
        """Write commands to copy; on a narrow terminal a shell joins their lines again."""
        room = self._columns - 4 if sys.stdout.isatty() else None
        block = [f"  {self._style(_BOLD, title)}"]
        for command in commands:
            block += [f"    {line}" for line in shell.broken(command, room)]
        self._blocks.append(block)

    def section(self, title: str, rows: Rows) -> None:
        block = [self._style(_BOLD, f"{title}:")]
        names = max((len(name) for name, _ in rows if len(name) <= _NAMES), default=_NAMES)
        beside = self._columns - names - 4
        stacked = beside < _BESIDE
        for name, text in rows:
            described = self._described(text, self._columns - 6 if stacked else beside)
            if stacked or len(name) > names:
                block += [f"  {self._style(_NAME, line)}" for line in _fill(name, self._columns - 2)]
            else:
                first = described.pop(0) if described else ""
                block.append(f"  {self._style(_NAME, name)}{' ' * (names - len(name) + 2)}{first}".rstrip())
            block += [f"{' ' * (6 if stacked else names + 4)}{line}" for line in described]
        self._blocks.append(block)

    def _described(self, text: str, columns: int) -> list[str]:
        """Return a description in lines, with what typer added dimmed."""
        lines = _fill(text, columns)
        added = _REMARK.search(text)
        dim = len(added.group().split()) if added else 0  # words at the end
        for i in reversed(range(len(lines))):
            words = lines[i].split(" ")
            bright = max(len(words) - dim, 0)
            dim -= len(words) - bright
            faint = self._style(_DIM, " ".join(words[bright:]))
            lines[i] = " ".join(filter(None, (" ".join(words[:bright]), faint)))
        return lines

    def _style(self, code: str, text: str) -> str:
        return f"{code}{text}{_PLAIN}" if self._colour and text else text


def _fill(text: str, columns: int) -> list[str]:
    """Break a text into lines; a word stays whole, and so does what is quoted as a command."""
    return textwrap.wrap(text, max(columns, 10), break_on_hyphens=False, break_long_words=False)


def _paragraphs(text: str) -> Iterator[list[str]]:
    for paragraph in re.split(r"\n\s*\n", text.partition("\f")[0].strip("\n")):
        lines = paragraph.splitlines()
        if any(line.strip() for line in lines):
            yield ["\b", *lines[1:]] if lines[0].strip() == "\b" else lines


def _parameters(command: Any, context: Any) -> Iterator[tuple[str, Rows]]:
    """Give arguments, then options: those without a section of their own last, where --help stands."""
    found: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        name, text = record[0], " ".join(record[1].split())
        title = getattr(parameter, "rich_help_panel", None) or "Options"
        if parameter.param_type_name == "argument":  # the usage says which ones have to be there
            name, title, text = (
                _argument(parameter).strip("[]"),
                "Arguments",
                text.removesuffix(" [required]"),
            )
        found.setdefault(title, []).append((name, text))
    order = {"Arguments": 0, "Options": 1}
    yield from sorted(found.items(), key=lambda section: order.get(section[0], 2))


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    if parameter.nargs == -1 and not name.endswith("..."):
        name += "..."
    return name if parameter.required else f"[{name}]"
