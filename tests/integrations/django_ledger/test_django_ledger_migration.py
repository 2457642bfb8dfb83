"""The ledger of the version before becomes one of this version; its processes are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.color import no_style
from django.db import OperationalError, ProgrammingError, connections
from django.db.migrations.exceptions import IrreversibleError
from django.db.migrations.executor import MigrationExecutor
from pytest_django.plugin import DjangoDbBlocker

from django_databases import django_database, empty_ledger_tables
from integrations.django_ledger.helpers import KEY, LEASE, Open, claim
from postgres_server import PostgresServer
from stigg_guard.django.ledger.ledger import DjangoLedger
from stigg_guard.ledger import Entry, Event, Hold, LimitExceeded, Period, State, UsageKey, Use

APP = "stigg_guard_ledger"
TAKEN = 1_700_000_000.25
TAKEN_NS = 1_700_000_000_250_000_000
LATER = 1e10
MISSING = (OperationalError, ProgrammingError)
KEYS = [f"ann//{feature}" for feature in ("templates", "sent", "asked", "refused", "events")]


@pytest.fixture(params=["sqlite", "postgres"])
def old(request: pytest.FixtureRequest, tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> Iterator[str]:
    """The alias of a database with the tables of the version before."""
    settings: dict[str, Any] = {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "old.sqlite3"}
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        server.execute("DROP DATABASE IF EXISTS old WITH (FORCE)")
        settings = server.database("old")
    with django_db_blocker.unblock(), django_database("old", settings) as alias:
        migrate(alias, "0001")
        yield alias


def migrate(alias: str, to: str = "0003") -> None:
    call_command("migrate", APP, to, database=alias, verbosity=0)


def models_of(alias: str) -> Any:
    return MigrationExecutor(connections[alias]).loader.project_state([(APP, "0001_initial")]).apps


def fill(alias: str) -> None:
    apps = models_of(alias)
    entries = apps.get_model(APP, "Entry").objects.using(alias)
    templates, sent, asked, refused, events = KEYS
    entries.create(key=templates, state="unsent", amount=0.1, used_at=TAKEN, period_start=7.0)
    entries.create(key=templates, state="unsent", amount=0.2, used_at=TAKEN + 1)
    entries.create(key=sent, state="sending", amount=3, used_at=TAKEN, batch="b", until=TAKEN + 30, attempts=1)
    entries.create(key=asked, state="uncertain", amount=-4, used_at=TAKEN, until=None, reason="why", attempts=2)
    entries.create(key=refused, state="dead", amount=5, is_set=True, used_at=TAKEN, reason="no")
    event = '{"name": "login", "idempotency_key": "k", "dimensions": {"a": 1.5}}'
    entries.create(key=events, state="unsent", amount=6, used_at=TAKEN, event=event)
    held = apps.get_model(APP, "HeldUnits").objects.using(alias)
    held.create(hold="h", key=templates, amount=2, taken_at=TAKEN, until=LATER)
    held.create(hold="expired", key=templates, amount=9, taken_at=TAKEN, until=TAKEN + 1, counts=False)
    apps.get_model(APP, "Usage").objects.using(alias).create(key=templates, used=4, ticket=41)
    apps.get_model(APP, "Ticket").objects.using(alias).create(pk=41)
    apps.get_model(APP, "LateCommit").objects.using(alias).create()
    for statement in connections[alias].ops.sequence_reset_sql(no_style(), [apps.get_model(APP, "Ticket")]):
        with connections[alias].cursor() as cursor:
            cursor.execute(statement)


@pytest.fixture
def ledger(open_ledger: Open, old: str) -> DjangoLedger:
    fill(old)
    migrate(old)
    return open_ledger(old)


def told(report: Entry) -> tuple[object, ...]:
    since = report.used_at - TAKEN_NS
    assert (report.first_at, report.period, report.ticket) == (TAKEN_NS // 1000, Period(), 0)
    return report.state, report.key.feature_id, report.amount, report.is_set, since, report.reason, report.attempts


def test_what_is_on_its_way_is_brought_over(ledger: DjangoLedger) -> None:
    reports = ledger.entries([State.UNSENT, State.SENDING, State.UNCERTAIN, State.DEAD], 100)
    assert [told(report) for report in reports] == [
        (State.UNSENT, "templates", 0.3, False, 1_000_000_000, "", 0),  # of two, which are added up
        (State.SENDING, "sent", 3, False, 0, "", 1),
        (State.UNCERTAIN, "asked", -4, False, 0, "why", 2),
        (State.DEAD, "refused", 5, True, 0, "no", 0),
        (State.UNSENT, "events", 6, False, 0, "", 0),
    ]
    assert reports[-1].event == Event("login", "k", {"a": 1.5})
    assert ledger.counts() == {"held": 1, "unsent": 2, "sending": 1, "uncertain": 1, "waiting": 1, "dead": 1, "late": 1}


def test_what_is_held_and_on_its_way_counts_and_what_was_known_is_told_anew(ledger: DjangoLedger) -> None:
    assert ledger.known(KEY) is None
    assert ledger.hold([claim(8, limit=10)], 60) == LimitExceeded(claim(8, limit=10), 2.3, 10)
    assert ledger.outstanding(KEY) == 2.3


def test_a_hold_is_committed_by_whoever_took_it(ledger: DjangoLedger) -> None:
    ledger.commit(Hold("h", (claim(2),)), [Use(KEY, 2)])
    assert (ledger.counts()["held"], ledger.counts()["late"], ledger.outstanding(KEY)) == (0, 1, 2.3)


def test_a_batch_comes_again_unchanged(ledger: DjangoLedger) -> None:
    batch = ledger.take_batch(100, LEASE)
    assert batch is not None
    assert [(batch.id, report.id, report.amount, report.attempts) for report in batch.reports] == [("b", "3", 3, 2)]


def test_numbers_go_on(ledger: DjangoLedger) -> None:
    assert ledger.ticket("ann").number > 41
    before = {int(report.id) for report in ledger.entries([State.DEAD], 1)}
    ledger.record(Use(UsageKey("bob", "", "new"), 1))
    (report,) = (one for one in ledger.entries([State.UNSENT], 100) if one.key.customer_id == "bob")
    assert int(report.id) > max(before)


def test_processes_of_the_version_before_are_refused(ledger: DjangoLedger, old: str) -> None:
    for name in ("Entry", "HeldUnits", "Usage", "Ticket", "LateCommit"):
        model = models_of(old).get_model(APP, name)
        with pytest.raises(MISSING, match=r"no such table|does not exist"):
            model.objects.using(old).count()


def test_only_an_empty_ledger_becomes_one_of_the_version_before(ledger: DjangoLedger, old: str) -> None:
    with pytest.raises(IrreversibleError, match="stigg_ledger drain"):
        migrate(old, "0001")
    empty_ledger_tables(old)
    migrate(old, "0001")
    assert models_of(old).get_model(APP, "Entry").objects.using(old).count() == 0
    migrate(old, "zero")
    migrate(old)
    assert not any(ledger.counts().values())
