"""The site's views. Each but ``plain`` consumes one template."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

from stigg_guard.django import consumes_usage, requires_feature


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


urlpatterns = [path(view.__name__, view) for view in (plain, create, acreate, stream, astream)]
