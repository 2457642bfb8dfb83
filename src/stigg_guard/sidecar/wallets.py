"""Credits: what was granted beside the plan, in which order it is used, and what was used of it. All in quanta."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from stigg_guard.amounts import quanta, units
from stigg_guard.errors import InvalidRequest
from stigg_guard.sidecar.periods import DEFAULT_ANCHOR
from stigg_guard.sidecar.state import CounterKey, CreditEvent, RecordKey, State, StoredResponse, Transaction
from stigg_guard.sidecar.subscriptions import CREDITS, Subscriber, Subscriptions, is_usable, without_plan

GRANTED, CONSUMED, VOIDED, EXPIRED = "CREDITS_GRANTED", "CREDITS_CONSUMED", "CREDITS_VOIDED", "CREDITS_EXPIRED"

_KINDS = ("PROMOTIONAL", "RECURRING", "PAID")
"""Of two that expire together, those of the earlier kind are used first."""
_NEVER = datetime.max.replace(tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class CreditSource:
    """Credits of one grant, of one top-up, or of the plan in this period. ``content`` is how it is kept, or would be;
    ``usage`` is what those of a plan are counted by."""

    id: str
    content: Mapping[str, Any]
    usage: CounterKey | None = None

    @property
    def left(self) -> int:
        """What is left of them."""
        left: int = self.content["amount"] - self.content["consumed"]
        return max(0, left)

    @property
    def rank(self) -> tuple[float, datetime, int, str, str]:
        """Those of the lowest rank are used first."""
        given = self.content
        expires = datetime.fromisoformat(given["expireAt"]) if given["expireAt"] else _NEVER
        return given["priority"], expires, _KINDS.index(given["grantType"]), given["effectiveAt"], given["createdAt"]

    def status(self, now: datetime) -> str:
        """What they are called in the API."""
        if self.content["voidedAt"]:
            return "VOIDED"
        if is_usable(self.content, now):
            return "ACTIVE"
        return "SCHEDULED" if datetime.fromisoformat(self.content["effectiveAt"]) > now else "EXPIRED"


class Wallets:
    """Reads, fills and debits the credits of customers and resources."""

    def __init__(self, store: State, subscriptions: Subscriptions, now: Callable[[], datetime]) -> None:
        self._store = store
        self._subscriptions = subscriptions
        self._now = now

    def consumed(self, subscriber: Subscriber, currency: str, now: datetime) -> int:
        """What was used of the usable credits that were granted."""
        if not self._store.has_records(CREDITS, subscriber.customer):
            return 0
        granted = self._store.records(CREDITS, subscriber.customer)
        return sum(one.content["consumed"] for one in _usable(granted, subscriber, currency, now))

    def left(self, subscriber: Subscriber, currency: str, now: datetime) -> int | None:
        """What is left of the plan's credits and of those that were granted; None for as much as anybody wants."""
        offer = self._subscriptions.offers(subscriber).credits.get(currency)
        if offer is None:
            return 0
        if offer.grant.soft or offer.grant.limit is None:
            return None
        key, _ = self._subscriptions.usage_key(subscriber, offer, now)
        used = quanta(self._store.usage(key)) + self.consumed(subscriber, currency, now)
        return max(0, quanta(offer.grant.limit) - used)

    def sources(self, customer: str, resource: str) -> list[CreditSource]:
        """All credits of a customer, or of a resource: those that were granted, and those of the plan."""
        subscriber = self._subscriptions.subscriber(customer, resource)
        granted = self._store.records(CREDITS, customer)
        mine = [CreditSource(key.name, one) for key, one in granted.items() if one["resource"] == resource]
        currencies = self._subscriptions.offers_of_plan(subscriber).credits
        plans = (self._of_plan(self._store.usage, subscriber, currency, self._now()) for currency in currencies)
        return [*mine, *filter(None, plans)]

    def grant(self, customer: str, content: Mapping[str, Any]) -> CreditSource:
        """Give credits. ``content`` has all but their use."""
        now = self._now().isoformat()
        made = {**content, "consumed": 0, "voidedAt": None, "createdAt": now, "updatedAt": now}
        source = CreditSource(f"grant-{uuid.uuid4()}", made)
        with self._store.transaction() as transaction:
            transaction.keep(RecordKey(CREDITS, customer, source.id), made)
            transaction.note(_event(customer, source, GRANTED, made["amount"], now))
        return source

    def void(self, id_: str) -> tuple[str, CreditSource] | None:
        """Take back what is left of a grant; whose it is, and what it is now. None when there is no usable one."""
        now = self._now()
        known = (key for key in self._store.records(CREDITS) if key.name == id_)
        with self._store.transaction() as transaction:
            for key in known:
                before = CreditSource(id_, transaction.records(CREDITS, key.customer)[key])
                if before.status(now) in ("ACTIVE", "SCHEDULED"):
                    at = now.isoformat()
                    voided = CreditSource(id_, {**before.content, "voidedAt": at, "updatedAt": at})
                    transaction.keep(key, voided.content)
                    transaction.note(_event(key.customer, voided, VOIDED, before.left, at))
                    return key.customer, voided
        return None

    def consume(self, customer: str, resource: str, currency: str, amount: int, idempotency_key: str) -> None:
        """Use credits, once under one key within 24 hours.

        Raises:
            InvalidRequest: the key was used for something else.
        """
        subscriber, now = self._subscriptions.subscriber(customer, resource), self._now().timestamp()
        digest = hashlib.sha256(repr((customer, resource, currency, amount)).encode()).digest()
        key = f"consume\n{idempotency_key}"
        with self._store.transaction() as transaction:
            first = transaction.answer(key, now)
            if first is None:
                self.debit(transaction, subscriber, currency, amount, "")
                transaction.remember(key, StoredResponse(digest, b""), now)
            elif first.request != digest:
                raise InvalidRequest("idempotencyKey", "was used for something else; take a new key each time")

    def debit(self, transaction: Transaction, subscriber: Subscriber, currency: str, amount: int, feature: str) -> None:
        """Use credits in their order. What they do not cover is used of the plan's all the same: it has happened."""
        if amount <= 0:
            return
        now = self._now()
        granted = _usable(transaction.records(CREDITS, subscriber.customer), subscriber, currency, now)
        plan = self._of_plan(transaction.usage, subscriber, currency, now)
        for source in sorted([*granted, *([plan] if plan else [])], key=lambda one: one.rank):
            used = min(amount, source.left)
            if used > 0:
                self._use(transaction, subscriber, source, used, feature, now)
                amount -= used
        if amount > 0:
            rest = self._of_plan(transaction.usage, subscriber, currency, now) or self._debt(
                transaction.usage, subscriber, currency, now
            )
            self._use(transaction, subscriber, rest, amount, feature, now)

    def events(self, customer: str) -> list[CreditEvent]:
        """What happened to a customer's credits and those of its resources, the newest first."""
        now = self._now()
        sources = [CreditSource(key.name, one) for key, one in self._store.records(CREDITS, customer).items()]
        expired = [
            _event(customer, source, EXPIRED, source.left, source.content["expireAt"])
            for source in sources
            if source.status(now) == "EXPIRED" and source.left
        ]
        every = [*self._store.credit_events(customer), *expired]
        return sorted(every, key=lambda event: datetime.fromisoformat(event.at))[::-1]

    def _use(
        self,
        transaction: Transaction,
        subscriber: Subscriber,
        source: CreditSource,
        amount: int,
        feature: str,
        now: datetime,
    ) -> None:
        used, at = source.content["consumed"] + amount, now.isoformat()
        if source.usage is not None:
            transaction.set_usage(source.usage, units(used))
        else:
            key = RecordKey(CREDITS, subscriber.customer, source.id)
            transaction.keep(key, {**source.content, "consumed": used, "updatedAt": at})
        transaction.note(_event(subscriber.customer, source, CONSUMED, amount, at, feature))

    def _of_plan(
        self, usage: Callable[[CounterKey], float], subscriber: Subscriber, currency: str, now: datetime
    ) -> CreditSource | None:
        offer = self._subscriptions.offers_of_plan(subscriber).credits.get(currency)
        if offer is None:
            return None
        key, window = self._subscriptions.usage_key(subscriber, offer, now)
        begins = window.period.start if window else subscriber.account.anchor or DEFAULT_ANCHOR
        amount = quanta(offer.grant.limit or 0.0)
        ends = window.period.end.isoformat() if window else None
        return _recurring(subscriber, currency, amount, quanta(usage(key)), key, begins, ends)

    def _debt(
        self, usage: Callable[[CounterKey], float], subscriber: Subscriber, currency: str, now: datetime
    ) -> CreditSource:
        """What was used of credits that are not there; grants that come pay for it."""
        key, _ = self._subscriptions.usage_key(subscriber, without_plan(currency), now)
        return _recurring(subscriber, currency, 0, quanta(usage(key)), key, DEFAULT_ANCHOR, None)


