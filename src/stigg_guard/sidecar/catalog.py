"""The catalog of the local sidecar: what is sold, and to whom, read from a TOML file or from the offline JSON."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from stigg_guard.amounts import QUANTA_PER_UNIT, quanta
from stigg_guard.errors import ConfigError
from stigg_guard.sidecar.document import DocumentFaults, Table, read_json, read_toml, without_nulls
from stigg_guard.sidecar.periods import RESETS

KINDS = ("boolean", "numeric", "enum", "metered")
METER_KINDS = ("fluctuating", "incremental")
BILLING_PERIODS = ("monthly", "annually")
AGGREGATIONS = ("count", "sum", "count_unique", "max")
UNKNOWN = "unknown"
"""The kind of a feature that does not say it rightly: what refers to it is not refused a second time."""

_CREDIT = "credit"
_OFFLINE_KINDS = tuple(kind.upper() for kind in (*KINDS, _CREDIT))
_EXAMPLES = {"numeric": "{ value = 100 }", "enum": '{ values = ["eu"] }', "metered": "{ limit = 6 }"}


@dataclass(frozen=True, slots=True)
class CreditRate:
    """How many credits of a currency a unit of a feature costs."""

    currency: str
    amount: float

    def cost(self, usage: float) -> int:
        """What so much usage costs, in quanta of a credit. A part of a quantum is not charged before it is whole, so
        that what usage costs does not depend on how it was reported."""
        return quanta(usage) * quanta(self.amount) // QUANTA_PER_UNIT


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that plans grant; ``meter`` is set for metered features that say how they are measured.

    Where a plan says neither how much it gives of a feature with a ``credit_rate``, nor that it is unlimited, credits
    pay for it.
    """

    id: str
    kind: str
    meter: str | None = None
    display_name: str | None = None
    units: str | None = None
    units_plural: str | None = None
    credit_rate: CreditRate | None = None


@dataclass(frozen=True, slots=True)
class Currency:
    """A kind of credits."""

    id: str
    display_name: str
    description: str | None = None
    units: str | None = None
    units_plural: str | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """How much of a feature, or how many credits, a plan gives; which fields count depends on the feature's kind.

    A metered grant and one of credits has a ``limit``, or is ``unlimited``; ``reset`` is the period of its usage.
    """

    value: int | None = None
    values: tuple[str, ...] = ()
    limit: float | None = None
    unlimited: bool = False
    soft: bool = False
    reset: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a subscription gives: entitlements by feature id, credits by currency id. ``prices`` are by billing period,
    in whole units of ``currency``; a plan without one is free."""

    id: str
    display_name: str | None = None
    entitlements: Mapping[str, Grant] = field(default_factory=dict)
    credits: Mapping[str, Grant] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)
    currency: str = "USD"


@dataclass(frozen=True, slots=True)
class Coupon:
    """A discount: so many percent of what a subscription costs, or else so many whole units of ``currency``."""

    id: str
    display_name: str
    percent_off: float | None = None
    amount_off: float | None = None
    currency: str = "USD"


@dataclass(frozen=True, slots=True)
class Account:
    """What a customer, or one of a customer's resources, has: a plan's id, or none, and the usage to begin with."""

    plan: str | None = None
    anchor: datetime | None = None
    revoked: frozenset[str] = frozenset()
    usage: Mapping[str, float] = field(default_factory=dict)
    credits_used: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CatalogCustomer:
    """A customer as the catalog has it, whose resources have plans and usage of their own. With ``is_any_resource``
    what the customer has is what each resource has that is not among them."""

    id: str
    account: Account
    archived: bool = False
    resources: Mapping[str, Account] = field(default_factory=dict)
    is_any_resource: bool = False


@dataclass(frozen=True, slots=True)
class Meter:
    """How raw events of one name become usage of a feature; ``dimension`` is what all but ``count`` look at."""

    event: str
    feature: str
    aggregation: str
    dimension: str | None = None


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything that is sold and everyone it is sold to, by id. Meters are by the name of their event."""

    features: Mapping[str, Feature] = field(default_factory=dict)
    currencies: Mapping[str, Currency] = field(default_factory=dict)
    plans: Mapping[str, Plan] = field(default_factory=dict)
    customers: Mapping[str, CatalogCustomer] = field(default_factory=dict)
    meters: Mapping[str, Meter] = field(default_factory=dict)
    coupons: Mapping[str, Coupon] = field(default_factory=dict)

    @property
    def names(self) -> Mapping[str, str]:
        """What features and currencies are called, by their ids; those without a name are missing."""
        features = {one.id: one.display_name for one in self.features.values() if one.display_name}
        return features | {one.id: one.display_name for one in self.currencies.values() if one.display_name != one.id}


