"""Records that roots sign: a root, and the list of the keys that may sign vectors and bundles.

Both are JSON in one form (`envelope.canonical`); days are `2026-11-26`, keys 64 hexadecimal digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

from ..documents import parse_json
from ..errors import SignatureError, TrustError
from ..limits import ROOT_KEYS, STREAM_PATTERNS, TRUST_BYTES, TRUST_KEYS, TRUST_VERSION
from ..wire.tags import Ed25519Verifier
from .envelope import canonical, fields, listed, text

ROOT_TYPE = "application/vnd.tinylora.root+json"
LIST_TYPE = "application/vnd.tinylora.keys+json"

DEFAULT_STREAM = "default"
"""How patterns call the stream without a name, as the published layout does."""

Check = Callable[[bytes, bytes, bytes], bool]
"""An Ed25519 of the device's own: (public key, message, signature) -> whether it holds."""

_KEY = re.compile(r"[0-9a-f]{64}\Z")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_PATTERN = re.compile(r"[^*\x00-\x1f\x7f]{0,128}\*?\Z")


@dataclass(frozen=True)
class Root:
    """The keys that sign a list of keys, and the next root.

    Attributes:
        version: 1 for the first, and one more for each that follows.
        threshold: how many of the keys have to sign.
        keys: public ones, 32 bytes each, in order.
    """

    version: int
    threshold: int
    keys: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not self.keys or list(self.keys) != sorted(set(self.keys)) or len(self.keys) > ROOT_KEYS:
            raise TrustError(f"a root has 1 to {ROOT_KEYS} different keys in order, not {len(self.keys)}")
        if not 1 <= self.threshold <= len(self.keys):
            raise TrustError(
                f"root {self.version} asks for {self.threshold} signatures of {len(self.keys)} keys: ask for "
                f"1 to {len(self.keys)} (--threshold), or name more keys"
            )

    def verifiers(self, check: Check | None = None) -> list[Ed25519Verifier]:
        """Return what checks signatures of the keys.

        Raises:
            TrustError: one is a key under which anybody can sign.
            MissingExtraError: there is no `check`, and `cryptography` is not installed.
        """
        return [verifier(key, check) for key in self.keys]

    def to_bytes(self) -> bytes:
        """Return the bytes that are signed."""
        keys = [key.hex() for key in self.keys]
        return canonical({"version": self.version, "threshold": self.threshold, "keys": keys})

    @classmethod
    def from_bytes(cls, data: bytes) -> Root:
        """Return the root that bytes hold.

        Raises:
            TrustError: they hold none.
        """
        value = _parsed(data, "a root", {"version", "threshold", "keys"})
        keys = listed(value["keys"], "keys of a root", ROOT_KEYS, 1)
        return cls(
            _number(value["version"], "a root's version"),
            _number(value["threshold"], "a root's threshold"),
            tuple(bytes.fromhex(text(key, "a public key", _KEY)) for key in keys),
        )


@dataclass(frozen=True)
class ListedKey:
    """A key that may sign vectors, where and when, or bundles.

    Attributes:
        key: the public key, 32 bytes.
        streams: names of streams; a final `*` stands for anything. None for a key of bundles alone.
        first: day from which what it signed is accepted, or None.
        last: day after which that is not any more, or None.
        revoked: day on which it was revoked, or None. Whatever the day is, nothing of it is accepted.
        bundles: whether it signs bundles.
    """

    key: bytes
    streams: tuple[str, ...]
    first: date | None = None
    last: date | None = None
    revoked: date | None = None
    bundles: bool = False

    def __post_init__(self) -> None:
        if not (self.streams or self.bundles) or len(self.streams) > STREAM_PATTERNS:
            raise TrustError(
                f"a key is for 1 to {STREAM_PATTERNS} patterns of streams, or for bundles, not for "
                f"{len(self.streams)}"
            )
        for pattern in self.streams:
            if not pattern or not _PATTERN.match(pattern):
                raise TrustError(f"{pattern[:40]!r} is no pattern of streams: a name, or its beginning and *")
        if self.first is not None and self.last is not None and self.first > self.last:
            raise TrustError(f"the key's days are from {self.first} to {self.last}: that is none")

    @cached_property
    def id(self) -> str:
        """The id of the key, as errors and states have it."""
        return key_id(self.key)

    def is_for(self, stream: str) -> bool:
        """Tell whether the key may sign vectors of a stream."""
        name = stream or DEFAULT_STREAM
        return any(
            name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
            for pattern in self.streams
        )

    def to_json(self) -> dict[str, Any]:
        """Return the key as values of JSON; days that are None, and what it does not sign, are left out."""
        days = {"from": self.first, "to": self.last, "revoked": self.revoked}
        value: dict[str, Any] = {"key": self.key.hex(), "streams": list(self.streams)}
        value |= {name: day.isoformat() for name, day in days.items() if day is not None}
        return value | ({"bundles": True} if self.bundles else {})

    @classmethod
    def from_json(cls, value: Any) -> ListedKey:
        """Return the key of values that were JSON. Raises TrustError where they are none."""
        fields(value, "a key", {"key", "streams"}, {"from", "to", "revoked", "bundles"})
        bundles = value.get("bundles", False)
        if "bundles" in value and bundles is not True:  # one form for one meaning
            raise TrustError(f"bundles of a key is true or missing, not {bundles!r:.40}")
        patterns = listed(value["streams"], "patterns of streams", STREAM_PATTERNS, 0 if bundles else 1)
        return cls(
            bytes.fromhex(text(value["key"], "a public key", _KEY)),
            tuple(text(pattern, "a pattern of streams", _PATTERN) for pattern in patterns),
            _day(value.get("from")),
            _day(value.get("to")),
            _day(value.get("revoked")),
            bundles,
        )


