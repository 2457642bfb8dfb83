"""A sidecar in front of something else than an engine: what passes through, and what its failures become."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import pytest

from rpc_server import serving
from sidecar.contract import DEMO, Client, report
from stigg_guard import ClientClosed, SidecarError
from stigg_guard.channel import Channel
from stigg_guard.clock import utc_now
from stigg_guard.sidecar.one_plan import OnePlan, parse_plan
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.wire import Answerer
from stigg_guard.wire import sidecar_pb2 as pb


@contextmanager
def asked_through(answers: Answerer) -> Iterator[tuple[Client, Sidecar]]:
    with closing(answers), Sidecar(answers) as server, grpc.insecure_channel(server.address) as channel:
        yield Client(channel), server


@contextmanager
def before(handler: Callable[[Any, grpc.ServicerContext], Any]) -> Iterator[tuple[Client, Sidecar]]:
    """A sidecar that asks another one, which has this for a handler."""
    handlers = dict.fromkeys(("GetBooleanEntitlement", "ReportUsage", "ReloadEntitlements"), handler)
    with serving(handlers) as port, asked_through(Channel("127.0.0.1", port)) as both:
        yield both


def failing_with(status: grpc.StatusCode) -> Callable[[Any, grpc.ServicerContext], Any]:
    return lambda _, context: context.abort(status, "said upstream")


def check(client: Client) -> Any:
    return client("GetBooleanEntitlement", customer_id=DEMO, feature_id="feature-exports")


def status_of(client: Client) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as failed:
        check(client)
    return failed.value.code()


def count(server: Sidecar, name: str) -> float:
    with urlopen(f"http://{server.http_address}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


@pytest.mark.parametrize(
    ("said", "passed_on"),
    [
        (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.DEADLINE_EXCEEDED),
        (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAUTHENTICATED),
        (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INVALID_ARGUMENT),
        (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNIMPLEMENTED),
        (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_a_failure_of_what_is_asked_is_never_one_of_this_sidecar(
    said: grpc.StatusCode, passed_on: grpc.StatusCode
) -> None:
    with before(failing_with(said)) as (client, server):
        assert status_of(client) is passed_on
        is_key = passed_on is grpc.StatusCode.UNAUTHENTICATED
        is_network = not is_key and passed_on is not grpc.StatusCode.INVALID_ARGUMENT
        assert count(server, "sidecar_invalid_api_key_errors_total") == is_key
        assert count(server, "sidecar_network_request_errors_total") == is_network


def test_nothing_that_listens_is_unavailable() -> None:
    with serving({}) as port:
        pass
    with asked_through(Channel("127.0.0.1", port)) as (client, _):
        assert status_of(client) is grpc.StatusCode.UNAVAILABLE


def test_what_is_closed_is_unavailable() -> None:
    class Closed(OnePlan):
        def answer(self, *_: Any, **__: Any) -> Any:
            raise ClientClosed("closed")

    with asked_through(Closed({}, None, utc_now)) as (client, _):
        assert status_of(client) is grpc.StatusCode.UNAVAILABLE


def test_what_does_not_say_why_is_unavailable() -> None:
    class Silent(OnePlan):
        def answer(self, *_: Any, **__: Any) -> Any:
            raise SidecarError("it said nothing that can be read")

    with asked_through(Silent({}, None, utc_now)) as (client, _):
        assert status_of(client) is grpc.StatusCode.UNAVAILABLE


def told_of_keys(client: Client) -> bool:
    call = client.channel.unary_unary("/stigg.sidecar.v1.SidecarService/ReloadEntitlements")
    _, ended = call.with_call(pb.ReloadEntitlementsRequest(customer_id=DEMO).SerializeToString(), timeout=20)
    return ("idempotency-key", "honoured") in ended.trailing_metadata()


def test_idempotency_is_not_announced_where_the_next_one_knows_none() -> None:
    with before(lambda *_: pb.ReloadEntitlementsResponse(entitled_entity_exists=True)) as (client, _):
        assert not told_of_keys(client)


def test_idempotency_is_announced_where_the_next_one_honours_it(sidecar: Sidecar) -> None:
    host, _, port = sidecar.address.rpartition(":")
    with asked_through(Channel(host, port)) as (client, _):
        assert told_of_keys(client)
        first = client("ReportUsage", key="once", **report(2))
        assert client("ReportUsage", key="once", **report(2)) == first


def test_the_plan_of_a_test_is_served_too() -> None:
    plan = OnePlan(parse_plan({"feature-exports": True}, source="here"), None, utc_now)
    with asked_through(plan) as (client, _):
        assert check(client).has_access
        assert told_of_keys(client)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("PUT", "/customers/customer-demo-01", {"plan": "growth"}), ("POST", "/graphql", {"query": "{ __typename }"})],
)
def test_customers_are_changed_where_they_are(method: str, path: str, body: dict[str, str], sidecar: Sidecar) -> None:
    host, _, port = sidecar.address.rpartition(":")
    with asked_through(Channel(host, port)) as (_, server):
        headers = {"Content-Type": "application/json"}
        request = Request(f"http://{server.http_address}{path}", json.dumps(body).encode(), headers, method=method)
        with pytest.raises(HTTPError) as refused:
            urlopen(request)
        assert refused.value.code == 404
        assert "at Stigg" in json.loads(refused.value.read())["detail"]
