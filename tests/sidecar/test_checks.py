"""What a customer may use, and why not: the nine requests that read."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from stigg_guard.errors import InvalidRequest
from stigg_guard.fallbacks import Fallback
from stigg_guard.sidecar.catalog import demo_catalog, load_catalog, parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import METHODS
from stigg_guard.wire import sidecar_pb2 as pb

NOW = datetime(2024, 2, 29, 12, tzinfo=timezone.utc)

CATALOG = """
[features.flag]
type = "boolean"
[features.number]
type = "numeric"
[features.numbers]
type = "numeric"
[features.choice]
type = "enum"
[features.meter]
type = "metered"
meter = "incremental"
[features.soft]
type = "metered"
meter = "incremental"
[features.endless]
type = "metered"
meter = "fluctuating"
[features.absent]
type = "metered"
meter = "fluctuating"
[currencies.credits]
display_name = "Credits"
description = "Spent by calls"
units = "credit"
units_plural = "credits"
[currencies.soft-credits]
[currencies.absent-credits]
[plans.p.entitlements]
flag = true
number = { value = 100 }
numbers = { unlimited = true }
choice = { values = ["eu", "us"] }
meter = { limit = 6, reset = "month" }
soft = { limit = 1, soft = true }
endless = { unlimited = true }
[plans.p.credits]
credits = { amount = 10, reset = "month" }
soft-credits = { amount = 10, soft = true }
[plans.small.entitlements]
meter = { limit = 1 }
[customers.c]
plan = "p"
anchor = 2024-01-31T00:00:00Z
usage = { meter = 3, soft = 5, endless = 9 }
credits_used = { credits = 4, soft-credits = 11 }
[customers.c.resources.site]
plan = "small"
[customers.c.resources.bare]
[customers.gone]
plan = "p"
archived = true
[customers.bare]
[customers.revoked]
plan = "p"
revoked = ["flag", "meter"]
"""


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(parse_catalog(CATALOG), Store(None), now=lambda: NOW, fallbacks={"global": Fallback(True)})
    yield engine
    engine.close()


def ask(engine: Engine, method: str, customer_id: str = "c", **fields: Any) -> Any:
    return engine.answer(method, METHODS[method].request(customer_id=customer_id, **fields))


def metered(engine: Engine, feature_id: str = "meter", requested: float | None = None, **fields: Any) -> Any:
    options = {} if requested is None else {"options": {"requested_usage": requested}}
    return ask(engine, "GetMeteredEntitlement", feature_id=feature_id, **options, **fields)


def reason(answer: Any) -> str:
    return str(pb.AccessDeniedReason.Name(answer.access_denied_reason)).removeprefix("ACCESS_DENIED_REASON_")


def test_documented_sample_is_answered_exactly():
    engine = Engine(demo_catalog(), Store(None))
    answer = metered(engine, "feature-templates", 10, customer_id="customer-demo-01")
    engine.close()
    assert answer == pb.GetMeteredEntitlementResponse(
        has_access=False,
        access_denied_reason=pb.ACCESS_DENIED_REASON_REQUESTED_USAGE_EXCEEDING_LIMIT,
        requested_usage=10,
        entitlement=pb.MeteredEntitlement(
            feature=pb.EntitlementFeature(
                id="feature-templates",
                feature_type=pb.FEATURE_TYPE_NUMBER,
                units="template",
                units_plural="templates",
                meter_type=pb.METER_TYPE_FLUCTUATING,
                is_metered=True,
            ),
            usage_limit=6,
            current_usage=3,
            reset_period=pb.ENTITLEMENT_RESET_PERIOD_UNSPECIFIED,
            has_soft_limit=False,
        ),
    )


@pytest.mark.parametrize(("requested", "granted"), [(None, True), (0, True), (3, True), (3.5, False), (4, False)])
def test_requested_usage_must_fit_under_the_limit(engine, requested, granted):
    answer = metered(engine, requested=requested)
    assert answer.has_access is granted
    assert answer.requested_usage == (requested or 0)
    assert reason(answer) == ("UNSPECIFIED" if granted else "REQUESTED_USAGE_EXCEEDING_LIMIT")
    assert (answer.entitlement.usage_limit, answer.entitlement.current_usage) == (6, 3)


@pytest.mark.parametrize(("used", "granted"), [(5, (True, True)), (6, (False, True)), (7, (False, False))])
def test_at_the_limit_only_reading_the_state_is_granted(engine, used, granted):
    engine.answer("ReportUsage", pb.ReportUsageRequest(customer_id="c", feature_id="meter", value=used - 3))
    assert (metered(engine).has_access, metered(engine, requested=0).has_access) == granted


def test_metered_answer_tells_its_period(engine):
    entitlement = metered(engine).entitlement
    assert entitlement.reset_period == pb.ENTITLEMENT_RESET_PERIOD_MONTH
    stamps = (entitlement.usage_period_anchor, entitlement.usage_period_start, entitlement.usage_period_end)
    assert [stamp.ToDatetime() for stamp in stamps] == [
        datetime(2024, 1, 31),
        datetime(2024, 2, 29),
        datetime(2024, 3, 31),
    ]
    assert not metered(engine, "soft").entitlement.HasField("usage_period_end")


def test_soft_limit_grants_past_the_limit(engine):
    answer = metered(engine, "soft", 100)
    assert answer.has_access
    assert answer.entitlement.has_soft_limit
    assert (answer.entitlement.usage_limit, answer.entitlement.current_usage) == (1, 5)


def test_unlimited_meter_always_grants_and_still_counts(engine):
    answer = metered(engine, "endless", 1e9)
    assert answer.has_access
    assert answer.entitlement.is_unlimited
    assert answer.entitlement.current_usage == 9
    assert not answer.entitlement.HasField("usage_limit")


def test_boolean_and_numeric_features_are_granted_by_the_plan(engine):
    flag = ask(engine, "GetBooleanEntitlement", feature_id="flag")
    assert flag.has_access
    assert flag.entitlement.feature.feature_type == pb.FEATURE_TYPE_BOOLEAN
    assert flag.entitlement.feature.meter_type == pb.METER_TYPE_NONE
    number = ask(engine, "GetNumericEntitlement", feature_id="number")
    assert (number.has_access, number.entitlement.value, number.entitlement.is_unlimited) == (True, 100, False)
    numbers = ask(engine, "GetNumericEntitlement", feature_id="numbers")
    assert (numbers.has_access, numbers.entitlement.is_unlimited) == (True, True)
    assert not numbers.entitlement.HasField("value")


@pytest.mark.parametrize(
    ("values", "granted"), [([], True), (["eu"], True), (["us", "eu"], True), (["eu", "x"], False)]
)
def test_every_requested_value_must_be_in_the_plan(engine, values, granted):
    answer = ask(engine, "GetEnumEntitlement", feature_id="choice", options={"requested_values": values})
    assert answer.has_access is granted
    assert reason(answer) == ("UNSPECIFIED" if granted else "REQUESTED_VALUES_MISMATCH")
    assert list(answer.requested_values) == values
    assert list(answer.entitlement.enum_values) == ["eu", "us"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"customer_id": "nobody"}, "CUSTOMER_NOT_FOUND"),
        ({"customer_id": "gone"}, "CUSTOMER_IS_ARCHIVED"),
        ({"resource_id": "nowhere"}, "CUSTOMER_RESOURCE_NOT_FOUND"),
        ({"customer_id": "bare"}, "NO_ACTIVE_SUBSCRIPTION"),
        ({"resource_id": "bare"}, "NO_ACTIVE_SUBSCRIPTION"),
        ({"feature_id": "unheard"}, "FEATURE_NOT_FOUND"),
        ({"feature_id": "absent"}, "NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION"),
        ({"feature_id": "flag"}, "FEATURE_TYPE_MISMATCH"),
    ],
)
def test_missing_entitlement_is_denied_with_its_reason_and_an_empty_entitlement(engine, fields, expected):
    answer = metered(engine, **fields)
    assert not answer.has_access
    assert not answer.is_fallback
    assert reason(answer) == expected
    assert answer.HasField("entitlement")
    assert not answer.entitlement.HasField("feature")
    assert answer.entitlement.current_usage == 0
    assert answer.entitlement.reset_period == pb.ENTITLEMENT_RESET_PERIOD_UNSPECIFIED


def test_revoked_feature_is_denied_and_still_shows_its_figures(engine):
    answer = metered(engine, customer_id="revoked")
    assert (answer.has_access, reason(answer)) == (False, "REVOKED")
    assert answer.entitlement.usage_limit == 6


def test_resource_has_its_own_plan_and_usage(engine):
    answer = metered(engine, resource_id="site")
    assert (answer.entitlement.usage_limit, answer.entitlement.current_usage) == (1, 0)


@pytest.mark.parametrize("method", ["GetEntitlement", "GetEntitlementV2"])
@pytest.mark.parametrize(
    ("feature_id", "kind"),
    [("flag", "boolean"), ("number", "numeric"), ("meter", "metered"), ("choice", "enum")],
)
def test_generic_request_answers_in_the_features_kind(engine, method, feature_id, kind):
    answer = ask(engine, method, feature_id=feature_id)
    answer = answer.entitlement if method == "GetEntitlementV2" else answer
    assert answer.has_access
    assert answer.WhichOneof("entitlement") == kind
    assert getattr(answer, kind).feature.id == feature_id


@pytest.mark.parametrize(("feature_id", "kind"), [("absent", "metered"), ("unheard", "boolean")])
def test_generic_denial_has_an_empty_entitlement_of_the_features_kind(engine, feature_id, kind):
    answer = ask(engine, "GetEntitlement", feature_id=feature_id)
    assert answer.WhichOneof("entitlement") == kind
    assert not getattr(answer, kind).HasField("feature")


def test_generic_request_takes_usage_and_values(engine):
    over = ask(engine, "GetEntitlement", feature_id="meter", options={"requested_usage": 4})
    assert reason(over) == "REQUESTED_USAGE_EXCEEDING_LIMIT"
    mismatch = ask(engine, "GetEntitlementV2", feature_id="choice", options={"requested_values": ["x"]}).entitlement
    assert reason(mismatch) == "REQUESTED_VALUES_MISMATCH"


@pytest.mark.parametrize(("requested", "granted"), [(None, True), (6, True), (7, False)])
def test_credits_are_spent_up_to_their_amount(engine, requested, granted):
    options = {} if requested is None else {"options": {"requested_usage": requested}}
    answer = ask(engine, "GetEntitlementV2", currency_id="credits", **options).entitlement
    assert answer.has_access is granted
    assert reason(answer) == ("UNSPECIFIED" if granted else "INSUFFICIENT_CREDITS")
    credit = answer.credit
    assert (credit.usage_limit, credit.current_usage, credit.remaining) == (10, 4, 6)
    assert credit.usage_period_end.ToDatetime() == datetime(2024, 3, 31)
    assert credit.currency == pb.EntitlementCurrency(
        currency_id="credits",
        display_name="Credits",
        description="Spent by calls",
        unit_singular="credit",
        unit_plural="credits",
    )


def test_soft_credits_go_on_and_none_remain(engine):
    answer = ask(engine, "GetEntitlementV2", currency_id="soft-credits").entitlement
    assert answer.has_access
    assert (answer.credit.has_soft_limit, answer.credit.remaining) == (True, 0)
    assert not answer.credit.HasField("usage_period_end")


@pytest.mark.parametrize("currency_id", ["absent-credits", "unheard"])
def test_credits_that_the_plan_lacks_are_denied(engine, currency_id):
    answer = ask(engine, "GetEntitlementV2", currency_id=currency_id).entitlement
    assert (answer.has_access, reason(answer)) == (False, "ENTITLEMENT_NOT_FOUND")
    assert answer.WhichOneof("entitlement") == "credit"


def test_fallback_of_the_call_goes_before_the_global_one(engine):
    own = ask(engine, "GetBooleanEntitlement", feature_id="global", options={"fallback": {"has_access": False}})
    assert (own.has_access, own.is_fallback) == (False, True)
    assert ask(engine, "GetBooleanEntitlement", feature_id="global").has_access


@pytest.mark.parametrize(
    "fields", [{"feature_id": "absent"}, {"customer_id": "nobody"}, {"customer_id": "bare"}, {"feature_id": "flag"}]
)
def test_fallback_never_stands_in_for_a_real_denial(engine, fields):
    fields = {"feature_id": "meter", **fields}
    answer = ask(engine, "GetMeteredEntitlement", **fields, options={"fallback": {"has_access": True}})
    assert (answer.has_access, answer.is_fallback) == (False, False)


def test_state_lists_everything_decided_with_credits_and_revoked(engine):
    state = ask(engine, "GetEntitlementsStateV2")
    assert not state.HasField("access_denied_reason")
    kinds = [entitlement.WhichOneof("entitlement") for entitlement in state.entitlements]
    assert kinds == ["boolean", "numeric", "numeric", "enum", "metered", "metered", "metered", "credit", "credit"]
    assert all(entitlement.has_access for entitlement in state.entitlements)
    assert state.entitlements[4].metered.current_usage == 3
    revoked = ask(engine, "GetEntitlementsStateV2", "revoked").entitlements[0]
    assert (revoked.has_access, reason(revoked), revoked.boolean.feature.id) == (False, "REVOKED", "flag")


def test_state_shows_usage_a_new_plan_and_a_new_period_at_once():
    instants = [NOW]
    engine = Engine(parse_catalog(CATALOG), Store(None), now=lambda: instants[-1])

    def meter() -> tuple[bool, float, float]:
        (entitlement,) = (
            one for one in ask(engine, "GetEntitlementsStateV2").entitlements if one.metered.feature.id == "meter"
        )
        return entitlement.has_access, entitlement.metered.usage_limit, entitlement.metered.current_usage

    assert meter() == (True, 6, 3)
    ask(engine, "ReportUsage", feature_id="meter", value=3)
    assert meter() == (False, 6, 6)
    instants.append(datetime(2024, 3, 31, tzinfo=timezone.utc))
    assert meter() == (True, 6, 0)
    engine.assign_plan("c", "small")
    assert meter() == (True, 1, 0)
    engine.close()


def test_state_changed_by_its_holder_is_answered_unchanged_again(engine):
    first = ask(engine, "GetEntitlementsStateV2")
    del first.entitlements[:]
    assert len(ask(engine, "GetEntitlementsStateV2").entitlements) == 9


def test_older_list_has_the_features_without_those_revoked(engine):
    listed = ask(engine, "GetEntitlements", "revoked").entitlements
    ids = [getattr(entitlement, entitlement.WhichOneof("entitlement")).feature.id for entitlement in listed]
    assert ids == ["number", "numbers", "choice", "soft", "endless"]
    assert ask(engine, "GetEntitlements").entitlements[4].metered.current_usage == 3


@pytest.mark.parametrize("method", ["GetEntitlements", "GetEntitlementsStateV2"])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"customer_id": "nobody"}, "CUSTOMER_NOT_FOUND"),
        ({"customer_id": "gone"}, "CUSTOMER_IS_ARCHIVED"),
        ({"customer_id": "bare"}, "NO_ACTIVE_SUBSCRIPTION"),
        ({"resource_id": "nowhere"}, "CUSTOMER_RESOURCE_NOT_FOUND"),
    ],
)
def test_list_of_nobody_says_why_it_is_empty(engine, method, fields, expected):
    answer = ask(engine, method, **fields)
    assert (len(answer.entitlements), reason(answer)) == (0, expected)


@pytest.mark.parametrize(
    ("fields", "exists"),
    [
        ({}, True),
        ({"customer_id": "gone"}, True),
        ({"customer_id": "nobody"}, False),
        ({"resource_id": "site"}, True),
        ({"resource_id": "nowhere"}, False),
    ],
)
def test_reload_tells_whether_the_entity_exists(engine, fields, exists):
    assert ask(engine, "ReloadEntitlements", **fields).entitled_entity_exists is exists


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        ("GetEntitlement", {"customer_id": "", "feature_id": "flag"}, "customer_id"),
        ("GetBooleanEntitlement", {}, "feature_id"),
        ("GetNumericEntitlement", {"feature_id": "number", "resource_id": ""}, "resource_id"),
        ("GetEntitlements", {"customer_id": ""}, "customer_id"),
        ("GetEntitlementsStateV2", {"customer_id": ""}, "customer_id"),
        ("ReloadEntitlements", {"customer_id": ""}, "customer_id"),
        ("GetEntitlementV2", {}, "feature_id"),
        ("GetEntitlementV2", {"feature_id": "flag", "currency_id": "credits"}, "feature_id"),
        ("GetEntitlementV2", {"currency_id": ""}, "currency_id"),
        (
            "GetMeteredEntitlement",
            {"feature_id": "meter", "options": {"requested_usage": float("nan")}},
            "options.requested_usage",
        ),
        (
            "GetEntitlement",
            {"feature_id": "meter", "options": {"requested_usage": float("inf")}},
            "options.requested_usage",
        ),
        (
            "GetEntitlementV2",
            {"currency_id": "credits", "options": {"requested_usage": -1}},
            "options.requested_usage",
        ),
    ],
)
def test_wrong_request_is_refused_by_its_field(engine, method, fields, field):
    with pytest.raises(InvalidRequest) as caught:
        ask(engine, method, **fields)
    assert caught.value.field == field


def test_offline_catalog_answers_with_usage_zero():
    catalog = load_catalog(Path(__file__).parents[1] / "data" / "offline.json")
    engine = Engine(catalog, Store(None), reporting=False)
    answer = metered(engine, "f3", customer_id="customer-demo-01")
    assert (answer.has_access, answer.entitlement.usage_limit, answer.entitlement.current_usage) == (True, 100000, 0)
    assert ask(engine, "GetBooleanEntitlement", "customer-demo-01", feature_id="f1").has_access
    engine.close()
