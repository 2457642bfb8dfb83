"""Offline mode of the client: by objects, by JSON, with data as people have it; how reports are treated."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stigg_guard import (
    ApiConfig,
    ConfigError,
    GetBooleanEntitlementRequest,
    GetEntitlementsStateV2Request,
    GetEntitlementV2Request,
    GetEnumEntitlementRequest,
    GetMeteredEntitlementRequest,
    GetNumericEntitlementRequest,
    NotSupported,
    OfflineConfig,
    OfflineCustomer,
    OfflineEntitlement,
    ReportUsageRequest,
    Stigg,
)
from stigg_guard.wire import sidecar_pb2 as pb

CUSTOMER = "customer-demo-01"
OBJECTS = OfflineConfig(
    {
        CUSTOMER: OfflineCustomer(
            {
                "on": OfflineEntitlement(type="BOOLEAN"),
                "number": OfflineEntitlement(type="NUMERIC", value=50.0),
                "meter": OfflineEntitlement(type="METERED", usage_limit=100000.0, is_unlimited=False),
                "choice": OfflineEntitlement(type="ENUM", enum_values=("eu", "us")),
                "credits": OfflineEntitlement(type="CREDIT", usage_limit=10),
            }
        )
    }
)
JSON = json.dumps(
    {
        "customers": {
            CUSTOMER: {
                "entitlements": {
                    "on": {"type": "BOOLEAN", "isUnlimited": False, "value": None},
                    "number": {"type": "NUMERIC", "value": 50.0, "isUnlimited": None, "usageLimit": None},
                    "meter": {"type": "METERED", "usageLimit": 100000, "isUnlimited": False},
                    "choice": {"type": "ENUM", "enumValues": ["eu", "us"], "isUnlimited": False},
                    "credits": {"type": "CREDIT", "usageLimit": 10.0, "isUnlimited": False},
                },
                "resources": None,
            }
        }
    }
)


@pytest.mark.parametrize("config", [OBJECTS, OfflineConfig.from_json(JSON)], ids=["objects", "json"])
def test_every_type_answers(config: OfflineConfig) -> None:
    with Stigg(config) as stigg:
        who = {"customer_id": CUSTOMER}
        assert stigg.offline
        assert stigg.get_boolean_entitlement(GetBooleanEntitlementRequest(**who, feature_id="on")).has_access
        number = stigg.get_numeric_entitlement(GetNumericEntitlementRequest(**who, feature_id="number"))
        assert (number.has_access, number.entitlement.value) == (True, 50)
        meter = stigg.get_metered_entitlement(GetMeteredEntitlementRequest(**who, feature_id="meter"))
        assert (meter.has_access, meter.entitlement.usage_limit) == (True, 100000)
        choice = stigg.get_enum_entitlement(GetEnumEntitlementRequest(**who, feature_id="choice"))
        assert list(choice.entitlement.enum_values) == ["eu", "us"]
        wallet = stigg.get_entitlement_v2(GetEntitlementV2Request(**who, currency_id="credits")).entitlement
        assert (wallet.has_access, wallet.credit.remaining) == (True, 10)
        state = stigg.get_entitlements_state_v2(GetEntitlementsStateV2Request(**who))
        assert len(state.entitlements) == 5


def test_a_customer_answers_for_its_resources_unless_the_data_names_them() -> None:
    on, off = {"type": "BOOLEAN"}, {"type": "METERED", "isUnlimited": True}
    customers: dict[str, Any] = {
        "any": {"entitlements": {"f": on}},
        "some": OfflineCustomer({"f": on}, resources={"site-01": OfflineCustomer({"g": off})}),
    }
    with Stigg(OfflineConfig(customers)) as stigg:

        def asked(customer: str, resource: str | None, feature: str) -> int:
            request = GetEntitlementV2Request(customer_id=customer, resource_id=resource, feature_id=feature)
            answer = stigg.get_entitlement_v2(request).entitlement
            return 0 if answer.has_access else answer.access_denied_reason

        assert asked("any", "site-99", "f") == 0
        assert asked("some", None, "f") == 0
        assert asked("some", "site-01", "g") == 0
        assert asked("some", "site-01", "f") == pb.ACCESS_DENIED_REASON_NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION
        assert asked("some", "site-99", "f") == pb.ACCESS_DENIED_REASON_CUSTOMER_RESOURCE_NOT_FOUND
        assert asked("nobody", None, "f") == pb.ACCESS_DENIED_REASON_CUSTOMER_NOT_FOUND


USAGE = ReportUsageRequest(customer_id=CUSTOMER, feature_id="meter", value=3)


def test_reports_are_refused_by_default() -> None:
    with Stigg(OBJECTS) as stigg, pytest.raises(NotSupported, match="ReportUsage: nothing is reported offline"):
        stigg.report_usage(USAGE)


@pytest.mark.parametrize(("reports", "used"), [("keep", 3), ("ignore", 0)])
def test_reports_are_counted_or_ignored_when_that_is_asked(reports: str, used: float) -> None:
    with Stigg(OBJECTS, offline_reports=reports) as stigg:
        assert stigg.report_usage(USAGE).current_usage == used
        request = GetMeteredEntitlementRequest(customer_id=CUSTOMER, feature_id="meter")
        assert stigg.get_metered_entitlement(request).entitlement.current_usage == used


@pytest.mark.parametrize(
    ("entitlement", "said"),
    [
        ({"type": "NUMERIC", "value": 50.5}, "value: must be a whole number of 32 bits, not 50.5"),
        ({"type": "METERED", "isUnlimited": False}, "needs usageLimit, or isUnlimited"),
        ({"type": "CREDIT"}, "needs usageLimit, the number of credits"),
        ({"type": "CREDIT", "isUnlimited": True, "usageLimit": 1}, "only NUMERIC and METERED can be unlimited"),
        ({"type": "BOOLEAN", "isUnlimited": True}, "only NUMERIC and METERED can be unlimited; this is BOOLEAN"),
        (OfflineEntitlement(type="BOLEAN"), "did you mean 'BOOLEAN'?"),
    ],
)
def test_wrong_data_is_refused_by_its_place(entitlement: Any, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Stigg(OfflineConfig({"c": {"entitlements": {"f": entitlement}}}))
    assert said in str(refused.value)
    assert "customers.c.entitlements.f" in str(refused.value)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"customers": {}, "more": 1}'])
def test_text_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^OfflineConfig: "):
        OfflineConfig.from_json(text)


def test_it_goes_with_nothing_else() -> None:
    with pytest.raises(ConfigError, match="no two of them"):
        Stigg(OBJECTS, remote_sidecar_host="sidecar")
    with pytest.raises(ConfigError, match="no two of them"):
        Stigg(OBJECTS, offline_file="f")
    with pytest.raises(ConfigError, match="offline_reports: expected one of 'refuse', 'keep', 'ignore'"):
        Stigg(OBJECTS, offline_reports="drop")
    with Stigg(ApiConfig(api_key="key")) as stigg:
        assert not stigg.offline
