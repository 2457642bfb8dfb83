"""Subscriptions: customers and resources, the offers of their plans, and the windows of their usage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.message import Message

from stigg_guard.amounts import quanta, units
from stigg_guard.errors import ConfigError
from stigg_guard.sidecar.catalog import Account, Catalog, CatalogCustomer, CreditRate, Currency, Feature, Grant, Plan
from stigg_guard.sidecar.document import nearest
from stigg_guard.sidecar.periods import DEFAULT_ANCHOR, Period, period_at
from stigg_guard.sidecar.state import CounterKey, RecordKey, State
from stigg_guard.wire import sidecar_pb2 as pb
from stigg_guard.wire.responses import FEATURE_TYPES

CUSTOMER, SUBSCRIPTION, PROMOTION, CREDITS = "customer", "subscription", "promotion", "credits"
"""The kinds of records that are kept of what was changed at run time."""

ADDITIONS_KEPT = 1024

_METER_TYPES = {"fluctuating": pb.METER_TYPE_FLUCTUATING, "incremental": pb.METER_TYPE_INCREMENTAL}
_RESET_PERIODS = {
    "hour": pb.ENTITLEMENT_RESET_PERIOD_HOUR,
    "day": pb.ENTITLEMENT_RESET_PERIOD_DAY,
    "week": pb.ENTITLEMENT_RESET_PERIOD_WEEK,
    "month": pb.ENTITLEMENT_RESET_PERIOD_MONTH,
    "year": pb.ENTITLEMENT_RESET_PERIOD_YEAR,
}


class Denied(Exception):
    """There is no such entitlement, for this reason."""

    def __init__(self, reason: pb.AccessDeniedReason) -> None:
        self.reason = reason


class Offer(NamedTuple):
    """What a plan gives of one feature or currency; ``message`` is its wire form, without usage. Where there is a
    ``rate``, credits pay for it."""

    id: str
    kind: str
    grant: Grant
    message: Message
    rate: CreditRate | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Offers:
    """What a plan gives, by feature id and by currency id; one object for each plan, equal to itself alone."""

    features: Mapping[str, Offer]
    credits: Mapping[str, Offer]
    every: tuple[Offer, ...]


class Addition(NamedTuple):
    """What is given beside a plan of a feature, or of credits: instead of what the plan gives, or ``is_more`` than it
    at least."""

    id: str
    grant: Grant
    is_more: bool

    @classmethod
    def of(cls, id_: str, given: Mapping[str, Any], is_more: bool) -> Addition:
        """From how it is kept."""
        return cls(id_, Grant(**{**given, "values": tuple(given.get("values", ()))}), is_more)


class Subscriber(NamedTuple):
    """Who has usage: a customer, or one of its resources; ``resource`` is empty for the customer itself."""

    customer: str
    resource: str
    account: Account


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A period; ``name`` is what usage is stored under, the rest what an entitlement of either kind says of it."""

    period: Period
    name: str
    metered: pb.MeteredEntitlement
    credit: pb.CreditEntitlement


_NOTHING = Offers({}, {}, ())


