"""`doctor`: what is wrong with an installation, and the command that mends it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from .. import console
from ..options import JsonOption
from . import bundle as bundles
from . import engines, hub, installation, keys, machine, processor, threads
from .finding import FAULT, NOTE, OK, Finding

_STYLES = {OK: "green", NOTE: "yellow", FAULT: "bold red"}


def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="A bundle to look at, too.", show_default=False)
    ] = None,
    folders: Annotated[
        list[Path] | None,
        typer.Option("--keys", metavar="PATH", help="Where else keys lie. May be repeated."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--check", metavar="NAME", help="One check alone, as the report names it. May be repeated."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at what runs this program, and say what fails, what is missing, and the command that mends it.

    Python and extras, the engines with a tiny model each, instruction sets, threads, cores, load, disks, the
    hub, secret keys of the present folder, and a bundle. The exit code is 1 where there is a fault.

    \b
    Examples:
      tinylora-edge doctor
      tinylora-edge doctor out/demo --json
    """
    checks = _Checks(bundle, folders or [])
    names = only or list(checks.names)
    for name in names:
        if name not in checks.names:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(checks.names)}", param_hint="--check")
    if bundle is None and only and bundles.CHECK in only:
        raise typer.BadParameter("name a BUNDLE to look at", param_hint="BUNDLE")
    found = []
    for name in names:
        for finding in checks.run(name):
            found.append(finding)
            if not as_json:
                _say(finding)
    faults = sum(finding.level == FAULT for finding in found)
    notes = sum(finding.level == NOTE for finding in found)
    if as_json:
        console.print_json({"faults": faults, "notes": notes, "findings": [asdict(one) for one in found]})
    else:
        console.say(f"{_count(faults, 'fault')}, {_count(notes, 'note')}")
    if faults:
        raise typer.Exit(1)


class _Checks:
    """The checks by name, in the order in which they are made.

    The processor is compared with what an engine said of itself, so that the engines come first.
    """

    names = (
        installation.PYTHON,
        installation.EXTRA,
        engines.CHECK,
        processor.CHECK,
        threads.CHECK,
        machine.CHECK,
        hub.CHECK,
        keys.CHECK,
        bundles.CHECK,
    )

    def __init__(self, bundle: Path | None, folders: list[Path]) -> None:
        self._bundle, self._folders = bundle, folders
        self.system: str | None = None

    def run(self, name: str) -> Iterator[Finding]:
        """Make a check, and yield what it finds."""
        if name == installation.PYTHON:
            yield from installation.check_python()
        elif name == installation.EXTRA:
            yield from installation.check_extras()
        elif name == engines.CHECK:
            yield from self._engines()
        elif name == processor.CHECK:
            if self.system is None:
                list(self._engines())
            yield from processor.check(self.system or "")
        elif name == threads.CHECK:
            yield from threads.check()
        elif name == machine.CHECK:
            yield from machine.check(self._bundle)
        elif name == hub.CHECK:
            yield from hub.check()
        elif name == keys.CHECK:
            beside = [] if self._bundle is None else [self._bundle, self._bundle.absolute().parent]
            yield from keys.check([Path(), *beside], self._folders)
        elif self._bundle is not None:
            yield from bundles.check(self._bundle)

    def _engines(self) -> Iterator[Finding]:
        self.system = ""
        for finding, said in engines.check():
            self.system = self.system or str(said.get("system", ""))
            yield finding


def _say(finding: Finding) -> None:
    text = console.harmless(finding.text)
    line = Text(f"{finding.level:<6}", _STYLES[finding.level]).append(f"{finding.check:<10} ", "dim")
    console.stdout().print(line.append(" ".join(text.splitlines()), "not dim default"), soft_wrap=True)
    if finding.mend:
        console.stdout().print(Text(f"{'':<17}$ {finding.mend}", "bold"), soft_wrap=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
