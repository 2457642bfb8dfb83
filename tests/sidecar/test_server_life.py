"""The local sidecar as its operator sees it: health, reflection, pages over HTTP, plan changes, start and stop."""

from __future__ import annotations

import http.client
import logging
import socket
import struct
from threading import Event
from typing import Any

import grpc
import pytest
import requests
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from sidecar.contract import CONTRACT, DEMO, NAN, SERVICE, Client, reason, refusal, report
from stigg_guard.errors import SidecarStartError
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar

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
    assert 'sidecar_request_duration_seconds_count{method="ReportUsage"} 1.0' in text


def test_metrics_count_checks_that_were_answered_from_what_is_known(sidecar: Sidecar, client: Client) -> None:
    client.templates_used()
    client("ReportUsage", **report(1))
    text = requests.get(url(sidecar, "/metrics"), timeout=10).text
    assert "sidecar_cache_hits_total 1.0" in text
    assert "sidecar_cache_misses_total 0.0" in text


@pytest.mark.parametrize("cause", ["initialization", "invalid_api_key", "network_request", "redis_client"])
def test_metrics_have_the_error_counters_of_the_hosted_sidecar(sidecar: Sidecar, cause: str) -> None:
    assert f"sidecar_{cause}_errors_total 0.0" in requests.get(url(sidecar, "/metrics"), timeout=10).text


def test_unknown_page_is_not_found(sidecar: Sidecar) -> None:
    answer = requests.get(url(sidecar, "/nowhere"), timeout=10)
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
        (400, {"data": b"[" * 1_000_000, "headers": {"Content-Type": "application/json"}}),
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
