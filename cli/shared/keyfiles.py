"""Trust on the command line: keys read from files and written so that others cannot read them; policies."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import TypeVar

import typer

from ... import Policy, SignatureError
from ...limits import PEM_BYTES
from ...shipping import layout
from ...system import atomic_write
from ...wire import days, frame, pem, tags
from . import console
from .options import Require

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


def mac(key: str) -> tags.Hmac:
    """Return the MAC of a key, given as a file that holds hexadecimal digits, or as these.

    Raises:
        OSError: the file cannot be read.
        SignatureError: it is neither, or too short.
    """
    path = Path(key)
    if os.path.isfile(path):  # no error, which would show a secret of more digits than a name may have
        made = _named(path, tags.Hmac.from_hex, _read(path))
        _warn_if_readable_by_others(path)
        return made
    try:
        return tags.Hmac.from_hex(key)
    except SignatureError:
        if set(key.strip().lower()) <= set("0123456789abcdef"):
            raise
        raise FileNotFoundError(
            f"{key[:60]} is no file that can be found, and no MAC key in hexadecimal digits: make one with "
            "tinylora-edge keygen --mac"
        ) from None


def public_keys(paths: Sequence[Path] | None) -> list[tags.Ed25519Verifier]:
    """Return what checks signatures of public key files. Errors: those of `signer`."""
    return [_named(path, tags.Ed25519Verifier.from_pem, _read(path)) for path in paths or ()]


def public_key(path: Path) -> tuple[bytes, tags.Ed25519Signer | None]:
    """Return the public key of a file that holds a public or a private one, and the signer of the latter.

    Errors: those of `signer`.
    """
    text = _read(path)
    if b"-----BEGIN PRIVATE KEY-----" in text:
        made = signer(path)
        return made.public_key, made
    return _named(path, pem.decode_public, text), None


def verifiers(keys: Sequence[Path] | None, macs: Sequence[str] | None) -> list[tags.Verifier]:
    """Return what the options `--key` and `--mac` trust. Errors: those of `signer` and `mac`."""
    return [*public_keys(keys), *(mac(key) for key in macs or ())]


def policy(
    keys: Sequence[Path] | None,
    macs: Sequence[str] | None,
    require: Require | None = None,
    max_norm: float = float("inf"),
    state: Path | None = None,
    *,
    keyless: Require = Require.none,
    trust: Path | None = None,
    bundle_keys: Sequence[Path] | None = None,
    versions: str | None = None,
    today: str | None = None,
) -> Policy:
    """Return the policy of a device that is given these options.

    Where nothing is required by name, the keys say it, as `Policy` does. `keyless` is for a device without
    any. `versions` and `today` are what the options of these names say.

    Errors: those of `signer`, `mac` and `Policy`, and typer.BadParameter for a text that is neither.
    """
    trusted = verifiers(keys, macs)
    if require is None and not trusted and trust is None:
        require = keyless
    accepted = frame.VERSIONS if versions is None else _numbers(versions)
    clock: days.Today = days.utc_today
    if today is not None:
        clock = None if today.strip().lower() == "none" else day(today, "--today")
    return Policy(
        require and require.value,
        keys=trusted,
        trust=trust,
        bundle_keys=public_keys(bundle_keys),
        max_norm=max_norm,
        state=state,
        versions=accepted,
        today=clock,
    )


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


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise typer.BadParameter(f"{text[:40]!r} is no list of numbers", param_hint="--versions") from None


def stream_of(name: str) -> str:
    """Return a stream as policies know it: the default one of the published layout has no name there."""
    return layout.bound_name(name)


def check_target(path: Path, *, force: bool) -> None:
    """Check that a key may be written there.

    Raises:
        CommandError: it is a directory.
        FileExistsError: something is there, and `force` is not set.
        FileNotFoundError: its directory is missing.
    """
    if path.is_dir():
        raise console.CommandError(f"{path} is a directory: name a file")
    if (path.exists() or path.is_symlink()) and not force:
        raise FileExistsError(
            f"{path} exists already: choose another output. --force replaces it, and what it alone verifies "
            "is lost"
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
