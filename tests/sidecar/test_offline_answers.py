"""What ``OFFLINE`` makes of the sidecar: fallbacks for any customer, and reports without effect."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
import requests

from sidecar.contract import Client, reason, report
from stigg_guard.fallbacks import parse_fallbacks
from stigg_guard.sidecar.offline import FallbackAnswers
from stigg_guard.sidecar.server import Sidecar

FALLBACKS = parse_fallbacks(
    {
        "yes": True,
        "no": False,
        "limited": {"hasAccess": True, "usageLimit": 1000},
        "much": {"hasAccess": True, "value": 5},
    }
)


@pytest.fixture
def offline() -> Iterator[Sidecar]:
    with Sidecar(FallbackAnswers(FALLBACKS)) as sidecar:
        yield sidecar


@pytest.fixture
def asked(offline: Sidecar) -> Iterator[Client]:
    with grpc.insecure_channel(offline.address) as channel:
        yield Client(channel)


def test_a_fallback_answers_for_any_customer(asked: Client) -> None:
    answer = asked("GetMeteredEntitlement", customer_id="anybody", feature_id="limited")
    assert (answer.has_access, answer.is_fallback, answer.entitlement.usage_limit) == (True, True, 1000)
    denied = asked("GetBooleanEntitlement", customer_id="anybody", feature_id="no")
    assert (denied.has_access, denied.is_fallback) == (False, True)


def test_a_feature_without_one_is_denied_as_a_fallback(asked: Client) -> None:
    answer = asked("GetEntitlement", customer_id="anybody", feature_id="unknown")
    assert (answer.has_access, answer.is_fallback, answer.access_denied_reason) == (False, True, reason("UNKNOWN"))


def test_a_request_brings_its_own_fallback(asked: Client) -> None:
    options = asked.message("BooleanEntitlementOptions")(fallback={"has_access": True})
    assert asked("GetBooleanEntitlement", customer_id="c", feature_id="no", options=options).has_access


def test_lists_are_of_the_fallbacks(asked: Client) -> None:
    state = asked("GetEntitlementsStateV2", customer_id="anybody")
    assert [(one.has_access, one.is_fallback) for one in state.entitlements] == [(one, True) for one in (1, 0, 1, 1)]
    listed = asked("GetEntitlements", customer_id="anybody").entitlements
    assert [one.WhichOneof("entitlement") for one in listed] == ["boolean", "metered", "numeric"]


def test_other_methods_do_nothing_and_this_is_said_once(asked: Client, caplog: pytest.LogCaptureFixture) -> None:
    assert asked("ReloadEntitlements", customer_id="anybody").entitled_entity_exists
    for _ in range(2):
        assert asked("ReportUsage", **report(1)).current_usage == 0
    assert [record.message for record in caplog.records] == ["OFFLINE is set: reports are answered and have no effect"]


def test_there_are_no_customers_over_http(offline: Sidecar) -> None:
    place = f"http://{offline.http_address}"
    changed = requests.put(f"{place}/customers/c", json={"plan": "growth"}, timeout=10)
    asked = requests.post(f"{place}/graphql", json={"query": "{ coupons { edges { cursor } } }"}, timeout=10)
    assert (changed.status_code, asked.status_code) == (409, 409)
    advanced = requests.post(f"{place}/changes/clock", json={"seconds": 1}, timeout=10)
    shown = requests.get(place, timeout=10)
    assert (advanced.status_code, shown.status_code) == (409, 404)
    assert shown.json()["detail"] == "here are /livez, /readyz and /metrics"
    assert requests.get(f"{place}/readyz", timeout=10).status_code == 200
