"""`trust add`, `trust revoke`: the keys on the list of a trust file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ....trust import ListedKey, editor
from ....trust.records import key_id
from ...shared import console, keyfiles
from ...shared.options import JsonOption
from . import owner
from .owner import DayOption, ExpiresOption, FileArgument, RootsOption


def add(
    path: FileArgument,
    key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="The public key, in PEM.")],
    roots: RootsOption,
    streams: Annotated[
        list[str] | None,
        typer.Option(
            "--stream",
            metavar="PATTERN",
            help="Streams that it signs for: a name, or its beginning and *. Repeatable. "
            "[default: those of a key that is listed; for a new one *, or none with --bundles]",
        ),
    ] = None,
    bundles: Annotated[
        bool | None,
        typer.Option(
            "--bundles/--no-bundles",
            help="It signs bundles; a new key signs vectors only where --stream is given too. [default: as a "
            "key that is listed does]",
        ),
    ] = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="DAY", help="First day on which what it signed counts.")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="Last day on which what it signed counts.")
    ] = None,
    expires: ExpiresOption = None,
    day: DayOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a key that may sign vectors or bundles, or give one that is listed other streams and days.

    Of a key that is listed, what no option names stays as it was. From the first key with --bundles on,
    devices with this list load no bundle that none of these signed.

    \b
    Examples:
      tinylora-edge trust add trust.json fleet.key.pub --root root.key --to 2027-12-31
      tinylora-edge trust add trust.json release.key.pub --root root.key --bundles
    """
    public, _ = keyfiles.public_key(key)
    trust = owner.read(path)
    named: dict[str, Any] = {
        "streams": tuple(streams) if streams else None,
        "first": owner.day(first, "--from"),
        "last": owner.day(last, "--to"),
        "bundles": bundles,
    }
    so_far = next((item for item in trust.keys.keys if item.key == public), None)
    if so_far is None:
        so_far = ListedKey(public, () if bundles else ("*",), bundles=bool(bundles))
    listed = replace(so_far, **{name: value for name, value in named.items() if value is not None})
    made = editor.add(trust, listed, owner.signers(roots), owner.today(day), owner.day(expires, "--expires"))
    owner.write(path, made)
    if as_json:
        console.print_json(owner.facts(path, made))
        return
    console.prose(f"wrote {path}: list {made.keys.version} has {listed.id}: {owner.described(listed)}")


def revoke(
    path: FileArgument,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="The public key's file, or its id: ed25519:18ea18f01f4ac9f8.")
    ],
    roots: RootsOption,
    expires: ExpiresOption = None,
    day: DayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key: nothing that it signed counts any more, on a device that has the new file.

    \b
    Example:
      tinylora-edge trust revoke trust.json fleet.key.pub --root root.key
    """
    name = key if key.startswith("ed25519:") else key_id(keyfiles.public_key(Path(key))[0])
    made = editor.revoke(
        owner.read(path), name, owner.signers(roots), owner.today(day), owner.day(expires, "--expires")
    )
    owner.write(path, made)
    if as_json:
        console.print_json(owner.facts(path, made))
        return
    console.prose(f"wrote {path}: list {made.keys.version} has {name} revoked; publish it: trust publish")
