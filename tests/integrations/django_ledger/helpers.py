"""What tests do with a ledger in a database."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
from django.db import connections

from stigg_guard.amounts import quanta_allowed
from stigg_guard.django.ledger.ledger import DjangoLedger
from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger import Claim, Hold, News, Period, State, UsageKey, Use

KEY = UsageKey("ann", "", "templates")
LEASE = 30.0
WAIT = 20.0
NOTHING = {"held": 0, "unsent": 0, "sending": 0, "uncertain": 0, "waiting": 0, "dead": 0, "late": 0}
Answer = TypeVar("Answer")
Open = Callable[[str], DjangoLedger]


class WorkFailed(Exception):
    """What rolls a block back."""


def claim(amount: float = 1, limit: float | None = 10) -> Claim:
    return Claim(KEY, amount, News(Period(), 0, quanta_allowed(limit), ticket=1))


def held(ledger: DjangoLedger, wish: Claim | None = None) -> Hold:
    answer = ledger.hold([wish or claim()], 60)
    assert isinstance(answer, Hold), answer
    return answer


def commit(ledger: DjangoLedger, hold: Hold) -> None:
    ledger.commit(hold, [Use(KEY, hold.claims[0].amount)])


def unsent(ledger: DjangoLedger) -> float:
    return sum(entry.amount for entry in ledger.entries([State.UNSENT], 1000))


def elsewhere(ask: Callable[[], Answer]) -> Answer:
    """The answer of another thread, which has connections of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(ask).result(WAIT)


def at_once(work: Callable[[int], Answer], count: int) -> list[Answer]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count), timeout=WAIT))


def make_shop(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS sold")
        cursor.execute("CREATE TABLE sold (amount integer)")


def sell(alias: str, amount: int = 1) -> None:
    """The data that usage pays for."""
    with connections[alias].cursor() as cursor:
        cursor.execute("INSERT INTO sold VALUES (%s)", [amount])


def sold(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT coalesce(sum(amount), 0) FROM sold")
        return int(cursor.fetchone()[0])


def refused(ledger: DjangoLedger, hold: Hold) -> Callable[[], object]:
    """Commits a use that the transaction cannot take; how it is done again."""
    with pytest.raises(LedgerUnavailable) as told:
        commit(ledger, hold)
    again = told.value.repeat
    assert again is not None
    assert told.value.repeatable > 0
    with pytest.raises(LedgerUnavailable, match="not ended yet"):
        elsewhere(again)
    return again
