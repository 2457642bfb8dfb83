"""What Stigg's API may say beyond what the local server does, and what its failures become."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from api_server import KEY, ApiServer, Handler
from conftest import ManualClock
from stigg_guard import Config, InvalidRequest, SidecarError, SidecarTimeout, SidecarUnavailable, Stigg
from stigg_guard.api import Api, transport
from stigg_guard.cache.snapshots import NO_TICKET, snapshot_of
from stigg_guard.cloud.answers import Cloud
from stigg_guard.cloud.fields import first_end
from stigg_guard.errors import SidecarUnauthenticated
from stigg_guard.fallbacks import Fallback
from stigg_guard.ledger import UsageKey, Use, ledger_from_url
from stigg_guard.usage.delivery import Delivery
from stigg_guard.usage.sender import Sender
from stigg_guard.wire import sidecar_pb2 as pb
from stigg_guard.wire.beside import set_rates, set_valid_until, valid_until

NOW = datetime(2026, 1, 15, 12, tzinfo=timezone.utc)
FEATURE = {"refId": "f", "featureType": "NUMBER", "meterType": "Fluctuating"}
FEATURE |= {"featureUnits": None, "featureUnitsPlural": None}
METERED = {
    "__typename": "FeatureEntitlement",
    "isGranted": True,
    "accessDeniedReason": None,
    "hasUnlimitedUsage": False,
    "hasSoftLimit": None,
    "usageLimit": 3.0,
    "currentUsage": 1.0,
    "enumValues": [],
    "resetPeriod": None,
    "usagePeriodAnchor": None,
    "usagePeriodStart": None,
    "usagePeriodEnd": None,
    "validUntil": None,
    "feature": FEATURE,
}
ASKED = pb.GetEntitlementV2Request(customer_id="c", feature_id="f")
STATE = pb.GetEntitlementsStateV2Request(customer_id="c")
USAGE = pb.ReportUsageRequest(customer_id="c", feature_id="f", value=1)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.stop()


@pytest.fixture
def cloud(server: ApiServer) -> Iterator[Cloud]:
    cloud = Cloud(Api(KEY, server.url), now=lambda: NOW, fallbacks={"gone": Fallback(True)})
    yield cloud
    cloud.close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PAUSES", (0.0, 0.0, 0.0))


def told(server: ApiServer, cloud: Cloud, **said: Any) -> pb.EntitlementV2:
    server.resolvers["entitlementV2"] = lambda **_: {**METERED, **said}
    answer: Any = cloud.answer("GetEntitlementV2", ASKED)
    return answer.entitlement


def all_told(server: ApiServer, cloud: Cloud, *said: Any, reason: str | None = None) -> Any:
    server.resolvers["entitlementsState"] = lambda **_: {"accessDeniedReason": reason, "entitlementsV2": list(said)}
    return cloud.answer("GetEntitlementsStateV2", STATE)


def plainly(handler: Handler, *said: Any, **root: Any) -> None:
    """Answers what the schema of today does not know."""
    state = {"accessDeniedReason": None, "entitlementsV2": list(said), **root}
    handler.send(200, json.dumps({"data": {"entitlementsState": state}}).encode())


def rejecting(code: str, message: str = "no") -> Callable[[Handler], None]:
    body = {"data": None, "errors": [{"message": message, "extensions": {"code": code}}]}
    return lambda handler: handler.send(200, json.dumps(body).encode())


def test_access_that_is_granted_at_the_limit_is_denied(server: ApiServer, cloud: Cloud) -> None:
    answer = told(server, cloud, currentUsage=3.0)
    assert not answer.has_access
    assert answer.access_denied_reason == pb.ACCESS_DENIED_REASON_REQUESTED_USAGE_EXCEEDING_LIMIT
    assert told(server, cloud, currentUsage=3.0, hasSoftLimit=True).has_access
    assert told(server, cloud, currentUsage=3.0, usageLimit=None, hasUnlimitedUsage=True).has_access


def test_access_that_is_denied_below_the_limit_stays_denied(server: ApiServer, cloud: Cloud) -> None:
    answer = told(server, cloud, isGranted=False, accessDeniedReason="BudgetExceeded")
    assert not answer.has_access
    assert answer.access_denied_reason == pb.ACCESS_DENIED_REASON_BUDGET_EXCEEDED


def test_what_a_newer_server_says_breaks_nothing(server: ApiServer, cloud: Cloud) -> None:
    odd = {
        **METERED,
        "isGranted": False,
        "accessDeniedReason": "MoonIsFull",
        "resetPeriod": "DECADE",
        "usagePeriodEnd": "some day",
        "feature": {**FEATURE, "meterType": "Incremental"},
    }
    server.faults.append(lambda handler: plainly(handler, odd, {"__typename": "TimeEntitlement"}))
    answer: Any = cloud.answer("GetEntitlementsStateV2", STATE)
    (only,) = answer.entitlements
    assert only.access_denied_reason == pb.ACCESS_DENIED_REASON_UNKNOWN
    assert only.metered.reset_period == pb.ENTITLEMENT_RESET_PERIOD_UNSPECIFIED
    assert not only.metered.HasField("usage_period_end")
    server.faults.append(lambda handler: plainly(handler, accessDeniedReason="MoonIsFull"))
    assert cloud.answer("GetEntitlementsStateV2", STATE) == pb.GetEntitlementsStateV2Response(
        access_denied_reason=pb.ACCESS_DENIED_REASON_UNKNOWN
    )


def answering(**data: Any) -> Callable[[Handler], None]:
    """Answers as no server of this schema would; JSON of Python has numbers that JSON has not."""
    return lambda handler: handler.send(200, json.dumps({"data": data}).encode())


def deep(levels: int) -> Any:
    return {"a": deep(levels - 1)} if levels else 1


NUMERIC = {"feature": {**FEATURE, "meterType": None}}
ENUM = {"feature": {**FEATURE, "featureType": "ENUM"}}
CREDIT = {"__typename": "CreditEntitlement", "isGranted": True, "usageLimit": 5, "currentUsage": 1}
CREDIT |= dict.fromkeys(("accessDeniedReason", "hasSoftLimit", "usagePeriodEnd", "validUntil"))
WORDS = dict.fromkeys(("description", "unitSingular", "unitPlural"))
CURRENCY = {"currencyId": "x", "displayName": "X", "additionalMetaData": None}


@pytest.mark.parametrize(
    "said",
    [
        {**METERED, "usageLimit": "10"},
        {**METERED, "usageLimit": 10**400},
        {**METERED, "currentUsage": []},
        {**METERED, "isGranted": "false"},
        {**METERED, "hasSoftLimit": "false"},
        {**METERED, "hasUnlimitedUsage": "false"},
        {**METERED, "isGranted": 1},
        {**METERED, "hasSoftLimit": 1},
        {**METERED, "hasUnlimitedUsage": 1},
        {**METERED, "usageLimit": True},
        {**METERED, "currentUsage": False},
        {**METERED, **NUMERIC, "usageLimit": "5"},
        {**METERED, "resetPeriod": ["DAY"]},
        {**METERED, "usagePeriodEnd": "0001-01-01T00:00:00+14:00"},
        {**METERED, "isGranted": False, "accessDeniedReason": 5},
        {**METERED, "feature": "f"},
        {**METERED, "feature": {**FEATURE, "refId": 5}},
        {**METERED, "feature": {**FEATURE, "refId": "\ud800"}},
        {**METERED, **NUMERIC, "usageLimit": float("nan")},
        {**METERED, **NUMERIC, "usageLimit": 1e300},
        {**METERED, **ENUM, "enumValues": "eu"},
        {**METERED, **ENUM, "enumValues": {"eu": True}},
        {**CREDIT, "currency": None},
        {**CREDIT, "currency": CURRENCY, "currentUsage": "1"},
        {**CREDIT, "currency": {**CURRENCY, "additionalMetaData": deep(300)}},
        {"__typename": "FeatureEntitlement"},
        {},
        [],
        "granted",
        1,
    ],
)
def test_an_answer_that_does_not_follow_the_schema_is_none(said: Any, server: ApiServer, cloud: Cloud) -> None:
    server.faults.append(lambda handler: plainly(handler, said))
    with pytest.raises(SidecarError, match="does not follow the API's schema") as failed:
        cloud.answer("GetEntitlementsStateV2", STATE)
    assert (failed.value.code, failed.value.outcome_unknown) == ("UNAVAILABLE", False)
    server.faults.append(answering(entitlementV2=said))
    with pytest.raises(SidecarError, match="GetEntitlementV2: the answer does not follow"):
        cloud.answer("GetEntitlementV2", ASKED)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"entitlementsState": None},
        {"entitlementsState": {"accessDeniedReason": None, "entitlementsV2": None}},
        {"entitlementsState": {"accessDeniedReason": None, "entitlementsV2": {}}},
        {"entitlementsState": {"accessDeniedReason": 5, "entitlementsV2": []}},
    ],
)
def test_what_is_no_list_of_entitlements_is_not_an_empty_one(data: Any, server: ApiServer, cloud: Cloud) -> None:
    server.faults.append(answering(**data))
    with pytest.raises(SidecarError, match="GetEntitlementsState: the answer does not follow"):
        cloud.answer("GetEntitlementsStateV2", STATE)


def test_what_is_told_twice_is_asked_for_alone(server: ApiServer, cloud: Cloud) -> None:
    other = {**METERED, "feature": {**FEATURE, "refId": "g"}}
    wallet = {**CREDIT, "currency": {**WORDS, **CURRENCY, "currencyId": "g"}}
    answer = all_told(server, cloud, {**METERED, "isGranted": False}, other, METERED, wallet)
    assert [each.WhichOneof("entitlement") for each in answer.entitlements] == ["metered", "credit"]
    assert answer.entitlements[0].metered.feature.id == "g"


def test_what_is_about_a_currency_is_no_answer_about_a_feature(server: ApiServer, cloud: Cloud) -> None:
    server.faults.append(answering(entitlementV2={**CREDIT, "currency": {**WORDS, **CURRENCY}}))
    with pytest.raises(SidecarError, match="GetEntitlementV2: the answer does not follow"):
        cloud.answer("GetEntitlement", pb.GetEntitlementRequest(customer_id="c", feature_id="x"))


def test_access_to_no_feature_is_none(server: ApiServer, cloud: Cloud) -> None:
    with pytest.raises(SidecarError, match="GetEntitlementV2: the answer does not follow"):
        told(server, cloud, feature=None, currentUsage=3.0)
    assert not told(server, cloud, feature=None, isGranted=False, accessDeniedReason="BudgetExceeded").has_access


MEASURED = {**dict.fromkeys(("resourceId", "usagePeriodStart", "usagePeriodEnd")), "id": "m", "customerId": "c"}
MEASURED |= {"featureId": "f", "currentUsage": 1.0}


@pytest.mark.parametrize("told", [[], [MEASURED], [MEASURED] * 3, [MEASURED, {**MEASURED, "currentUsage": True}]])
def test_a_bulk_without_a_measurement_for_each_report_may_have_been_counted(
    told: Any, server: ApiServer, cloud: Cloud
) -> None:
    server.faults.append(answering(reportUsageBulk=told))
    with pytest.raises(SidecarError, match="ReportUsageBulk: the answer does not follow") as failed:
        cloud.answer("ReportUsageBulk", pb.ReportUsageBulkRequest(usages=[USAGE] * 2))
    assert failed.value.outcome_unknown


def test_events_that_nobody_answered_for_may_have_been_counted(server: ApiServer, cloud: Cloud) -> None:
    events = pb.ReportEventsRequest(events=[pb.Event(customer_id="c", event_name="e", idempotency_key="k")])
    server.faults += [answering(), answering(reportEvent=None)]
    with pytest.raises(SidecarError, match="ReportEvent: the answer does not follow") as failed:
        cloud.answer("ReportEvents", events)
    assert (failed.value.code, failed.value.outcome_unknown) == ("UNAVAILABLE", True)
    assert cloud.answer("ReportEvents", events).ByteSize() == 0


@pytest.mark.parametrize("told", [None, [], {}, {"id": 5}, [None], "counted"])
def test_a_report_that_is_answered_without_a_measurement_may_have_been_counted(
    told: Any, server: ApiServer, cloud: Cloud
) -> None:
    server.faults += [answering(reportUsage=told), answering(reportUsageBulk=told if told != [] else None)]
    for method, request in (("ReportUsage", USAGE), ("ReportUsageBulk", pb.ReportUsageBulkRequest(usages=[USAGE]))):
        with pytest.raises(SidecarError, match=f"{method}: the answer does not follow") as failed:
            cloud.answer(method, request)
        assert (failed.value.code, failed.value.outcome_unknown) == ("UNAVAILABLE", True)


def test_a_key_that_is_refused_after_a_lost_answer_does_not_settle_the_outcome(server: ApiServer, cloud: Cloud) -> None:
    server.faults += [lambda handler: setattr(handler, "close_connection", True), rejecting("UNAUTHENTICATED")]
    with pytest.raises(SidecarUnauthenticated) as failed:
        cloud.answer("ReportUsage", USAGE)
    assert failed.value.outcome_unknown


def test_a_feature_without_an_answer_is_none_and_has_the_fallback(server: ApiServer, cloud: Cloud) -> None:
    server.resolvers["entitlementV2"] = lambda **_: None
    answer: Any = cloud.answer(
        "GetMeteredEntitlement", pb.GetMeteredEntitlementRequest(customer_id="c", feature_id="f")
    )
    assert answer.access_denied_reason == pb.ACCESS_DENIED_REASON_FEATURE_NOT_FOUND
    credit: Any = cloud.answer("GetEntitlementV2", pb.GetEntitlementV2Request(customer_id="c", currency_id="x"))
    assert credit.entitlement.access_denied_reason == pb.ACCESS_DENIED_REASON_ENTITLEMENT_NOT_FOUND
    fallen: Any = cloud.answer(
        "GetBooleanEntitlement", pb.GetBooleanEntitlementRequest(customer_id="c", feature_id="gone")
    )
    assert fallen.has_access
    assert fallen.is_fallback


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("CUSTOMER_NOT_FOUND", pb.ACCESS_DENIED_REASON_CUSTOMER_NOT_FOUND),
        ("RESOURCE_NOT_FOUND", pb.ACCESS_DENIED_REASON_CUSTOMER_RESOURCE_NOT_FOUND),
        ("FEATURE_NOT_FOUND", pb.ACCESS_DENIED_REASON_FEATURE_NOT_FOUND),
        ("SUBSCRIPTION_NOT_FOUND", pb.ACCESS_DENIED_REASON_NO_ACTIVE_SUBSCRIPTION),
    ],
)
def test_an_error_about_the_customer_is_a_denial(code: str, reason: Any, server: ApiServer, cloud: Cloud) -> None:
    server.faults += [rejecting(code)] * 2
    assert cloud.answer("GetEntitlementsStateV2", STATE) == pb.GetEntitlementsStateV2Response(
        access_denied_reason=reason
    )
    answer: Any = cloud.answer("GetEntitlementV2", ASKED)
    assert answer.entitlement.access_denied_reason == reason
    assert not answer.entitlement.has_access


def test_credits_are_as_they_are_told(server: ApiServer, cloud: Cloud) -> None:
    currency = {"currencyId": "x", "displayName": "X", "additionalMetaData": {"colour": "red"}}
    said = {"__typename": "CreditEntitlement", "isGranted": True, "currency": currency, "usageLimit": None}
    said |= {"currentUsage": None, "hasSoftLimit": None, "accessDeniedReason": None, "validUntil": None}
    (answer,) = all_told(server, cloud, {**said, "usagePeriodEnd": "2026-02-01T00:00:00.000Z"}).entitlements
    assert answer.has_access
    assert (answer.credit.usage_limit, answer.credit.current_usage, answer.credit.remaining) == (0, 0, 0)
    assert answer.credit.currency.additional_meta_data["colour"] == "red"
    assert answer.credit.usage_period_end.ToDatetime(timezone.utc) == datetime(2026, 2, 1, tzinfo=timezone.utc)


SECONDS = NOW.timestamp() + 60


@pytest.mark.parametrize(
    ("said", "until"),
    [
        (str(SECONDS), SECONDS),
        (str(SECONDS * 1000), SECONDS),
        ((NOW + timedelta(minutes=1)).isoformat(), SECONDS),
        (None, None),
        ("soon", None),
        (str(NOW.timestamp() - 1), None),
        (str(NOW.timestamp() + 400 * 86_400), None),
        (str(SECONDS * 1_000_000), None),
        ("nan", None),
    ],
)
def test_valid_until_bounds_what_is_cached_where_it_is_plausible(
    said: str | None, until: float | None, server: ApiServer, cloud: Cloud
) -> None:
    later = {**METERED, "validUntil": str(SECONDS + 5)} if until else METERED
    response = all_told(server, cloud, {**METERED, "validUntil": said}, later)
    assert valid_until(response) == until
    assert snapshot_of(response, NO_TICKET).period_ends == ([] if until is None else [until])


def test_numbers_are_read_as_well() -> None:
    assert first_end([SECONDS, SECONDS * 1000 + 5000, None, 10**400, [], {}], NOW) == SECONDS


def test_rates_are_those_of_features_that_credits_pay_for(server: ApiServer, cloud: Cloud) -> None:
    rate = {"amount": 2.5, "currencyId": "currency", "customCurrencyId": "credits"}
    paid = {**METERED, "usageLimit": None, "creditRate": rate}
    limited = {**METERED, "feature": {**FEATURE, "refId": "limited"}, "creditRate": rate}
    formula = {**paid, "feature": {**FEATURE, "refId": "formula"}, "creditRate": {**rate, "amount": 0}}
    response = all_told(server, cloud, paid, limited, formula)
    assert snapshot_of(response, NO_TICKET).rates == {FEATURE["refId"]: ("credits", 2.5)}


def test_what_is_beside_the_contract_survives_writing_and_is_no_field_of_it() -> None:
    response = pb.GetEntitlementsStateV2Response(access_denied_reason=pb.ACCESS_DENIED_REASON_REVOKED)
    set_valid_until(response, 12.5)
    set_rates(response, {"f" * 200: ("credits", 2.0)})
    copy = pb.GetEntitlementsStateV2Response.FromString(response.SerializeToString())
    assert valid_until(copy) == 12.5
    assert snapshot_of(copy, NO_TICKET).rates == {"f" * 200: ("credits", 2)}
    assert [field.name for field, _ in copy.ListFields()] == ["access_denied_reason"]
    copy.MergeFromString(b"\x80\x80\x06\x01")  # another unknown field
    assert valid_until(copy) == 12.5


def test_each_usage_carries_a_key_of_its_own_that_is_the_same_again(server: ApiServer, cloud: Cloud) -> None:
    bulk = pb.ReportUsageBulkRequest(usages=[USAGE, USAGE])
    server.resolvers["reportUsageBulk"] = lambda **_: [MEASURED] * 2
    for _ in range(2):
        cloud.answer("ReportUsageBulk", bulk, idempotency_key="batch")
        cloud.answer("ReportUsage", USAGE, idempotency_key="batch")
    sent = [received.payload["variables"]["input"] for received in server.received]
    keys = [[usage["idempotencyKey"] for usage in one.get("usages", [one])] for one in sent]
    assert keys == [["batch/0", "batch/1"], ["batch"]] * 2


def test_a_lost_answer_is_asked_for_again_under_the_same_key(server: ApiServer, cloud: Cloud) -> None:
    server.faults.append(lambda handler: setattr(handler, "close_connection", True))
    cloud.answer("ReportUsage", USAGE, idempotency_key="once")
    keys = [received.payload["variables"]["input"]["idempotencyKey"] for received in server.received]
    assert keys == ["once", "once"]


@pytest.mark.parametrize(
    ("fault", "kind", "code", "unknown"),
    [
        (lambda handler: handler.send(429, b"{}", Retry_After="30"), SidecarUnavailable, "UNAVAILABLE", False),
        (lambda handler: handler.send(500, b"{}"), SidecarUnavailable, "UNAVAILABLE", True),
        (lambda handler: handler.owner.released.wait(60), SidecarTimeout, "DEADLINE_EXCEEDED", True),
        (lambda handler: handler.send(401, b"{}"), SidecarUnauthenticated, "UNAUTHENTICATED", False),
        (lambda handler: handler.send(404, b"<html>"), SidecarUnavailable, "UNAVAILABLE", False),
        (lambda handler: handler.send(200, b"<html>"), SidecarUnavailable, "UNAVAILABLE", True),
        (lambda handler: handler.send(302, b""), SidecarUnavailable, "UNAVAILABLE", False),
        (rejecting("INTERNAL_SERVER_ERROR"), SidecarError, "UNAVAILABLE", True),
        (rejecting(""), SidecarError, "UNAVAILABLE", True),
    ],
)
def test_failures_are_those_of_a_sidecar(
    fault: Callable[[Handler], None],
    kind: type[SidecarError],
    code: str,
    unknown: bool,
    server: ApiServer,
    cloud: Cloud,
) -> None:
    server.faults += [fault] * 4
    with pytest.raises(SidecarError) as failed:
        cloud.answer("ReportUsage", USAGE, timeout=1.0)
    server.faults.clear()
    server.faults += [fault] * 4
    with pytest.raises(SidecarError) as also_failed:
        cloud.answer("GetEntitlementsStateV2", STATE, timeout=1.0)
    assert type(failed.value) is kind
    assert (failed.value.code, failed.value.outcome_unknown) == (code, unknown)
    assert (also_failed.value.code, also_failed.value.outcome_unknown) == (code, False)
    assert isinstance(also_failed.value, (SidecarUnavailable, SidecarUnauthenticated))  # so it answers nobody
    assert KEY not in str(failed.value)


@pytest.mark.parametrize("said", [b"<html>", b'{"data": null, "errors": [{"message": "Internal server error"}]}'])
def test_an_outage_leaves_nothing_to_a_person_however_it_is_told(
    said: bytes, server: ApiServer, cloud: Cloud, clock: ManualClock
) -> None:
    used = 0.0

    def count(**arguments: Any) -> Any:
        nonlocal used
        used += arguments["input"]["value"]
        return {**MEASURED, "currentUsage": used}

    server.resolvers["reportUsage"] = count
    server.resolvers["entitlementV2"] = lambda **_: {**METERED, "currentUsage": used}
    ledger = ledger_from_url("memory://", clock.clock, settle_grace=15)
    stigg, config = Stigg(answers=cloud), Config()
    delivery = Delivery(ledger, Sender(lambda: stigg, config.on_uncertain), config, clock.clock, lambda _: None)

    def work(turns: int, *faults: Callable[[Handler], None]) -> None:
        for _ in range(turns):
            for step in (lambda: delivery.send_batch(5.0), delivery.decide_uncertain):
                server.faults.clear()
                server.faults += faults
                with suppress(SidecarError):
                    step()
            clock.advance(60)

    ledger.record(Use(UsageKey("c", "", "f"), 3))
    work(1)
    ledger.record(Use(UsageKey("c", "", "f"), 2))
    work(10, *[lambda handler: handler.send(200, said)] * 4)
    work(3)
    assert set(ledger.counts().values()) == {0}
    assert (used, delivery.counts["acknowledged"]) == (5, 2)


def test_how_long_to_wait_is_passed_on(server: ApiServer, cloud: Cloud) -> None:
    server.faults.append(lambda handler: handler.send(429, b"{}", Retry_After="30"))
    with pytest.raises(SidecarUnavailable) as failed:
        cloud.answer("GetEntitlementsStateV2", STATE, timeout=1.0)
    assert failed.value.retry_after == 30


def test_a_wrong_key_names_its_setting(server: ApiServer, cloud: Cloud) -> None:
    server.faults.append(rejecting("UNAUTHENTICATED"))
    with pytest.raises(SidecarUnauthenticated, match="set API_KEY to a server key of this environment") as failed:
        cloud.answer("GetEntitlementsStateV2", STATE)
    assert KEY not in str(failed.value)


@pytest.mark.parametrize(
    ("code", "message", "field", "problem"),
    [
        ("VALIDATION_ERROR", "usages[1].value: must be finite", "usages[1].value", "must be finite"),
        ("VALIDATION_ERROR", "usages[1].createdAt: lies ahead", "usages[1].timestamp", "lies ahead"),
        ("CUSTOMER_NOT_FOUND", "Customer not found", "customer_id", "Customer not found"),
        ("FEATURE_NOT_FOUND", "No such feature: f", "feature_id", "No such feature: f"),
        ("VALIDATION_ERROR", "Nothing like that", "", "Nothing like that"),
    ],
)
def test_a_report_that_is_rejected_is_an_invalid_request(
    code: str, message: str, field: str, problem: str, server: ApiServer, cloud: Cloud
) -> None:
    server.faults.append(rejecting(code, message))
    with pytest.raises(InvalidRequest, match=problem) as rejected:
        cloud.answer("ReportUsage", USAGE)
    assert rejected.value.field == field


def test_a_question_that_is_rejected_has_no_answer(server: ApiServer, cloud: Cloud) -> None:
    server.faults += [rejecting("GRAPHQL_VALIDATION_FAILED", "Unknown field")] * 2
    with pytest.raises(SidecarError, match="Unknown field") as failed:
        cloud.answer("GetEntitlementsStateV2", STATE)
    assert failed.value.code == "INVALID_ARGUMENT"
    with pytest.raises(SidecarError):
        cloud.answer("GetEntitlementV2", ASKED)


def test_a_server_that_echoes_the_key_does_not_get_it_into_an_error(server: ApiServer, cloud: Cloud) -> None:
    server.faults += [rejecting("VALIDATION_ERROR", f"the key {KEY} is nice")] * 2
    with pytest.raises(InvalidRequest, match="the key … is nice") as rejected:
        cloud.answer("ReportUsage", USAGE)
    with pytest.raises(SidecarError, match="the key … is nice") as failed:
        cloud.answer("GetEntitlementsStateV2", STATE)
    assert KEY not in f"{rejected.value} {failed.value}"


def test_a_time_that_no_calendar_has_is_refused(cloud: Cloud) -> None:
    usage = pb.ReportUsageRequest(customer_id="c", feature_id="f", value=1)
    usage.timestamp.seconds = 10**15
    with pytest.raises(InvalidRequest, match="years 1 and 9999"):
        cloud.answer("ReportUsage", usage)


def test_an_event_is_sent_with_what_it_has(server: ApiServer, cloud: Cloud) -> None:
    event = pb.Event(customer_id="c", resource_id="r", event_name="e", idempotency_key="k")
    event.timestamp.FromDatetime(NOW)
    event.dimensions["size"].number_value = 2
    cloud.answer("ReportEvents", pb.ReportEventsRequest(events=[event]))
    (sent,) = server.received[0].payload["variables"]["input"]["usageEvents"]
    assert sent == {
        "customerId": "c",
        "resourceId": "r",
        "eventName": "e",
        "idempotencyKey": "k",
        "dimensions": {"size": 2},
        "timestamp": NOW.isoformat(),
    }
