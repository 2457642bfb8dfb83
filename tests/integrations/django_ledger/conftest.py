"""Ledgers in databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conftest import ManualClock
from integrations.django_ledger.helpers import Open, make_shop
from stigg_guard.django.ledger.ledger import DjangoLedger, django_ledger_from_url


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
