"""What the client of Stigg's GraphQL API makes of servers that fail: in bounded time, and nothing is done twice."""

from __future__ import annotations

import gzip
import json
import logging
import os
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

import pytest
import requests

from api_server import KEY, ApiServer, Handler
from conftest import in_child
from stigg_guard import ConfigError
from stigg_guard.api import Api, transport
from stigg_guard.api.transport import MAX_BYTES, endpoint
from stigg_guard.errors import (
    ApiError,
    ApiRateLimited,
    ApiRejected,
    ApiTimeout,
    ApiUnauthenticated,
    ApiUnavailable,
    ApiUnreadable,
)

Fault = Callable[[Handler], None]
BOMB = gzip.compress(bytes(50 * 1024 * 1024))
PAGE = b"<!doctype html><title>Sign in to the network</title>"
PARTLY = {"data": {"provisionCustomer": None}, "errors": [{"message": "half of it", "path": ["provisionCustomer"]}]}


@pytest.fixture
def elsewhere() -> Iterator[ApiServer]:
    running = ApiServer()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PAUSES", (0.0, 0.0, 0.0))


def status(code: int, body: bytes = b"", **headers: str) -> Fault:
    return lambda handler: handler.send(code, body, **headers)


def errors(code: str, message: str = "no") -> bytes:
    return json.dumps({"data": None, "errors": [{"message": message, "extensions": {"code": code}}]}).encode()


def never(handler: Handler) -> None:
    """Does not answer before the test is over."""
    handler.owner.released.wait(60)


def drips(handler: Handler) -> None:
    """Sends an answer byte by byte, each within any time-out."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.owner.released.wait(0.02):
        handler.wfile.write(b" ")


def drips_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not handler.owner.released.wait(0.02):
        handler.wfile.write(b"a")


def cuts(handler: Handler) -> None:
    """Ends the connection within the answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"data": ')
    handler.close_connection = True


def cuts_gzip(handler: Handler) -> None:
    handler.send(200, gzip.compress(b'{"data": {}}')[:-8], Content_Encoding="gzip")


def hangs_up(handler: Handler) -> None:
    handler.close_connection = True


