"""What the tests of the ledger have in common: keys, claims of one line, and steps that must succeed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from conftest import ManualClock
from stigg_guard.amounts import quanta, units
from stigg_guard.clock import microseconds
from stigg_guard.ledger import (
    Acknowledged,
    Batch,
    Claim,
    Event,
    Hold,
    Ledger,
    LimitExceeded,
    News,
    Period,
    Ticket,
    UsageKey,
    Use,
)

KEY = UsageKey("ann", "", "templates")
OTHER = UsageKey("ann", "site-01", "templates")
THIRD = UsageKey("ann", "site-02", "templates")
LEASE = 30.0
WAIT = 30.0
NOTHING = {"held": 0, "unsent": 0, "sending": 0, "uncertain": 0, "waiting": 0, "dead": 0, "late": 0}
SECOND = 1_000_000_000
FIRST = Ticket(1, 0)
NO_TICKET = Ticket(0, 0)
NO_PERIOD = Period()


class Make(Protocol):
    """Opens the ledger at a URL, on the clock of the test."""

    def __call__(self, url: str, settle_grace: float = 0) -> Ledger: ...


def claim(
    amount: float = 1,
    limit: float | None = 10,
    used: float = 3,
    period: Period = NO_PERIOD,
    ticket: Ticket = FIRST,
    key: UsageKey = KEY,
) -> Claim:
    """``limit`` -1 allows nothing."""
    return Claim(key, amount, News(period, quanta(used), None if limit is None else quanta(limit), *ticket))


def held(ledger: Ledger, *wishes: Claim, ttl: float = 60) -> Hold:
    answer = ledger.hold(wishes, ttl)
    assert isinstance(answer, Hold), answer
    return answer


def told(ledger: Ledger, *wishes: Claim) -> None:
    """The ledger hears of the claims' news; nothing is held."""
    answer = ledger.hold([wish._replace(amount=0) for wish in wishes], 60)
    if isinstance(answer, Hold):
        ledger.release(answer)


def commit(ledger: Ledger, hold: Hold, amount: float | None = None) -> float:
    """Commits a hold of one claim, all of it or ``amount``; the usage of its key."""
    (wish,) = hold.claims
    (usage,) = ledger.commit(hold, [Use(wish.key, wish.amount if amount is None else amount)])
    return usage


def counted(ledger: Ledger, wish: Claim) -> float:
    """What counts against the limit, told by a claim that no limit has room for."""
    answer = ledger.hold([wish._replace(amount=8e9)], 60)
    assert isinstance(answer, LimitExceeded)
    return answer.counted


def counts(ledger: Ledger, key: UsageKey = KEY) -> float:
    """What counts against the limit of a key that the ledger knows; it hears no news."""
    return counted(ledger, claim(used=0, ticket=NO_TICKET, key=key))


def used(ledger: Ledger, key: UsageKey = KEY) -> float:
    """The usage that the ledger believes, without what is on its way."""
    row = ledger.known(key)
    assert row is not None
    return units(row.used)


def taken(ledger: Ledger, size: int = 100) -> Batch:
    batch = ledger.take_batch(size, LEASE)
    assert batch is not None
    return batch


def said(batch: Batch) -> Batch:
    """The batch as it is sent, however often."""
    return Batch(batch.id, [replace(report, attempts=0) for report in batch.reports])


def amounts(batch: Batch) -> list[float]:
    return [report.amount for report in batch.reports]


def answers(batch: Batch, current: float | None, period: Period = NO_PERIOD) -> list[Acknowledged]:
    return [Acknowledged(report, current, period) for report in batch.reports]


def settle(ledger: Ledger, current: float | None, period: Period = NO_PERIOD) -> None:
    """Reports the next batch, and the sidecar answers so."""
    ledger.acknowledge(answers(taken(ledger), current, period))


def login(number: int = 1) -> Event:
    return Event("login", f"login-{number}", {"user": "u-1", "seconds": 1.5, "first": True})


def use_each(ledger: Ledger, uses: Sequence[Use]) -> None:
    for use in uses:
        ledger.record(use)


def instant(clock: ManualClock, seconds: float = 0) -> int:
    """So many seconds from now, in nanoseconds since the epoch."""
    return microseconds(clock.now()) * 1000 + round(seconds * SECOND)


def period(clock: ManualClock, begins: float | None = None, ends: float | None = None) -> Period:
    """The period between two times, in seconds from now."""
    return Period(
        None if begins is None else instant(clock, begins),
        None if ends is None else instant(clock, ends),
    )
