"""By which ways a ledger in PostgreSQL reaches its tables, and how long it waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connections, transaction

from django_databases import django_database, make_ledger_tables
from integrations.django_ledger.helpers import (
    KEY,
    NOTHING,
    WAIT,
    Open,
    WorkFailed,
    at_once,
    claim,
    commit,
    elsewhere,
    held,
    sell,
    sold,
    unsent,
)
from integrations.django_ledger.pooler import pooler
from postgres_server import PostgresServer
from stigg_guard.clock import Clock
from stigg_guard.django.ledger import deadlines, own
from stigg_guard.django.ledger.ledger import DjangoLedger, django_ledger_from_url
from stigg_guard.errors import ConfigError, LedgerUnavailable
from stigg_guard.ledger import Use

BESIDE = "beside"
REQUESTS = 3


@pytest.fixture
def beside(postgres_ledger: dict[str, Any], postgres_alias: str) -> Iterator[str]:
    """Another alias of the same database, whose connections can be told by their name."""
    with django_database(BESIDE, {**postgres_ledger, "OPTIONS": {"application_name": BESIDE}}) as alias:
        yield alias


def named(server: PostgresServer, name: str) -> int:
    """How many connections of this name there are."""
    count: int = server.ask(f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'")
    return count


class TestVia:
    """``django://postgres?via=beside``"""

    @pytest.fixture
    def ledger(self, open_ledger: Open, postgres_alias: str, beside: str) -> DjangoLedger:
        return open_ledger(f"{postgres_alias}?via={beside}")

    def test_has_its_own_steps_on_the_other_alias(self, ledger: DjangoLedger, postgres: PostgresServer) -> None:
        held(ledger)
        assert named(postgres, BESIDE) == 1

    def test_has_usage_in_the_users_transaction(self, ledger: DjangoLedger, postgres_alias: str) -> None:
        with suppress(WorkFailed), transaction.atomic(using=postgres_alias):
            commit(ledger, held(ledger))
            raise WorkFailed
        with transaction.atomic(using=postgres_alias):
            sell(postgres_alias)
            commit(ledger, held(ledger, claim(2)))
            assert elsewhere(ledger.counts) == {**NOTHING, "held": 1}
        assert ledger.counts() == {**NOTHING, "unsent": 1}
        assert (unsent(ledger), sold(postgres_alias)) == (2, 1)

    def test_follows_no_transaction_of_the_other_alias(self, ledger: DjangoLedger, beside: str) -> None:
        with suppress(WorkFailed), transaction.atomic(using=beside):
            commit(ledger, held(ledger))
            raise WorkFailed
        assert unsent(ledger) == 1

    def test_to_another_database_is_refused(
        self, open_ledger: Open, postgres_alias: str, postgres: PostgresServer
    ) -> None:
        with django_database("elsewhere", postgres.database("elsewhere")) as other:
            make_ledger_tables(other)
            ledger = open_ledger(f"{postgres_alias}?via={other}")
            for step in (lambda: held(ledger), lambda: ledger.record(Use(KEY, 1)), ledger.counts):
                with pytest.raises(ConfigError, match=r"'postgres' leads to .*, 'elsewhere' to .* 'elsewhere'; name"):
                    step()
            ledger.close()

    def test_to_a_schema_of_its_own_has_the_usage_there(
        self, open_ledger: Open, postgres_alias: str, postgres_ledger: dict[str, Any]
    ) -> None:
        with tenant(postgres_alias, postgres_ledger) as other:
            ledger = open_ledger(f"{postgres_alias}?via={other}")
            with transaction.atomic(using=postgres_alias):
                commit(ledger, held(ledger))
            assert ledger.counts() == {**NOTHING, "unsent": 1}
            ledger.close()

    @pytest.mark.parametrize(
        ("url", "fault"),
        [
            ("django://{postgres}?via=nowhere", "there is no 'nowhere' in DATABASES"),
            ("django://{sqlite}?via={postgres}", "via=postgres is a second way to PostgreSQL only"),
            ("django://{postgres}?vai={postgres}", "more than django://alias"),
            ("django://{postgres}/ledger", "more than django://alias"),
            ("django://{postgres}?via={postgres}&via={postgres}", "more than django://alias"),
        ],
    )
    def test_that_cannot_be_is_refused(self, postgres_alias: str, django_sqlite: str, url: str, fault: str) -> None:
        with pytest.raises(ConfigError, match=fault):
            django_ledger_from_url(url.format(postgres=postgres_alias, sqlite=django_sqlite), Clock())


@contextmanager
def tenant(alias: str, settings: dict[str, Any]) -> Iterator[str]:
    """An alias of the same database with tables in a schema of a tenant's own."""
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE SCHEMA tenant")
    try:
        with django_database("tenant", {**settings, "OPTIONS": {"options": "-c search_path=tenant"}}) as other:
            make_ledger_tables(other)
            yield other
    finally:
        with connections[alias].cursor() as cursor:
            cursor.execute("DROP SCHEMA tenant CASCADE")


