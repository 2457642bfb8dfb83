"""Guarded Django views that return no response: a decorator above the guard makes one of what they return."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import wraps
from http import HTTPStatus
from typing import Any, NamedTuple

import pytest
from asgiref.sync import iscoroutinefunction
from django.db import connection
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path

from stigg_guard import PER_DOWNLOAD
from stigg_guard.django import consumes_usage, get_guard, occupies, releases_usage
from stigg_guard.testing import StandIn, override_entitlements

View = Callable[..., Any]


class Status(NamedTuple):
    """As that of django-ninja: a status with a body."""

    status_code: int
    value: Any


def response_of(value: Any) -> Any:
    """As django-ninja makes it of what an operation returns."""
    status, body = value if isinstance(value, tuple) and len(value) == 2 else (200 if value is not None else 204, value)
    return HttpResponse(status=status) if body is None else JsonResponse(body, status=status, safe=False)


def as_json(view: View) -> View:
    @wraps(view)
    def made(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return response_of(view(request, *args, **kwargs))

    @wraps(view)
    async def awaited(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return response_of(await view(request, *args, **kwargs))

    return awaited if iscoroutinefunction(view) else made


def returning(value: Any) -> View:
    return lambda request: value


def returning_later(value: Any) -> View:
    async def view(request: HttpRequest) -> Any:
        return value

    return view


ONE = consumes_usage(1, "f")
SUCCESSES = [
    {"made": 1},
    {},
    [],
    "",
    0,
    404,
    "404",
    (201, {"made": 1}),
    (HTTPStatus.CREATED, {}),
    Status(202, {}),
    None,
]
FAILURES = [(409, {"why": "sold out"}), (HTTPStatus.NOT_FOUND, None), (503, 1), Status(409, {}), (304, None)]


@pytest.fixture(autouse=True)
def stigg(settings: Any) -> Iterator[StandIn]:
    settings.STIGG_GUARD = {"CUSTOMER": lambda request: "ann", "LEDGER": "memory://"}
    with override_entitlements({"f": {"limit": 10, "usage": 5}}) as stand_in:
        yield stand_in


def ask(settings: Any, view: View, *, awaited: bool = False, **headers: str) -> Any:
    settings.ROOT_URLCONF = (path("", view),)
    if awaited:
        return asyncio.run(AsyncClient(raise_request_exception=False).get("/", headers=headers))
    return Client(raise_request_exception=False).get("/", headers=headers)


def reported(stigg: StandIn) -> list[float]:
    """What was reported, when nothing is held any more."""
    assert get_guard().stats()["held"] == 0
    return [use.amount for use in stigg.reported]


@pytest.mark.parametrize("making", [returning, returning_later])
@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize(
    ("value", "counts"), [*((one, True) for one in SUCCESSES), *((one, False) for one in FAILURES)]
)
def test_a_value_is_a_success_unless_it_says_otherwise(
    settings: Any, stigg: StandIn, value: Any, counts: bool, awaited: bool, making: Callable[[Any], View]
) -> None:
    for guard in (ONE, releases_usage(1, "f"), occupies("f")):
        ask(settings, as_json(guard(making(value))), awaited=awaited)
    assert reported(stigg) == ([1, -1] if counts else [])


@pytest.mark.parametrize("value", [*SUCCESSES, *FAILURES], ids=repr)
def test_a_value_passes_as_it_is(value: Any) -> None:
    view = ONE(returning(value))
    assert view(RequestFactory().get("/")) is value


def test_a_value_with_a_key_counts_once(settings: Any, stigg: StandIn) -> None:
    for value in ({"made": 1}, None):
        key = repr(value)
        guard = consumes_usage(1, "f", key=lambda request: request.headers["Key"])
        told = [ask(settings, as_json(guard(returning(value))), Key=key).status_code for _ in range(2)]
        assert told == [response_of(value).status_code, 409]
    assert reported(stigg) == [1, 1]


@pytest.mark.parametrize("making", [returning, returning_later])
@pytest.mark.parametrize(("value", "amounts"), [({"made": 1}, [1]), (None, [1]), ((409, {}), [])])
def test_a_value_is_a_download(
    settings: Any, stigg: StandIn, value: Any, amounts: list[float], making: Callable[[Any], View]
) -> None:
    ask(settings, as_json(consumes_usage(1, "f", key=PER_DOWNLOAD)(making(value))))
    assert reported(stigg) == amounts


def test_actual_is_told_the_value(settings: Any, stigg: StandIn) -> None:
    ask(settings, as_json(consumes_usage(3, "f", actual=len)(returning([1, 2]))))
    assert reported(stigg) == [2]


def test_a_decorator_that_fails_does_not_undo_the_work(settings: Any, stigg: StandIn) -> None:
    assert ask(settings, as_json(ONE(returning({"of no JSON"})))).status_code == 500
    assert reported(stigg) == [1]


def to_sign_in(view: View) -> View:
    return lambda request: view(request) or HttpResponseRedirect("/accounts/login/")


def failing(view: View) -> View:
    return lambda request: view(request) or HttpResponse(status=500)


def raising(view: View) -> View:
    def fail(request: HttpRequest) -> Any:
        raise RuntimeError(view(request))

    return fail


# What is made of nothing


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("above", [lambda view: view, failing, raising, to_sign_in])
@pytest.mark.parametrize("guard", [ONE, releases_usage(1, "f")], ids=["consumes", "releases"])
def test_nothing_of_which_no_success_is_made_is_none(
    settings: Any, stigg: StandIn, above: Callable[[View], View], guard: Any, awaited: bool
) -> None:
    ask(settings, above(guard(returning(None))), awaited=awaited)
    assert reported(stigg) == []


def test_nothing_is_no_success_where_nobody_waits_for_the_response(settings: Any, stigg: StandIn) -> None:
    settings.MIDDLEWARE = []
    assert ask(settings, as_json(ONE(returning(None)))).status_code == 204
    assert reported(stigg) == []


def test_nothing_in_a_view_with_two_guards_is_judged_by_the_response(settings: Any, stigg: StandIn) -> None:
    told = {**settings.STIGG_GUARD, "RATE_LIMIT_HEADERS": True}
    settings.STIGG_GUARD = told
    response = ask(settings, as_json(consumes_usage(2, "f")(ONE(returning(None)))))
    assert (response.status_code, response["RateLimit"]) == (204, '"f";r=2')
    assert reported(stigg) == [1, 2]


@pytest.mark.parametrize(("above", "amounts"), [(as_json, [1]), (failing, []), (raising, [])])
@pytest.mark.django_db(transaction=True)
def test_nothing_in_a_transaction_is_judged_by_the_response(
    settings: Any, stigg: StandIn, above: Callable[[View], View], amounts: list[float]
) -> None:
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        ask(settings, above(ONE(returning(None))))
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False
    assert reported(stigg) == amounts


# Streams


def letters() -> Iterator[str]:
    yield "one "
    yield "two"


@pytest.mark.parametrize("parts", [letters, lambda: iter(["one ", "two"])], ids=["generator", "iterator"])
@pytest.mark.django_db(transaction=True)
def test_a_stream_counts_when_it_was_read_to_its_end(
    settings: Any, stigg: StandIn, parts: Callable[[], Iterator[str]]
) -> None:
    settings.ROOT_URLCONF = (path("", lambda request: StreamingHttpResponse(ONE(lambda _: parts())(request))),)
    response: Any = Client().get("/")
    assert reported_while_held(stigg) == []
    assert response.getvalue() == b"one two"
    assert reported(stigg) == [1]


@pytest.mark.parametrize("parts", [letters, lambda: iter(["one ", "two"])], ids=["generator", "iterator"])
def test_a_stream_that_is_left_does_not(stigg: StandIn, parts: Callable[[], Iterator[str]]) -> None:
    stream = ONE(lambda _: parts())(RequestFactory().get("/"))
    assert next(stream) == "one "
    stream.close()
    assert reported(stigg) == []


def reported_while_held(stigg: StandIn) -> list[float]:
    assert get_guard().stats()["held"] == 1
    return [use.amount for use in stigg.reported]
