"""Usage periods: windows in which usage counts, one after the other from an anchor, in UTC."""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

DEFAULT_ANCHOR = datetime(2001, 1, 1, tzinfo=timezone.utc)
"""Where periods count from when nothing else is said: midnight, a Monday, the first of a month and of a year."""

_FIXED = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}
_MONTHS = {"month": 1, "year": 12}

RESETS = (*_FIXED, *_MONTHS)
"""The names of the reset periods."""


@dataclass(frozen=True, slots=True)
class Period:
    """One window of usage: from ``start`` (within) to ``end`` (outside); ``reset`` is one of ``RESETS``."""

    reset: str
    anchor: datetime
    start: datetime
    end: datetime

    def __contains__(self, instant: datetime) -> bool:
        return self.start <= instant < self.end


def period_at(instant: datetime, reset: str, anchor: datetime) -> Period:
    """The period that contains ``instant``; both datetimes are aware and in UTC, the anchor may lie in the future.

    Months and years start on the anchor's day, or on the last day of a month that is too short for it: from 31 January
    to 28 February to 31 March. Every start is counted from the anchor, so a short month does not shift later ones.
    """
    if step := _FIXED.get(reset):
        start = anchor + (instant - anchor) // step * step
        return Period(reset, anchor, start, start + step)
    length = _MONTHS[reset]
    passed = ((instant.year - anchor.year) * 12 + instant.month - anchor.month) // length * length
    # A calendar month is shared by two periods: the anchor's day and time of day say which of them holds the instant.
    if instant < months_after(anchor, passed):
        passed -= length
    return Period(reset, anchor, months_after(anchor, passed), months_after(anchor, passed + length))


def months_after(anchor: datetime, months: int) -> datetime:
    years, month = divmod(anchor.month - 1 + months, 12)
    year = anchor.year + years
    last_day = calendar.monthrange(year, month + 1)[1]
    return anchor.replace(year=year, month=month + 1, day=min(anchor.day, last_day))
