"""The system checks of what the URLs lead to, and which requests meet which rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from django.conf.urls.i18n import i18n_patterns
from django.contrib.auth.decorators import login_required, permission_required, user_passes_test
from django.contrib.auth.mixins import LoginRequiredMixin, PermissionRequiredMixin
from django.core.checks import run_checks
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import include, path, re_path
from django.utils.decorators import method_decorator
from django.views import View
from rest_framework.decorators import api_view

from stigg_guard.django import ConsumesUsageMixin, RequiresFeatureMixin, consumes_usage, protect, requires_feature
from stigg_guard.testing import override_entitlements

OURS = "stigg_guard.django.middleware.StiggGuardMiddleware"


def view(request: HttpRequest, **_: object) -> HttpResponse:
    return HttpResponse("page")


class Page(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("page")


def customer_of(request: HttpRequest) -> str:
    return "ann"


@pytest.fixture
def site(settings: Any) -> Any:
    settings.STIGG_GUARD = {"CUSTOMER": customer_of, "LEDGER": "memory://"}
    return settings


def found(site: Any, *urls: Any, **guard: object) -> list[str]:
    """What the checks find in a site of these URLs."""
    site.STIGG_GUARD = {**site.STIGG_GUARD, **guard}
    site.ROOT_URLCONF = tuple(urls)
    return [f"{one.id} {one.msg} {one.hint}" for one in run_checks(tags=["stigg_guard"])]


def rule(given: str) -> Mapping[str, str]:
    return {"path" if given.startswith("/") else "view": given, "feature": "f"}


REPORTS = path("reports/", view, name="reports")
MET = {
    "the whole path": ("/reports/", REPORTS),
    "a beginning": ("/rep", REPORTS),
    "everything": ("/", REPORTS),
    "without the slash": ("/reports", REPORTS),
    "a slash more": ("/reports/", path("reports", view)),
    "an optional slash": ("/reports/", re_path(r"^reports/?$", view)),
    "within an argument": ("/items/7/", path("items/<int:pk>/edit/", view)),
    "a catch-all": ("/any/where/", re_path(r"^(.*)$", view)),
    "a regular beginning": ("/api/v1/", re_path(r"^api/v\\d/items/$", view)),
    "an escaped point": ("/feed.xml", re_path(r"^feed\\.xml$", view)),
    "an include": ("/shop/reports/", path("shop/", include([REPORTS]))),
    "an include with an argument": ("/ann/reports/", path("<slug:who>/", include([REPORTS]))),
    "a regular include": ("/shop/reports/", re_path(r"^shop/", include([REPORTS]))),
    "a protected group": ("/shop/reports/", path("shop/", protect([REPORTS], "g"))),
    "a language": ("/reports/", i18n_patterns(REPORTS)[0]),
    "a name": ("reports", REPORTS),
    "a name in a namespace": ("shop:reports", path("shop/", include(([REPORTS], "shop")))),
    "a view without a name": (f"{__name__}.view", path("reports/", view)),
    "a class without a name": (f"{__name__}.Page", path("reports/", Page.as_view())),
}
UNMET = {
    "another path": ("/report5/", REPORTS, "'/reports/'"),
    "beyond a whole path": ("/reports/new/", REPORTS, "'/reports/'"),
    "beyond a regular path": ("/reports/new/", re_path(r"^reports/$", view), "'/reports/'"),
    "beyond an include": ("/shop/report/x", path("shop/", include([REPORTS])), "'/shop/reports/'"),
    "a mount": ("/mount/reports/", REPORTS, "'/reports/'"),
    "another name": ("report", REPORTS, "'reports'"),
    "a name without its namespace": ("reports", path("shop/", include(([REPORTS], "shop"))), "'shop:reports'"),
}


@pytest.mark.parametrize(("given", "url"), MET.values(), ids=MET)
def test_a_rule_that_meets_a_view_passes(site: Any, given: str, url: Any) -> None:
    assert found(site, url, RULES=[rule(given)]) == []


@pytest.mark.parametrize(("given", "url", "nearest"), UNMET.values(), ids=UNMET)
def test_a_rule_that_meets_no_view_is_found_with_the_nearest(site: Any, given: str, url: Any, nearest: str) -> None:
    (fault,) = found(site, url, RULES=[rule(given)])
    assert fault.startswith("stigg_guard.W006 The rule of the ")
    assert given in fault
    assert f"the nearest is {nearest}" in fault


def test_a_rule_of_a_site_without_views_is_found(site: Any) -> None:
    (fault,) = found(site, RULES=[rule("/reports/")])
    assert "meets no view of ROOT_URLCONF." in fault
    assert fault.endswith("Else correct it.")


def of_other_host(get_response: Any) -> Any:
    """As django-hosts: chooses the URLs by the host."""

    def middleware(request: HttpRequest) -> Any:
        request.urlconf = (path("reports/", view, name="reports"),)  # type: ignore[assignment]
        return get_response(request)

    return middleware


@pytest.mark.parametrize("given", ["/reports/", "reports"])
def test_a_rule_for_the_urls_of_another_host_is_to_be_kept(site: Any, given: str) -> None:
    (fault,) = found(site, path("", view), RULES=[rule(given)])
    assert "middleware sets, as for another host; if it is for one, keep it." in fault
    site.MIDDLEWARE = [f"{__name__}.of_other_host", OURS]
    with override_entitlements({}):
        assert Client().get("/reports/").status_code == 402


def test_a_misspelt_method_is_an_error(site: Any) -> None:
    (fault,) = found(site, REPORTS, RULES=[{**rule("/reports/"), "methods": ["PSOT"]}])
    assert "stigg_guard.E003" in fault
    assert "did you mean POST?" in fault


ADDRESSES = [
    ("/reports/", "/reports/", 402),
    ("/reports/", "/de/reports/", 402),
    ("/reports/", "/de/reports", 402),
    ("reports", "/de/reports/", 402),
    ("/de/reports/", "/de/reports/", 402),
    ("/de/reports/", "/reports/", 200),
    ("/plain/", "/plain/", 402),
    ("/reports/", "/deliveries/reports/", 200),
    ("/reports/", "/plain/", 200),
]


@pytest.mark.parametrize("mount", ["", "/mount"])
@pytest.mark.parametrize(("given", "address", "status"), ADDRESSES)
def test_a_rule_holds_whatever_the_language_and_the_mount(
    site: Any, given: str, address: str, status: int, mount: str
) -> None:
    site.MIDDLEWARE = ["django.middleware.locale.LocaleMiddleware", OURS]
    site.LANGUAGES = [("en", "English"), ("de", "Deutsch")]
    site.LANGUAGE_CODE = "en"
    site.STIGG_GUARD = {**site.STIGG_GUARD, "RULES": [rule(given)]}
    reports = re_path(r"^reports/?$", view, name="reports")
    plain = [path("plain/", view), path("deliveries/reports/", view)]
    site.ROOT_URLCONF = (*plain, *i18n_patterns(reports, prefix_default_language=False))
    with override_settings(FORCE_SCRIPT_NAME=mount or None), override_entitlements({}):
        assert Client().get(address, headers={"accept-language": "en"}).status_code == status


def test_without_languages_in_urls_the_path_is_taken_as_it_is(site: Any) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, "RULES": [rule("/reports/")]}
    site.ROOT_URLCONF = (path("de/reports/", view),)
    with override_entitlements({}):
        assert Client().get("/de/reports/").status_code == 200


class Nameless(ConsumesUsageMixin, View):
    """A guard of no feature."""


class Named(Nameless):
    def get_feature(self) -> str:
        return "f"


class Posted(View):
    @method_decorator(consumes_usage(1))
    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


class NamedPosted(View):
    @method_decorator([requires_feature("f"), consumes_usage(1)])
    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


@method_decorator([requires_feature("f"), consumes_usage(1)], name="dispatch")
class NamedDispatched(View):
    pass


@method_decorator(consumes_usage(1), name="dispatch")
class Dispatched(View):
    pass


NAMELESS = {
    "a function": consumes_usage(1)(view),
    "below another decorator": login_required(consumes_usage(1)(view)),
    "around a class": consumes_usage(1)(Page.as_view()),
    "a mixin": Nameless.as_view(),
    "a requiring mixin": type("Requires", (RequiresFeatureMixin, View), {}).as_view(),
    "a method": Posted.as_view(),
    "a dispatch": Dispatched.as_view(),
    "an API": api_view(["POST"])(consumes_usage(1)(view)),
}
NAMED = {
    "a function": consumes_usage(1, "f")(view),
    "the feature above": requires_feature("f")(login_required(consumes_usage(1)(view))),
    "around a class": requires_feature("f")(consumes_usage(1)(Page.as_view())),
    "a mixin": Named.as_view(),
    "a mixin in the URLs": Nameless.as_view(feature="f"),
    "a method": NamedPosted.as_view(),
    "a dispatch": NamedDispatched.as_view(),
    "an API": api_view(["POST"])(consumes_usage(1, "f")(view)),
    "no guard": view,
}


@pytest.mark.parametrize("guarded", NAMELESS.values(), ids=NAMELESS)
def test_a_guard_of_no_feature_is_found(site: Any, guarded: Any) -> None:
    (fault,) = [one for one in found(site, path("", guarded)) if "W007" not in one]
    assert fault.startswith(f"stigg_guard.E005 {__name__}.")
    assert "is guarded by no feature" in fault


@pytest.mark.parametrize("guarded", NAMED.values(), ids=NAMED)
def test_a_guard_of_a_feature_passes(site: Any, guarded: Any) -> None:
    assert found(site, path("", guarded)) == []


MINE = consumes_usage(1, "f")
ASKING = {
    "login_required": login_required,
    "permission_required": permission_required("auth.add_user"),
    "user_passes_test": user_passes_test(lambda user: user.is_staff),
}


class Consuming(ConsumesUsageMixin, LoginRequiredMixin, View):
    feature = "f"


class Asking(LoginRequiredMixin, ConsumesUsageMixin, View):
    feature = "f"


@method_decorator(MINE, name="dispatch")
class DispatchedConsuming(PermissionRequiredMixin, View):
    permission_required = "auth.add_user"


class PostedAsking(LoginRequiredMixin, View):
    @method_decorator(MINE)
    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


WRONG_ORDER = {
    **{name: MINE(asking(view)) for name, asking in ASKING.items()},
    "with others between": MINE(requires_feature("f")(login_required(view))),
    "a list for a method": method_decorator([MINE, login_required], name="dispatch")(
        type("Own", (View,), {})
    ).as_view(),
    "a mixin": Consuming.as_view(),
    "a dispatch": DispatchedConsuming.as_view(),
    "around a class": MINE(type("Own", (LoginRequiredMixin, View), {}).as_view()),
}
RIGHT_ORDER = {
    **{name: asking(MINE(view)) for name, asking in ASKING.items()},
    "a list for a method": method_decorator([login_required, MINE], name="dispatch")(
        type("Own", (View,), {})
    ).as_view(),
    "a mixin": Asking.as_view(),
    "a method of a class with a mixin": PostedAsking.as_view(),
    "only required": requires_feature("f")(login_required(view)),
}


@pytest.mark.parametrize("guarded", WRONG_ORDER.values(), ids=WRONG_ORDER)
def test_a_guard_above_what_asks_who_may_is_found(site: Any, guarded: Any) -> None:
    (fault,) = found(site, path("", guarded))
    assert fault.startswith("stigg_guard.W007 ")


@pytest.mark.parametrize("guarded", RIGHT_ORDER.values(), ids=RIGHT_ORDER)
def test_a_guard_below_what_asks_who_may_passes(site: Any, guarded: Any) -> None:
    assert found(site, path("", guarded)) == []
