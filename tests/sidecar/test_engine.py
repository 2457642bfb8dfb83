"""The engine as a whole: all methods, plans assigned at run time, and what a restart keeps."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from stigg_guard.errors import ConfigError, InvalidRequest
from stigg_guard.sidecar.catalog import Catalog, demo_catalog, parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import METHODS
from stigg_guard.wire import sidecar_pb2 as pb

CUSTOMER = "customer-demo-01"


def metered(engine: Engine, feature_id: str, customer_id: str = CUSTOMER, **fields: Any) -> Any:
    request = pb.GetMeteredEntitlementRequest(customer_id=customer_id, feature_id=feature_id, **fields)
    return engine.answer("GetMeteredEntitlement", request)


def report(engine: Engine, value: float, feature_id: str = "feature-templates") -> Any:
    return engine.answer("ReportUsage", pb.ReportUsageRequest(customer_id=CUSTOMER, feature_id=feature_id, value=value))


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state.sqlite"


@pytest.fixture
def engine():
    engine = Engine(demo_catalog(), Store(None))
    yield engine
    engine.close()


REQUESTS: dict[str, dict[str, Any]] = {
    "GetEntitlement": {"feature_id": "feature-exports"},
    "GetBooleanEntitlement": {"feature_id": "feature-exports"},
    "GetNumericEntitlement": {"feature_id": "feature-storage"},
    "GetMeteredEntitlement": {"feature_id": "feature-templates"},
    "GetEnumEntitlement": {"feature_id": "feature-regions"},
    "GetEntitlementV2": {"currency_id": "api-credits"},
    "ReportUsage": {"feature_id": "feature-templates", "value": 1},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_answered_by_its_response(engine, method):
    fields: dict[str, Any] = {"customer_id": CUSTOMER, **REQUESTS.get(method, {})}
    if method == "ReportUsageBulk":
        fields = {"usages": [{"customer_id": CUSTOMER, "feature_id": "feature-templates", "value": 1}]}
    elif method == "ReportEvents":
        fields = {"events": [{"customer_id": CUSTOMER, "event_name": "user_login", "idempotency_key": "k"}]}
    answer = engine.answer(method, METHODS[method].request(**fields), timeout=1.0)
    assert isinstance(answer, METHODS[method].response)


def test_upgrade_takes_effect_at_once_and_keeps_usage(engine):
    engine.assign_plan(CUSTOMER, "growth")
    entitlement = metered(engine, "feature-templates").entitlement
    assert (entitlement.usage_limit, entitlement.current_usage) == (50, 3)


def test_upgrade_within_a_period_keeps_its_usage(engine):
    before = metered(engine, "feature-api-calls").entitlement.current_usage
    engine.assign_plan(CUSTOMER, "growth")
    after = metered(engine, "feature-api-calls").entitlement
    assert (after.usage_limit, after.current_usage) == (100000, before)


def test_cancelled_subscription_denies(engine):
    engine.assign_plan(CUSTOMER, None)
    reason = metered(engine, "feature-templates").access_denied_reason
    assert reason == pb.ACCESS_DENIED_REASON_NO_ACTIVE_SUBSCRIPTION


def test_plan_is_assigned_to_a_resource_alone(engine):
    engine.assign_plan(CUSTOMER, "growth", "site-01")
    assert metered(engine, "feature-templates", resource_id="site-01").entitlement.usage_limit == 50
    assert metered(engine, "feature-templates").entitlement.usage_limit == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("customer-demo-1", "growth"), "customer_id: there is no 'customer-demo-1'; did you mean 'customer-demo-01'?"),
        ((CUSTOMER, "grow"), "plan: there is no 'grow'; did you mean 'growth'?"),
        ((CUSTOMER, "growth", "site-1"), "resource_id: there is no 'site-1'; did you mean 'site-01'?"),
    ],
)
def test_assignment_of_unknown_names_is_refused(engine, arguments, message):
    with pytest.raises(InvalidRequest) as caught:
        engine.assign_plan(*arguments)
    assert str(caught.value) == message


def test_restart_with_the_same_state_keeps_usage_and_plans(state):
    engine = Engine(demo_catalog(), Store(state))
    report(engine, 2)
    engine.assign_plan(CUSTOMER, "growth")
    engine.close()
    again = Engine(demo_catalog(), Store(state))
    entitlement = metered(again, "feature-templates").entitlement
    assert (entitlement.usage_limit, entitlement.current_usage) == (50, 5)
    again.close()


def test_restart_in_a_later_period_does_not_seed_again(state):
    def calls(now: datetime) -> float:
        engine = Engine(demo_catalog(), Store(state), now=lambda: now)
        usage = metered(engine, "feature-api-calls").entitlement.current_usage
        engine.close()
        return float(usage)

    assert calls(datetime(2024, 1, 1, tzinfo=timezone.utc)) == 420
    assert calls(datetime(2024, 2, 1, tzinfo=timezone.utc)) == 0


def test_repeated_report_gets_its_first_answer_after_a_restart(state):
    request = pb.ReportUsageRequest(customer_id=CUSTOMER, feature_id="feature-templates", value=1)
    engine = Engine(demo_catalog(), Store(state))
    first = engine.answer("ReportUsage", request, idempotency_key="k")
    engine.close()
    again = Engine(demo_catalog(), Store(state))
    assert again.answer("ReportUsage", request, idempotency_key="k") == first
    again.close()


def test_initial_usage_of_what_the_plan_lacks_is_kept():
    catalog = parse_catalog(
        """
