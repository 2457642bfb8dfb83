"""The OpenFeature provider, by OpenFeature's own client, over a real sidecar."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, Reason
from openfeature.provider import ProviderStatus
from openfeature.track import TrackingEventDetails

from conftest import ManualClock
from stigg_guard import Guard
from stigg_guard.openfeature import NAME, UNLIMITED, StiggProvider
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store

DEMO = EvaluationContext("customer-demo-01")
NOBODY_LISTENS = "127.0.0.1:1"
SECONDS = 10
MISSING = "NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION"
EXCEEDED = "REQUESTED_USAGE_EXCEEDING_LIMIT"


def asking(customer: str = "customer-demo-01", **attributes: Any) -> EvaluationContext:
    return EvaluationContext(customer, attributes)


@pytest.fixture
def connect(make_guard: Callable[..., Guard]) -> Iterator[Callable[..., OpenFeatureClient]]:
    """A client whose provider works with a guard of these settings."""

    def make(**settings: object) -> OpenFeatureClient:
        api.set_provider_and_wait(StiggProvider(make_guard(**settings)))
        return api.get_client()

    yield make
    api.clear_providers()


@pytest.fixture
def client(connect: Callable[..., OpenFeatureClient]) -> OpenFeatureClient:
    return connect()


def heard(client: OpenFeatureClient, event: ProviderEvent) -> SimpleQueue[EventDetails]:
    """What the client hears of the event; it hears it in a thread of the SDK."""
    events: SimpleQueue[EventDetails] = SimpleQueue()
    client.add_handler(event, events.put)
    return events


def asked_until_heard(client: OpenFeatureClient, clock: ManualClock, events: SimpleQueue[EventDetails]) -> EventDetails:
    """Goes on asking, as a site does: gRPC connects again by itself, soon."""
    for _ in range(10 * SECONDS):
        clock.advance(60)
        client.get_boolean_value("feature-custom-domain", False, DEMO)
        with contextlib.suppress(Empty):
            return events.get(timeout=0.1)
    pytest.fail("nothing was heard")


GRANTED = [
    ("boolean", "feature-custom-domain", False, DEMO, True),
    ("boolean", "feature-templates", False, asking(requested_usage=3), True),
    ("boolean", "feature-regions", False, asking(requested_values=["eu"]), True),
    ("boolean", "feature-templates", False, asking(resource_id="site-01"), True),
    ("integer", "feature-storage", 0, DEMO, 100),
    ("integer", "feature-templates", 0, DEMO, 3),
    ("integer", "api-credits", 0, DEMO, 37_500),
    ("integer", "feature-seats", 0, asking("customer-demo-02"), UNLIMITED),
    ("float", "feature-storage", 0.0, DEMO, 100.0),
    ("float", "feature-templates", 0.0, DEMO, 3.0),
    ("float", "feature-seats", 0.0, asking("customer-demo-02"), float(UNLIMITED)),
    ("string", "feature-regions", "", DEMO, "eu,us"),
]
DENIED = [
    ("boolean", "feature-analytics", True, DEMO, False, MISSING),
    ("boolean", "feature-templates", True, asking(requested_usage=4), False, EXCEEDED),
    ("boolean", "feature-regions", True, asking(requested_values=["moon"]), False, "REQUESTED_VALUES_MISMATCH"),
    ("boolean", "feature-custom-domain", True, asking("customer-demo-06"), False, "REVOKED"),
    ("boolean", "feature-templates", True, asking("customer-demo-04"), False, "NO_ACTIVE_SUBSCRIPTION"),
    ("boolean", "feature-templates", True, asking("nobody"), False, "CUSTOMER_NOT_FOUND"),
    ("integer", "feature-templates", 7, asking(requested_usage=4), 0, EXCEEDED),
    ("integer", "feature-templates", 7, asking("customer-demo-04"), 0, "NO_ACTIVE_SUBSCRIPTION"),
    ("float", "feature-templates", 7.0, asking("customer-demo-04"), 0.0, "NO_ACTIVE_SUBSCRIPTION"),
    ("string", "feature-regions", "x", asking(requested_values=["moon"]), "", "REQUESTED_VALUES_MISMATCH"),
    ("string", "feature-templates", "x", asking("customer-demo-04"), "", "NO_ACTIVE_SUBSCRIPTION"),
]


def details(
    client: OpenFeatureClient, kind: str, flag: str, default: Any, context: EvaluationContext | None
) -> FlagEvaluationDetails[Any]:
    found: FlagEvaluationDetails[Any] = getattr(client, f"get_{kind}_details")(flag, default, context)
    return found


@pytest.mark.parametrize(("kind", "flag", "default", "context", "value"), GRANTED)
def test_what_is_granted_is_a_value_of_its_type(
    client: OpenFeatureClient, kind: str, flag: str, default: Any, context: EvaluationContext, value: Any
) -> None:
    found = details(client, kind, flag, default, context)
    assert (found.value, type(found.value), found.variant, found.error_code) == (value, type(value), "granted", None)
    assert found.flag_metadata["fallback"] is False


@pytest.mark.parametrize(("kind", "flag", "default", "context", "value", "reason"), DENIED)
def test_a_denial_is_a_value_and_no_error(
    client: OpenFeatureClient, kind: str, flag: str, default: Any, context: EvaluationContext, value: Any, reason: str
) -> None:
    found = details(client, kind, flag, default, context)
    assert (found.value, type(found.value), found.variant, found.error_code) == (value, type(value), "denied", None)
    assert found.flag_metadata["reason"] == reason


def test_an_object_is_the_whole_entitlement(client: OpenFeatureClient) -> None:
    found = client.get_object_details("feature-templates", {}, DEMO)
    assert found.value == {
        "feature_id": "feature-templates",
        "kind": "metered",
        "has_access": True,
        "is_unlimited": False,
        "has_soft_limit": False,
        "enum_values": [],
        "fallback": False,
        "limit": 6.0,
        "usage": 3.0,
        "remaining": 3.0,
    }
    values: Any = client.get_object_value("feature-regions", {}, DEMO)
    assert values["enum_values"] == ["eu", "us"]
    figure: Any = client.get_object_value("feature-storage", {}, DEMO)
    assert figure["value"] == 100
    denied: Any = client.get_object_value("feature-templates", {}, asking("customer-demo-04"))
    assert (denied["has_access"], denied["kind"], denied["reason"]) == (False, "", "NO_ACTIVE_SUBSCRIPTION")


@pytest.mark.parametrize(
    ("kind", "flag", "default", "context", "code"),
    [
        ("boolean", "feature-templates", True, None, ErrorCode.TARGETING_KEY_MISSING),
        ("boolean", "feature-templates", True, EvaluationContext("", {}), ErrorCode.TARGETING_KEY_MISSING),
        ("boolean", "feature-nowhere", True, DEMO, ErrorCode.FLAG_NOT_FOUND),
        ("integer", "feature-custom-domain", 7, DEMO, ErrorCode.TYPE_MISMATCH),
        ("float", "feature-regions", 7.0, DEMO, ErrorCode.TYPE_MISMATCH),
        ("string", "feature-templates", "x", DEMO, ErrorCode.TYPE_MISMATCH),
        ("boolean", "feature-templates", True, asking(resource_id=5), ErrorCode.INVALID_CONTEXT),
        ("boolean", "feature-templates", True, asking(requested_usage=-1), ErrorCode.INVALID_CONTEXT),
        ("boolean", "feature-templates", True, asking(requested_usage="many"), ErrorCode.INVALID_CONTEXT),
        ("boolean", "feature-regions", True, asking(requested_values="eu"), ErrorCode.INVALID_CONTEXT),
    ],
)
def test_what_is_wrong_is_the_default_with_the_code_that_the_specification_has_for_it(
    client: OpenFeatureClient, kind: str, flag: str, default: Any, context: EvaluationContext | None, code: ErrorCode
) -> None:
    found = details(client, kind, flag, default, context)
    assert (found.value, found.reason, found.error_code) == (default, Reason.ERROR, code)
    assert found.error_message


def test_the_reason_says_where_the_answer_came_from(
    connect: Callable[..., OpenFeatureClient], sidecar: Sidecar, clock: ManualClock
) -> None:
    client = connect()

    def reason() -> str | None:
        return client.get_boolean_details("feature-custom-domain", False, DEMO).reason

    assert [reason(), reason()] == [Reason.TARGETING_MATCH, Reason.CACHED]
    sidecar.stop()
    clock.advance(60)
    assert reason() == Reason.STALE


def test_a_fallback_is_the_default_reason(connect: Callable[..., OpenFeatureClient]) -> None:
    fallbacks = {"feature-templates": {"hasAccess": True, "usageLimit": 1000}, "feature-x": True, "feature-y": False}
    client = connect(SIDECAR=NOBODY_LISTENS, FALLBACKS=fallbacks)
    found = client.get_integer_details("feature-templates", 7, DEMO)
    assert (found.value, found.reason, found.variant) == (1000, Reason.DEFAULT, "granted")
    assert found.flag_metadata == {"fallback": True, "limit": 1000.0, "usage": 0.0}
    # A fallback without figures leaves the caller's own default, one that denies leaves nothing.
    assert [client.get_integer_value(flag, 7, DEMO) for flag in ("feature-x", "feature-y")] == [7, 0]
    assert [client.get_string_value(flag, "all", DEMO) for flag in ("feature-x", "feature-y")] == ["all", ""]


def test_an_outage_without_a_fallback_is_an_error(connect: Callable[..., OpenFeatureClient]) -> None:
    found = connect(SIDECAR=NOBODY_LISTENS).get_boolean_details("feature-templates", True, DEMO)
    assert (found.value, found.error_code) == (True, ErrorCode.GENERAL)
    assert NOBODY_LISTENS in str(found.error_message)


CREDITS = """
[features.feature-tokens]
type = "metered"
meter = "incremental"
credit_rate = { currency = "credits", amount = 1 }
[currencies.credits]
[plans.pro.entitlements]
feature-tokens = {}
[plans.pro.credits]
credits = { amount = 10 }
[customers.buyer]
plan = "pro"
"""


def test_a_feature_that_credits_pay_for_has_no_figure_of_its_own(
    connect: Callable[..., OpenFeatureClient], tmp_path: Path
) -> None:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(CREDITS)
    client = connect(SIDECAR="offline", OFFLINE_FILE=catalog)
    found = client.get_integer_details("feature-tokens", 7, asking("buyer"))
    assert (found.value, found.error_code) == (7, ErrorCode.TYPE_MISMATCH)
    assert client.get_integer_details("credits", 7, asking("buyer")).value == 10


def test_the_async_methods_resolve_in_another_thread(client: OpenFeatureClient, guard: Guard) -> None:
    async def ask() -> list[Any]:
        return [
            await client.get_boolean_value_async("feature-custom-domain", False, DEMO),
            await client.get_integer_value_async("feature-templates", 0, DEMO),
            await client.get_float_value_async("feature-templates", 0.0, DEMO),
            await client.get_string_value_async("feature-regions", "", DEMO),
            (await client.get_object_details_async("feature-regions", {}, DEMO)).variant,
        ]

    assert asyncio.run(ask()) == [True, 3, 3.0, "eu,us", "granted"]


def test_a_loop_goes_on_while_a_flag_is_resolved(connect: Callable[..., OpenFeatureClient]) -> None:
    resolved_in: list[int] = []
    client = connect()
    provider: Any = client.provider
    check = provider._guard.check

    def noted(*asked: Any, **named: Any) -> Any:
        resolved_in.append(threading.get_ident())
        return check(*asked, **named)

    provider._guard.check = noted
    asyncio.run(client.get_boolean_value_async("feature-custom-domain", False, DEMO))
    assert len(resolved_in) == 1
    assert resolved_in[0] != threading.get_ident()


def test_tracking_reports_usage(connect: Callable[..., OpenFeatureClient]) -> None:
    client = connect(REPORT="inline")
    client.track("feature-templates", DEMO, TrackingEventDetails(2, {"region": "eu"}))
    assert client.get_integer_value("feature-templates", 0, DEMO) == 1
    client.track("feature-templates", DEMO)
    assert client.get_integer_value("feature-templates", 7, DEMO) == 0


@pytest.mark.parametrize(
    ("context", "given", "said"),
    [
        (None, TrackingEventDetails(1), "targeting key"),
        (DEMO, TrackingEventDetails(float("nan")), "finite"),
        (DEMO, TrackingEventDetails(1, {"region": ["eu"]}), "region"),
    ],
)
def test_tracking_what_is_wrong_is_logged_and_reports_nothing(
    connect: Callable[..., OpenFeatureClient],
    caplog: pytest.LogCaptureFixture,
    context: EvaluationContext | None,
    given: TrackingEventDetails,
    said: str,
) -> None:
    client = connect(REPORT="inline")
    client.track("feature-templates", context, given)
    assert "usage that was tracked of 'feature-templates' is not reported" in caplog.text
    assert said in caplog.text
    assert client.get_integer_value("feature-templates", 0, DEMO) == 3


def test_lost_contact_is_stale_and_recovery_ready(
    connect: Callable[..., OpenFeatureClient], sidecar: Sidecar, clock: ManualClock
) -> None:
    client = connect()
    client.get_boolean_value("feature-custom-domain", False, DEMO)
    stale, host, port = heard(client, ProviderEvent.PROVIDER_STALE), *sidecar.address.rsplit(":", 1)
    sidecar.stop()
    clock.advance(60)
    client.get_boolean_value("feature-custom-domain", False, DEMO)
    assert sidecar.address in str(stale.get(timeout=SECONDS).message)
    assert client.get_provider_status() is ProviderStatus.STALE
    ready = heard(client, ProviderEvent.PROVIDER_READY)
    with Sidecar(Engine(demo_catalog(), Store(None)), host=host, port=int(port), http_port=0):
        found = asked_until_heard(client, clock, ready)
    assert found.provider_name == NAME
    assert client.get_provider_status() is ProviderStatus.READY
    assert stale.empty()


@pytest.mark.parametrize("change", ["forget", "reload"])
def test_an_invalidation_is_a_change_of_configuration(
    connect: Callable[..., OpenFeatureClient], make_guard: Callable[..., Guard], change: str
) -> None:
    guard = make_guard()
    api.set_provider_and_wait(StiggProvider(guard))
    try:
        changed = heard(api.get_client(), ProviderEvent.PROVIDER_CONFIGURATION_CHANGED)
        getattr(guard, change)("customer-demo-01")
        assert changed.get(timeout=SECONDS).message == "entitlements of customer-demo-01"
    finally:
        api.clear_providers()


class TestRequirementsOfTheSpecification:
    """https://openfeature.dev/specification/sections/providers, one test for each requirement of providers."""

    def test_2_1_1_metadata_has_a_name(self, guard: Guard) -> None:
        assert StiggProvider(guard).get_metadata().name == "stigg-guard"

    def test_2_2_1_and_2_2_2_flags_resolve_by_type_with_key_default_and_context(self, guard: Guard) -> None:
        provider = StiggProvider(guard)
        given = ("feature-templates", DEMO)
        assert provider.resolve_boolean_details(given[0], False, given[1]).value is True
        assert provider.resolve_integer_details(given[0], 0, given[1]).value == 3
        assert provider.resolve_float_details(given[0], 0.0, given[1]).value == 3.0
        assert provider.resolve_string_details("feature-regions", "", given[1]).value == "eu,us"
        assert provider.resolve_object_details(given[0], {}, given[1]).value

    def test_2_2_3_to_2_2_6_a_normal_answer_has_value_variant_and_reason_and_no_code(self, guard: Guard) -> None:
        found = StiggProvider(guard).resolve_boolean_details("feature-templates", False, DEMO)
        assert (found.value, found.variant, found.reason) == (True, "granted", Reason.TARGETING_MATCH)
        assert (found.error_code, found.error_message) == (None, None)

    def test_2_2_7_and_2_3_3_an_abnormal_one_has_a_code_and_a_message(self, client: OpenFeatureClient) -> None:
        found = client.get_boolean_details("feature-nowhere", True, DEMO)
        assert (found.error_code, found.error_message) == (
            ErrorCode.FLAG_NOT_FOUND,
            "there is no feature 'feature-nowhere'",
        )

    def test_2_2_9_and_2_2_10_metadata_are_plain_values_by_text(self, client: OpenFeatureClient) -> None:
        known = client.get_boolean_details("feature-templates", False, asking(requested_usage=4)).flag_metadata
        assert known == {"fallback": False, "reason": EXCEEDED, "limit": 6.0, "usage": 3.0}

    def test_2_3_1_hooks_are_a_list(self, guard: Guard) -> None:
        assert StiggProvider(guard).get_provider_hooks() == []

    def test_2_4_1_initializing_asks_nobody(self, make_guard: Callable[..., Guard]) -> None:
        provider = StiggProvider(make_guard(SIDECAR=NOBODY_LISTENS))
        api.set_provider_and_wait(provider)
        assert api.get_client().get_provider_status() is ProviderStatus.READY
        api.clear_providers()

    def test_2_5_1_and_2_5_2_shutdown_ends_it_and_it_may_begin_again(self, guard: Guard) -> None:
        provider = StiggProvider(guard)
        told: list[ProviderEvent] = []
        provider.attach(lambda _provider, event, _details: told.append(event))
        for _ in range(2):
            provider.initialize(EvaluationContext())
            guard.forget("customer-demo-01")
            provider.shutdown()
            provider.shutdown()
            guard.forget("customer-demo-01")
        assert told == [ProviderEvent.PROVIDER_CONFIGURATION_CHANGED] * 2
        assert guard.check("feature-templates", customer="customer-demo-01")  # the guard is not the provider's

    def test_2_7_1_tracking_is_supported(self, connect: Callable[..., OpenFeatureClient]) -> None:
        client = connect(REPORT="inline")
        client.track("feature-templates", DEMO, TrackingEventDetails(3))
        assert client.get_boolean_value("feature-templates", True, DEMO) is False

    def test_5_1_1_events_come_without_a_domain_being_blocked_by_a_handler(self, client: OpenFeatureClient) -> None:
        fails: Any = lambda _: 1 / 0  # noqa: E731 # a handler returns nothing, and this one not even that
        client.add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, fails)
        changed = heard(client, ProviderEvent.PROVIDER_CONFIGURATION_CHANGED)
        provider: Any = client.provider
        provider._guard.forget("customer-demo-01")
        assert changed.get(timeout=SECONDS).provider_name == NAME
