"""Views that are awaited: who gets in and what is counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Mapping
from typing import Any

import django
import pytest
from asgiref.sync import iscoroutinefunction
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, AsyncRequestFactory, Client
from django.utils.decorators import method_decorator
from django.views import View

from integrations.django_async.views import (
    DEMO,
    SIGNED_IN,
    TEMPLATES,
    DispatchedView,
    create,
    get,
    held,
    of_gateway_awaited,
    runs,
    used,
)
from stigg_guard import Guard
from stigg_guard.django import consumes_usage, get_guard
from stigg_guard.django.requests import RequestPlan

pytestmark = pytest.mark.urls("integrations.django_async.views")


def test_a_decorated_view_is_a_coroutine_function() -> None:
    assert iscoroutinefunction(create)
    assert create.__name__ == "create"


def test_a_success_is_counted_once_and_the_view_awaited_once(guard: Guard) -> None:
    response = get("/create")
    assert (response.status_code, response.body) == (201, b"created")
    assert runs == ["/create"]
    assert used(guard) == 4


def test_an_async_view_is_guarded_under_wsgi_too(guard: Guard) -> None:
    assert Client(headers=SIGNED_IN).get("/create").status_code == 201
    assert used(guard) == 4


@pytest.mark.parametrize("status", [304, 404, 500])
def test_a_response_of_failure_is_not_counted(guard: Guard, status: int) -> None:
    assert get(f"/create/{status}").status_code == status
    assert (used(guard), held()) == (3, 0)


@pytest.mark.parametrize(("headers", "status"), [(SIGNED_IN, 201), ({}, 401)])
def test_the_resolver_may_be_awaited(site: Any, headers: Mapping[str, str], status: int) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, "CUSTOMER": of_gateway_awaited}
    assert get("/create", headers).status_code == status
    assert Client(headers=headers).get("/create").status_code == status


def test_a_denial_is_answered_as_for_other_views() -> None:
    response = get("/analytics")
    assert (response.status_code, response["Content-Type"]) == (402, "application/problem+json")


def test_nobody_is_answered_401() -> None:
    assert get("/create", {}).status_code == 401
    assert runs == []


def test_a_bad_amount_is_answered_400(guard: Guard) -> None:
    assert get("/create-many?n=x").status_code == 400
    assert held() == 0


def test_what_was_really_used_is_reported(guard: Guard) -> None:
    assert get("/create-some").status_code == 200
    assert used(guard) == 5


def test_an_exception_gives_the_units_back(guard: Guard) -> None:
    assert get("/create-and-fail").status_code == 500
    assert (used(guard), held()) == (3, 0)


def test_units_are_given_back_after_success(guard: Guard) -> None:
    assert get("/remove").status_code == 200
    assert used(guard) == 2


def test_a_view_that_is_only_marked_as_awaited_is_awaited(guard: Guard) -> None:
    class AsyncView(View):
        async def get(self, request: HttpRequest) -> HttpResponse:
            return HttpResponse("made")

    guarded: Any = consumes_usage(1, TEMPLATES)(AsyncView.as_view())
    request = AsyncRequestFactory().get("/", headers=SIGNED_IN)
    assert asyncio.run(guarded(request)).content == b"made"
    assert used(guard) == 4


@pytest.mark.skipif(django.VERSION < (5, 2), reason="method_decorator takes async methods since Django 5.2")
def test_an_async_method_is_guarded_and_counted(guard: Guard) -> None:
    async def visit() -> int:
        return (await AsyncClient().post("/class", headers=SIGNED_IN)).status_code

    assert asyncio.run(visit()) == 201
    assert used(guard) == 4


@pytest.mark.parametrize(("url", "counted"), [("/dispatched", 4), ("/dispatched/404", 3)])
def test_a_dispatch_of_async_handlers_is_settled_when_they_have_run(guard: Guard, url: str, counted: int) -> None:
    get(url)
    assert runs == ["1 held"]
    assert (used(guard), held()) == (counted, 0)


def test_a_dispatch_of_async_handlers_is_counted_under_wsgi_too(guard: Guard) -> None:
    assert Client(headers=SIGNED_IN).get("/dispatched").status_code == 201
    assert used(guard) == 4


@pytest.mark.parametrize("url", ["/checked", "/dispatched"])
def test_a_dispatch_of_async_handlers_is_guarded_in_a_thread(site: Any, url: str) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, "CUSTOMER": of_gateway_awaited}
    assert get(url).status_code == (402 if url == "/checked" else 201)


def test_a_dispatch_that_is_not_guarded_is_awaited(guard: Guard) -> None:
    view: Any = method_decorator(consumes_usage(1, TEMPLATES, methods=["POST"]), name="dispatch")(
        type("Own", (View,), {"get": DispatchedView.get})
    ).as_view()
    assert asyncio.run(view(AsyncRequestFactory().get("/", headers=SIGNED_IN))).status_code == 201
    assert used(guard) == 3


@pytest.mark.parametrize(("status", "counted"), [(201, 4), (404, 3)])
def test_what_a_plain_function_returns_is_settled_when_it_was_awaited(guard: Guard, status: int, counted: int) -> None:
    async def answered() -> HttpResponse:
        runs.append(f"{held()} held")
        return HttpResponse(status=status)

    @consumes_usage(1, TEMPLATES)
    def view(request: HttpRequest) -> Awaitable[HttpResponse]:
        return answered()

    async def awaited() -> HttpResponse:
        return await view(AsyncRequestFactory().get("/", headers=SIGNED_IN))

    assert asyncio.run(awaited()).status_code == status
    assert runs == ["1 held"]
    assert (used(guard), held()) == (counted, 0)


@pytest.mark.parametrize("url", ["/stream", "/stream-from-sync-view"])
def test_a_stream_is_counted_when_it_ends_and_held_until_then(guard: Guard, url: str) -> None:
    async def visit() -> None:
        response: Any = await AsyncClient().get(url, headers=SIGNED_IN)
        stream = aiter(response)
        assert (await anext(stream), used(guard), held()) == (b"one ", 3, 1)
        assert [part async for part in stream] == [b"two"]

    asyncio.run(visit())
    assert (used(guard), held()) == (5, 0)


@pytest.mark.django_db  # a response that is closed ends its request, and Django looks after its connections
def test_a_stream_that_the_client_leaves_is_given_back(guard: Guard) -> None:
    async def visit() -> None:
        response: Any = await AsyncClient().get("/stream", headers=SIGNED_IN)
        await anext(aiter(response))
        response.close()

    asyncio.run(visit())
    assert (used(guard), held()) == (3, 0)


def test_a_stream_that_fails_is_given_back(guard: Guard) -> None:
    with pytest.raises(OSError, match="out of paper"):
        get("/stream?fail")
    assert (used(guard), held()) == (3, 0)


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume asynchronous iterators")
def test_an_async_stream_under_wsgi_is_counted(guard: Guard) -> None:
    response: Any = Client(headers=SIGNED_IN).get("/stream")
    assert b"".join(response) == b"one two"
    assert (used(guard), held()) == (5, 0)


def test_a_page_is_counted_when_it_is_rendered(guard: Guard) -> None:
    assert get("/page").body == b"made"
    assert used(guard) == 4


def test_a_page_that_cannot_be_rendered_is_given_back(guard: Guard) -> None:
    assert get("/page?fail").status_code == 500
    assert (used(guard), held()) == (3, 0)


def test_the_plan_is_awaited() -> None:
    known = get("/plan").json()
    assert (known["has"], known["usage"]) == ([True, False], 3)
    assert TEMPLATES in known["all"]


def test_nobody_has_an_empty_plan() -> None:
    assert get("/plan", {}).json() == {"has": [False, False], "usage": None, "all": []}


def test_a_template_of_an_async_view_finds_the_customer_by_an_async_resolver(site: Any) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, "CUSTOMER": of_gateway_awaited}
    assert get("/shown-plan").body == b"3 of 6 templates"


def test_a_template_of_an_async_view_may_ask_the_database(site: Any, django_sqlite: str) -> None:
    asked: list[Any] = []

    def of_database(request: HttpRequest) -> str:
        with connections[django_sqlite].cursor() as cursor:
            cursor.execute("SELECT %s", [DEMO])
            asked.append(connections[django_sqlite])
            return str(cursor.fetchone()[0])

    ledger = {"LEDGER": f"django://{django_sqlite}", "DATABASE": django_sqlite}
    site.STIGG_GUARD = {**site.STIGG_GUARD, **ledger, "CUSTOMER": of_database}
    assert get("/shown-plan").body == b"3 of 6 templates"
    assert [connection.connection for connection in asked] == [None]


def test_a_project_that_allows_it_asks_in_the_event_loop(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def asks(request: HttpRequest) -> str:
        threads.append(threading.current_thread())
        return DEMO

    async def visit() -> str:
        return RequestPlan(get_guard(), lambda: asks(HttpRequest())).usage(TEMPLATES)

    threads: list[threading.Thread] = []
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    assert asyncio.run(visit()) == "3 of 6 templates"
    assert threads == [threading.current_thread()]


def test_a_rule_holds_and_counts(guard: Guard) -> None:
    response = get("/ruled/create")
    assert (response.status_code, response["RateLimit"]) == (200, f'"{TEMPLATES}";r=2')
    assert used(guard) == 4


def test_a_rule_counts_a_stream_when_it_ends(guard: Guard) -> None:
    assert get("/ruled/stream").body == b"one two"
    assert (used(guard), held()) == (4, 0)


def test_a_rule_denies() -> None:
    assert get("/ruled/analytics").status_code == 402
    assert get("/ruled/create", {}).status_code == 401


def test_a_bad_id_is_a_fault_of_the_site(site: Any) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, "CUSTOMER": lambda _: ""}
    assert get("/ruled/create").status_code == 500


def test_a_rule_leaves_exempt_views_alone(guard: Guard) -> None:
    assert get("/ruled/exempt", {}).status_code == 200


def test_what_no_rule_guards_waits_for_no_thread(site: Any) -> None:
    site.MIDDLEWARE = ["stigg_guard.django.middleware.StiggGuardMiddleware"]
    hops: list[object] = []

    async def visit() -> None:
        loop = asyncio.get_running_loop()
        loop.run_in_executor = lambda *work: hops.append(work)
        handler = ASGIHandler()
        request = AsyncRequestFactory().get("/ping")
        assert (await handler.get_response_async(request)).status_code == 200

    asyncio.run(visit())
    assert hops == []