[features.f]
type = "metered"
meter = "fluctuating"
[plans.p.entitlements]
f = { limit = 5 }
[customers.c]
usage = { f = 4 }
"""
    )
    engine = Engine(catalog, Store(None))
    engine.assign_plan("c", "p")
    assert metered(engine, "f", "c").entitlement.current_usage == 4
    engine.close()


def test_state_with_a_plan_that_the_catalog_lacks_is_refused(state):
    store = Store(state)
    with store.transaction() as transaction:
        transaction.assign_plan(CUSTOMER, "", "grwth")
    with pytest.raises(ConfigError, match=r"customer-demo-01 was given the plan 'grwth'.*did you mean 'growth'"):
        Engine(demo_catalog(), store)
    Engine(Catalog(), store).close()


# Another catalog while it runs

SHOP = """
[features.f]
type = "metered"
meter = "fluctuating"
[plans.small.entitlements]
f = {{ limit = {limit} }}
[customers.c]
plan = "small"
usage = {{ f = {usage} }}
"""


@pytest.fixture
def shop():
    engine = Engine(parse_catalog(SHOP.format(limit=5, usage=1)), Store(None))
    yield engine
    engine.close()


def test_another_catalog_answers_at_once_and_keeps_what_was_counted(shop):
    shop.answer("ReportUsage", pb.ReportUsageRequest(customer_id="c", feature_id="f", value=2))
    shop.replace_catalog(parse_catalog(SHOP.format(limit=9, usage=0)))
    entitlement = metered(shop, "f", "c").entitlement
    assert (entitlement.usage_limit, entitlement.current_usage) == (9, 3)


def test_usage_to_begin_with_is_given_to_customers_that_are_new_in_another_catalog(shop):
    new = SHOP.format(limit=5, usage=1) + '[customers.new]\nplan = "small"\nusage = { f = 4 }\n'
    shop.replace_catalog(parse_catalog(new))
    assert metered(shop, "f", "new").entitlement.current_usage == 4


def test_a_plan_that_was_assigned_goes_before_the_one_in_another_catalog(shop):
    shop.assign_plan("c", None)
    shop.replace_catalog(parse_catalog(SHOP.format(limit=9, usage=1)))
    assert metered(shop, "f", "c").access_denied_reason == pb.ACCESS_DENIED_REASON_NO_ACTIVE_SUBSCRIPTION


def test_a_catalog_without_an_assigned_plan_is_refused_and_the_one_before_stays(shop):
    shop.replace_catalog(parse_catalog(SHOP.format(limit=9, usage=1) + "[plans.large]\n"))
    shop.assign_plan("c", "large")
    with pytest.raises(ConfigError, match="c was given the plan 'large', which the catalog lacks"):
        shop.replace_catalog(parse_catalog(SHOP.format(limit=5, usage=1)))
    shop.assign_plan("c", "small")
    assert metered(shop, "f", "c").entitlement.usage_limit == 9


def test_a_plan_of_another_catalog_can_be_assigned(shop):
    shop.replace_catalog(parse_catalog(SHOP.format(limit=5, usage=1) + "[plans.large.entitlements]\nf = { limit = 7 }"))
    shop.assign_plan("c", "large")
    assert metered(shop, "f", "c").entitlement.usage_limit == 7
