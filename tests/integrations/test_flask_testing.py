"""Overridden entitlements in the tests of a Flask app: the test client works without a sidecar."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator

import pytest
from flask import Flask, Request, Response

from stigg_guard.flask import StiggGuard
from stigg_guard.testing import StandIn, override_entitlements

pytest_plugins = ["stigg_guard.testing"]

ACME = "acme"


def make_app() -> Flask:
    app = Flask("shop")
    app.config.update(STIGG_GUARD_SIDECAR="127.0.0.1:1", STIGG_GUARD_LEDGER="memory://")
    guard = StiggGuard(app)

    @guard.customer_loader
    def load(request: Request) -> str | None:
        return request.headers.get("X-Signed-In")

    @app.get("/reports")
    @guard.requires_feature("feature-reports")
    def reports() -> str:
        return "reports"

    @app.post("/create")
    @guard.consumes_usage(lambda request: request.get_json()["n"], "feature-templates")
    def create() -> tuple[str, int]:
        return "created", 201

    @app.get("/export")
    @guard.consumes_usage(1, "feature-exports")
    def export() -> Response:
        return Response(iter(["one\n", "two\n"]))

    return app


@pytest.fixture
def app() -> Iterator[Flask]:
    app = make_app()
    yield app
    with app.app_context():
        StiggGuard().guard.close()


def get(app: Flask, url: str) -> int:
    with app.test_client().get(url, headers={"X-Signed-In": ACME}) as response:
        assert response.data
        return response.status_code


def create(app: Flask, n: int) -> int:
    return app.test_client().post("/create", json={"n": n}, headers={"X-Signed-In": ACME}).status_code


@override_entitlements({"feature-reports": True})
def test_a_decorated_test_has_its_entitlements(app: Flask) -> None:
    assert get(app, "/reports") == 200
    assert get(app, "/export") == 402


def test_the_fixture_gives_what_the_test_says(app: Flask, stigg: StandIn) -> None:
    assert get(app, "/reports") == 402
    stigg.set({"feature-reports": True})
    assert get(app, "/reports") == 200


def test_nobody_who_is_not_signed_in_gets_anything(app: Flask, stigg: StandIn) -> None:
    stigg.set({"feature-reports": True})
    assert app.test_client().get("/reports").status_code == 401


def test_usage_is_reported_with_the_response(
    app: Flask, stigg: StandIn, assert_usage_reported: Callable[..., None]
) -> None:
    stigg.set({"feature-templates": {"limit": 5}, "feature-exports": {"limit": 1}})
    assert [create(app, 3), create(app, 3), create(app, 2)] == [201, 402, 201]
    assert_usage_reported("feature-templates", 5, customer=ACME)
    assert [get(app, "/export"), get(app, "/export")] == [200, 402]
    assert_usage_reported("feature-exports", 1, customer=ACME)


@override_entitlements({"feature-reports": True})
class AppTests(unittest.TestCase):
    def setUp(self) -> None:
        self.app = make_app()

    def tearDown(self) -> None:
        with self.app.app_context():
            StiggGuard().guard.close()

    def test_each_test_has_the_entitlements_of_the_class(self) -> None:
        assert get(self.app, "/reports") == 200

    @override_entitlements({"feature-reports": False})
    def test_a_method_takes_one_away(self) -> None:
        assert get(self.app, "/reports") == 402
