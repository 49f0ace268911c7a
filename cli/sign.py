"""`sign`: sign a bundle, so that devices load it and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import Bundle
from ..formats.signatures import read_signature, sign_bundle
from ..formats.statement import Statement
from . import console, keyfiles
from .options import JsonOption


def sign(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The bundle, or a model with its basis beside it.")
    ],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="The Ed25519 private key, in PEM.")],
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
    """Sign a bundle, once it is as devices shall have it: what changes it needs a new signature.

    signature.json beside the basis lists the SHA-256 of every file. A device checks it with --bundle-key, in
    Python with Policy(bundle_keys=[...]). A device that keeps --state loads no bundle of the same name and
    key with a lower --sequence after one with a higher.

    \b
    Examples:
      tinylora-edge sign out/demo --key fleet.key
      tinylora-edge sign out/demo --key fleet.key --name phone --sequence 2
    """
    signer = keyfiles.signer(key)
    try:
        with console.progress(f"hashing the files of {bundle}"):
            path = sign_bundle(bundle, signer, sequence=sequence, name=name)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise console.CommandError(f"{bundle} could not be signed: {error.strerror or error}") from error
    envelope = read_signature(Bundle.find(bundle))
    assert envelope is not None
    said = Statement.from_bytes(envelope.payload)
    if as_json:
        console.print_json(
            {
                "signature": str(path),
                "key": signer.id,
                "name": said.name,
                "sequence": said.sequence,
                "files": len(said.files),
                "digest": said.digest,
            }
        )
        return
    of = f" of {said.name} {said.sequence}" if said.sequence else ""
    console.prose(f"signed {console.counted(len(said.files), 'file')}{of} under {signer.id}: {path}")