def load_catalog(path: str | Path) -> Catalog:
    """The catalog in a TOML file, or in offline JSON when the name ends in ``.json``.

    Raises ``ConfigError`` that names every fault of the file at once, each with its line and the remedy.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    read = parse_offline if path.suffix.lower() == ".json" else parse_catalog
    return read(text, source=str(path))


def demo_catalog() -> Catalog:
    """The built-in demonstration catalog, with the documented ``customer-demo-01``."""
    text = files("stigg_guard.sidecar").joinpath("demo.toml").read_text(encoding="utf-8")
    return parse_catalog(text, source="demo.toml")


def catalog_schema() -> str:
    """The JSON Schema of TOML catalogs, by which editors complete them."""
    return files("stigg_guard.sidecar").joinpath("catalog.schema.json").read_text(encoding="utf-8")


def parse_catalog(text: str, *, source: str = "catalog") -> Catalog:
    """The catalog that a TOML text describes; ``source`` is what error messages call it. Raises ``ConfigError``."""
    root, faults = read_toml(text, source)
    currencies = {id_: _currency(id_, table) for id_, table in root.tables("currencies")}
    features = {id_: _feature(id_, table, currencies) for id_, table in root.tables("features")}
    for id_ in features.keys() & currencies.keys():
        root.table("currencies").fault(id_, "a feature has the same id; rename one of them")
    plans = {id_: _plan(id_, table, features, currencies) for id_, table in root.tables("plans")}
    names = Catalog(features=features, currencies=currencies, plans=plans)
    customers = {id_: _customer(id_, table, names) for id_, table in root.tables("customers")}
    meters = {event: _meter(event, table, features) for event, table in root.tables("meters")}
    coupons = {id_: _coupon(id_, table) for id_, table in root.tables("coupons")}
    root.end()
    faults.raise_any()
    return replace(names, customers=customers, meters=meters, coupons=coupons)


def parse_offline(text: str, *, source: str = "catalog") -> Catalog:
    """The catalog that the documented offline JSON describes. Raises ``ConfigError``.

    Each customer, and each resource that it names, gets a plan of its own with the entitlements listed there. A
    customer that names no resources answers for any.
    """
    return _offline_catalog(*read_json(text, source))


def offline_catalog(document: Mapping[str, Any], *, source: str) -> Catalog:
    """As :func:`parse_offline`, of what is parsed already."""
    faults = DocumentFaults(source)
    return _offline_catalog(Table(faults, (), without_nulls(document)), faults)


def _offline_catalog(root: Table, faults: DocumentFaults) -> Catalog:
    kinds: dict[str, str] = {}
    plans: dict[str, Plan] = {}
    customers: dict[str, CatalogCustomer] = {}
    for customer_id, table in root.tables("customers"):
        plans[customer_id] = _offline_plan(customer_id, table, kinds)
        resources = {}
        for resource_id, resource in table.tables("resources"):
            plan_id = f"{customer_id}\n{resource_id}"  # which no customer is called
            plans[plan_id] = _offline_plan(plan_id, resource, kinds)
            resources[resource_id] = Account(plan=plan_id)
            resource.end()
        table.end()
        account = Account(plan=customer_id)
        customers[customer_id] = CatalogCustomer(customer_id, account, False, resources, not resources)
    root.end()
    faults.raise_any()
    features = {id_: Feature(id_, kind) for id_, kind in kinds.items() if kind != _CREDIT}
    currencies = {id_: Currency(id_, id_) for id_, kind in kinds.items() if kind == _CREDIT}
    return Catalog(features=features, currencies=currencies, plans=plans, customers=customers)


def _offline_plan(plan_id: str, table: Table, kinds: dict[str, str]) -> Plan:
    """What one customer, or resource, has; ``kinds`` of its ids are those of the others."""
    entitlements: dict[str, Grant] = {}
    credits_: dict[str, Grant] = {}
    for id_, given in table.tables("entitlements"):
        if type_ := given.required_choice("type", _OFFLINE_KINDS):
            kind = type_.lower()
            if kinds.setdefault(id_, kind) != kind:
                given.fault("type", f"is {kinds[id_].upper()} for another customer; a feature has one type")
            (credits_ if kind == _CREDIT else entitlements)[id_] = _offline_grant(given, kind)
            given.end()
    return Plan(plan_id, entitlements=entitlements, credits=credits_)


def _feature(id_: str, table: Table, currencies: Mapping[str, Currency]) -> Feature:
    kind = table.required_choice("type", KINDS) or UNKNOWN
    if kind == "metered":
        meter = table.required_choice("meter", METER_KINDS)
    else:
        meter = table.choice("meter", METER_KINDS)
        if meter and kind != UNKNOWN:
            table.fault("meter", f"only a metered feature has a meter; this one is {kind}")
    rate = _credit_rate(table.table("credit_rate"), currencies) if "credit_rate" in table else None
    if rate is not None and meter not in (None, "incremental"):
        table.fault("credit_rate", "credits that were used are not given back; use an incremental meter")
    names = table.text("display_name"), table.text("units"), table.text("units_plural")
    feature = Feature(id_, kind, meter, *names, rate)
    table.end()
    return feature


def _credit_rate(table: Table, currencies: Mapping[str, Currency]) -> CreditRate:
    currency, amount = table.required_choice("currency", currencies), table.amount("amount")
    if not quanta(amount or 0.0):
        table.fault("amount", f"must be a number of credits, {1 / QUANTA_PER_UNIT:f} or more")
    table.end()
    return CreditRate(currency or "", float(amount or 0.0))


def _currency(id_: str, table: Table) -> Currency:
    currency = Currency(
        id_,
        table.text("display_name") or id_,
        table.text("description"),
        table.text("units"),
        table.text("units_plural"),
    )
    table.end()
    return currency


def _plan(id_: str, table: Table, features: Mapping[str, Feature], currencies: Mapping[str, Currency]) -> Plan:
    entitlements = table.table("entitlements")
    credits_ = table.table("credits")
    prices = table.table("prices")
    plan = Plan(
        id_,
        table.text("display_name"),
        {
            key: read_grant(entitlements, features[key])
            for key in entitlements
            if entitlements.known(key, key, features)
        },
        {key: _credit(credits_, key) for key in credits_ if credits_.known(key, key, currencies)},
        {period: amount for period in BILLING_PERIODS if (amount := prices.amount(period)) is not None},
        prices.text("currency") or "USD",
    )
    prices.end()
    table.end()
    return plan


def read_grant(entitlements: Table, feature: Feature) -> Grant:
    """What the table of a plan's entitlements says of a feature; its faults gather where the table's do."""
    if feature.kind == UNKNOWN:
        return Grant()
    if feature.kind == "boolean":
        entitlements.value(feature.id, lambda given: given is True, "true (a plan that lacks it leaves the line out)")
        return Grant()
    table = entitlements.table(feature.id, _EXAMPLES[feature.kind])
    if feature.kind == "numeric":
        grant = Grant(value=table.int32("value"), unlimited=_is_unlimited(table, "value", "unlimited"))
    elif feature.kind == "enum":
        grant = Grant(values=_some_values(table, "values"))
    else:
        is_paid = feature.credit_rate is not None and "limit" not in table and "unlimited" not in table
        grant = Grant(
            limit=table.amount("limit"),
            unlimited=not is_paid and _is_unlimited(table, "limit", "unlimited"),
            soft=table.flag("soft"),
            reset=table.choice("reset", RESETS),
        )
    table.end()
    return grant


def _credit(credits_: Table, currency_id: str) -> Grant:
    table = credits_.table(currency_id, "{ amount = 50000 }")
    if "amount" not in table:
        table.fault("", "needs amount = <number>")
    grant = Grant(limit=table.amount("amount"), soft=table.flag("soft"), reset=table.choice("reset", RESETS))
    table.end()
    return grant


def _is_unlimited(table: Table, bound: str, unlimited: str) -> bool:
    """Whether a grant has no bound; it must say either the bound or that there is none."""
    without = table.flag(unlimited)
    if without and bound in table:
        table.fault(bound, f"contradicts {unlimited}; keep one of them")
    elif not without and bound not in table:
        table.fault("", f"needs {bound}, or {unlimited}")
    return without


def _some_values(table: Table, key: str) -> tuple[str, ...]:
    if key not in table:
        table.fault("", f"needs {key}, a list of texts")
    return table.texts(key, at_least=1)


def _customer(id_: str, table: Table, names: Catalog) -> CatalogCustomer:
    account = _account(table, names, inherited_anchor=None)
    resources = {}
    for resource_id, resource in table.tables("resources"):
        resources[resource_id] = _account(resource, names, inherited_anchor=account.anchor)
        resource.end()
    customer = CatalogCustomer(id_, account, table.flag("archived"), resources)
    table.end()
    return customer


def _account(table: Table, names: Catalog, inherited_anchor: datetime | None) -> Account:
    revoked = table.texts("revoked")
    for feature_id in revoked:
        table.known("revoked", feature_id, names.features)
    metered = [feature.id for feature in names.features.values() if feature.kind in ("metered", UNKNOWN)]
    return Account(
        plan=table.choice("plan", names.plans),
        anchor=table.instant("anchor") or inherited_anchor,
        revoked=frozenset(revoked),
        usage=_amounts(table.table("usage"), metered),
        credits_used=_amounts(table.table("credits_used"), names.currencies),
    )


def _amounts(table: Table, known: Collection[str]) -> dict[str, float]:
    return {key: table.amount(key) or 0.0 for key in table if table.known(key, key, known)}


def _meter(event: str, table: Table, features: Mapping[str, Feature]) -> Meter:
    metered = [feature.id for feature in features.values() if feature.kind in ("metered", UNKNOWN)]
    feature_id = table.required_choice("feature", metered)
    aggregation = table.required_choice("aggregation", AGGREGATIONS)
    dimension = table.text("dimension")
    if aggregation == "count" and dimension:
        table.fault("dimension", "count looks at no dimension; delete it, or use count_unique")
    elif aggregation not in ("count", None) and not dimension:
        table.fault("", f"needs dimension: the one whose {aggregation} is taken")
    table.end()
    return Meter(event, feature_id or "", aggregation or "", dimension)


def _coupon(id_: str, table: Table) -> Coupon:
    percent, amount = table.amount("percent_off"), table.amount("amount_off")
    if ("percent_off" in table) == ("amount_off" in table):
        table.fault("", "needs percent_off or amount_off, and not both")
    elif percent is not None and percent > 100:
        table.fault("percent_off", "is at most 100")
    coupon = Coupon(id_, table.text("display_name") or id_, percent, amount, table.text("currency") or "USD")
    table.end()
    return coupon


def _offline_grant(given: Table, kind: str) -> Grant:
    if kind == "numeric":
        return Grant(value=given.int32("value"), unlimited=_is_unlimited(given, "value", "isUnlimited"))
    if kind == "metered":
        return Grant(limit=given.amount("usageLimit"), unlimited=_is_unlimited(given, "usageLimit", "isUnlimited"))
    if given.flag("isUnlimited"):
        given.fault("isUnlimited", f"only NUMERIC and METERED can be unlimited; this is {kind.upper()}")
    if kind == _CREDIT:
        if "usageLimit" not in given:
            given.fault("", "needs usageLimit, the number of credits")
        return Grant(limit=given.amount("usageLimit"))
    return Grant(values=_some_values(given, "enumValues")) if kind == "enum" else Grant()
