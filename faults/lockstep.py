"""One random program of steps on every home of the ledger: all outputs are equal."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from django.core.management import call_command
from redis import Redis
from tests.lockstep import GRACE, Lockstep, LockstepClock
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer

from faults.django_ledger import set_up
from faults.promise import Promise, Scale
from faults.workers import CONTEXT, processes

STEPS = 400
"""How many steps each round of the scale adds."""
AT_ONCE = 1_000
PATIENCE = 7_200.0
HASTY = {"init_command": "PRAGMA synchronous = OFF"}


def lockstep(scale: Scale) -> Iterator[Promise]:
    """Memory, a file, Redis, and Django on SQLite and on PostgreSQL."""
    folder = scale.folder / "lockstep"
    folder.mkdir()
    results: Any = CONTEXT.Queue()
    with RedisServer(folder, durable=False) as server, PostgresServer(durable=False) as postgres:
        databases = {
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": folder / "django.sqlite3", "OPTIONS": HASTY},
            "postgres": postgres.database("site"),
        }
        with processes(1, _walk, folder, server.url, databases, STEPS * scale.rounds, results):
            made, difference = results.get(timeout=PATIENCE)
    yield Promise(
        "all homes of the ledger give equal answers", f"{made} steps on each of 5; {difference}", not difference
    )


def _walk(
    folder: Path, server: str, databases: Mapping[str, Mapping[str, Any]], steps: int, results: Any, _number: int
) -> None:
    """Makes the steps, a thousand on new ledgers each time, until an answer differs."""
    set_up(**databases)
    for alias in databases:
        call_command("migrate", "stigg_guard_ledger", database=alias, verbosity=0)
    made, difference = 0, ""
    while made < steps and not difference:
        difference = _difference(folder / f"{made}.sqlite3", server, databases)
        made += AT_ONCE
    results.put((made, difference))
    results.close()
    results.join_thread()


def _difference(file: Path, server: str, aliases: Iterable[str]) -> str:
    from tests.django_databases import empty_ledger_tables, open_ledger  # they have models: Django is set up by now

    clock = LockstepClock()
    Redis.from_url(server).flushall()
    urls = {"memory": "memory://", "file": f"sqlite:///{file}", "redis": f"{server}?socket_timeout=20"}
    for alias in aliases:
        empty_ledger_tables(alias)
        urls[alias] = f"django://{alias}"
    ledgers = {name: open_ledger(url, clock.clock, settle_grace=GRACE) for name, url in urls.items()}
    run = Lockstep(ledgers, clock, random.randrange(2**32))
    try:
        for _ in range(AT_ONCE):
            run.step()
    except AssertionError as error:
        return str(error)
    finally:
        for ledger in ledgers.values():
            ledger.close()
    return ""
