"""The URL of a Flask app that takes Stigg's webhooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from flask import Flask, request

from stigg_guard.flask import StiggGuard
from stigg_guard.flask.webhooks import webhooks
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store
from stigg_guard.webhooks import MAX_BYTES

DEMO = "customer-demo-01"
SECRET = {"Stigg-Webhooks-Secret": "a-shared-secret"}
UPDATED = {"type": "entitlements.updated", "messageId": "m1", "customer": {"id": DEMO}}

guard = StiggGuard()


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(demo_catalog(), Store(None))
    yield engine
    engine.close()


@pytest.fixture
def make_app(engine: Engine) -> Iterator[Callable[..., Flask]]:
    apps: list[Flask] = []

    def make(**settings: Any) -> Flask:
        app = Flask("shop")
        app.config.update(
            STIGG_GUARD_SIDECAR=sidecar.address,
            STIGG_GUARD_LEDGER="memory://",
            STIGG_GUARD_CUSTOMER=lambda _: DEMO,
            STIGG_GUARD_WEBHOOK_SECRET="a-shared-secret",
            **settings,
        )
        guard.init_app(app)
        app.register_blueprint(webhooks)
        apps.append(app)
        return app

    with Sidecar(engine) as sidecar:
        yield make
        for app in apps:
            with app.app_context():
                guard.guard.close()


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app()


def post(app: Flask, **more: Any) -> int:
    return app.test_client().post("/stigg/webhooks", **{"json": UPDATED, "headers": SECRET, **more}).status_code


def limit(app: Flask) -> float | None:
    with app.app_context():
        return guard.guard.check("feature-templates", customer=DEMO).usage_limit


def test_a_webhook_lets_its_customer_be_asked_about_again(app: Flask, engine: Engine) -> None:
    assert limit(app) == 6
    engine.assign_plan(DEMO, "growth")
    assert post(app) == 204
    assert limit(app) == 50


def test_each_app_takes_its_own(make_app: Callable[..., Flask], engine: Engine) -> None:
    one, other = make_app(), make_app()
    assert limit(one) == limit(other) == 6
    engine.assign_plan(DEMO, "growth")
    post(one)
    assert (limit(one), limit(other)) == (50, 6)
    post(other)
    assert limit(other) == 50


@pytest.mark.parametrize("headers", [{}, {"Stigg-Webhooks-Secret": "wrong"}])
def test_without_the_secret_it_is_refused(app: Flask, headers: dict[str, str]) -> None:
    assert post(app, headers=headers) == 403


def test_only_post_is_taken(app: Flask) -> None:
    assert app.test_client().get("/stigg/webhooks", headers=SECRET).status_code == 405


def test_rules_for_the_whole_app_do_not_guard_it(make_app: Callable[..., Flask]) -> None:
    app = make_app(STIGG_GUARD_RULES=[{"path": "/", "feature": "feature-analytics"}])
    assert post(app) == 204


def test_a_body_that_is_too_large_is_refused(app: Flask) -> None:
    assert post(app, json={"customer": "x" * MAX_BYTES}) == 413


def test_a_body_that_is_no_json_is_refused(app: Flask) -> None:
    assert post(app, json=None, data=b"{") == 400


def test_a_body_of_unknown_length_is_taken(app: Flask, engine: Engine) -> None:
    assert limit(app) == 6
    engine.assign_plan(DEMO, "growth")
    chunked = {"wsgi.input_terminated": True, "CONTENT_LENGTH": ""}
    body = BytesIO(app.json.dumps(UPDATED).encode())
    assert post(app, json=None, input_stream=body, environ_overrides=chunked) == 204
    assert limit(app) == 50


def test_a_body_that_the_app_has_read_is_there(app: Flask, engine: Engine) -> None:
    @app.before_request
    def read() -> None:
        request.get_data()

    assert limit(app) == 6
    engine.assign_plan(DEMO, "growth")
    assert post(app) == 204
    assert limit(app) == 50
