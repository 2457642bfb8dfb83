"""The frameworks that the table of guard cases is run over: how views are written in them, and what a server does."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import flask
from asgiref.sync import sync_to_async
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.test import AsyncClient
from django.urls import include, path
from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder

from integrations.guard_cases import Answer, Case, Skin
from stigg_guard import Guard
from stigg_guard import django as in_django
from stigg_guard import flask as in_flask

T = TypeVar("T")

METHODS = ["GET", "POST", "OPTIONS"]


class Site(ABC):
    """A site with the case's view, which leaves a mark in ``runs`` at each run, and a server to ask it through."""

    guard: Guard

    def __init__(self, skin: Skin, case: Case) -> None:
        self._case = case
        self._skin = skin
        self.runs: list[str] = []

    def view(self, *_request: object, site: str, size: int) -> Any:
        self.runs.append(f"{site} {size}")
        return self._case.answers(self._skin)

    async def view_later(self, *request: object, site: str, size: int) -> Any:
        return self.view(*request, site=site, size=size)

    def guarded(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """A function that calls the view, under the case's guards."""
        for decorate in reversed(self._case.guards(self._skin)):
            view = decorate(view)
        return view

    def ask(self, **differently: Any) -> Answer:
        """What the case's client is answered, who may ask ``differently`` than it says."""
        return self.answer(replace(self._case, **differently))

    @abstractmethod
    def answer(self, case: Case) -> Answer:
        """What a server answers the client of a case."""

    def close(self) -> None:
        """Ends the guard."""
        self.guard.close()


def signed_in(request: Any) -> str | None:
    """The customer that the case says is signed in."""
    customer: str | None = request.headers.get("X-Signed-In")
    return customer


async def signed_in_later(request: Any) -> str | None:
    return signed_in(request)


class FlaskSkin:
    requires_feature = staticmethod(in_flask.requires_feature)
    consumes_usage = staticmethod(in_flask.consumes_usage)
    releases_usage = staticmethod(in_flask.releases_usage)
    occupies = staticmethod(in_flask.occupies)
    exempt = staticmethod(in_flask.exempt)

    def text(self, body: str = "made", status: int = 200) -> Any:
        return body, status

    def part(self, etag: str, parts: Iterator[str] | None = None) -> Any:
        return flask.Response("made" if parts is None else parts, 206, {"ETag": etag})

    def file(self, etag: str, file: BinaryIO) -> Any:
        return flask.Response(file, 206, {"ETag": etag})

    def redirect(self, to: str = "/elsewhere") -> Any:
        return flask.redirect(to)

    def stream(self, parts: Iterator[str], status: int = 200) -> Any:
        return flask.Response(flask.stream_with_context(parts), status)

    def abort(self, status: int) -> Any:
        flask.abort(status)

    def query(self, request: flask.Request) -> Mapping[str, str]:
        return request.args

    def json(self, request: flask.Request) -> Any:
        return request.get_json()

    def size(self, answer: tuple[str, int]) -> int:
        return len(answer[0])


class FlaskSite(Site):
    """A Flask app with the view in a blueprint."""

    def __init__(self, case: Case, settings: Mapping[str, Any], folder: Path) -> None:
        super().__init__(FlaskSkin(), case)
        self._app = flask.Flask("shop", instance_path=str(folder))
        self._app.config.update({f"STIGG_GUARD_{name}": value for name, value in settings.items()})
        in_flask.StiggGuard(self._app)
        shop = flask.Blueprint("shop", __name__)
        shop.add_url_rule("/shop/<site>/<int:size>", "view", self.guarded(self.function()), methods=METHODS)
        if case.group is not None:
            in_flask.protect(shop, case.group.feature, case.group.n, **case.group.options)
        self._app.register_blueprint(shop)
        self.guard = self._app.extensions["stigg_guard"].guard

    def function(self) -> Callable[..., Any]:
        return lambda **arguments: self.view(**arguments)

    def answer(self, case: Case) -> Answer:
        return served(self._app, case, self.guard)


class AsyncFlaskSite(FlaskSite):
    """As :class:`FlaskSite`, with an ``async def`` view."""

    def function(self) -> Callable[..., Any]:
        async def view(**arguments: Any) -> Any:
            return await self.view_later(**arguments)

        return view


class DjangoSkin:
    requires_feature = staticmethod(in_django.requires_feature)
    consumes_usage = staticmethod(in_django.consumes_usage)
    releases_usage = staticmethod(in_django.releases_usage)
    occupies = staticmethod(in_django.occupies)
    exempt = staticmethod(in_django.exempt)

    def text(self, body: str = "made", status: int = 200) -> Any:
        return HttpResponse(body, status=status)

    def part(self, etag: str, parts: Iterator[str] | None = None) -> Any:
        response = self.text(status=206) if parts is None else self.stream(parts, status=206)
        response["ETag"] = etag
        return response

    def file(self, etag: str, file: BinaryIO) -> Any:
        return FileResponse(file, status=206, headers={"ETag": etag})

    def redirect(self, to: str = "/elsewhere") -> Any:
        return HttpResponseRedirect(to)

    def stream(self, parts: Iterator[str], status: int = 200) -> Any:
        return StreamingHttpResponse(parts, status=status)

    def abort(self, status: int) -> Any:
        assert status == 404, "Django has no exception of its own for the others"
        raise Http404

    def query(self, request: HttpRequest) -> Mapping[str, Any]:
        return request.GET

    def json(self, request: HttpRequest) -> Any:
        return json.loads(request.body)

    def size(self, response: HttpResponse) -> int:
        return len(response.content)


class AsyncDjangoSkin(DjangoSkin):
    def stream(self, parts: Iterator[str], status: int = 200) -> Any:
        return StreamingHttpResponse(_later(parts), status=status)


async def _later(parts: Iterable[T]) -> AsyncIterator[T]:
    for part in parts:
        yield part


class DjangoSite(Site):
    """The tests' Django project, with the view in a group of URLs. ``project`` is its settings."""

    def __init__(self, case: Case, settings: Mapping[str, Any], project: Any) -> None:
        super().__init__(self.skin(), case)
        project.STIGG_GUARD = dict(settings)
        shop: Any = [path("shop/<str:site>/<int:size>", self.guarded(self.function()), name="shop.view")]
        if case.group is not None:
            shop = in_django.protect(shop, case.group.feature, case.group.n, **case.group.options)
        project.ROOT_URLCONF = (path("", include(shop) if case.group is None else shop),)
        self.guard = in_django.get_guard()

    def skin(self) -> Skin:
        return DjangoSkin()

    def function(self) -> Callable[..., Any]:
        return lambda *request, **arguments: self.view(*request, **arguments)

    def answer(self, case: Case) -> Answer:
        return served(WSGIHandler(), case, self.guard)


class AsyncDjangoSite(DjangoSite):
    """As :class:`DjangoSite`, with an ``async def`` view, which is awaited."""

    def skin(self) -> Skin:
        return AsyncDjangoSkin()

    def function(self) -> Callable[..., Any]:
        async def view(*request: object, **arguments: Any) -> Any:
            return await self.view_later(*request, **arguments)

        return view

    def answer(self, case: Case) -> Answer:
        return asyncio.run(awaited(case, self.guard))


def _headers(case: Case) -> dict[str, str]:
    return {**({"X-Signed-In": case.customer} if case.customer else {}), **case.headers}


def served(app: Callable[..., Any], case: Case, guard: Guard) -> Answer:
    """What a WSGI server gets for the case's client."""
    started: list[Any] = []
    environ = EnvironBuilder(
        case.address, "http://testserver", method=case.method, headers=_headers(case), json=case.json
    ).get_environ()
    body = app(environ, lambda status, headers, _error=None: started.extend((status, headers)))
    held = guard.stats()["held"]
    read: list[bytes] = []
    with closing(body), suppress(OSError):  # a server logs what a stream fails of
        read.extend(islice(body, case.reads))
    status, headers = started
    return Answer(int(status.split()[0]), Headers(headers), _sent(case, read), held)


async def awaited(case: Case, guard: Guard) -> Answer:
    """What Django's asynchronous handler answers the case's client, who leaves when it has read enough."""
    response = await AsyncClient(raise_request_exception=False).generic(
        case.method, case.address, json.dumps(case.json), "application/json", headers=_headers(case)
    )
    held = guard.stats()["held"]
    read: list[bytes] = []
    parts = aiter(response.streaming_content) if response.streaming else _later(response)
    with suppress(OSError):  # a server logs what a stream fails of
        while len(read) != case.reads and (part := await anext(parts, None)) is not None:
            read.append(part)
    await sync_to_async(response.close)()
    return Answer(response.status_code, response.headers, _sent(case, read), held)


def _sent(case: Case, read: list[bytes]) -> str:
    """What a server sends of what it has read."""
    return "" if case.method == "HEAD" else b"".join(read).decode()
