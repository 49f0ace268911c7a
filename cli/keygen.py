"""`keygen`: keys to sign vectors with, and to check them."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from ..wire import tags
from . import console, vectors
from .options import JsonOption

_MAC_BYTES = 32


def keygen(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="Where the secret key goes, mode 0600.")],
    mac: Annotated[
        bool, typer.Option("--mac", help="A MAC key, shared by sender and devices, instead of a pair.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a key pair (Ed25519, PEM), or a MAC key (hexadecimal digits).

    Of a pair, FILE signs and stays where vectors are made; FILE.pub goes onto every device, and is no
    secret. A MAC key both makes and checks tags: whoever takes one device apart can make vectors for all
    that share its key.

    \b
    Examples:
      tinylora-edge keygen fleet.key                # and fleet.key.pub
      tinylora-edge keygen device-17.mac --mac
    """
    vectors.check_target(str(output.absolute()))
    public = output.with_name(f"{output.name}.pub")
    if not mac:
        vectors.check_target(str(public.absolute()))
    secret = secrets.token_bytes(_MAC_BYTES)
    if mac:
        key_id = tags.Hmac(secret).id
        vectors.write(str(output), f"{secret.hex()}\n".encode(), mode=0o600)
    else:
        signer = tags.Ed25519Signer(secret)
        key_id = signer.id
        vectors.write(str(output), tags.private_pem(secret).encode(), mode=0o600)
        vectors.write(str(public), tags.public_pem(signer.public_key).encode(), mode=0o644)
    if as_json:
        console.print_json(
            {"kind": "hmac" if mac else "ed25519", "id": key_id, "key": str(output)}
            | ({} if mac else {"public_key": str(public)})
        )
        return
    console.prose(f"wrote {output}: {'a MAC' if mac else 'an Ed25519 private'} key, {key_id}; keep it secret")
    if not mac:
        console.prose(f"wrote {public}: its public key, for the devices")
    console.next_command("pack", "vector.bin", "BUNDLE", "-o", "signed.bin", "--key", output)