@dataclass(frozen=True)
class KeyList:
    """The keys that may sign vectors and bundles.

    Attributes:
        version: rises with every list under the same root.
        root: version of the root that signs it.
        issued: day on which it was made. No device takes a day before it for today.
        expires: last day on which it is believed, or None.
        keys: in the order in which they were added.
    """

    version: int
    root: int
    issued: date
    expires: date | None = None
    keys: tuple[ListedKey, ...] = ()

    def __post_init__(self) -> None:
        if len(self.keys) > TRUST_KEYS or len({key.key for key in self.keys}) < len(self.keys):
            raise TrustError(f"a list has at most {TRUST_KEYS} keys, each of them once")
        if self.expires is not None and self.expires < self.issued:
            raise TrustError(f"the list of keys of {self.issued} would expire on {self.expires}, before it")

    def to_bytes(self) -> bytes:
        """Return the bytes that are signed."""
        value: dict[str, Any] = {
            "version": self.version,
            "root": self.root,
            "issued": self.issued.isoformat(),
            "keys": [key.to_json() for key in self.keys],
        }
        if self.expires is not None:
            value["expires"] = self.expires.isoformat()
        return canonical(value)

    @classmethod
    def from_bytes(cls, data: bytes) -> KeyList:
        """Return the list that bytes hold. Raises TrustError where they hold none."""
        value = _parsed(data, "a list of keys", {"version", "root", "issued", "keys"}, {"expires"})
        issued = _day(value["issued"])
        if issued is None:
            raise TrustError("a list of keys has the day on which it was issued, not null")
        return cls(
            _number(value["version"], "a list's version"),
            _number(value["root"], "a list's root"),
            issued,
            _day(value.get("expires")),
            tuple(ListedKey.from_json(key) for key in listed(value["keys"], "keys", TRUST_KEYS)),
        )


def verifier(key: bytes, check: Check | None = None) -> Ed25519Verifier:
    """Return what checks signatures of a public key.

    Raises:
        TrustError: anybody could sign under it.
        MissingExtraError: there is no `check`, and `cryptography` is not installed.
    """
    try:
        return Ed25519Verifier(key, check)
    except SignatureError as error:
        raise TrustError(str(error)) from None


def key_id(key: bytes) -> str:
    """Return the id of a public key. Raises TrustError as `verifier` does."""
    return verifier(key, lambda *_: False).id  # with a check of its own it needs no package


def _parsed(data: bytes, what: str, required: set[str], optional: set[str] | None = None) -> dict[str, Any]:
    try:
        value = parse_json(data, limit=TRUST_BYTES)
    except ValueError as error:
        raise TrustError(f"{what} is no JSON: {error}") from None
    fields(value, what, required, optional or set())
    # One form alone, so that no two readers see two things in the same bytes, as where a name is there twice.
    if canonical(value) != data:
        raise TrustError(
            f"{what} is not written in the one form that is signed: keys in order, no white space"
        )
    found: dict[str, Any] = value
    return found


def _number(value: Any, what: str) -> int:
    if type(value) is not int or not 1 <= value <= TRUST_VERSION:
        raise TrustError(f"{what} is a number from 1 to {TRUST_VERSION}, not {value!r:.40}")
    return value


def _day(value: Any) -> date | None:
    if value is None:
        return None
    try:
        return date.fromisoformat(text(value, "a day such as 2026-11-26", _DAY))
    except ValueError as error:
        if isinstance(error, TrustError):
            raise
        raise TrustError(f"{value} is no day: {error}") from None
