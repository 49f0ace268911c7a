"""What the tests of trust share: owners with root keys, keys that they list, and days."""

from __future__ import annotations

from datetime import date

from tinylora_edge import Ed25519Signer, Ed25519Verifier
from tinylora_edge.trust import ListedKey, Trust, editor

ALICE, BOB, CAROL, FLEET, SPARE, STRANGER = (Ed25519Signer(bytes([n]) * 32) for n in range(1, 7))
DAY = date(2026, 3, 1)


def verifier(signer: Ed25519Signer) -> Ed25519Verifier:
    return Ed25519Verifier(signer.public_key)


def begun(*owners: Ed25519Signer, threshold: int = 1) -> Trust:
    """A trust file of these owners, signed by all of them, with no key on its list."""
    owners = owners or (ALICE,)
    return editor.begin([owner.public_key for owner in owners], threshold, owners, DAY)


def listing(trust: Trust, signer: Ed25519Signer = FLEET, *, by=(ALICE,), day: date = DAY, **about) -> Trust:
    """The same with a key on its list; `about` goes to `ListedKey`."""
    expires = about.pop("expires", None)
    key = ListedKey(signer.public_key, about.pop("streams", ("*",)), **about)
    return editor.add(trust, key, by, day, expires)


def rotated(trust: Trust, *owners: Ed25519Signer, by=(ALICE,), threshold: int = 1) -> Trust:
    """The same with a root of other owners, signed by `by` and by them."""
    keys = [owner.public_key for owner in owners]
    return editor.rotate(trust, keys, threshold, [*by, *owners], DAY)
