"""Statements about the files of a bundle, as sigstore's model-signing makes them.

A statement is in-toto's (`https://in-toto.io/Statement/v1`), with the predicate
`https://model_signing/signature/v1.0`: a SHA-256 for each file, and one over all of them. It travels in a
DSSE envelope (`trust.envelope`), signed with Ed25519. The library itself (model-signing 1.1) is not used: it
signs with ECDSA keys, certificates or OIDC alone, so a device would hold a second kind of key, and it brings
some forty packages, where a device has numpy, gguf and cryptography.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from ..documents import parse_json
from ..errors import TrustError
from ..limits import BUNDLE_FILES, STATEMENT_BYTES
from ..trust.envelope import Envelope, canonical

TYPE = "application/vnd.in-toto+json"

SIGNATURE_NAME = "signature.json"
"""Name of a bundle's signature, beside its basis."""

_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_OURS = "tinylora"  # in the predicate, where readers ignore what they do not know
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Statement:
    """The files of a bundle and their hashes.

    Attributes:
        name: of the bundle, for people.
        files: SHA-256 in hexadecimal by path: relative to the basis's folder, with `/` between its parts.
        ignored: paths that are not covered; the signature itself.
        sequence: rises with every bundle of this name, from 1 to 65535; 0 where it has none.
    """

    name: str
    files: dict[str, str]
    ignored: tuple[str, ...] = field(default=(SIGNATURE_NAME,))
    sequence: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 over the hashes of all files, in the order of their paths."""
        return hashlib.sha256(
            b"".join(bytes.fromhex(self.files[path]) for path in sorted(self.files))
        ).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the bytes that are signed."""
        resources = [
            {"name": path, "algorithm": "sha256", "digest": self.files[path]} for path in sorted(self.files)
        ]
        serialization = {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": True,
            "ignore_paths": list(self.ignored),
        }
        predicate: dict[str, Any] = {"serialization": serialization, "resources": resources}
        if self.sequence:
            predicate[_OURS] = {"sequence": self.sequence}
        return canonical(
            {
                "_type": _STATEMENT,
                "subject": [{"name": self.name, "digest": {"sha256": self.digest}}],
                "predicateType": _PREDICATE,
                "predicate": predicate,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Statement:
        """Return the statement that signed bytes hold.

        Fields that are not named here are ignored, as that predicate has it.

        Raises:
            TrustError: they hold none, or its hashes do not give the one over all of them.
        """
        try:
            value: Any = parse_json(data, limit=STATEMENT_BYTES)
            kinds = value["_type"], value["predicateType"]
            ((name, stated),) = [(one["name"], one["digest"]["sha256"]) for one in value["subject"]]
            resources = [
                (one["name"], one["algorithm"], one["digest"]) for one in value["predicate"]["resources"]
            ]
            texts = [name, stated, *(part for resource in resources for part in resource)]
            sequence = value["predicate"][_OURS]["sequence"] if _OURS in value["predicate"] else 0
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TrustError(f"its statement has another structure ({error!r:.80})") from None
        if kinds != (_STATEMENT, _PREDICATE) or not all(isinstance(text, str) for text in texts):
            raise TrustError(f"its statement is of type {kinds!r:.120}, not a model's signature, version 1.0")
        if len(resources) > BUNDLE_FILES:
            raise TrustError(
                f"its statement lists {len(resources)} files, and at most {BUNDLE_FILES} are read"
            )
        files = {path: digest for path, algorithm, digest in resources if algorithm == "sha256"}
        if len(files) < len(resources) or not all(map(_SHA256.match, files.values())):
            raise TrustError("its statement has a file twice, or a hash that is no SHA-256")
        if type(sequence) is not int or not 0 <= sequence < 1 << 16:
            raise TrustError(f"its statement has sequence {sequence!r:.40}, which is none from 1 to 65535")
        found = cls(name, files, sequence=sequence)
        if found.digest != stated:
            raise TrustError(
                f"its statement's hashes give {found.digest[:16]}..., but it says {stated[:16]}..."
            )
        return found

    def enveloped(self) -> Envelope:
        """Return the envelope to sign."""
        return Envelope(TYPE, self.to_bytes())


def opened(data: bytes) -> Envelope:
    """Return the envelope in the bytes of a bundle's signature; nothing is verified.

    Raises:
        TrustError: they hold none, or one of something else.
    """
    try:
        envelope = Envelope.from_json(parse_json(data, limit=STATEMENT_BYTES))
    except TrustError:
        raise
    except ValueError as error:
        raise TrustError(f"it is no JSON: {error}") from None
    if envelope.kind != TYPE:
        raise TrustError(f"it signs something of type {envelope.kind!r}, not {TYPE!r}")
    return envelope
