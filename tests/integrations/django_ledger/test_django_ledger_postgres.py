"""The ledger in PostgreSQL, whose holds are seen at once."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from django.db import DataError, OperationalError, connections, transaction

from conftest import ManualClock
from django_databases import django_database
from integrations.django_ledger.helpers import (
    KEY,
    LEASE,
    NOTHING,
    WAIT,
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
from postgres_server import PostgresServer
from stigg_guard.django.ledger.database import Database
from stigg_guard.django.ledger.ledger import DjangoLedger
from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger import Hold, LimitExceeded, State, Use


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
            assert elsewhere(lambda: on_postgres.hold([claim(4)], 60)) == LimitExceeded(claim(4), 7, 10)

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
        assert unsent(on_postgres) == sold(postgres_alias)
        assert on_postgres.counts()["held"] == 0
        left = 20 - int(sold(postgres_alias))  # what failing work held when others asked may be left
        assert isinstance(on_postgres.hold([claim(left, limit=20)], 60), Hold)
        assert not isinstance(on_postgres.hold([claim(1, limit=20)], 60), Hold)

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
            assert elsewhere(lambda: on_postgres.hold([claim(4)], 60)) == LimitExceeded(claim(4), 7, 10)
        assert on_postgres.hold([claim(4)], 60) == LimitExceeded(claim(4), 7, 10)

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
