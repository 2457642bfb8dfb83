"""The ledger in the site's own database: usage and the data it pays for, in one transaction."""

from __future__ import annotations

import os
import select
import socket
import threading
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from django.core import mail
from django.db import DataError, connections, transaction
from django.test import TestCase, modify_settings
from django.test.utils import CaptureQueriesContext

from conftest import ManualClock, in_child
from django_databases import django_database, empty_ledger_tables, make_ledger_tables
from postgres_server import PostgresServer
from stigg_guard.django.ledger.ledger import DjangoLedger, django_ledger_from_url
from stigg_guard.errors import ConfigError, LedgerUnavailable
from stigg_guard.ledger import Acknowledged, Claim, Hold, Refused, State, UsageKey, Use, ledger_from_url

KEY = UsageKey("ann", "", "templates")
LEASE = 30.0
WAIT = 20.0
NOTHING = {"held": 0, "unsent": 0, "sending": 0, "uncertain": 0, "dead": 0, "late": 0}
Answer = TypeVar("Answer")
Open = Callable[[str], DjangoLedger]


class WorkFailed(Exception):
    """What rolls a block back."""


def claim(amount: float = 1, limit: float | None = 10) -> Claim:
    return Claim(KEY, amount, limit, 0, 0, 1)


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


@pytest.fixture
def open_ledger(clock: ManualClock) -> Iterator[Open]:
    opened: list[DjangoLedger] = []

    def make(alias: str) -> DjangoLedger:
        opened.append(django_ledger_from_url(f"django://{alias}", clock.clock))
        return opened[-1]

    yield make
    for ledger in opened:
        ledger.close()


@pytest.fixture(params=["django_sqlite", "django_postgres"])
def alias(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    make_shop(found)
    return found


@pytest.fixture
def ledger(open_ledger: Open, alias: str) -> DjangoLedger:
    return open_ledger(alias)


@pytest.fixture
def postgres_alias(django_postgres: str) -> str:
    make_shop(django_postgres)
    return django_postgres


@pytest.fixture
def on_postgres(open_ledger: Open, postgres_alias: str) -> DjangoLedger:
    return open_ledger(postgres_alias)


class TestTransaction:
    def test_that_is_committed_has_its_usage(self, ledger: DjangoLedger, alias: str) -> None:
        with transaction.atomic(using=alias):
            hold = held(ledger)
            sell(alias)
            commit(ledger, hold)
        assert ledger.counts() == {**NOTHING, "unsent": 1}
        assert sold(alias) == unsent(ledger) == 1

    def test_that_is_rolled_back_never_had_usage_and_releases_its_hold(
        self, ledger: DjangoLedger, alias: str
    ) -> None:
        with suppress(WorkFailed), transaction.atomic(using=alias):
            hold = held(ledger)
            sell(alias)
            commit(ledger, hold)
            raise WorkFailed
        assert ledger.counts() == NOTHING
        assert sold(alias) == 0

    def test_releases_a_hold_from_before_it_when_it_is_rolled_back(self, ledger: DjangoLedger, alias: str) -> None:
        hold = held(ledger)
        with suppress(WorkFailed), transaction.atomic(using=alias):
            commit(ledger, hold)
            raise WorkFailed
        assert ledger.counts() == NOTHING

    def test_keeps_what_it_used_outside_of_a_savepoint_that_is_rolled_back(
        self, ledger: DjangoLedger, alias: str
    ) -> None:
        with transaction.atomic(using=alias):
            commit(ledger, held(ledger, claim(2)))
            with suppress(WorkFailed), transaction.atomic(using=alias):
                commit(ledger, held(ledger, claim(3)))
                raise WorkFailed
            commit(ledger, held(ledger, claim(4)))
        assert ledger.counts() == {**NOTHING, "unsent": 2}
        assert unsent(ledger) == 6

    def test_counts_its_own_uses(self, ledger: DjangoLedger, alias: str) -> None:
        with transaction.atomic(using=alias):
            commit(ledger, held(ledger, claim(7)))
            assert elsewhere_or_here(ledger, alias, lambda: ledger.hold([claim(4)], 60)) == Refused(claim(4), 7)

    def test_has_the_usage_that_was_recorded_in_it(self, ledger: DjangoLedger, alias: str) -> None:
        with suppress(WorkFailed), transaction.atomic(using=alias):
            assert ledger.record(Use(KEY, 2)) == 2
            raise WorkFailed
        with transaction.atomic(using=alias):
            ledger.record(Use(KEY, 3))
        assert unsent(ledger) == 3

    @pytest.mark.parametrize("savepoint", [True, False])
    def test_that_is_to_be_rolled_back_takes_no_usage(
        self, ledger: DjangoLedger, alias: str, savepoint: bool
    ) -> None:
        with transaction.atomic(using=alias):
            with transaction.atomic(using=alias, savepoint=savepoint):
                hold = held(ledger)
                transaction.set_rollback(True, using=alias)
                assert ledger.commit(hold, [Use(KEY, 1)])[0] <= 1
                assert ledger.record(Use(KEY, 5)) <= 6
        assert ledger.counts() == NOTHING

    def test_tells_when_it_is_committed_and_not_when_it_is_rolled_back(
        self, ledger: DjangoLedger, alias: str
    ) -> None:
        told: list[float] = []
        ledger.committed = lambda: told.append(unsent(ledger))
        with suppress(WorkFailed), transaction.atomic(using=alias):
            commit(ledger, held(ledger))
            raise WorkFailed
        with transaction.atomic(using=alias):
            commit(ledger, held(ledger))
            assert told == []
        assert told == [1]

    def test_sends_nothing_before_it_is_committed(self, ledger: DjangoLedger, alias: str) -> None:
        with transaction.atomic(using=alias):
            commit(ledger, held(ledger))
            assert ledger.take_batch(100, LEASE) is None
        assert ledger.take_batch(100, LEASE) is not None

    def test_without_the_tables_goes_on(self, ledger: DjangoLedger, alias: str) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("ALTER TABLE stigg_guard_ledger_entry RENAME TO away")
        with transaction.atomic(using=alias):
            sell(alias)
            with pytest.raises(LedgerUnavailable):
                ledger.record(Use(KEY, 1))
        assert sold(alias) == 1
        with connections[alias].cursor() as cursor:
            cursor.execute("ALTER TABLE away RENAME TO stigg_guard_ledger_entry")


def elsewhere_or_here(ledger: DjangoLedger, alias: str, ask: Callable[[], Answer]) -> Answer:
    return ask()
