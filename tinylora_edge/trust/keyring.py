"""The keys that a device trusts: whose tags count, for which stream, and on which day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from ..errors import SignatureError
from ..wire import expiry, frame, tags
from .file import TrustFile


class Keyring:
    """The keys that a policy was given, and those that its trust file lists.

    A listed key counts for its streams and its days. The day is the policy's, which never falls behind the
    highest one seen. MAC keys are no matter of the list.

    Args:
        keys: that were given, for every stream and day.
        trust: the list, or None.
        clock: of the policy.

    Raises:
        VectorError: something else than verifiers is among the keys.
    """

    def __init__(self, keys: Sequence[tags.Verifier], trust: TrustFile | None, clock: expiry.Clock) -> None:
        tags.check_verifiers(keys)
        self._keys, self._trust, self._clock = tuple(keys), trust, clock

    def __repr__(self) -> str:
        keys = f"keys=[{', '.join(map(tags.key_id, self._keys))}]"
        return keys if self._trust is None else f"{keys}, trust={self._trust!r}"

    def __getstate__(self) -> dict[str, Any]:
        # A pickle goes anywhere, and a MAC key is a secret. What comes out of it refuses what needs a key.
        return {**vars(self), "_keys": ()}

    @property
    def listed(self) -> bool:
        """Whether there is a list, and with it a day that matters."""
        return self._trust is not None

    @property
    def kinds(self) -> list[int]:
        """The kinds of tags that may be checked."""
        return [*(key.kind for key in self._keys), *((tags.ED25519,) if self.listed else ())]

    def verifiers(self, kind: int, stream: str) -> list[tags.Verifier]:
        """Return the keys of which one has to verify a tag of a kind.

        Raises:
            SignatureError: the list is past its day.
            VectorError: the device's clock says a day that cannot be today's.
            OSError, TrustError: the trust file was changed to what cannot be read, or may not follow.
        """
        if self._trust is None or kind != tags.ED25519:
            return list(self._keys)
        return [*self._keys, *self._trust.verifiers(stream, self._day())]

    def verified_by(self, received: frame.Frame, digest: bytes, stream: str) -> str:
        """Return the id of the key under which a frame's tag verifies; empty for a checksum or no tag.

        Args:
            received: the frame, or a raw payload.
            digest: of the basis, 32 bytes.
            stream: that it is taken for.

        Raises:
            ChecksumError: the checksum is another one.
            SignatureError: no trusted key made the tag; where a listed one did that does not count, why not.
            VectorError, OSError, TrustError: as for `verifiers`.
        """
        if received.kind is None:
            return ""
        keys = self.verifiers(received.kind, stream)
        try:
            return frame.check_tag(received, stream, digest, keys)
        except SignatureError:
            if self._trust is not None and received.kind == tags.ED25519:
                message = frame.message(received.version, stream, digest, received.body)
                self._trust.explain(stream, message, received.tag, self._day())
            raise

    def _day(self) -> date:
        return expiry.day_date(self._clock.today())
