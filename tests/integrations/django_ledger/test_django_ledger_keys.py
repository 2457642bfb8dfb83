"""Callers' keys in the transactions of a site: a key is counted with what it pays for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from time import monotonic

import pytest
from django.db import connections, transaction

from conftest import ManualClock
from integrations.django_ledger.helpers import KEY, NOTHING, WAIT, WorkFailed, claim, elsewhere, unsent
from stigg_guard.django.ledger.ledger import DjangoLedger
from stigg_guard.errors import LedgerUnavailable, UsageInProgress, UsageRepeated
from stigg_guard.ledger import Claim, Hold, Once, Use

ORDER = Once("ann", "order-42")
USES = [Use(KEY, 1)]


def held_once(ledger: DjangoLedger, *claims: Claim) -> Hold:
    answer = ledger.hold(claims, 60, ORDER)
    assert isinstance(answer, Hold), answer
    return answer


@contextmanager
def isolated(alias: str, level: str) -> Iterator[None]:
    """A transaction of this level of isolation that has seen the database as it is before what comes."""
    with transaction.atomic(using=alias):
        with connections[alias].cursor() as cursor:
            cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
            cursor.execute("SELECT count(*) FROM sold")
        yield


@pytest.mark.parametrize("claims", [[claim()], []], ids=["with units", "alone"])
class TestKey:
    def test_is_counted_with_the_transaction(self, ledger: DjangoLedger, alias: str, claims: list[Claim]) -> None:
        with transaction.atomic(using=alias):
            ledger.commit(held_once(ledger, *claims), USES)
        with pytest.raises(UsageRepeated):
            ledger.hold(claims, 60, ORDER)
        assert unsent(ledger) == 1

    def test_is_free_when_the_transaction_was_rolled_back(
        self, ledger: DjangoLedger, alias: str, claims: list[Claim]
    ) -> None:
        with suppress(WorkFailed), transaction.atomic(using=alias):
            ledger.commit(held_once(ledger, *claims), USES)
            raise WorkFailed
        ledger.commit(held_once(ledger, *claims), USES)
        assert unsent(ledger) == 1

    def test_is_free_when_a_savepoint_was_rolled_back(
        self, ledger: DjangoLedger, alias: str, claims: list[Claim]
    ) -> None:
        with transaction.atomic(using=alias), suppress(WorkFailed), transaction.atomic(using=alias):
            ledger.commit(held_once(ledger, *claims), USES)
            raise WorkFailed
        ledger.commit(held_once(ledger, *claims), USES)
        assert unsent(ledger) == 1

    def test_is_in_progress_while_a_transaction_is_about_to_count_it(
        self, on_postgres: DjangoLedger, postgres_alias: str, clock: ManualClock, claims: list[Claim]
    ) -> None:
        def ask() -> None:
            with pytest.raises(UsageInProgress):
                on_postgres.hold(claims, 60, ORDER)

        with transaction.atomic(using=postgres_alias):
            hold = held_once(on_postgres, *claims)
            elsewhere(ask)
            on_postgres.commit(hold, USES)
            elsewhere(ask)
            clock.advance(3600)  # though its hold has expired
            elsewhere(ask)
        with pytest.raises(UsageRepeated):
            on_postgres.hold(claims, 60, ORDER)


LEVELS = pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])


@LEVELS
def test_key_is_counted_by_a_transaction_that_does_not_see_its_hold(
    on_postgres: DjangoLedger, postgres_alias: str, level: str
) -> None:
    with isolated(postgres_alias, level):
        on_postgres.commit(held_once(on_postgres, claim()), USES)
        with pytest.raises(UsageInProgress):
            elsewhere(lambda: on_postgres.hold([claim()], 60, ORDER))
    with pytest.raises(UsageRepeated):
        on_postgres.hold([claim()], 60, ORDER)
    assert on_postgres.counts() == {**NOTHING, "unsent": 1}


@LEVELS
def test_key_that_is_held_alone_is_counted_after_such_a_transaction(
    on_postgres: DjangoLedger, postgres_alias: str, level: str
) -> None:
    with isolated(postgres_alias, level):
        with pytest.raises(LedgerUnavailable) as told:
            on_postgres.commit(held_once(on_postgres), USES)
        assert told.value.repeat is not None
    told.value.repeat()
    with pytest.raises(UsageRepeated):
        on_postgres.hold((), 60, ORDER)
    assert on_postgres.counts() == {**NOTHING, "unsent": 1}


def test_of_two_transactions_with_one_key_one_counts(
    on_postgres: DjangoLedger, postgres_alias: str, clock: ManualClock
) -> None:
    """The first outlived its hold, so that the second could begin."""
    first = held_once(on_postgres, claim())
    clock.advance(61)
    second = held_once(on_postgres, claim())
    is_counted, may_commit = threading.Event(), threading.Event()

    def count_first() -> None:
        with transaction.atomic(using=postgres_alias):
            on_postgres.commit(first, USES)
            is_counted.set()
            assert may_commit.wait(WAIT)
        connections[postgres_alias].close()

    with ThreadPoolExecutor(1) as pool:
        counting = pool.submit(count_first)
        assert is_counted.wait(WAIT)
        pool_of_second = ThreadPoolExecutor(1)
        other = pool_of_second.submit(on_postgres.commit, second, USES)
        may_commit.set()
        counting.result(WAIT)
        assert other.result(WAIT) == []
        pool_of_second.shutdown()
    assert on_postgres.counts() == {**NOTHING, "unsent": 1, "late": 1}


def test_of_two_transactions_with_a_key_that_nobody_has_one_counts(
    on_postgres: DjangoLedger, postgres_alias: str
) -> None:
    """Both use what a third one held, which failed: neither finds the key, and the second waits for the first."""
    on_postgres.release(held_once(on_postgres, claim()))

    def count_second() -> Sequence[float]:
        try:
            return on_postgres.commit(Hold("second", (), ORDER), USES)
        finally:
            connections[postgres_alias].close()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic(using=postgres_alias):
            on_postgres.commit(Hold("first", (), ORDER), USES)
            other = pool.submit(count_second)
            wait_for_a_waiting_transaction(postgres_alias)
        assert other.result(WAIT) == []
    assert on_postgres.counts() == {**NOTHING, "unsent": 1}


def wait_for_a_waiting_transaction(alias: str) -> None:
    deadline = monotonic() + WAIT
    with connections[alias].cursor() as cursor:
        while monotonic() < deadline:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'")
            if cursor.fetchone()[0]:
                return
    pytest.fail("nobody waits")
