"""The panel of Django Debug Toolbar, with the real toolbar."""

from __future__ import annotations

import asyncio
import html
import re
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import URLPattern, URLResolver, clear_url_caches, include, path

from stigg_guard.django import consumes_usage, get_guard, requires_feature
from stigg_guard.sidecar.server import Sidecar

DEMO = "customer-demo-01"
TEMPLATES = "feature-templates"
PANEL = "stigg_guard.django.panels.GuardPanel"
PAGE = "<html><body>page</body></html>"


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(PAGE)


async def later(request: HttpRequest) -> HttpResponse:
    return HttpResponse(PAGE)


VIEWS: list[URLPattern | URLResolver] = [
    path("plain", page),
    path("create", consumes_usage(2, TEMPLATES)(page)),
    path("analytics", requires_feature("feature-analytics")(page)),
    path("later", requires_feature(TEMPLATES)(later)),
]
urlpatterns = [*VIEWS]

pytestmark = pytest.mark.urls(__name__)


@pytest.fixture(autouse=True)
def site(sidecar: Sidecar, settings: Any) -> Any:
    """The settings of a site with the toolbar, which shows our panel only."""
    settings.DEBUG = True
    settings.STATIC_URL = "static/"
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "django.contrib.staticfiles", "debug_toolbar"]
    settings.MIDDLEWARE = ["debug_toolbar.middleware.DebugToolbarMiddleware", *settings.MIDDLEWARE]
    settings.DEBUG_TOOLBAR_CONFIG = {"SHOW_TOOLBAR_CALLBACK": lambda _: True, "IS_RUNNING_TESTS": False}
    settings.DEBUG_TOOLBAR_PANELS = [PANEL]
    settings.STIGG_GUARD = {"SIDECAR": sidecar.address, "TIMEOUT": 20, "CUSTOMER": lambda _: DEMO, "REPORT": "inline"}
    # What has the toolbar's models can be imported now that it is among the apps.
    urlpatterns[:] = [*VIEWS, path("__debug__/", include("debug_toolbar.urls"))]
    clear_url_caches()
    return settings


def shown(client: Client, page: bytes) -> tuple[str, str]:
    """What the side bar says, and the words of the panel that the browser then asks for."""
    text = page.decode()
    (request,) = re.findall(r'data-(?:request|store)-id="(\w+)"', text)  # before version 6 it was a store's
    (subtitle,) = re.findall(r"<small>([^<]*)</small>", text)
    asked = client.get(
        "/__debug__/render_panel/", {"request_id": request, "store_id": request, "panel_id": "GuardPanel"}
    )
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", asked.json()["content"]))
    return subtitle, html.unescape(words).strip()


def test_a_request_shows_its_checks_hold_usage_and_report(client: Client) -> None:
    answer = client.get("/create", HTTP_ACCEPT="text/html")
    subtitle, words = shown(client, answer.content)
    assert re.fullmatch(r"checks: 1, \d+\.\d ms", subtitle)
    times = re.sub(r"\d+\.\d\d ms", "T", words)
    assert times == (
        f"Checks Feature Customer Answer Source {TEMPLATES} {DEMO} access granted sidecar "
        f"Usage Feature Customer Units {TEMPLATES} {DEMO} +2 "
        f"Questions to the sidecar Time Features Customer Outcome T all {DEMO} done "
        f"Holds Time Features Customer Outcome T {TEMPLATES} {DEMO} done "
        f"Reports Time Features Customer Outcome T {TEMPLATES} done"
    )
    assert "GuardPanel_sidecar;dur=" in answer.headers["Server-Timing"]


def test_a_denial_shows_its_reason(client: Client) -> None:
    _, words = shown(client, client.get("/analytics", HTTP_ACCEPT="text/html").content)
    assert f"feature-analytics {DEMO} NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION" in words


def test_a_denied_hold_shows_its_figures(client: Client) -> None:
    for _ in range(2):
        answer = client.get("/create", HTTP_ACCEPT="text/html")
    _, words = shown(client, answer.content)
    assert "REQUESTED_USAGE_EXCEEDING_LIMIT (5 of 6 templates used, 2 requested)" in words


def test_an_outage_shows_what_went_wrong(client: Client, site: Any) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, "SIDECAR": "127.0.0.1:1"}
    client.raise_request_exception = False
    _, words = shown(client, client.get("/analytics", HTTP_ACCEPT="text/html").content)
    assert re.search(rf"feature-analytics {DEMO} [^|]*127\.0\.0\.1:1[^|]* none", words)


def test_a_request_without_a_check_says_so_and_notes_nothing_of_others(client: Client) -> None:
    get_guard().check(TEMPLATES, customer=DEMO)
    _, words = shown(client, client.get("/plain").content)
    assert words == "This request checked no entitlement."


def test_an_async_view_shows_its_checks(client: Client) -> None:
    async def ask() -> bytes:
        answer = await AsyncClient().get("/later", headers={"accept": "text/html"})
        return bytes(answer.content)

    _, words = shown(client, asyncio.run(ask()))
    assert f"{TEMPLATES} {DEMO} access granted" in words


def test_only_one_observer_follows_a_guard(client: Client) -> None:
    for _ in range(3):
        client.get("/plain")
    _, words = shown(client, client.get("/later", HTTP_ACCEPT="text/html").content)
    assert words.count("access granted") == 1
