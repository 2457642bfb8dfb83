"""What guards make of responses: redirects to a login page are no use, and caches hand nobody the page of another."""

from __future__ import annotations

from collections.abc import Iterator
from functools import wraps
from typing import Any

import pytest
from django.contrib.admin.views.decorators import staff_member_required
from django.contrib.auth.decorators import login_required, permission_required, user_passes_test
from django.contrib.auth.mixins import LoginRequiredMixin, PermissionRequiredMixin
from django.contrib.auth.views import redirect_to_login
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import Client
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import cache_control, cache_page
from rest_framework.response import Response
from rest_framework.views import APIView

from stigg_guard.django import ConsumesUsageMixin, consumes_usage, customer_of, requires_feature
from stigg_guard.django.rest import HasFeature
from stigg_guard.testing import StandIn, override_entitlements

MINE = consumes_usage(1, "f")
OURS = "stigg_guard.django.middleware.StiggGuardMiddleware"
CACHES = ["django.middleware.cache.UpdateCacheMiddleware", "django.middleware.cache.FetchFromCacheMiddleware"]


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(customer_of(request))


async def page_later(request: HttpRequest) -> HttpResponse:
    return page(request)


def of_gateway(request: Any) -> str | None:
    customer: str | None = request.headers.get("X-Customer")
    return customer


class NeedsSignIn(ConsumesUsageMixin, LoginRequiredMixin, View):
    feature = "f"


class NeedsPermission(ConsumesUsageMixin, PermissionRequiredMixin, View):
    feature = "f"
    permission_required = "auth.add_user"
    login_url = "/own-login/"


def never(user: object) -> bool:
    return False


REDIRECTS = {
    "login_required": MINE(login_required(page)),
    "login_required of an async view": MINE(login_required(page_later)),
    "a login page of its own": MINE(login_required(page, login_url="/own-login/")),
    "a login page elsewhere": MINE(login_required(page, login_url="https://login.example/")),
    "permission_required": MINE(permission_required("auth.add_user")(page)),
    "user_passes_test": MINE(user_passes_test(never, login_url="/own-login/")(page)),
    "staff_member_required": MINE(staff_member_required(login_url="/admin-login/")(page)),
    "LoginRequiredMixin": NeedsSignIn.as_view(),
    "PermissionRequiredMixin": NeedsPermission.as_view(),
    "redirect_to_login": MINE(lambda request: redirect_to_login(request.get_full_path())),
    "Django's LOGIN_URL": MINE(lambda _: HttpResponseRedirect("/accounts/login/?a=1")),
    "our LOGIN_URL": MINE(lambda _: HttpResponseRedirect("/sign-in/")),
}
USES = {
    "elsewhere": lambda _: HttpResponseRedirect("/elsewhere/"),
    "elsewhere and then on": lambda _: HttpResponseRedirect("/pay/?next=/thanks/"),
    "no address": lambda _: HttpResponse(status=302, headers={"Location": "//[/"}),
    "no address to go on to": lambda _: HttpResponse(status=302, headers={"Location": "/pay/?next=//[/"}),
}


@pytest.fixture(autouse=True)
def site(settings: Any) -> Iterator[Any]:
    settings.STIGG_GUARD = {"CUSTOMER": of_gateway, "LOGIN_URL": "/sign-in/", "LEDGER": "memory://"}
    cache.clear()
    yield settings
    cache.clear()


@pytest.fixture
def stigg() -> Iterator[StandIn]:
    with override_entitlements({"f": {"limit": 10}, "g": True}) as stand_in:
        yield stand_in


@pytest.mark.parametrize("view", REDIRECTS.values(), ids=REDIRECTS)
def test_a_redirect_to_a_login_page_is_no_use(site: Any, stigg: StandIn, view: Any) -> None:
    site.ROOT_URLCONF = (path("new/", view),)
    assert Client(headers={"x-customer": "ann"}).get("/new/?n=1&m=2").status_code == 302
    assert stigg.reported == ()


@pytest.mark.parametrize("view", USES.values(), ids=USES)
def test_other_redirects_are(site: Any, stigg: StandIn, view: Any) -> None:
    site.ROOT_URLCONF = (path("new/", MINE(view)),)
    assert Client(headers={"x-customer": "ann"}).get("/new/").status_code == 302
    stigg.assert_usage_reported("f", 1)


def test_a_login_url_that_is_the_name_of_no_url_ends_no_request(site: Any, stigg: StandIn) -> None:
    site.LOGIN_URL = "nowhere"
    test_other_redirects_are(site, stigg, USES["elsewhere"])


def of_tags(request: HttpRequest) -> TemplateResponse:
    return TemplateResponse(request, engines["django"].from_string('{% load stigg_guard %}{% usage "f" %}'), {})


@method_decorator(cache_page(60), name="dispatch")
class Api(APIView):
    permission_classes = (HasFeature("g"),)

    def get(self, request: Any) -> Response:
        return Response(of_gateway(request))


def as_json(view: Any) -> Any:
    return wraps(view)(lambda request: JsonResponse(view(request), safe=False))


CACHED = {
    "requires_feature": cache_page(60)(requires_feature("g")(page)),
    "consumes_usage": cache_page(60)(MINE(page)),
    "HasFeature": Api.as_view(),
    "requires_feature below what makes the response": cache_page(60)(as_json(requires_feature("g")(of_gateway))),
    "consumes_usage below what makes the response": cache_page(60)(as_json(MINE(of_gateway))),
}


@pytest.mark.parametrize("view", CACHED.values(), ids=CACHED)
def test_cache_page_above_a_guard_hands_nobody_the_page_of_another(site: Any, stigg: StandIn, view: Any) -> None:
    site.ROOT_URLCONF = (path("", view),)
    told = [Client(headers={"x-customer": name}).get("/").content.strip(b'"') for name in ("ann", "bob")]
    assert told == [b"ann", b"bob"]


@pytest.mark.parametrize("order", [[*CACHES, OURS], [CACHES[0], OURS, CACHES[1]]])
@pytest.mark.parametrize("view", [requires_feature("g")(page), page], ids=["guarded", "asks who it is"])
def test_a_site_wide_cache_hands_nobody_the_page_of_another(
    site: Any, stigg: StandIn, view: Any, order: list[str]
) -> None:
    site.MIDDLEWARE = order
    site.ROOT_URLCONF = (path("", view),)
    told = [Client(headers={"x-customer": name}).get("/").content for name in ("ann", "bob")]
    assert told == [b"ann", b"bob"]


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (MINE(page), "private"),
        (MINE(page_later), "private"),
        (of_tags, "private"),
        (MINE(cache_control(max_age=60)(page)), "max-age=60"),
        (consumes_usage(1, "f", methods=["POST"])(lambda _: HttpResponse()), None),
        (lambda _: HttpResponse(), None),
    ],
)
def test_a_response_to_a_customer_is_private_unless_the_view_says_otherwise(
    site: Any, stigg: StandIn, view: Any, said: str | None
) -> None:
    site.ROOT_URLCONF = (path("", view),)
    found = Client(headers={"x-customer": "ann"}).get("/").get("Cache-Control")
    assert found == said
