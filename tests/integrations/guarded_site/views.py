"""The site's views. Each but ``plain`` consumes one template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import traffic
from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from stigg_guard.django import consumes_usage, get_guard, requires_feature


def customer(request: HttpRequest) -> str:
    return "ann"


@requires_feature("exports")
def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("exported")


@consumes_usage(1, "templates")
def create(request: HttpRequest) -> HttpResponse:
    return HttpResponse("created")


@consumes_usage(1, "templates")
async def acreate(request: HttpRequest) -> HttpResponse:
    return HttpResponse("created")


@consumes_usage(1, "templates")
def stream(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[str]:
        yield "cre"
        yield "ated"

    return StreamingHttpResponse(parts())


@consumes_usage(1, "templates")
async def astream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        yield "cre"
        yield "ated"

    return StreamingHttpResponse(parts())


def finished() -> None:
    """Notes that a view has done its work, in a file, even if the process is killed."""
    with open("finished", "ab", buffering=0) as file:
        file.write(b".")


@consumes_usage(1, "visits")
@consumes_usage(1, "pages")
async def visit(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(float(request.GET["seconds"]))
    finished()
    return HttpResponse("visited")


@consumes_usage(1, "visits")
@consumes_usage(1, "pages")
async def read(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        yield "once upon a time"
        await asyncio.sleep(float(request.GET["seconds"]))
        yield "the end"
        finished()

    return StreamingHttpResponse(parts())


async def state(request: HttpRequest) -> JsonResponse:
    """What goes on: requests under way beside this one, and holds."""
    held = await sync_to_async(get_guard().stats)()
    return JsonResponse({"requests": traffic.under_way - 1, "held": held["held"]})


urlpatterns = [path(view.__name__, view) for view in (plain, create, acreate, stream, astream, visit, read, state)]
