"""A site whose views are awaited, and how it is asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import AsyncClient
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from stigg_guard import Guard
from stigg_guard.django import consumes_usage, exempt, get_guard, releases_usage, requires_feature

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
