"""Class-based views under the mixins, and with decorated methods, which are called or awaited."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path
from django.views import View
from django.views.generic import TemplateView
from rest_framework.response import Response
from rest_framework.views import APIView

from stigg_guard import ConfigError, Customer, Guard
from stigg_guard.django import ConsumesUsageMixin, RequiresFeatureMixin, consumes_usage, get_guard, requires_feature
from stigg_guard.sidecar.server import Sidecar

TEMPLATES = "feature-templates"
DEMO = "customer-demo-01"  # essentials: 3 of 6 templates used, no analytics


class Domain(RequiresFeatureMixin, View):
    feature = "feature-custom-domain"

    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("your domain")


class Analytics(RequiresFeatureMixin, View):
    guarded_methods = ("GET",)

    def get_feature(self) -> str:
        return "feature-analytics"

    def get(self, request: HttpRequest) -> HttpResponse:
        raise AssertionError("the view must not run")

    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("taken")


class AsyncAnalytics(RequiresFeatureMixin, View):
    feature = "feature-analytics"

    async def get(self, request: HttpRequest) -> HttpResponse:
        raise AssertionError("the view must not run")


class Create(ConsumesUsageMixin, View):
    feature = TEMPLATES
    guarded_methods = ("POST",)

    def get_usage_amount(self) -> int:
        return int(self.request.GET.get("n", 1))

    def get(self, request: HttpRequest, status: int) -> HttpResponse:
        return HttpResponse("a form")

    def post(self, request: HttpRequest, status: int) -> HttpResponse:
        return HttpResponse("created", status=status)


class CreateSome(ConsumesUsageMixin, View):
    feature = TEMPLATES
    usage_amount = 3

    def get_actual_usage(self, response: HttpResponseBase) -> int:
        return int(response["X-Made"])

    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(headers={"X-Made": "1"})


class CreateFewer(ConsumesUsageMixin, View):
    feature = TEMPLATES
    usage_amount = 3

    def get(self, request: HttpRequest) -> HttpResponse:
        self.usage.amount = 2
        return HttpResponse()


class AsyncCreate(ConsumesUsageMixin, View):
    feature = TEMPLATES

    async def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("created")


class OfSite(ConsumesUsageMixin, View):
    """Of one of the customer's sites, as the URL names it."""

    feature = TEMPLATES

    def get_resource(self) -> str:
        return str(self.kwargs["site"])

    def get(self, request: HttpRequest, site: str) -> HttpResponse:
        return HttpResponse("created")


class OfArchived(RequiresFeatureMixin, View):
    feature = TEMPLATES

    def get_customer(self) -> str:
        return "customer-demo-05"

    def get(self, request: HttpRequest) -> HttpResponse:
        raise AssertionError("the view must not run")


class Page(ConsumesUsageMixin, TemplateView):
    feature = TEMPLATES
    template_name = "nowhere.html"


class Nameless(RequiresFeatureMixin, View):
    def get(self, request: HttpRequest) -> HttpResponse:
        raise AssertionError("the view must not run")


urlpatterns = [
    path("domain", Domain.as_view()),
    path("analytics", Analytics.as_view()),
    path("async-analytics", AsyncAnalytics.as_view()),
    path("create/<int:status>", Create.as_view()),
    path("create-some", CreateSome.as_view()),
    path("create-fewer", CreateFewer.as_view()),
    path("async-create", AsyncCreate.as_view()),
    path("sites/<str:site>", OfSite.as_view()),
    path("archived", OfArchived.as_view()),
    path("page", Page.as_view()),
]

pytestmark = pytest.mark.urls(__name__)


@pytest.fixture(autouse=True)
def site(sidecar: Sidecar, settings: Any) -> Any:
    """The settings of a site that asks the sidecar and has but one customer."""
    settings.STIGG_GUARD = {"SIDECAR": sidecar.address, "TIMEOUT": 20, "CUSTOMER": lambda _: DEMO, "REPORT": "inline"}
    return settings


@pytest.fixture
def web() -> Client:
    return Client(raise_request_exception=False)


def used(guard: Guard) -> float:
    """What the sidecar has counted, asked by a guard of its own."""
    guard.reload(DEMO)
    return guard.check(TEMPLATES, customer=DEMO).current_usage


def test_the_view_runs_for_a_customer_who_has_the_feature(web: Client) -> None:
    assert web.get("/domain").content == b"your domain"


def test_the_view_does_not_run_for_the_others(web: Client) -> None:
    assert web.get("/analytics").status_code == 402


def test_methods_that_are_not_guarded_are_everybodys(web: Client) -> None:
    assert web.post("/analytics").content == b"taken"
    assert web.options("/async-analytics").status_code == 200


def test_an_awaited_view_does_not_run_for_the_others(web: Client) -> None:
    assert web.get("/async-analytics").status_code == 402
    assert asyncio.run(AsyncClient().get("/async-analytics")).status_code == 402


def test_a_success_is_counted_once(web: Client, guard: Guard) -> None:
    assert web.post("/create/201?n=2").status_code == 201
    assert used(guard) == 5


def test_a_failure_is_not_counted(web: Client, guard: Guard) -> None:
    assert web.post("/create/422").status_code == 422
    assert (used(guard), get_guard().stats()["held"]) == (3, 0)


