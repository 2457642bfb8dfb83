"""Customers, subscriptions and promotions, as Stigg's API changes them at run time."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from stigg_guard.sidecar.catalog import Catalog, Plan
from stigg_guard.sidecar.periods import DEFAULT_ANCHOR, Period, period_at
from stigg_guard.sidecar.state import RecordKey, State
from stigg_guard.sidecar.subscriptions import CUSTOMER, PROMOTION, SUBSCRIPTION, Denied, Subscriber, Subscriptions
from stigg_guard.wire import sidecar_pb2 as pb

RESETS_OF_BILLING = {"MONTHLY": "month", "ANNUALLY": "year"}


@dataclass(frozen=True, slots=True)
class Subscription:
    """One subscription of a customer, or of one of its resources; ``ends`` is None unless it was cancelled.
    ``coupon`` is its own, or else the customer's."""

    id: str
    subscriber: Subscriber
    plan: Plan
    starts: datetime
    ends: datetime | None
    billing_period: str | None
    metadata: Any
    coupon: str | None


class Accounts:
    """Reads and changes who is a customer and has subscribed to what. Changes stay in the store."""

    def __init__(
        self, catalog: Catalog, store: State, subscriptions: Subscriptions, now: Callable[[], datetime]
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._subscriptions = subscriptions
        self._now = now

    def details(self, customer_id: str) -> Mapping[str, Any]:
        """What is known of a customer beside its id; raises ``Denied`` when there is none."""
        if self._subscriptions.customer(customer_id) is None:
            raise Denied(pb.ACCESS_DENIED_REASON_CUSTOMER_NOT_FOUND)
        return self._store.record(RecordKey(CUSTOMER, customer_id, "")) or {}

    def is_archived(self, customer_id: str) -> bool:
        """Whether there is such a customer, and it is archived."""
        customer = self._subscriptions.customer(customer_id)
        return customer is not None and customer.archived

    def customers(self) -> list[str]:
        """The ids of all customers, of the catalog and those that were made since."""
        made = (key.customer for key in self._store.records(CUSTOMER))
        return sorted({*self._catalog.customers, *made})

    def put_customer(self, customer_id: str, details: Mapping[str, Any]) -> None:
        """Make a customer, or change one: of its details those that are given."""
        now = self._now().isoformat()
        key = RecordKey(CUSTOMER, customer_id, "")
        with self._store.transaction() as transaction:
            known = transaction.record(key) or {}
            is_new = not known and customer_id not in self._catalog.customers
            created = {"createdAt": now} if is_new else {}
            transaction.keep(key, {**created, **known, **details, "updatedAt": now})

    def subscribe(
        self, customer_id: str, resource_id: str, plan: str, details: Mapping[str, Any], subscription_id: str | None
    ) -> Subscription:
        """Subscribe a customer, or a resource that need not be there yet, to a plan: in place of the one before."""
        before = self.subscription(customer_id, resource_id)
        kept = {
            "id": subscription_id or (before.id if before else f"subscription-{uuid.uuid4()}"),
            "startDate": (before.starts if before else self._now()).isoformat(),
            **details,
        }
        with self._store.transaction() as transaction:
            transaction.keep(RecordKey(SUBSCRIPTION, customer_id, resource_id), kept)
            transaction.assign_plan(customer_id, resource_id, plan)
        made = self.subscription(customer_id, resource_id)
        assert made is not None, "it was made just now"
        return made

    def change(self, subscription: Subscription, details: Mapping[str, Any]) -> None:
        """Change of a subscription what is given."""
        key = RecordKey(SUBSCRIPTION, subscription.subscriber.customer, subscription.subscriber.resource)
        made = {"id": subscription.id, "startDate": subscription.starts.isoformat()}
        with self._store.transaction() as transaction:
            transaction.keep(key, {**(transaction.record(key) or made), **details})

    def cancel(self, subscription: Subscription, at: datetime) -> None:
        """End a subscription, now or then."""
        self.change(subscription, {"endDate": at.isoformat()})

    def subscription(self, customer_id: str, resource_id: str) -> Subscription | None:
        """The subscription that a customer, or a resource, has now."""
        try:
            subscriber = self._subscriptions.subscriber(customer_id, resource_id)
        except Denied:
            return None
        plan = self._subscriptions.plan(subscriber)
        if plan is None:
            return None
        kept = self._store.record(RecordKey(SUBSCRIPTION, customer_id, resource_id)) or {}
        starts, ends = kept.get("startDate"), kept.get("endDate")
        return Subscription(
            id=kept.get("id") or "-".join(part for part in ("subscription", customer_id, resource_id) if part),
            subscriber=subscriber,
            plan=self._catalog.plans[plan],
            starts=datetime.fromisoformat(starts) if starts else subscriber.account.anchor or DEFAULT_ANCHOR,
            ends=datetime.fromisoformat(ends) if ends else None,
            billing_period=kept.get("billingPeriod"),
            metadata=kept.get("additionalMetaData"),
            coupon=kept.get("couponId") or self.details(customer_id).get("couponRefId"),
        )

    def subscriptions(self, customer_id: str | None = None) -> Iterator[Subscription]:
        """Those that everybody has now, or one customer and its resources."""
        named = self._catalog.customers if customer_id is None else self._catalog.customers.keys() & {customer_id}
        known = {(id_, resource) for id_ in named for resource in ("", *self._catalog.customers[id_].resources)}
        known |= {key for key in self._store.plans() if customer_id in (None, key[0])}
        for customer, resource in sorted(known):
            if (found := self.subscription(customer, resource)) is not None:
                yield found

    def billing_period(self, subscription: Subscription) -> Period:
        """The billing period that it is in now: months, unless it is billed annually."""
        reset = RESETS_OF_BILLING[subscription.billing_period or "MONTHLY"]
        return period_at(self._now(), reset, subscription.starts)

    def promote(self, customer_id: str, feature_id: str, content: Mapping[str, Any]) -> None:
        """Give a customer a feature beside the plan; ``content`` has ``grant`` and ``endDate``, None for no end."""
        self._store.keep(RecordKey(PROMOTION, customer_id, feature_id), content)

    def promotions(self, customer_id: str) -> Mapping[str, Mapping[str, Any]]:
        """What a customer was given beside the plan, by feature; without features that nobody sells any more."""
        kept = self._store.records(PROMOTION, customer_id)
        return {key.name: content for key, content in kept.items() if key.name in self._catalog.features}

    def revoke(self, customer_id: str, feature_id: str) -> None:
        """Take back what was given beside the plan."""
        self._store.keep(RecordKey(PROMOTION, customer_id, feature_id), None)
