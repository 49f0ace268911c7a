"""`keygen`: keys to sign vectors with, and to check them."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from ..wire import tags
from . import console, vectors
from .options import JsonOption


def keygen(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="Where the secret key goes, mode 0600.")],
    mac: Annotated[bool, typer.Option("--mac", help="A MAC key, which sender and devices share.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a key pair (Ed25519, PEM), or a MAC key (hexadecimal digits).

    Of a pair, FILE signs and stays where vectors are made; FILE.pub goes onto every device. A MAC key does
    both: whoever takes one device apart can make vectors for all that share its key.

    \b
    Examples:
      tinylora-edge keygen fleet.key                # and fleet.key.pub
      tinylora-edge keygen device-17.mac --mac
    """
    private, public = str(output.absolute()), f"{output.absolute()}.pub"
    for path in (private,) if mac else (private, public):
        vectors.check_target(path)
    secret = secrets.token_bytes(32)
    key = tags.Hmac(secret) if mac else tags.Ed25519Signer(secret)
    text = f"{secret.hex()}\n" if mac else tags.private_pem(secret)
    vectors.write(private, text.encode(), mode=0o600)
    if isinstance(key, tags.Ed25519Signer):
        vectors.write(public, tags.public_pem(key.public_key).encode(), mode=0o644)
    record = {"kind": "hmac" if mac else "ed25519", "id": key.id, "key": str(output)}
    sentences = [f"wrote {output}: {'a MAC' if mac else 'an Ed25519 private'} key, {key.id}; keep it secret"]
    if not mac:
        record["public_key"] = f"{output}.pub"
        sentences.append(f"wrote {output}.pub: its public key, for the devices")
    console.report(record, as_json, *sentences)
