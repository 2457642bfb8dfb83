"""OPTIONS of guarded Django views: guarded wherever something of the site may run for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import pytest
from django.contrib.auth.mixins import LoginRequiredMixin
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import RedirectView, TemplateView
from rest_framework.decorators import api_view
from rest_framework.response import Response
from rest_framework.routers import Route, SimpleRouter
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from stigg_guard import PER_DOWNLOAD
from stigg_guard.django import (
    ConsumesUsageMixin,
    RequiresFeatureMixin,
    consumes_usage,
    exempt,
    protect,
    releases_usage,
    requires_feature,
)
from stigg_guard.django.rest import ConsumesUsage, HasFeature
from stigg_guard.testing import override_entitlements

Guard = Callable[[Any], Any]

RUNS: list[str] = []


def made(*_: object, **__: object) -> HttpResponse:
    RUNS.append("run")
    return HttpResponse("made")


def function(request: HttpRequest) -> HttpResponse:
    return made()


async def awaited(request: HttpRequest) -> HttpResponse:
    return made()


class Page(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return made()


class AwaitedPage(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        return made()


class OwnOptions(Page):
    def options(self, request: HttpRequest, *_: object, **__: object) -> HttpResponse:
        return made()


class OwnDispatch(Page):
    def dispatch(self, request: HttpRequest, *_: object, **__: object) -> HttpResponse:
        return made()


class OwnRefusal(Page):
    def http_method_not_allowed(self, request: HttpRequest, *_: object, **__: object) -> HttpResponse:
        return made()


class SignedIn(LoginRequiredMixin, Page):
    def handle_no_permission(self) -> Any:
        return View.dispatch(self, self.request)


@method_decorator(csrf_exempt, name="dispatch")
class DecoratedPage(Page): ...


@method_decorator(csrf_exempt, name="dispatch")
class DecoratedOwnDispatch(OwnDispatch): ...


def of_the_site(view: Any) -> Any:
    """A decorator that does the work itself."""
    return wraps(view)(lambda *_, **__: made())


@method_decorator(of_the_site, name="dispatch")
class PageOfTheSite(Page): ...


class Api(APIView):
    def get(self, request: Any) -> Response:
        return Response(made().content)


class ApiOptions(Api):
    def options(self, request: Any, *_: object, **__: object) -> Response:
        return Response(made().content)


class Items(ViewSet):
    def list(self, request: Any) -> Response:
        return Response(made().content)


ANSWERED_BY_DJANGO = {
    "a class": Page.as_view(),
    "a class that is awaited": AwaitedPage.as_view(),
    "a class with a mixin of Django": SignedIn.as_view(),
    "a class with a decorated dispatch": DecoratedPage.as_view(),
    "a generic class": TemplateView.as_view(template_name="never.html"),
    "a class that is decorated": csrf_exempt(Page.as_view()),
    "an API": Api.as_view(),
    "a set of views": Items.as_view({"get": "list"}),
    "a function below api_view": api_view(["GET"])(made),
}
RUN_BY_OPTIONS = {
    "a function": function,
    "a function that is awaited": awaited,
    "a class with options": OwnOptions.as_view(),
    "a class that refuses methods itself": OwnRefusal.as_view(http_method_names=["get"]),
    "a class with a dispatch": OwnDispatch.as_view(),
    "a class with a dispatch that is decorated": DecoratedOwnDispatch.as_view(),
    "a class below a decorator of the site": of_the_site(Page.as_view()),
    "a class below two decorators": csrf_exempt(of_the_site(Page.as_view())),
    "a class with a dispatch below a decorator of the site": PageOfTheSite.as_view(),
    "an API with options": ApiOptions.as_view(),
    "a set of views with options": Items.as_view({"options": "list"}),
    "a function below api_view that takes OPTIONS": api_view(["GET", "OPTIONS"])(made),
    "a redirect, which Django's own options make": RedirectView.as_view(url="/made/"),
}


GUARDS: dict[str, Guard] = {
    "requires_feature": lambda view: path("", requires_feature("f")(view)),
    "consumes_usage": lambda view: path("", consumes_usage(1, "f")(view)),
    "releases_usage": lambda view: path("", releases_usage(1, "f")(view)),
    "a download": lambda view: path("", consumes_usage(1, "f", key=PER_DOWNLOAD)(view)),
    "protect": lambda view: path("", protect([path("", view)], "f")),
    "protect that consumes": lambda view: path("", protect([path("", view)], "f", 1)),
    "two guards": lambda view: path("", requires_feature("f")(consumes_usage(1, "f")(view))),
}


def of_gateway(request: Any) -> str | None:
    customer: str | None = request.headers.get("X-Customer")
    return customer


@pytest.fixture(autouse=True)
def site(settings: Any) -> Iterator[Any]:
    settings.STIGG_GUARD = {"CUSTOMER": of_gateway, "LEDGER": "memory://"}
    settings.REST_FRAMEWORK = {"UNAUTHENTICATED_USER": None}
    RUNS.clear()
    with override_entitlements({"f": {"limit": 2}}):
        yield settings


def options(site: Any, url: Any) -> int:
    site.ROOT_URLCONF = (url,)
    return Client().options("/").status_code


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
@pytest.mark.parametrize("view", ANSWERED_BY_DJANGO.values(), ids=ANSWERED_BY_DJANGO)
def test_what_the_framework_answers_is_left_to_it(site: Any, guard: Guard, view: Any) -> None:
    assert options(site, guard(view)) == 200
    assert RUNS == []


@pytest.mark.parametrize("guard", [GUARDS[name] for name in GUARDS if name != "a download"])
@pytest.mark.parametrize("view", RUN_BY_OPTIONS.values(), ids=RUN_BY_OPTIONS)
def test_no_view_runs_for_nobody(site: Any, guard: Guard, view: Any) -> None:
    assert options(site, guard(view)) == 401
    assert RUNS == []


@pytest.mark.parametrize("view", RUN_BY_OPTIONS.values(), ids=RUN_BY_OPTIONS)
def test_a_download_is_sent_to_nobody(site: Any, view: Any) -> None:
    assert options(site, GUARDS["a download"](view)) == 401


@pytest.mark.parametrize("view", ANSWERED_BY_DJANGO.values(), ids=ANSWERED_BY_DJANGO)
def test_a_rule_leaves_to_the_framework_what_it_answers(site: Any, view: Any) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, "RULES": [{"path": "/", "feature": "f", "consume": 1}]}
    assert options(site, path("", view)) == 200


@pytest.mark.parametrize("view", RUN_BY_OPTIONS.values(), ids=RUN_BY_OPTIONS)
def test_a_rule_guards_what_runs(site: Any, view: Any) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, "RULES": [{"path": "/", "feature": "f", "consume": 1}]}
    assert options(site, path("", view)) == 401
    assert options(site, path("", exempt(view))) != 401


def test_what_runs_is_counted(site: Any) -> None:
    site.ROOT_URLCONF = (path("", GUARDS["consumes_usage"](function).callback),)
    with override_entitlements({"f": {"limit": 2}}) as stigg:
        told = [Client(headers={"x-customer": "ann"}).options("/").status_code for _ in range(3)]
        assert told == [200, 200, 402]
        stigg.assert_usage_reported("f", 2)


@pytest.mark.parametrize(("view", "status"), [(awaited, 401), (AwaitedPage.as_view(), 200)])
def test_so_it_is_where_views_are_awaited(site: Any, view: Any, status: int) -> None:
    site.ROOT_URLCONF = (path("", requires_feature("f")(view)),)
    assert asyncio.run(AsyncClient().options("/")).status_code == status
    assert RUNS == []


MIXINS = {
    "requires": (RequiresFeatureMixin, Page, 200),
    "consumes": (ConsumesUsageMixin, Page, 200),
    "requires before options": (RequiresFeatureMixin, OwnOptions, 401),
    "consumes before options": (ConsumesUsageMixin, OwnOptions, 401),
    "requires before a dispatch": (RequiresFeatureMixin, OwnDispatch, 401),
}


@pytest.mark.parametrize(("mixin", "page", "status"), MIXINS.values(), ids=MIXINS)
def test_a_mixin_leaves_to_the_framework_what_it_answers(site: Any, mixin: Any, page: Any, status: int) -> None:
    guarded = type("Guarded", (mixin, page), {"feature": "f"})
    assert options(site, path("", guarded.as_view())) == status
    assert RUNS == []


@pytest.mark.parametrize(
    ("page", "below", "status"),
    [
        (Page, [], 200),
        (Page, [csrf_exempt], 200),
        (Page, [of_the_site], 401),
        (OwnOptions, [], 401),
        (OwnDispatch, [], 401),
    ],
)
def test_so_does_a_decorator_of_dispatch(site: Any, page: Any, below: list[Any], status: int) -> None:
    guards = [consumes_usage(1, "f"), *below]
    guarded = method_decorator(guards, name="dispatch")(type("Guarded", (page,), {}))
    assert options(site, path("", guarded.as_view())) == status
    assert RUNS == []


@pytest.mark.parametrize(("api", "status"), [(Api, 200), (ApiOptions, 401)])
@pytest.mark.parametrize(
    "given",
    [{"permission_classes": [HasFeature("f")]}, {"throttle_classes": [ConsumesUsage(1, "f"), ConsumesUsage(1, "f")]}],
    ids=["permission", "throttles"],
)
def test_so_do_a_permission_and_throttles(site: Any, given: Any, api: Any, status: int) -> None:
    assert options(site, path("", api.as_view(**given))) == status
    assert RUNS == []


def test_options_of_a_router_are_guarded(site: Any) -> None:
    class Router(SimpleRouter):
        routes = [Route("^{prefix}$", {"options": "list"}, "{basename}-list", False, {})]  # noqa: RUF012 - as there

    router = Router()
    router.register("", type("Guarded", (Items,), {"throttle_classes": [ConsumesUsage(1, "f")]}), basename="item")
    assert options(site, router.urls[0]) == 401


def test_a_view_that_answers_preflights_itself_names_its_methods(site: Any) -> None:
    for guard in (requires_feature("f", methods=["GET"]), consumes_usage(1, "f", methods=["GET"])):
        assert options(site, path("", guard(function))) == 200