class Subscriptions:
    """What the catalog, with the plans that were assigned since, says of each customer; shared by all threads.

    Raises ``ConfigError`` when a plan was assigned that the catalog lacks.
    """

    def __init__(self, catalog: Catalog, store: State, now: Callable[[], datetime]) -> None:
        self._catalog = catalog
        self._store = store
        self._now = now
        # One object for the same plan and the same additions to it, so that what is made of it can be kept.
        self._with_additions = lru_cache(ADDITIONS_KEPT)(self._added)
        self._offers = {plan.id: _offers(plan, catalog) for plan in catalog.plans.values()}
        self._windows: dict[tuple[str, datetime], Window] = {}
        for (customer, _), plan in store.plans().items():
            if self.customer(customer) is not None and plan is not None and plan not in catalog.plans:
                raise ConfigError(
                    f"{customer} was given the plan {plan!r}, which the catalog lacks; "
                    f"{nearest(plan, catalog.plans)} (add the plan, or start with another state file)"
                )

    def subscriber(self, customer_id: str, resource_id: str) -> Subscriber:
        """The customer, or its resource unless ``resource_id`` is empty. Raises ``Denied`` for unknown ones."""
        customer = self.customer(customer_id)
        if customer is None:
            raise Denied(pb.ACCESS_DENIED_REASON_CUSTOMER_NOT_FOUND)
        account = customer.resources.get(resource_id) if resource_id else customer.account
        if account is None and self._store.has_plan(customer_id, resource_id):
            account = Account()  # a resource begins with its first subscription
        if account is None and customer.is_any_resource:
            account = customer.account
        if account is None:
            raise Denied(pb.ACCESS_DENIED_REASON_CUSTOMER_RESOURCE_NOT_FOUND)
        return Subscriber(customer_id, resource_id, account)

    def active(self, customer_id: str, resource_id: str) -> tuple[Subscriber, Offers]:
        """As ``subscriber``, with the offers of its plan. Raises ``Denied`` also when archived, or without a plan."""
        customer = self.customer(customer_id)
        if customer is not None and customer.archived:
            raise Denied(pb.ACCESS_DENIED_REASON_CUSTOMER_IS_ARCHIVED)
        subscriber = self.subscriber(customer_id, resource_id)
        offers = self.offers(subscriber)
        if offers is _NOTHING:
            raise Denied(pb.ACCESS_DENIED_REASON_NO_ACTIVE_SUBSCRIPTION)
        return subscriber, offers

    def offers(self, subscriber: Subscriber) -> Offers:
        """What the subscriber's plan gives, with what was added to it, credits too; nothing without a plan."""
        return self._offered(subscriber, (*self._additions(subscriber), *self._credits(subscriber)))

    def offers_of_plan(self, subscriber: Subscriber) -> Offers:
        """As ``offers``, without the credits that were granted."""
        return self._offered(subscriber, self._additions(subscriber))

    def _offered(self, subscriber: Subscriber, additions: tuple[Addition, ...]) -> Offers:
        plan = self.plan(subscriber)
        if plan is None:
            return _NOTHING
        return self._with_additions(plan, additions) if additions else self._offers[plan]

    def customer(self, customer_id: str) -> CatalogCustomer | None:
        """The customer as the catalog has it, or as it was made since."""
        customer = self._catalog.customers.get(customer_id)
        kept = self._store.record(RecordKey(CUSTOMER, customer_id, ""))
        if kept is None:
            return customer
        customer = customer or CatalogCustomer(customer_id, Account())
        archived = kept.get("archived")
        return customer if archived in (None, customer.archived) else replace(customer, archived=archived)

    def plan(self, subscriber: Subscriber) -> str | None:
        """The id of the subscriber's plan, unless the subscription has ended."""
        kept = self._store.record(RecordKey(SUBSCRIPTION, subscriber.customer, subscriber.resource))
        if kept is not None and kept.get("endDate") and datetime.fromisoformat(kept["endDate"]) <= self._now():
            return None
        plan = self._store.plan(subscriber.customer, subscriber.resource, subscriber.account.plan)
        return plan if plan in self._offers else None  # another sidecar may have assigned one that only its catalog has

    def _additions(self, subscriber: Subscriber) -> tuple[Addition, ...]:
        """What the subscription and, for customers themselves, promotions add to the plan."""
        kept = self._store.record(RecordKey(SUBSCRIPTION, subscriber.customer, subscriber.resource)) or {}
        own = [Addition.of(id_, given, is_more=False) for id_, given in kept.get("entitlements", {}).items()]
        if subscriber.resource or not self._store.has_records(PROMOTION, subscriber.customer):
            return tuple(own)
        promotions = self._store.records(PROMOTION, subscriber.customer)
        now = self._now()
        own += [
            Addition.of(key.name, kept["grant"], is_more=True)
            for key, kept in promotions.items()
            if kept["endDate"] is None or datetime.fromisoformat(kept["endDate"]) > now
        ]
        return tuple(own)

    def _credits(self, subscriber: Subscriber) -> Iterator[Addition]:
        if self._store.has_records(CREDITS, subscriber.customer):
            now = self._now()
            for granted in self._store.records(CREDITS, subscriber.customer).values():
                if granted["resource"] == subscriber.resource and is_usable(granted, now):
                    yield Addition(granted["currency"], Grant(limit=units(granted["amount"])), is_more=True)

    def _added(self, plan: str, additions: tuple[Addition, ...]) -> Offers:
        sold = self._catalog.plans[plan]
        entitlements, credits_ = dict(sold.entitlements), dict(sold.credits)
        for addition in additions:
            if addition.id in self._catalog.currencies:
                own = credits_.get(addition.id)
                credits_[addition.id] = _both(own, addition.grant) if own and addition.is_more else addition.grant
            elif addition.id in self._catalog.features:
                grant = entitlements.get(addition.id)
                entitlements[addition.id] = (
                    _more(grant, addition.grant) if grant and addition.is_more else addition.grant
                )
        return _offers(replace(sold, entitlements=entitlements, credits=credits_), self._catalog)

    def usage_key(self, subscriber: Subscriber, offer: Offer, instant: datetime) -> tuple[CounterKey, Window | None]:
        """What usage of that instant is counted by, and its window if there is one."""
        reset = offer.grant.reset
        window = self._window(reset, subscriber.account.anchor or DEFAULT_ANCHOR, instant) if reset else None
        return CounterKey(subscriber.customer, subscriber.resource, offer.id, window.name if window else ""), window

    def _window(self, reset: str, anchor: datetime, instant: datetime) -> Window:
        window = self._windows.get((reset, anchor))
        if window is None or instant not in window.period:
            window = self._windows[reset, anchor] = _make_window(period_at(instant, reset, anchor))
        return window


