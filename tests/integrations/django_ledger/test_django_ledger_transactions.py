"""Usage and the data that it pays for, in one transaction."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from django.db import connections, transaction
from django.test import TestCase

from integrations.django_ledger.helpers import (
    KEY,
    LEASE,
    NOTHING,
    Open,
    WorkFailed,
    at_once,
    claim,
    commit,
    elsewhere,
    held,
    make_shop,
    refused,
    sell,
    sold,
    unsent,
)
from stigg_guard.amounts import quanta
from stigg_guard.django.ledger.ledger import DjangoLedger
from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger import Acknowledged, Hold, LimitExceeded, Use


class TestTransaction:
    def test_that_is_committed_has_its_usage(self, ledger: DjangoLedger, alias: str) -> None:
        with transaction.atomic(using=alias):
            hold = held(ledger)
            sell(alias)
            commit(ledger, hold)
        assert ledger.counts() == {**NOTHING, "unsent": 1}
        assert sold(alias) == unsent(ledger) == 1

    def test_that_is_rolled_back_never_had_usage_and_releases_its_hold(self, ledger: DjangoLedger, alias: str) -> None:
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
        assert unsent(ledger) == 6

    def test_counts_its_own_uses(self, ledger: DjangoLedger, alias: str) -> None:
        with transaction.atomic(using=alias):
            commit(ledger, held(ledger, claim(7)))
            assert ledger.hold([claim(4)], 60) == LimitExceeded(claim(4), 7, 10)

    def test_has_the_usage_that_was_recorded_in_it(self, ledger: DjangoLedger, alias: str) -> None:
        with suppress(WorkFailed), transaction.atomic(using=alias):
            assert ledger.record(Use(KEY, 2)) == 2
            raise WorkFailed
        with transaction.atomic(using=alias):
            ledger.record(Use(KEY, 3))
        assert unsent(ledger) == 3

    @pytest.mark.parametrize("savepoint", [True, False])
    def test_that_is_to_be_rolled_back_takes_no_usage(self, ledger: DjangoLedger, alias: str, savepoint: bool) -> None:
        with transaction.atomic(using=alias), transaction.atomic(using=alias, savepoint=savepoint):
            hold = held(ledger)
            transaction.set_rollback(True, using=alias)
            assert ledger.commit(hold, [Use(KEY, 1)])[0] <= 1
            assert ledger.record(Use(KEY, 5)) <= 6
        assert ledger.counts() == NOTHING

    def test_tells_when_it_is_committed_and_not_when_it_is_rolled_back(self, ledger: DjangoLedger, alias: str) -> None:
        told: list[float] = []
        ledger.committed = lambda: told.append(unsent(ledger))
        with suppress(WorkFailed), transaction.atomic(using=alias):
            commit(ledger, held(ledger))
            raise WorkFailed
        with transaction.atomic(using=alias):
            commit(ledger, held(ledger))
            assert told == []
        assert told == [1]

    def test_tells_that_it_is_committed_whichever_callback_fails(self, ledger: DjangoLedger, alias: str) -> None:
        told: list[float] = []
        ledger.committed = lambda: told.append(unsent(ledger))

        def fail() -> None:
            raise WorkFailed

        with suppress(WorkFailed), transaction.atomic(using=alias):
            transaction.on_commit(fail, using=alias)
            commit(ledger, held(ledger))
        assert told == [1]

    def test_sends_nothing_before_it_is_committed(self, ledger: DjangoLedger, alias: str) -> None:
        with transaction.atomic(using=alias):
            commit(ledger, held(ledger))
            assert ledger.take_batch(100, LEASE) is None
        assert ledger.take_batch(100, LEASE) is not None


class TestOwnTests:
    """In tests, everything is rolled back with the test."""

    def run(self, test: Callable[[], None], alias: str) -> None:
        class Case(TestCase):
            databases = frozenset([alias])

            def runTest(self) -> None:
                test()

        result = unittest.TestResult()
        unittest.TestSuite([Case()]).run(result)
        assert not [*result.errors, *result.failures], [*result.errors, *result.failures][0][1]

    def test_leave_nothing_behind(self, ledger: DjangoLedger, alias: str) -> None:
        def uses() -> None:
            held(ledger)
            commit(ledger, held(ledger))
            with transaction.atomic(using=alias):
                ledger.record(Use(KEY, 2))
            assert ledger.counts() == {**NOTHING, "held": 1, "unsent": 1}
            assert unsent(ledger) == 3

        self.run(uses, alias)
        assert ledger.counts() == NOTHING

    def test_send_what_is_outside_of_a_block(self, ledger: DjangoLedger, alias: str) -> None:
        def uses() -> None:
            with transaction.atomic(using=alias):
                commit(ledger, held(ledger))
                assert ledger.take_batch(100, LEASE) is None
            batch = ledger.take_batch(100, LEASE)
            assert batch is not None
            ledger.acknowledge([Acknowledged(report, 1) for report in batch.reports])
            assert ledger.known(KEY).used == quanta(1)

        self.run(uses, alias)

    def test_release_the_hold_of_a_block_that_is_rolled_back(self, ledger: DjangoLedger, alias: str) -> None:
        def uses() -> None:
            with suppress(WorkFailed), transaction.atomic(using=alias):
                commit(ledger, held(ledger))
                raise WorkFailed
            assert ledger.counts() == NOTHING

        self.run(uses, alias)

    def test_tell_of_a_commit_to_who_captures_callbacks(self, ledger: DjangoLedger, alias: str) -> None:
        told: list[float] = []
        ledger.committed = lambda: told.append(unsent(ledger))

        def uses() -> None:
            with TestCase.captureOnCommitCallbacks(using=alias, execute=True), transaction.atomic(using=alias):
                commit(ledger, held(ledger))
            assert told == [1]

        self.run(uses, alias)

    @pytest.mark.django_db
    def test_keep_other_threads_away_from_a_database_in_memory(self, open_ledger: Open) -> None:
        ledger = open_ledger("default")
        commit(ledger, held(ledger))
        with pytest.raises(LedgerUnavailable, match="memory of another thread"):
            elsewhere(lambda: ledger.take_batch(100, LEASE))
        assert ledger.take_batch(100, LEASE) is not None


@contextmanager
def stale(alias: str) -> Iterator[None]:
    """A transaction that has read before another one wrote, and may not write any more."""

    def write() -> None:
        sell(alias)
        connections[alias].close()

    make_shop(alias)
    with connections[alias].cursor() as cursor:
        cursor.execute("PRAGMA journal_mode = wal")
    with transaction.atomic(using=alias):
        sold(alias)
        elsewhere(write)
        yield


class TestSqlite:
    def test_that_is_locked_has_the_usage_of_a_transaction_after_its_commit(
        self, open_ledger: Open, django_sqlite: str
    ) -> None:
        ledger = open_ledger(django_sqlite)
        told: list[float] = []
        ledger.committed = lambda: told.append(unsent(ledger))
        hold = held(ledger)
        with stale(django_sqlite):
            again = refused(ledger, hold)
        assert told == [1]
        again()
        assert ledger.counts() == {**NOTHING, "unsent": 1}

    def test_that_is_locked_has_no_usage_of_a_transaction_that_is_rolled_back(
        self, open_ledger: Open, django_sqlite: str
    ) -> None:
        ledger = open_ledger(django_sqlite)
        hold = held(ledger)
        with suppress(WorkFailed), stale(django_sqlite):
            again = refused(ledger, hold)
            raise WorkFailed
        again()
        assert ledger.counts() == NOTHING

    def test_that_stays_locked_has_the_usage_later(self, open_ledger: Open, django_sqlite: str) -> None:
        ledger = open_ledger(django_sqlite)
        hold = held(ledger)
        with stale(django_sqlite):
            again = refused(ledger, hold)
            with connections[django_sqlite].cursor() as cursor:
                cursor.execute("PRAGMA query_only = on")
        with pytest.raises(LedgerUnavailable, match="readonly"):
            again()
        with connections[django_sqlite].cursor() as cursor:
            cursor.execute("PRAGMA query_only = off")
        again()
        assert ledger.counts() == {**NOTHING, "unsent": 1}

    def test_that_is_locked_is_told_of(self, open_ledger: Open, django_sqlite: str) -> None:
        ledger = open_ledger(django_sqlite)
        connections[django_sqlite].settings_dict["OPTIONS"]["timeout"] = 0.01
        connections[django_sqlite].close()

        with transaction.atomic(using=django_sqlite):
            held(ledger)
            with pytest.raises(LedgerUnavailable, match="locked"):
                elsewhere(lambda: ledger.hold([claim()], 60))

    def test_is_exact_among_transactions_of_which_some_fail(self, open_ledger: Open, django_sqlite: str) -> None:
        ledger = open_ledger(django_sqlite)
        make_shop(django_sqlite)

        def use(number: int) -> None:
            for attempt in range(5):
                with suppress(WorkFailed), transaction.atomic(using=django_sqlite):
                    hold = ledger.hold([claim(1, limit=10)], 60)
                    if isinstance(hold, Hold):
                        sell(django_sqlite)
                        commit(ledger, hold)
                    if (number + attempt) % 2:
                        raise WorkFailed
            connections[django_sqlite].close()

        at_once(use, 4)
        assert unsent(ledger) == sold(django_sqlite) == 10
        assert ledger.counts()["held"] == 0

    def test_of_a_thread_that_has_nothing_open_is_closed_after_each_step(
        self, open_ledger: Open, django_sqlite: str
    ) -> None:
        ledger = open_ledger(django_sqlite)

        def is_open() -> bool:
            ledger.counts()
            return connections[django_sqlite].connection is not None

        assert not elsewhere(is_open)
