"""What a policy asks of a bundle: who has to have signed it, and that it is not older than the last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TypeAlias

from ..errors import RollbackError, TrustError, VectorError
from ..limits import STREAM_CHARACTERS
from ..wire import expiry, sequences
from ..wire.tags import Ed25519Verifier
from .file import TrustFile

Refused: TypeAlias = Sequence[tuple[Ed25519Verifier, str]]
"""Keys that are listed and do not count, each with the reason."""


@dataclass(frozen=True)
class Signed:
    """What a signature says of a bundle.

    Attributes:
        key: id of the key that made it.
        name: of the bundle.
        sequence: rises with every bundle of this name; 0 where it has none.
        content: hash over the hashes of its files, in hexadecimal.
    """

    key: str
    name: str
    sequence: int
    content: str


@dataclass(frozen=True)
class Bundles:
    """The rules of a policy about bundles.

    A bundle has to be signed by one of the keys that were given, or by one that the trust file lists for
    bundles. Without any such key nothing is asked of it. The highest sequence of each (key, name) is kept
    beside those of vectors: a bundle with a lower one is refused, one without a sequence too, and another
    one with the same.

    Attributes:
        keys: that were given.
        trust: the list, or None.
        clock: of the policy.
        kept: the marks of the policy.
        state: path of its state file, or None.
    """

    keys: tuple[Ed25519Verifier, ...]
    trust: TrustFile | None
    clock: expiry.Clock
    kept: sequences.SequenceLog
    state: str | PathLike[str] | None

    def signers(self) -> tuple[list[Ed25519Verifier], Refused]:
        """Return the keys of which one has to have signed a bundle, and listed ones that do not count.

        No key at all is no demand.

        Raises:
            TrustError: keys are listed for bundles, and none of them counts today, or the list is past its
                day; or the trust file was changed to what may not follow.
            VectorError: the device's clock says a day that cannot be today's.
            OSError: a file cannot be read.
        """
        if self.trust is None or not any(key.bundles for key in self.trust.trust.keys.keys):
            return list(self.keys), []
        accepted, refused = self.trust.bundle_keys(expiry.day_date(self.clock.today()))
        keys = [*self.keys, *accepted]
        if refused and not keys:
            why = "; ".join(f"{key.id}: {reason}" for key, reason in refused)
            raise TrustError(
                f"no key counts that may sign bundles: {why}. Fetch a newer list (fetch --trust)"
            )
        return keys, refused

    def check(self, signed: Signed) -> None:
        """Check that a bundle may be loaded after the last one of its name.

        Raises:
            TrustError: it is older, another one with the same sequence, or has a name too long to be kept.
            VectorError, OSError: the state file cannot be read.
        """
        try:
            self.kept.check(self._mark(signed), signed.sequence, signed.content[:32])
        except RollbackError:
            raise self._older(signed) from None

    def record(self, signed: Signed) -> None:
        """Remember that a bundle was loaded; with a state file, durably.

        Raises:
            TrustError: another process loaded a later one meanwhile.
            VectorError, OSError: the state file cannot be read or written.
        """
        if self.trust is not None:
            self.clock.keep()
        if not signed.sequence:
            return
        try:
            self.kept.record(self._mark(signed), signed.sequence, signed.content[:32])
        except RollbackError:
            raise self._older(signed) from None

    def _older(self, signed: Signed) -> TrustError:
        highest = self.kept.highest(self._mark(signed))
        of = f"of {signed.name[:60]!r} under key {signed.key}"
        if signed.sequence == highest:
            return TrustError(
                f"another bundle {of} with sequence {highest} was loaded before: a sequence is used once, so "
                "sign it with a higher one (tinylora-edge sign --sequence)"
            )
        has = f"sequence {signed.sequence}" if signed.sequence else "no sequence"
        return TrustError(
            f"the bundle has {has}, but {highest} was already loaded {of}: an older bundle is not used again"
        )

    def _mark(self, signed: Signed) -> sequences.Source:
        if len(signed.name) > STREAM_CHARACTERS:
            raise TrustError(
                f"the bundle's name {signed.name[:40]!r}... has {len(signed.name)} characters, and at most "
                f"{STREAM_CHARACTERS} are kept: its owner signs it with a shorter one (sign --name)"
            )
        # A digest has 64 digits: this is no mark of a vector.
        return sequences.source("bundle", signed.key, signed.name)


def public_keys(keys: Sequence[Ed25519Verifier]) -> tuple[Ed25519Verifier, ...]:
    """Return the keys that may have signed a bundle.

    Raises:
        VectorError: they are something else than public keys.
    """
    for key in [keys] if isinstance(keys, str | bytes) else keys:
        if not isinstance(key, Ed25519Verifier):
            raise VectorError(
                f"bundle_keys=[...] takes public keys, not {type(key).__name__}: make them with "
                "Ed25519Verifier.from_pem(text)"
            )
    return tuple(keys)
