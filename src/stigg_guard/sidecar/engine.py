"""The local sidecar's answers to all 12 requests of the contract, from a catalog and the usage in a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Event, Lock
from types import MappingProxyType
from typing import Any

from google.protobuf.message import Message

from stigg_guard.clock import utc_now
from stigg_guard.errors import InvalidRequest
from stigg_guard.fallbacks import Fallback
from stigg_guard.sidecar.accounts import Accounts
from stigg_guard.sidecar.catalog import Catalog
from stigg_guard.sidecar.document import nearest
from stigg_guard.sidecar.entitlement_checks import Checks
from stigg_guard.sidecar.reports import Reports
from stigg_guard.sidecar.state import CounterKey, RecordKey, State
from stigg_guard.sidecar.subscriptions import SUBSCRIPTION, Subscriber, Subscriptions, without_plan
from stigg_guard.sidecar.wallets import Wallets

FARTHEST = timedelta(days=36_525)
"""How far ahead of the real time the present instant may be: a century."""
_CLOCK = RecordKey("clock", "", "")


@dataclass(frozen=True, slots=True)
class _Rules:
    """What one catalog makes of requests."""

    catalog: Catalog
    accounts: Accounts
    subscriptions: Subscriptions
    wallets: Wallets
    checks: Checks
    reports: Reports
    of_customers: Mapping[str, Callable[[Any], Message]]


class Engine:
    """Answers requests as a sidecar does. It is thread-safe. It owns the store and closes it.

    ``now`` tells the present instant, aware and in UTC. ``fallbacks`` answer, by feature id, for features that the
    catalog does not know. With ``reporting=False`` reports are checked and answered, and nothing is counted.
    Raises ``ConfigError`` when the store assigns a plan that the catalog lacks.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: State,
        *,
        now: Callable[[], datetime] = utc_now,
        fallbacks: Mapping[str, Fallback] = MappingProxyType({}),
        reporting: bool = True,
    ) -> None:
        self._store = store
        self._now = now
        self._fallbacks = fallbacks
        self._reporting = reporting
        self.on_change: Callable[[frozenset[str] | None], None] = lambda _: None
        """Called with the customers who have changed, None for everybody; not for usage that is reported."""
        self.changing = Lock()
        """Held while customers or their subscriptions change."""
        self.replace_catalog(catalog)
        store.on_change = self._changed

    def answer(
        self, method: str, request: Message, *, timeout: float | None = None, idempotency_key: str | None = None
    ) -> Message:
        """The response to a request of one of the 12 methods.

        A report that repeats an ``idempotency_key`` within 24 hours gets the first answer and is not counted again;
        the other methods ignore the key. ``timeout`` is there because a channel takes one too: nothing here waits.
        Raises ``InvalidRequest`` for a request that is wrong; nothing of it was counted.
        """
        rules = self._rules
        if method.startswith("Report"):
            return rules.reports.report(method, request, idempotency_key)
        if method in rules.of_customers:
            return rules.of_customers[method](request)
        return rules.checks.entitlement(method, request)

    @property
    def catalog(self) -> Catalog:
        """The catalog in force."""
        return self._rules.catalog

    @property
    def accounts(self) -> Accounts:
        """Who is a customer and has subscribed to what; whoever changes it holds ``changing``."""
        return self._rules.accounts

    @property
    def wallets(self) -> Wallets:
        """The credits of customers."""
        return self._rules.wallets

    @property
    def version(self) -> object:
        """Another one after each change of the catalog or of the state."""
        return id(self._rules), self._store.version

    @property
    def moved(self) -> float:
        """By how many seconds :meth:`advance` has moved the present instant."""
        moved = self._store.record(_CLOCK)
        return float(moved["seconds"]) if moved else 0.0

    def now(self) -> datetime:
        """The present instant."""
        moved = self._store.record(_CLOCK)
        return self._now() + timedelta(seconds=moved["seconds"]) if moved else self._now()

    def advance(self, time: timedelta) -> None:
        """Move the present instant forward, for all that share the state, until it is gone.

        Raises:
            InvalidRequest: it would be more than ``FARTHEST`` ahead.
        """
        with self._store.transaction() as transaction:
            moved = transaction.record(_CLOCK)
            ahead = timedelta(seconds=moved["seconds"] if moved else 0.0)
            if ahead + time > FARTHEST:
                problem = f"the clock is {ahead.days} days ahead, and may be {FARTHEST.days}; begin with a new state"
                raise InvalidRequest("seconds", problem)
            transaction.keep(_CLOCK, {"seconds": (ahead + time).total_seconds()})

    def refresh(self) -> bool:
        """Learn what others that share the state have changed; whether there was nothing to learn."""
        return self._store.refresh()

    @property
    def honours_keys(self) -> bool:
        """Whether reports under one idempotency key count once: they do."""
        return True

    def replace_catalog(self, catalog: Catalog) -> None:
        """Answer from this catalog from now on; a call under way ends by the one before.

        What was counted stays, and so do the plans that were assigned, which go before the catalog's. A usage to begin
        with is for those features of a customer of which nothing was ever counted. A feature that resets in another
        period than before counts from 0 in it.
        Raises ``ConfigError`` when the catalog lacks a plan that was assigned; the one before stays in force.
        """
        with self.changing:
            rules = self._made(catalog)
            self._store.seed(dict(_initial_usage(rules, self.now())))
            self._rules = rules
        self.on_change(None)

    def assign_plan(self, customer_id: str, plan: str | None, resource_id: str | None = None) -> None:
        """Subscribe a customer, or one of its resources, to a plan; ``None`` ends the subscription.

        It takes effect at once and stays in the store. Raises ``InvalidRequest`` for unknown names.
        """
        with self.changing:
            plans = self._rules.catalog.plans
            subscriber = self._rules.reports.subscriber(customer_id, resource_id or "")
            if plan is not None and plan not in plans:
                raise InvalidRequest("plan", f"there is no {plan!r}; {nearest(plan, plans)}")
            with self._store.transaction() as transaction:
                transaction.keep(RecordKey(SUBSCRIPTION, subscriber.customer, subscriber.resource), None)
                transaction.assign_plan(subscriber.customer, subscriber.resource, plan)

    def follow(self, over: Event) -> None:
        """Learn at once what others that share the state change, until it is over; nothing where nobody can."""
        self._store.follow(over)

    def tell(self, customer: str) -> None:
        """Tell who listens that a customer's entitlements have changed; reports do not tell it by themselves."""
        self.on_change(frozenset({customer}))

    def close(self) -> None:
        """Close the store; a second time does nothing."""
        self._store.close()

    def _changed(self, customers: frozenset[str] | None) -> None:
        # What is of no customer is the clock, which is everybody's.
        self.on_change(None if customers is None or "" in customers else customers)

    def _made(self, catalog: Catalog) -> _Rules:
        subscriptions = Subscriptions(catalog, self._store, self.now)
        wallets = Wallets(self._store, subscriptions, self.now)
        checks = Checks(catalog, self._store, subscriptions, wallets, self.now, self._fallbacks)
        reports = Reports(catalog, self._store, subscriptions, wallets, self.now, counting=self._reporting)
        of_customers: Mapping[str, Callable[[Any], Message]] = {
            "GetEntitlements": checks.entitlements,
            "GetEntitlementsStateV2": checks.entitlements_state,
            "ReloadEntitlements": checks.reload,
        }
        accounts = Accounts(catalog, self._store, subscriptions, self.now)
        return _Rules(catalog, accounts, subscriptions, wallets, checks, reports, of_customers)


def _initial_usage(rules: _Rules, now: datetime) -> Iterator[tuple[CounterKey, float]]:
    for customer in rules.catalog.customers.values():
        for resource, account in (("", customer.account), *customer.resources.items()):
            subscriber = Subscriber(customer.id, resource, account)
            offers = rules.subscriptions.offers(subscriber)
            by_id = {**offers.features, **offers.credits}
            for id_, amount in {**account.usage, **account.credits_used}.items():
                offer = by_id.get(id_) or without_plan(id_)
                yield rules.subscriptions.usage_key(subscriber, offer, now)[0], amount
