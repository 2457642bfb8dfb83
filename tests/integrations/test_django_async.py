"""Views that are awaited: who gets in, what is counted, and that nothing stays held when a client goes away."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import anyio
import django
import pytest
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import AsyncClient, AsyncRequestFactory, Client
from django.urls import path
from django.utils.decorators import async_only_middleware, method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from stigg_guard import Guard
from stigg_guard.django import consumes_usage, exempt, get_guard, releases_usage, requires_feature
from stigg_guard.django.asynchronous import settled
from stigg_guard.django.requests import RequestPlan
from stigg_guard.sidecar.server import Sidecar

TEMPLATES = "feature-templates"
DEMO = "customer-demo-01"  # essentials: 3 of 6 templates used, no analytics


def of_gateway(request: HttpRequest) -> str | None:
    """The customer that a gateway in front of the site has authenticated."""
    return request.headers.get("X-Customer")


async def of_gateway_awaited(request: HttpRequest) -> str | None:
    return of_gateway(request)


runs: list[str] = []


@requires_feature(TEMPLATES)
@consumes_usage(1)
async def create(request: HttpRequest, status: int = 201) -> HttpResponse:
    runs.append(request.path)
    return HttpResponse("created", status=status)


@requires_feature("feature-analytics")
async def analytics(request: HttpRequest) -> HttpResponse:
    raise AssertionError("the view must not run")


@consumes_usage(lambda request: request.GET["n"], TEMPLATES)
async def create_many(request: HttpRequest) -> HttpResponse:
    raise AssertionError("the view must not run")


@consumes_usage(3, TEMPLATES, actual=lambda response: int(response["X-Made"]))
async def create_some(request: HttpRequest) -> HttpResponse:
    runs.append(request.path)
    return HttpResponse(headers={"X-Made": "2"})


@consumes_usage(2, TEMPLATES)
async def create_and_fail(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("out of paper")


@releases_usage(1, TEMPLATES)
async def remove(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@consumes_usage(2, TEMPLATES)
async def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(parts(fail="fail" in request.GET))


@consumes_usage(2, TEMPLATES)
def stream_from_sync_view(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(parts(fail=False))


async def parts(*, fail: bool) -> AsyncIterator[bytes]:
    yield b"one "
    if fail:
        raise OSError("out of paper")
    yield b"two"


@consumes_usage(1, TEMPLATES)
async def page(request: HttpRequest) -> TemplateResponse:
    return TemplateResponse(request, engines["django"].from_string("{{ made }}"), {"made": made_or_not(request)})


def made_or_not(request: HttpRequest) -> Callable[[], str]:
    def made() -> str:
        if "fail" in request.GET:
            raise OSError("out of ink")
        return "made"

    return made


async def plan(request: Any) -> JsonResponse:
    entitlement = await request.stigg.aentitlement(TEMPLATES)
    return JsonResponse(
        {
            "has": [await request.stigg.ahas(TEMPLATES), await request.stigg.ahas("feature-analytics")],
            "usage": entitlement and entitlement.current_usage,
            "all": sorted(await request.stigg.aall()),
        }
    )


async def ping(request: HttpRequest) -> HttpResponse:
    return HttpResponse(threading.current_thread().name)


class CreateView(View):
    @method_decorator([requires_feature(TEMPLATES), consumes_usage(1)])
    async def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("created", status=201)


@method_decorator(consumes_usage(1, TEMPLATES), name="dispatch")
@method_decorator([csrf_exempt], name="dispatch")
class DispatchedView(View):
    async def get(self, request: HttpRequest, status: int = 201) -> HttpResponse:
        runs.append(f"{held()} held")
        return HttpResponse("created", status=status)


@method_decorator(requires_feature("feature-analytics"), name="dispatch")
class CheckedView(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        raise AssertionError("the handler must not run")


async def shown_plan(request: HttpRequest) -> HttpResponse:
    source = '{% load stigg_guard %}{% usage "feature-templates" %}{% feature "feature-analytics" %}!{% endfeature %}'
    return HttpResponse(engines["django"].from_string(source).render({}, request))


urlpatterns = [
    path("dispatched", DispatchedView.as_view()),
    path("dispatched/<int:status>", DispatchedView.as_view()),
    path("checked", CheckedView.as_view()),
    path("shown-plan", shown_plan),
    path("create", create),
    path("create/<int:status>", create),
    path("analytics", analytics),
    path("create-many", create_many),
    path("create-some", create_some),
    path("create-and-fail", create_and_fail),
    path("remove", remove),
    path("stream", stream),
    path("stream-from-sync-view", stream_from_sync_view),
    path("page", page),
    path("plan", plan),
    path("ping", ping),
    path("class", CreateView.as_view()),
    path("ruled/create", ping),
    path("ruled/stream", lambda request: StreamingHttpResponse(parts(fail=False))),
    path("ruled/exempt", exempt(ping)),
    path("ruled/analytics", ping),
]

pytestmark = pytest.mark.urls(__name__)


@pytest.fixture(autouse=True)
def site(sidecar: Sidecar, settings: Any) -> Any:
    """The settings of a site that asks the sidecar."""
    rules = [
        {"path": "/ruled/analytics", "feature": "feature-analytics"},
        {"path": "/ruled/", "feature": TEMPLATES, "consume": 1},
    ]
    settings.STIGG_GUARD = {
        **settings.STIGG_GUARD,
        "SIDECAR": sidecar.address,
        "CUSTOMER": of_gateway,
        "RULES": rules,
        "RATE_LIMIT_HEADERS": True,
    }
    runs.clear()
    return settings


SIGNED_IN = {"X-Customer": DEMO}


def get(url: str, headers: Mapping[str, str] = SIGNED_IN) -> Any:
    """The response, with its stream read."""

    async def visit() -> Any:
        response: Any = await AsyncClient(raise_request_exception=False).get(url, headers=headers)
        response.body = b"".join([part async for part in response]) if response.streaming else response.content
        return response

    return asyncio.run(visit())


def used(guard: Guard) -> float:
    """What the sidecar has counted, asked by a guard of its own."""
    guard.reload(DEMO)
    return guard.check(TEMPLATES, customer=DEMO).current_usage


def held() -> int:
    return get_guard().stats()["held"]


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


class Visit:
    """A call of a view that can be stopped where it waits in a thread."""

    def __init__(self) -> None:
        self.waits, self.goes_on = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.waits.set()
        assert self.goes_on.wait(30)

    def cancel(self, view: Callable[[HttpRequest], Awaitable[HttpResponse]], times: int = 1) -> None:
        """Cancels the call while it waits."""

        async def visit() -> None:
            request = AsyncRequestFactory().get("/", headers=SIGNED_IN)
            task = asyncio.ensure_future(view(request))
            assert await asyncio.to_thread(self.waits.wait, 30)
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)  # one turn of the loop, so that the task learns of it
            self.goes_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(visit())


awaiting = Visit()
"""What middleware waits by."""


@pytest.fixture
def visit() -> Iterator[Visit]:
    made = Visit()
    yield made
    made.goes_on.set()


@pytest.mark.parametrize("times", [1, 2])
def test_a_client_that_leaves_while_the_hold_is_taken_leaves_nothing_held(
    site: Any, guard: Guard, visit: Visit, times: int
) -> None:
    def slow(request: HttpRequest) -> str:
        visit.wait()
        return DEMO

    site.STIGG_GUARD = {**site.STIGG_GUARD, "CUSTOMER": slow}
    visit.cancel(create_some, times)
    assert runs == []
    assert (used(guard), held()) == (3, 0)


def test_a_client_that_leaves_before_a_check_is_answered_is_not_served(site: Any, visit: Visit) -> None:
    def slow(request: HttpRequest) -> str:
        visit.wait()
        return DEMO

    site.STIGG_GUARD = {**site.STIGG_GUARD, "CUSTOMER": slow}
    visit.cancel(requires_feature("feature-custom-domain")(analytics.__wrapped__))


def test_a_client_that_leaves_during_the_view_leaves_nothing_held(guard: Guard, visit: Visit) -> None:
    @consumes_usage(1, TEMPLATES)
    async def never(request: HttpRequest) -> HttpResponse:
        visit.waits.set()
        await asyncio.Event().wait()
        raise AssertionError("nothing wakes it")

    visit.cancel(never)
    assert (used(guard), held()) == (3, 0)


def test_a_client_that_leaves_during_a_dispatched_handler_leaves_nothing_held(guard: Guard, visit: Visit) -> None:
    class Waiting(View):
        async def get(self, request: HttpRequest) -> HttpResponse:
            visit.waits.set()
            await asyncio.Event().wait()
            raise AssertionError("nothing wakes it")

    dispatched: Any = method_decorator(consumes_usage(1, TEMPLATES), name="dispatch")(Waiting)
    visit.cancel(dispatched.as_view())
    assert (used(guard), held()) == (3, 0)


def test_work_that_is_done_is_counted_once_although_the_client_leaves(guard: Guard, visit: Visit) -> None:
    def actual(response: HttpResponse) -> int:
        visit.wait()
        return 2

    @consumes_usage(1, TEMPLATES, actual=actual)
    async def done(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    visit.cancel(done)
    assert (used(guard), held()) == (5, 0)


API_CALLS = "feature-api-calls"


@pytest.mark.parametrize("kind", ["view", "stream"])
def test_all_guards_of_a_view_count_although_the_client_leaves_while_the_inner_one_settles(
    guard: Guard, visit: Visit, kind: str
) -> None:
    @consumes_usage(1, API_CALLS, actual=lambda response: int(response["X-Made"]))
    @requires_feature(TEMPLATES)
    @consumes_usage(1, TEMPLATES, actual=lambda _: visit.wait() or 2)
    async def done(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
        headers = {"X-Made": "3"}
        return (
            HttpResponse(headers=headers)
            if kind == "view"
            else StreamingHttpResponse(parts(fail=False), headers=headers)
        )

    async def whole(request: HttpRequest) -> Any:
        response: Any = await done(request)
        return [part async for part in response] if response.streaming else response

    before = calls_of(guard)
    visit.cancel(whole)
    assert held() == 0
    assert (used(guard), calls_of(guard) - before) == (5, 3)


def calls_of(guard: Guard) -> float:
    guard.reload(DEMO)
    return guard.check(API_CALLS, customer=DEMO).current_usage


@pytest.mark.parametrize("kind", ["view", "stream"])
def test_no_guard_of_a_view_counts_when_the_client_leaves_during_it(guard: Guard, visit: Visit, kind: str) -> None:
    @consumes_usage(1, API_CALLS)
    @consumes_usage(1, TEMPLATES)
    async def never(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
        return StreamingHttpResponse(endless()) if kind == "stream" else await wait()

    async def endless() -> AsyncIterator[bytes]:
        yield b"one "
        await wait()

    async def wait() -> HttpResponse:
        visit.waits.set()
        await asyncio.Event().wait()
        raise AssertionError("nothing wakes it")

    async def whole(request: HttpRequest) -> Any:
        response: Any = await never(request)
        return [part async for part in response]

    before = calls_of(guard)
    visit.cancel(whole)
    assert (used(guard), calls_of(guard), held()) == (3, before, 0)


def slow_resolver(visit: Visit) -> Callable[[HttpRequest], str]:
    def slow(request: HttpRequest) -> str:
        visit.wait()
        return DEMO

    return slow


def view_that_waits(visit: Visit, where: str, site: Any) -> Callable[[HttpRequest], Awaitable[HttpResponse]]:
    """A guarded view that waits in a thread until the visit goes on."""
    if where == "begin":
        site.STIGG_GUARD = {**site.STIGG_GUARD, "CUSTOMER": slow_resolver(visit)}
        return create_some
    return consumes_usage(1, TEMPLATES, actual=lambda _: visit.wait() or 1)(ping)


at_each_end = pytest.mark.parametrize(("where", "counted"), [("begin", 3), ("end", 4)])


@at_each_end
def test_a_cancellation_is_the_callers_own_and_comes_at_once(
    site: Any, guard: Guard, visit: Visit, where: str, counted: int
) -> None:
    async def ask() -> None:
        try:
            await view(AsyncRequestFactory().get("/", headers=SIGNED_IN))
        except asyncio.CancelledError as error:
            told.append(error.args)
            raise

    async def cancelled() -> None:
        task = asyncio.ensure_future(ask())
        assert await asyncio.to_thread(visit.waits.wait, 30)
        task.cancel("because")
        with pytest.raises(asyncio.CancelledError):
            await task  # the thread waits still
        visit.goes_on.set()

    told: list[Any] = []
    view = view_that_waits(visit, where, site)
    asyncio.run(cancelled())
    assert told == [("because",)]
    assert (used(guard), held()) == (counted, 0)


@at_each_end
def test_a_time_limit_and_a_group_of_tasks_end_as_over_a_view_without_guards(
    site: Any, guard: Guard, visit: Visit, where: str, counted: int
) -> None:
    async def limited() -> None:
        request = AsyncRequestFactory().get("/", headers=SIGNED_IN)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(view, request)
                assert await anyio.to_thread.run_sync(visit.waits.wait, 30)
                scope.cancel()
        assert scope.cancelled_caught
        visit.waits.clear()
        with anyio.move_on_after(0) as at_once:
            await view(AsyncRequestFactory().get("/", headers=SIGNED_IN))
        assert at_once.cancelled_caught
        visit.goes_on.set()

    view = view_that_waits(visit, where, site)
    asyncio.run(limited())
    assert (used(guard), held()) == (counted, 0)


def test_what_a_closing_event_loop_drops_is_ended_all_the_same(visit: Visit, caplog: pytest.LogCaptureFixture) -> None:
    """The one thread of the loop is busy, so that the settlement waits for it when the loop closes."""

    async def closing() -> None:
        busy = asyncio.ensure_future(sync_to_async(visit.wait)())
        assert await asyncio.to_thread(visit.waits.wait, 30)
        tasks.extend([busy, asyncio.ensure_future(settled(lambda: ended.append("ended")))])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        threading.Thread(target=visit.goes_on.set).start()

    ended: list[str] = []
    tasks: list[Any] = []
    asyncio.run(closing())
    assert ended == ["ended"]
    assert caplog.messages == []


notices_disconnects = pytest.mark.skipif(django.VERSION < (5, 0), reason="Django notices disconnects since 5.0")


def ask_and_leave(url: str, leaves: Callable[[dict[str, Any] | None], Awaitable[object]]) -> None:
    """A whole request, whose client leaves once ``leaves`` is done: it is told of what is sent, and asked with None.

    What became of no use then is dropped in the event loop.
    """

    async def receive() -> dict[str, Any]:
        if not received:
            received.append("request")
            return {"type": "http.request", "body": b""}
        await leaves(None)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        await leaves(message)

    received: list[str] = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": url,
        "query_string": b"",
        "headers": [(b"x-customer", DEMO.encode()), (b"host", b"testserver")],
    }

    async def visit() -> None:
        await ASGIHandler()(scope, receive, send)
        gc.collect()

    asyncio.run(visit())


def leave_in(visit: Visit) -> Callable[[dict[str, Any] | None], Awaitable[object]]:
    """A client that leaves while the visit waits."""

    async def leaves(sent: dict[str, Any] | None) -> None:
        assert sent is not None or await asyncio.to_thread(visit.waits.wait, 30)

    return leaves


@notices_disconnects
@pytest.mark.parametrize("url", ["/create", "/stream-that-waits"])
def test_a_disconnect_in_a_whole_request_leaves_nothing_held(site: Any, guard: Guard, visit: Visit, url: str) -> None:
    @consumes_usage(1, TEMPLATES)
    async def create(request: HttpRequest) -> HttpResponse:
        await wait()
        raise AssertionError("nothing wakes it")

    @consumes_usage(1, TEMPLATES)
    async def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(waiting())

    async def wait() -> None:
        assert held() == 1
        visit.waits.set()
        await asyncio.Event().wait()

    async def waiting() -> AsyncIterator[bytes]:
        await wait()
        yield b"never"

    site.ROOT_URLCONF = (path("create", create), path("stream-that-waits", stream))
    ask_and_leave(url, leave_in(visit))
    assert (used(guard), held()) == (3, 0)


@notices_disconnects
def test_a_disconnect_is_noticed_while_a_stream_waits_for_nothing(site: Any, guard: Guard) -> None:
    @consumes_usage(1, TEMPLATES)
    async def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(many())

    async def many() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"part "

    site.ROOT_URLCONF = (path("stream", stream),)
    received_a_part = asyncio.Event()

    async def leaves(sent: dict[str, Any] | None) -> None:
        if sent is None:
            await received_a_part.wait()
        elif sent["type"] == "http.response.body":
            received_a_part.set()

    ask_and_leave("/stream", leaves)
    assert (used(guard), held()) == (3, 0)


@async_only_middleware
def wait_with_what_was_answered(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> HttpResponse:
        response: HttpResponse = await get_response(request)
        awaiting.waits.set()
        await asyncio.Event().wait()
        return response

    return middleware


@async_only_middleware
def go_on_when_cancelled(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> HttpResponse:
        try:
            response: HttpResponse = await get_response(request)
        finally:
            awaiting.goes_on.set()
        return response

    return middleware


@pytest.fixture
def ledger_in_database(site: Any, django_sqlite: str) -> Iterator[None]:
    """Usage is kept in a database."""
    before = site.STIGG_GUARD
    site.STIGG_GUARD = {**before, "LEDGER": f"django://{django_sqlite}", "DATABASE": django_sqlite}
    yield
    site.STIGG_GUARD = before


@notices_disconnects
@pytest.mark.parametrize("url", ["/stream", "/stream-from-sync-view", "/ruled/stream"])
def test_a_stream_that_is_dropped_before_it_is_sent_leaves_nothing_held(
    site: Any, ledger_in_database: None, guard: Guard, url: str
) -> None:
    site.MIDDLEWARE = [f"{__name__}.wait_with_what_was_answered", *site.MIDDLEWARE]
    awaiting.waits.clear()
    ask_and_leave(url, leave_in(awaiting))
    import gc

    gc.collect()
    assert (used(guard), held()) == (3, 0)


@notices_disconnects
@pytest.mark.parametrize("guarding", ["decorator", "rule"])
def test_a_sync_view_that_the_client_leaves_is_counted_since_it_goes_on(site: Any, guard: Guard, guarding: str) -> None:
    def create(request: HttpRequest) -> HttpResponse:
        awaiting.wait()
        return HttpResponse("created")

    site.ROOT_URLCONF = (path("create", consumes_usage(1, TEMPLATES)(create)), path("ruled/create", create))
    site.MIDDLEWARE = [f"{__name__}.go_on_when_cancelled", *site.MIDDLEWARE]
    awaiting.waits.clear()
    awaiting.goes_on.clear()
    ask_and_leave("/create" if guarding == "decorator" else "/ruled/create", leave_in(awaiting))
    assert (used(guard), held()) == (4, 0)
