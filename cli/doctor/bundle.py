"""A bundle: its files, the digest of its basis, and the fingerprints of what it runs on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ... import Bundle
from ...errors import BaseMismatchError, CorruptBasisError, TinyLoraError, TrustError
from ...formats.signatures import read_signature
from .. import console
from .finding import FAULT, NOTE, OK, Finding

CHECK = "bundle"


def check(path: Path) -> Iterator[Finding]:
    """Yield what is found of a bundle."""
    again = console.command("export", "MODEL", "-o", "BUNDLE")
    try:
        bundle = Bundle.find(path)
    except FileNotFoundError as error:
        yield Finding(CHECK, FAULT, str(error).partition(": expected")[0], again)
        return
    try:
        basis = bundle.basis
    except (CorruptBasisError, OSError) as error:
        yield Finding(CHECK, FAULT, f"{error}", again)
        return
    size = console.megabytes(bundle.basis_path.stat().st_size)
    yield Finding(CHECK, OK, f"{bundle.basis_path} ({size}) gives its digest, {basis.digest}")
    if bundle.base != bundle.onnx:
        yield _check_base(bundle, bundle.base, bundle.check_base)
    if bundle.onnx is not None:
        yield _check_base(bundle, bundle.onnx, bundle.check_onnx)
    yield from _check_manifest(bundle, again)
    yield _check_signature(bundle, path)


def _check_base(bundle: Bundle, path: Path, fingerprint: object) -> Finding:
    assert callable(fingerprint)
    try:
        return Finding(CHECK, OK, f"{path} has fingerprint {fingerprint()}, which the basis lists")
    except (BaseMismatchError, OSError) as error:
        mend = console.command("export", bundle.basis_path.parent, "--add-base", "FILE")
        return Finding(CHECK, FAULT, str(error), mend)


def _check_manifest(bundle: Bundle, again: str) -> Iterator[Finding]:
    try:
        stated = bundle.manifest.get("basis")
    except TinyLoraError as error:
        yield Finding(CHECK, FAULT, str(error), again)
        return
    if not isinstance(stated, dict):
        yield Finding(CHECK, NOTE, "there is no manifest: where the basis came from is not known")
    elif stated.get("digest") != bundle.basis.digest:
        said = str(stated.get("digest"))[:16]
        text = (
            f"{bundle.manifest_path} states digest {said}..., but the basis has {bundle.basis.digest[:16]}..."
        )
        yield Finding(CHECK, FAULT, text, again)


def _check_signature(bundle: Bundle, path: Path) -> Finding:
    try:
        envelope = read_signature(bundle)
    except TrustError as error:
        return Finding(CHECK, FAULT, str(error), console.command("sign", path, "--sign", "KEY"))
    if envelope is None:
        return Finding(CHECK, OK, "it is not signed, and needs not be where no policy asks for it")
    by = ", ".join(key for key, _ in envelope.signatures)
    text = f"it says that it is signed by {by}; under a key of yours that is checked"
    return Finding(CHECK, OK, text, console.command("inspect", path, "--key", "KEY.pub"))
