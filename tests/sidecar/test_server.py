"""What any client gets from the local sidecar: this one is made at run time from the contract's data alone."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import struct
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest
import requests
from google.protobuf import empty_pb2, struct_pb2, timestamp_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from stigg_guard.errors import SidecarStartError
from stigg_guard.fallbacks import Fallback
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store

CONTRACT: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "sidecar_v1.json").read_text())
PACKAGE: str = CONTRACT["package"]
SERVICE = f"{PACKAGE}.{CONTRACT['service']['name']}"
NOW = datetime(2026, 1, 15, 12, tzinfo=timezone.utc)
DEMO = "customer-demo-01"

SCALARS = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "string": FieldDescriptorProto.TYPE_STRING,
}


def contract_pool() -> DescriptorPool:
    """The contract as descriptors, in a pool of its own."""
    file = FileDescriptorProto(
        name=CONTRACT["file"], package=PACKAGE, syntax=CONTRACT["syntax"], dependency=CONTRACT["imports"]
    )
    for name, numbers in CONTRACT["enums"].items():
        enum = file.enum_type.add(name=name)
        for value, number in numbers.items():
            enum.value.add(name=value, number=number)
    for name, fields in CONTRACT["messages"].items():
        add_fields(file.message_type.add(name=name), fields)
    pool = DescriptorPool()
    for module in (empty_pb2, struct_pb2, timestamp_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return pool


def add_fields(message: DescriptorProto, fields: Sequence[dict[str, Any]]) -> None:
    oneofs = list(dict.fromkeys(field["oneof"] for field in fields if "oneof" in field))
    oneofs += [f"_{field['name']}" for field in fields if field.get("optional")]
    for oneof in oneofs:
        message.oneof_decl.add(name=oneof)
    for field in fields:
        described = message.field.add(name=field["name"], number=field["number"])
        described.label = FieldDescriptorProto.LABEL_OPTIONAL
        if field["type"].startswith("map<"):
            described.label = FieldDescriptorProto.LABEL_REPEATED
            set_type(described, add_map_entry(message, field))
            continue
        set_type(described, field["type"])
        if field.get("repeated"):
            described.label = FieldDescriptorProto.LABEL_REPEATED
        if field.get("optional"):
            described.proto3_optional = True
        if "oneof" in field or field.get("optional"):
            described.oneof_index = oneofs.index(field.get("oneof", f"_{field['name']}"))


def add_map_entry(message: DescriptorProto, field: dict[str, Any]) -> str:
    key_type, value_type = field["type"].removeprefix("map<").removesuffix(">").split(", ")
    entry = message.nested_type.add(name=f"{field['name'].title().replace('_', '')}Entry")
    entry.options.map_entry = True
    parts = ({"number": 1, "name": "key", "type": key_type}, {"number": 2, "name": "value", "type": value_type})
    add_fields(entry, parts)
    return f"{message.name}.{entry.name}"


def set_type(field: FieldDescriptorProto, name: str) -> None:
    if name in SCALARS:
        field.type = SCALARS[name]
        return
    field.type = FieldDescriptorProto.TYPE_ENUM if name in CONTRACT["enums"] else FieldDescriptorProto.TYPE_MESSAGE
    field.type_name = f".{name}" if name.startswith("google.") else f".{PACKAGE}.{name}"


class Client:
    """Calls by name; takes the request's fields and returns the response message."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.pool = contract_pool()
        self.methods = {method["name"]: method for method in CONTRACT["service"]["methods"]}

    def message(self, name: str) -> type[Message]:
        full_name = name if name.startswith("google.") else f"{PACKAGE}.{name}"
        return GetMessageClass(self.pool.FindMessageTypeByName(full_name))

    def __call__(self, method: str, *, key: str | None = None, **fields: Any) -> Any:
        request = self.message(self.methods[method]["request"])(**fields)
        return self.send(method, request.SerializeToString(), key)

    def send(self, method: str, request: bytes, key: str | None = None) -> Any:
        response = self.message(self.methods[method]["response"])
        call = self.channel.unary_unary(
            f"/{SERVICE}/{method}", request_serializer=None, response_deserializer=response.FromString
        )
        return call(request, timeout=20, metadata=(("idempotency-key", key),) if key else ())

    def templates_used(self) -> float:
        answer = self("GetMeteredEntitlement", customer_id=DEMO, feature_id="feature-templates")
        return float(answer.entitlement.current_usage)


def reason(name: str) -> int:
    return int(CONTRACT["enums"]["AccessDeniedReason"][f"ACCESS_DENIED_REASON_{name}"])


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(
        demo_catalog(), Store(None), now=lambda: NOW, fallbacks={"feature-planned": Fallback(True, usage_limit=9)}
    )
    yield engine
    engine.close()


