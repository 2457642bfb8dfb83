"""What is the same for the views of every framework, on a framework of three attributes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from stigg_guard import ConfigError, Customer, Guard, InvalidRequest
from stigg_guard.decorators import consumes_usage
from stigg_guard.web.views import ViewCalls, leads_to, private_unless_said, succeeded

CUSTOMER = "customer-demo-01"
TEMPLATES = "feature-templates"  # 3 of 6 are used


@dataclass
class Request:
    method: str = "POST"
    form: dict[str, str] = field(default_factory=dict)


class PlainCalls(ViewCalls):
    def request(self, request: Request, *_args: Any, **_kwargs: Any) -> Request:
        return request


MakeCalls = Callable[..., PlainCalls]


def nested(_request: Request) -> int:
    """Reads JSON that is nested without end."""
    return len(json.loads("[" * 100_000))


@pytest.fixture
def calls(guard: Guard) -> MakeCalls:
    return lambda **options: PlainCalls(lambda: guard, lambda *_, **__: CUSTOMER, **options)


def held(guard: Guard) -> float:
    return guard.stats()["held"]


@pytest.mark.parametrize(
    ("methods", "method", "guarded"),
    [
        ((), "GET", True),
        ((), "HEAD", True),
        ((), "OPTIONS", True),
        (["POST"], "OPTIONS", False),
        (("post",), "POST", True),
        (["POST"], "GET", False),
    ],
)
def test_methods_say_which_requests_are_guarded(
    calls: MakeCalls, guard: Guard, methods: Any, method: str, guarded: bool
) -> None:
    seen = consumes_usage(1, TEMPLATES, calls=calls(methods=methods))(lambda _request: held(guard))(Request(method))
    assert seen == guarded
    assert held(guard) == 0


@pytest.mark.parametrize("methods", ["POST", [7], 7])
def test_methods_are_a_list_of_names(calls: MakeCalls, methods: Any) -> None:
    with pytest.raises(ConfigError, match="methods"):
        calls(methods=methods)


@pytest.mark.parametrize(
    ("given", "amount"),
    [
        (2, 2),
        (lambda request: int(request.form["n"]), 3),
        (lambda _request, count: count, 5),
        (lambda _request, **arguments: len(arguments), 2),
        (lambda _request, other=7: other, 7),
    ],
)
def test_values_are_computed_from_the_request_and_the_views_arguments(
    calls: MakeCalls, given: Any, amount: float
) -> None:
    assert calls().computed(given)(Request(form={"n": "3"}), count=5, name="a") == amount


def test_callable_that_hides_its_signature_gets_the_request(calls: MakeCalls) -> None:
    assert calls().computed(type)(Request(), count=5) is Request


@pytest.mark.parametrize(
    "given",
    [
        lambda request: int(request.form["n"]),
        lambda _: int("many"),
        lambda _: len(None),
        lambda _: [].get("n"),
        nested,
    ],
)
def test_what_the_request_does_not_say_is_a_bad_request(
    calls: MakeCalls, guard: Guard, given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "stigg_guard")
    runs: list[object] = []
    view = consumes_usage(given, TEMPLATES, calls=calls())(runs.append)
    with pytest.raises(InvalidRequest, match="lacks what is to be computed") as told:
        view(Request())
    assert (told.value.field, runs, held(guard)) == ("value", [], 0)
    assert caplog.records[-1].exc_info is not None


def test_callable_that_does_not_take_the_request_is_refused(calls: MakeCalls) -> None:
    with pytest.raises(ConfigError, match="takes no argument: it is called with the request"):
        calls().computed(lambda: 1)


def test_callable_that_takes_what_the_view_lacks_is_an_error_of_the_site(calls: MakeCalls) -> None:
    with pytest.raises(ConfigError, match="takes count, which the view does not have"):
        calls().computed(lambda _request, count: count)(Request(), name="a")


def test_invalid_request_of_the_callable_is_kept(calls: MakeCalls) -> None:
    def refuse(_request: Request) -> int:
        raise InvalidRequest("value", "at most 10 at once")

    with pytest.raises(InvalidRequest, match="at most 10"):
        calls().computed(refuse)(Request())


@pytest.mark.parametrize("resource", ["site", lambda _request, site: f"site-0{site[-1]}"])
def test_resource_comes_from_the_views_arguments(calls: MakeCalls, resource: Any) -> None:
    assert calls(resource=resource).customer(Request(), site="site-01") == Customer(CUSTOMER, "site-01")


def test_customer_has_no_resource_unless_one_is_named(calls: MakeCalls) -> None:
    assert calls().customer(Request(), site="site-01") == CUSTOMER


def test_resource_that_the_view_lacks_is_an_error_of_the_site(calls: MakeCalls) -> None:
    with pytest.raises(ConfigError, match="no argument 'site'; it has name"):
        calls(resource="site").customer(Request(), name="a")


@pytest.mark.parametrize(
    ("status", "success"),
    [(101, False), (200, True), (204, True), (206, True), (302, True), (304, False), (400, False), (500, False)],
)
def test_success_is_what_delivers_something(status: int, success: bool) -> None:
    assert succeeded(status) is success


@pytest.mark.parametrize(
    ("location", "page", "leads"),
    [
        ("/login?next=%2Fshop", "/login", True),
        ("https://shop.example/login?next=%2F", "/login", True),
        ("https://sso.example/login", "https://sso.example/login?tenant=acme", True),
        ("https://shop.example/login", "https://sso.example/login", False),
        ("/login/help", "/login", False),
        ("/", "/login", False),
        ("https://[/login", "/login", False),
    ],
)
def test_redirect_leads_to_the_login_page_whatever_its_query(location: str, page: str, leads: bool) -> None:
    assert leads_to(location, page) is leads


@pytest.mark.parametrize(
    ("said", "kept"), [({}, "private"), ({"Cache-Control": "public, max-age=60"}, "public, max-age=60")]
)
def test_guarded_response_is_private_unless_the_view_says_otherwise(said: dict[str, str], kept: str) -> None:
    private_unless_said(said)
    assert said == {"Cache-Control": kept}
