"""Credits in Stigg's GraphQL API: grants, what was used of them, and what happened to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from stigg_guard.amounts import MAX_AMOUNT, quanta, units
from stigg_guard.sidecar.document import nearest
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.graph.inputs import GraphError, Json, instant_of, take
from stigg_guard.sidecar.state import CreditEvent
from stigg_guard.sidecar.subscriptions import Denied
from stigg_guard.sidecar.wallets import CONSUMED, CreditSource
from stigg_guard.wire import sidecar_pb2 as pb

_GIVEN = ("displayName", "comment", "cost", "additionalMetaData")
"""What is kept of a grant as it is given."""
_TIMES = ("effectiveAt", "expireAt")
_RANGES = {
    "LAST_DAY": timedelta(days=1),
    "LAST_WEEK": timedelta(weeks=1),
    "LAST_MONTH": timedelta(days=30),
    "LAST_YEAR": timedelta(days=365),
}


class Credits:
    """Answers the root fields about credits from an engine. Raises ``GraphError`` for what is wrong."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def grant(self, given: Json) -> Json:
        """``createCreditGrant``: credits that were given, or bought."""
        take(given, "customerId", "resourceId", "currencyId", "amount", "grantType", "priority", *_GIVEN, *_TIMES)
        customer, resource = self._whose(given)
        now = self._engine.now()
        begins = instant_of("effectiveAt", given["effectiveAt"]) if given.get("effectiveAt") else now
        ends = instant_of("expireAt", given["expireAt"]) if given.get("expireAt") else None
        if ends is not None and ends <= begins:
            raise GraphError("VALIDATION_ERROR", "expireAt: must be later than effectiveAt")
        content = {
            **{key: given[key] for key in _GIVEN if given.get(key) is not None},
            "resource": resource,
            "currency": self._currency(given["currencyId"]),
            "amount": _amount(given["amount"]),
            "grantType": given["grantType"],
            "priority": given.get("priority") or 0.0,
            "effectiveAt": begins.isoformat(),
            "expireAt": ends and ends.isoformat(),
        }
        return self._granted(customer, self._engine.wallets.grant(customer, content))

    def void(self, given: Json) -> Json:
        """``voidCreditGrant``: what is left of a grant is taken back."""
        voided = self._engine.wallets.void(given["id"])
        if voided is None:
            raise GraphError("VALIDATION_ERROR", f"id: there is no credit grant {given['id']!r} that could be voided")
        return self._granted(*voided)

    def consume(self, given: Json) -> Json:
        """``consumeCredits``: credits that were used otherwise than by the usage of a feature."""
        take(given, "customerId", "resourceId", "currencyId", "amount", "idempotencyKey")
        (customer, resource), currency = self._whose(given), self._currency(given["currencyId"])
        amount = _amount(given["amount"])
        self._engine.wallets.consume(customer, resource, currency, amount, given["idempotencyKey"])
        return {
            "customerId": customer,
            "resourceId": resource or None,
            "currencyId": currency,
            "amount": units(amount),
            "timestamp": self._engine.now().isoformat(),
        }

    def consume_async(self, given: Json) -> None:
        """``consumeCreditsAsync``: as one after the other; the first that is wrong ends it."""
        for one in given.get("consumptions") or ():
            self.consume(one)

    def grants(self, given: Json) -> Json:
        """``creditGrants``: all of a customer, those of the plan too, in the order in which they are used."""
        take(given, "customerId", "resourceId", "currencyId", "paging")
        customer, resource = self._whose(given)
        found = [
            one for one in self._engine.wallets.sources(customer, resource) if _is_of(given, one.content["currency"])
        ]
        nodes = [self._granted(customer, one) for one in sorted(found, key=lambda one: one.rank)]
        return _page(nodes, given.get("paging"))

    def ledger(self, given: Json) -> Json:
        """``creditsLedger``: what happened to credits, the newest first."""
        take(given, "customerId", "resourceId", "currencyId", "eventType", "paging")
        wanted = given.get("eventType")
        nodes = [_told(one) for one in self._events(given) if not wanted or one.type in wanted]
        return _page(nodes, given.get("paging"))

    def usage(self, given: Json) -> Json:
        """``creditUsage``: what was used, by the feature that it paid for and by the day."""
        take(given, "customerId", "resourceId", "currencyId", "timeRange", "startDate", "endDate")
        now = self._engine.now()
        ends = instant_of("endDate", given["endDate"]) if given.get("endDate") else now
        begins = ends - _RANGES[given.get("timeRange") or "LAST_MONTH"]
        begins = instant_of("startDate", given["startDate"]) if given.get("startDate") else begins
        used = [one for one in self._events(given) if one.type == CONSUMED]
        within = [one for one in used if begins <= datetime.fromisoformat(one.at) <= ends]
        features = dict.fromkeys(one.feature for one in within)
        return {
            "series": [
                self._series(feature, [one for one in within if one.feature == feature]) for feature in features
            ],
            "pageInfo": {"hasNextPage": False, "hasPreviousPage": False},
        }

    def _series(self, feature_id: str, events: Sequence[CreditEvent]) -> Json:
        feature = self._engine.catalog.features.get(feature_id)
        days: dict[str, int] = {}
        for event in reversed(events):
            day = f"{event.at[:10]}T00:00:00+00:00"
            days[day] = days.get(day, 0) + event.amount
        return {
            "featureId": feature_id or None,
            "featureName": feature and (feature.display_name or feature_id),
            "totalCredits": units(sum(days.values())),
            "points": [{"timestamp": day, "value": units(amount)} for day, amount in days.items()],
        }

    def _events(self, given: Json) -> Iterator[CreditEvent]:
        customer, resource = self._whose(given)
        for event in self._engine.wallets.events(customer):
            if event.resource == resource and _is_of(given, event.currency):
                yield event

    def _whose(self, given: Json) -> tuple[str, str]:
        """The customer, and the resource or nothing; both are there."""
        customer, resource = given["customerId"], given.get("resourceId") or ""
        try:
            self._engine.wallets.sources(customer, resource)
        except Denied as denied:
            if denied.reason == pb.ACCESS_DENIED_REASON_CUSTOMER_NOT_FOUND:
                raise GraphError("CUSTOMER_NOT_FOUND", f"there is no customer {customer!r}") from None
            raise GraphError("RESOURCE_NOT_FOUND", f"there is no resource {resource!r}") from None
        return customer, resource

    def _currency(self, currency: str) -> str:
        currencies = self._engine.catalog.currencies
        if currency not in currencies:
            raise GraphError(
                "VALIDATION_ERROR", f"currencyId: there is no {currency!r}; {nearest(currency, currencies)}"
            )
        return currency

    def _granted(self, customer: str, source: CreditSource) -> Json:
        content = source.content
        return {
            **{key: content.get(key) for key in ("comment", "additionalMetaData", *_TIMES, "voidedAt")},
            "grantId": source.id,
            "customerId": customer,
            "resourceId": content["resource"] or None,
            "currencyId": content["currency"],
            "displayName": content["displayName"],
            "grantType": content["grantType"],
            "priority": content["priority"],
            "amount": units(content["amount"]),
            "consumedAmount": units(content["consumed"]),
            "cost": {"amount": 0.0, "currency": "USD", **(content.get("cost") or {})},
            "createdAt": content["createdAt"],
            "updatedAt": content["updatedAt"],
            "status": source.status(self._engine.now()),
            "paymentCollection": "NOT_REQUIRED",
        }


