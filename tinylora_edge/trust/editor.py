"""The owner's side of a trust file: begin it, list and revoke keys, go on to another root, sign.

Every function takes a file that is whole or waits for signatures, and returns a new one. With a threshold
over 1 it may lack signatures then: the other owners add theirs with `sign`, each on a machine of his own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from ..errors import TrustError
from ..wire.tags import Ed25519Signer
from .chain import Trust
from .envelope import Envelope
from .records import LIST_TYPE, ROOT_TYPE, KeyList, ListedKey, Root, key_id


def begin(keys: Iterable[bytes], threshold: int, signers: Sequence[Ed25519Signer], today: date) -> Trust:
    """Return a trust file with root 1 and a list without keys.

    Args:
        keys: public keys of the root, 32 bytes each.
        threshold: how many of them have to sign.
        signers: of those whose private half is here.
        today: the day that the list is issued on.

    Raises:
        TrustError: a threshold that cannot be reached, a key that is none, or a signer of no key of the root.
    """
    root = Root(1, threshold, tuple(sorted(set(keys))))
    _check_signers(signers, root)
    return _made([_enveloped(root, signers)], root, KeyList(1, 1, today), signers)


def add(
    trust: Trust, key: ListedKey, signers: Sequence[Ed25519Signer], today: date, expires: date | None = None
) -> Trust:
    """Return the file with a key added, or in the place of one that is there: with all that it says.

    Args:
        trust: the file.
        key: to list.
        signers: of the root.
        today: the day that the new list is issued on.
        expires: last day of the list; None leaves the one that it has.

    Raises:
        TrustError: the key was revoked, or a signer is not of the root.
    """
    known = {item.key: item for item in trust.keys.keys}
    key_id(key.key)  # a weak one is refused before anything is signed
    if (before := known.get(key.key)) is not None and before.revoked is not None:
        raise TrustError(f"{key.id} was revoked on {before.revoked}: make a new key, which it never is again")
    return _next(trust, tuple((known | {key.key: key}).values()), signers, today, expires)


def revoke(
    trust: Trust, key: str, signers: Sequence[Ed25519Signer], today: date, expires: date | None = None
) -> Trust:
    """Return the file with a key revoked.

    Args:
        trust: the file.
        key: id of the key.
        signers: of the root.
        today: the day of the revocation, and of the new list.
        expires: last day of the list; None leaves the one that it has.

    Raises:
        TrustError: there is no such key, or a signer is not of the root.
    """
    if key not in {item.id for item in trust.keys.keys}:
        listed = ", ".join(item.id for item in trust.keys.keys) or "no key"
        raise TrustError(f"{key} is not on the list, which has {listed}")
    keys = tuple(
        replace(item, revoked=item.revoked or today) if item.id == key else item for item in trust.keys.keys
    )
    return _next(trust, keys, signers, today, expires)


def rotate(
    trust: Trust,
    keys: Iterable[bytes],
    threshold: int | None,
    signers: Sequence[Ed25519Signer],
    today: date,
    expires: date | None = None,
) -> Trust:
    """Return the file with another root, which signs the same keys.

    Args:
        trust: the file.
        keys: public keys of the new root.
        threshold: how many of them have to sign; None: as many as of the root so far.
        signers: of the root so far, and of the new one: both have to sign it.
        today: the day that the new list is issued on.
        expires: last day of the list; None leaves the one that it has.

    Raises:
        TrustError: a threshold that cannot be reached, or a signer of neither root.
    """
    threshold = trust.root.threshold if threshold is None else threshold
    root = Root(trust.root.version + 1, threshold, tuple(sorted(set(keys))))
    _check_signers(signers, trust.root, root)
    envelope = _enveloped(root, signers)
    listed = _following(trust, today, expires, root=root.version)
    return _made([*trust.roots, envelope], root, listed, [one for one in signers if _is_of(one, root)])


def sign(trust: Trust, signers: Sequence[Ed25519Signer]) -> Trust:
    """Return the file with further signatures on the last root and on the list.

    Raises:
        TrustError: a signer is not of the last two roots.
    """
    before = Root.from_bytes(trust.roots[-2].payload) if len(trust.roots) > 1 else trust.root
    _check_signers(signers, before, trust.root)
    of_root = [one for one in signers if _is_of(one, trust.root)]
    return replace(
        trust,
        roots=(*trust.roots[:-1], trust.roots[-1].signed(signers)),
        envelope=trust.envelope.signed(of_root),
    )


def _next(
    trust: Trust,
    keys: tuple[ListedKey, ...],
    signers: Sequence[Ed25519Signer],
    today: date,
    expires: date | None,
) -> Trust:
    _check_signers(signers, trust.root)
    listed = _following(trust, today, expires, keys=keys)
    return _made(list(trust.roots), trust.root, listed, signers)


def _made(roots: list[Envelope], root: Root, listed: KeyList, signers: Sequence[Ed25519Signer]) -> Trust:
    envelope = Envelope(LIST_TYPE, listed.to_bytes()).signed(signers)
    made = Trust(root, listed, tuple(roots), envelope)
    return Trust.read(made.to_bytes(), unfinished=True)  # what is written is what is read, within its limits


def _enveloped(root: Root, signers: Sequence[Ed25519Signer]) -> Envelope:
    root.verifiers()  # weak keys are refused before anything is signed
    return Envelope(ROOT_TYPE, root.to_bytes()).signed(signers)


def _following(trust: Trust, today: date, expires: date | None, **changes: Any) -> KeyList:
    """Return the list after the one that a file has."""
    issued = max(today, trust.keys.issued)  # devices take it for a day that has been
    expires = expires or trust.keys.expires
    if expires is not None and expires < issued:
        raise TrustError(
            f"the list would expire on {expires}, and today is {issued}: name a later day (--expires)"
        )
    return replace(trust.keys, version=trust.keys.version + 1, issued=issued, expires=expires, **changes)


def _is_of(signer: Ed25519Signer, root: Root) -> bool:
    return signer.public_key in root.keys


def _check_signers(signers: Sequence[Ed25519Signer], *roots: Root) -> None:
    for signer in signers:
        if not any(_is_of(signer, root) for root in roots):
            has = ", ".join(key_id(key) for key in roots[-1].keys)
            raise TrustError(f"{signer.id} is no key of root {roots[-1].version}, which has {has}")