def _usable(
    granted: Mapping[RecordKey, Mapping[str, Any]], subscriber: Subscriber, currency: str, now: datetime
) -> Iterator[CreditSource]:
    for key, one in granted.items():
        if (one["resource"], one["currency"]) == (subscriber.resource, currency) and is_usable(one, now):
            yield CreditSource(key.name, one)


def _recurring(
    subscriber: Subscriber,
    currency: str,
    amount: int,
    consumed: int,
    usage: CounterKey,
    begins: datetime,
    ends: str | None,
) -> CreditSource:
    """The credits of a plan, as those that were granted are kept."""
    content = {
        "resource": subscriber.resource,
        "currency": currency,
        "amount": amount,
        "consumed": consumed,
        "grantType": "RECURRING",
        "priority": 0.0,
        "effectiveAt": begins.isoformat(),
        "expireAt": ends,
        "voidedAt": None,
        "createdAt": begins.isoformat(),
        "updatedAt": begins.isoformat(),
        "displayName": currency,
    }
    parts = ("recurring", subscriber.customer, subscriber.resource, currency)
    return CreditSource("-".join(filter(None, parts)), content, usage)


def _event(customer: str, source: CreditSource, type_: str, amount: int, at: str, feature: str = "") -> CreditEvent:
    resource, currency = source.content["resource"], source.content["currency"]
    return CreditEvent(customer, resource, currency, type_, source.id, feature, amount, at)
