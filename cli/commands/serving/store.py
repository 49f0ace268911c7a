"""`vectors`: the store of users' vectors that `serve` reads: what is in it, and how it comes there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from ....basis import Basis
from ....serve.store import PublishedStore, SqliteStore, Store, read_lines, write_lines
from ....system import atomic_write
from ...shared import console
from ...shared import vectors as files
from ...shared.options import BasisArgument, ForceOption, JsonOption, OutputOption
from ...surface.commands import group

StoreArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="An SQLite file, or a published layout (DIR, URL).")
]


def list_users(
    store: StoreArgument,
    bundle: BasisArgument,
    after: Annotated[str, typer.Option(metavar="USER", help="Begin with the next name.")] = "",
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Users at most.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """List the users of a store, in the order of their names, with the sequences of their vectors.

    \b
    Examples:
      tinylora-edge vectors list users.db out/demo
    """
    opened = _open(store, files.find_basis(bundle))
    try:
        found = list(islice(opened.users(after), limit + 1))
    finally:
        opened.close()
    more, found = len(found) > limit, found[:limit]
    if as_json:
        entries = [{"user": e.user, "sequence": e.sequence, "changed": int(e.changed)} for e in found]
        console.print_json({"users": entries, "more": more})
        return
    for entry in found:
        console.say(f"{entry.user}  sequence {entry.sequence}, {len(entry.frame)} bytes")
    if more:
        console.say(f"and more: --after {found[-1].user}")
    elif not found:
        console.say("no users")


def import_users(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|DIR", help='Lines of {"user", "frame"}, - is stdin; or a published layout.'
        ),
    ],
    store: Annotated[Path, typer.Argument(metavar="STORE", help="The SQLite file, which is made if needed.")],
    bundle: BasisArgument,
    as_json: JsonOption = False,
) -> None:
    """Put the vectors of many users into a store.

    They are looked at and not verified, which every request does. A lower sequence than a user's last one is
    refused, and counted.

    \b
    Examples:
      tinylora-edge vectors import users.jsonl users.db out/demo
    """
    basis = files.find_basis(bundle)
    opened = SqliteStore(store, basis)
    try:
        done = opened.import_frames(_frames(source, basis))
    finally:
        opened.close()
    if as_json:
        console.print_json(asdict(done))
        return
    console.prose(
        f"imported {console.counted(done.added + done.replaced, 'vector')} "
        f"({done.added} new, {done.replaced} replaced); "
        f"{done.unchanged} were there already, and {done.refused} are older"
    )


def export_users(
    store: StoreArgument, bundle: BasisArgument, output: OutputOption, force: ForceOption = False
) -> None:
    """Write the vectors of all users as lines of text, which `vectors import` reads.

    \b
    Examples:
      tinylora-edge vectors export users.db out/demo -o users.jsonl
    """
    basis = files.find_basis(bundle)
    if output != files.STREAM:
        files.check_target(output, force=force)
    opened = _open(store, basis)
    try:
        lines = write_lines(opened.users())
        if output == files.STREAM:
            sys.stdout.buffer.writelines(lines)
            sys.stdout.buffer.flush()
            return
        count = 0
        with atomic_write(Path(output).resolve(), mode=0o600) as file:
            for line in lines:
                file.write(line)
                count += 1
    finally:
        opened.close()
    console.prose(f"wrote {console.counted(count, 'vector')} to {output}")


def _frames(source: str, basis: Basis) -> Iterator[tuple[str, bytes]]:
    if source == files.STREAM:
        yield from read_lines(sys.stdin.buffer, "stdin")
    elif "://" in source or Path(source).is_dir():
        yield from ((entry.user, entry.frame) for entry in PublishedStore(source, basis).users())
    else:
        with open(source, "rb") as file:
            yield from read_lines(file, source)


def _open(where: str, basis: Basis) -> Store:
    """Open a store that is there.

    Raises:
        FileNotFoundError: it is not.
    """
    if "://" in where or Path(where).is_dir():
        return PublishedStore(where, basis)
    if not Path(where).is_file():
        raise FileNotFoundError(f"{where} does not exist: `vectors import` and `serve --store` make a store")
    return SqliteStore(where, basis)


vectors = group(
    "Look into a server's store of users' vectors, fill it and empty it into a file.",
    {"list": list_users, "import": import_users, "export": export_users},
)
