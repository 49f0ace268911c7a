"""An owner's trust file on the command line: how it is read, written and described."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from .... import TrustError
from ....limits import TRUST_BYTES
from ....system import atomic_write, check_path
from ....trust import ListedKey, Root, Trust
from ....trust.chain import signatures
from ....wire import days
from ....wire.tags import Ed25519Signer
from ...shared import console, keyfiles

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The trust file.")]
RootsOption = Annotated[
    list[Path],
    typer.Option(
        "--root", metavar="KEY", help="A private key of the root, in PEM, that signs. May be repeated."
    ),
]
ThresholdOption = Annotated[
    int, typer.Option("--threshold", metavar="N", min=1, help="How many of the keys have to sign.")
]
DayOption = Annotated[
    str | None, typer.Option("--day", metavar="DAY", help="The day of issue. [default: today, in UTC]")
]
ExpiresOption = Annotated[
    str | None,
    typer.Option(
        "--expires",
        metavar="DAY",
        help="Last day on which devices believe the list. [default: that of the list so far]",
    ),
]


def read(path: Path) -> Trust:
    """Return a trust file, which may lack signatures.

    Raises:
        OSError: it cannot be read.
        TrustError: it is none.
    """
    check_path(path, TrustError)
    with open(path, "rb") as file:
        data = file.read(TRUST_BYTES + 1)
    try:
        return Trust.read(data, unfinished=True)
    except TrustError as error:
        raise TrustError(f"{path} is refused: {error}") from None


def write(path: Path, trust: Trust) -> None:
    """Write a trust file, and say what it lacks.

    Raises:
        CommandError: it cannot be written; what was there stays.
    """
    try:
        with atomic_write(path) as file:
            file.write(trust.to_bytes())
    except OSError as error:
        raise console.CommandError(f"{path} could not be written: {error.strerror or error}") from error
    lacking = missing(trust)
    if lacking:
        console.warn(f"{path} is not believed yet: {lacking}. The others add theirs with trust sign")


def missing(trust: Trust) -> str:
    """Return which signatures a trust file lacks, in words; nothing where it is whole."""
    roots = [Root.from_bytes(envelope.payload) for envelope in trust.roots[-2:]]
    wanted = [(f"root {trust.root.version}", trust.roots[-1], root) for root in roots]
    wanted.append(("the list", trust.envelope, trust.root))
    lacking = []
    for what, envelope, root in wanted:
        found = signatures(envelope, root)
        if found < root.threshold:
            lacking.append(f"{what} has {found} of {root.threshold} signatures of root {root.version}")
    return ", ".join(lacking)


def signers(paths: list[Path]) -> list[Ed25519Signer]:
    """Return the signers of private key files. Errors: those of `keyfiles.signer`."""
    return [keyfiles.signer(path) for path in paths]


def day(text: str | None, option: str) -> date | None:
    """Return the day that an option names, or None.

    Raises:
        typer.BadParameter: it names none.
    """
    return None if text is None else keyfiles.day(text, option)


def today(text: str | None) -> date:
    """Return the day of issue: that of `--day`, or today."""
    return day(text, "--day") or days.utc_today()


def facts(path: Path, trust: Trust) -> dict[str, Any]:
    """Return what a report says of a trust file."""
    return {
        "file": str(path),
        "root": {
            "version": trust.root.version,
            "threshold": trust.root.threshold,
            "keys": [key.id for key in trust.root.verifiers()],
        },
        "list": {
            "version": trust.keys.version,
            "issued": trust.keys.issued.isoformat(),
            "expires": trust.keys.expires and trust.keys.expires.isoformat(),
        },
        "keys": [{"id": key.id, **key.to_json()} for key in trust.keys.keys],
        "bytes": len(trust.to_bytes()),
        "missing": missing(trust),
    }


def described(key: ListedKey) -> str:
    """Return what a line says of a listed key."""
    days = f"{key.first or '...'} to {key.last or '...'}" if key.first or key.last else "any day"
    words = [", ".join([*(["bundles"] if key.bundles else []), *key.streams]), days]
    if key.revoked is not None:
        words.append(f"revoked on {key.revoked}")
    return "; ".join(words)
