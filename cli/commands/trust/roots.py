"""`trust init`, `trust rotate`, `trust sign`: the roots of a trust file, and who signs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ....trust import editor
from ...shared import console, keyfiles
from ...shared.options import JsonOption
from . import owner
from .owner import DayOption, ExpiresOption, FileArgument, RootsOption, ThresholdOption


def init(
    path: FileArgument,
    roots: Annotated[
        list[Path],
        typer.Option(
            "--root",
            metavar="KEY",
            help="A key of the root, in PEM: a private one signs at once, a public one is another owner's.",
        ),
    ],
    threshold: ThresholdOption = 1,
    day: DayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begin a trust file: root 1, and a list without keys.

    Keep the private keys of the root apart from those that sign vectors, and off every network. With
    --threshold 2 two owners have to sign whatever changes.

    \b
    Examples:
      tinylora-edge keygen root.key
      tinylora-edge trust init trust.json --root root.key
    """
    keyfiles.check_target(path, force=False)
    keys = [keyfiles.public_key(root) for root in roots]
    own = [signer for _, signer in keys if signer is not None]
    made = editor.begin([key for key, _ in keys], threshold, own, owner.today(day))
    owner.write(path, made)
    if as_json:
        console.print_json(owner.facts(path, made))
        return
    console.prose(f"wrote {path}: root 1 of {len(made.root.keys)} keys, {threshold} of which sign")
    private = [root for root, (_, signer) in zip(roots, keys, strict=True) if signer is not None]
    if private:
        console.next_command("trust", "add", path, "fleet.key.pub", "--root", private[0])


def rotate(
    path: FileArgument,
    roots: RootsOption,
    new: Annotated[
        list[Path],
        typer.Option(
            "--new",
            metavar="KEY",
            help="A key of the next root, in PEM: a private one signs at once. May be repeated.",
        ),
    ],
    threshold: Annotated[
        int | None,
        typer.Option(
            "--threshold",
            metavar="N",
            min=1,
            help="How many of the next root's keys have to sign. [default: as many as of the root so far]",
        ),
    ] = None,
    expires: ExpiresOption = None,
    day: DayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go on to the next root: the one so far signs it, and it signs the list from now on.

    A device that was offline meanwhile walks from the root that it knows to the last one. The keys on the
    list stay. Do this when a key of the root may have leaked, and every few years.

    \b
    Example:
      tinylora-edge trust rotate trust.json --root root.key --new root-2.key
    """
    trust = owner.read(path)
    keys = [keyfiles.public_key(one) for one in new]
    own = [*owner.signers(roots), *(signer for _, signer in keys if signer is not None)]
    last = owner.day(expires, "--expires")
    made = editor.rotate(trust, [key for key, _ in keys], threshold, own, owner.today(day), last)
    owner.write(path, made)
    if as_json:
        console.print_json(owner.facts(path, made))
        return
    console.prose(
        f"wrote {path}: root {made.root.version} of {len(keys)} keys, {made.root.threshold} of which sign"
    )


def sign(path: FileArgument, roots: RootsOption, as_json: JsonOption = False) -> None:
    """Add signatures to a trust file that another owner changed. Look at it first: trust show.

    \b
    Example:
      tinylora-edge trust sign trust.json --root bob.key
    """
    made = editor.sign(owner.read(path), owner.signers(roots))
    owner.write(path, made)
    if as_json:
        console.print_json(owner.facts(path, made))
        return
    console.prose(f"signed {path}: root {made.root.version}, list {made.keys.version}")
