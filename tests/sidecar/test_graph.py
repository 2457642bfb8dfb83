"""The GraphQL API of the local sidecar, asked by the client as Stigg's own is, and its guard beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from api_server import sample, variable_types
from conftest import ManualClock
from stigg_guard import ApiConfig, ApiRejected, ApiUnauthenticated, Config, Guard, LocalSidecarConfig, Reason, Stigg
from stigg_guard.api import (
    Api,
    BillingPeriod,
    CreditEntitlement,
    FeatureEntitlement,
    ProvisionCustomerInput,
    ProvisionSubscriptionInput,
)
from stigg_guard.api.documents import operations
from stigg_guard.api.generate import snake
from stigg_guard.sidecar.catalog import demo_catalog, parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.graph import Graph
from stigg_guard.sidecar.graph.resolvers import CHANGES, QUESTIONS
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store

DEMO = "customer-demo-01"
NEW = "customer-new"
TEMPLATES = "feature-templates"
PRICED = """
[features.f]
type = "metered"
meter = "incremental"
[features.n]
type = "numeric"
[features.e]
type = "enum"
[currencies.c]
display_name = "Credits"
[plans.free.entitlements]
f = { limit = 1 }
[plans.paid.entitlements]
f = { limit = 10, reset = "month" }
n = { value = 3 }
e = { values = ["eu"] }
[plans.paid.credits]
c = { amount = 50, reset = "month" }
[plans.paid.prices]
monthly = 9.5
annually = 99
currency = "EUR"
[coupons.fifth]
percent_off = 20
[coupons.fixed]
display_name = "Fixed"
amount_off = 100
currency = "EUR"
[coupons.dollars]
amount_off = 1
"""


@pytest.fixture
def engine(clock: ManualClock) -> Engine:
    return Engine(demo_catalog(), Store(None), now=clock.now)


@pytest.fixture
def guard(sidecar: Sidecar, make_guard: Callable[..., Guard]) -> Guard:
    """A guard of the sidecar, whose API is that of the sidecar too."""
    return make_guard(API_KEY="any", API_URL=f"http://{sidecar.http_address}", LEDGER="memory://")


@pytest.fixture
def api(guard: Guard) -> Api:
    return guard.api


@pytest.fixture
def priced(clock: ManualClock) -> Iterator[Api]:
    engine = Engine(parse_catalog(PRICED), Store(None), now=clock.now)
    with Sidecar(engine) as running, Api("any", f"http://{running.http_address}") as api:
        yield api


def limit(guard: Guard, customer: str, feature: str = TEMPLATES) -> float | None:
    return guard.peek(feature, customer=customer).usage_limit


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(ApiRejected) as caught:
        call()
    assert not caught.value.outcome_unknown
    return caught.value.code


def test_the_documented_example_ends_in_success(sidecar: Sidecar, capsys: pytest.CaptureFixture[str]) -> None:
    host, _, port = sidecar.address.rpartition(":")
    with Stigg(
        ApiConfig("any", f"http://{sidecar.http_address}"), remote_sidecar_host=host, remote_sidecar_port=port
    ) as stigg:
        stigg.api.provision_customer(ProvisionCustomerInput(customer_id="customer-demo-01", email="john@example.com"))
        sub_resp = stigg.api.provision_subscription(
            ProvisionSubscriptionInput(
                customer_id="customer-demo-01",
                plan_id="plan-revvenu-essentials",
                billing_period=BillingPeriod.MONTHLY,
                # Optional, entitlements for custom plans (feature + credit)
                entitlements=[
                    {"feature": {"feature_id": "feature-seats", "usage_limit": 50}},
                    {"credit": {"custom_currency_id": "currency-api-credits", "amount": 50000, "cadence": "MONTH"}},
                ],
            )
        )
        print(sub_resp.provision_subscription.status)
    assert capsys.readouterr().out == "SUCCESS\n"


def test_a_sidecar_that_is_started_along_answers_its_api() -> None:
    with Stigg(ApiConfig("any"), local_sidecar_config=LocalSidecarConfig(), local_sidecar_port=0) as stigg:
        assert stigg.api.get_products().products.edges
    with Guard(Config(sidecar="local", ledger="memory://")) as guard:
        guard.api.provision_customer({"customer_id": NEW, "subscription_params": {"plan_id": "growth"}})
        assert limit(guard, NEW) == 50


def test_who_signs_up_and_upgrades_has_it_at_once(guard: Guard) -> None:
    assert guard.peek(TEMPLATES, customer=NEW).reason is Reason.CUSTOMER_NOT_FOUND
    answer = guard.api.provision_customer(
        {"customer_id": NEW, "name": "Ann", "subscription_params": {"plan_id": "free"}}
    )
    made = answer.provision_customer
    assert (made.customer.customer_id, made.customer.name) == (NEW, "Ann")
    assert str(made.subscription_decision_strategy) == "REQUESTED_PLAN"
    assert limit(guard, NEW) == 2
    upgraded = guard.api.provision_subscription({"customer_id": NEW, "plan_id": "growth"}).provision_subscription
    assert str(upgraded.status) == "SUCCESS"
    assert upgraded.subscription is not None
    assert made.subscription is not None
    assert upgraded.subscription.id == made.subscription.id
    assert limit(guard, NEW) == 50


def test_a_customer_without_an_id_gets_one_and_no_plan_unless_it_is_named(guard: Guard) -> None:
    answer = guard.api.provision_customer({"email": "a@example.com"}).provision_customer
    assert answer.subscription is None
    assert str(answer.subscription_decision_strategy) == "SKIPPED_SUBSCRIPTION_CREATION"
    assert guard.peek(TEMPLATES, customer=answer.customer.customer_id).reason is Reason.NO_ACTIVE_SUBSCRIPTION


def test_customers_are_read_changed_and_archived(guard: Guard) -> None:
    api = guard.api
    assert api.get_customer_by_id({"customer_id": "nobody"}).get_customer_by_ref_id is None
    api.import_customer({"ref_id": NEW, "name": "Ann", "additional_meta_data": {"seats": 3}})
    api.update_customer({"customer_id": NEW, "email": "ann@example.com"})
    found = api.get_customer_by_id({"customer_id": NEW}).get_customer_by_ref_id
    assert found is not None
    assert (found.name, found.email, found.additional_meta_data) == ("Ann", "ann@example.com", {"seats": 3})
    assert found.created_at is not None
    assert not found.has_active_subscription
    assert limit(guard, DEMO) == 6
    api.archive_customer({"customer_id": DEMO})
    assert guard.peek(TEMPLATES, customer=DEMO).reason is Reason.CUSTOMER_IS_ARCHIVED
    assert refused(lambda: api.provision_subscription({"customer_id": DEMO, "plan_id": "free"})) == "VALIDATION_ERROR"
    api.unarchive_customer({"customer_id": DEMO})
    assert limit(guard, DEMO) == 6


def test_subscriptions_are_read_changed_and_cancelled(guard: Guard, clock: ManualClock) -> None:
    api = guard.api
    (found,) = [
        one
        for one in api.get_active_subscriptions({"customer_id": DEMO}).get_active_subscriptions
        if one.resource is None
    ]
    assert (str(found.status), found.plan.plan_id if "planId" in found.plan.to_dict() else found.plan.ref_id) == (
        "ACTIVE",
        "essentials",
    )
    api.update_subscription(
        {"subscription_id": found.id, "entitlements": [{"feature": {"feature_id": TEMPLATES, "usage_limit": 9}}]}
    )
    assert limit(guard, DEMO) == 9
    assert api.get_subscription({"subscription_id": found.id}).get_subscription.start_date == found.start_date
    ended = api.cancel_subscription(
        {"subscription_ref_id": found.id, "subscription_cancellation_time": "END_OF_BILLING_PERIOD"}
    ).cancel_subscription
    assert str(ended.status) == "ACTIVE"
    assert ended.effective_end_date == ended.current_billing_period_end
    assert limit(guard, DEMO) == 9
    clock.advance(32 * 86_400)
    assert guard.peek(TEMPLATES, customer=DEMO).reason is Reason.NO_ACTIVE_SUBSCRIPTION
    assert refused(lambda: api.get_subscription({"subscription_id": found.id})) == "SUBSCRIPTION_NOT_FOUND"
    again = api.provision_subscription({"customer_id": DEMO, "plan_id": "growth", "subscription_id": "mine"})
    assert again.provision_subscription.subscription is not None
    assert again.provision_subscription.subscription.subscription_id == "mine"
    assert limit(guard, DEMO) == 50


@pytest.mark.parametrize("when", [{}, {"subscription_cancellation_time": "SPECIFIC_DATE", "end_date": "2020-01-01"}])
def test_a_subscription_that_ended_grants_nothing(guard: Guard, when: dict[str, str]) -> None:
    made = guard.api.create_subscription({"customer_id": "customer-demo-04", "plan_id": "free", "ref_id": "s"})
    assert made.create_subscription.subscription_id == "s"
    assert limit(guard, "customer-demo-04") == 2
    ended = guard.api.cancel_subscription({"subscription_ref_id": "s", **when}).cancel_subscription
    assert str(ended.status) == "CANCELED"
    assert guard.peek(TEMPLATES, customer="customer-demo-04").reason is Reason.NO_ACTIVE_SUBSCRIPTION


def test_a_resource_begins_with_its_subscription(guard: Guard) -> None:
    api = guard.api
    answer = api.apply_subscription({"customer_id": DEMO, "plan_id": "growth", "resource_id": "site-9"})
    subscription = answer.apply_subscription.subscription
    assert subscription is not None
    assert subscription.resource is not None
    assert subscription.resource.resource_id == "site-9"
    state = api.get_entitlements_state({"customer_id": DEMO, "resource_id": "site-9"}).entitlements_state
    assert any(one.usage_limit == 50 for one in state.entitlements)
    found = api.get_active_subscriptions({"customer_id": DEMO, "resource_id": "site-9"}).get_active_subscriptions
    assert [one.id for one in found] == [subscription.id]
    code = refused(lambda: api.get_entitlements_state({"customer_id": DEMO, "resource_id": "site-7"}))
    assert code == "RESOURCE_NOT_FOUND"


def test_entitlements_are_those_of_the_sidecar(guard: Guard) -> None:
    api = guard.api
    state = api.get_entitlements_state({"customer_id": DEMO}).entitlements_state
    assert state.access_denied_reason is None
    every = [one for one in state.entitlements_v2 if isinstance(one, FeatureEntitlement)]
    features = {one.feature.ref_id: one for one in every if one.feature is not None}
    (credit,) = (one for one in state.entitlements_v2 if isinstance(one, CreditEntitlement))
    known = guard.entitlements(DEMO)
    assert features.keys() | {credit.currency.currency_id} == known.keys()
    for id_, one in features.items():
        expected = known[id_]
        assert one.is_granted is expected.has_access
        assert one.has_unlimited_usage is expected.is_unlimited
        assert (one.current_usage or 0) == expected.current_usage
        assert one.usage_period_end == expected.usage_period_end
        if not expected.is_unlimited:
            assert one.usage_limit == (expected.usage_limit if expected.usage_limit is not None else expected.value)
    assert (credit.usage_limit, credit.current_usage) == (50000, 12500)
    listed = api.get_entitlements({"customer_id": DEMO}).entitlements
    assert {one.feature.ref_id for one in listed if one.feature} == features.keys()
    nobody = api.get_entitlements_state({"customer_id": "nobody"}).entitlements_state
    assert (str(nobody.access_denied_reason), nobody.entitlements) == ("CustomerNotFound", [])


def test_one_entitlement_is_decided_by_what_is_asked_for(guard: Guard) -> None:
    api = guard.api
    asked = {"customer_id": DEMO, "feature_id": TEMPLATES, "options": {"requested_usage": 4}}
    one = api.get_entitlement(asked).entitlement
    assert (one.is_granted, str(one.access_denied_reason)) == (False, "RequestedUsageExceedingLimit")
    assert (one.customer_id, one.requested_usage, one.usage_limit, one.current_usage) == (DEMO, 4, 6, 3)
    two = api.get_entitlement_v2({"customer_id": DEMO, "currency_id": "api-credits"}).entitlement_v2
    assert isinstance(two, CreditEntitlement)
    assert two.currency.display_name == "API credits"
    lacking = api.get_entitlement_v2({"customer_id": "customer-demo-03", "feature_id": "feature-analytics"})
    assert isinstance(lacking.entitlement_v2, FeatureEntitlement)
    assert str(lacking.entitlement_v2.access_denied_reason) == "NoFeatureEntitlementInSubscription"


def test_credits_are_what_the_plan_gives_less_what_was_used(api: Api) -> None:
    (balance,) = api.get_credit_balance({"customer_id": DEMO}).credit_balance_summary.balances
    assert (balance.current_balance, balance.total_consumed, balance.total_granted) == (37_500, 12_500, 50_000)
    assert balance.currency.display_name == "API credits"
    assert api.get_credit_balance({"customer_id": DEMO, "currency_id": "x"}).credit_balance_summary.balances == []


def test_promotional_entitlements_add_to_the_plan_until_they_end(guard: Guard, clock: ManualClock) -> None:
    api = guard.api
    given = [
        {"feature_id": TEMPLATES, "period": "ONE_MONTH", "usage_limit": 60},
        {"feature_id": "feature-storage", "period": "LIFETIME", "usage_limit": 1},
        {"feature_id": "feature-analytics", "period": "ONE_WEEK"},
        {"feature_id": "feature-regions", "period": "CUSTOM", "custom_end_date": "2200-01-01", "enum_values": ["moon"]},
        {"feature_id": "feature-seats", "period": "ONE_YEAR", "has_unlimited_usage": True},
    ]
    granted = api.grant_promotional_entitlements({"customer_id": DEMO, "promotional_entitlements": given})
    assert [one.feature_id for one in granted.grant_promotional_entitlements] == [one["feature_id"] for one in given]
    assert limit(guard, DEMO) == 60
    assert guard.peek("feature-storage", customer=DEMO).value == 100  # the plan's is more
    assert guard.check("feature-analytics", customer=DEMO)
    assert guard.peek("feature-regions", customer=DEMO).enum_values == ("eu", "us", "moon")
    assert guard.peek("feature-seats", customer=DEMO).is_unlimited
    clock.advance(8 * 86_400)
    assert not guard.check("feature-analytics", customer=DEMO)
    assert limit(guard, DEMO) == 60
    api.revoke_promotional_entitlement({"customer_id": DEMO, "feature_id": TEMPLATES})
    assert limit(guard, DEMO) == 6
    revoke = lambda: api.revoke_promotional_entitlement({"customer_id": DEMO, "feature_id": TEMPLATES})  # noqa: E731 - asked more than once
    assert refused(revoke) == "VALIDATION_ERROR"


def test_usage_is_counted_once_under_its_key(guard: Guard) -> None:
    api = guard.api
    usage = {"customer_id": DEMO, "feature_id": TEMPLATES, "value": 1, "idempotency_key": "k"}
    for _ in range(2):
        told = api.report_usage(usage).report_usage
    assert told.current_usage == 4
    bulk = {"usages": [{"customer_id": DEMO, "feature_id": TEMPLATES, "value": 5, "update_behavior": "SET"}]}
    assert [one.current_usage for one in api.report_usage_bulk(bulk).report_usage_bulk] == [5]
    event = {"customer_id": DEMO, "event_name": "user_login", "idempotency_key": "e", "dimensions": {"user_id": "u"}}
    for _ in range(2):
        api.report_event({"usage_events": [event]})
    assert guard.peek("feature-active-users", customer=DEMO).current_usage == 1
    assert guard.peek(TEMPLATES, customer=DEMO).current_usage == 5


def test_plans_have_their_prices(priced: Api) -> None:
    priced.provision_customer(
        {"customer_id": "c", "subscription_params": {"plan_id": "paid", "billing_period": "ANNUALLY"}}
    )
    paywall = priced.get_paywall({"customer_id": "c"}).paywall
    free, paid = paywall.plans
    assert (str(free.pricing_type), free.prices, str(paid.pricing_type)) == ("FREE", [], "PAID")
    assert [(str(one.billing_period), one.price and one.price.amount) for one in paid.prices] == [
        ("MONTHLY", pytest.approx(9.5)),
        ("ANNUALLY", 99),
    ]
    assert str(paywall.currency.code) == "EUR"
    assert [point.amount for point in paywall.paywall_calculated_price_points] == [9.5, 99]
    assert [type(one).__name__ for one in paid.package_entitlements] == [
        "PackageFeatureEntitlement",
        "PackageFeatureEntitlement",
        "PackageFeatureEntitlement",
        "PackageCreditEntitlement",
    ]
    (subscription,) = paywall.active_subscriptions
    assert [str(one.price and one.price.billing_period) for one in subscription.prices] == ["ANNUALLY"]
    assert str(subscription.pricing_type) == "PAID"
    (product,) = priced.get_products().products.edges
    assert product.node.ref_id == "catalog"


def test_coupons_take_something_off_the_price(priced: Api) -> None:
    def total(customer: str) -> float | None:
        (one,) = priced.get_active_subscriptions({"customer_id": customer}).get_active_subscriptions
        return None if one.total_price is None else float(one.total_price.total.amount)

    def subscribe(customer: str, **more: Any) -> None:
        priced.provision_subscription({"customer_id": customer, "plan_id": "paid", **more})

    nodes = {edge.node.ref_id: edge.node for edge in priced.get_coupons().coupons.edges}
    assert [(one.name, str(one.type), one.discount_value) for one in nodes.values()] == [
        ("fifth", "PERCENTAGE", 20),
        ("Fixed", "FIXED", 100),
        ("dollars", "FIXED", 1),
    ]
    priced.provision_customer({"customer_id": "c", "coupon_ref_id": "fifth"})
    found = priced.get_customer_by_id({"customer_id": "c"}).get_customer_by_ref_id
    assert found is not None
    assert found.coupon is not None
    assert found.coupon.ref_id == "fifth"
    subscribe("c")
    assert total("c") == 7.6
    for coupon, price in (("fixed", 0.0), ("dollars", 9.5), ("fifth", 7.6)):
        subscribe("c", applied_coupon={"coupon_id": coupon})
        assert total("c") == price
    priced.provision_subscription({"customer_id": "c", "plan_id": "free"})
    assert total("c") == 0
    assert refused(lambda: subscribe("c", applied_coupon={"coupon_id": "fift"})) == "VALIDATION_ERROR"
    assert refused(lambda: subscribe("c", applied_coupon={"promotion_code": "x"})) == "NOT_MODELLED"
    assert refused(lambda: priced.update_customer({"customer_id": "c", "coupon_ref_id": "x"})) == "VALIDATION_ERROR"


def test_what_is_not_modelled_is_an_error_and_nothing_is_made_up(api: Api) -> None:
    codes = {"CUSTOMER_NOT_FOUND", "SUBSCRIPTION_NOT_FOUND", "FEATURE_NOT_FOUND", "VALIDATION_ERROR", "answered"}
    for operation, facts in operations().items():
        if facts.kind != "subscription":
            modelled = facts.field in CHANGES or facts.field in QUESTIONS
            assert outcome(api, operation) in (codes if modelled else {"NOT_MODELLED"}), operation


def outcome(api: Api, operation: str) -> str:
    """Runs an operation with only what it must be given: the code of its error, or that it is answered."""
    given = {snake(name): sample(type_, 0) for name, type_ in variable_types(operation).items()}
    try:
        getattr(api, snake(operation[0].lower() + operation[1:]))(**given)
    except ApiRejected as error:
        return error.code
    return "answered"


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda api: api.provision_subscription({"customer_id": DEMO, "plan_id": "grwth"}), "VALIDATION_ERROR"),
        (lambda api: api.provision_subscription({"customer_id": "nobody", "plan_id": "growth"}), "CUSTOMER_NOT_FOUND"),
        (
            lambda api: api.provision_subscription({"customer_id": DEMO, "plan_id": "free", "promotion_code": "x"}),
            "NOT_MODELLED",
        ),
        (
            lambda api: api.provision_customer({"customer_id": "x", "subscription_params": {"plan_id": "grwth"}}),
            "VALIDATION_ERROR",
        ),
        (
            lambda api: api.provision_subscription(
                {"customer_id": DEMO, "plan_id": "free", "entitlements": [{"feature": {"feature_id": "f"}}]}
            ),
            "FEATURE_NOT_FOUND",
        ),
        (
            lambda api: api.provision_subscription({"customer_id": DEMO, "plan_id": "free", "entitlements": [{}]}),
            "VALIDATION_ERROR",
        ),
        (
            lambda api: api.update_subscription(
                {
                    "subscription_id": f"subscription-{DEMO}",
                    "entitlements": [{"credit": {"custom_currency_id": "x", "amount": 1, "cadence": "MONTH"}}],
                }
            ),
            "VALIDATION_ERROR",
        ),
        (
            lambda api: api.update_subscription(
                {
                    "subscription_id": f"subscription-{DEMO}",
                    "entitlements": [{"feature": {"feature_id": TEMPLATES}}],
                }
            ),
            "VALIDATION_ERROR",
        ),
        (lambda api: api.import_customer({"name": "Ann"}), "VALIDATION_ERROR"),
        (lambda api: api.report_usage({"customer_id": "x", "feature_id": TEMPLATES, "value": 1}), "CUSTOMER_NOT_FOUND"),
        (lambda api: api.report_usage({"customer_id": DEMO, "feature_id": "x", "value": 1}), "FEATURE_NOT_FOUND"),
        (
            lambda api: api.report_usage(
                {"customer_id": DEMO, "feature_id": TEMPLATES, "value": 1, "created_at": "yesterday"}
            ),
            "VALIDATION_ERROR",
        ),
        (
            lambda api: api.report_usage(
                {"customer_id": DEMO, "feature_id": TEMPLATES, "value": 1, "dimensions": {"a": []}}
            ),
            "VALIDATION_ERROR",
        ),
        (
            lambda api: api.cancel_subscription(
                {"subscription_ref_id": f"subscription-{DEMO}", "subscription_cancellation_time": "SPECIFIC_DATE"}
            ),
            "VALIDATION_ERROR",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_its_code_and_changes_nothing(
    guard: Guard, call: Callable[[Api], Any], code: str
) -> None:
    before = dict(guard.entitlements(DEMO))
    assert refused(lambda: call(guard.api)) == code
    guard.reload(DEMO)
    assert {key: one.usage_limit for key, one in guard.entitlements(DEMO).items()} == {
        key: one.usage_limit for key, one in before.items()
    }


def test_changes_outlive_the_sidecar(tmp_path: Path, clock: ManualClock) -> None:
    state = tmp_path / "state.sqlite3"
    for attempt in range(2):
        engine = Engine(demo_catalog(), Store(state), now=clock.now)
        with Sidecar(engine) as running, Api("any", f"http://{running.http_address}") as api:
            if attempt == 0:
                api.provision_customer({"customer_id": NEW, "name": "Ann", "subscription_params": {"plan_id": "free"}})
                api.grant_promotional_entitlements(
                    {
                        "customer_id": NEW,
                        "promotional_entitlements": [{"feature_id": "feature-exports", "period": "LIFETIME"}],
                    }
                )
            found = api.get_customer_by_id({"customer_id": NEW}).get_customer_by_ref_id
            assert found is not None
            assert found.name == "Ann"
            state_of = api.get_entitlements_state({"customer_id": NEW}).entitlements_state
            assert "feature-exports" in {one.feature.ref_id for one in state_of.entitlements if one.feature}
        engine.close()


def test_a_plan_change_over_http_takes_the_place_of_all_terms(guard: Guard, sidecar: Sidecar) -> None:
    own = [{"feature": {"feature_id": TEMPLATES, "usage_limit": 9}}]
    guard.api.provision_subscription({"customer_id": DEMO, "plan_id": "free", "entitlements": own})
    assert limit(guard, DEMO) == 9
    guard.api.cancel_subscription({"subscription_ref_id": f"subscription-{DEMO}"})
    put(sidecar, "growth")
    guard.reload(DEMO)
    assert limit(guard, DEMO) == 50


def put(sidecar: Sidecar, plan: str) -> None:
    address = f"http://{sidecar.http_address}/customers/{DEMO}"
    requests.put(address, json={"plan": plan}, timeout=10).raise_for_status()


def test_with_a_key_only_who_has_it_is_answered(engine: Engine) -> None:
    with Sidecar(engine, api_key="right") as running:
        url = f"http://{running.http_address}"
        with Api("wrong", url) as api, pytest.raises(ApiUnauthenticated) as caught:
            api.get_products()
        assert (caught.value.status, caught.value.code) == (401, "UNAUTHENTICATED")
        with Api("right", url) as api:
            api.get_products()


@pytest.mark.parametrize(
    ("given", "status", "code"),
    [
        (b"{}", 400, "BAD_USER_INPUT"),
        (b'{"query": "{ sdkConfiguration { sentryDsn }"}', 400, "GRAPHQL_PARSE_FAILED"),
        (b'{"query": "{ nothing }"}', 400, "GRAPHQL_VALIDATION_FAILED"),
        (b'{"query": "{ products { edges { node { refId } } } }", "operationName": "Other"}', 200, "BAD_USER_INPUT"),
        (b'{"query": "subscription { usageUpdated { usage { customerId } } }"}', 200, "NOT_MODELLED"),
        (
            b'{"query": "query($q: FetchEntitlementsQuery!) { cachedEntitlements(query: $q) { isGranted } }"}',
            200,
            "BAD_USER_INPUT",
        ),
    ],
)
def test_what_is_no_request_is_said_with_a_code(sidecar: Sidecar, given: bytes, status: int, code: str) -> None:
    answer = post(sidecar, given)
    assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("given", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Host": "evil.example"}, 403),
        (b" " * 1_100_000, {}, 413),
    ],
)
def test_foreign_pages_and_bodies_are_refused(
    sidecar: Sidecar, given: bytes, headers: dict[str, str], status: int
) -> None:
    assert post(sidecar, given, **headers).status_code == status
    assert requests.post(f"http://{sidecar.http_address}/other", json={}, timeout=10).status_code == 404


def post(sidecar: Sidecar, body: bytes, **headers: str) -> requests.Response:
    given = {"Content-Type": "application/json", **headers}
    return requests.post(f"http://{sidecar.http_address}/graphql", data=body, headers=given, timeout=10)


def test_what_fails_inside_is_logged_and_not_sent(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine, "answer", lambda *_, **__: 1 / 0)
    query = '{ entitlement(query: {customerId: "c", featureId: "f"}) { isGranted } }'
    with caplog.at_level(logging.ERROR):
        _, answer = Graph(engine, None).answer(None, {"query": query})
    assert answer["errors"][0]["message"] == "the sidecar's log says why"
    assert answer["errors"][0]["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
    assert "ZeroDivisionError" in caplog.text
