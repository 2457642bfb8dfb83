"""All homes of the ledger give equal answers to one random program of steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep import GRACE, Lockstep, LockstepClock
from redis_server import RedisServer
from stigg_guard.django.ledger.ledger import django_ledger_from_url
from stigg_guard.errors import KeyReused, UsageInProgress, UsageRepeated
from stigg_guard.ledger import ledger_from_url

STEPS = 500


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, durable=False) as server:
        yield server


@pytest.mark.parametrize("seed", range(2))
def test_homes_are_equal(
    seed: int, tmp_path: Path, redis: RedisServer, django_sqlite: str, django_postgres: str, preparing_postgres: str
) -> None:
    clock = LockstepClock()
    urls = {"memory": "memory://", "file": f"sqlite:///{tmp_path}/ledger.db", "Redis": f"{redis.url}?socket_timeout=20"}
    ledgers = {name: ledger_from_url(url, clock.clock, settle_grace=GRACE) for name, url in urls.items()}
    for alias in (django_sqlite, django_postgres, preparing_postgres):
        ledgers[alias] = django_ledger_from_url(f"django://{alias}", clock.clock, settle_grace=GRACE)
    run = Lockstep(ledgers, clock, seed)
    for _ in range(STEPS):
        run.step()
    assert run.made.keys() >= {"hold", "commit", "record", "take_batch", "acknowledge", "take_uncertain", "entries"}
    assert run.outcomes == {"held", "refused", UsageInProgress, UsageRepeated, KeyReused}
    for ledger in ledgers.values():
        ledger.close()
