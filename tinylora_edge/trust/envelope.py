"""Envelopes: bytes, their type, and the signatures over both (DSSE, version 1).

    {"payload": "<base64>", "payloadType": "<type>",
     "signatures": [{"keyid": "ed25519:...", "sig": "<base64>"}]}

What is signed is the type and the payload as they are, so that no reader has to write JSON anew before it can
check it, and nothing that was signed as one type is ever taken for another.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import TrustError
from ..limits import SIGNATURES
from ..wire.tags import Ed25519Signer, Ed25519Verifier

_TYPE = re.compile(r"[a-zA-Z0-9.+/-]{1,100}\Z")
_KEY_ID = re.compile(r"ed25519:[0-9a-f]{16}\Z")
_SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Envelope:
    """A payload with signatures, each under the id of its key.

    Attributes:
        kind: type of the payload, as in HTTP.
        payload: the bytes that are signed.
        signatures: id of the key and signature, one a key, in the order of their ids.
    """

    kind: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...] = ()

    @property
    def message(self) -> bytes:
        """The bytes that a signature is computed over: DSSE's pre-authentication encoding."""
        kind = self.kind.encode()
        return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(self.payload), self.payload)

    def signed(self, signers: Iterable[Ed25519Signer]) -> Envelope:
        """Return the envelope with further signatures; one that a key made before is replaced."""
        made = dict(self.signatures) | {signer.id: signer.sign(self.message) for signer in signers}
        return replace(self, signatures=tuple(sorted(made.items())))

    def signers(self, keys: Sequence[Ed25519Verifier]) -> set[str]:
        """Return the ids of those keys whose signature is there and holds."""
        found, message = dict(self.signatures), self.message
        return {key.id for key in keys if key.id in found and key.verify(message, found[key.id])}

    def to_json(self) -> dict[str, Any]:
        """Return the envelope as values of JSON."""
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.kind,
            "signatures": [
                {"keyid": key, "sig": base64.b64encode(signature).decode()}
                for key, signature in self.signatures
            ],
        }

    @classmethod
    def from_json(cls, value: Any) -> Envelope:
        """Return the envelope of values that were JSON; nothing is verified.

        Raises:
            TrustError: they are no envelope.
        """
        fields(value, "an envelope", {"payload", "payloadType", "signatures"})
        signatures = {}
        for item in listed(value["signatures"], "signatures", SIGNATURES):
            fields(item, "a signature", {"keyid", "sig"})
            key, signature = text(item["keyid"], "a keyid", _KEY_ID), _bytes(item["sig"], "a signature")
            if len(signature) != _SIGNATURE_BYTES or key in signatures:
                raise TrustError(f"the signature of {key} has {len(signature)} bytes, or is there twice")
            signatures[key] = signature
        kind = text(value["payloadType"], "a payloadType", _TYPE)
        return cls(kind, _bytes(value["payload"], "a payload"), tuple(sorted(signatures.items())))


def canonical(value: Any) -> bytes:
    """Return JSON in the one form that is signed: ASCII, keys in order, no white space."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def fields(
    value: Any, what: str, required: set[str], optional: set[str] | frozenset[str] = frozenset()
) -> None:
    """Check that a value is an object with these fields and no others.

    Raises:
        TrustError: it is not.
    """
    if not isinstance(value, dict):
        raise TrustError(f"{what} is an object, not {_shown(value)}")
    if missing := required - value.keys():
        raise TrustError(f"{what} lacks {', '.join(sorted(missing))}")
    if unknown := value.keys() - required - optional:
        raise TrustError(f"{what} has {_shown(min(unknown))}, which this release does not know: update it")


def listed(value: Any, what: str, most: int, least: int = 0) -> list[Any]:
    """Return a list, if it has as many items as it may.

    Raises:
        TrustError: it is no list, or has more or fewer.
    """
    if not isinstance(value, list) or not least <= len(value) <= most:
        got = f"{len(value)}" if isinstance(value, list) else _shown(value)
        raise TrustError(f"{what} are a list of {least} to {most}, not {got}")
    return value


def text(value: Any, what: str, form: re.Pattern[str]) -> str:
    """Return a text, if it has a form.

    Raises:
        TrustError: it is no text, or has another form.
    """
    if not isinstance(value, str) or not form.match(value):
        raise TrustError(f"{_shown(value)} is not {what}")
    return value


def _bytes(value: Any, what: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, TypeError):
        raise TrustError(f"{what} is not base64: {_shown(value)}") from None


def _shown(value: Any) -> str:
    return repr(value)[:60]
