"""Freshness: whether somebody with a trusted key has said lately which vector of a stream is the newest.

A server that is frozen, on purpose or not, goes on to show a vector that was the newest once. Its tag
verifies, and its sequence is not lower than the last one. Only a statement that ends shows the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ..errors import RollbackError, VectorError
from . import expiry, sequences, statements, tags


class Freshness:
    """The newest vector of one stream, as far as statements say it. What they said is kept with the marks.

    Args:
        keys: under which a statement may verify.
        clock: of the policy.
        kept: the marks of the policy.
        digest: of the basis, in hexadecimal.
        stream: name of the stream.
    """

    def __init__(
        self,
        keys: Sequence[tags.Verifier],
        clock: expiry.Clock,
        kept: sequences.SequenceLog,
        digest: str,
        stream: str,
    ) -> None:
        self._keys, self._clock, self._kept = keys, clock, kept
        self._digest, self._stream = digest, stream

    def due(self) -> bool:
        """Tell whether a statement is to be asked for: there are keys, and nothing that was said holds today.

        A device without a clock asks always. A statement says on which day it was made, and that is the
        only clock which such a device has.

        Raises:
            VectorError: the clock says a day that cannot be today's.
            OSError: the state file cannot be read.
        """
        newest, until = self._said()
        if not self._keys:
            return False
        return not self._clock.runs or newest == 0 or until < self._clock.today()

    def believe(self, data: bytes) -> statements.Latest:
        """Check a statement and keep what it says; with a state file, durably.

        Raises:
            VectorError: it does not verify, or is none; or as for `due`.
            OSError: the state file cannot be read or written.
        """
        said, key = statements.decode_latest(data, self._digest, self._stream, self._keys)
        self._clock.keep(max(said.issued, self._clock.today()))
        for what, number in (("newest", said.sequence), ("until", said.until)):
            mark = self._mark(what, key)
            if number > self._kept.highest(mark):
                with suppress(RollbackError):  # another process was told more meanwhile
                    self._kept.record(mark, number)
        return said

    def problem(self, sequence: int) -> str:
        """Return why a vector with this sequence may not be the newest; empty where it is.

        Raises:
            VectorError, OSError: as for `due`.
        """
        newest, until = self._said()
        if not self._keys:
            return "there is no key under which anybody could say so"
        if sequence < newest:
            return f"it has sequence {sequence}, and {newest} was published already"
        if newest == 0:
            return "no trusted key has ever said which vector is the newest"
        if until < self._clock.today():
            return f"no trusted key has said since {expiry.day_date(until)} which vector is the newest"
        return ""

    def _said(self) -> tuple[int, int]:
        """Return the highest sequence and the last day that were ever said under one of the keys."""
        newest, until = (
            max((self._kept.highest(self._mark(what, tags.key_id(key))) for key in self._keys), default=0)
            for what in ("newest", "until")
        )
        return newest, until

    def _mark(self, what: str, key: str) -> sequences.Source:
        # The digest has no space in it: these are no marks of vectors.
        return sequences.source(f"{self._digest} {what}", key, self._stream)


def believed(freshness: Freshness, data: bytes | None) -> str:
    """Believe a statement if it can be, and return why not; empty where it was. None is no statement.

    Raises:
        OSError: the state file cannot be read or written.
    """
    if data is None:
        return "the server has no statement of the newest vector"
    try:
        freshness.believe(data)
    except VectorError as error:
        return str(error)
    return ""
