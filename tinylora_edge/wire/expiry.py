"""Expiry: the last day on which a frame may be accepted, by the device's clock.

A day is a number from 0 to 65535, counted from 2026-01-01, in UTC.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import TypeAlias

from ..errors import ExpiredError, VectorError

FIRST = date(2026, 1, 1)
LAST = FIRST + timedelta(days=0xFFFF)

Clock: TypeAlias = date | Callable[[], date]
"""What says the day in UTC, or a day that it always is."""


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


def check(until: int, clock: Clock) -> None:
    """Check that a last day is not over.

    Raises:
        ExpiredError: it is.
        VectorError: the clock says a day that cannot be today's.
    """
    day = clock() if callable(clock) else clock
    try:
        today = day_number(day)
    except VectorError:
        raise VectorError(f"the device's clock says {day!s:.40}, which cannot be: set it") from None
    if today > until:
        raise ExpiredError(
            f"the frame may be accepted until {day_date(until)}, and today is {day_date(today)} (UTC): fetch "
            "a newer one"
        )
