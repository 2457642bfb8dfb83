"""Guarded Django views that return no response: a decorator above the guard makes one of what they return."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from http import HTTPStatus
from io import BytesIO
from typing import Any, NamedTuple

import pytest
from asgiref.sync import iscoroutinefunction
from django import VERSION, views
from django.db.transaction import atomic
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path
from django.utils.decorators import method_decorator
from django.views.decorators.cache import cache_page
from django.views.decorators.csrf import csrf_exempt

from stigg_guard import PER_DOWNLOAD, ConfigError
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


# Nothing


def passed(view: View) -> View:
    @wraps(view)
    def call(request: HttpRequest) -> Any:
        return view(request)

    return call


class Handlers(views.View):
    """A class-based view whose handlers return nothing."""

    @ONE
    def get(self, request: HttpRequest) -> None:
        """Nothing."""

    @method_decorator(ONE)
    def post(self, request: HttpRequest) -> None:
        """Nothing."""


OF_DJANGO = [csrf_exempt, cache_page(60)]


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize(
    ("above", "making"),
    [
        *((above, returning) for above in (lambda view: view, ONE, *OF_DJANGO)),
        *((above, returning_later) for above in (lambda view: view, ONE, *(OF_DJANGO if VERSION >= (5, 0) else ()))),
    ],
)
def test_nothing_that_django_gets_is_an_error_and_no_success(
    settings: Any, stigg: StandIn, above: Callable[[View], View], making: Callable[[Any], View], awaited: bool
) -> None:
    assert ask(settings, above(ONE(making(None))), awaited=awaited).status_code == 500
    assert reported(stigg) == []


def test_nothing_of_a_handler_is_an_error_and_no_success(settings: Any, stigg: StandIn) -> None:
    settings.ROOT_URLCONF = (path("", Handlers.as_view()),)
    client = Client(raise_request_exception=False)
    assert [client.get("/").status_code, client.post("/").status_code] == [500, 500]
    assert reported(stigg) == []


def test_nothing_that_a_function_of_the_view_returns_counts_with_its_transaction(
    settings: Any, stigg: StandIn, transactional_db: None
) -> None:
    bill = ONE(returning(None))

    def view(request: HttpRequest) -> HttpResponse:
        with suppress(ZeroDivisionError), atomic():
            bill(request)
            raise ZeroDivisionError
        with atomic():
            bill(request)
        return HttpResponse()

    assert ask(settings, view).status_code == 200
    assert reported(stigg) == [1]


def test_nothing_that_a_function_returns_counts_while_the_response_is_sent(settings: Any, stigg: StandIn) -> None:
    def parts(request: HttpRequest) -> Iterator[bytes]:
        for part in (b"a", b"b"):
            ONE(returning(None))(request)
            yield part

    assert ask(settings, lambda request: StreamingHttpResponse(parts(request))).getvalue() == b"ab"
    assert reported(stigg) == [1, 1]


def test_what_is_held_while_a_function_runs_is_free_when_it_returned(settings: Any, stigg: StandIn) -> None:
    work = occupies("f", 5)(returning(None))
    assert ask(settings, lambda request: HttpResponse([work(request), work(request)])).status_code == 200


@pytest.mark.parametrize("value", [(404, 2, 1), ("rows", 404), (True, 404), (1000, {})])
def test_what_is_no_status_with_a_body_says_none(settings: Any, stigg: StandIn, value: Any) -> None:
    ask(settings, passed(ONE(returning(value))))
    assert reported(stigg) == [1]


def test_a_value_that_is_read_elsewhere_passes_as_it_is(stigg: StandIn) -> None:
    file = BytesIO(b"a\nb")
    assert ONE(returning(file))(RequestFactory().get("/")) is file
    assert reported(stigg) == [1]


def test_a_generator_of_an_awaited_view_counts_at_once(settings: Any, stigg: StandIn) -> None:
    async def view(request: HttpRequest) -> Any:
        return letters()

    def joined(view: View) -> View:
        @wraps(view)
        async def join(request: HttpRequest) -> HttpResponse:
            return HttpResponse("".join(await view(request)))

        return join

    assert ask(settings, joined(ONE(view)), awaited=True).content == b"one two"
    assert reported(stigg) == [1]


def test_an_async_generator_is_refused() -> None:
    async def parts(request: HttpRequest) -> Any:
        yield b"a"

    with pytest.raises(ConfigError, match="async generator"):
        ONE(parts)


# Streams


def letters() -> Iterator[str]:
    yield "one "
    yield "two"


@pytest.mark.django_db(transaction=True)
def test_a_stream_counts_when_it_was_read_to_its_end(settings: Any, stigg: StandIn) -> None:
    settings.ROOT_URLCONF = (path("", lambda request: StreamingHttpResponse(ONE(lambda _: letters())(request))),)
    response: Any = Client().get("/")
    assert reported_while_held(stigg) == []
    assert response.getvalue() == b"one two"
    assert reported(stigg) == [1]


def test_a_stream_that_is_left_does_not(stigg: StandIn) -> None:
    stream = ONE(lambda _: letters())(RequestFactory().get("/"))
    assert next(stream) == "one "
    stream.close()
    assert reported(stigg) == []


def reported_while_held(stigg: StandIn) -> list[float]:
    assert get_guard().stats()["held"] == 1
    return [use.amount for use in stigg.reported]