def is_usable(granted: Mapping[str, Any], now: datetime) -> bool:
    """Whether credits that were granted are there: they have begun, and neither ended nor been voided."""
    expires = granted["expireAt"]
    has_begun = granted["voidedAt"] is None and datetime.fromisoformat(granted["effectiveAt"]) <= now
    return has_begun and (expires is None or now < datetime.fromisoformat(expires))


def _both(plan: Grant, granted: Grant) -> Grant:
    """The credits of a plan, and those that were granted."""
    return replace(plan, limit=units(quanta(plan.limit or 0.0) + quanta(granted.limit or 0.0)))


def _more(one: Grant, other: Grant) -> Grant:
    """Whatever is more of two grants of a feature."""
    unlimited = one.unlimited or other.unlimited
    limits = (limit for limit in (one.limit, other.limit) if limit is not None and not unlimited)
    return Grant(
        value=max((value for value in (one.value, other.value) if value is not None), default=None),
        values=tuple(dict.fromkeys((*one.values, *other.values))),
        limit=max(limits, default=None),
        unlimited=unlimited,
        soft=one.soft or other.soft,
        reset=one.reset or other.reset,
    )


def without_plan(feature_id: str) -> Offer:
    """What stands for a feature that the subscriber's plan lacks: it counts, and its usage never returns to 0."""
    return Offer(feature_id, "metered", Grant(), pb.MeteredEntitlement())


def _offers(plan: Plan, catalog: Catalog) -> Offers:
    features = {id_: _feature_offer(catalog.features[id_], grant) for id_, grant in plan.entitlements.items()}
    credits_ = {id_: _credit_offer(catalog.currencies[id_], grant) for id_, grant in plan.credits.items()}
    return Offers(features, credits_, (*features.values(), *credits_.values()))


def _feature_offer(feature: Feature, grant: Grant) -> Offer:
    wire_feature = _wire_feature(feature)
    message: Message
    if feature.kind == "boolean":
        message = pb.BooleanEntitlement(feature=wire_feature)
    elif feature.kind == "numeric":
        message = pb.NumericEntitlement(feature=wire_feature, value=grant.value, is_unlimited=grant.unlimited)
    elif feature.kind == "enum":
        message = pb.EnumEntitlement(feature=wire_feature, enum_values=grant.values)
    else:
        message = pb.MeteredEntitlement(
            feature=wire_feature,
            usage_limit=grant.limit,
            is_unlimited=grant.unlimited,
            has_soft_limit=grant.soft,
            reset_period=_RESET_PERIODS[grant.reset] if grant.reset else pb.ENTITLEMENT_RESET_PERIOD_UNSPECIFIED,
        )
    is_paid = grant.limit is None and not grant.unlimited
    return Offer(feature.id, feature.kind, grant, message, feature.credit_rate if is_paid else None)


def _wire_feature(feature: Feature) -> pb.EntitlementFeature:
    is_metered = feature.kind == "metered"
    return pb.EntitlementFeature(
        id=feature.id,
        feature_type=FEATURE_TYPES[feature.kind],
        units=feature.units or "",
        units_plural=feature.units_plural or "",
        meter_type=_METER_TYPES.get(feature.meter or "") if is_metered else pb.METER_TYPE_NONE,
        is_metered=is_metered,
    )


def _credit_offer(currency: Currency, grant: Grant) -> Offer:
    wire_currency = pb.EntitlementCurrency(
        currency_id=currency.id,
        display_name=currency.display_name,
        description=currency.description,
        unit_singular=currency.units,
        unit_plural=currency.units_plural,
    )
    message = pb.CreditEntitlement(currency=wire_currency, usage_limit=grant.limit, has_soft_limit=grant.soft)
    return Offer(currency.id, "credit", grant, message)


def _make_window(period: Period) -> Window:
    # Stamps are made once for each window: a datetime costs microseconds in every answer.
    metered = pb.MeteredEntitlement(
        usage_period_anchor=period.anchor, usage_period_start=period.start, usage_period_end=period.end
    )
    credit = pb.CreditEntitlement(usage_period_end=period.end)
    return Window(period, f"{period.reset} {period.start.isoformat()}", metered, credit)
