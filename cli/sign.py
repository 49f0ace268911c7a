"""`sign`: sign a bundle, so that devices load it and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..formats.signatures import Signature, sign_bundle
from . import console, keyfiles
from .options import BundleArgument, JsonOption


def sign(
    bundle: BundleArgument,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="The Ed25519 private key, in PEM.")],
    as_json: JsonOption = False,
) -> None:
    """Sign a bundle, once it is as devices shall have it: what changes it needs a new signature.

    signature.json beside the basis lists the SHA-256 of every file. A device checks it with --bundle-key, in
    Python with load(..., bundle_keys=[...]).

    \b
    Example:
      tinylora-edge sign out/demo --key fleet.key
    """
    signer = keyfiles.signer(key)
    with console.progress(f"hashing the files of {bundle}"):
        path = sign_bundle(bundle, signer)
    files = len(Signature.read(path).files)
    record = {"signature": str(path), "key": signer.id, "files": files}
    console.report(record, as_json, f"signed {console.counted(files, 'file')} under {signer.id}: {path}")
