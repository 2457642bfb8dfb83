"""What any client gets from the local sidecar: this one is made at run time from the contract's data alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from random import Random
from typing import Any

import grpc
import pytest

from sidecar.contract import CONTRACT, DEMO, INFINITY, NAN, NOW, Client, reason, refusal, report
from stigg_guard.sidecar.engine import Engine

# The questions


def test_boolean_feature_of_the_plan_is_granted(client: Client) -> None:
    answer = client("GetBooleanEntitlement", customer_id=DEMO, feature_id="feature-custom-domain")
    assert answer.has_access
    assert not answer.is_fallback
    assert not answer.HasField("access_denied_reason")
    assert answer.entitlement.feature.id == "feature-custom-domain"
    assert answer.entitlement.feature.feature_type == CONTRACT["enums"]["FeatureType"]["FEATURE_TYPE_BOOLEAN"]


def test_numeric_feature_carries_its_value(client: Client) -> None:
    answer = client("GetNumericEntitlement", customer_id=DEMO, feature_id="feature-storage")
    assert answer.has_access
    assert answer.entitlement.value == 100
    assert not answer.entitlement.is_unlimited


def test_enum_feature_grants_the_values_of_the_plan(client: Client) -> None:
    answer = client(
        "GetEnumEntitlement", customer_id=DEMO, feature_id="feature-regions", options={"requested_values": ["eu"]}
    )
    assert answer.has_access
    assert answer.requested_values == ["eu"]
    assert answer.entitlement.enum_values == ["eu", "us"]


def test_enum_feature_denies_a_value_outside_the_plan(client: Client) -> None:
    options = {"requested_values": ["eu", "asia"]}
    answer = client("GetEnumEntitlement", customer_id=DEMO, feature_id="feature-regions", options=options)
    assert not answer.has_access
    assert answer.access_denied_reason == reason("REQUESTED_VALUES_MISMATCH")


def test_metered_feature_gives_the_documented_sample(client: Client) -> None:
    options = {"requested_usage": 10}
    answer = client("GetMeteredEntitlement", customer_id=DEMO, feature_id="feature-templates", options=options)
    assert not answer.has_access
    assert answer.access_denied_reason == reason("REQUESTED_USAGE_EXCEEDING_LIMIT")
    assert answer.requested_usage == 10
    assert answer.entitlement.usage_limit == 6
    assert answer.entitlement.current_usage == 3
    feature = answer.entitlement.feature
    assert (feature.units, feature.units_plural) == ("template", "templates")
    assert feature.meter_type == CONTRACT["enums"]["MeterType"]["METER_TYPE_FLUCTUATING"]
    assert feature.is_metered


@pytest.mark.parametrize(
    ("requested", "granted"), [({}, True), ({"requested_usage": 3}, True), ({"requested_usage": 4}, False)]
)
def test_metered_feature_is_granted_up_to_its_limit(client: Client, requested: dict[str, float], granted: bool) -> None:
    answer = client("GetMeteredEntitlement", customer_id=DEMO, feature_id="feature-templates", options=requested)
    assert answer.has_access is granted


def test_metered_feature_with_a_reset_tells_its_window(client: Client) -> None:
    entitlement = client("GetMeteredEntitlement", customer_id=DEMO, feature_id="feature-api-calls").entitlement
    assert entitlement.reset_period == CONTRACT["enums"]["EntitlementResetPeriod"]["ENTITLEMENT_RESET_PERIOD_MONTH"]
    assert entitlement.usage_period_anchor.ToJsonString() == "2023-07-21T00:00:00Z"
    assert entitlement.usage_period_start.ToJsonString() == "2025-12-21T00:00:00Z"
    assert entitlement.usage_period_end.ToJsonString() == "2026-01-21T00:00:00Z"
    assert entitlement.has_soft_limit


@pytest.mark.parametrize(
    ("feature", "kind"),
    [
        ("feature-custom-domain", "boolean"),
        ("feature-storage", "numeric"),
        ("feature-regions", "enum"),
        ("feature-templates", "metered"),
    ],
)
@pytest.mark.parametrize("method", ["GetEntitlement", "GetEntitlementV2"])
def test_general_question_answers_with_the_kind_of_the_feature(
    client: Client, method: str, feature: str, kind: str
) -> None:
    answer = client(method, customer_id=DEMO, feature_id=feature)
    answer = answer if method == "GetEntitlement" else answer.entitlement
    assert answer.has_access
    assert answer.WhichOneof("entitlement") == kind
    assert getattr(answer, kind).feature.id == feature


def test_credits_are_answered_by_their_currency(client: Client) -> None:
    answer = client("GetEntitlementV2", customer_id=DEMO, currency_id="api-credits").entitlement
    assert answer.has_access
    assert answer.credit.currency.currency_id == "api-credits"
    assert answer.credit.currency.display_name == "API credits"
    assert (answer.credit.usage_limit, answer.credit.current_usage, answer.credit.remaining) == (50000, 12500, 37500)
    assert answer.credit.usage_period_end.ToJsonString() == "2026-01-21T00:00:00Z"


def test_more_credits_than_remain_are_denied(client: Client) -> None:
    options = {"requested_usage": 37501}
    answer = client("GetEntitlementV2", customer_id=DEMO, currency_id="api-credits", options=options).entitlement
    assert not answer.has_access
    assert answer.access_denied_reason == reason("INSUFFICIENT_CREDITS")


ESSENTIALS = {
    "feature-templates",
    "feature-ai",
    "feature-api-calls",
    "feature-seats",
    "feature-active-users",
    "feature-storage",
    "feature-regions",
    "feature-custom-domain",
    "feature-exports",
    "feature-01-templates",
    "feature-03-custom-domain",
    *(f"feature-example-{number}" for number in range(1, 10)),
}


def feature_ids(entitlements: Sequence[Any]) -> set[str]:
    kinds = (getattr(entitlement, entitlement.WhichOneof("entitlement")) for entitlement in entitlements)
    return {
        kind.feature.id if kind.DESCRIPTOR.name != "CreditEntitlement" else kind.currency.currency_id for kind in kinds
    }


def test_all_entitlements_of_a_customer_are_listed(client: Client) -> None:
    answer = client("GetEntitlements", customer_id=DEMO)
    assert feature_ids(answer.entitlements) == ESSENTIALS
    assert not answer.HasField("access_denied_reason")


def test_state_lists_entitlements_with_credits_and_decisions(client: Client) -> None:
    answer = client("GetEntitlementsStateV2", customer_id=DEMO)
    assert feature_ids(answer.entitlements) == {*ESSENTIALS, "api-credits"}
    assert all(entitlement.has_access for entitlement in answer.entitlements)
    [templates] = [one.metered for one in answer.entitlements if one.metered.feature.id == "feature-templates"]
    assert (templates.usage_limit, templates.current_usage) == (6, 3)


@pytest.mark.parametrize("method", ["GetEntitlements", "GetEntitlementsStateV2"])
@pytest.mark.parametrize(
    ("fields", "denied"),
    [
        ({"customer_id": "nobody"}, "CUSTOMER_NOT_FOUND"),
        ({"customer_id": "customer-demo-04"}, "NO_ACTIVE_SUBSCRIPTION"),
        ({"customer_id": "customer-demo-05"}, "CUSTOMER_IS_ARCHIVED"),
        ({"customer_id": DEMO, "resource_id": "nowhere"}, "CUSTOMER_RESOURCE_NOT_FOUND"),
    ],
)
def test_list_says_why_it_is_empty(client: Client, method: str, fields: dict[str, str], denied: str) -> None:
    answer = client(method, **fields)
    assert not answer.entitlements
    assert answer.access_denied_reason == reason(denied)


@pytest.mark.parametrize(
    ("fields", "denied"),
    [
        ({"customer_id": "nobody", "feature_id": "feature-exports"}, "CUSTOMER_NOT_FOUND"),
        ({"customer_id": "customer-demo-05", "feature_id": "feature-exports"}, "CUSTOMER_IS_ARCHIVED"),
        ({"customer_id": "customer-demo-04", "feature_id": "feature-exports"}, "NO_ACTIVE_SUBSCRIPTION"),
        ({"customer_id": DEMO, "resource_id": "no", "feature_id": "feature-exports"}, "CUSTOMER_RESOURCE_NOT_FOUND"),
        ({"customer_id": DEMO, "feature_id": "feature-unheard-of"}, "FEATURE_NOT_FOUND"),
        ({"customer_id": DEMO, "feature_id": "feature-analytics"}, "NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION"),
        ({"customer_id": DEMO, "feature_id": "feature-storage"}, "FEATURE_TYPE_MISMATCH"),
        ({"customer_id": "customer-demo-06", "feature_id": "feature-custom-domain"}, "REVOKED"),
    ],
)
def test_denial_says_why(client: Client, fields: dict[str, str], denied: str) -> None:
    answer = client("GetBooleanEntitlement", **fields)
    assert not answer.has_access
    assert answer.access_denied_reason == reason(denied)


def test_denial_of_a_missing_entitlement_carries_an_empty_one(client: Client) -> None:
    answer = client("GetMeteredEntitlement", customer_id="customer-demo-03", feature_id="feature-active-users")
    assert answer.HasField("entitlement")
    assert not answer.entitlement.HasField("feature")
    assert answer.entitlement.current_usage == 0
    assert answer.entitlement.reset_period == 0


@pytest.mark.parametrize(("customer", "exists"), [(DEMO, True), ("nobody", False)])
def test_reload_says_whether_the_customer_exists(client: Client, customer: str, exists: bool) -> None:
    assert client("ReloadEntitlements", customer_id=customer).entitled_entity_exists is exists


def test_fallback_of_the_call_answers_for_an_unknown_feature(client: Client) -> None:
    options = {"fallback": {"has_access": True, "usage_limit": 7}}
    answer = client("GetMeteredEntitlement", customer_id=DEMO, feature_id="feature-planned", options=options)
    assert answer.has_access
    assert answer.is_fallback
    assert answer.entitlement.usage_limit == 7


def test_fallback_of_the_sidecar_answers_when_the_call_brings_none(client: Client) -> None:
    answer = client("GetMeteredEntitlement", customer_id=DEMO, feature_id="feature-planned")
    assert answer.is_fallback
    assert answer.entitlement.usage_limit == 9


# The reports


def test_reported_usage_is_added_and_seen_by_the_next_check(client: Client) -> None:
    answer = client("ReportUsage", **report(2))
    assert answer.current_usage == 5
    assert answer.measurement_id
    assert (answer.customer_id, answer.feature_id) == (DEMO, "feature-templates")
    assert client.templates_used() == 5


def test_set_replaces_the_usage(client: Client) -> None:
    behavior = CONTRACT["enums"]["UsageUpdateBehavior"]["USAGE_UPDATE_BEHAVIOR_SET"]
    assert client("ReportUsage", **report(1, update_behavior=behavior)).current_usage == 1


def test_report_tells_the_window_it_counted_in(client: Client) -> None:
    answer = client("ReportUsage", **report(1, feature_id="feature-api-calls"))
    assert answer.usage_period_start.ToJsonString() == "2025-12-21T00:00:00Z"
    assert answer.usage_period_end.ToJsonString() == "2026-01-21T00:00:00Z"


def test_resource_has_usage_of_its_own(client: Client) -> None:
    answer = client("ReportUsage", **report(1, resource_id="site-01"))
    assert answer.resource_id == "site-01"
    assert answer.current_usage == 1
    assert client.templates_used() == 3


def test_bulk_answers_each_report_in_order(client: Client) -> None:
    answer = client("ReportUsageBulk", usages=[report(1), report(1)])
    assert [usage.current_usage for usage in answer.usages] == [4, 5]


def test_bulk_with_one_bad_item_counts_nothing(client: Client) -> None:
    assert "usages[1].customer_id" in refusal(client, "ReportUsageBulk", usages=[report(1), report(1, customer_id="")])
    assert client.templates_used() == 3


def login(user: str, **fields: Any) -> dict[str, Any]:
    dimensions = {"user_id": {"string_value": user}}
    defaults = {"customer_id": DEMO, "event_name": "user_login", "idempotency_key": user, "timestamp": NOW}
    return {**defaults, "dimensions": dimensions, **fields}


def test_events_become_usage_of_the_metered_feature(client: Client) -> None:
    client("ReportEvents", events=[login("user-01"), login("user-02"), login("user-01", idempotency_key="again")])
    answer = client("GetMeteredEntitlement", customer_id=DEMO, feature_id="feature-active-users")
    assert answer.entitlement.current_usage == 2


def test_repeated_idempotency_key_returns_the_first_answer(client: Client) -> None:
    first = client("ReportUsage", key="key-01", **report(2))
    assert client("ReportUsage", key="key-01", **report(2)) == first
    assert client.templates_used() == 5


def test_repeated_idempotency_key_of_a_bulk_counts_once(client: Client) -> None:
    first = client("ReportUsageBulk", key="key-02", usages=[report(1), report(1)])
    assert client("ReportUsageBulk", key="key-02", usages=[report(1), report(1)]) == first
    assert client.templates_used() == 5


# Bad input


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        ("GetEntitlement", {"feature_id": "f"}, "customer_id"),
        ("GetEntitlement", {"customer_id": "c"}, "feature_id"),
        ("GetBooleanEntitlement", {"feature_id": "f"}, "customer_id"),
        ("GetBooleanEntitlement", {"customer_id": "c"}, "feature_id"),
        ("GetNumericEntitlement", {"customer_id": "c"}, "feature_id"),
        ("GetEnumEntitlement", {"customer_id": "c"}, "feature_id"),
        ("GetMeteredEntitlement", {"customer_id": "c"}, "feature_id"),
        ("GetMeteredEntitlement", {"customer_id": "c", "feature_id": "f", "resource_id": ""}, "resource_id"),
        (
            "GetMeteredEntitlement",
            {"customer_id": DEMO, "feature_id": "feature-templates", "options": {"requested_usage": NAN}},
            "options.requested_usage",
        ),
        (
            "GetMeteredEntitlement",
            {"customer_id": DEMO, "feature_id": "feature-templates", "options": {"requested_usage": -1}},
            "options.requested_usage",
        ),
        ("GetEntitlements", {}, "customer_id"),
        ("GetEntitlementsStateV2", {}, "customer_id"),
        ("ReloadEntitlements", {}, "customer_id"),
        ("GetEntitlementV2", {"customer_id": DEMO}, "feature_id"),
        ("GetEntitlementV2", {"customer_id": DEMO, "feature_id": "f", "currency_id": "c"}, "feature_id"),
        ("ReportUsage", report(1, customer_id=""), "customer_id"),
        ("ReportUsage", report(1, customer_id="nobody"), "customer_id"),
        ("ReportUsage", report(1, feature_id=""), "feature_id"),
        ("ReportUsage", report(1, feature_id="feature-unheard-of"), "feature_id"),
        ("ReportUsage", report(1, feature_id="feature-exports"), "feature_id"),
        ("ReportUsage", report(1, resource_id="nowhere"), "resource_id"),
        ("ReportUsage", report(NAN), "value"),
        ("ReportUsage", report(INFINITY), "value"),
        ("ReportUsage", report(-1, feature_id="feature-api-calls"), "value"),
        ("ReportUsage", report(1, timestamp=NOW + timedelta(hours=1)), "timestamp"),
        ("ReportUsageBulk", {"usages": []}, "usages"),
        ("ReportUsageBulk", {"usages": [report(1)] * 101}, "usages"),
        ("ReportUsageBulk", {"usages": [report(1), report(NAN)]}, "usages[1].value"),
        ("ReportEvents", {"events": []}, "events"),
        ("ReportEvents", {"events": [login("u")] * 1001}, "events"),
        ("ReportEvents", {"events": [login("u", customer_id="")]}, "events[0].customer_id"),
        ("ReportEvents", {"events": [login("u", event_name="")]}, "events[0].event_name"),
        ("ReportEvents", {"events": [login("u"), login("u", idempotency_key="")]}, "events[1].idempotency_key"),
        ("ReportEvents", {"events": [login("u")] * 9 + [login("u" * 1_500_000, idempotency_key="u")]}, "events[9]"),
    ],
)
def test_bad_input_is_refused_by_its_field(client: Client, method: str, fields: dict[str, Any], field: str) -> None:
    assert refusal(client, method, **fields).startswith(f"{field}: ")


def test_batch_larger_than_grpc_s_default_limit_is_taken(client: Client) -> None:
    events = [login("u" * 900_000, idempotency_key=str(number)) for number in range(8)]
    client("ReportEvents", events=events)


def test_unknown_field_of_a_newer_client_is_ignored(client: Client) -> None:
    request = client.message("GetBooleanEntitlementRequest")(customer_id=DEMO, feature_id="feature-exports")
    field_999 = b"\xba\x3e\x03new"
    assert client.send("GetBooleanEntitlement", request.SerializeToString() + field_999).has_access


def test_unknown_enum_number_of_a_newer_client_is_refused_by_its_field(client: Client) -> None:
    assert refusal(client, "ReportUsage", **report(1, update_behavior=99)).startswith("update_behavior: ")


def test_unexpected_failure_is_logged_and_not_sent(
    client: Client, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.close()
    with pytest.raises(grpc.RpcError) as failed:
        client("ReportUsage", **report(1))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert failed.value.details() == "ReportUsage failed; the sidecar's log says why"
    assert "Traceback" in caplog.text


def test_mutated_requests_are_refused_in_order_and_nothing_is_logged(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    chance = Random(7)
    whole = client.message("GetMeteredEntitlementRequest")(customer_id=DEMO, feature_id="feature-templates")
    codes = set()
    for _ in range(500):
        body = bytearray(whole.SerializeToString())
        for _ in range(3):
            body[chance.randrange(len(body))] = chance.randrange(256)
        try:
            client.send("GetMeteredEntitlement", bytes(body))
        except grpc.RpcError as error:
            codes.add(error.code())
    assert codes == {grpc.StatusCode.INVALID_ARGUMENT}
    assert caplog.records == []
