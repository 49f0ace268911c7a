"""The rules by which a device believes a list of keys, and another one after it. No I/O happens here.

A trust file is JSON:

    {"keys": <envelope of the list>, "roots": [<envelope of root 1>, <of root 2>, ...], "trust": 1}

The rules, in the order in which they are checked; the first that fails raises `TrustError`, and nothing
changes:

1. The file has at most `limits.TRUST_BYTES` bytes and the fields above, and every payload is written in its
   one form.
2. The roots have the versions 1, 2, 3, ...
3. Root 1 is signed by its own threshold of its own keys. It is what a device trusts from the start.
4. Root N + 1 is signed by the threshold of root N, and by its own. A device that was offline for several
   rotations walks from the root that it has to the last one.
5. The list names the last root, and is signed by its threshold.
6. Another file may follow this one if its roots begin with the roots of this one, byte for byte, and
7. its list is not older: of a higher root, or of the same root and a version that is not lower. With the same
   version it is the same list, byte for byte.

A list of a higher root counts as newer whatever its version is: whoever stole a root and signed the highest
version that there is locks nobody out for longer than until the next root.

Which key may sign a vector:

8. It is on the list, and not revoked.
9. One of its patterns matches the stream.
10. Today is not before its first day, and not after its last one.
11. Today is not after the list's last day, if it has one.

Which key may sign a bundle: one that is listed for bundles, by rules 8, 10 and 11. And

12. where any key is listed for bundles, one of them has to have signed whatever bundle is loaded. It does not
    matter whether that key still counts: a revocation must not open the door.

Today is what the device says, and never before the day on which the list was issued; a device that has no
clock goes by that day alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

from ..documents import parse_json
from ..errors import TrustError
from ..limits import ROOTS, TRUST_BYTES
from ..wire.tags import Ed25519Verifier
from .envelope import Envelope, canonical, fields, listed
from .records import LIST_TYPE, ROOT_TYPE, Check, KeyList, ListedKey, Root, verifier

FORMAT = 1


@dataclass(frozen=True, repr=False)
class Trust:
    """A trust file that was verified: what this device believes about keys.

    Attributes:
        root: the last one of the chain.
        keys: the list that it signed.
        roots: envelopes of all roots, from the first.
        envelope: of the list.
    """

    root: Root
    keys: KeyList
    roots: tuple[Envelope, ...]
    envelope: Envelope
    _check: Check | None = None

    def __repr__(self) -> str:
        return f"Trust(root {self.root.version}, list {self.keys.version}, {len(self.keys.keys)} keys)"

    @classmethod
    def read(cls, data: bytes, check: Check | None = None, *, unfinished: bool = False) -> Trust:
        """Return what a trust file says, if rules 1 to 5 allow it.

        Args:
            data: the bytes of the file.
            check: the device's own Ed25519; by default the `cryptography` package.
            unfinished: let the last root and the list lack signatures, for those who are to sign them.

        Raises:
            TrustError: a rule is broken.
            MissingExtraError: there is no `check`, and `cryptography` is not installed.
        """
        envelopes, last = _opened(data)
        roots: list[Root] = []
        for position, envelope in enumerate(envelopes):
            root = Root.from_bytes(envelope.payload)
            if root.version != position + 1:
                raise TrustError(f"root {position + 1} of the chain says that it has version {root.version}")
            open_end = unfinished and position == len(envelopes) - 1
            for signer in (*roots[-1:], root):
                _require(envelope, signer, f"root {root.version}", check, unfinished=open_end)
            roots.append(root)
        root, keys = roots[-1], KeyList.from_bytes(last.payload)
        if keys.root != root.version:
            raise TrustError(
                f"the list of keys is of root {keys.root}, but the last root has version {root.version}"
            )
        _require(last, root, f"the list of keys, version {keys.version},", check, unfinished=unfinished)
        return cls(root, keys, tuple(envelopes), last, check)

    def to_bytes(self) -> bytes:
        """Return the bytes of the file."""
        roots = [envelope.to_json() for envelope in self.roots]
        return canonical({"trust": FORMAT, "roots": roots, "keys": self.envelope.to_json()}) + b"\n"

    def updated(self, data: bytes) -> Trust:
        """Return what another trust file says, if it may follow this one.

        Raises:
            TrustError: a rule is broken; the message says which.
        """
        new = Trust.read(data, self._check)
        for mine, theirs in zip(self.roots, new.roots, strict=False):
            if mine.payload != theirs.payload:
                raise TrustError(
                    f"it has another root {Root.from_bytes(mine.payload).version} than the one that is "
                    "trusted here: it is of other owners, or forged"
                )
        have, found = _order(self), _order(new)
        if len(new.roots) < len(self.roots) or found < have:
            raise TrustError(
                f"its list is {found[1]} of root {found[0]}, but list {have[1]} of root {have[0]} was "
                "already accepted: an older one is not believed again"
            )
        if found == have and new.envelope.payload != self.envelope.payload:
            raise TrustError(
                f"it is another list {found[1]} of root {found[0]} than the one that was accepted: a version "
                "is used once"
            )
        return new

    def today(self, day: date | None) -> date:
        """Return the day to go by: what the device says, and never one before the list was issued."""
        return self.keys.issued if day is None else max(day, self.keys.issued)

    def accepted(self, stream: str, day: date | None) -> list[Ed25519Verifier]:
        """Return what checks signatures of the keys that may sign vectors of a stream today, newest first.

        Raises:
            TrustError: the list itself is past its day (rule 11).
        """
        self.check_age(day)
        return [made for key, made in self._verifiers[::-1] if self.why_not(key, stream, day) is None]

    def refused(self, stream: str, day: date | None) -> list[tuple[Ed25519Verifier, str]]:
        """Return the other keys that are listed, and for each why it may not sign now."""
        reasons = [(made, self.why_not(key, stream, day)) for key, made in self._verifiers]
        return [(made, why) for made, why in reasons if why is not None]

    def why_not(self, key: ListedKey, stream: str, day: date | None) -> str | None:
        """Return which of rules 8 to 10 keeps a key from signing vectors of a stream today, or None."""
        if key.revoked is None and not key.is_for(stream):
            signs = f"for {', '.join(key.streams)[:60]}" if key.streams else "bundles alone"
            return f"it signs {signs}, and not for stream {stream or 'default'!r}"
        return self._why_not_today(key, day)

    def bundle_keys(
        self, day: date | None
    ) -> tuple[list[Ed25519Verifier], list[tuple[Ed25519Verifier, str]]]:
        """Return what checks signatures of bundles today, and the other keys, each with why it does not.

        Both are empty where the list has no key of bundles: then it asks for no signature (rule 12).

        Raises:
            TrustError: the list is past its day (rule 11), and has such a key.
        """
        listed = [(key, made) for key, made in self._verifiers if key.bundles]
        if not listed:
            return [], []
        self.check_age(day)
        reasons = [
            (made, self._why_not_today(key, day) if key.bundles else "it signs no bundles")
            for key, made in self._verifiers
        ]
        return (
            [made for made, why in reasons if why is None],
            [(made, why) for made, why in reasons if why is not None],
        )

    def _why_not_today(self, key: ListedKey, day: date | None) -> str | None:
        """Return which of rules 8 and 10 a key breaks, or None."""
        today = self.today(day)
        if key.revoked is not None:
            return f"it was revoked on {key.revoked}"
        if key.first is not None and today < key.first:
            return f"it counts from {key.first} on, and today is {today}"
        if key.last is not None and today > key.last:
            return f"its last day was {key.last}, and today is {today}"
        return None

    def check_age(self, day: date | None) -> None:
        """Check that the list is not past its day. Raises TrustError where it is."""
        today = self.today(day)
        if self.keys.expires is not None and today > self.keys.expires:
            raise TrustError(
                f"the list of keys was to be believed until {self.keys.expires}, and today is {today}: "
                "fetch a newer one (fetch --trust)"
            )

    @cached_property
    def _verifiers(self) -> list[tuple[ListedKey, Ed25519Verifier]]:
        return [(key, verifier(key.key, self._check)) for key in self.keys.keys]


def signatures(envelope: Envelope, root: Root, check: Check | None = None) -> int:
    """Return how many of a root's keys have signed an envelope."""
    return len(envelope.signers(root.verifiers(check)))


