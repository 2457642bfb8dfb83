"""Entries of the ledger as messages of the wire, and the sidecar's answers as what the ledger learns from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from stigg_guard.amounts import is_figure
from stigg_guard.decoding import period_from_wire
from stigg_guard.ledger import Acknowledged, Entry, Period, UsageKey
from stigg_guard.wire import sidecar_pb2 as wire

Request = TypeVar("Request")


def ids_of(key: UsageKey) -> tuple[str, str, str]:
    """The ids of a key, as answers name them."""
    return key.customer_id, key.resource_id, key.feature_id


def request_of(request: Callable[..., Request], key: UsageKey, **fields: str) -> Request:
    """A request about the owner of a key."""
    return request(customer_id=key.customer_id, resource_id=key.resource_id or None, **fields)


def usage_of(report: Entry) -> wire.ReportUsageRequest:
    """The usage report of an entry, with the time of its use."""
    behavior = wire.UsageUpdateBehavior.USAGE_UPDATE_BEHAVIOR_DELTA
    if report.is_set:
        behavior = wire.UsageUpdateBehavior.USAGE_UPDATE_BEHAVIOR_SET
    return wire.ReportUsageRequest(
        customer_id=report.key.customer_id,
        resource_id=report.key.resource_id or None,
        feature_id=report.key.feature_id,
        value=report.amount,
        update_behavior=behavior,
        dimensions={name: _dimension(value) for name, value in report.dimensions.items()},
        timestamp=_timestamp(report.used_at),
    )


def event_of(report: Entry) -> wire.Event:
    """The raw event of an entry that has one, with the time of its use."""
    assert report.event is not None
    return wire.Event(
        event_name=report.event.name,
        customer_id=report.key.customer_id,
        resource_id=report.key.resource_id or None,
        idempotency_key=report.event.idempotency_key,
        dimensions={name: _dimension(value) for name, value in report.event.dimensions.items()},
        timestamp=_timestamp(report.used_at),
    )


def _dimension(value: str | float | bool) -> wire.EventDimensionValue:
    if isinstance(value, bool):
        return wire.EventDimensionValue(boolean_value=value)
    if isinstance(value, str):
        return wire.EventDimensionValue(string_value=value)
    return wire.EventDimensionValue(number_value=value)


def _timestamp(nanoseconds: int) -> Mapping[str, int]:
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return {"seconds": seconds, "nanos": nanos}


def acknowledged(report: Entry, usage: wire.ReportUsageResponse | wire.MeteredEntitlement | None) -> Acknowledged:
    """What the ledger learns from the answer to a report; without one, or without a figure that can be one, only that
    it was counted."""
    if usage is None:
        return Acknowledged(report, None)
    told = isinstance(usage, wire.MeteredEntitlement) or usage.HasField("current_usage")
    if not told or not is_figure(usage.current_usage):
        return Acknowledged(report, None)
    return Acknowledged(report, usage.current_usage, Period(*period_from_wire(usage)))
