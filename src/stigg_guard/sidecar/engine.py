"""The local sidecar's answers to all 12 requests of the contract, from a catalog and the usage in a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from google.protobuf.message import Message

from stigg_guard.clock import utc_now
from stigg_guard.errors import InvalidRequest
from stigg_guard.fallbacks import Fallback
from stigg_guard.sidecar.catalog import Catalog
from stigg_guard.sidecar.checks import Checks
from stigg_guard.sidecar.document import nearest
from stigg_guard.sidecar.reports import Reports
from stigg_guard.sidecar.store import Store, UsageKey
from stigg_guard.sidecar.subscriptions import Subscriber, Subscriptions, without_plan


class Engine:
    """Answers requests as a sidecar does; safe to share between threads. It owns the store and closes it.

    ``now`` tells the present instant, aware and in UTC. ``fallbacks`` answer, by feature id, for features that the
    catalog does not know. With ``reporting=False`` reports are checked and answered, and nothing is counted.
    Raises ``ConfigError`` when the store assigns a plan that the catalog lacks.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        *,
        now: Callable[[], datetime] = utc_now,
        fallbacks: Mapping[str, Fallback] = MappingProxyType({}),
        reporting: bool = True,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._subscriptions = Subscriptions(catalog, store)
        self._checks = Checks(catalog, store, self._subscriptions, now, fallbacks)
        self._reports = Reports(catalog, store, self._subscriptions, now, counting=reporting)
        self._of_customers: Mapping[str, Callable[[Any], Message]] = {
            "GetEntitlements": self._checks.entitlements,
            "GetEntitlementsStateV2": self._checks.entitlements_state,
            "ReloadEntitlements": self._checks.reload,
        }
        store.seed(dict(self._initial_usage(now())))

    def answer(
        self, method: str, request: Message, *, timeout: float | None = None, idempotency_key: str | None = None
    ) -> Message:
        """The response to a request of one of the 12 methods.

        A report that repeats an ``idempotency_key`` within 24 hours gets the first answer and is not counted again;
        the other methods ignore the key. ``timeout`` is there because a channel takes one too: nothing here waits.
        Raises ``InvalidRequest`` for a request that is wrong; nothing of it was counted.
        """
        if method.startswith("Report"):
            return self._reports.report(method, request, idempotency_key)
        if method in self._of_customers:
            return self._of_customers[method](request)
        return self._checks.entitlement(method, request)

    @property
    def honours_keys(self) -> bool:
        """Reports under one idempotency key count once."""
        return True

    def assign_plan(self, customer_id: str, plan: str | None, resource_id: str | None = None) -> None:
        """Subscribe a customer, or one of its resources, to a plan; ``None`` ends the subscription.

        It takes effect at once and stays in the store. Raises ``InvalidRequest`` for unknown names.
        """
        subscriber = self._reports.subscriber(customer_id, resource_id or "")
        if plan is not None and plan not in self._catalog.plans:
            raise InvalidRequest("plan", f"there is no {plan!r}; {nearest(plan, self._catalog.plans)}")
        self._store.assign_plan(subscriber.customer, subscriber.resource, plan)

    def close(self) -> None:
        """Close the store; a second time does nothing."""
        self._store.close()

    def _initial_usage(self, now: datetime) -> Iterator[tuple[UsageKey, float]]:
        for customer in self._catalog.customers.values():
            for resource, account in (("", customer.account), *customer.resources.items()):
                subscriber = Subscriber(customer.id, resource, account)
                offers = self._subscriptions.offers(subscriber)
                by_id = {**offers.features, **offers.credits}
                for id_, amount in {**account.usage, **account.credits_used}.items():
                    offer = by_id.get(id_) or without_plan(id_)
                    yield self._subscriptions.usage_key(subscriber, offer, now)[0], amount
