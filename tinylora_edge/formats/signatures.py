"""Signatures of bundles: made on a host, checked on a device before anything of the bundle is read.

The rules of a check, in their order; the first that fails raises:

1. `signature.json` beside the basis is an envelope that one of the trusted keys has signed, and no bundle of
   the same name and key with a higher sequence was loaded before (TrustError).
2. Every file that will be loaded is on its list: the basis, all files of the base, and for ONNX Runtime every
   file in the graph's folder, since its tokenizer and its generator take files there by name (TrustError).
3. Each has the hash that is listed (TrustError). Files are read as a stream, or not at all where `Hashes`
   remembers them. Of a base in several files every listed one is there, since one that came a moment later
   would be loaded and never hashed (TrustError).
4. Once the engine has loaded them, they are the same files as when they were hashed, by inode and by the
   times that the system keeps (TrustError); the model is closed otherwise.

What is listed and not there is no error: a device may do without the other engine's base.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from ..errors import TrustError
from ..limits import BUNDLE_FILES, STATEMENT_BYTES, STREAM_CHARACTERS
from ..system import atomic_write
from ..trust.bundles import Bundles, Refused, Signed
from ..trust.envelope import Envelope, canonical
from ..wire.tags import Ed25519Signer, Ed25519Verifier
from .bundle import BASIS_NAME, Bundle
from .gguf import gguf_paths, named_paths, whole_stem
from .hashes import Hashes, Stamp, stamp
from .statement import SIGNATURE_NAME, Statement, opened


@contextmanager
def signed(bundle: Bundle, rules: Bundles, *, engine: str | None = None) -> Iterator[None]:
    """Load a bundle in a block, as one that is signed: it is checked before, and not changed until the end.

    Where the rules have no keys nothing is checked. At the end the bundle's sequence is recorded. Errors:
    those of `check_bundle`, `SignedBundle` and `Bundles`.
    """
    keys, refused = rules.signers()
    if not keys:
        yield
        return
    checked = check_bundle(
        bundle, keys, refused=refused, engine=engine, state=rules.state, before=rules.check
    )
    yield
    checked.check_unchanged()
    rules.record(checked.said)


@dataclass(frozen=True)
class SignedBundle:
    """A bundle whose signature was checked.

    Attributes:
        said: what its signature says of it.
        files: what was hashed, and the stamp of each at that moment.
    """

    said: Signed
    files: dict[Path, Stamp]

    def check_unchanged(self) -> None:
        """Check that the files are those that were hashed.

        Raises:
            TrustError: one was exchanged or changed since.
            OSError: one is gone.
        """
        for path, then in self.files.items():
            if stamp(path) != then:
                raise TrustError(
                    f"{path} changed between the check of its signature and its use: the model is not used. "
                    "Load it again once nobody writes there"
                )


def sign_bundle(
    path: str | PathLike[str], signer: Ed25519Signer, *, sequence: int = 0, name: str | None = None
) -> Path:
    """Sign all files of a bundle, and return where the signature is.

    Args:
        path: of the bundle, as `Bundle.find` takes it.
        signer: the private key.
        sequence: from 1 to 65535, higher than that of every bundle before it with this name. A device that
            loaded one with a sequence loads none with a lower one, or with none, after it. 0 is none.
        name: of the bundle; by default that of its folder.

    Raises:
        FileNotFoundError: there is no bundle.
        TrustError: it holds what is no regular file, or too many; or a sequence that is none, or a name that
            is too long.
        OSError: a file cannot be read, or the signature not be written; what was there stays.
    """
    bundle = Bundle.find(path)
    root, target = bundle.basis_path.absolute().parent, signature_path(bundle)
    name = name or root.name
    if len(name) > STREAM_CHARACTERS:
        raise TrustError(
            f"the bundle's name {name[:40]!r}... has {len(name)} characters, and devices keep at most "
            f"{STREAM_CHARACTERS}: sign it with a shorter one (tinylora-edge sign --name)"
        )
    files = {_name(file, root): Hashes().of(file)[0] for file in files_of(bundle)}
    statement = Statement(name, files, (target.name,), sequence)
    Statement.from_bytes(statement.to_bytes())  # what is written can be read
    with atomic_write(target) as file:
        file.write(canonical(statement.enveloped().signed([signer]).to_json()) + b"\n")
    return target


def signature_path(bundle: Bundle) -> Path:
    """Return where the signature of a bundle is: `signature.json`, or `<stem>.signature.json`."""
    if bundle.basis_path.name == BASIS_NAME:
        return bundle.basis_path.with_name(SIGNATURE_NAME)
    return bundle.basis_path.with_name(f"{whole_stem(bundle.base)}.{SIGNATURE_NAME}")


def read_signature(bundle: Bundle) -> Envelope | None:
    """Return the envelope of a bundle's signature, or None where there is none; nothing is verified.

    Raises:
        TrustError: it is damaged.
        OSError: it cannot be read.
    """
    return _read(signature_path(bundle))


def check_bundle(
    bundle: Bundle,
    keys: Sequence[Ed25519Verifier],
    *,
    refused: Refused = (),
    engine: str | None = None,
    state: str | PathLike[str] | None = None,
    before: Callable[[Signed], None] | None = None,
) -> SignedBundle:
    """Check the signature of a bundle, and its files against it (rules 1 to 3).

    Args:
        bundle: where its parts lie. Nothing of it has to have been read.
        keys: that are trusted; any one of them may have signed.
        refused: keys that are known and do not count, and why.
        engine: `llama` or `onnx`: the files that it loads; None for all that the bundle has.
        state: of the policy; `<state>.bundles` remembers hashes then, and without it every file is hashed.
        before: is called with what the signature says, before any file is hashed.

    Raises:
        TrustError: a rule is broken, or there is no signature.
        OSError: a file cannot be read.
    """
    path = signature_path(bundle)
    said, listed = signed_hashes(path, keys, refused)
    if before is not None:
        before(said)
    root = bundle.basis_path.absolute().parent
    hashes, checked = Hashes(None if state is None else Path(f"{os.fspath(state)}.bundles")), {}
    for file in files_of(bundle, engine):
        name = _name(file, root)
        if name not in listed:
            raise TrustError(f"{file} is not in the signature {path}: it came from elsewhere. Remove it")
        digest, checked[file] = hashes.of(file)
        check_hash(file, digest, listed[name])
    for part in named_paths(bundle.base) if engine != "onnx" else ():
        if part not in checked and _name(part, root) in listed:
            raise TrustError(
                f"{part} is not there, but was signed as one of the base's files: install the bundle again"
            )
    hashes.keep()
    return SignedBundle(said, checked)


def signed_hashes(
    path: Path, keys: Sequence[Ed25519Verifier], refused: Refused = ()
) -> tuple[Signed, dict[str, str]]:
    """Return what the signature of a list of files says, and the SHA-256 of each by its name (rule 1).

    Args:
        path: of the signature.
        keys: that are trusted; any one of them may have signed.
        refused: keys that are known and do not count, and why.

    Raises:
        TrustError: there is no signature, it is damaged, or none of the keys made it.
        OSError: it cannot be read.
    """
    envelope, trusted = _read(path), ", ".join(key.id for key in keys)
    if envelope is None:
        raise TrustError(
            f"the bundle is not signed: there is no {path}, and it has to be signed by {trusted}. Its owner "
            "signs it with tinylora-edge sign"
        )
    found = envelope.signers(keys)
    if not found:
        for known, why in refused:
            if envelope.signers([known]):
                raise TrustError(f"the bundle was signed by {known.id}, which does not count: {why}")
        by = ", ".join(key for key, _ in envelope.signatures) or "nobody"
        raise TrustError(f"the signature {path} is by {by}, and does not verify under {trusted}")
    try:
        statement = Statement.from_bytes(envelope.payload)
    except TrustError as error:
        raise TrustError(f"the signature {path} is of no use: {error}") from None
    return Signed(min(found), statement.name, statement.sequence, statement.digest), statement.files


def check_hash(file: Path, found: str, listed: str) -> None:
    """Check that a file has the hash that was signed (rule 3).

    Raises:
        TrustError: it has another.
    """
    if found != listed:
        raise TrustError(
            f"{file} has SHA-256 {found[:16]}..., but {listed[:16]}... is what was signed: it was "
            "damaged or exchanged. Install the bundle again"
        )


def files_of(bundle: Bundle, engine: str | None = None) -> Iterator[Path]:
    """Yield the files of a bundle that an engine loads; without one all, and the manifest.

    Raises:
        TrustError: a link to a folder is among them, or too many.
    """
    yield bundle.basis_path
    if engine is None and bundle.manifest_path is not None and bundle.manifest_path.exists():
        yield bundle.manifest_path
    if engine in (None, "llama") and bundle.base != bundle.onnx:
        yield from gguf_paths(bundle.base)
    if engine in (None, "onnx") and bundle.onnx is not None:
        yield from _below(bundle.onnx, {bundle.basis_path, bundle.manifest_path, signature_path(bundle)})


def _read(path: Path) -> Envelope | None:
    try:
        with open(path, "rb") as file:
            data = file.read(STATEMENT_BYTES + 1)
    except FileNotFoundError:
        return None
    try:
        return opened(data)
    except TrustError as error:
        raise TrustError(f"the signature {path} is damaged: {error}") from None


def _below(folder: Path, known: set[Path | None]) -> Iterator[Path]:
    count = 0
    for here, folders, files in os.walk(folder):
        for name in folders:
            if os.path.islink(os.path.join(here, name)):
                raise TrustError(
                    f"{os.path.join(here, name)} is a link to a folder: a signed bundle has none"
                )
        for name in sorted(files):
            count += 1
            if count > BUNDLE_FILES:
                raise TrustError(f"{folder} has more than {BUNDLE_FILES} files: this is no bundle")
            if (path := Path(here, name)) not in known:
                yield path


def _name(path: Path, root: Path) -> str:
    return path.absolute().relative_to(root).as_posix()
