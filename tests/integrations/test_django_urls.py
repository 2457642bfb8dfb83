"""Whole groups of URLs under one guard."""

from __future__ import annotations

import asyncio
from types import ModuleType
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import include, path, resolve, reverse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from stigg_guard import Guard, InvalidRequest
from stigg_guard.django import consumes_usage, exempt, protect, requires_feature
from stigg_guard.sidecar.server import Sidecar

TEMPLATES = "feature-templates"
DEMO = "customer-demo-01"  # essentials: 3 of 6 templates used, no analytics


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("page")


async def awaited_page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("page")


@csrf_exempt
def hook(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hooked")


@requires_feature(TEMPLATES)
@consumes_usage(1)
def named_above(request: HttpRequest) -> HttpResponse:
    return HttpResponse("page")


@method_decorator(exempt, name="dispatch")
class Free(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("free")


app_name = "inner"
inner = [
    path("page", page, name="page"),
    path("awaited", awaited_page, name="awaited"),
    path("free", exempt(page), name="free"),
    path("awaited-free", exempt(awaited_page)),
    path("free-class", Free.as_view()),
    path("hook", hook),
]
module = ModuleType("shop_api")
vars(module).update(urlpatterns=inner, app_name="shop")


def of_number(request: HttpRequest, n: int) -> HttpResponse:
    return HttpResponse(str(n))


urlpatterns = [
    path("public", page),
    path("closed/", protect(inner, "feature-analytics")),
    path("pair/", protect((inner, "pair"), "feature-analytics")),
    path("open/", protect(include((inner, "inner")), "feature-custom-domain")),
    path("module/", protect(module, "feature-analytics")),
    path("counted/<int:n>/", protect([path("", of_number)], TEMPLATES, lambda request, n: n)),
    path("writes/", protect(include((inner, "inner"), namespace="writes"), TEMPLATES, 1, methods=["POST"])),
    path("outer/", protect([path("inner/", include((inner, "inner"), namespace="deep"))], "feature-analytics")),
    path(
        "nested/", protect([path("", protect([path("", page)], TEMPLATES, 1))], "feature-analytics", methods=["POST"])
    ),
    path("named/", protect([path("", named_above)], "feature-custom-domain")),
]

pytestmark = pytest.mark.urls(__name__)


@pytest.fixture(autouse=True)
def site(sidecar: Sidecar, settings: Any) -> Any:
    """The settings of a site that asks the sidecar and has but one customer."""
    settings.STIGG_GUARD = {"SIDECAR": sidecar.address, "TIMEOUT": 20, "CUSTOMER": lambda _: DEMO, "REPORT": "inline"}
    return settings


def used(guard: Guard) -> float:
    guard.reload(DEMO)
    return guard.check(TEMPLATES, customer=DEMO).current_usage


@pytest.mark.parametrize("group", ["closed", "module", "pair", "outer/inner"])
@pytest.mark.parametrize("view", ["page", "awaited"])
def test_all_views_of_a_group_are_closed_to_customers_without_the_feature(
    client: Client, group: str, view: str
) -> None:
    assert client.get(f"/{group}/{view}").status_code == 402
    assert asyncio.run(AsyncClient().get(f"/{group}/{view}")).status_code == 402


def test_the_same_views_elsewhere_are_open(client: Client) -> None:
    assert client.get("/public").content == b"page"


@pytest.mark.parametrize("view", ["page", "awaited"])
def test_the_views_are_open_to_customers_with_the_feature(client: Client, view: str) -> None:
    assert client.get(f"/open/{view}").content == b"page"
    assert asyncio.run(AsyncClient().get(f"/open/{view}")).content == b"page"


@pytest.mark.parametrize("view", ["free", "awaited-free", "free-class"])
def test_exempt_views_are_left_alone(client: Client, view: str) -> None:
    assert client.get(f"/closed/{view}").status_code == 200
    assert client.get(f"/outer/inner/{view}").status_code == 200


def test_a_view_is_exempt_only_where_it_was_said(client: Client) -> None:
    assert client.get("/closed/page").status_code == 402


def test_a_group_may_consume(client: Client, guard: Guard) -> None:
    assert client.get("/counted/2/").content == b"2"
    assert used(guard) == 5


def test_a_group_may_consume_for_some_methods_only(client: Client, guard: Guard) -> None:
    assert client.get("/writes/page").status_code == 200
    assert used(guard) == 3
    assert client.post("/writes/page").status_code == 200
    assert used(guard) == 4


def test_nested_groups_guard_both(client: Client, guard: Guard) -> None:
    assert client.get("/nested/").status_code == 200
    assert used(guard) == 4
    assert client.post("/nested/").status_code == 402
    assert used(guard) == 4


def test_a_group_names_no_feature_for_the_views_in_it(client: Client, guard: Guard) -> None:
    assert client.get("/named/").status_code == 200
    assert used(guard) == 4


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("page", "/closed/page"),
        ("inner:page", "/open/page"),
        ("shop:page", "/module/page"),
        ("writes:page", "/writes/page"),
        ("deep:page", "/outer/inner/page"),
        (of_number, "/counted/7/"),
    ],
)
def test_names_namespaces_and_views_are_reversed_as_before(name: Any, url: str) -> None:
    assert reverse(name, kwargs={"n": 7} if name is of_number else None) == url


def test_what_other_decorators_said_of_a_view_stays() -> None:
    assert resolve("/closed/hook").func.csrf_exempt
    assert Client(enforce_csrf_checks=True).post("/open/hook").content == b"hooked"


def test_a_view_has_one_guard_however_often_it_is_resolved() -> None:
    assert resolve("/closed/page").func is resolve("/closed/page").func


def test_a_wrong_amount_or_feature_is_refused_at_once() -> None:
    with pytest.raises(InvalidRequest, match="value"):
        protect(inner, TEMPLATES, -1)
    with pytest.raises(InvalidRequest, match="feature"):
        protect(inner, "", 1)
