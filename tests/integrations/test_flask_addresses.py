"""Where the login page and the upgrade page are, by endpoint, by path and by address, wherever the app is mounted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Blueprint, Flask, render_template_string
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from integrations.flask_shop import ESSENTIALS, HTML, add_view
from stigg_guard import ConfigError
from stigg_guard.flask import requires_feature

MakeApp = Callable[..., Flask]
Ask = Callable[..., Any]

ANALYTICS = "feature-analytics"  # the customer has none
SIGNED_IN = {"X-Signed-In": ESSENTIALS}


def shop(make_app: MakeApp, **settings: Any) -> Flask:
    """An app with a guarded view, a login page and an upgrade page."""
    app = make_app(**{"ANONYMOUS": "login", **settings})
    app.testing = True
    add_view(app, requires_feature(ANALYTICS))
    pages = Blueprint("pages", __name__)
    pages.add_url_rule("/login", "login", lambda: "login")
    pages.add_url_rule("/plans", "plans", lambda: "plans")
    pages.add_url_rule("/plans/<feature>", "plan", lambda feature: feature)
    app.register_blueprint(pages)
    return app


def at_root(app: Flask, headers: dict[str, str]) -> Any:
    return Client(app).get("/", headers=headers)


def mounted(app: Flask, headers: dict[str, str]) -> Any:
    return Client(DispatcherMiddleware(Flask("other"), {"/eu": app})).get("/eu/", headers=headers)


def behind_a_proxy(app: Flask, headers: dict[str, str]) -> Any:
    app.wsgi_app = ProxyFix(app.wsgi_app, x_prefix=1)  # type: ignore[method-assign] # as its manual has it
    return Client(app).get("/", headers={**headers, "X-Forwarded-Prefix": "/eu"})


PLACES = [(at_root, ""), (mounted, "/eu"), (behind_a_proxy, "/eu")]


@pytest.fixture(params=PLACES, ids=lambda place: place[0].__name__)
def place(request: pytest.FixtureRequest) -> tuple[Ask, str]:
    found: tuple[Ask, str] = request.param
    return found


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("pages.login", "{prefix}/login?next={next}"),
        ("/login", "{prefix}/login?next={next}"),
        ("/login?tenant=acme", "{prefix}/login?tenant=acme&next={next}"),
        ("/of-another-app", "/of-another-app?next={next}"),
        ("https://sso.example/login", "https://sso.example/login?next={next}"),
    ],
)
def test_login_page_is_found(make_app: MakeApp, place: tuple[Ask, str], given: str, address: str) -> None:
    ask, prefix = place
    location = ask(shop(make_app, LOGIN_URL=given), HTML).location
    assert location == address.format(prefix=prefix, next=f"{prefix}/".replace("/", "%2F"))


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("pages.plans", "{prefix}/plans?feature=feature-analytics"),
        ("pages.plan", "{prefix}/plans/feature-analytics"),
        ("/plans?for={feature}", "{prefix}/plans?for=feature-analytics"),
        ("/plans/{feature}", "{prefix}/plans/feature-analytics"),
        ("/prices", "/prices"),
        ("https://sales.example/?for={feature}", "https://sales.example/?for=feature-analytics"),
        ("mailto:sales@shop.example", "mailto:sales@shop.example"),
    ],
)
def test_upgrade_page_is_found(make_app: MakeApp, place: tuple[Ask, str], given: str, address: str) -> None:
    ask, prefix = place
    app = shop(make_app, LOGIN_URL="/login", UPGRADE_URL=given)
    there = address.format(prefix=prefix)
    assert ask(app, SIGNED_IN).get_json()["upgrade_url"] == there
    assert f'href="{there}"' in ask(app, {**SIGNED_IN, **HTML}).text
    assert ask(app, {**SIGNED_IN, "HX-Request": "true"}).headers["HX-Redirect"] == there


def test_upgrade_page_without_a_feature_is_found_in_templates(make_app: MakeApp) -> None:
    app = shop(make_app, LOGIN_URL="/login", UPGRADE_URL="pages.plans")
    with app.test_request_context(base_url="https://shop.example/eu"):
        assert render_template_string("{{ upgrade_url() }} {{ upgrade_url('a') }}") == "/eu/plans /eu/plans?feature=a"


@pytest.mark.parametrize(("headers", "setting"), [(HTML, "LOGIN_URL"), ({**HTML, **SIGNED_IN}, "UPGRADE_URL")])
def test_endpoint_that_is_not_there_is_told_with_the_nearest(
    make_app: MakeApp, headers: dict[str, str], setting: str
) -> None:
    app = shop(make_app, LOGIN_URL="pages.logn", UPGRADE_URL="pages.plan_s")
    with pytest.raises(ConfigError, match=rf"STIGG_GUARD_{setting}: .*Did you mean 'pages\..*begins with /"):
        at_root(app, headers)


@pytest.mark.parametrize("page", ["pages.plan_s", "pages.plan", "pages.plans"])
def test_template_without_the_address_stands(make_app: MakeApp, page: str, caplog: pytest.LogCaptureFixture) -> None:
    app = shop(make_app, LOGIN_URL="/login", UPGRADE_URL=page)
    with app.app_context():
        assert render_template_string("[{{ upgrade_url('') }}]") == "[]"
    assert "a template shows no address of the upgrade page" in caplog.text


def test_login_page_is_not_looked_for_where_nobody_is_sent_there(make_app: MakeApp) -> None:
    app = shop(make_app, ANONYMOUS="refuse", LOGIN_URL="pages.nowhere")
    assert at_root(app, HTML).status_code == 401
