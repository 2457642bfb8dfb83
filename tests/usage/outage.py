"""A sidecar that can go away and tells of every report, and how a guard over it stands."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from typing import Any

import pytest

from conftest import ManualClock, settings_of
from stigg_guard import GetMeteredEntitlementRequest, Guard
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.usage.delivery import RECHECK_SECONDS

CATALOG = """
[features.seats]
type = "metered"
meter = "fluctuating"
[features.calls]
type = "metered"
meter = "incremental"
[features.tokens]
type = "metered"
meter = "incremental"
[features.elsewhere]
type = "metered"
meter = "incremental"
[plans.p.entitlements]
seats = { limit = 10 }
calls = { limit = 5 }
tokens = { limit = 100 }
[customers.c]
plan = "p"
[customers.c.resources.site]
plan = "p"
[meters.answered]
feature = "tokens"
aggregation = "sum"
dimension = "tokens"
"""

MakeGuard = Callable[..., Guard]


class WatchedEngine(Engine):
    """Tells ``counted`` of every report, after it was counted and before it is answered."""

    counted: Callable[[Any], None] = staticmethod(lambda _request: None)

    def answer(self, method: str, request: Any, **options: Any) -> Any:
        answer = super().answer(method, request, **options)
        if method.startswith("Report"):
            self.counted(request)
        return answer

    def used(self, feature: str, resource: str | None = None) -> float:
        request = GetMeteredEntitlementRequest(customer_id="c", feature_id=feature, resource_id=resource)
        answer: Any = self.answer("GetMeteredEntitlement", request)
        return float(answer.entitlement.current_usage)


class Outage:
    """A sidecar that can go away, and come back at the same address a little later by the clock of the tests: a report
    that was under way when it went, and whose outcome nobody knows, is due again."""

    def __init__(self, engine: Engine, clock: ManualClock) -> None:
        self._engine = engine
        self._clock = clock
        self._running = Sidecar(engine)
        self._running.start()
        self._ports = [int(at.rpartition(":")[2]) for at in (self._running.address, self._running.http_address)]
        self.settings = settings_of(self._running)
        self._is_up = True

    def begin(self) -> None:
        if self._is_up:
            self._running.stop(grace=0)
            self._is_up = False

    def end(self) -> None:
        self._clock.advance(RECHECK_SECONDS)
        self._running = Sidecar(self._engine, "127.0.0.1", *self._ports)
        self._running.start()
        self._is_up = True


def unlimited_disk() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def exit_status(work: Callable[[], float]) -> int:
    """Returns what the work returns in a forked child; 99 when it fails."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = int(work())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def waiting(guard: Guard) -> int:
    """How many reports the ledger has, whether the reporter is trying to send them right now or not."""
    stats = guard.stats()
    return stats["unsent"] + stats["sending"]


def levels(caplog: pytest.LogCaptureFixture) -> set[int]:
    return {record.levelno for record in caplog.records if record.name == "stigg_guard"}