def _amount(given: float) -> int:
    """An amount of credits in quanta."""
    if not math.isfinite(given) or quanta(given) <= 0 or given > MAX_AMOUNT:
        raise GraphError("VALIDATION_ERROR", f"amount: expected a number of credits above 0, not {given}")
    return quanta(given)


def _is_of(given: Json, currency: str) -> bool:
    return given.get("currencyId") in (None, currency)


def _told(event: CreditEvent) -> Json:
    return {
        "timestamp": event.at,
        "eventType": event.type,
        "customerId": event.customer,
        "resourceId": event.resource or None,
        "featureId": event.feature or None,
        "amount": units(event.amount),
        "creditGrantId": event.credit_grant,
        "creditCurrencyId": event.currency,
    }


def _page(nodes: Sequence[Json], paging: Mapping[str, Any] | None) -> Json:
    """One page of a list; a cursor is how many come before."""
    paging = paging or {}
    take(paging, "first", "after")
    after = paging.get("after") or "0"
    if not (after.isascii() and after.isdigit() and len(after) < 10):
        raise GraphError("VALIDATION_ERROR", f"paging.after: {after!r} is no cursor of this list")
    begins = int(after)
    first = paging.get("first")
    ends = len(nodes) if first is None else begins + max(0, first)
    edges = [{"node": node, "cursor": str(begins + place)} for place, node in enumerate(nodes[begins:ends], 1)]
    return {
        "edges": edges,
        "totalCount": len(nodes),
        "pageInfo": {
            "startCursor": edges[0]["cursor"] if edges else None,
            "endCursor": edges[-1]["cursor"] if edges else None,
            "hasNextPage": ends < len(nodes),
            "hasPreviousPage": begins > 0,
        },
    }
