"""Trust on the command line: keys read from files and written so that others cannot read them; policies."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TypeVar

import typer

from .. import Policy, SignatureError
from ..limits import PEM_BYTES
from ..shipping import layout
from ..system import atomic_write
from ..wire import tags
from . import console

T = TypeVar("T")


def signer(path: Path) -> tags.Ed25519Signer:
    """Return the signer of a private key file.

    Raises:
        OSError: the file cannot be read.
        SignatureError: it is no Ed25519 private key.
        MissingExtraError: `cryptography` is not installed.
    """
    made = _named(path, tags.Ed25519Signer.from_pem, _read(path))
    _warn_if_readable_by_others(path)
    return made


def mac(path: Path) -> tags.Hmac:
    """Return the MAC of a key file, which holds hexadecimal digits. Errors: those of `signer`."""
    made = _named(path, tags.Hmac.from_hex, _read(path))
    _warn_if_readable_by_others(path)
    return made


def signing_key(path: Path) -> tags.Ed25519Signer | tags.Hmac:
    """Return what signs with a key file: a private key in PEM, or a MAC key in hexadecimal digits.

    Errors: those of `signer`.
    """
    return signer(path) if _is_pem(path) else mac(path)


def verifier_of(key: tags.Ed25519Signer | tags.Hmac) -> tags.Verifier:
    """Return what checks the tags that a key makes."""
    return tags.Ed25519Verifier(key.public_key) if isinstance(key, tags.Ed25519Signer) else key


def public_keys(paths: Sequence[Path] | None) -> list[tags.Ed25519Verifier]:
    """Return what checks signatures of public key files. Errors: those of `signer`."""
    return [_named(path, tags.Ed25519Verifier.from_pem, _read(path)) for path in paths or ()]


def verifiers(paths: Sequence[Path] | None) -> list[tags.Verifier]:
    """Return what `--key` trusts: public keys in PEM, and MAC keys. Errors: those of `signer` and `mac`."""
    return [public_keys([path])[0] if _is_pem(path) else mac(path) for path in paths or ()]


def policy(
    keys: Sequence[Path] | None,
    state: Path | None = None,
    *,
    keyring: Path | None = None,
    keyless: str = "none",
) -> Policy:
    """Return the policy of a device that trusts these keys; without any, `keyless` is the least of a tag.

    Errors: those of `verifiers` and `Policy`.
    """
    trusted = verifiers(keys)
    return Policy(None if trusted or keyring else keyless, keys=trusted, keyring=keyring, state=state)


def day(text: str, option: str) -> date:
    """Return the day that a text names, as 2026-12-31.

    Raises:
        typer.BadParameter: it names none.
    """
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{text[:40]!r} is no day: write it as 2026-12-31", param_hint=option
        ) from None


def stream_of(name: str) -> str:
    """Return a stream as policies know it: the default one of the published layout has no name there."""
    return layout.bound_name(name)


def check_target(path: Path) -> None:
    """Check that a key may be written there.

    Raises:
        CommandError: it is a directory.
        FileExistsError: something is there.
        FileNotFoundError: its directory is missing.
    """
    if path.is_dir():
        raise console.CommandError(f"{path} is a directory: name a file")
    if path.exists() or path.is_symlink():
        raise FileExistsError(
            f"{path} exists already: choose another output. With the key what it alone verifies would be lost"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a directory: make it first, or choose another output")


def write(path: Path, text: str, *, secret: bool) -> None:
    """Write a key, atomically: a secret one for its owner alone (0600), whatever the umask.

    Raises:
        CommandError: the file cannot be written; what was there stays.
    """
    try:
        with atomic_write(path, mode=0o600 if secret else 0o644) as file:
            file.write(text.encode())
    except OSError as error:
        raise console.CommandError(f"{path} could not be written: {error.strerror or error}") from error


def _is_pem(path: Path) -> bool:
    return b"-----BEGIN" in _read(path)


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(PEM_BYTES + 1)


def _named(path: Path, make: Callable[[bytes], T], text: bytes) -> T:
    try:
        return make(text)
    except SignatureError as error:
        raise SignatureError(f"{path}: {error}") from None


def _warn_if_readable_by_others(path: Path) -> None:
    if os.name != "nt" and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        console.warn(f"{path} can be read by others on this machine: chmod 600 {path}")