def endless(handler: Handler) -> None:
    """Sends more than anyone reads, and says so beforehand or not."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    piece = b" " * 65_536
    for _ in range(2 * MAX_BYTES // len(piece)):
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))


HOSTILE: dict[str, tuple[Fault, type[ApiError], str, bool]] = {
    # what answers: the error, what it says, whether a mutation may have happened
    "429 that asks for too much patience": (status(429, Retry_After="3600"), ApiRateLimited, "no more requests", False),
    "500": (status(500), ApiUnavailable, "fails with status 500", True),
    "503 that asks for too much patience": (status(503, Retry_After="3600"), ApiUnavailable, "status 503", True),
    "500 with errors": (status(500, errors("INTERNAL", "broken")), ApiUnavailable, "500: broken", True),
    "slow": (never, ApiTimeout, "did not answer within the deadline", True),
    "dripping": (drips, ApiTimeout, "did not answer within the deadline", True),
    "dripping headers": (drips_headers, ApiTimeout, "did not answer within the deadline", True),
    "cut": (cuts, ApiUnavailable, "closed the connection", True),
    "cut gzip": (cuts_gzip, ApiUnavailable, "closed the connection", True),
    "hung up": (hangs_up, ApiUnavailable, "closed the connection", True),
    "oversized": (endless, ApiUnreadable, "longer than 16 MB", True),
    "gzip bomb": (status(200, BOMB, Content_Encoding="gzip"), ApiUnreadable, "longer than 16 MB", True),
    "damaged gzip": (status(200, b"no", Content_Encoding="gzip"), ApiUnreadable, "is damaged", True),
    "unknown encoding": (status(200, b"no", Content_Encoding="br"), ApiUnreadable, "encoded as 'br'", True),
    "HTML": (status(200, PAGE), ApiUnreadable, "status 200 and no GraphQL; is API_URL", True),
    "nested too deep": (status(200, b"[" * 100_000), ApiUnreadable, "no GraphQL", True),
    "no data": (status(200, b'{"data": null}'), ApiUnreadable, "no GraphQL", True),
    "a gateway that waited too long": (status(408, PAGE), ApiUnreadable, "status 408 and no GraphQL", True),
    "the same with errors": (status(408, errors("ANYTHING")), ApiRejected, "answered: no", True),
    "404": (status(404, PAGE), ApiUnreadable, "status 404 and no GraphQL", False),
    "401": (status(401), ApiUnauthenticated, "does not accept the key; set API_KEY", False),
    "unauthenticated": (status(200, errors("UNAUTHENTICATED")), ApiUnauthenticated, "does not accept the key", False),
    "not found": (status(200, errors("CUSTOMER_NOT_FOUND", "who?")), ApiRejected, "answered: who\\?", False),
    "wrong, with a status": (status(400, errors("ANYTHING", "what?")), ApiRejected, "answered: what\\?", False),
    "errors of its own": (status(200, errors("INTERNAL_SERVER_ERROR")), ApiRejected, "answered: no", True),
    "data with errors": (
        status(200, json.dumps(PARTLY).encode()),
        ApiRejected,
        "half of it .at provisionCustomer",
        True,
    ),
    "errors that are none": (status(200, b'{"errors": [7, "x"], "data": null}'), ApiUnreadable, "no GraphQL", True),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_mutation_is_sent_once_and_says_whether_it_may_have_happened(
    name: str, api: Api, server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    fault, kind, said, unknown = HOSTILE[name]
    server.faults.extend([fault] * 4)
    with caplog.at_level(logging.DEBUG), pytest.raises(ApiError, match=said) as caught:
        api.provision_customer({"customer_id": "c"}, timeout=1.0 if kind is ApiTimeout else 20.0)
    error = caught.value
    assert type(error) is kind
    assert error.outcome_unknown is unknown
    assert error.operation == "ProvisionCustomer"
    assert was_sent_once(server, kind)
    shown = (
        "".join(traceback.format_exception(error)) + repr(error) + repr(api) + caplog.text + repr(api._transport._key)
    )
    assert KEY not in shown
    assert error.__context__ is None


@pytest.mark.parametrize("name", HOSTILE)
def test_a_query_is_sent_again_where_that_can_help(name: str, api: Api, server: ApiServer) -> None:
    fault, kind, _, _ = HOSTILE[name]
    server.faults.extend([fault])
    if kind is ApiUnavailable and "patience" not in name:
        api.get_customer_by_id({"customer_id": "c"})
        assert len(server.received) == 2
        return
    with pytest.raises(kind) as caught:
        api.get_customer_by_id({"customer_id": "c"}, timeout=1.0 if kind is ApiTimeout else 20.0)
    assert not caught.value.outcome_unknown
    assert was_sent_once(server, kind)


def was_sent_once(server: ApiServer, kind: type[ApiError]) -> bool:
    """Whether the server saw it once; on a busy machine a deadline may pass before it did."""
    return len(server.received) == 1 or (kind is ApiTimeout and not server.received)


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_is_an_error_and_the_key_goes_nowhere(
    code: int, api: Api, server: ApiServer, elsewhere: ApiServer
) -> None:
    server.faults.append(status(code, Location=f"{elsewhere.url}/graphql"))
    with pytest.raises(ApiUnreadable, match="redirects elsewhere, where nothing was sent; set API_URL"):
        api.provision_customer({"customer_id": "c"})
    assert (len(server.received), elsewhere.received) == (1, [])


@pytest.mark.parametrize("location", ["http://[bad", "http://a:port/", "//", ""])
def test_a_redirect_to_what_is_no_address_is_one_like_others(location: str, api: Api, server: ApiServer) -> None:
    server.faults.append(status(302, Location=location))
    with pytest.raises(ApiUnreadable, match="redirects elsewhere, where nothing was sent; set API_URL"):
        api.provision_customer({"customer_id": "c"})


def test_a_429_is_waited_for_as_long_as_it_says(api: Api, server: ApiServer) -> None:
    server.faults.extend([status(429, Retry_After="0"), status(429), status(429, Retry_After="tomorrow")])
    api.provision_customer({"customer_id": "c"})
    assert len(server.received) == 4


def test_after_three_repetitions_it_is_over(api: Api, server: ApiServer) -> None:
    server.faults.extend([status(500)] * 4)
    with pytest.raises(ApiUnavailable) as caught:
        api.get_coupons()
    assert (len(server.received), caught.value.status, caught.value.outcome_unknown) == (4, 500, False)


def test_a_patience_that_is_told_is_passed_on(api: Api, server: ApiServer) -> None:
    server.faults.append(status(429, Retry_After="3600"))
    with pytest.raises(ApiRateLimited) as caught:
        api.get_coupons()
    assert caught.value.retry_after == 3600


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0),
        ("Wednesday, 21-Oct-26 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400.0),
        ("999999999", 86_400.0),
        ("Wed, 99 Oct 2026 07:28:30 GMT", ApiRateLimited.retry_after),
    ],
)
def test_a_patience_may_be_told_as_a_date_by_the_server_s_own_clock(
    told: str, seconds: float, api: Api, server: ApiServer
) -> None:
    def limited(handler: Handler) -> None:
        handler.date_time_string = lambda *_: "Wed, 21 Oct 2026 07:28:00 GMT"
        handler.send(429, b"", Retry_After=told)

    server.faults.extend([limited] * 4)
    with pytest.raises(ApiRateLimited) as caught:
        api.get_coupons()
    assert caught.value.retry_after == seconds


def test_estimates_and_previews_change_nothing(api: Api, server: ApiServer) -> None:
    server.faults.append(status(500))
    api.estimate_subscription({"customer_id": "c", "plan_id": "p"})
    server.faults.append(cuts)
    api.preview_subscription({"customer_id": "c", "plan_id": "p"})
    assert Counter(one.payload["operationName"] for one in server.received) == {
        "EstimateSubscription": 2,
        "PreviewSubscription": 2,
    }


@pytest.mark.parametrize("fault", [status(500), cuts, hangs_up])
def test_usage_is_sent_again_under_its_one_key(fault: Fault, api: Api, server: ApiServer) -> None:
    server.faults.append(fault)
    api.report_usage({"customer_id": "c", "feature_id": "f", "value": 1})
    first, second = (one.payload["variables"]["input"]["idempotencyKey"] for one in server.received)
    assert first == second


def test_what_may_have_happened_before_the_last_repetition_may_have_happened(api: Api, server: ApiServer) -> None:
    server.faults.extend([status(500), *[status(429)] * 3])
    with pytest.raises(ApiRateLimited) as caught:
        api.report_usage({"customer_id": "c", "feature_id": "f", "value": 1})
    assert caught.value.outcome_unknown


def test_requests_that_find_no_end_do_not_become_ever_more(
    api: Api, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_OVERDUE", 2)
    server.faults += [drips_headers] * 2
    for _ in range(2):
        with pytest.raises(ApiTimeout, match="did not answer"):
            api.get_coupons(timeout=0.2)
    with pytest.raises(ApiTimeout, match="2 requests before have found no end") as failed:
        api.report_usage({"customerId": "c", "featureId": "f", "value": 1}, timeout=5)
    assert not failed.value.outcome_unknown
    assert len(server.received) == 2
    server.released.set()
    for thread in threading.enumerate():
        if thread.name == "stigg-guard-api":
            thread.join()
    assert api.get_coupons()


def test_of_requests_at_the_same_time_all_that_find_no_end_are_counted(
    api: Api, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_OVERDUE", 8)
    server.faults += [drips_headers] * 8

    def ask(_: int) -> None:
        with pytest.raises(ApiTimeout, match="did not answer"):
            api.get_coupons(timeout=0.5)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(8)))
    with pytest.raises(ApiTimeout, match="8 requests before have found no end"):
        api.get_coupons(timeout=5)


def test_what_was_never_sent_did_not_happen(api: Api, server: ApiServer) -> None:
    server.stop()
    with pytest.raises(ApiUnavailable, match="cannot be connected to") as caught:
        api.provision_customer({"customer_id": "c"})
    assert not caught.value.outcome_unknown


def test_a_server_that_echoes_the_key_does_not_get_it_into_the_message(api: Api, server: ApiServer) -> None:
    server.faults.append(status(200, errors("ANY", f"the key {KEY}\nis odd " + "x" * 2000)))
    with pytest.raises(ApiRejected, match=r"the key …\\nis odd x+…$"):
        api.get_coupons()


def test_partial_data_is_kept_with_the_error(api: Api, server: ApiServer) -> None:
    server.faults.append(status(200, json.dumps(PARTLY).encode()))
    with pytest.raises(ApiRejected) as caught:
        api.provision_customer({"customer_id": "c"})
    assert (caught.value.data, list(caught.value.errors)) == (PARTLY["data"], PARTLY["errors"])


def test_answers_may_be_packed(api: Api, server: ApiServer) -> None:
    body = gzip.compress(json.dumps({"data": {"sdkConfiguration": {"sentryDsn": "x" * 500_000}}}).encode())
    server.faults.append(status(200, body, Content_Encoding="gzip"))
    configuration = api.get_sdk_configuration().sdk_configuration
    assert configuration is not None
    assert configuration.sentry_dsn == "x" * 500_000


def test_an_error_of_the_program_is_not_one_of_the_api(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests.Session, "request", lambda *_, **__: {}["no such key"])
    with pytest.raises(KeyError, match="no such key"):
        api.get_coupons()


def test_threads_share_the_connections_and_a_fork_has_its_own(api: Api, server: ApiServer) -> None:
    threads = [threading.Thread(target=api.get_coupons) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (parent,) = api._transport._sessions.values()

    def uses_its_own() -> bool:
        api.get_coupons()
        return api._transport._sessions[os.getpid()] is not parent

    assert in_child(uses_its_own)
    api.get_coupons()
    assert (len(server.received), list(api._transport._sessions)) == (6, [os.getpid()])


def test_a_proxy_of_the_environment_is_used(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Api(KEY, "http://api.example.invalid") as api:
        api.get_coupons()
    assert server.received[0].headers["host"] == "api.example.invalid"


@pytest.mark.parametrize(
    ("date", "told"),
    [
        ("Thu, 15 Jan 2026 12:00:00 GMT", datetime(2026, 1, 15, 12, tzinfo=timezone.utc)),
        ("Thu, 15 Jan 2026 12:00:00 -0000", datetime(2026, 1, 15, 12, tzinfo=timezone.utc)),
        ("tomorrow", None),
    ],
)
def test_the_servers_clock_is_read_where_it_can_be(
    date: str, told: datetime | None, api: Api, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.server_time is None
    monkeypatch.setattr(Handler, "date_time_string", lambda *_: date)
    api.get_products()
    assert api.server_time == told


def test_closed_connections_are_opened_again(api: Api, server: ApiServer) -> None:
    api.get_coupons()
    api.close()
    api.get_coupons()
    Api(KEY, server.url).close()
    assert len(server.received) == 2


@pytest.mark.parametrize(
    ("address", "where"),
    [
        ("https://api.stigg.io", "https://api.stigg.io/graphql"),
        ("https://api.stigg.io/", "https://api.stigg.io/graphql"),
        ("http://localhost:8080/graphql", "http://localhost:8080/graphql"),
        ("https://proxy.example/stigg/", "https://proxy.example/stigg/"),
    ],
)
def test_the_path_is_added_where_there_is_none(address: str, where: str) -> None:
    assert endpoint(address) == where


@pytest.mark.parametrize(
    "address",
    [
        "api.stigg.io",
        "ftp://api.stigg.io",
        "https://",
        "https://a:b@c",
        "https://a:x",
        "http://a b",
        "http://a?b",
        7,
        "http://[a",
    ],
)
def test_a_wrong_address_is_said_at_once(address: Any) -> None:
    with pytest.raises(ConfigError, match="API_URL: "):
        Api(KEY, address)


@pytest.mark.parametrize("key", ["", " ", "a\nb", "schlüssel", None, 7])
def test_a_wrong_key_is_said_and_not_shown(key: Any) -> None:
    with pytest.raises(ConfigError, match=r"^API_KEY: expected the text of a server key, in ASCII and without spaces$"):
        Api(key)
