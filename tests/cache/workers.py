"""A Redis that processes share their snapshots through, and what one of them has and hears."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeAlias

import pytest

from redis_server import RedisServer
from stigg_guard import Clock, Config, Customer, Guard
from stigg_guard.cache.redis_snapshots import RedisSnapshots
from stigg_guard.cache.snapshots import Snapshot, snapshot_of
from stigg_guard.clock import microseconds
from stigg_guard.ledger import Ticket
from stigg_guard.wire import sidecar_pb2 as wire

CUSTOMER = "customer-demo-01"
ANN = Customer("ann")
KEY = "stigg-guard:snapshot:ann/"
CHANNEL = "stigg-guard:invalidated"
TEMPLATES = "feature-templates"
NOBODY_LISTENS = "127.0.0.1:1"
PATIENCE = 30.0


MakeGuard: TypeAlias = "Callable[..., Guard]"
News: TypeAlias = "SimpleQueue[tuple[Customer, int]]"


class Room:
    """The shared snapshots as one process sees them, and what it hears."""

    def __init__(self, url: str, clock: Clock, **given: object) -> None:
        self.tickets = 100
        self._now = clock.now
        self.news: News = SimpleQueue()
        config = Config.from_mapping({"CACHE": url, **given})
        self.snapshots = RedisSnapshots(config, clock, self.ticket, lambda *heard: self.news.put(heard))

    def ticket(self, _customer: Customer) -> Ticket:
        self.tickets += 1
        return Ticket(self.tickets, microseconds(self._now()))

    def store(self, snapshot: Snapshot, customer: Customer = ANN) -> bool:
        return self.snapshots.store(customer, snapshot)

    def find(self, customer: Customer = ANN) -> Snapshot | None:
        return self.snapshots.find(customer)[0]

    def stamp(self) -> int:
        """The present stamp."""
        return self.snapshots.find(ANN)[1]


def fetched(stamp: int, used: float = 3, ticket: int = 1) -> Snapshot:
    """A snapshot as it came from the sidecar."""
    body = wire.MeteredEntitlement(feature=wire.EntitlementFeature(id="f"), usage_limit=6, current_usage=used)
    snapshot = snapshot_of(
        wire.GetEntitlementsStateV2Response(entitlements=[wire.EntitlementV2(has_access=used < 6, metered=body)]),
        Ticket(ticket, 1),
    )
    snapshot.stamp = stamp
    return snapshot


def usage(snapshot: Snapshot | None) -> float | None:
    answer = snapshot.find("f") if snapshot is not None else None
    return None if answer is None else answer.current_usage


def evals(redis: RedisServer) -> int:
    """How often Redis was asked by anybody but the tests themselves."""
    calls = redis.client.info("commandstats").get("cmdstat_eval", {"calls": 0})
    return int(calls["calls"])


def until(holds: Callable[[], bool]) -> None:
    """Waits for it; a test that waits in vain fails."""
    if not comes(holds, PATIENCE):
        pytest.fail("it never came")


def comes(holds: Callable[[], bool], patience: float) -> bool:
    """Whether it comes within so many seconds."""
    pause = threading.Event()
    for _ in range(int(patience / 0.01)):
        if holds():
            return True
        pause.wait(0.01)
    return False
