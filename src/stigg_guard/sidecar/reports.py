"""Usage reports to the local sidecar, with idempotency keys: usage, usage in bulk, and raw events."""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, cast

from google.protobuf.message import Message

from stigg_guard.errors import InvalidRequest
from stigg_guard.sidecar.catalog import Catalog, Meter
from stigg_guard.sidecar.document import nearest
from stigg_guard.sidecar.fields import require_count, require_finite, require_finite_dimensions, require_ids
from stigg_guard.sidecar.state import CounterKey, EventKey, State, StoredResponse, Transaction
from stigg_guard.sidecar.subscriptions import Denied, Offer, Subscriber, Subscriptions, without_plan
from stigg_guard.sidecar.wallets import Wallets
from stigg_guard.wire import METHODS
from stigg_guard.wire import sidecar_pb2 as pb

MAX_USAGES = 100
MAX_EVENTS = 1000
MAX_EVENT_BYTES = 1_000_000
MAX_AHEAD = timedelta(minutes=5)
"""How far a report's timestamp may lie in the future: the clocks of two machines differ."""
EARLIEST = datetime(2000, 1, 1, tzinfo=timezone.utc)
"""What a report's timestamp may not precede: an earlier one is a mistake of units, or of a clock that was never set."""

_BEHAVIORS = (pb.USAGE_UPDATE_BEHAVIOR_UNSPECIFIED, pb.USAGE_UPDATE_BEHAVIOR_DELTA, pb.USAGE_UPDATE_BEHAVIOR_SET)


class _Measurement(NamedTuple):
    """One checked usage report; ``place`` stands before its fields' names in a bulk."""

    place: str
    subscriber: Subscriber
    feature: str
    value: float
    is_set: bool
    instant: datetime


