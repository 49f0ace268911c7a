"""`trust show`, `trust publish`, `trust accept`: what a trust file says, and how devices get it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ....limits import TRUST_BYTES
from ....shipping import layout
from ....trust import TrustFile
from ...shared import console
from ...shared.options import JsonOption
from . import owner
from .owner import FileArgument


def show(path: FileArgument, as_json: JsonOption = False) -> None:
    """Show the roots and the keys of a trust file, and check every signature.

    \b
    Example:
      tinylora-edge trust show trust.json
    """
    trust = owner.read(path)
    facts = owner.facts(path, trust)
    if as_json:
        console.print_json(facts)
        return
    root, listed = facts["root"], facts["list"]
    rows = [
        ("file", f"{path}, {facts['bytes']} bytes"),
        ("root", f"{root['version']}, {root['threshold']} of {', '.join(root['keys'])}"),
        ("list", f"{listed['version']}, issued {listed['issued']}, expires {listed['expires'] or 'never'}"),
        *((key.id, owner.described(key)) for key in trust.keys.keys),
        ("signatures", f"lacking: {facts['missing']}" if facts["missing"] else "all there, and hold"),
    ]
    console.facts(rows)


def publish(
    path: FileArgument,
    to: Annotated[
        str, typer.Option("--to", metavar="DIR|URL", help="A directory, or what fsspec can write to.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Publish a trust file beside the vectors, as trust.json, where fetch --trust finds it.

    \b
    Example:
      tinylora-edge trust publish trust.json --to /srv/vectors
    """
    from ....shipping.publish import publish_trust

    trust = owner.read(path)
    changed = publish_trust(trust.to_bytes(), to)
    if as_json:
        console.print_json(
            owner.facts(path, trust) | {"target": to, "path": layout.TRUST, "changed": changed}
        )
        return
    what = "published" if changed else "was there already:"
    console.prose(
        f"{what} {to.rstrip('/')}/{layout.TRUST}, root {trust.root.version}, list {trust.keys.version}"
    )


def accept(
    path: FileArgument,
    newer: Annotated[Path, typer.Argument(metavar="NEWER", help="The trust file that came in.")],
    as_json: JsonOption = False,
) -> None:
    """Replace a device's trust file by one that came without fetch, if it may follow it.

    \b
    Example:
      tinylora-edge trust accept trust.json /media/stick/trust.json
    """
    file = TrustFile(path)
    with open(newer, "rb") as source:
        data = source.read(TRUST_BYTES + 1)
    try:
        changed = file.accept(data)
    except OSError as error:
        raise console.CommandError(f"{path} could not be written: {error.strerror or error}") from error
    if as_json:
        console.print_json(owner.facts(path, file.trust) | {"changed": changed})
        return
    what = "took" if changed else "nothing new:"
    console.prose(f"{what} root {file.trust.root.version}, list {file.trust.keys.version}: {path}")
