"""The cache service beside four workers: no view fetches, changes are seen at once, and a kill costs only freshness."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import requests
from tests.redis_server import RedisServer

from faults.promise import Promise, Scale
from faults.sidecars import LocalSidecar
from faults.workers import CONTEXT, PATIENCE, processes
from stigg_guard import Config, Guard
from stigg_guard.observer import Observer, Step

WORKERS = 4
CUSTOMERS = [f"customer-{number}" for number in range(20)]
FEATURE = "seats"
LIMITS = {"small": 5, "large": 50}
CACHE_TTL = 10.0
SOON = 1.0
PAUSE = 0.002
"""Between two checks of a worker, so that the machine is not the limit."""
AWAY = 3.0
CATALOG = "\n".join(
    [
        f'[features.{FEATURE}]\ntype = "metered"\nmeter = "fluctuating"',
        *(f"[plans.{plan}.entitlements]\n{FEATURE} = {{ limit = {limit} }}" for plan, limit in LIMITS.items()),
        *(f'[customers.{customer}]\nplan = "small"' for customer in CUSTOMERS),
    ]
)


def freshness(scale: Scale) -> Iterator[Promise]:
    """Traffic for the seconds of the scale, a change of plan each second, and the service killed once in the middle."""
    folder = scale.folder / "freshness"
    folder.mkdir()
    with RedisServer(folder) as redis, LocalSidecar(folder / "sidecar", catalog=CATALOG) as sidecar:
        settings = {
            "SIDECAR": sidecar.address,
            "CACHE": redis.url,
            "CACHE_TTL": CACHE_TTL,
            "TIMEOUT": 2.0,
            "LEDGER": "memory://",
        }
        seen: Any = CONTEXT.Queue()
        over, counts = CONTEXT.Event(), CONTEXT.Queue()
        changes = _Changes(sidecar, seen)
        with processes(WORKERS, _work, settings, seen, counts, over):
            with _service(settings):
                before = changes.go_on(scale.traffic_seconds / 2)
            during = changes.go_on(AWAY)
            with _service(settings):
                after = changes.go_on(scale.traffic_seconds / 2)
            over.set()
            told = [counts.get(timeout=PATIENCE) for _ in range(WORKERS)]
    checks, failed = (sum(count[name] for count in told) for name in ("checks", "failed"))
    fetched = sorted(instant for count in told for instant in count["fetched"])
    beside = [at for at in fetched for stretch in (before, after) if stretch.begin <= at < stretch.end]
    took = before.took + after.took
    yield Promise(
        f"cache service beside {WORKERS} workers: no check fetches",
        f"{checks} checks in {scale.traffic_seconds:g} s, {len(beside)} fetched, CACHE_TTL {CACHE_TTL:g} s",
        not beside and checks > 0,
    )
    yield Promise(
        f"cache service: a change of plan is seen by all workers within {SOON:g} s",
        f"{len(took)} changes, the last worker saw each within {max(took) * 1e3:.0f} ms",
        max(took) < SOON,
    )
    without = [at for at in fetched if during.begin <= at < after.begin]
    yield Promise(
        "cache service: killed, it costs nothing but freshness",
        f"away for {after.begin - during.begin:.1f} s: {len(without)} fetched, {failed} checks failed, "
        f"{len(during.took)} changes seen within {max(during.took) * 1e3:.0f} ms",
        not failed and max(during.took) < CACHE_TTL,
    )


@contextmanager
def _service(settings: dict[str, Any]) -> Iterator[None]:
    """The service as a process of its own, from when it has read everybody until it is killed."""
    environ = {**os.environ, **{f"STIGG_GUARD_{name}": str(value) for name, value in settings.items()}}
    command = [sys.executable, "-m", "stigg_guard", "cache-service", "--http-port", "0"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        http = service.stdout.readline().strip().partition("http=")[2]
        try:
            deadline = time.monotonic() + PATIENCE
            while not requests.get(f"http://{http}/readyz", timeout=PATIENCE).ok:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the cache service at {http} was not ready within {PATIENCE:g} s")
                time.sleep(0.05)
            yield
        finally:
            service.kill()


class _Stretch(NamedTuple):
    begin: float
    end: float
    took: list[float]
    """How long each change took to be seen by all workers, in seconds."""


class _Changes:
    """Puts one customer after the other on the other plan."""

    def __init__(self, sidecar: LocalSidecar, seen: Any) -> None:
        self._sidecar = sidecar
        self._seen = seen
        self._plans = ((whose, plan) for plan in itertools.cycle(("large", "small")) for whose in CUSTOMERS)

    def go_on(self, seconds: float) -> _Stretch:
        begin, took = time.monotonic(), []
        while time.monotonic() < begin + seconds:
            took.append(self._change(*next(self._plans)))
            time.sleep(1.0)
        return _Stretch(begin, time.monotonic(), took)

    def _change(self, customer: str, plan: str) -> float:
        at = instant = time.monotonic()
        self._sidecar.change("plan", customer=customer, plan=plan)
        waiting = set(range(WORKERS))
        while waiting:
            worker, whose, limit, instant = self._seen.get(timeout=PATIENCE)
            if (whose, limit) == (customer, LIMITS[plan]):
                waiting.discard(worker)
        return instant - at


class _Fetches(Observer):
    """When this process fetched, by the clock that all processes of a host share."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def fetched(self, step: Step) -> None:
        self.at.append(time.monotonic())


def _work(settings: dict[str, Any], seen: Any, counts: Any, over: Any, number: int) -> None:
    """Checks random customers, and tells of each limit that it sees for the first time."""
    fetches, known = _Fetches(), dict.fromkeys(CUSTOMERS, 0.0)
    checks = failed = 0
    with Guard(Config.from_mapping(settings), observer=fetches) as guard:
        while not over.is_set():
            customer = random.choice(CUSTOMERS)
            limit = guard.check(FEATURE, customer=customer).usage_limit
            checks += 1
            failed += limit is None
            if limit is not None and limit != known[customer]:
                known[customer] = limit
                seen.put((number, customer, limit, time.monotonic()))
            time.sleep(PAUSE)
    counts.put({"checks": checks, "failed": failed, "fetched": fetches.at})
