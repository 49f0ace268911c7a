"""Days: the last one on which a frame may be accepted, and which one a device takes for today.

A day is a number from 0 to 65535, counted from 2026-01-01, in UTC. A clock may be set back, by an empty
battery or by somebody. So the highest day that a policy has seen is kept with its sequences, and no day
before it is believed again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import TypeAlias

from ..errors import ExpiredError, RollbackError, VectorError
from .sequences import SequenceLog

FIRST = date(2026, 1, 1)
LAST = FIRST + timedelta(days=0xFFFF)

Today: TypeAlias = date | Callable[[], date] | None
"""The clock of a device: what says the day in UTC, a day that it was told, or None where there is none."""

_SEEN = ("", "", "day")  # the source of no vector


def utc_today() -> date:
    """Return the day that the system's clock says."""
    return datetime.now(UTC).date()


def day_number(day: date) -> int:
    """Return the number of a day; VectorError where no frame can name it."""
    plain = day.date() if isinstance(day, datetime) else day
    if not isinstance(plain, date) or not FIRST <= plain <= LAST:
        raise VectorError(f"the day {plain!s:.40} cannot be written: it must be from {FIRST} to {LAST}")
    return (plain - FIRST).days


def day_date(day: int) -> date:
    """Return the day of a number from 0 to 65535."""
    return FIRST + timedelta(days=day)


class Clock:
    """The day as a policy knows it: what the device's clock says, and never before the highest day kept.

    Raises:
        VectorError: the source is no clock.
    """

    def __init__(self, source: Today, kept: SequenceLog) -> None:
        if source is not None and not isinstance(source, date) and not callable(source):
            raise VectorError(
                f"today={source!r:.40} is no clock: pass a date, what returns one, or None where "
                "the device has none"
            )
        self._source, self._kept = source, kept
        self._seen = 0

    def today(self) -> int:
        """Return the number of the day. Without a clock it is the highest one seen, 0 where there is none.

        Raises:
            VectorError: the clock says a day that cannot be today's.
            OSError: the state file cannot be read.
        """
        if self._source is not None:
            day = self._source if isinstance(self._source, date) else self._source()
            try:
                self._seen = max(self._seen, day_number(day))
            except VectorError:
                raise VectorError(
                    f"the device's clock says {day!s:.40}, which cannot be: set it, or say that there is "
                    "none with Policy(today=None)"
                ) from None
        return max(self._seen, self._kept.highest(_SEEN))

    def check(self, until: int) -> None:
        """Check that a last day is not over.

        Raises:
            ExpiredError: it is. The day of today is kept then too, where it can be.
            VectorError, OSError: as for `today`.
        """
        today = self.today()
        if today > until:
            with suppress(OSError):  # the refusal stands
                self.keep()
            raise ExpiredError(
                f"the frame may be accepted until {day_date(until)}, and today is {day_date(today)} (UTC, or "
                "the latest day that this device has seen): fetch a newer one"
            )

    def keep(self) -> None:
        """Keep today as seen, durably where sequences are. Errors: those of `today` and `record`."""
        day = self.today()
        with suppress(RollbackError):  # another process saw a later one meanwhile
            self._kept.record(_SEEN, day)
