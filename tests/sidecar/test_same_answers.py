"""The same requests get the same answers, whatever the home of the state: memory, a file, or Redis; and offline, as far
as its data goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from redis_server import RedisServer
from sidecar.contract import DEMO, NOW
from stigg_guard.errors import InvalidRequest
from stigg_guard.sidecar.catalog import Catalog, demo_catalog, offline_catalog, parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.metrics import Metrics
from stigg_guard.sidecar.redis_store import RedisStore
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import METHODS

CUSTOMERS = (*demo_catalog().customers, "nobody")
FEATURES = (*demo_catalog().features, "feature-unknown")
TYPED = ("Boolean", "Numeric", "Metered", "Enum")
USAGES = (1, 0.1, 2.5, -1, 10_000)


def checks() -> Iterator[tuple[str, dict[str, Any], str | None]]:
    for customer in CUSTOMERS:
        for resource in (None, "site-01"):
            ids = {"customer_id": customer, "resource_id": resource}
            yield "GetEntitlements", ids, None
            yield "GetEntitlementsStateV2", ids, None
            yield "ReloadEntitlements", ids, None
            yield "GetEntitlementV2", {**ids, "currency_id": "api-credits"}, None
        for feature in FEATURES:
            yield "GetEntitlement", {"customer_id": customer, "feature_id": feature}, None
            for kind in TYPED:
                yield f"Get{kind}Entitlement", {"customer_id": customer, "feature_id": feature}, None


def reports() -> Iterator[tuple[str, dict[str, Any], str | None]]:
    for customer in CUSTOMERS:
        for feature in ("feature-templates", "feature-api-calls", "feature-storage", "feature-unknown"):
            for value in USAGES:
                usage = {"customer_id": customer, "feature_id": feature, "value": value}
                yield "ReportUsage", usage, f"{customer}/{feature}/{value}"
                yield "ReportUsage", usage, f"{customer}/{feature}/{value}"  # repeated
                yield "ReportUsage", {**usage, "update_behavior": 2}, None
        events = [{"event_name": "user_login", "customer_id": customer, "idempotency_key": "1", "dimensions": USER}] * 2
        yield "ReportEvents", {"events": events}, None


USER = {"user_id": {"string_value": "user-01"}}


def answers(engine: Engine, requests: Iterator[tuple[str, dict[str, Any], str | None]]) -> list[Any]:
    return [answer(engine, *request) for request in requests]


def answer(engine: Engine, method: str, fields: dict[str, Any], key: str | None) -> Any:
    engine.refresh()
    try:
        told = engine.answer(method, METHODS[method].request(**fields), idempotency_key=key)
    except InvalidRequest as error:
        return str(error)
    return {name: value for name, value in MessageToDict(told).items() if name != "measurementId"}


def story(engine: Engine, at: list[datetime]) -> list[Any]:
    """All that is asked and told in two months, while plans change."""
    told = [*answers(engine, checks()), *answers(engine, reports()), *answers(engine, checks())]
    engine.assign_plan(DEMO, "growth")
    engine.assign_plan("customer-demo-02", None)
    engine.assign_plan(DEMO, "free", "site-01")
    told += [*answers(engine, checks()), *answers(engine, reports())]
    at[0] += timedelta(days=40)
    return [*told, *answers(engine, checks()), *answers(engine, reports()), *answers(engine, checks())]


@pytest.mark.parametrize("home", ["file", "redis"])
def test_answers_are_those_of_memory(home: str, tmp_path: Path) -> None:
    def told_by(store: Any) -> list[Any]:
        at = [NOW]
        engine = Engine(demo_catalog(), store, now=lambda: at[0])
        told = story(engine, at)
        engine.close()
        return told

    if home == "file":
        assert told_by(Store(tmp_path / "state.sqlite")) == told_by(Store(None))
        return
    with RedisServer(tmp_path) as server:
        assert told_by(RedisStore("dev", server.url, Metrics())) == told_by(Store(None))


# The same, said by a catalog and by Stigg's documented offline data, which knows no names, periods or meters.
CATALOG = """
[features.feature-exports]
type = "boolean"
[features.feature-storage]
type = "numeric"
[features.feature-regions]
type = "enum"
[features.feature-templates]
type = "metered"
meter = "fluctuating"
[features.feature-seats]
type = "metered"
meter = "fluctuating"
[currencies.api-credits]
[plans.p.entitlements]
feature-exports = true
feature-storage = { value = 50 }
feature-regions = { values = ["eu", "us"] }
feature-templates = { limit = 6 }
feature-seats = { unlimited = true }
[plans.p.credits]
api-credits = { amount = 100 }
[plans.none]
[customers.customer-demo-01]
plan = "p"
[customers.customer-demo-02]
plan = "none"
"""
OFFLINE = {
    "customers": {
        "customer-demo-01": {
            "entitlements": {
                "feature-exports": {"type": "BOOLEAN"},
                "feature-storage": {"type": "NUMERIC", "value": 50.0, "isUnlimited": False},
                "feature-regions": {"type": "ENUM", "enumValues": ["eu", "us"], "value": None},
                "feature-templates": {"type": "METERED", "usageLimit": 6},
                "feature-seats": {"type": "METERED", "isUnlimited": True},
                "api-credits": {"type": "CREDIT", "usageLimit": 100},
            }
        },
        "customer-demo-02": {"entitlements": {}},
    }
}


def test_offline_answers_are_those_of_a_catalog_that_says_the_same() -> None:
    def told_by(catalog: Catalog) -> list[Any]:
        engine = Engine(catalog, Store(None), now=lambda: NOW)
        asked = [request for request in checks() if request[1].get("resource_id") is None]
        counted = [report for report in reports() if report[0] != "ReportEvents"]
        told = [*answers(engine, iter(asked)), *answers(engine, iter(counted)), *answers(engine, iter(asked))]
        engine.close()
        return told

    sold = parse_catalog(CATALOG)
    without_meters = {id_: replace(feature, meter=None) for id_, feature in sold.features.items()}
    assert told_by(offline_catalog(OFFLINE, source="OFFLINE")) == told_by(replace(sold, features=without_meters))
