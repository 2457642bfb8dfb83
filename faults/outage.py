"""The sidecar is away for the whole run: limits, order, and a long backlog."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

from faults.promise import Promise, Scale
from faults.sidecars import LocalSidecar
from faults.workers import CONTEXT, PATIENCE, drain, make_guard, processes
from stigg_guard import FeatureDenied, Guard
from stigg_guard.ledger import State

PROCESSES = 4
LIMIT = 2_000
CUSTOMERS = [f"customer-{number}" for number in range(1_000)]
UNITS = "feature-units"
TOTAL = "feature-total"
OTHERS = [f"feature-{number}" for number in range(100)]
SETS = 100
MEBIBYTE = 1 << 20
MEMORY_BOUND = 32  # in MiB, however long the backlog


def outage(scale: Scale) -> Iterator[Promise]:
    """What the ledger alone keeps, and how the backlog drains when the sidecar is back."""
    limits = {UNITS: LIMIT, TOTAL: None, **dict.fromkeys(OTHERS)}
    sidecar = LocalSidecar(scale.folder / "outage", limits, CUSTOMERS)
    yield from limits_while_away(sidecar, f"sqlite:///{scale.folder / 'outage.sqlite3'}")
    yield from _backlog(sidecar, f"sqlite:///{scale.folder / 'backlog.sqlite3'}", scale.entries)


def limits_while_away(sidecar: LocalSidecar, ledger: str) -> Iterator[Promise]:
    """What all processes may use while the sidecar is away."""
    customer = CUSTOMERS[0]
    sidecar.start()
    results: Any = CONTEXT.Queue()
    warm, away = CONTEXT.Barrier(PROCESSES + 1, timeout=PATIENCE), CONTEXT.Barrier(PROCESSES + 1, timeout=PATIENCE)
    with processes(PROCESSES, _use_up, sidecar.address, ledger, customer, warm, away, results):
        warm.wait()
        sidecar.kill()
        away.wait()
        used = [results.get(timeout=PATIENCE) for _ in range(PROCESSES)]
    with sidecar:
        drain(sidecar.address, ledger)
        counted = sidecar.usage([customer])[customer, UNITS]
    yield Promise(
        "sidecar away: the ledger keeps the limit of all processes, to the unit",
        f"{'+'.join(map(str, used))} = {sum(used)} of {LIMIT} used, {counted:g} counted afterwards",
        sum(used) == LIMIT == counted,
    )


def _use_up(address: str, ledger: str, customer: str, warm: Any, away: Any, results: Any, _number: int) -> None:
    with make_guard(address, ledger, CACHE_TTL=0.001) as guard:
        guard.entitlements(customer)
        warm.wait()
        away.wait()
        results.put(_used_up(guard, customer))


def _used_up(guard: Guard, customer: str) -> int:
    used = 0
    try:
        while True:
            with guard.consume(UNITS, customer=customer):
                time.sleep(random.random() * 0.001)
            used += 1
    except FeatureDenied:
        return used


def _backlog(sidecar: LocalSidecar, ledger: str, entries: int) -> Iterator[Promise]:
    keys = [(customer, feature) for customer in CUSTOMERS for feature in OTHERS][:entries]
    with make_guard(sidecar.address, ledger) as guard:
        began = time.monotonic()
        for customer, feature in keys:
            guard.report(feature, 1, customer=customer)
        for total in range(1, SETS + 1):
            guard.report(TOTAL, total, customer=CUSTOMERS[0], set_total=True)
        unsent = guard.ledger.counts()["unsent"]
        written = unsent / (time.monotonic() - began)
        before = _peak_memory()
        with sidecar, _Watch(sidecar, guard) as watch:
            began = time.monotonic()
            while guard.flush(1.0):
                time.sleep(0.05)
            drained = unsent / (time.monotonic() - began)
            grown = (_peak_memory() - before) / MEBIBYTE
            usage = sidecar.usage(CUSTOMERS)
    wrong = sum(usage[key] != 1 for key in keys)
    last = usage[CUSTOMERS[0], TOTAL]
    yield Promise(
        f"a backlog of {unsent:,} reports drains without loss",
        f"{wrong} of {len(keys):,} keys wrong; written at {written:,.0f}/s, drained at {drained:,.0f}/s",
        not wrong,
    )
    yield Promise("its memory does not grow with the backlog", f"{grown:.1f} MiB more at most", grown < MEMORY_BOUND)
    yield Promise(
        "it drains in the order of use",
        f"{watch.out_of_order} of {watch.looks} looks out of order; the last total is {last:g} of {SETS}",
        not watch.out_of_order and watch.looks > 0 and last == SETS,
    )


class _Watch:
    """Looks on while a backlog drains: the oldest usages go first, and totals that were set never go back."""

    def __init__(self, sidecar: LocalSidecar, guard: Guard) -> None:
        self.looks = 0
        self.out_of_order = 0
        self._sidecar = sidecar
        self._guard = guard
        self._done = Event()
        self._thread = Thread(target=self._look)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        oldest, total = 0, 0.0
        while not self._done.wait(0.1):
            unsent = self._guard.ledger.entries([State.UNSENT], 1)
            if not unsent:
                continue
            now_oldest = int(unsent[0].id)
            now_total = self._sidecar.usage(CUSTOMERS[:1])[CUSTOMERS[0], TOTAL]
            self.looks += 1
            self.out_of_order += now_oldest < oldest or now_total < total
            oldest, total = now_oldest, now_total


def _peak_memory() -> int:
    """The most that this process ever had in memory, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