class Reports:
    """Answers the requests that write, each in one transaction. Without ``counting``, it checks and answers only."""

    def __init__(
        self,
        catalog: Catalog,
        store: State,
        subscriptions: Subscriptions,
        wallets: Wallets,
        now: Callable[[], datetime],
        counting: bool,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._subscriptions = subscriptions
        self._wallets = wallets
        self._now = now
        self._counting = counting
        self._methods: Mapping[str, Callable[[Any], Callable[[Transaction], Message]]] = {
            "ReportUsage": self._usage,
            "ReportUsageBulk": self._usage_bulk,
            "ReportEvents": self._events,
        }

    def report(self, method: str, request: Message, idempotency_key: str | None) -> Message:
        """Check everything, then write it in one transaction, in which a repeated key finds its first answer."""
        write = self._methods[method](request)
        if not idempotency_key:
            with self._store.transaction() as transaction:
                return write(transaction)
        digest = hashlib.sha256(method.encode() + request.SerializeToString(deterministic=True)).digest()
        now = self._now().timestamp()
        with self._store.transaction() as transaction:
            first = transaction.answer(idempotency_key, now)
            if first is None:
                response = write(transaction)
                transaction.remember(idempotency_key, StoredResponse(digest, response.SerializeToString()), now)
                return response
        if first.request != digest:
            raise InvalidRequest("idempotency-key", "was used for a different report; take a new key for each report")
        return METHODS[method].response.FromString(first.response)

    def subscriber(self, customer_id: str, resource_id: str, place: str = "") -> Subscriber:
        """The customer, or its resource unless ``resource_id`` is empty; ``InvalidRequest`` if there is none."""
        try:
            return self._subscriptions.subscriber(customer_id, resource_id)
        except Denied as denied:
            if denied.reason == pb.ACCESS_DENIED_REASON_CUSTOMER_NOT_FOUND:
                raise _unknown(f"{place}customer_id", customer_id, self._catalog.customers) from None
            customer = self._subscriptions.customer(customer_id)
            resources = customer.resources if customer is not None else {}
            raise _unknown(f"{place}resource_id", resource_id, resources) from None

    def _usage(self, request: pb.ReportUsageRequest) -> Callable[[Transaction], Message]:
        measurement = self._measurement(request, "")
        return lambda transaction: self._count(transaction, measurement)

    def _usage_bulk(self, request: pb.ReportUsageBulkRequest) -> Callable[[Transaction], Message]:
        require_count("usages", len(request.usages), MAX_USAGES)
        measurements = [self._measurement(usage, f"usages[{index}].") for index, usage in enumerate(request.usages)]
        return lambda transaction: pb.ReportUsageBulkResponse(
            usages=[self._count(transaction, measurement) for measurement in measurements]
        )

    def _events(self, request: pb.ReportEventsRequest) -> Callable[[Transaction], Message]:
        require_count("events", len(request.events), MAX_EVENTS)
        stamped = [
            (event, self._event_instant(event, f"events[{index}]")) for index, event in enumerate(request.events)
        ]

        def write(transaction: Transaction) -> Message:
            if self._counting:
                for event, instant in stamped:
                    self._count_event(transaction, event, instant)
            return METHODS["ReportEvents"].response()

        return write

    def _measurement(self, usage: pb.ReportUsageRequest, place: str) -> _Measurement:
        require_ids(usage, "customer_id", "feature_id", place=place)
        subscriber = self.subscriber(usage.customer_id, usage.resource_id, place)
        feature = self._catalog.features.get(usage.feature_id)
        if feature is None:
            raise _unknown(f"{place}feature_id", usage.feature_id, self._catalog.features)
        if feature.kind != "metered":
            raise InvalidRequest(f"{place}feature_id", f"{feature.id!r} is {feature.kind}; only metered features count")
        if usage.update_behavior not in _BEHAVIORS:
            raise InvalidRequest(f"{place}update_behavior", f"there is no number {usage.update_behavior}; use 1 or 2")
        is_set = usage.update_behavior == pb.USAGE_UPDATE_BEHAVIOR_SET
        require_finite(f"{place}value", usage.value)
        if usage.value < 0 and (is_set or feature.meter == "incremental"):
            what = "usage" if is_set else "the delta of an incremental meter"
            raise InvalidRequest(f"{place}value", f"{what} must not be negative, and is {usage.value:g}")
        require_finite_dimensions(usage, place)
        instant = self._instant(usage, place)
        return _Measurement(place, subscriber, feature.id, usage.value, is_set, instant)

    def _count(self, transaction: Transaction, measurement: _Measurement) -> pb.ReportUsageResponse:
        """Count in the period of the measurement; answer with the present one, which is what checks show."""
        subscriber = measurement.subscriber
        offer = self._offer(subscriber, measurement.feature)
        if self._counting:
            key, _ = self._subscriptions.usage_key(subscriber, offer, measurement.instant)
            amount = measurement.value if measurement.is_set else transaction.usage(key) + measurement.value
            require_finite(f"{measurement.place}value", amount)
            # Releases may overtake what they release: usage stops at 0 rather than refusing them.
            self._set_usage(transaction, subscriber, offer, key, amount)
        key, window = self._subscriptions.usage_key(subscriber, offer, self._now())
        return pb.ReportUsageResponse(
            measurement_id=str(uuid.uuid4()),
            customer_id=subscriber.customer,
            resource_id=subscriber.resource or None,
            feature_id=offer.id,
            current_usage=transaction.usage(key),
            usage_period_start=window.period.start if window else None,
            usage_period_end=window.period.end if window else None,
        )

    def _event_instant(self, event: pb.Event, place: str) -> datetime:
        if event.ByteSize() > MAX_EVENT_BYTES:
            raise InvalidRequest(place, f"has {event.ByteSize()} bytes; send at most {MAX_EVENT_BYTES}")
        require_ids(event, "event_name", "customer_id", "idempotency_key", place=f"{place}.")
        require_finite_dimensions(event, f"{place}.")
        return self._instant(event, f"{place}.")

    def _count_event(self, transaction: Transaction, event: pb.Event, instant: datetime) -> None:
        """Turn one raw event into usage. One that no meter or no customer is known for passes without effect."""
        meter = self._catalog.meters.get(event.event_name)
        if meter is None:
            return
        try:
            subscriber = self._subscriptions.subscriber(event.customer_id, event.resource_id)
        except Denied:
            return
        stamp = f"{event.timestamp.seconds}.{event.timestamp.nanos:09}" if event.HasField("timestamp") else ""
        identity = EventKey(stamp, event.customer_id, event.resource_id, event.event_name, event.idempotency_key)
        if transaction.is_new_event(identity):
            offer = self._offer(subscriber, meter.feature)
            key, _ = self._subscriptions.usage_key(subscriber, offer, instant)
            amount = _aggregate(transaction, key, meter, _dimension(event, meter.dimension))
            if math.isfinite(amount):
                self._set_usage(transaction, subscriber, offer, key, amount)

    def _set_usage(
        self, transaction: Transaction, subscriber: Subscriber, offer: Offer, key: CounterKey, amount: float
    ) -> None:
        """Set the usage; credits pay for what is more than before, where they do."""
        before = transaction.usage(key)
        transaction.set_usage(key, max(0.0, amount))
        if offer.rate is not None:
            cost = offer.rate.cost(transaction.usage(key)) - offer.rate.cost(before)
            self._wallets.debit(transaction, subscriber, offer.rate.currency, cost, offer.id)

    def _offer(self, subscriber: Subscriber, feature_id: str) -> Offer:
        return self._subscriptions.offers(subscriber).features.get(feature_id) or without_plan(feature_id)

    def _instant(self, message: Any, place: str) -> datetime:
        """When a report happened: now, unless it says."""
        now = self._now()
        if not message.HasField("timestamp"):
            return now
        try:
            instant = cast(datetime, message.timestamp.ToDatetime(timezone.utc))
        except (ValueError, OverflowError):
            raise InvalidRequest(f"{place}timestamp", "is not an instant between the years 1 and 9999") from None
        if instant > now + MAX_AHEAD:
            raise InvalidRequest(f"{place}timestamp", f"{instant.isoformat()} lies in the future; set the clock right")
        if instant < EARLIEST:
            raise InvalidRequest(f"{place}timestamp", f"{instant.isoformat()} lies before the year 2000")
        return instant


def _unknown(field: str, name: str, names: Mapping[str, object]) -> InvalidRequest:
    return InvalidRequest(field, f"there is no {name!r}; {nearest(name, names.keys())}")


def _dimension(event: pb.Event, name: str | None) -> str | float | bool | None:
    dimension: Any = event.dimensions.get(name) if name else None
    given = dimension and dimension.WhichOneof("value")
    return getattr(dimension, given) if given else None


def _aggregate(transaction: Transaction, key: CounterKey, meter: Meter, value: str | float | bool | None) -> float:
    """The usage after an event; unchanged when the event lacks the meter's dimension, or has it as another type."""
    used = transaction.usage(key)
    if meter.aggregation == "count":
        return used + 1
    if meter.aggregation == "count_unique":
        # repr tells the text "1" from the number 1.
        return used + 1 if value is not None and transaction.is_new_value(key, repr(value)) else used
    if not isinstance(value, float):
        return used
    return used + value if meter.aggregation == "sum" else max(used, value)
