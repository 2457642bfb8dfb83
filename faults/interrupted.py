"""Exceptions that come from outside at any moment: a soft time limit, Ctrl-C, a watchdog. Each costs one use at most.

A signal handler raises in the main thread, after a random time, wherever that thread is: in the guard, in the ledger,
between the two. What returned must be counted, once; what was struck may be counted or not; and afterwards another
thread uses units at once, and nothing is held any more. Half of the uses that are struck come right after another one
was, and find a connection that must be made anew.
"""

from __future__ import annotations

import random
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

from django.core.management import call_command
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer

from faults.django_ledger import make_django_guard, set_up
from faults.promise import Promise, Scale
from faults.sidecars import LocalSidecar
from faults.workers import CONTEXT, drain, make_guard, processes
from stigg_guard import Guard

CUSTOMER = "customer"
FEATURE = "feature-units"
LIMIT = 1_000_000
STRIKES = 320
"""How often each round of the scale strikes each ledger in each mode."""
STRIKES_OF_A_DATABASE = 50  # after which its driver mostly connects anew
HOLD_TTL = 2.0
PEACEFUL = 50
"""How many uses tell how long one takes."""
LATEST = 1.5
"""The latest moment of a strike, in the time that a use takes."""
HANGS_AFTER = 10.0
PATIENCE = 3_600.0


class Struck(Exception):
    """What the signal handler raises."""


def interrupted(scale: Scale) -> Iterator[Promise]:
    """Strikes each kind of ledger, reporting in the background and inline."""
    for mode in ("background", "inline"):
        yield from _on(scale, "memory", mode, "memory://")
        yield from _on(scale, "sqlite", mode, f"sqlite:///{scale.folder / f'interrupted-{mode}.sqlite3'}")
        folder = scale.folder / f"interrupted-{mode}-server"
        folder.mkdir()
        with RedisServer(folder, durable=False) as server:
            yield from _on(scale, "redis", mode, server.url)
        with PostgresServer(durable=False) as postgres:
            yield from _on(scale, "postgresql", mode, "django://default", postgres.database("site"))


def _on(
    scale: Scale, home: str, mode: str, ledger: str, database: Mapping[str, Any] | None = None
) -> Iterator[Promise]:
    strikes = scale.rounds * (STRIKES if database is None else STRIKES_OF_A_DATABASE)
    folder = scale.folder / f"interrupted-{home}-{mode}-sidecar"
    with LocalSidecar(folder, {FEATURE: LIMIT}, [CUSTOMER]) as sidecar:
        results: Any = CONTEXT.Queue()
        with processes(1, _use_while_struck, sidecar.address, ledger, database, mode, strikes, results):
            found: Counter[str] = Counter(results.get(timeout=PATIENCE))
        if home in ("sqlite", "redis"):  # where another process can report what the struck one may have left
            drain(sidecar.address, ledger)
        counted = sidecar.usage([CUSTOMER])[CUSTOMER, FEATURE]
    returned, struck = found["returned"], found["struck"]
    what = f"{home}, {mode}: {struck} exceptions from outside"
    yield Promise(
        f"{what} lose nothing that returned, and count nothing twice",
        f"{returned} returned, {counted:g} counted, {found['other']} other errors",
        returned <= counted <= returned + struck and struck >= strikes and not found["other"],
    )
    yield Promise(
        f"{what} leave nothing behind",
        f"another thread used units: {bool(found['went on'])}; held afterwards: {found['held']}",
        bool(found["went on"]) and not found["held"],
    )


def _use_while_struck(
    address: str,
    ledger: str,
    database: Mapping[str, Any] | None,
    mode: str,
    strikes: int,
    results: Any,
    _number: int,
) -> None:
    guard = _guard(address, ledger, database, REPORT=mode, HOLD_TTL=HOLD_TTL)
    found: Counter[str] = Counter()

    def use() -> None:
        with guard.consume(FEATURE, customer=CUSTOMER):
            pass
        found["returned"] += 1

    _strike(use, strikes, found)

    def another() -> None:
        use()
        found["went on"] += 1

    thread = threading.Thread(target=another, daemon=True)
    thread.start()
    thread.join(HANGS_AFTER)
    time.sleep(2 * HOLD_TTL)
    guard.flush(60)
    found["held"] = guard.stats()["held"]
    results.put(dict(found))
    results.close()
    results.join_thread()


def _strike(use: Callable[[], None], strikes: int, found: Counter[str]) -> None:
    """Uses, and raises amid it, until that many were struck."""
    is_armed = False

    def strike(*_: object) -> None:
        nonlocal is_armed
        if is_armed:
            is_armed = False
            raise Struck

    latest = LATEST * median(_seconds(use) for _ in range(PEACEFUL))
    signal.signal(signal.SIGALRM, strike)
    while found["struck"] < strikes:
        if random.random() < 0.5:
            use()
        try:
            try:
                is_armed = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, latest))
                use()
            finally:
                is_armed = False
        except Exception as error:
            if _is_strike(error):
                found["struck"] += 1
            else:  # whatever it is, it was not asked for
                found["other"] += 1
                traceback.print_exc()
    signal.setitimer(signal.ITIMER_REAL, 0)


def _is_strike(error: BaseException | None) -> bool:
    """Whether it is what was raised, or what somebody made of it on the way, as a driver does."""
    return error is not None and (isinstance(error, Struck) or _is_strike(error.__cause__ or error.__context__))


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _guard(address: str, ledger: str, database: Mapping[str, Any] | None, **settings: Any) -> Guard:
    if database is None:
        return make_guard(address, ledger, **settings)
    set_up(database)
    call_command("migrate", verbosity=0)
    return make_django_guard(address, **settings)
