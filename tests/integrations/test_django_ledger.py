"""The ledger in the site's own database: usage and the data it pays for, in one transaction."""

from __future__ import annotations

import select
import socket
import threading
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import TypeVar

import pytest
from django.core import mail
from django.core.management import call_command
from django.db import DataError, OperationalError, connections, transaction
from django.test import TestCase, modify_settings

from conftest import ManualClock, in_child
from django_databases import django_database, make_ledger_tables
from postgres_server import PostgresServer
from stigg_guard.amounts import quanta, quanta_allowed
from stigg_guard.django.ledger.database import Database
from stigg_guard.django.ledger.ledger import DjangoLedger, django_ledger_from_url
from stigg_guard.errors import ConfigError, LedgerUnavailable
from stigg_guard.ledger import (
    Acknowledged,
    Claim,
    Hold,
    News,
    Period,
    Refused,
    State,
    UsageKey,
    Use,
    ledger_from_url,
)

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
            assert ledger.hold([claim(4)], 60) == Refused(claim(4), 7, 10)

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


def lose_connection(server: PostgresServer, alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        server.execute(f"SELECT pg_terminate_backend({cursor.fetchone()[0]}, 5000)")


@contextmanager
def isolated(alias: str, level: str) -> Iterator[None]:
    """A transaction of this level of isolation."""
    with transaction.atomic(using=alias):
        with connections[alias].cursor() as cursor:
            cursor.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        yield


class TestPostgres:
    def test_shows_a_hold_to_others_while_the_transaction_is_open(
        self, on_postgres: DjangoLedger, postgres_alias: str
    ) -> None:
        with transaction.atomic(using=postgres_alias):
            hold = held(on_postgres, claim(7))
            commit(on_postgres, hold)
            assert elsewhere(on_postgres.counts) == {**NOTHING, "held": 1}
            assert elsewhere(lambda: on_postgres.hold([claim(4)], 60)) == Refused(claim(4), 7, 10)

    def test_keeps_its_books_when_the_transaction_is_rolled_back(
        self, on_postgres: DjangoLedger, postgres_alias: str
    ) -> None:
        with suppress(WorkFailed), transaction.atomic(using=postgres_alias):
            ticket = on_postgres.ticket("ann")
            held(on_postgres)
            raise WorkFailed
        assert on_postgres.ticket("ann") > ticket
        assert on_postgres.counts() == {**NOTHING, "held": 1}

    def test_lets_two_open_transactions_use_the_same_feature(
        self, on_postgres: DjangoLedger, postgres_alias: str
    ) -> None:
        both = threading.Barrier(2)

        def use(_: int) -> None:
            with transaction.atomic(using=postgres_alias):
                sell(postgres_alias)
                commit(on_postgres, held(on_postgres))
                both.wait(WAIT)
            connections[postgres_alias].close()

        at_once(use, 2)
        assert unsent(on_postgres) == sold(postgres_alias) == 2

    def test_is_exact_among_transactions_of_which_some_fail(
        self, on_postgres: DjangoLedger, postgres_alias: str
    ) -> None:
        def use(number: int) -> None:
            for attempt in range(10):
                with suppress(WorkFailed), transaction.atomic(using=postgres_alias):
                    hold = on_postgres.hold([claim(1, limit=20)], 60)
                    if isinstance(hold, Hold):
                        sell(postgres_alias)
                        commit(on_postgres, hold)
                    if (number + attempt) % 2:
                        raise WorkFailed
            connections[postgres_alias].close()

        at_once(use, 8)
        assert unsent(on_postgres) == sold(postgres_alias) == 20
        assert on_postgres.counts()["held"] == 0

    def test_takes_no_usage_into_a_transaction_that_the_server_gave_up(
        self, on_postgres: DjangoLedger, postgres_alias: str
    ) -> None:
        with transaction.atomic(using=postgres_alias):
            hold = held(on_postgres)
            with suppress(DataError), connections[postgres_alias].cursor() as cursor:
                cursor.execute("SELECT 1 / 0")
            assert on_postgres.commit(hold, [Use(KEY, 1)]) == [0]
            assert on_postgres.record(Use(KEY, 1)) == 0
        assert on_postgres.counts() == NOTHING

    def test_waits_for_no_transaction_that_is_about_to_use_a_hold_up(
        self, on_postgres: DjangoLedger, postgres_alias: str, clock: ManualClock
    ) -> None:
        hold = held(on_postgres)
        clock.advance(100_000)
        with transaction.atomic(using=postgres_alias):
            commit(on_postgres, hold)
            assert elsewhere(lambda: on_postgres.take_batch(100, LEASE)) is None
            elsewhere(lambda: on_postgres.renew([hold], 60))
            elsewhere(lambda: on_postgres.release(hold))
        assert on_postgres.counts() == {**NOTHING, "unsent": 1, "late": 1}

    def test_counts_a_hold_that_is_being_committed_however_long_that_takes(
        self, on_postgres: DjangoLedger, postgres_alias: str, clock: ManualClock
    ) -> None:
        with transaction.atomic(using=postgres_alias):
            commit(on_postgres, held(on_postgres, claim(7)))
            clock.advance(3600)
            assert elsewhere(lambda: on_postgres.hold([claim(4)], 60)) == Refused(claim(4), 7, 10)
        assert on_postgres.hold([claim(4)], 60) == Refused(claim(4), 7, 10)

    def test_lets_a_hold_expire_when_it_was_closed_before_a_rollback(
        self, on_postgres: DjangoLedger, postgres_alias: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with suppress(WorkFailed), transaction.atomic(using=postgres_alias):
            commit(on_postgres, held(on_postgres))
            on_postgres.close()
            raise WorkFailed
        assert "left to expire" in caplog.text

    def test_whose_connection_is_lost_before_the_use_is_committed_takes_no_usage(
        self, on_postgres: DjangoLedger, postgres_alias: str, postgres: PostgresServer
    ) -> None:
        with suppress(OperationalError), transaction.atomic(using=postgres_alias):
            sell(postgres_alias)
            hold = held(on_postgres)
            lose_connection(postgres, postgres_alias)
            again = refused(on_postgres, hold)
        again()
        assert on_postgres.counts() == NOTHING
        connections[postgres_alias].close()
        assert sold(postgres_alias) == 0

    @pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
    def test_that_does_not_see_its_hold_ends_it_after_the_commit(
        self, on_postgres: DjangoLedger, postgres_alias: str, level: str
    ) -> None:
        with isolated(postgres_alias, level):
            sold(postgres_alias)
            commit(on_postgres, held(on_postgres))
            assert elsewhere(on_postgres.counts) == {**NOTHING, "held": 1}
        assert on_postgres.counts() == {**NOTHING, "unsent": 1}

    def test_that_does_not_see_its_hold_lets_it_expire_when_the_ledger_is_closed(
        self, on_postgres: DjangoLedger, postgres_alias: str, open_ledger: Open, caplog: pytest.LogCaptureFixture
    ) -> None:
        with isolated(postgres_alias, "REPEATABLE READ"):
            sold(postgres_alias)
            commit(on_postgres, held(on_postgres))
            on_postgres.close()
        assert open_ledger(postgres_alias).counts() == {**NOTHING, "held": 1, "unsent": 1}
        assert "left to expire" in caplog.text

    def test_that_does_not_see_that_its_hold_expired_was_late_all_the_same(
        self, on_postgres: DjangoLedger, postgres_alias: str, clock: ManualClock
    ) -> None:
        with isolated(postgres_alias, "REPEATABLE READ"):
            sold(postgres_alias)
            hold = held(on_postgres)
            clock.advance(61)
            commit(on_postgres, hold)
        assert on_postgres.counts() == {**NOTHING, "unsent": 1, "late": 1}

    def test_is_exact_among_serializable_transactions_that_fail_each_other(
        self, on_postgres: DjangoLedger, postgres_alias: str
    ) -> None:
        def use(_: int) -> None:
            for _ in range(5):
                with suppress(OperationalError), isolated(postgres_alias, "SERIALIZABLE"):
                    sold(postgres_alias)
                    sell(postgres_alias)
                    with suppress(LedgerUnavailable):
                        commit(on_postgres, held(on_postgres, claim(1, limit=None)))
            connections[postgres_alias].close()

        at_once(use, 4)
        assert unsent(on_postgres) == sold(postgres_alias) > 0
        assert on_postgres.counts()["held"] == 0

    def test_that_cannot_end_its_hold_has_its_usage_after_the_commit(
        self, on_postgres: DjangoLedger, postgres_alias: str
    ) -> None:
        hold = held(on_postgres)
        with isolated(postgres_alias, "REPEATABLE READ"):
            sold(postgres_alias)
            elsewhere(lambda: on_postgres.renew([hold], 60))
            refused(on_postgres, hold)
        assert on_postgres.counts() == {**NOTHING, "unsent": 1}

    def test_is_exact_where_the_database_isolates_more_by_default(
        self, on_postgres: DjangoLedger, postgres_alias: str
    ) -> None:
        connections[postgres_alias].settings_dict["OPTIONS"] = {
            "options": "-c default_transaction_isolation=serializable"
        }

        def use(_: int) -> int:
            answers = [on_postgres.hold([claim(1, limit=10)], 60) for _ in range(5)]
            connections[postgres_alias].close()
            return sum(isinstance(answer, Hold) for answer in answers)

        assert sum(at_once(use, 4)) == 10

    def test_gives_a_hold_back_after_the_step_that_a_finalizer_interrupts(self, on_postgres: DjangoLedger) -> None:
        hold, dropped = held(on_postgres), held(on_postgres, claim(2))

        class Uses(list[Use]):
            def __iter__(self) -> Iterator[Use]:
                on_postgres.release(dropped)
                raise WorkFailed

        with pytest.raises(WorkFailed):
            on_postgres.commit(hold, Uses())
        assert [entry.id for entry in on_postgres.entries([State.HELD], 10)] == [hold.id]

    def test_lets_a_hold_expire_whose_connection_is_closed_within_the_transaction(
        self, on_postgres: DjangoLedger, postgres_alias: str, clock: ManualClock
    ) -> None:
        with transaction.atomic(using=postgres_alias):
            commit(on_postgres, held(on_postgres))
            connections[postgres_alias].close()
        clock.advance(60)
        assert on_postgres.counts() == NOTHING

    def test_follows_no_transaction_of_another_database(
        self, on_postgres: DjangoLedger, postgres: PostgresServer
    ) -> None:
        with django_database("other", postgres.database("other")) as other:
            make_shop(other)
            with suppress(WorkFailed), transaction.atomic(using=other):
                sell(other)
                commit(on_postgres, held(on_postgres))
                raise WorkFailed
            assert sold(other) == 0
        assert unsent(on_postgres) == 1

    def test_commits_under_two_aliases_that_are_rolled_back_apart(
        self, on_postgres: DjangoLedger, postgres_alias: str, postgres: PostgresServer
    ) -> None:
        with django_database("second", postgres.database("second")) as second:
            make_shop(second)
            with transaction.atomic(using=postgres_alias):
                sell(postgres_alias)
                commit(on_postgres, held(on_postgres))
                with suppress(WorkFailed), transaction.atomic(using=second):
                    sell(second)
                    raise WorkFailed
            assert (sold(postgres_alias), unsent(on_postgres), sold(second)) == (1, 1, 0)


def are_open(server: PostgresServer, expected: int) -> bool:
    """Whether so many connections to the ledger's database are open, once the server has noticed who is gone."""
    deadline = monotonic() + WAIT
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'ledger'"
    while (found := server.ask(query)) != expected and monotonic() < deadline:
        pass
    return bool(found == expected)


class TestConnections:
    def test_are_made_anew_when_they_were_lost(self, on_postgres: DjangoLedger, postgres: PostgresServer) -> None:
        held(on_postgres)
        postgres.ask("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'ledger'")
        held(on_postgres)
        assert on_postgres.counts()["held"] == 2

    def test_to_a_server_that_is_away_are_told_of_and_made_when_it_is_back(
        self, on_postgres: DjangoLedger, postgres: PostgresServer
    ) -> None:
        commit(on_postgres, held(on_postgres))
        postgres.kill()
        try:
            with pytest.raises(LedgerUnavailable, match="the ledger in the database 'postgres' cannot be used"):
                on_postgres.hold([claim()], 60)
        finally:
            postgres.start()
        assert on_postgres.counts() == {**NOTHING, "unsent": 1}

    def test_are_as_many_as_there_are_steps_at_once(
        self, on_postgres: DjangoLedger, postgres: PostgresServer, postgres_alias: str
    ) -> None:
        connections[postgres_alias].close()
        on_postgres.counts()
        elsewhere(on_postgres.counts)
        assert are_open(postgres, 1)

    def test_end_with_the_ledger(
        self, on_postgres: DjangoLedger, postgres: PostgresServer, postgres_alias: str
    ) -> None:
        connections[postgres_alias].close()
        on_postgres.counts()
        on_postgres.close()
        assert are_open(postgres, 0)

    def test_end_with_a_ledger_that_is_dropped(
        self, postgres: PostgresServer, postgres_alias: str, clock: ManualClock
    ) -> None:
        connections[postgres_alias].close()
        django_ledger_from_url(f"django://{postgres_alias}", clock.clock).counts()
        assert are_open(postgres, 0)

    def test_end_with_each_step_when_they_have_no_age(
        self, on_postgres: DjangoLedger, postgres: PostgresServer, postgres_alias: str
    ) -> None:
        connections[postgres_alias].settings_dict["CONN_MAX_AGE"] = 0
        connections[postgres_alias].close()
        on_postgres.counts()
        assert are_open(postgres, 0)

    def test_do_not_keep_a_test_run_from_dropping_its_database(
        self, open_ledger: Open, postgres: PostgresServer, django_postgres: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mail, "outbox", [], raising=False)
        with django_database("test", {**postgres.database("test"), "CONN_MAX_AGE": None}) as alias:
            make_ledger_tables(alias)
            held(open_ledger(alias))
            connections[alias].close()
            postgres.execute("DROP DATABASE test")

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_of_a_parent_are_left_alone_by_its_child(self, on_postgres: DjangoLedger, postgres_alias: str) -> None:
        held(on_postgres, claim(3))
        connections[postgres_alias].close()
        assert in_child(lambda: on_postgres.hold([claim(8)], 60) == Refused(claim(8), 3, 10))
        assert on_postgres.hold([claim(8)], 60) == Refused(claim(8), 3, 10)


class AnswerLost:
    """Stands between a client and a server. Once ``lose`` is set, the next commit of usage arrives, and its answer does
    not."""

    def __init__(self, server: PostgresServer) -> None:
        self.lose = threading.Event()
        self._server = server
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]

    def __enter__(self) -> AnswerLost:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(f"{self._server.folder}/.s.PGSQL.5432")
            other = {client: server, server: client}
            has_usage = loses = False
            while True:
                for end in select.select([client, server], [], [])[0]:
                    data = end.recv(65536)
                    if not data or (loses and end is server):
                        return
                    has_usage |= b"INSERT INTO stigg_guard_ledger_entries" in data
                    if has_usage and self.lose.is_set() and b"COMMIT" in data:
                        loses = True
                        self.lose.clear()
                    other[end].sendall(data)


class TestLostAnswer:
    """The connection is lost when the commit is under way, and nobody knows whether it was made."""

    @pytest.fixture
    def way(self, postgres: PostgresServer) -> Iterator[AnswerLost]:
        with AnswerLost(postgres) as way:
            yield way

    @pytest.fixture
    def beyond(self, open_ledger: Open, on_postgres: DjangoLedger, way: AnswerLost) -> Iterator[DjangoLedger]:
        """A ledger whose answers may get lost."""
        settings = {**connections["postgres"].settings_dict, "HOST": "127.0.0.1", "PORT": way.port}
        with django_database("beyond", settings) as alias:
            yield open_ledger(alias)

    def test_of_a_commit_is_found_out_later(
        self, beyond: DjangoLedger, on_postgres: DjangoLedger, way: AnswerLost
    ) -> None:
        hold = held(beyond)
        way.lose.set()
        with pytest.raises(LedgerUnavailable) as told:
            commit(beyond, hold)
        assert told.value.repeat is not None
        assert told.value.repeatable > 0
        told.value.repeat()
        assert on_postgres.counts() == {**NOTHING, "unsent": 1}

    def test_of_a_commit_that_was_not_made_is_made_good(self, on_postgres: DjangoLedger, postgres_alias: str) -> None:
        with connections[postgres_alias].cursor() as cursor:
            cursor.execute(DIES_AT_COMMIT)
        with pytest.raises(LedgerUnavailable) as told:
            on_postgres.record(Use(KEY, 3))
        with connections[postgres_alias].cursor() as cursor:
            cursor.execute("DROP FUNCTION die CASCADE")
        assert unsent(on_postgres) == 0
        assert told.value.repeat is not None
        told.value.repeat()
        assert unsent(on_postgres) == 3

    def test_of_a_commit_that_is_lost_again_is_found_out_all_the_same(
        self, beyond: DjangoLedger, on_postgres: DjangoLedger, way: AnswerLost
    ) -> None:
        with connections["postgres"].cursor() as cursor:
            cursor.execute(DIES_AT_COMMIT)
        with pytest.raises(LedgerUnavailable) as told:
            beyond.record(Use(KEY, 3))
        with connections["postgres"].cursor() as cursor:
            cursor.execute("DROP FUNCTION die CASCADE")
        assert told.value.repeat is not None
        way.lose.set()
        with pytest.raises(LedgerUnavailable):
            told.value.repeat()
        told.value.repeat()
        assert unsent(on_postgres) == 3

    def test_of_a_commit_that_is_still_under_way_is_not_decided_on(
        self, on_postgres: DjangoLedger, postgres_alias: str, clock: ManualClock
    ) -> None:
        database = Database(postgres_alias, clock.clock)
        with transaction.atomic(using=postgres_alias), connections[postgres_alias].cursor() as cursor:
            cursor.execute("SELECT txid_current()")
            (transaction_id,) = cursor.fetchone()
            with pytest.raises(LedgerUnavailable, match="not ended"):
                database.was_committed(transaction_id)
        assert database.was_committed(transaction_id)
        database.close()


DIES_AT_COMMIT = """
CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(60); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON stigg_guard_ledger_entries DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION die();
"""


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


class TestHome:
    def test_without_tables_is_told_of_with_the_remedy(
        self, open_ledger: Open, postgres: PostgresServer, django_postgres: str, tmp_path: Path
    ) -> None:
        sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "empty.sqlite3"}
        for settings in (sqlite, postgres.database("empty")):
            with django_database("empty", settings) as alias:
                ledger = open_ledger(alias)
                with pytest.raises(LedgerUnavailable, match=r"no tables yet: run manage\.py migrate --database=empty"):
                    ledger.hold([claim()], 60)
                make_shop(alias)
                with transaction.atomic(using=alias):
                    sell(alias)
                    with pytest.raises(LedgerUnavailable, match=r"run manage\.py migrate"):
                        ledger.record(Use(KEY, 1))
                assert sold(alias) == 1
                ledger.close()

    def test_that_is_no_alias_is_refused_with_those_there_are(self, clock: ManualClock) -> None:
        with pytest.raises(ConfigError, match=r"LEDGER: there is no 'shop' in DATABASES; .*'default'"):
            django_ledger_from_url("django://shop", clock.clock)

    def test_without_the_app_is_refused_with_the_remedy(self, clock: ManualClock) -> None:
        with (
            modify_settings(INSTALLED_APPS={"remove": "stigg_guard.django.ledger"}),
            pytest.raises(ConfigError, match=r"'stigg_guard\.django\.ledger' into INSTALLED_APPS"),
        ):
            django_ledger_from_url("django://default", clock.clock)

    def test_of_a_kind_that_is_not_proven_is_refused(self, clock: ManualClock) -> None:
        with (
            django_database("odd", {"ENGINE": "django.db.backends.dummy"}),
            pytest.raises(ConfigError, match=r"LEDGER: the database 'odd' .* PostgreSQL and SQLite only"),
        ):
            django_ledger_from_url("django://odd", clock.clock)

    def test_is_one_of_django_sites_only(self, clock: ManualClock) -> None:
        with pytest.raises(ConfigError, match=r"LEDGER: .*settings\.STIGG_GUARD"):
            ledger_from_url("django://default", clock.clock)

    @pytest.mark.django_db
    def test_has_the_migrations_of_its_models(self) -> None:
        call_command("makemigrations", "stigg_guard_ledger", check=True, dry_run=True, verbosity=0)
