"""Where a ledger can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import transaction
from django.test import modify_settings

from conftest import ManualClock
from django_databases import django_database
from integrations.django_ledger.helpers import KEY, Open, claim, make_shop, sell, sold
from postgres_server import PostgresServer
from stigg_guard.clock import Clock, microseconds
from stigg_guard.django.ledger.ledger import DjangoLedger, django_ledger_from_url
from stigg_guard.errors import ConfigError, LedgerUnavailable
from stigg_guard.ledger import Use, ledger_from_url


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

    def test_whose_tables_a_router_forbids_is_told_of_without_a_circle(
        self, open_ledger: Open, django_sqlite: str, tmp_path: Path, settings: Any
    ) -> None:
        settings.DATABASE_ROUTERS = [f"{__name__}.KeepsAway"]
        with django_database("kept", {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "kept"}) as alias:
            ledger = open_ledger(alias)
            with pytest.raises(LedgerUnavailable, match=r"let allow_migrate\('kept', 'stigg_guard_ledger'\) be true"):
                ledger.counts()


class KeepsAway:
    """A router that lets no tables into one of the databases."""

    def allow_migrate(self, db: str, app_label: str, **_: object) -> bool | None:
        return False if db == "kept" else None


class TestClock:
    def test_is_the_servers(self, postgres: PostgresServer, postgres_alias: str) -> None:
        ledger = django_ledger_from_url(f"django://{postgres_alias}", Clock())
        now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        before, drawn, after = postgres.ask(now), ledger.ticket("ann").at, postgres.ask(now)
        ledger.close()
        assert before <= drawn <= after

    def test_is_the_one_that_is_given(self, ledger: DjangoLedger, clock: ManualClock) -> None:
        assert ledger.ticket("ann").at == microseconds(clock.now())
        clock.advance(0.25)
        assert ledger.ticket("ann").at == microseconds(clock.now())
