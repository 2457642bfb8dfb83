"""The URL of a Django site that takes Stigg's webhooks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import AsyncClient, Client, RequestFactory
from django.urls import include, path
from django.utils.module_loading import import_string

from stigg_guard.django import get_guard
from stigg_guard.django.webhooks import webhooks
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store
from stigg_guard.webhooks import MAX_BYTES

DEMO = "customer-demo-01"
SECRET = {"Stigg-Webhooks-Secret": "a-shared-secret"}
UPDATED = {"type": "entitlements.updated", "messageId": "m1", "customer": {"id": DEMO}}

urlpatterns = [
    path("stigg/", include("stigg_guard.django.webhooks")),
    path("other/", include("stigg_guard.django.webhooks"), {"using": "other"}),
]
pytestmark = pytest.mark.urls(__name__)


@pytest.fixture
def engine() -> Engine:
    return Engine(demo_catalog(), Store(None))


@pytest.fixture(autouse=True)
def site(engine: Engine, settings: Any) -> Iterator[Any]:
    """The settings of a site whose sidecar has the engine."""
    with Sidecar(engine) as sidecar:
        one = {**settings.STIGG_GUARD, "SIDECAR": sidecar.address, "TIMEOUT": 20, "LEDGER": "memory://"}
        settings.STIGG_GUARD = {
            "default": {**one, "WEBHOOK_SECRET": "a-shared-secret"},
            "other": {**one, "WEBHOOK_SECRET": "another-secret"},
        }
        yield settings
    engine.close()


def post(client: Client, url: str = "/stigg/webhooks/", headers: Any = SECRET, message: object = UPDATED) -> int:
    return client.post(url, message, content_type="application/json", headers=headers).status_code


def limit(using: str = "default") -> float | None:
    return get_guard(using).check("feature-templates", customer=DEMO).usage_limit


def test_a_webhook_lets_its_customer_be_asked_about_again(engine: Engine) -> None:
    assert limit() == 6
    engine.assign_plan(DEMO, "growth")
    assert post(Client(enforce_csrf_checks=True)) == 204
    assert limit() == 50


def test_each_configuration_has_its_own_secret_and_customers(engine: Engine) -> None:
    assert limit() == limit("other") == 6
    engine.assign_plan(DEMO, "growth")
    assert post(Client(), "/other/webhooks/") == 403
    assert post(Client(), "/other/webhooks/", {"Stigg-Webhooks-Secret": "another-secret"}) == 204
    assert (limit(), limit("other")) == (6, 50)


@pytest.mark.parametrize("headers", [{}, {"Stigg-Webhooks-Secret": "wrong"}])
def test_without_the_secret_it_is_refused(headers: dict[str, str]) -> None:
    assert post(Client(), headers=headers) == 403


def test_only_post_is_taken() -> None:
    response = Client().get("/stigg/webhooks/", headers=SECRET)
    assert (response.status_code, response.headers["Allow"]) == (405, "POST")


def test_rules_for_the_whole_site_do_not_guard_it(site: Any) -> None:
    rules = [{"path": "/", "feature": "feature-analytics"}]
    site.STIGG_GUARD = {**site.STIGG_GUARD, "default": {**site.STIGG_GUARD["default"], "RULES": rules}}
    assert post(Client()) == 204


def test_a_site_that_requires_a_login_lets_it_pass(site: Any) -> None:
    required = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    try:
        import_string(required)
    except ImportError:
        pytest.skip("Django has had LoginRequiredMiddleware since 5.1")
    site.MIDDLEWARE = [*site.MIDDLEWARE, required]
    assert post(Client()) == 204


def test_a_body_that_is_too_large_is_refused() -> None:
    assert post(Client(), message={"customer": "x" * MAX_BYTES}) == 413


def test_a_body_that_is_no_json_is_refused() -> None:
    response = Client().post("/stigg/webhooks/", b"{", content_type="application/json", headers=SECRET)
    assert response.status_code == 400


def test_a_body_that_a_middleware_has_read_is_there(engine: Engine) -> None:
    assert limit() == 6
    engine.assign_plan(DEMO, "growth")
    request = RequestFactory().post("/", UPDATED, content_type="application/json", headers=SECRET)
    assert request.body
    assert webhooks(request).status_code == 204
    assert limit() == 50


def test_it_is_taken_by_an_asgi_site(engine: Engine) -> None:
    assert limit() == 6
    engine.assign_plan(DEMO, "growth")

    async def post_it() -> int:
        client = AsyncClient()
        response = await client.post("/stigg/webhooks/", UPDATED, content_type="application/json", headers=SECRET)
        return response.status_code

    assert asyncio.run(post_it()) == 204
    assert limit() == 50
