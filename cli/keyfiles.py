"""Trust on the command line: keys that are read from files, and the policy that they make."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from .. import Policy, SignatureError
from ..limits import PEM_BYTES
from ..wire import tags
from . import console

T = TypeVar("T")


def signer(path: Path) -> tags.Ed25519Signer:
    """Return the signer of a private key file."""
    return _secret(path, tags.Ed25519Signer.from_pem)


def signing_key(path: Path) -> tags.Ed25519Signer | tags.Hmac:
    """Return what signs with a file: a private key in PEM, or a MAC key in hexadecimal digits."""
    return signer(path) if _is_pem(path) else _secret(path, tags.Hmac.from_hex)


def public_keys(paths: Sequence[Path] | None) -> list[tags.Ed25519Verifier]:
    """Return what checks signatures of public key files. Errors: those of `signer`."""
    return [_made(path, tags.Ed25519Verifier.from_pem) for path in paths or ()]


def verifiers(paths: Sequence[Path] | None) -> list[tags.Verifier]:
    """Return what `--key` trusts: public keys in PEM, and MAC keys. Errors: those of `signer`."""
    return [
        _made(path, tags.Ed25519Verifier.from_pem) if _is_pem(path) else _secret(path, tags.Hmac.from_hex)
        for path in paths or ()
    ]


def policy(keys: Sequence[Path] | None, state: Path | None = None) -> Policy:
    """Return the policy of a device that trusts these keys; without any, a checksum is enough."""
    return Policy(keys=verifiers(keys), state=state)


def _secret(path: Path, make: Callable[[bytes], T]) -> T:
    made = _made(path, make)
    warn_if_others_read(path)
    return made


def warn_if_others_read(path: Path) -> None:
    """Warn of a file with secrets that others on this machine can read."""
    if os.name != "nt" and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        console.warn(f"{path} can be read by others on this machine: chmod 600 {path}")


def _made(path: Path, make: Callable[[bytes], T]) -> T:
    try:
        return make(_read(path))
    except SignatureError as error:
        raise SignatureError(f"{path}: {error}") from None


def _is_pem(path: Path) -> bool:
    return b"-----BEGIN" in _read(path)


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(PEM_BYTES + 1)
