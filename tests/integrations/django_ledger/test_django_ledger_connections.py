"""Connections of the ledger's own."""

from __future__ import annotations

from time import monotonic

import pytest
from django.core import mail
from django.db import connections

from conftest import ManualClock, in_child
from django_databases import django_database, make_ledger_tables
from integrations.django_ledger.helpers import NOTHING, WAIT, Open, claim, commit, elsewhere, held
from postgres_server import PostgresServer
from stigg_guard.django.ledger.ledger import DjangoLedger, django_ledger_from_url
from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger import LimitExceeded


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
        assert in_child(lambda: on_postgres.hold([claim(8)], 60) == LimitExceeded(claim(8), 3, 10))
        assert on_postgres.hold([claim(8)], 60) == LimitExceeded(claim(8), 3, 10)
