"""The windows in which usage counts."""

from __future__ import annotations

from bisect import bisect_right
from datetime import datetime, timedelta, timezone

import pytest
from dateutil.relativedelta import relativedelta
from hypothesis import given, settings
from hypothesis import strategies as st

from stigg_guard.sidecar.periods import DEFAULT_ANCHOR, RESETS, period_at

INSTANTS = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(timezone.utc))
TWENTY_YEARS = timedelta(days=20 * 365 + 5)
PERIODS = {"hour": 175_500, "day": 7_400, "week": 1_100, "month": 250, "year": 25}
"""More than pass in that time."""


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("reset", "anchor", "instant", "start", "end"),
    [
        ("hour", "2023-07-21T00:30", "2024-01-01T10:29:59", "2024-01-01T09:30", "2024-01-01T10:30"),
        ("day", "2023-07-21T06:00", "2024-02-29T05:59", "2024-02-28T06:00", "2024-02-29T06:00"),
        ("week", "2023-07-21", "2023-07-28", "2023-07-28", "2023-08-04"),
        ("month", "2023-07-21", "2023-08-20T23:59:59", "2023-07-21", "2023-08-21"),
        ("month", "2023-07-21", "2023-08-21", "2023-08-21", "2023-09-21"),
        ("month", "2023-01-31", "2023-02-27", "2023-01-31", "2023-02-28"),
        ("month", "2023-01-31", "2023-02-28", "2023-02-28", "2023-03-31"),
        ("month", "2023-01-31", "2024-02-29T12:00", "2024-02-29", "2024-03-31"),
        ("month", "2023-01-31", "2023-04-30", "2023-04-30", "2023-05-31"),
        ("month", "2030-05-15", "2024-01-10", "2023-12-15", "2024-01-15"),
        ("year", "2024-02-29", "2025-02-28", "2025-02-28", "2026-02-28"),
        ("year", "2024-02-29", "2028-02-28", "2027-02-28", "2028-02-29"),
        ("year", "2023-07-21", "2024-07-20", "2023-07-21", "2024-07-21"),
    ],
)
def test_window_of_an_anchor(reset, anchor, instant, start, end):
    period = period_at(utc(instant), reset, utc(anchor))
    assert (period.start, period.end) == (utc(start), utc(end))


@given(instant=INSTANTS, anchor=INSTANTS, reset=st.sampled_from(RESETS))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_every_instant_lies_in_exactly_one_window_and_windows_meet(instant, anchor, reset):
    period = period_at(instant, reset, anchor)
    assert instant in period
    assert period.end not in period
    assert period_at(period.start, reset, anchor) == period
    assert period_at(period.end, reset, anchor).start == period.end
    assert period_at(period.start - timedelta(microseconds=1), reset, anchor).end == period.start


@given(
    anchor=st.datetimes(datetime(2000, 1, 1), datetime(2060, 1, 1), timezones=st.just(timezone.utc)),
    reset=st.sampled_from(RESETS),
    passed=st.timedeltas(-TWENTY_YEARS, TWENTY_YEARS),
)
@settings(derandomize=True, deadline=None, max_examples=500)
def test_windows_of_twenty_years_are_those_of_dateutil(anchor, reset, passed):
    instant = anchor + passed

    def start(number: int) -> datetime:
        return anchor + relativedelta(**{f"{reset}s": number})

    numbers = range(-PERIODS[reset], PERIODS[reset] + 1)
    last = numbers[bisect_right(numbers, instant, key=start) - 1]
    period = period_at(instant, reset, anchor)
    assert (period.start, period.end) == (start(last), start(last + 1))


@pytest.mark.parametrize("reset", RESETS)
def test_default_anchor_gives_calendar_windows(reset):
    start = period_at(utc("2026-11-20T11:07:30"), reset, DEFAULT_ANCHOR).start
    expected = {
        "hour": utc("2026-11-20T11:00"),
        "day": utc("2026-11-20"),
        "week": utc("2026-11-16"),
        "month": utc("2026-11-01"),
        "year": utc("2026-01-01"),
    }
    assert start == expected[reset]