@pytest.fixture
def sidecar(engine: Engine) -> Iterator[Sidecar]:
    with Sidecar(engine) as sidecar:
        yield sidecar


@pytest.fixture
def channel(sidecar: Sidecar) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(sidecar.address) as channel:
        yield channel


@pytest.fixture
def client(channel: grpc.Channel) -> Client:
    return Client(channel)


def refusal(client: Client, method: str, **fields: Any) -> str:
    """The text of the INVALID_ARGUMENT that the call is answered with."""
    with pytest.raises(grpc.RpcError) as refused:
        client(method, **fields)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(refused.value.details())


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


def report(value: float, **fields: Any) -> dict[str, Any]:
    return {"customer_id": DEMO, "feature_id": "feature-templates", "value": value, **fields}


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

NAN, INFINITY = float("nan"), float("inf")


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


# Health and reflection


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_service_says_serving(channel: grpc.Channel, service: str) -> None:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_service_says_not_serving_when_it_stops(sidecar: Sidecar, channel: grpc.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    sidecar.stop(grace=0.2)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_reflection_lists_and_resolves_all_services(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert services == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    pool = DescriptorPool(database)
    assert {pool.FindServiceByName(name).full_name for name in services} == services
    assert len(pool.FindServiceByName(SERVICE).methods) == len(CONTRACT["service"]["methods"])


# HTTP


def url(sidecar: Sidecar, path: str) -> str:
    return f"http://{sidecar.http_address}{path}"


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_say_up(sidecar: Sidecar, path: str) -> None:
    answer = requests.get(url(sidecar, path), timeout=10)
    assert answer.status_code == 200
    assert answer.json() == {"status": "UP"}


def test_metrics_count_requests_by_method_and_status(sidecar: Sidecar, client: Client) -> None:
    client("ReportUsage", **report(1))
    refusal(client, "ReportUsage", **report(NAN))
    text = requests.get(url(sidecar, "/metrics"), timeout=10).text
    assert 'sidecar_requests_total{code="OK",method="ReportUsage"} 1.0' in text
    assert 'sidecar_requests_total{code="INVALID_ARGUMENT",method="ReportUsage"} 1.0' in text


@pytest.mark.parametrize("cause", ["initialization", "invalid_api_key", "network_request", "redis_client"])
def test_metrics_have_the_error_counters_of_the_hosted_sidecar(sidecar: Sidecar, cause: str) -> None:
    assert f"sidecar_{cause}_errors_total 0.0" in requests.get(url(sidecar, "/metrics"), timeout=10).text


def test_unknown_page_is_not_found(sidecar: Sidecar) -> None:
    answer = requests.get(url(sidecar, "/"), timeout=10)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


def put(sidecar: Sidecar, path: str = f"/customers/{DEMO}", json: Any = None, **options: Any) -> requests.Response:
    return requests.put(url(sidecar, path), json=json, timeout=10, **options)


def has_analytics(client: Client, **fields: str) -> bool:
    answer = client("GetBooleanEntitlement", customer_id=DEMO, feature_id="feature-analytics", **fields)
    return bool(answer.has_access)


def test_plan_change_takes_effect_at_once(sidecar: Sidecar, client: Client) -> None:
    assert put(sidecar, json={"plan": "growth"}).status_code == 204
    assert has_analytics(client)
    assert not has_analytics(client, resource_id="site-01")


def test_plan_change_of_a_resource_leaves_the_customer_s_plan(sidecar: Sidecar, client: Client) -> None:
    assert put(sidecar, json={"plan": "growth", "resource": "site-01"}).status_code == 204
    assert has_analytics(client, resource_id="site-01")
    assert not has_analytics(client)


def test_plan_null_cancels_the_subscription(sidecar: Sidecar, client: Client) -> None:
    assert put(sidecar, json={"plan": None}).status_code == 204
    assert client("GetEntitlements", customer_id=DEMO).access_denied_reason == reason("NO_ACTIVE_SUBSCRIPTION")


@pytest.mark.parametrize("host", ["localhost:8080", "localhost", "[::1]:8080"])
def test_plan_change_is_taken_under_a_loopback_name(sidecar: Sidecar, host: str) -> None:
    assert put(sidecar, json={"plan": "growth"}, headers={"Host": host}).status_code == 204


@pytest.mark.parametrize(
    ("status", "options"),
    [
        (404, {"path": "/customers/nobody", "json": {"plan": "growth"}}),
        (404, {"path": "/plans/growth", "json": {"plan": "growth"}}),
        (400, {"json": {"plan": "no-such-plan"}}),
        (400, {"json": {"plan": "growth", "resource": "nowhere"}}),
        (400, {"json": {"plan": 3}}),
        (400, {"json": {"resource": "site-01"}}),
        (400, {"json": {"plan": "growth", "until": "tomorrow"}}),
        (400, {"json": ["growth"]}),
        (400, {"data": b"{", "headers": {"Content-Type": "application/json"}}),
        (403, {"json": {"plan": "growth"}, "headers": {"Host": "attacker.example"}}),
        (403, {"json": {"plan": "growth"}, "headers": {"Host": "[::1"}}),
        (415, {"data": b'{"plan": "growth"}', "headers": {"Content-Type": "text/plain"}}),
        (415, {"data": b'{"plan": "growth"}'}),
    ],
)
def test_wrong_plan_change_is_refused_and_changes_nothing(
    sidecar: Sidecar, client: Client, status: int, options: dict[str, Any]
) -> None:
    answer = put(sidecar, **options)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["detail"]
    assert not has_analytics(client)


@pytest.mark.parametrize(("length", "status"), [(None, 411), ("-1", 411), (str(10**9), 413)])
def test_body_without_a_sane_length_is_refused(sidecar: Sidecar, length: str | None, status: int) -> None:
    host, _, port = sidecar.http_address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.putrequest("PUT", f"/customers/{DEMO}")
    if length:
        connection.putheader("Content-Length", length)
    connection.endheaders()
    assert connection.getresponse().status == status
    connection.close()


def test_unexpected_failure_of_a_plan_change_is_logged_and_not_sent(
    sidecar: Sidecar, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.close()
    answer = put(sidecar, json={"plan": "growth"})
    assert answer.status_code == 500
    assert answer.json()["detail"] == "the sidecar's log says why"
    assert "Traceback" in caplog.text


class Heard(logging.Handler):
    """Keeps the first message, and wakes who waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.event = Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.message = record.getMessage()
        self.event.set()


def test_caller_that_hangs_up_is_logged_in_one_message(sidecar: Sidecar) -> None:
    heard = Heard()
    log = logging.getLogger("stigg_guard")
    log.addHandler(heard)
    host, _, port = sidecar.http_address.rpartition(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(b"PUT /customers/x HTTP/1.0\r\nContent-Length: 10\r\n\r\n")
        reset_when_closed = struct.pack("ii", 1, 0)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_when_closed)
    assert heard.event.wait(10)
    log.removeHandler(heard)
    assert heard.message.startswith("the HTTP request from")


# Starting


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_taken_grpc_port_is_named_with_the_remedy(sidecar: Sidecar, engine: Engine) -> None:
    with pytest.raises(SidecarStartError) as refused:
        Sidecar(engine, port=port_of(sidecar.address)).start()
    assert str(refused.value) == (
        f"cannot listen on {sidecar.address}: Address already in use; "
        "stop what listens there, or choose another port with --port (0 picks a free one)"
    )


def test_taken_http_port_is_named_with_the_remedy(sidecar: Sidecar, engine: Engine) -> None:
    with pytest.raises(SidecarStartError, match=f"{sidecar.http_address}: Address already in use.*--http-port"):
        Sidecar(engine, http_port=port_of(sidecar.http_address)).start()


def test_failed_start_frees_the_http_port(sidecar: Sidecar, engine: Engine) -> None:
    failed = Sidecar(engine, port=port_of(sidecar.address))
    with pytest.raises(SidecarStartError):
        failed.start()
    with Sidecar(engine, http_port=port_of(failed.http_address)) as second:
        assert second.http_address == failed.http_address


def test_unknown_host_is_named_with_the_remedy(engine: Engine) -> None:
    with pytest.raises(SidecarStartError, match=r"no-such-host\.invalid.*choose a --host"):
        Sidecar(engine, host="no-such-host.invalid").start()


def test_address_of_other_machines_is_warned_about_once(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with Sidecar(engine, host="0.0.0.0"):
        assert [record.getMessage() for record in caplog.records] == [
            "the sidecar at 0.0.0.0 can be reached from elsewhere, and asks for no password"
        ]


def test_ipv6_address_is_served_and_written_in_brackets(engine: Engine) -> None:
    with Sidecar(engine, host="::1") as sidecar, grpc.insecure_channel(sidecar.address) as channel:
        assert sidecar.address.startswith("[::1]:")
        assert Client(channel).templates_used() == 3
        assert requests.get(url(sidecar, "/livez"), timeout=10).status_code == 200


def test_stopping_twice_does_nothing(engine: Engine) -> None:
    with Sidecar(engine) as sidecar:
        sidecar.stop()
