"""The one source of time: durations from a monotonic clock, instants from the wall clock, both replaceable."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone


def utc_now() -> datetime:
    """The present instant, aware, in UTC."""
    return datetime.now(timezone.utc)


@dataclass(frozen=True, slots=True)
class Clock:
    """``monotonic()`` in seconds from any origin; ``now()`` an aware datetime in UTC."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = utc_now


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(instant: datetime) -> int:
    """An instant as whole microseconds since the epoch."""
    return (instant - _EPOCH) // _MICROSECOND
