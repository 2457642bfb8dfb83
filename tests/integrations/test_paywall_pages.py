"""The plans on sale on the pages of Django and Flask, from a real sidecar; and an API that fails a view."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.test import AsyncClient, Client, RequestFactory
from django.urls import path
from flask import Flask, render_template_string
from jinja2 import DictLoader

from integrations.flask_shop import add_view, client_of, guard_of
from stigg_guard.django import get_guard
from stigg_guard.flask import StiggGuard
from stigg_guard.sidecar.catalog import parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store
from stigg_guard.wording import Wording

CATALOG = """
[features.exports]
type = "boolean"
display_name = "<Exports>"
[plans.growth]
display_name = "Growth & more"
[plans.growth.entitlements]
exports = true
[plans.growth.prices]
monthly = 1290.5
"""
NAME = '<th scope="row">Growth &amp; more</th>'
INCLUDED = "<li>&lt;Exports&gt;</li>"
OWN = {"stigg_guard/paywall.html": "{% for plan in paywall.plans %}Ours: {{ plan.name }}{% endfor %}"}
NO_API = "/no-api"
"""Where the sidecar has nothing."""
TAG = "{% load stigg_guard %}[{% paywall %}]"
DJANGO = "django.template.backends.django.DjangoTemplates"


@pytest.fixture
def shop() -> Iterator[str]:
    """The address of an API that sells one plan."""
    with Sidecar(Engine(parse_catalog(CATALOG), Store(None))) as sidecar:
        yield f"http://{sidecar.http_address}"


@pytest.fixture(autouse=True)
def site(settings: Any, shop: str) -> Any:
    """The settings of a Django site that sells it."""
    settings.ROOT_URLCONF = __name__
    settings.STIGG_GUARD = {**settings.STIGG_GUARD, "API_KEY": "any", "API_URL": shop}
    settings.TEMPLATES = [{"BACKEND": DJANGO}]
    return settings


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(engines["django"].from_string(TAG).render({}, request))


async def awaited(request: HttpRequest) -> HttpResponse:
    return page(request)


def sign_up(request: HttpRequest) -> HttpResponse:
    get_guard().api.provision_customer({"customer_id": "new"})
    raise AssertionError("nothing answers")


urlpatterns = [path("page", page), path("awaited", awaited), path("sign-up", sign_up)]


def flask_page(app: Flask, template: str = "[{{ paywall() }}]") -> str:
    with app.test_request_context("/"):
        return render_template_string(template)


def test_django_shows_the_plans(client: Client) -> None:
    shown = client.get("/page").content.decode()
    assert NAME in shown
    assert INCLUDED in shown
    assert "<li>1,290.50 USD per month</li>" in shown


def test_django_writes_money_as_its_reader_does(client: Client, site: Any) -> None:
    site.LANGUAGE_CODE = "de"
    shown = client.get("/page").content.decode()
    assert "<caption>Tarife</caption>" in shown
    assert "<li>1.290,50 USD pro Monat</li>" in shown


def test_an_async_view_shows_them() -> None:
    assert NAME in async_to_sync(AsyncClient().get)("/awaited").content.decode()


def test_jinja_of_django_shows_the_same(client: Client, site: Any) -> None:
    extension = "stigg_guard.django.jinja2.StiggGuardExtension"
    options = {"extensions": [extension]}
    site.TEMPLATES = [
        {"BACKEND": DJANGO},
        {"BACKEND": "django.template.backends.jinja2.Jinja2", "NAME": "jinja", "OPTIONS": options},
    ]
    shown = engines["jinja"].from_string("[{{ paywall() }}]").render({}, RequestFactory().get("/"))
    assert shown == client.get("/page").content.decode()


def test_a_template_of_the_django_site_replaces_the_table(client: Client, site: Any) -> None:
    site.TEMPLATES = [
        {"BACKEND": DJANGO, "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", OWN)]}},
    ]
    assert client.get("/page").content.decode() == "[Ours: Growth &amp; more]"


@pytest.mark.parametrize("wrong", [{"API_URL": NO_API}, {"API_KEY": None}, {"CUSTOMR": "f"}])
def test_django_shows_nothing_when_it_cannot(
    site: Any, shop: str, wrong: dict[str, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {**wrong, "API_URL": shop + NO_API} if wrong.get("API_URL") else wrong
    site.STIGG_GUARD = {**site.STIGG_GUARD, **wrong}
    assert engines["django"].from_string(TAG).render() == "[]"
    assert len(caplog.messages) == 1


def test_flask_shows_the_plans(make_app: Callable[..., Flask], shop: str, client: Client) -> None:
    shown = flask_page(make_app(API_KEY="any", API_URL=shop))
    assert NAME in shown
    assert shown.strip() == client.get("/page").content.decode().replace("\n]", "]").strip()


def test_flask_words_them_as_the_extension_is_told(make_app: Callable[..., Flask], shop: str) -> None:
    wording = Wording(translate=lambda text: text.replace("per month", "le mois"), money=lambda amount: f"<{amount}>")
    shown = flask_page(make_app(StiggGuard(wording=wording), API_KEY="any", API_URL=shop))
    assert "<li>&lt;1290.5&gt; USD le mois</li>" in shown


def test_a_template_of_the_flask_app_replaces_the_table(make_app: Callable[..., Flask], shop: str) -> None:
    app = make_app(API_KEY="any", API_URL=shop)
    app.jinja_loader = DictLoader(OWN)
    assert flask_page(app) == "[Ours: Growth &amp; more]"


def test_flask_shows_nothing_when_it_cannot(
    make_app: Callable[..., Flask], shop: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert flask_page(make_app(API_KEY="any", API_URL=shop + NO_API), "[{{ paywall() }}{{ paywall() }}]") == "[]"
    assert len(caplog.messages) == 1


def test_the_table_has_its_headings(client: Client) -> None:
    shown = client.get("/page").content.decode()
    assert re.findall('<th scope="col">(.*?)</th>', shown) == ["Plan", "Price", "Included"]


def test_an_api_that_fails_a_view_of_django_is_503(site: Any, shop: str, caplog: pytest.LogCaptureFixture) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, "API_URL": shop + NO_API}
    response = Client().get("/sign-up")
    assert (response.status_code, response["Retry-After"]) == (503, "1")
    assert "cannot be done right now" in response.content.decode()
    assert [message for message in caplog.messages if "/sign-up cannot be served: ProvisionCustomer: " in message]


def test_an_api_that_fails_a_view_of_flask_is_503(make_app: Callable[..., Flask], shop: str, caplog: Any) -> None:
    app = make_app(API_KEY="any", API_URL=shop + NO_API)
    add_view(app, answer=lambda: guard_of(app).api.provision_customer({"customer_id": "new"}))
    response = client_of(app).get("/")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert "cannot be done right now" in response.text
    assert "view was answered 503: ProvisionCustomer: " in caplog.text