def test_usage_is_in_one_ledger_whatever_the_search_path_of_a_transaction(
    on_postgres: DjangoLedger, postgres_alias: str, postgres_ledger: dict[str, Any]
) -> None:
    with tenant(postgres_alias, postgres_ledger) as other:
        with transaction.atomic(using=postgres_alias):
            hold = held(on_postgres)
            with connections[postgres_alias].cursor() as cursor:
                cursor.execute("SET LOCAL search_path TO tenant, public")
            commit(on_postgres, hold)
            on_postgres.record(Use(KEY, 2))
        with connections[other].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM stigg_guard_ledger_entries")
            assert cursor.fetchone() == (0,)
    assert on_postgres.counts() == {**NOTHING, "unsent": 1}
    assert unsent(on_postgres) == 3


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps end sooner; whoever watches over those before sleeps for longer."""
    monkeypatch.setattr(own, "STEP_SECONDS", 1)
    monkeypatch.setattr(deadlines, "_is_watched", False)


class TestDeadline:
    @pytest.mark.usefixtures("soon")
    def test_ends_a_step_that_waits_for_a_row(self, on_postgres: DjangoLedger, postgres_alias: str) -> None:
        held(on_postgres)
        with transaction.atomic(using=postgres_alias):
            with connections[postgres_alias].cursor() as cursor:
                cursor.execute("SELECT 1 FROM stigg_guard_ledger_usages FOR UPDATE")
            with pytest.raises(LedgerUnavailable, match=r"the ledger waited 1\.\d s for the database 'postgres'"):
                held(on_postgres)
        assert on_postgres.counts() == {**NOTHING, "held": 1}
        held(on_postgres)


@pytest.fixture
def pooled(postgres: PostgresServer, postgres_ledger: dict[str, Any], postgres_alias: str) -> Iterator[str]:
    """The alias of a database behind a pooler with as many connections as there are requests."""
    with (
        pooler(postgres, postgres_ledger, REQUESTS) as settings,
        django_database("pooled", {**settings, "CONN_MAX_AGE": None}) as alias,
    ):
        yield alias


class TestPooler:
    """Behind it each request has touched the database, and keeps its connection."""

    def statuses(self, ledger: DjangoLedger, alias: str) -> list[str]:
        all_have_one = threading.Barrier(REQUESTS)

        def request(_: int) -> str:
            try:
                with transaction.atomic(using=alias):
                    sell(alias)
                    all_have_one.wait(WAIT)
                    commit(ledger, held(ledger))
                return "served"
            except LedgerUnavailable as error:
                return str(error)
            finally:
                connections[alias].close()

        return at_once(request, REQUESTS)

    @pytest.mark.usefixtures("soon")
    def test_requests_do_not_wait_for_each_other_without_end(self, open_ledger: Open, pooled: str) -> None:
        ledger = open_ledger(pooled)
        held(ledger)
        assert {status.partition(" 1.")[0] for status in self.statuses(ledger, pooled)} == {"the ledger waited"}
        assert sold(pooled) == unsent(ledger) == 0

    def test_requests_do_not_wait_at_all_past_it(self, open_ledger: Open, pooled: str, postgres_alias: str) -> None:
        ledger = open_ledger(f"{pooled}?via={postgres_alias}")
        assert self.statuses(ledger, pooled) == ["served"] * REQUESTS
        assert sold(pooled) == unsent(ledger) == REQUESTS


class TestChecks:
    @pytest.fixture
    def ledger_at(self, settings: Any) -> Iterator[Callable[[str], None]]:
        def name(url: str) -> None:
            settings.STIGG_GUARD = {"CUSTOMER": lambda _: "ann", "ON_OUTAGE": "deny", "LEDGER": f"django://{url}"}

        before = settings.STIGG_GUARD
        yield name
        settings.STIGG_GUARD = before  # the guard is closed while its database is there

    def test_tell_before_deployment_how_many_connections_there_have_to_be(
        self, ledger_at: Callable[[str], None], postgres_alias: str, beside: str
    ) -> None:
        ledger_at(postgres_alias)
        assert found() == []
        assert found(deploy=True) == [
            "stigg_guard.I001 A request that uses units needs two connections to the database 'postgres'."
        ]
        ledger_at(f"{postgres_alias}?via={beside}")
        assert found(deploy=True) == []

    def test_find_a_pooler(self, ledger_at: Callable[[str], None], pooled: str, postgres_alias: str) -> None:
        ledger_at(pooled)
        assert found(postgres_alias) == []
        (warning,) = found(pooled)
        assert warning.startswith("stigg_guard.W009 The database 'pooled' is behind a pooler")
        ledger_at(f"{pooled}?via={postgres_alias}")
        assert found(pooled) == []
        ledger_at(postgres_alias)
        assert found(postgres_alias) == []

    def test_find_ways_that_part(
        self, ledger_at: Callable[[str], None], postgres_alias: str, beside: str, postgres: PostgresServer
    ) -> None:
        ledger_at(f"{postgres_alias}?via={beside}")
        assert found(postgres_alias) == []
        with django_database("apart", postgres.database("apart")) as apart:
            ledger_at(f"{postgres_alias}?via={apart}")
            (error,) = found(apart)
            assert error.startswith("stigg_guard.E007 LEDGER: 'postgres' leads to the schema public of the database")
            assert "'apart' to no tables" in error
            ledger_at(postgres_alias)

    def test_leave_a_database_that_is_away_to_others(
        self, ledger_at: Callable[[str], None], postgres_alias: str, postgres_ledger: dict[str, Any]
    ) -> None:
        with django_database("away", {**postgres_ledger, "HOST": "127.0.0.1", "PORT": "1"}) as away:
            ledger_at(away)
            assert found(away) == []
            ledger_at(postgres_alias)


def found(*databases: str, deploy: bool = False) -> list[str]:
    """What the system checks find."""
    checked = run_checks(tags=["stigg_guard"], databases=databases, include_deployment_checks=deploy)
    assert all(one.hint for one in checked)
    return sorted(f"{one.id} {one.msg}" for one in checked)
