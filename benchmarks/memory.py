"""What a cached customer takes of this process's memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from datetime import datetime, timezone

from benchmarks.measure import Row, ratio_at_most, weigh
from stigg_guard import Clock
from stigg_guard.cache.snapshots import Snapshot, snapshot_of
from stigg_guard.cache.ttl_cache import SnapshotCache
from stigg_guard.entitlements import Customer
from stigg_guard.ledger import Ticket
from stigg_guard.wire import sidecar_pb2 as wire

CUSTOMERS = 200
ENTITLEMENTS = 50


def of_customers() -> Iterator[Row]:
    """Customers with 50 metered entitlements each, beside the message that the sidecar answers with."""
    features = [f"feature-{number:02}" for number in range(ENTITLEMENTS)]
    message = _message(features)
    for asked_for, text, aim in (([], "none", 2), (features, "all", 6)):
        taken = _taken(message, asked_for) / CUSTOMERS
        name = f"customer, {ENTITLEMENTS} entitlements, {text} asked for / message"
        yield weigh(name, taken, len(message), ratio_at_most(aim))


def _taken(message: bytes, asked_for: list[str]) -> int:
    """The bytes of Python's allocator that the cached customers take, of whom these features were asked for."""

    def fetch(_customer: Customer) -> Snapshot:
        return snapshot_of(wire.GetEntitlementsStateV2Response.FromString(message), Ticket(1, 0))

    cache = SnapshotCache(fetch, ttl=3600, stale_ttl=0, size=CUSTOMERS, patience=1, clock=Clock())
    gc.collect()
    tracemalloc.start()
    for number in range(CUSTOMERS):
        snapshot, _ = cache.get(Customer(f"customer-{number}"))
        for feature in asked_for:
            assert snapshot.find(feature) is not None
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken


def _message(features: list[str]) -> bytes:
    response = wire.GetEntitlementsStateV2Response()
    for feature in features:
        entitlement = response.entitlements.add(has_access=True)
        entitlement.metered.feature.id = feature
        entitlement.metered.usage_limit, entitlement.metered.current_usage = 100, 42
        entitlement.metered.usage_period_anchor.FromDatetime(datetime(2026, 1, 1, tzinfo=timezone.utc))
        entitlement.metered.usage_period_start.FromDatetime(datetime(2026, 1, 1, tzinfo=timezone.utc))
        entitlement.metered.usage_period_end.FromDatetime(datetime(2096, 2, 1, tzinfo=timezone.utc))
    return response.SerializeToString()
