"""Exceptions that come from outside at any moment: a soft time limit, Ctrl-C, a watchdog. Each costs one use at most.

A signal handler raises in the main thread, after a random time, wherever that thread is: in the guard, in the ledger,
between the two. What returned must be counted, once; what was struck may be counted or not; and afterwards another
thread uses units at once, and nothing is held any more.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.redis_server import RedisServer

from faults.promise import Promise, Scale
from faults.sidecars import LocalSidecar
from faults.workers import CONTEXT, drain, make_guard, processes

CUSTOMER = "customer"
FEATURE = "feature-units"
LIMIT = 1_000_000
STRIKES = 250
"""How often each round of the scale strikes each ledger in each mode."""
HOLD_TTL = 2.0
SOONEST, LATEST = 2e-5, 1.2e-3  # about as long as one use takes
HANGS_AFTER = 10.0
PATIENCE = 600.0


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


def _on(scale: Scale, home: str, mode: str, ledger: str) -> Iterator[Promise]:
    strikes = STRIKES * scale.rounds
    folder = scale.folder / f"interrupted-{home}-{mode}-sidecar"
    with LocalSidecar(folder, {FEATURE: LIMIT}, [CUSTOMER]) as sidecar:
        results: Any = CONTEXT.Queue()
        with processes(1, _use_while_struck, sidecar.address, ledger, mode, strikes, results):
            found: Counter[str] = Counter(results.get(timeout=PATIENCE))
        if home != "memory":
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


def _use_while_struck(address: str, ledger: str, mode: str, strikes: int, results: Any, _number: int) -> None:
    guard = make_guard(address, ledger, REPORT=mode, HOLD_TTL=HOLD_TTL)
    with guard.consume(FEATURE, customer=CUSTOMER):
        pass
    found = Counter({"returned": 1})
    armed = False

    def strike(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Struck

    signal.signal(signal.SIGALRM, strike)
    while found["struck"] < strikes:
        try:
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(SOONEST, LATEST))
                with guard.consume(FEATURE, customer=CUSTOMER):
                    pass
                armed = False
                found["returned"] += 1
            finally:
                armed = False
        except Struck:
            found["struck"] += 1
        except Exception:  # whatever it is, it was not asked for
            found["other"] += 1
    signal.setitimer(signal.ITIMER_REAL, 0)

    def another() -> None:
        with guard.consume(FEATURE, customer=CUSTOMER):
            pass
        found["returned"] += 1
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
