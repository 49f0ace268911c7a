"""Signed bundles: a list of the SHA-256 of every file, signed with Ed25519, and checked before any is read.

`signature.json` lies beside the basis (docs/FORMAT.md, "Signed bundles"):

    {"files": {"base.gguf": "<SHA-256>", ...}, "key": "ed25519:<id>", "signature": "<base64>"}

The signed text has a line `tinylora bundle 1`, and then a line for each file, in the order of their names, as
sha256sum prints it: hash, two spaces, name. Names are relative to the folder of the basis.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from ..errors import TrustError
from ..jsonio import read_json, write_json
from ..limits import BUNDLE_FILES
from ..wire.tags import Ed25519Signer, Ed25519Verifier
from ..writes import locked, open_file
from .bundle import BASIS_NAME, ONNX_NAME, Bundle, load_bundle
from .gguf import gguf_paths

SIGNATURE_NAME = "signature.json"

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Signature:
    """What a `signature.json` says: SHA-256 of files by name, the id of the key, and the signature."""

    files: dict[str, str]
    key: str
    tag: bytes
    path: Path

    @classmethod
    def read(cls, path: Path) -> Signature:
        """Return the signature in a file, unverified; TrustError where there is none, or it is damaged."""
        try:
            found = read_json(path)
            files, key, tag = found["files"], found["key"], base64.b64decode(found["signature"])
            whole = all(_SHA256.match(digest) and name.isprintable() for name, digest in files.items())
        except FileNotFoundError:
            raise TrustError(
                f"the bundle is not signed: there is no {path}. Its owner signs it with tinylora-edge sign"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TrustError(f"the signature {path} is damaged: {error!r:.80}") from None
        if not whole or not isinstance(key, str) or len(files) > BUNDLE_FILES:
            raise TrustError(f"the signature {path} is damaged: it is not a list of names and hashes")
        return cls(files, key, tag, path)

    def verify(self, keys: Sequence[Ed25519Verifier]) -> None:
        """Raise TrustError unless one of some keys made it."""
        if not any(key.verify(signed_text(self.files), self.tag) for key in keys):
            trusted = ", ".join(key.id for key in keys)
            raise TrustError(
                f"the signature {self.path} is by {self.key[:40]}, and does not verify under {trusted}"
            )

    def check(self, name: str, path: Path) -> tuple[int, ...]:
        """Return the stamp of a file. TrustError: it is not the one that was signed under a name."""
        if name not in self.files:
            raise TrustError(f"{path} is not in the signature {self.path}: it came from elsewhere. Remove it")
        try:
            digest, found = hash_file(path)
        except FileNotFoundError:
            raise TrustError(
                f"{path} is not there, but was signed as a part of the bundle: install the bundle again"
            ) from None
        if digest != self.files[name]:
            raise TrustError(
                f"{path} has SHA-256 {digest[:16]}..., but {self.files[name][:16]}... is what was signed: it "
                "was damaged or exchanged. Install the bundle again"
            )
        return found


def signed_text(files: Mapping[str, str]) -> bytes:
    """Return the bytes that are signed for a list of hashes by name."""
    return "".join(["tinylora bundle 1\n", *(f"{files[name]}  {name}\n" for name in sorted(files))]).encode()


def sign_bundle(path: str | PathLike[str], signer: Ed25519Signer) -> Path:
    """Sign all files of a bundle (see `load_bundle`), and return where the signature is.

    Raises:
        FileNotFoundError: there is no bundle.
        TrustError: it holds too many files, or one with a name that cannot be listed.
        OSError: a file is not regular, or cannot be read, or the signature not be written; the old one stays.
    """
    bundle = load_bundle(path)
    with locked(bundle.basis_path):
        return _sign(bundle, signer, {})


@contextmanager
def changing(path: str | PathLike[str], signer: Ed25519Signer | None) -> Iterator[Bundle]:
    """Lock a bundle while the block changes it, then sign it again. TrustError: see `check_signer`."""
    bundle = load_bundle(path)
    with locked(bundle.basis_path):
        stamps = check_signer(bundle, signer)
        yield bundle
        if signer is not None:
            _sign(bundle, signer, stamps)


def _sign(bundle: Bundle, signer: Ed25519Signer, stamps: Mapping[Path, tuple[int, ...]]) -> Path:
    """Sign a bundle. A file whose stamp is still that of `stamps` keeps its hash."""
    files, target = files_of(bundle), signature_path(bundle)
    known = Signature.read(target).files if stamps else {}
    for name in files:
        if not name.isprintable():
            raise TrustError(
                f"{name!r:.80} is not allowed as the name of a file in a signed bundle: rename it"
            )
    hashes = {
        name: known[name] if stamps.get(file) == stamp(os.stat(file)) else hash_file(file)[0]
        for name, file in sorted(files.items())
    }
    tag = base64.b64encode(signer.sign(signed_text(hashes))).decode()
    write_json(target, {"files": hashes, "key": signer.id, "signature": tag})
    return target


def signature_path(bundle: Bundle) -> Path:
    """Return where the signature of a bundle is: `signature.json`, or `<stem>.signature.json`."""
    return bundle.basis_path.with_name(bundle.basis_path.name.removesuffix(BASIS_NAME) + SIGNATURE_NAME)


def check_bundle(
    bundle: Bundle, keys: Sequence[Ed25519Verifier], *, engine: str | None = None
) -> dict[Path, tuple[int, ...]]:
    """Check that one of some keys signed a bundle, and that its files are those of the list, all and no more.

    `engine`, `llama` or `onnx`, leaves out the base of the other one; None checks all files.
    Returns the files, and the stamp of each when it was hashed.

    Raises:
        TrustError: there is no signature, no key made it, or a file differs, is missing, or is not listed.
        OSError: a file cannot be read.
    """
    signature = Signature.read(signature_path(bundle))
    signature.verify(keys)
    files, root = files_of(bundle, engine), bundle.basis_path.parent
    for name in signature.files:
        graph = name.startswith(f"{ONNX_NAME}/")
        model = name.endswith(".gguf") and not name.endswith(BASIS_NAME)
        if not (graph if engine == "llama" else model and engine == "onnx"):
            files.setdefault(name, root / name)
    return {path: signature.check(name, path) for name, path in sorted(files.items())}


def check_signer(bundle: Bundle, signer: Ed25519Signer | None) -> dict[Path, tuple[int, ...]]:
    """Return the stamps of a signed bundle's files; {} where there is no signer and no signature.

    TrustError: the bundle must not be changed, as it is not as this signer left it, or it is signed and there
    is no signer.
    """
    path = signature_path(bundle)
    if signer is not None:
        return check_bundle(bundle, [Ed25519Verifier(signer.public_key)])
    if path.exists():
        raise TrustError(
            f"the bundle is signed by {Signature.read(path).key[:40]}, and devices would refuse it changed: "
            f"name that private key with --key, or remove {path}"
        )
    return {}


@contextmanager
def signed(bundle: Bundle, keys: Sequence[Ed25519Verifier], *, engine: str | None = None) -> Iterator[None]:
    """Check a bundle, and after the block that loads it, that the files are unchanged. Without keys nothing
    is checked. Errors: those of `check_bundle`."""
    stamps = check_bundle(bundle, keys, engine=engine) if keys else {}
    yield
    for path, then in stamps.items():
        if stamp(os.stat(path)) != then:
            raise TrustError(
                f"{path} changed between the check of its signature and its use: the model is not used. Load "
                "it again once nobody writes there"
            )


def hash_file(path: Path) -> tuple[str, tuple[int, ...]]:
    """Return the SHA-256 of a file, and its stamp before it was hashed. OSError: it is no file."""
    with open_file(path) as file:
        before = stamp(os.fstat(file.fileno()))
        return hashlib.file_digest(file, "sha256").hexdigest(), before


def stamp(found: os.stat_result) -> tuple[int, ...]:
    """Return a file's stamp, which differs once the file is replaced or changed."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def files_of(bundle: Bundle, engine: str | None = None) -> dict[str, Path]:
    """Return the files of a bundle that an engine may open, by name; None for all.

    ONNX Runtime may open all files in the graph's folder: its tokenizer and generator open them by name.
    TrustError: a link to a folder is among them, or there are too many files.
    """
    if engine is None and bundle.basis_path.name == BASIS_NAME:  # of a part, the whole bundle is meant
        bundle = load_bundle(bundle.basis_path.parent)
    found = [bundle.basis_path]
    if (manifest := bundle.manifest_path) is not None:
        found.append(manifest)
    if engine != "onnx" and bundle.base != bundle.onnx:
        found += gguf_paths(bundle.base)
    if engine != "llama" and bundle.onnx is not None:
        for here, folders, names in os.walk(bundle.onnx):
            for name in folders:
                if os.path.islink(os.path.join(here, name)):
                    raise TrustError(f"{here}/{name} is a link to a folder: a signed bundle has none")
            found += [Path(here, name) for name in names]
            if len(found) > BUNDLE_FILES:
                raise TrustError(f"{bundle.onnx} has more than {BUNDLE_FILES} files: this is no bundle")
    root = bundle.basis_path.absolute().parent
    files = {path.absolute().relative_to(root).as_posix(): path for path in found}
    for name in (SIGNATURE_NAME, f"{bundle.basis_path.name}.lock"):  # the lock is that of `changing`
        files.pop(name, None)
    return files
