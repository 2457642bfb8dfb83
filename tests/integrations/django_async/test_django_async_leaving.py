"""Views that are awaited: nothing stays held when a client goes away."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import django
import pytest
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncRequestFactory
from django.urls import path
from django.utils.decorators import async_only_middleware, method_decorator
from django.views import View

from integrations.django_async.views import (
    DEMO,
    SIGNED_IN,
    TEMPLATES,
    analytics,
    create_some,
    held,
    parts,
    ping,
    runs,
    used,
)
from stigg_guard import Guard
from stigg_guard.django import consumes_usage, requires_feature
from stigg_guard.django.asynchronous import ASYNC_CALLS

pytestmark = pytest.mark.urls("integrations.django_async.views")


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
        tasks.extend([busy, asyncio.ensure_future(ASYNC_CALLS.settled(lambda: ended.append("ended")))])
        await asyncio.sleep(0)  # two turns of the loop, so that both tasks have begun to wait
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
