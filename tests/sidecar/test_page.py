"""The status page over HTTP: what it shows, who may see it, and who may change what."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from typing import Any

import grpc
import pytest
import requests

from sidecar.contract import DEMO, NAN, NOW, SERVICE, Client, refusal, report
from stigg_guard.sidecar import page
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.journal import _Answered
from stigg_guard.sidecar.page import MOST_STREAMS, TOKEN_HEADER
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.state import StateUnavailable
from stigg_guard.sidecar.store import Store


def url(sidecar: Sidecar, path: str = "/") -> str:
    return f"http://{sidecar.http_address}{path}"


def token(sidecar: Sidecar) -> str:
    return sidecar.page_url.partition("#")[2]


@contextmanager
def watched(sidecar: Sidecar, search: str = "") -> Iterator[Iterator[Any]]:
    """What the page is told, one event after the other."""
    parameters = {"search": search} if search else {}
    with requests.get(url(sidecar, "/events"), params=parameters, stream=True, timeout=20) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        lines = answer.iter_lines(chunk_size=1, decode_unicode=True)
        yield (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))


def shown(sidecar: Sidecar, search: str = "") -> Any:
    with watched(sidecar, search) as events:
        return next(events)


def change(sidecar: Sidecar, name: str, headers: dict[str, str] | None = None, **given: Any) -> requests.Response:
    told = {TOKEN_HEADER: token(sidecar)} if headers is None else headers
    return requests.post(url(sidecar, f"/changes/{name}"), json=given, headers=told, timeout=10)


def customer(state: Any, id_: str = DEMO) -> Any:
    return next(one for one in state["customers"] if one["id"] == id_)


def entry(state: Any, feature: str, id_: str = DEMO, part: int = 0) -> Any:
    return next(one for one in customer(state, id_)["parts"][part]["entitlements"] if one["id"] == feature)


# What is shown


@pytest.mark.parametrize(
    ("path", "media_type"), [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")]
)
def test_the_files_come_with_a_policy_that_lets_nothing_else_in(sidecar: Sidecar, path: str, media_type: str) -> None:
    answer = requests.get(url(sidecar, path), timeout=10)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, f"{media_type}; charset=utf-8")
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "http://" not in answer.text.replace("http://www.w3.org", "")
    assert "https://" not in answer.text


def test_customers_are_shown_with_usage_wallets_and_denials(sidecar: Sidecar) -> None:
    state = shown(sidecar)
    assert (state["now"], state["moved"], state["total"]) == (NOW.isoformat(timespec="seconds"), 0, 6)
    templates = entry(state, "feature-templates")
    assert (templates["used"], templates["limit"], templates["access"]) == (3, 6, True)
    calls = entry(state, "feature-api-calls")
    assert (calls["soft"], calls["ends"]) == (True, "2026-01-21T00:00:00Z")
    assert entry(state, "api-credits")["used"] == 12500
    assert entry(state, "feature-regions")["text"] == "eu, us"
    assert entry(state, "feature-storage")["text"] == "100 GB"
    assert entry(state, "feature-seats", "customer-demo-02")["limit"] is None
    assert entry(state, "feature-custom-domain", "customer-demo-06")["reason"] == "REVOKED"
    assert [part["resource"] for part in customer(state)["parts"]] == ["", "site-01"]
    assert customer(state, "customer-demo-05")["archived"]
    assert customer(state, "customer-demo-04")["parts"][0]["reason"] == "NO_ACTIVE_SUBSCRIPTION"


def test_plans_are_shown_with_prices_and_what_they_give(sidecar: Sidecar) -> None:
    plan = next(one for one in shown(sidecar)["plans"] if one["id"] == "essentials")
    assert plan["prices"] == ["29 USD monthly", "290 USD annually"]
    gives = {one["name"]: one["text"] for one in plan["gives"]}
    assert gives["API calls"] == "1,000 a month (soft)"
    assert (gives["Regions"], gives["Exports"], gives["Storage"]) == ("eu, us", "yes", "100")
    assert gives["API credits"] == "50,000 a month"


def test_a_search_finds_by_id(sidecar: Sidecar) -> None:
    state = shown(sidecar, "DEMO-03")
    assert ([one["id"] for one in state["customers"]], state["found"]) == (["customer-demo-03"], 1)


def test_requests_are_shown_with_what_became_of_them(sidecar: Sidecar, client: Client) -> None:
    ids = {"customer_id": DEMO}
    client("GetBooleanEntitlement", **ids, feature_id="feature-analytics")
    client("GetEntitlementV2", **ids, feature_id="feature-templates")
    client("GetEntitlement", **ids, feature_id="feature-planned")
    client("GetEntitlementsStateV2", **ids)
    client("GetEntitlements", customer_id="customer-demo-04")
    client("ReloadEntitlements", customer_id="nobody")
    client("ReportUsage", **report(2))
    client("ReportUsageBulk", usages=[report(1)])
    client("ReportEvents", events=[{"event_name": "x", "customer_id": DEMO, "idempotency_key": "1"}])
    refusal(client, "ReportUsage", **report(NAN))
    state = shown(sidecar)
    told = [(one["method"], one["outcome"], one["feature"], one["detail"]) for one in state["recent"]]
    assert told == [
        ("ReportUsage", "rejected", "feature-templates", "value: must be a finite number, and is nan"),
        ("ReportEvents", "reported", "x", "1 events"),
        ("ReportUsageBulk", "reported", "feature-templates", "1 usages"),
        ("ReportUsage", "reported", "feature-templates", "+2, now 5"),
        ("ReloadEntitlements", "listed", "", "nobody of that id"),
        ("GetEntitlements", "denied", "", "NO_ACTIVE_SUBSCRIPTION"),
        ("GetEntitlementsStateV2", "listed", "", "21 entitlements"),
        ("GetEntitlement", "allowed", "feature-planned", "by a fallback"),
        ("GetEntitlementV2", "allowed", "feature-templates", ""),
        ("GetBooleanEntitlement", "denied", "feature-analytics", "NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION"),
    ]
    figures = state["figures"]
    assert (figures["answered"], figures["failed"], figures["hits"], figures["misses"]) == (9, 1, 6, 0)
    assert 0 < figures["p50"] <= figures["p99"]


@pytest.mark.parametrize("body", [b"", b"\xff"])
def test_a_batch_of_nothing_is_shown_as_rejected(sidecar: Sidecar, channel: grpc.Channel, body: bytes) -> None:
    for method in ("ReportEvents", "ReportUsageBulk"):
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(f"/{SERVICE}/{method}")(body, timeout=10)
    assert [(one["outcome"], one["customer"]) for one in shown(sidecar)["recent"]] == [("rejected", "")] * 2


def test_of_a_large_request_only_the_beginnings_are_kept(sidecar: Sidecar, client: Client) -> None:
    long = "x" * 1_000_000
    for _ in range(3):
        client("GetBooleanEntitlement", customer_id=long, feature_id=long)
    assert not any(isinstance(one, _Answered) for one in sidecar._journal._last)
    (kept, *_) = recent = shown(sidecar)["recent"]
    assert (kept["customer"], kept["feature"]) == ("x" * 300 + "…",) * 2
    assert len(json.dumps(recent)) < 5_000


def test_what_is_new_is_told_while_it_happens(sidecar: Sidecar, client: Client) -> None:
    with watched(sidecar) as events:
        assert entry(next(events), "feature-templates")["used"] == 3
        client("ReportUsage", **report(1))
        assert entry(next(events), "feature-templates")["used"] == 4


class Asked(Engine):
    """Notes the customers it is asked about."""

    def answer(self, method: str, request: Any, **given: Any) -> Any:
        self.asked.append(request.customer_id)
        return super().answer(method, request, **given)

    def __init__(self, *given: Any) -> None:
        self.asked: list[str] = []
        super().__init__(*given)


def test_pages_that_show_the_same_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "SHARED_SECONDS", inf)
    engine = Asked(demo_catalog(), Store(None))
    with Sidecar(engine) as sidecar, ExitStack() as open_:
        pages = [open_.enter_context(watched(sidecar, search)) for search in ("", "", "demo-02", "")]
        before = [next(events)["customers"] for events in pages]
        assert (len(before[0]), len(before[2])) == (6, 1)
        assert before[0] == before[1] == before[3]
        assert [engine.asked.count(f"customer-demo-0{number}") for number in (2, 3)] == [2, 1]
        changed = "customer-demo-02"
        engine.assign_plan(changed, "growth")
        after = [next(events) for events in pages]
        assert {customer(state, changed)["parts"][0]["plan"] for state in after} == {"growth"}
        assert [engine.asked.count(f"customer-demo-0{number}") for number in (2, 3)] == [4, 2]


def test_streams_end_with_the_sidecar(engine: Engine) -> None:
    with Sidecar(engine) as sidecar, watched(sidecar) as events:
        next(events)
        sidecar.stop()
        assert list(events) == []


def test_too_many_windows_are_refused(sidecar: Sidecar) -> None:
    held = [watched(sidecar) for _ in range(MOST_STREAMS)]
    for one in held:
        next(one.__enter__())
    assert requests.get(url(sidecar, "/events"), timeout=10).status_code == 503
    for one in held:
        one.__exit__(None, None, None)


# Who may see it


@pytest.mark.parametrize("path", ["/", "/events"])
def test_a_page_whose_name_was_made_to_point_here_sees_nothing(sidecar: Sidecar, path: str) -> None:
    answer = requests.get(url(sidecar, path), headers={"Host": "attacker.example"}, timeout=10)
    assert answer.status_code == 403


def test_other_machines_see_nothing(engine: Engine) -> None:
    own = next((found[4][0] for found in socket.getaddrinfo(socket.gethostname(), 0, socket.AF_INET)), "127.0.0.1")
    if str(own).startswith("127."):
        pytest.skip("this machine has no address but its loopback")
    with Sidecar(engine, host="0.0.0.0") as sidecar:
        port = sidecar.http_address.rpartition(":")[2]
        answer = requests.get(f"http://{own}:{port}/", headers={"Host": "localhost"}, timeout=10)
        assert answer.status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_address_of_the_page_opens_it_also_where_all_addresses_are_listened_on(engine: Engine, host: str) -> None:
    with Sidecar(engine, host=host) as sidecar:
        assert sidecar.page_url.startswith("http://localhost:")
        assert requests.get(sidecar.page_url, timeout=10).status_code == 200
        port = sidecar.http_address.rpartition(":")[2]
        assert requests.get(f"http://127.0.0.1:{port}/", timeout=10).status_code == 200


# Changes


def test_a_plan_is_changed(sidecar: Sidecar) -> None:
    assert change(sidecar, "plan", customer=DEMO, plan="growth").status_code == 204
    assert change(sidecar, "plan", customer=DEMO, plan=None, resource="site-01").status_code == 204
    parts = customer(shown(sidecar))["parts"]
    assert [part["plan"] for part in parts] == ["growth", None]


def test_usage_is_set(sidecar: Sidecar) -> None:
    assert change(sidecar, "usage", customer=DEMO, feature="feature-templates", value=6).status_code == 204
    templates = entry(shown(sidecar), "feature-templates")
    assert (templates["used"], templates["access"], templates["reason"]) == (
        6,
        False,
        "REQUESTED_USAGE_EXCEEDING_LIMIT",
    )


def test_a_promotion_is_granted_until_it_ends_and_taken_back(sidecar: Sidecar) -> None:
    given = {"customer": DEMO, "feature": "feature-templates", "grant": {"limit": 9}}
    assert change(sidecar, "promotion", **given, until="2026-02-01T00:00:00Z").status_code == 204
    state = shown(sidecar)
    assert entry(state, "feature-templates")["limit"] == 9
    assert customer(state)["promotions"] == [{"feature": "feature-templates", "ends": "2026-02-01T00:00:00+00:00"}]
    assert change(sidecar, "clock", seconds=20 * 86400).status_code == 204
    state = shown(sidecar)
    assert (entry(state, "feature-templates")["limit"], customer(state)["promotions"]) == (6, [])
    assert (state["moved"], state["now"]) == (20 * 86400, "2026-02-04T12:00:00+00:00")
    assert change(sidecar, "promotion", customer=DEMO, feature="feature-analytics", grant=True).status_code == 204
    assert entry(shown(sidecar), "feature-analytics")["access"]
    assert change(sidecar, "promotion", customer=DEMO, feature="feature-analytics", grant=None).status_code == 204
    assert customer(shown(sidecar))["promotions"] == []


def test_the_clock_that_advances_ends_a_period(sidecar: Sidecar) -> None:
    assert change(sidecar, "clock", seconds=6 * 86400).status_code == 204
    assert entry(shown(sidecar), "feature-api-calls")["used"] == 0


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("plans", {}, "there is no change 'plans'; did you mean 'plan'?"),
        ("plan", {"customer": "nobody", "plan": "growth"}, "customer_id: there is no 'nobody'"),
        ("plan", {"customer": DEMO, "plan": 3}, "plan: must be a text, not 3"),
        ("plan", {"plan": "growth"}, "customer: must not be empty"),
        ("usage", {"customer": DEMO, "feature": "feature-templates", "value": "6"}, "value: must be a number, not '6'"),
        ("usage", {"customer": DEMO, "feature": "feature-templates", "value": -1}, "must not be negative"),
        ("usage", {"customer": DEMO, "feature": "feature-templates", "value": True}, "must be a number, not True"),
        ("promotion", {"customer": DEMO, "feature": "x", "grant": True}, "feature: there is no 'x'"),
        (
            "promotion",
            {"customer": DEMO, "feature": "feature-templates", "grant": {"limit": -1}},
            "grant: feature-templates.limit: must be a number, 0 or more, not -1",
        ),
        (
            "promotion",
            {"customer": DEMO, "feature": "feature-exports", "grant": True, "until": "soon"},
            "until: must be an instant",
        ),
        (
            "promotion",
            {"customer": "customer-demo-04", "feature": "feature-exports", "grant": True},
            "'customer-demo-04' has no subscription",
        ),
        ("clock", {"seconds": 0}, "seconds: must be more than 0"),
        ("clock", {"seconds": 1e12}, "seconds: must be"),
        ("clock", {"seconds": 1e300}, "seconds: must be"),
    ],
)
def test_a_wrong_change_is_refused_with_the_reason(
    sidecar: Sidecar, name: str, given: dict[str, Any], said: str
) -> None:
    answer = change(sidecar, name, **given)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]


def test_the_clock_goes_a_century_ahead_and_no_farther(sidecar: Sidecar) -> None:
    year = 366 * 86_400
    for _ in range(99):
        assert change(sidecar, "clock", seconds=year).status_code == 204
    answer = change(sidecar, "clock", seconds=year)
    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        "seconds: the clock is 36234 days ahead, and may be 36525; begin with a new state",
    )
    assert shown(sidecar)["moved"] == 99 * year


@pytest.mark.parametrize("seconds", ["NaN", "1e999", "-Infinity"])
def test_a_time_that_is_no_number_is_refused(sidecar: Sidecar, seconds: str) -> None:
    headers = {TOKEN_HEADER: token(sidecar), "Content-Type": "application/json"}
    body = f'{{"seconds": {seconds}}}'
    answer = requests.post(url(sidecar, "/changes/clock"), body, headers=headers, timeout=10)
    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        "seconds: must be more than 0 and at most 31622400",
    )


def test_a_change_that_fails_is_answered_and_logged(
    sidecar: Sidecar, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine._store, "transaction", None)
    assert change(sidecar, "clock", seconds=1).status_code == 500
    put = requests.put(url(sidecar, f"/customers/{DEMO}"), json={"plan": "growth"}, timeout=10)
    assert (put.status_code, put.json()["detail"]) == (500, "the sidecar's log says why")
    assert [record.message.partition(":")[0] for record in caplog.records] == ["a change failed"] * 2


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (401, {}),
        (401, {TOKEN_HEADER: "guess"}),
        (401, {TOKEN_HEADER: "schlüssel".encode().decode("latin-1")}),
        (403, {"Host": "attacker.example"}),
        (415, {"Content-Type": "text/plain"}),
    ],
)
def test_a_change_by_who_has_no_token_or_comes_from_elsewhere_is_refused(
    sidecar: Sidecar, status: int, headers: dict[str, str]
) -> None:
    answer = change(sidecar, "usage", headers, customer=DEMO, feature="feature-templates", value=6)
    assert answer.status_code == status
    assert entry(shown(sidecar), "feature-templates")["used"] == 3


def test_a_token_that_was_given_is_the_token(engine: Engine) -> None:
    with Sidecar(engine, token="my-token") as sidecar:
        assert sidecar.page_url == f"http://{sidecar.http_address}/#my-token"
        assert change(sidecar, "clock", {TOKEN_HEADER: "my-token"}, seconds=1).status_code == 204


def test_what_cannot_be_written_now_is_told(sidecar: Sidecar, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def refused() -> Iterator[Any]:
        raise StateUnavailable("Redis is away")
        yield

    monkeypatch.setattr(engine._store, "transaction", refused)
    put = requests.put(url(sidecar, f"/customers/{DEMO}"), json={"plan": "growth"}, timeout=10)
    assert (put.status_code, put.json()["detail"]) == (503, "Redis is away")
    assert change(sidecar, "clock", seconds=1).status_code == 503
    mutation = {"query": 'mutation { archiveCustomer(input: {customerId: "customer-demo-01"}) { id } }'}
    answer = requests.post(url(sidecar, "/graphql"), json=mutation, timeout=10).json()
    assert answer["errors"][0]["extensions"] == {"code": "SERVICE_UNAVAILABLE"}


def test_post_elsewhere_is_not_found(sidecar: Sidecar) -> None:
    assert requests.post(url(sidecar, "/elsewhere"), json={}, timeout=10).status_code == 404
