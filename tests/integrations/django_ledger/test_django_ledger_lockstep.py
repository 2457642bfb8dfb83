"""Ledgers in databases give the same answers as one in memory to one random program of steps."""

from __future__ import annotations

import pytest
from django.db import connections

from lockstep import GRACE, Lockstep, LockstepClock
from stigg_guard.django.ledger.ledger import django_ledger_from_url
from stigg_guard.ledger.sqlite import SqliteLedger


@pytest.mark.parametrize("seed", range(2))
def test_equal(seed: int, django_sqlite: str, django_postgres: str) -> None:
    clock = LockstepClock()
    in_databases = {
        alias: django_ledger_from_url(f"django://{alias}", clock.clock, settle_grace=GRACE)
        for alias in (django_sqlite, django_postgres)
    }
    run = Lockstep({"memory": SqliteLedger(None, clock.clock, settle_grace=GRACE), **in_databases}, clock, seed)
    connections[django_sqlite].ensure_connection()
    for _ in range(150):
        run.step()
    for home in run.homes.values():
        home.ledger.close()