def _opened(data: bytes) -> tuple[list[Envelope], Envelope]:
    """Return the envelopes of a trust file: of its roots, and of its list."""
    try:
        value: Any = parse_json(data, limit=TRUST_BYTES)
    except ValueError as error:
        raise TrustError(f"it is no trust file: {error}") from None
    if isinstance(value, dict) and value.get("trust", FORMAT) != FORMAT:
        raise TrustError(
            f"it has format {value['trust']!r:.20}, and this release reads format {FORMAT}: update it"
        )
    fields(value, "a trust file", {"trust", "roots", "keys"})
    roots = [Envelope.from_json(item) for item in listed(value["roots"], "roots", ROOTS, 1)]
    last = Envelope.from_json(value["keys"])
    for envelope, kind in (*((root, ROOT_TYPE) for root in roots), (last, LIST_TYPE)):
        if envelope.kind != kind:
            raise TrustError(f"it has a payload of type {envelope.kind!r} where {kind!r} should be")
    return roots, last


def _require(envelope: Envelope, root: Root, what: str, check: Check | None, *, unfinished: bool) -> None:
    found = signatures(envelope, root, check)
    if found < root.threshold and not unfinished:
        raise TrustError(
            f"{what} is signed by {found} of the keys of root {root.version}, which asks for {root.threshold}"
        )


def _order(trust: Trust) -> tuple[int, int]:
    return trust.root.version, trust.keys.version
