"""Overridden entitlements in a Django project's own tests: no sidecar is there, and none is asked."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, LiveServerTestCase, TestCase, override_settings
from django.urls import path

from stigg_guard import FeatureDenied
from stigg_guard.django import consumes_usage, get_guard, requires_feature
from stigg_guard.testing import RealLedgerWarning, StandIn, override_entitlements

pytest_plugins = ["stigg_guard.testing"]

ACME = "acme"


def signed_in(_request: HttpRequest) -> str:
    return ACME


@requires_feature("feature-reports")
def reports(_request: HttpRequest) -> HttpResponse:
    return HttpResponse("reports")


@requires_feature("feature-templates")
@consumes_usage(1)
def create(_request: HttpRequest) -> HttpResponse:
    Group.objects.create(name=f"template {Group.objects.count()}")
    return HttpResponse("created", status=201)


@consumes_usage(1, "feature-exports")
def export(_request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(iter(["one\n", "two\n"]))


@consumes_usage(1, "feature-exports")
async def export_asynchronously(_request: HttpRequest) -> HttpResponse:
    return HttpResponse("exported")


urlpatterns = [
    path("reports", reports),
    path("create", create),
    path("export", export),
    path("export/async", export_asynchronously),
]
pytestmark = pytest.mark.urls(__name__)

NO_SIDECAR = {"CUSTOMER": signed_in, "SIDECAR": "127.0.0.1:1", "LEDGER": "memory://"}
SITE = override_settings(STIGG_GUARD=NO_SIDECAR, ROOT_URLCONF=__name__, STATIC_URL="/static/")


@pytest.fixture
def site(settings: Any) -> None:
    settings.STIGG_GUARD = NO_SIDECAR


@SITE
@override_entitlements({"feature-templates": {"limit": 3}})
class OverriddenTests(TestCase):
    def test_a_view_that_the_plan_lacks_is_denied(self) -> None:
        assert self.client.get("/reports").status_code == 402

    @override_entitlements({"feature-reports": True})
    def test_a_method_adds_to_the_class(self) -> None:
        assert self.client.get("/reports").status_code == 200
        with self.captureOnCommitCallbacks(execute=True):
            assert self.client.get("/create").status_code == 201

    def test_usage_is_reported_when_the_transaction_is_committed(self) -> None:
        with override_entitlements({}) as stigg:
            with self.captureOnCommitCallbacks(execute=True):
                self.client.get("/create")
                assert stigg.usage("feature-templates") == 0
            stigg.assert_usage_reported("feature-templates", 1, customer=ACME)

    def test_usage_of_a_transaction_that_is_rolled_back_is_given_back(self) -> None:
        with override_entitlements({"feature-templates": {"limit": 1}}) as stigg:
            with transaction.atomic():
                assert self.client.get("/create").status_code == 201
                assert self.client.get("/create").status_code == 402
                transaction.set_rollback(True)
            assert self.client.get("/create").status_code == 201
            assert stigg.usage("feature-templates") == 0

    def test_what_is_never_committed_ends_with_the_test(self) -> None:
        assert self.client.get("/create").status_code == 201

    def test_a_limit_that_is_reached_is_denied(self) -> None:
        assert [self.client.get("/create").status_code for _ in range(4)] == [201, 201, 201, 402]


@SITE
@override_entitlements({"feature-exports": {"limit": 1}})
class LiveTests(LiveServerTestCase):
    def get(self, url: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(self.live_server_url + url) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, b""

    def test_a_live_server_answers_from_the_override(self) -> None:
        with override_entitlements({"feature-reports": True}) as stigg:
            assert self.get("/reports") == (200, b"reports")
            assert self.get("/export") == (200, b"one\ntwo\n")
            stigg.assert_usage_reported("feature-exports", 1)
            assert self.get("/export")[0] == 402


@pytest.mark.usefixtures("site")
def test_the_fixture_serves_a_plain_test(client: Client, stigg: StandIn) -> None:
    assert client.get("/reports").status_code == 402
    stigg.set({"feature-reports": True})
    assert client.get("/reports").status_code == 200


@override_entitlements({"feature-exports": {"limit": 1}})
async def _answers_asynchronously() -> None:
    client = AsyncClient()
    statuses = [(await client.get("/export/async")).status_code for _ in range(2)]
    assert statuses == [200, 402]


@pytest.mark.usefixtures("site")
def test_an_async_test_runs_within_the_override(assert_usage_reported: Callable[..., None]) -> None:
    asyncio.run(_answers_asynchronously())
    assert_usage_reported("feature-exports", 1, customer=ACME)


@pytest.mark.django_db
@pytest.mark.usefixtures("site")
def test_usage_returns_to_0_in_the_next_period(client: Client, stigg: StandIn) -> None:
    stigg.set({"feature-exports": {"limit": 1, "reset": "month"}})
    stigg.travel_to(datetime(2024, 1, 31, 12))

    def status() -> int:
        response = client.get("/export")
        assert b"".join(response) if response.streaming else response.content
        return response.status_code

    assert [status(), status()] == [200, 402]
    stigg.travel(timedelta(days=1))
    assert status() == 200


@pytest.mark.usefixtures("site")
def test_a_site_that_is_switched_off_is_guarded_within_the_override(
    settings: Any, client: Client, stigg: StandIn
) -> None:
    settings.STIGG_GUARD = {**NO_SIDECAR, "ENABLED": False}
    assert client.get("/reports").status_code == 402
    stigg.set({"feature-reports": True})
    assert client.get("/reports").status_code == 200


@pytest.mark.usefixtures("site")
def test_the_guard_of_the_project_asks_the_override(stigg: StandIn) -> None:
    with pytest.raises(FeatureDenied):
        get_guard().require("feature-reports", customer=ACME)
    stigg.set({"feature-reports": True})
    assert get_guard().require("feature-reports", customer=ACME)


@pytest.mark.parametrize(
    ("ledger", "warns"),
    [
        ({"LEDGER": "sqlite:///{}/ledger.sqlite3"}, True),
        ({"LEDGER": "django://default"}, True),
        ({}, True),
        ({"LEDGER": "memory://"}, False),
        ({"LEDGER": "sqlite:///{}/ledger.sqlite3", "ENABLED": False}, False),
    ],
)
def test_a_guard_without_an_override_warns_before_it_uses_a_real_ledger(
    settings: Any, tmp_path: Path, ledger: dict[str, Any], warns: bool
) -> None:
    given = {name: value.format(tmp_path) if isinstance(value, str) else value for name, value in ledger.items()}
    settings.STIGG_GUARD = {"CUSTOMER": signed_in, "SIDECAR": "127.0.0.1:1", "ON_OUTAGE": "allow", **given}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        get_guard().check("feature-reports", customer=ACME)
    assert [warning.category for warning in told if warning.category is RealLedgerWarning] == [
        RealLedgerWarning
    ] * warns
    with warnings.catch_warnings(), override_entitlements({}):
        warnings.simplefilter("error")
        get_guard().check("feature-reports", customer=ACME)
