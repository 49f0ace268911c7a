"""`sign`: sign a bundle, so that devices load it and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .... import Bundle
from ....formats.signatures import read_signature, sign_bundle
from ....formats.statement import Statement
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
    as_json: JsonOption = False,
) -> None:
    """Sign a bundle that is there: what learn, merge or convert made, or what export --add-base changed.

    signature.json beside the basis lists the SHA-256 of every file. A device checks it with --bundle-key, or
    in Python with Policy(bundle_keys=[...]).

    \b
    Example:
      tinylora-edge sign out/demo --sign fleet.key
    """
    facts = signed(bundle, key)
    if as_json:
        console.print_json(facts)
        return
    say(facts)


def signed(bundle: Path, key: Path) -> dict[str, Any]:
    """Sign a bundle, and return what a report says of it.

    Raises:
        CommandError: the signature cannot be written; what was there stays.
        FileNotFoundError, TrustError, SignatureError: as for `sign_bundle` and `keyfiles.signer`.
    """
    signer = keyfiles.signer(key)
    try:
        with console.working(f"hashing the files of {bundle}"):
            path = sign_bundle(bundle, signer)
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
        "files": len(statement.files),
        "digest": statement.digest,
    }


def say(facts: dict[str, Any]) -> None:
    """Say what was signed."""
    console.prose(
        f"signed {console.counted(facts['files'], 'file')} under {facts['key']}: {facts['signature']}"
    )
