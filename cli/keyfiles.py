"""Keys on the command line: `keygen` makes them, `sign` signs a bundle, and other commands read them here."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from typer import Argument, BadParameter, Option

from tinylora_edge import Policy, SignatureError
from tinylora_edge.formats.signatures import Signature, sign_bundle
from tinylora_edge.limits import PEM_BYTES
from tinylora_edge.wire import tags
from tinylora_edge.writes import open_file

from . import console, vectors
from . import options as opts

T = TypeVar("T")
U = TypeVar("U")


def keygen(
    output: Annotated[
        Path,
        Argument(
            metavar="FILE", help="Where to write the secret key, with mode 0600.", callback=opts.file_needed
        ),
    ],
    mac: Annotated[bool, Option("--mac", help="Make a MAC key, which sender and device share.")] = False,
    as_json: opts.JsonOption = False,
) -> None:
    """Make a key pair (Ed25519, PEM), or a MAC key (hexadecimal digits).

    In a pair, FILE signs, and stays where vectors are made; FILE.pub checks, and goes onto every device. A
    MAC key signs and checks: anyone who reads it from one device can make vectors for all devices that share
    it.

    \b
    Examples:
      tinylora-edge keygen fleet.key                # and fleet.key.pub
      tinylora-edge keygen device-17.mac --mac
    """
    secret = secrets.token_bytes(32)
    key = tags.Hmac(secret) if mac else tags.Ed25519Signer(secret)
    made = {str(output): f"{secret.hex()}\n"}
    if isinstance(key, tags.Ed25519Signer):
        made = dict(zip((str(output), f"{output}.pub"), key.pem(), strict=True))
    for path in made:
        vectors.check_target(path)
    for path, text in made.items():
        vectors.write(path, text.encode(), mode=0o600 if path == str(output) else 0o644)
    record = {"kind": "hmac" if mac else "ed25519", "id": key.id, "key": str(output)}
    sentences = [f"wrote {output}: {'a MAC' if mac else 'an Ed25519 private'} key, {key.id}; keep it secret"]
    if not mac:
        record["public_key"] = f"{output}.pub"
        sentences.append(f"wrote {output}.pub: its public key, for the devices")
    console.report(record, as_json, *sentences)


def sign(
    bundle: opts.BundleArgument,
    key: Annotated[Path, Option("--key", metavar="FILE", help="The Ed25519 private key, in PEM.")],
    as_json: opts.JsonOption = False,
) -> None:
    """Sign a bundle that is ready for devices; a later change needs a new signature.

    sign writes signature.json beside the basis, with the SHA-256 of every file. A device checks the files
    with --bundle-key, or in Python with load(..., bundle_keys=[...]).

    \b
    Example:
      tinylora-edge sign out/demo --key fleet.key
    """
    made = signer(key)
    with console.progress(f"hashing the files of {bundle}"):
        path = sign_bundle(bundle, made)
    files = len(Signature.read(path).files)
    record = {"signature": str(path), "key": made.id, "files": files}
    console.report(record, as_json, f"signed {console.counted(files, 'file')} under {made.id}: {path}")


def signer(path: Path) -> tags.Ed25519Signer:
    """Return the signer of a private key file."""
    return _key(path, tags.Ed25519Signer.from_pem, tags.Ed25519Signer.from_pem)


def signing_key(path: Path) -> tags.Ed25519Signer | tags.Hmac:
    """Return the signer of a file that has a private key in PEM, or a MAC key in hexadecimal digits."""
    return _key(path, tags.Ed25519Signer.from_pem, tags.Hmac.from_hex)


def verifier(signer: tags.Ed25519Signer | tags.Hmac | None) -> list[tags.Verifier]:
    """Return the verifier of a signer's tags; none without a signer, as checksums need no key."""
    if isinstance(signer, tags.Ed25519Signer):
        return [tags.Ed25519Verifier(signer.public_key)]
    return [] if signer is None else [signer]


def public_keys(paths: Sequence[Path] | None) -> list[tags.Ed25519Verifier]:
    """Return the verifiers of public key files."""
    return [_key(path, tags.Ed25519Verifier.from_pem, tags.Ed25519Verifier.from_pem) for path in paths or ()]


def verifiers(paths: Sequence[Path] | None) -> list[tags.Verifier]:
    """Return the verifiers of key files: public keys in PEM, and MAC keys."""
    return [_key(path, tags.Ed25519Verifier.from_pem, tags.Hmac.from_hex) for path in paths or ()]


def signer_and_trusted(
    paths: Sequence[Path] | None,
) -> tuple[tags.Ed25519Signer | tags.Hmac | None, list[tags.Verifier]]:
    """Return the signer of key files, a private or a MAC key, and the verifiers of the public keys."""
    public = [path for path in paths or () if b"PUBLIC KEY-----" in path.read_bytes()[:PEM_BYTES]]
    secret = [path for path in paths or () if path not in public]
    if len(secret) > 1:
        raise BadParameter(f"{secret[0]} and {secret[1]} both sign: pass one of them", param_hint="--key")
    return (signing_key(secret[0]) if secret else None), verifiers(public)


def policy(keys: Sequence[Path] | None, state: Path | None = None) -> Policy:
    """Return a policy that trusts the keys in files; without any, a checksum is enough."""
    return Policy(keys=verifiers(keys), state=state)


def warn_if_others_read(path: Path) -> None:
    """Warn if others on this machine can read a file with secrets."""
    if os.name != "nt" and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        console.warn(f"{path} can be read by others on this machine: chmod 600 {path}")


def _key(path: Path, pem: Callable[[bytes], T], other: Callable[[bytes], U]) -> T | U:
    with open_file(path) as file:
        data = file.read(PEM_BYTES + 1)
    try:
        key = pem(data) if b"-----BEGIN" in data else other(data)
    except SignatureError as error:
        raise SignatureError(f"{path}: {error}") from None
    if not isinstance(key, tags.Ed25519Verifier):
        warn_if_others_read(path)
    return key
