"""The page docs/reference/cli.md: every command with its help, arguments and options, as the app has them.

python docs/site/commands.py writes it; with --check it says whether the file is true, and exits 1 where not.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.main import get_command

from tinylora_edge.cli.app import app

PAGE = Path(__file__).parents[1] / "reference" / "cli.md"
PROGRAM = "tinylora-edge"


def render() -> str:
    """Return the page."""
    root: Any = get_command(app)
    lines = ["# Command line", "", _one_line(root.help), ""]
    lines += _table(("command", "what it does"), _index(root, ()))
    for path, command in _commands(root, ()):
        lines += ["", f"## {' '.join(path)}", ""]
        lines += _text(command.help or "")
        choices = _choices(command)
        for title, kind in (("argument", "argument"), ("option", "option")):
            shown = (each for each in command.params if each.param_type_name == kind and not each.hidden)
            rows = [_row(each, choices) for each in shown]
            if rows:
                lines += ["", *_table((title, "what it is"), rows)]
    return "\n".join(lines) + "\n"


def _commands(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


def _index(group: Any, path: tuple[str, ...]) -> list[tuple[str, str]]:
    return [
        (f"[`{' '.join(name)}`](#{'-'.join(name)})", _one_line(command.help).partition(". ")[0].rstrip("."))
        for name, command in _commands(group, path)
    ]


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _text(text: str) -> Iterator[str]:
    """Yield help as Markdown: paragraphs, and what stands after `\\b`, the examples, as code."""
    for part in inspect.cleandoc(text).split("\n\n"):
        lines = part.replace("\b\n", "").splitlines()
        if "\b" not in part:
            yield " ".join(lines).replace("<", "&lt;")
            yield ""
            continue
        title, *rest = lines
        yield title
        yield ""
        yield from (f"    {line.strip()}" for line in rest)
        yield ""


def _choices(command: Any) -> dict[str, list[str]]:
    """Return the values of each parameter that takes one of a few."""
    found = {}
    for name, hint in get_type_hints(command.callback).items():
        for kind in (hint, *get_args(hint)):
            if isinstance(kind, type) and issubclass(kind, Enum):
                found[name] = [str(each.value) for each in kind]
    return found


def _row(parameter: Any, choices: dict[str, list[str]]) -> tuple[str, str]:
    if parameter.param_type_name == "argument":
        name = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        names = ", ".join((*parameter.opts, *parameter.secondary_opts))
        value = parameter.metavar or "\\|".join(choices.get(parameter.name, ["VALUE"]))
        name = f"`{names}`" if parameter.is_flag else f"`{names} {value}`"
    words = " ".join((parameter.help or "").split())
    default = parameter.default
    plain = (
        isinstance(default, str | int | float) and not isinstance(default, bool) and parameter.show_default
    )
    return name, words + (f" Default: `{getattr(default, 'value', default)}`." if plain else "")


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    safe = [tuple(re.sub(r"(?<!\\)\|", r"\|", cell) for cell in row) for row in rows]
    return [f"| {' | '.join(head)} |", "| --- | --- |", *(f"| {' | '.join(row)} |" for row in safe)]


def main() -> int:
    """Write the page, or check it."""
    page = render()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text("utf-8") == page:
            return 0
        print(f"{PAGE} is not what the commands say: run python docs/site/commands.py", file=sys.stderr)
        return 1
    PAGE.write_text(page, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
