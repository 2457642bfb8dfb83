"""Views under our decorators, beside the same views bare: called as the framework's router calls them, and as whole
requests through the framework's WSGI application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from tempfile import TemporaryDirectory
from timeit import Timer
from typing import Any, TypeAlias

from benchmarks.measure import Comparison, adds_at_most, ratio_at_most
from benchmarks.project import set_up_django
from benchmarks.servers import local_sidecar

Settings: TypeAlias = "dict[str, Any]"

CUSTOMER = "customer-demo-02"
FEATURE = "feature-custom-domain"
METER = "feature-api-calls"


def in_django() -> Iterator[Comparison]:
    """Each call has a request of its own, so that what is kept on a request does not flatter us."""
    set_up_django()
    from django.http import HttpRequest, HttpResponse
    from django.test import override_settings
    from django.urls import path

    from stigg_guard.django import consumes_usage, get_guard, requires_feature

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("ok")

    requiring = requires_feature(FEATURE)(view)
    consuming = consumes_usage(1, METER)(view)
    names = {"Request": HttpRequest, "view": view, "requiring": requiring, "consuming": consuming}

    def consumption(ledger: str) -> Comparison:
        nothing_unsent = get_guard().flush
        return Comparison(
            name=f"Django view, consumes_usage, {ledger} / bare view",
            aim=adds_at_most(60) if ledger == "memory://" else None,
            ours=Timer("consuming(Request())", nothing_unsent, globals=names),
            floor=Timer("view(Request())", nothing_unsent, globals=names),
        )

    with ledger_settings() as (in_memory, in_file):
        with override_settings(STIGG_GUARD=in_memory):
            yield Comparison(
                name="Django view, requires_feature / bare view",
                ours=Timer("requiring(Request())", globals=names),
                floor=Timer("view(Request())", globals=names),
                aim=adds_at_most(3),
            )
            yield consumption("memory://")
            with override_settings(ROOT_URLCONF=(path("bare", view), path("guarded", requiring))):
                yield _django_requests()
        with override_settings(STIGG_GUARD=in_file):
            yield consumption("sqlite://")


def _django_requests() -> Comparison:
    """What the middleware and a decorator add to a request of a site that has no other middleware."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.test import override_settings

    with override_settings(MIDDLEWARE=["stigg_guard.django.middleware.StiggGuardMiddleware"]):
        guarded = WSGIHandler()
    with override_settings(MIDDLEWARE=[]):
        bare = WSGIHandler()
    return _requests("Django request, middleware and requires_feature / bare", guarded, bare)


def _requests(name: str, guarded: Any, bare: Any) -> Comparison:
    ours, floor = request_of(guarded, "/guarded"), request_of(bare, "/bare")
    return Comparison(name=name, ours=Timer(ours), floor=Timer(floor), aim=ratio_at_most(1.1))


def request_of(app: Any, path: str) -> Callable[[], None]:
    """A request through a WSGI application, whose body is read."""
    from werkzeug.test import EnvironBuilder

    environ = EnvironBuilder(path).get_environ()

    def request() -> None:
        body = app(dict(environ), lambda _status, _headers, _error=None: None)
        b"".join(body)
        body.close()

    return request


def in_flask() -> Iterator[Comparison]:
    """All calls are in one request's context, which neither side pays for."""
    from flask import Flask, Response

    from stigg_guard.flask import StiggGuard, consumes_usage, requires_feature

    guard = StiggGuard()

    def view() -> Response:
        return Response("ok")

    requiring = requires_feature(FEATURE)(view)
    consuming = consumes_usage(1, METER)(view)
    names = {"view": view, "requiring": requiring, "consuming": consuming}

    def app(settings: Settings) -> Flask:
        made = Flask(__name__)
        made.config.from_mapping({f"STIGG_GUARD_{key}": value for key, value in settings.items()})
        guard.init_app(made)
        return made

    def consumption(ledger: str) -> Comparison:
        nothing_unsent = guard.guard.flush
        return Comparison(
            name=f"Flask view, consumes_usage, {ledger} / bare view",
            aim=adds_at_most(60) if ledger == "memory://" else None,
            ours=Timer("consuming()", nothing_unsent, globals=names),
            floor=Timer("view()", nothing_unsent, globals=names),
        )

    with ledger_settings() as (in_memory, in_file):
        with app(in_memory).test_request_context(), closing(guard.guard):
            yield Comparison(
                name="Flask view, requires_feature / bare view",
                ours=Timer("requiring()", globals=names),
                floor=Timer("view()", globals=names),
                aim=adds_at_most(3),
            )
            yield consumption("memory://")
        guarded, bare = app(in_memory), Flask("bare")
        guarded.add_url_rule("/guarded", view_func=requiring)
        bare.add_url_rule("/bare", view_func=view)
        yield _requests("Flask request, extension and requires_feature / bare", guarded, bare)
        with app(in_file).test_request_context(), closing(guard.guard):
            yield consumption("sqlite://")


@contextmanager
def ledger_settings() -> Iterator[tuple[Settings, Settings]]:
    """Settings with a ledger in memory, and the same with a ledger in a file."""
    with local_sidecar() as address, TemporaryDirectory() as folder:
        # Finding the customer is the user's own code, and free here.
        common = {"SIDECAR": address, "CUSTOMER": lambda _request: CUSTOMER}
        yield {**common, "LEDGER": "memory://"}, {**common, "LEDGER": f"sqlite:///{folder}/ledger.db"}
