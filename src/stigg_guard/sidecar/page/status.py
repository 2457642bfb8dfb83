"""The data of the status page: everything that an engine knows, as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from stigg_guard.sidecar.catalog import Catalog, Grant, Plan
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.journal import Journal, reason_name
from stigg_guard.sidecar.metrics import Metrics
from stigg_guard.wire import sidecar_pb2 as pb

SHOWN = 30
"""How many customers are shown; a search finds the others."""


class Status:
    """Describes an engine, with what was asked lately and the figures."""

    def __init__(self, engine: Engine, journal: Journal, metrics: Metrics) -> None:
        self._engine = engine
        self._journal = journal
        self._metrics = metrics

    @property
    def version(self) -> object:
        """Another one whenever there is something new to show."""
        return self._journal.count, self._engine.version

    def shown(self, search: str = "") -> Mapping[str, Any]:
        """All of it, with those customers whose id or name has the text in it."""
        every = list(self._engine.accounts.customers())
        found = [one for one in every if search.lower() in f"{one} {self._name(one)}".lower()]
        catalog = self._engine.catalog
        return {
            "now": self._engine.now().isoformat(timespec="seconds"),
            "moved": self._engine.moved,
            "customers": [self._customer(one) for one in found[:SHOWN]],
            "found": len(found),
            "total": len(every),
            "plans": [_plan(plan, catalog) for plan in catalog.plans.values()],
            "features": {
                one.id: {"name": one.display_name or one.id, "kind": one.kind} for one in catalog.features.values()
            },
            "recent": self._journal.shown(),
            "figures": self._metrics.summary(),
        }

    def _name(self, customer: str) -> str:
        return self._engine.accounts.details(customer).get("name") or ""

    def _customer(self, id_: str) -> Mapping[str, Any]:
        known = self._engine.catalog.customers.get(id_)
        subscribed = {one.subscriber.resource: one.plan.id for one in self._engine.accounts.subscriptions(id_)}
        resources = sorted({*(known.resources if known else ()), *subscribed} - {""})
        now = self._engine.now()
        promotions = [
            {"feature": feature, "ends": content["endDate"]}
            for feature, content in self._engine.accounts.promotions(id_).items()
            if content["endDate"] is None or datetime.fromisoformat(content["endDate"]) > now
        ]
        return {
            "id": id_,
            "name": self._name(id_),
            "archived": self._engine.accounts.is_archived(id_),
            "promotions": promotions,
            "parts": [
                {"resource": resource, "plan": subscribed.get(resource), **self._state(id_, resource)}
                for resource in ("", *resources)
            ],
        }

    def _state(self, customer: str, resource: str) -> Mapping[str, Any]:
        request = pb.GetEntitlementsStateV2Request(customer_id=customer, resource_id=resource or None)
        state: Any = self._engine.answer("GetEntitlementsStateV2", request)
        names = self._engine.catalog.names
        return {
            "reason": reason_name(state.access_denied_reason),
            "entitlements": [_entitlement(one, names) for one in state.entitlements],
        }


def _entitlement(one: Any, names: Mapping[str, str]) -> Mapping[str, Any]:
    kind = one.WhichOneof("entitlement")
    told = getattr(one, kind)
    id_ = told.currency.currency_id if kind == "credit" else told.feature.id
    shown = {
        "id": id_,
        "name": names.get(id_, id_),
        "kind": kind,
        "access": one.has_access,
        "reason": reason_name(one.access_denied_reason),
    }
    if kind == "numeric":
        return {**shown, "text": "unlimited" if told.is_unlimited else f"{told.value} {told.feature.units}".strip()}
    if kind == "enum":
        return {**shown, "text": ", ".join(told.enum_values)}
    return {**shown, **_counted(told, kind)} if kind in ("metered", "credit") else {**shown, "text": "yes"}


def _counted(told: Any, kind: str) -> Mapping[str, Any]:
    is_limited = kind == "credit" or told.HasField("usage_limit")
    ends = told.usage_period_end.ToDatetime().isoformat() + "Z" if told.HasField("usage_period_end") else None
    return {
        "used": told.current_usage,
        "limit": told.usage_limit if is_limited else None,
        "soft": told.has_soft_limit,
        "paid": not is_limited and not told.is_unlimited,
        "ends": ends,
    }


def _plan(plan: Plan, catalog: Catalog) -> Mapping[str, Any]:
    given = [(catalog.features[id_].display_name or id_, grant) for id_, grant in plan.entitlements.items()]
    given += [(catalog.currencies[id_].display_name, grant) for id_, grant in plan.credits.items()]
    return {
        "id": plan.id,
        "name": plan.display_name or plan.id,
        "prices": [f"{amount:g} {plan.currency} {period}" for period, amount in plan.prices.items()],
        "gives": [{"name": name, "text": " ".join(_words(grant)) or "yes"} for name, grant in given],
    }


def _words(grant: Grant) -> Iterator[str]:
    if grant.unlimited:
        yield "unlimited"
    if grant.limit is not None:
        yield f"{grant.limit:,.9g}"
    if grant.value is not None:
        yield str(grant.value)
    if grant.values:
        yield ", ".join(grant.values)
    if grant.reset:
        yield f"a {grant.reset}"
    if grant.soft:
        yield "(soft)"
