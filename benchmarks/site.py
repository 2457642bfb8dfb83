"""Sites with a plain, a guarded and a consuming view, for servers under load: of Flask, and of Django for WSGI and for
ASGI. The environment configures them."""

from __future__ import annotations

import json
from os import environ
from random import randrange
from typing import Any

from flask import Flask

from stigg_guard.flask import StiggGuard, consumes_usage, requires_feature

GUARDED, CONSUMED = "boolean", "metered"
CUSTOMERS = "BENCH_CUSTOMERS"
"""The variable that says how many customers take turns."""
DATABASE = "BENCH_DATABASE"
"""The variable with Django's settings of its database, as JSON."""


def customer(_request: object) -> str:
    """Finding the customer is the user's own code, and all but free here."""
    return f"customer-{randrange(int(environ[CUSTOMERS]))}"


def make_flask() -> Flask:
    app = Flask("site")
    settings = {name: value for name, value in environ.items() if name.startswith("STIGG_GUARD_")}
    app.config.from_mapping(settings, STIGG_GUARD_CUSTOMER=customer)
    StiggGuard(app)

    @app.get("/plain")
    def plain() -> str:
        return "ok"

    @app.get("/guarded")
    @requires_feature(GUARDED)
    def guarded() -> str:
        return "ok"

    @app.get("/consuming")
    @consumes_usage(1, CONSUMED)
    def consuming() -> str:
        return "ok"

    return app


def make_django() -> Any:
    """A WSGI application."""
    set_up_site()
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpRequest, HttpResponse

    def view(_request: HttpRequest) -> HttpResponse:
        return HttpResponse("ok")

    _route(view)
    return WSGIHandler()


def make_django_async() -> Any:
    """An ASGI application."""
    set_up_site()
    from django.core.handlers.asgi import ASGIHandler
    from django.http import HttpRequest, HttpResponse

    async def view(_request: HttpRequest) -> HttpResponse:
        return HttpResponse("ok")

    _route(view)
    return ASGIHandler()


def set_up_site() -> None:
    import django
    from django.conf import settings

    guard = {name: environ[f"STIGG_GUARD_{name}"] for name in ("SIDECAR", "LEDGER")}
    settings.configure(
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=["stigg_guard.django", "stigg_guard.django.ledger"],
        MIDDLEWARE=["stigg_guard.django.middleware.StiggGuardMiddleware"],
        DATABASES={"default": json.loads(environ[DATABASE])},
        ROOT_URLCONF=(),
        STIGG_GUARD={**guard, "CUSTOMER": customer},
    )
    django.setup()


def _route(view: Any) -> None:
    from django.conf import settings
    from django.urls import path

    from stigg_guard.django import consumes_usage, requires_feature

    views = {"plain": view, "guarded": requires_feature(GUARDED)(view), "consuming": consumes_usage(1, CONSUMED)(view)}
    settings.ROOT_URLCONF = tuple(path(name, one) for name, one in views.items())
