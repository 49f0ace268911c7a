"""Commands and groups of commands: their help, and a table from which each is loaded when it is named.

A command's module is imported when the command runs, so `--help`, `--version` and a shell's completion do
not wait for the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ...errors import TinyLoraError
from ..shared.advice import advise
from . import help as pages


class Command(TyperCommand):
    """A command that adds to its errors what helps: the options that do it, and names that were mistyped."""

    def invoke(self, ctx: Any) -> Any:  # a click Context, which typer brings under a name of its own
        """Invoke the command."""
        try:
            return super().invoke(ctx)
        except (TinyLoraError, OSError) as error:
            advise(error, ctx)
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what the usage shows behind the command's name."""
        return pages.usage_pieces(self)

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Write the usage alone."""
        formatter.write(pages.usage(self, ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page."""
        formatter.write(pages.page(self, ctx))


class Group(TyperGroup):
    """A group of commands, with help in which nothing is cut off."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Write the usage alone."""
        formatter.write(pages.usage(self, ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page."""
        formatter.write(pages.page(self, ctx, self.sections(ctx)))

    def sections(self, ctx: Any) -> pages.Sections:
        """Return the commands by sections, each with what it does."""
        found = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [(name, pages.first_sentence(command)) for name, command in found.items() if command]
        return [("Commands", rows)]


def group(purpose: str, commands: Mapping[str, Callable[..., None]]) -> typer.Typer:
    """Return a group of commands, by their names, with advice and with help that reads the same in a pipe."""
    made = typer.Typer(cls=Group, help=purpose, no_args_is_help=True, rich_markup_mode=None)
    for name, command in commands.items():
        made.command(name, cls=Command)(command)
    return made


@dataclass(frozen=True)
class Entry:
    """A line of the table of commands.

    Attributes:
        name: as it is typed.
        place: `module:function`, or `module:group`, below `tinylora_edge.cli`.
        purpose: what it does, in a few words.
    """

    name: str
    place: str
    purpose: str

    def load(self) -> Any:
        """Import the command, and return it as click has it."""
        module, _, attribute = self.place.partition(":")
        target = getattr(importlib.import_module(f"{_CLI}.{module}"), attribute)
        if isinstance(target, typer.Typer):
            made: Any = typer.main.get_group(target)
        else:
            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            single.command(self.name, cls=Command)(target)
            made = typer.main.get_command(single)
        made.name = self.name
        return made


@dataclass(frozen=True)
class Section:
    """Commands that belong together, under a title that says what for."""

    title: str
    entries: Sequence[Entry]


class LazyGroup(Group):
    """A group whose commands are lines of a table, which a subclass has as `table`."""

    table: Sequence[Section] = ()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._loaded = _Loaded(self.table)
        self.commands = self._loaded
        self._listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; while a shell only wants names, a stand-in with its purpose."""
        if self._listing:
            return TyperCommand(cmd_name, short_help=self._loaded.purpose(cmd_name))
        return self.commands.get(cmd_name)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return the names that begin like that, with purposes; nothing is imported for it."""
        self._listing = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._listing = False

    def sections(self, ctx: Any) -> pages.Sections:
        """Return the table's sections."""
        return [(each.title, [(e.name, e.purpose) for e in each.entries]) for each in self.table]


class _Loaded(MutableMapping[str, Any]):
    """The commands of a table by their names, each loaded once it is asked for."""

    def __init__(self, table: Sequence[Section]) -> None:
        self._entries = {entry.name: entry for section in table for entry in section.entries}
        self._made: dict[str, Any] = {}

    def purpose(self, name: str) -> str:
        return self._entries[name].purpose

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._entries[name].load()
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError("the table of commands has no line to take out")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


_CLI = __name__.rpartition(".surface.")[0]