def test_a_form_is_shown_for_nothing(web: Client, guard: Guard) -> None:
    assert web.get("/create/201").content == b"a form"
    assert used(guard) == 3


def test_an_amount_that_the_request_does_not_say_is_answered_400(web: Client, guard: Guard) -> None:
    assert web.post("/create/201?n=many").status_code == 400
    assert used(guard) == 3


def test_the_view_may_say_of_its_response_what_was_used(web: Client, guard: Guard) -> None:
    web.get("/create-some")
    assert used(guard) == 4


def test_the_view_may_say_while_it_runs_what_was_used(web: Client, guard: Guard) -> None:
    web.get("/create-fewer")
    assert used(guard) == 5


def test_an_awaited_success_is_counted_once(web: Client, guard: Guard) -> None:
    assert asyncio.run(AsyncClient().get("/async-create")).status_code == 200
    assert web.get("/async-create").content == b"created"
    assert used(guard) == 5


def test_the_view_may_name_a_resource_of_the_customer(web: Client, guard: Guard) -> None:
    assert web.get("/sites/site-01").status_code == 200
    assert guard.check(TEMPLATES, customer=Customer(DEMO, "site-01")).current_usage == 1
    assert used(guard) == 3


def test_the_view_may_name_the_customer(web: Client) -> None:
    assert web.get("/archived").status_code == 403


def test_a_page_that_cannot_be_rendered_is_given_back(web: Client, guard: Guard) -> None:
    assert web.get("/page").status_code == 500
    assert (used(guard), get_guard().stats()["held"]) == (3, 0)


def test_a_view_that_names_no_feature_is_an_error_with_the_remedy(rf: RequestFactory) -> None:
    with pytest.raises(ImproperlyConfigured, match="Nameless names no feature: set feature"):
        Nameless.as_view()(rf.get("/"))


class Methods(View):
    """Decorators on its methods, below each other and without a feature too."""

    @requires_feature(TEMPLATES)
    @consumes_usage(lambda request, n: int(request.GET.get("n", n)))
    def get(self, request: HttpRequest, n: int) -> HttpResponse:
        return HttpResponse(f"created {n}")

    @requires_feature("feature-analytics")
    def post(self, request: HttpRequest, n: int) -> HttpResponse:
        raise AssertionError("the method must not run")

    @consumes_usage(2, TEMPLATES, key=lambda request: request.headers["Key"])
    def put(self, request: HttpRequest, n: int) -> HttpResponse:
        return HttpResponse()


class AsyncMethods(View):
    @consumes_usage(2, TEMPLATES)
    async def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("created")


class ApiMethods(APIView):
    @consumes_usage(lambda request: len(request.data), TEMPLATES)  # the framework's own request
    def post(self, request: Any) -> Response:
        return Response(request.data)


METHODS = {
    "n of the URL": (Methods, lambda web: web.get("/2"), 200, 5),
    "n of the query": (Methods, lambda web: web.get("/2?n=1"), 200, 4),
    "too much": (Methods, lambda web: web.get("/4"), 402, 3),
    "a feature outside the plan": (Methods, lambda web: web.post("/2"), 402, 3),
    "a key": (Methods, lambda web: web.put("/2", headers={"Key": "order-42"}), 200, 5),
    "OPTIONS": (Methods, lambda web: web.options("/2"), 200, 3),
    "an API": (ApiMethods, lambda web: web.post("/", {"a": 1, "b": 2}, content_type="application/json"), 200, 5),
    "awaited": (AsyncMethods, lambda web: web.get("/"), 200, 5),
}


@pytest.mark.parametrize(("view", "ask", "status", "counted"), METHODS.values(), ids=METHODS)
def test_a_decorator_guards_the_method_that_it_stands_on(
    web: Client, guard: Guard, settings: Any, view: Any, ask: Any, status: int, counted: float
) -> None:
    settings.ROOT_URLCONF = (path("", view.as_view()), path("<int:n>", view.as_view()))
    assert ask(web).status_code == status
    assert (used(guard), get_guard().stats()["held"]) == (counted, 0)


def test_a_decorator_on_a_method_of_another_class_is_an_error_with_the_remedy(rf: RequestFactory) -> None:
    class Controller:
        @requires_feature(TEMPLATES)
        def show(self, request: HttpRequest) -> HttpResponse:
            raise AssertionError("the method must not run")

    with pytest.raises(ConfigError, match=r"Controller where the request is due.*method_decorator.*Mixin"):
        Controller().show(rf.get("/"))


class GuardedSetup(View):
    @requires_feature("feature-templates")
    def setup(self, *args: Any, **kwargs: Any) -> None:
        super().setup(*args, **kwargs)


class GuardedDispatch(View):
    @requires_feature("feature-templates")
    def dispatch(self, *args: Any, **kwargs: Any) -> Any:
        return super().dispatch(*args, **kwargs)

    async def get(self, request: HttpRequest) -> HttpResponse:
        raise AssertionError("the method must not run")


@pytest.mark.parametrize(
    ("view", "told"),
    [(GuardedSetup, "GuardedSetup where the request is due"), (GuardedDispatch, "dispatch of GuardedDispatch")],
)
def test_a_method_that_no_decorator_can_guard_says_so(rf: RequestFactory, view: type[View], told: str) -> None:
    with pytest.raises(ConfigError, match=rf"{told}.*method_decorator"):
        view.as_view()(rf.get("/"))
