"""The plans on sale, as pages show them: their words, for how long they are kept, and what an outage leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest

from api_server import KEY, ApiServer
from conftest import ManualClock
from stigg_guard import Guard
from stigg_guard.sidecar.catalog import parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store
from stigg_guard.web.paywall import KEPT, PAUSE, OfferedPlan, Paywalls
from stigg_guard.wording import ENGLISH, plain_money

CATALOG = """
[features.templates]
type = "metered"
meter = "fluctuating"
display_name = "Templates"
units = "template"
units_plural = "templates"
[features.calls]
type = "metered"
meter = "incremental"
display_name = "Calls"
[features.storage]
type = "numeric"
display_name = "Storage"
units_plural = "GB"
[features.regions]
type = "enum"
[features.exports]
type = "boolean"
display_name = "Exports"
[currencies.credits]
display_name = "Credits"
units_plural = "credits"
[plans.free]
display_name = "Free"
[plans.free.entitlements]
templates = { limit = 1 }
[plans.growth.entitlements]
templates = { unlimited = true }
calls = { limit = 1000, reset = "month" }
storage = { value = 100 }
regions = { values = ["eu", "us"] }
exports = true
[plans.growth.credits]
credits = { amount = 50000, reset = "year" }
[plans.growth.prices]
monthly = 29.5
annually = 1290
currency = "EUR"
"""
CALLS = {"displayName": "Calls", "featureUnits": "call", "featureUnitsPlural": "calls"}


@pytest.fixture
def server() -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.stop()


@pytest.fixture
def paywalls(server: ApiServer, make_guard: Callable[..., Guard], clock: ManualClock) -> Paywalls:
    """Of a guard whose API makes up what the tests do not say."""
    guard = make_guard(API_KEY=KEY, API_URL=server.url, LEDGER="memory://")
    return Paywalls(guard, clock.clock.monotonic)


def price(model: str = "FLAT_FEE", amount: float = 5, **more: Any) -> dict[str, Any]:
    given = {"billingModel": model, "billingPeriod": "MONTHLY", "billingCadence": "RECURRING"}
    none: dict[str, Any] = {"tiers": [], "billingCountryCode": None, "blockSize": None, "feature": None}
    return {**given, **none, "price": {"amount": amount, "currency": "USD"}, **more}


def feature(id_: str, behavior: str = "Override", **more: Any) -> dict[str, Any]:
    given = {"behavior": behavior, "isGranted": True, "hiddenFromWidgets": [], "displayNameOverride": None}
    figures = {"usageLimit": None, "hasUnlimitedUsage": False, "enumValues": [], "resetPeriod": None}
    described = {"refId": id_, "displayName": id_.upper(), "featureUnits": None, "featureUnitsPlural": None}
    return {"__typename": "PackageFeatureEntitlement", **given, **figures, "feature": described, **more}


def sell(server: ApiServer, **plan: Any) -> None:
    """Lets the server have this plan and no other."""
    given = {"refId": "p", "displayName": "P", "description": None, "pricingType": "PAID", "prices": []}
    none: dict[str, Any] = {"packageEntitlements": [], "inheritedPackageEntitlements": []}
    server.resolvers["paywall"] = lambda **_: {"plans": [{**given, **none, **plan}]}


def the_plan(paywalls: Paywalls) -> OfferedPlan:
    (plan,) = paywalls.shown("", ENGLISH).plans
    return plan


def test_a_catalog_is_told_in_words(make_guard: Callable[..., Guard]) -> None:
    with Sidecar(Engine(parse_catalog(CATALOG), Store(None))) as sidecar:
        guard = make_guard(API_KEY="any", API_URL=f"http://{sidecar.http_address}", LEDGER="memory://")
        shown = Paywalls(guard).shown("", ENGLISH)
        assert Paywalls(guard).shown("catalog", ENGLISH) == shown
        assert Paywalls(guard).shown("other", ENGLISH).plans == ()
    assert (shown.caption, shown.headings) == ("Plans", ("Plan", "Price", "Included"))
    assert shown.plans == (
        OfferedPlan("free", "Free", "", ("free",), (("Templates", "1 template"),)),
        OfferedPlan(
            "growth",
            "growth",
            "",
            ("29.50 EUR per month", "1,290 EUR per year"),
            (
                ("Templates", "unlimited"),
                ("Calls", "1,000 per month"),
                ("Storage", "100 GB"),
                ("regions", "eu, us"),
                ("Exports", ""),
                ("Credits", "50,000 credits per year"),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (price(), "5 USD per month"),
        (price(billingCadence="ONE_OFF"), "5 USD"),
        (price("PER_UNIT", 4.25, feature=CALLS), "4.25 USD per call per month"),
        (price("USAGE_BASED", 0.0004, feature=CALLS), "0.0004 USD per call"),
        (price("USAGE_BASED", 1, feature=CALLS, blockSize=1000), "1 USD per 1,000 calls"),
        (price("MINIMUM_SPEND", 100), "at least 100 USD per month"),
        (price("PER_UNIT", feature=CALLS, tiers=[{"upTo": 5}]), "Calls: by quantity"),
        (price(billingCountryCode="CH"), None),
        (price("CREDIT_BASED"), None),
        (price(price=None), None),
    ],
)
def test_a_price_is_told_exactly_or_not_at_all(
    paywalls: Paywalls, server: ApiServer, given: dict[str, Any], text: str | None
) -> None:
    sell(server, prices=[given])
    assert the_plan(paywalls).prices == (() if text is None else (text,))


def test_a_plan_without_a_fixed_price_is_on_request(paywalls: Paywalls, server: ApiServer) -> None:
    sell(server, pricingType="CUSTOM", prices=[price()], description="For all")
    assert the_plan(paywalls) == OfferedPlan("p", "P", "For all", ("on request",), ())


def test_a_plan_includes_what_it_inherits(paywalls: Paywalls, server: ApiServer) -> None:
    sell(
        server,
        inheritedPackageEntitlements=[feature("a", usageLimit=1), feature("b", usageLimit=2), feature("c")],
        packageEntitlements=[
            feature("a", usageLimit=5),
            feature("b", "Increment", usageLimit=3),
            feature("c", isGranted=False),
            feature("d", "Increment", usageLimit=4, displayNameOverride="Doors"),
            feature("e", hiddenFromWidgets=["PAYWALL"]),
        ],
    )
    assert the_plan(paywalls).included == (("A", "5"), ("B", "2"), ("B", "3 more"), ("Doors", "4"))


def test_plans_are_kept_for_a_minute(paywalls: Paywalls, server: ApiServer, clock: ManualClock) -> None:
    sell(server, displayName="Old")
    for _ in range(2):
        assert the_plan(paywalls).name == "Old"
    sell(server, displayName="New")
    clock.advance(KEPT - 1)
    assert the_plan(paywalls).name == "Old"
    clock.advance(1)
    assert the_plan(paywalls).name == "New"
    assert len(server.received) == 2
    paywalls.shown("product", ENGLISH)
    assert server.received[-1].payload["variables"] == {"input": {"context": "PAYWALL", "productId": "product"}}


def test_an_outage_leaves_nothing_and_is_logged_once(
    paywalls: Paywalls, server: ApiServer, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    sell(server)
    assert the_plan(paywalls)
    server.faults.extend([lambda handler: handler.send(401, b"{}")] * 2)
    clock.advance(KEPT)
    assert paywalls.shown("", ENGLISH).plans == ()
    assert paywalls.shown("", ENGLISH).plans == ()
    clock.advance(PAUSE)
    assert paywalls.shown("", ENGLISH).plans == ()
    clock.advance(PAUSE)
    assert the_plan(paywalls)
    (line,) = caplog.messages
    assert line.startswith("pages show no plans: GetPaywall: ")
    assert KEY not in line


def test_without_a_key_there_is_nothing(make_guard: Callable[..., Guard], caplog: pytest.LogCaptureFixture) -> None:
    paywalls = Paywalls(make_guard(LEDGER="memory://"))
    for _ in range(2):
        assert paywalls.shown("", ENGLISH).plans == ()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "API_KEY" in caplog.text


def test_a_guard_that_is_off_asks_nobody(make_guard: Callable[..., Guard], caplog: pytest.LogCaptureFixture) -> None:
    assert Paywalls(make_guard(ENABLED=False)).shown("", ENGLISH).plans == ()
    assert caplog.messages == []


def test_what_cannot_be_read_is_logged_and_not_shown(
    paywalls: Paywalls, server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    body = b'{"data": {"paywall": {"plans": [{"refId": "p", "prices": 3}]}}}'
    server.faults.append(lambda handler: handler.send(200, body))
    assert paywalls.shown("", ENGLISH).plans == ()
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("amount", "written"),
    [("29.0", "29"), ("1290.5", "1,290.50"), ("0.0004", "0.0004"), ("1E+3", "1,000")],
)
def test_money_has_all_its_decimals(amount: str, written: str) -> None:
    assert plain_money(Decimal(amount)) == written
