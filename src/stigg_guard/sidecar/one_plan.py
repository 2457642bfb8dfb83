"""A sidecar's answers for tests: everybody has one plan, which is written as a mapping."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from datetime import datetime
from numbers import Real
from typing import Any, NamedTuple

from google.protobuf.message import Message

from stigg_guard.errors import ConfigError
from stigg_guard.sidecar.catalog import Account, Catalog, CatalogCustomer, Feature, Grant, Plan, read_grant
from stigg_guard.sidecar.document import DocumentFaults, Table
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import sidecar_pb2 as pb

_PLAN = "override"
_EXPECTED = (
    "expected True, False, a whole number, a list of texts, or a table such as "
    '{"limit": 3}, {"limit": 10, "usage": 9, "reset": "month"} or {"unlimited": True}'
)


class Given(NamedTuple):
    """What was said of a feature; the plan lacks it when ``grant`` is None."""

    feature: Feature
    grant: Grant | None
    usage: float | None


class Who(NamedTuple):
    """A customer, or one of its resources; ``resource`` is empty for the customer itself."""

    customer: str
    resource: str = ""


class OnePlan:
    """Answers requests as a sidecar does, in whose catalog everybody is who is asked about, and all have one plan.

    The plan is what is ``given``, on top of that of ``outer``, whose customers go on from the usage that they have.
    """

    def __init__(self, given: Mapping[str, Given], outer: OnePlan | None, now: Callable[[], datetime]) -> None:
        self._plan: Mapping[str, Given] = {**outer._plan, **given} if outer is not None else given
        used = outer._used() if outer is not None else {}
        self._going_on = {who: {**_usage(self._plan), **usage, **_usage(given)} for who, usage in used.items()}
        self._begun: Mapping[Who, Mapping[str, float]] = {}
        self._unnamed: Mapping[str, Feature] = {}
        self._changing = threading.Lock()
        self._engine = Engine(self._catalog(), Store(None), now=now)

    @property
    def everybody(self) -> Collection[Who]:
        """All who were asked about."""
        return self._begun.keys()

    @property
    def honours_keys(self) -> bool:
        """Reports under one idempotency key count once."""
        return self._engine.honours_keys

    def answer(
        self, method: str, request: Message, *, timeout: float | None = None, idempotency_key: str | None = None
    ) -> Message:
        """As :meth:`Engine.answer`."""
        for asked in _parts(request):
            if asked.customer_id:
                self._admit(asked.customer_id, asked.resource_id, getattr(asked, "feature_id", ""))
        return self._engine.answer(method, request, timeout=timeout, idempotency_key=idempotency_key)

    def close(self) -> None:
        """Nothing: the store closes when nobody can ask any more."""

    def change(self, given: Mapping[str, Given]) -> None:
        """Changes the plan, and everybody's usage of those features for which one is given."""
        with self._changing:
            self._plan = {**self._plan, **given}
            self._engine.replace_catalog(self._catalog())
        for who in self.everybody:
            for feature, usage in _usage(given).items():
                report = pb.ReportUsageRequest(
                    customer_id=who.customer,
                    resource_id=who.resource or None,
                    feature_id=feature,
                    value=usage,
                    update_behavior=pb.USAGE_UPDATE_BEHAVIOR_SET,
                )
                self._engine.answer("ReportUsage", report)

    def _used(self) -> Mapping[Who, Mapping[str, float]]:
        return {who: self._usage_of(who) for who in self.everybody}

    def _usage_of(self, who: Who) -> Mapping[str, float]:
        request = pb.GetEntitlementsStateV2Request(customer_id=who.customer, resource_id=who.resource or None)
        state: Any = self._engine.answer("GetEntitlementsStateV2", request)
        metered = (entitlement.metered for entitlement in state.entitlements if entitlement.HasField("metered"))
        return {entitlement.feature.id: entitlement.current_usage for entitlement in metered}

    def _admit(self, customer: str, resource: str, feature: str) -> None:
        """Puts into the catalog who is asked about, and what."""
        with self._changing:
            new = {Who(customer), Who(customer, resource)} - self._begun.keys()
            is_unnamed = bool(feature) and feature not in self._plan and feature not in self._unnamed
            if is_unnamed:
                self._unnamed = {**self._unnamed, feature: _lacking(feature)}
            self._begun = {**self._begun, **{who: self._going_on.get(who, _usage(self._plan)) for who in new}}
            if new or is_unnamed:
                self._engine.replace_catalog(self._catalog())

    def _catalog(self) -> Catalog:
        grants = {feature: given.grant for feature, given in self._plan.items() if given.grant is not None}
        return Catalog(
            features={**self._unnamed, **{feature: given.feature for feature, given in self._plan.items()}},
            plans={_PLAN: Plan(_PLAN, entitlements=grants)},
            customers={who.customer: self._customer(who.customer) for who in self.everybody},
        )

    def _customer(self, customer_id: str) -> CatalogCustomer:
        accounts = {
            who.resource: Account(plan=_PLAN, usage=usage)
            for who, usage in self._begun.items()
            if who.customer == customer_id
        }
        return CatalogCustomer(customer_id, accounts.pop(""), resources=accounts)


def parse_plan(entitlements: Mapping[str, Any], *, source: str) -> Mapping[str, Given]:
    """The plan that a mapping describes by feature id; ``source`` is what error messages call it.

    A value is what a catalog's plan says, or short for it; ``False`` is a feature that the plan lacks, and ``usage``
    what everybody has used to begin with. Raises ``ConfigError`` that names every fault.
    """
    if not isinstance(entitlements, Mapping) or not all(isinstance(feature, str) for feature in entitlements):
        raise ConfigError(f"{source}: expected a mapping by feature id, not {entitlements!r}")
    faults = DocumentFaults(source)
    given = {feature: _read(faults, feature, entitlements[feature]) for feature in Table(faults, (), entitlements)}
    faults.raise_any()
    return given


def _read(faults: DocumentFaults, feature_id: str, value: Any) -> Given:
    spelled = _spelled(value)
    kind = _kind(spelled)
    if kind is None:
        if value is not False:
            faults.add((feature_id,), f"{_EXPECTED}, not {value!r}")
        return Given(_lacking(feature_id), None, None)
    feature = Feature(feature_id, kind)
    usage = None
    if kind == "metered":
        usage = Table(faults, (feature_id,), spelled).amount("usage")
        spelled = {key: one for key, one in spelled.items() if key != "usage"}
    return Given(feature, read_grant(Table(faults, (), {feature_id: spelled}), feature), usage)


def _spelled(value: Any) -> Any:
    """The value without short forms."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return {"value": value}
    return {"values": list(value)} if isinstance(value, (list, tuple, Set)) else value


def _kind(spelled: Any) -> str | None:
    if not isinstance(spelled, Mapping):
        return "boolean" if spelled is True else None
    return "numeric" if "value" in spelled else "enum" if "values" in spelled else "metered"


def _lacking(feature_id: str) -> Feature:
    """A feature that the plan lacks. It is metered, so that usage of it can be reported all the same."""
    return Feature(feature_id, "metered")


def _usage(plan: Mapping[str, Given]) -> Mapping[str, float]:
    return {feature: given.usage for feature, given in plan.items() if given.usage is not None}


def _parts(request: Any) -> Sequence[Any]:
    """Those requests that a bulk is made of; any other is its only part."""
    fields = request.DESCRIPTOR.fields_by_name
    return next((getattr(request, name) for name in ("usages", "events") if name in fields), (request,))
