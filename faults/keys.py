"""The same keys sent by many processes at once, some of which are killed: each counts once.

Each key is of an order with an amount of its own, so that what the sidecar has counted in the end tells of any order
that counted twice, or not at all.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from django.core.management import call_command
from django.db import transaction
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer

from faults.django_ledger import make_django_guard, set_up
from faults.promise import Promise, Scale
from faults.sidecars import LocalSidecar
from faults.workers import CONTEXT, WorkFailed, drain, make_guard, processes
from stigg_guard import Guard, LedgerUnavailable, SidecarError, UsageInProgress

PROCESSES, THREADS = 8, 4
KEYS, TIMES = 1_000, 5
KILLED = 2
HOLD_TTL = 5
PATIENCE = 300.0
CUSTOMER, FEATURE = "customer", "feature-orders"
DJANGO = "django"

Database = Mapping[str, Any]


def keys(scale: Scale) -> Iterator[Promise]:
    """8 processes send each of 1,000 keys 5 times, and a fifth of the work fails; then again, and two are killed."""
    for deaths in (0, KILLED):
        yield from _on(scale, "sqlite", f"sqlite:///{scale.folder / f'keys-{deaths}.sqlite3'}", deaths)
        folder = scale.folder / f"keys-server-{deaths}"
        folder.mkdir()
        with RedisServer(folder) as redis:
            yield from _on(scale, "redis", redis.url, deaths)
        with PostgresServer(durable=False) as postgres:
            database = {**postgres.database("site"), "CONN_MAX_AGE": None}
            yield from _on(scale, DJANGO, "", deaths, database)


def _on(scale: Scale, home: str, ledger: str, deaths: int, database: Database | None = None) -> Iterator[Promise]:
    with LocalSidecar(scale.folder / f"keys-{home}-{deaths}", {FEATURE: None}, [CUSTOMER]) as sidecar:
        if database is not None:
            with processes(1, _migrate, database) as (migrating,):
                migrating.join(PATIENCE)
        outcomes, seconds = _sent(sidecar.address, ledger, database, deaths)
        with processes(1, _finish, sidecar.address, ledger, database) as (finishing,):
            finishing.join(2 * PATIENCE)
        counted = sidecar.usage([CUSTOMER])[CUSTOMER, FEATURE]
    what = f"{home}: {PROCESSES} processes send {KEYS} keys {TIMES} times at once"
    if deaths:
        what += f", {deaths} are killed"
    else:
        once = outcomes["counted"] == KEYS and outcomes["repeat"] == KEYS * (TIMES - 1)
        yield Promise(f"{what}: one of each runs to its end", f"{dict(outcomes)}, {seconds:.1f} s", once)
    expected = sum(map(_amount, range(KEYS)))
    yield Promise(f"{what}: each counts once", f"{counted:g} counted of {expected}", counted == expected)


def _sent(address: str, ledger: str, database: Database | None, deaths: int) -> tuple[Counter[str], float]:
    """How the requests of the processes ended that lived on, and how many seconds they took."""
    results: Any = CONTEXT.Queue()
    together = CONTEXT.Barrier(PROCESSES + 1, timeout=PATIENCE)
    with processes(PROCESSES, _work, address, ledger, database, together, results) as started:
        together.wait()
        began = time.monotonic()
        for process in started[:deaths]:
            time.sleep(random.uniform(0.1, 0.5))
            process.kill()
        outcomes = sum((results.get(timeout=PATIENCE) for _ in started[deaths:]), Counter[str]())
        return outcomes, time.monotonic() - began


def _work(address: str, ledger: str, database: Database | None, together: Any, results: Any, number: int) -> None:
    with _guard(address, ledger, database) as guard, ThreadPoolExecutor(THREADS) as threads:
        sent = [key for key in range(KEYS) if (number - key) % PROCESSES < TIMES]
        together.wait()
        outcomes: Counter[str] = sum(threads.map(partial(_send, guard, database), sent), Counter[str]())
    results.put(outcomes)


def _send(guard: Guard, database: Database | None, key: int) -> Counter[str]:
    """Sends the order until it was done, now or before."""
    outcomes: Counter[str] = Counter()
    within: AbstractContextManager[Any]
    while not outcomes["counted"] + outcomes["repeat"]:
        within = nullcontext() if database is None else transaction.atomic()
        try:
            with within, guard.consume(FEATURE, _amount(key), customer=CUSTOMER, key=f"order-{key}") as usage:
                time.sleep(random.random() * 0.004)
                if not usage.is_repeat and random.random() < 0.2:
                    raise WorkFailed
            outcomes["repeat" if usage.is_repeat else "counted"] += 1
        except (WorkFailed, UsageInProgress, LedgerUnavailable, SidecarError) as error:
            outcomes[type(error).__name__] += 1
            time.sleep(random.random() * 0.02)
    return outcomes


def _finish(address: str, ledger: str, database: Database | None, _number: int) -> None:
    """Sends each order once more, as clients do whose server died, and reports what is left."""
    with _guard(address, ledger, database) as guard:
        for key in range(KEYS):
            _send(guard, database, key)
        guard.flush(PATIENCE)
    if database is None:
        drain(address, ledger)


def _guard(address: str, ledger: str, database: Database | None) -> Guard:
    if database is None:
        return make_guard(address, ledger, HOLD_TTL=HOLD_TTL, REPORT="background")
    set_up(database)
    return make_django_guard(address, REPORT="background")


def _migrate(database: Database, _number: int) -> None:
    set_up(database)
    call_command("migrate", verbosity=0)


def _amount(key: int) -> int:
    return key + 1
