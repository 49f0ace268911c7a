"""`sign`: sign a bundle, so that devices load it and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .... import Bundle
from ....formats.signatures import read_signature, sign_bundle
from ....formats.statement import Statement
from ....wire.tags import Ed25519Signer
from ...shared import console, keyfiles
from ...shared.options import JsonOption

SignOption = Annotated[
    Path, typer.Option("--sign", metavar="FILE", help="Sign with this Ed25519 private key, in PEM.")
]


def sign(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The bundle, or a model with its basis beside it.")
    ],
    key: SignOption,
    sequence: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=65535,
            help="Higher than of every bundle of this name before: no device goes back. [default: none]",
        ),
    ] = 0,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the bundle. [default: that of its folder]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a bundle that is there: what learn, merge or convert made, or what export --add-base changed.

    signature.json beside the basis lists the SHA-256 of every file. A device checks it with --bundle-key or
    --trust, in Python with Policy(bundle_keys=[...]) or Policy(trust=...). A device that keeps --state loads
    no bundle of the same name and key with a lower --sequence after one with a higher.

    \b
    Examples:
      tinylora-edge sign out/demo --sign fleet.key
      tinylora-edge sign out/demo --sign fleet.key --name phone --sequence 2
    """
    facts = signed(bundle, keyfiles.signer(key), sequence, name)
    if as_json:
        console.print_json(facts)
        return
    say(facts)


def signed(bundle: Path, signer: Ed25519Signer, sequence: int = 0, name: str | None = None) -> dict[str, Any]:
    """Sign a bundle, and return what a report says of it.

    Raises:
        CommandError: the signature cannot be written; what was there stays.
        FileNotFoundError, TrustError: as for `sign_bundle`.
    """
    try:
        with console.working(f"hashing the files of {bundle}"):
            path = sign_bundle(bundle, signer, sequence=sequence, name=name)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise console.CommandError(f"{bundle} could not be signed: {error.strerror or error}") from error
    envelope = read_signature(Bundle.find(bundle))
    assert envelope is not None
    statement = Statement.from_bytes(envelope.payload)
    return {
        "signature": str(path),
        "key": signer.id,
        "name": statement.name,
        "sequence": statement.sequence,
        "files": len(statement.files),
        "digest": statement.digest,
    }


def say(facts: dict[str, Any]) -> None:
    """Say what was signed."""
    of = f" of {facts['name']} {facts['sequence']}" if facts["sequence"] else ""
    console.prose(
        f"signed {console.counted(facts['files'], 'file')}{of} under {facts['key']}: {facts['signature']}"
    )
