"""The recipes of docs/flask, executed as they are written there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apiflask
import flask_smorest
import pytest
from flask import Blueprint, Flask, Response, redirect, request
from flask_httpauth import HTTPTokenAuth
from flask_login import LoginManager, UserMixin, current_user, login_user
from flask_restx import Api, Resource

import stigg_guard
from integrations.flask_shop import ESSENTIALS, HTML, add_view, client_of, guard_of, signed_in
from stigg_guard.flask import RequestDenied, StiggGuard, requires_feature
from stigg_guard.sidecar.server import Sidecar

MakeApp = Callable[..., Flask]
Used = Callable[[], float]

PAGES = Path(__file__).parents[2] / "docs" / "flask"
MANUAL = (PAGES / "recipes.md").read_text(encoding="utf-8")
GUARDS = (PAGES / "guards.md").read_text(encoding="utf-8")
PROBLEM = "application/problem+json"


def follow_recipe(heading: str, manual: str = MANUAL, **names: Any) -> dict[str, Any]:
    """Executes the recipe with these names; the names that it has made, too."""
    section = re.split(r"\n##+ ", manual.partition(f"## {heading}\n")[2])[0]
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(compile(block, f"recipe {heading}", "exec"), names)
    return names


@pytest.fixture
def extension() -> StiggGuard:
    return StiggGuard()


@pytest.fixture
def app(make_app: MakeApp, extension: StiggGuard) -> Flask:
    return make_app(extension)


def test_jobs_without_a_context(app: Flask, extension: StiggGuard, used: Used) -> None:
    rendered: list[int] = []
    with ThreadPoolExecutor(1) as threads:
        recipe = follow_recipe(
            "A job without a context",
            app=app,
            guard=extension,
            request=request,
            customer_of=signed_in,
            threads=threads,
            render=rendered.append,
        )
        recipe["render_report"](ESSENTIALS, 1)
        assert client_of(app).post("/reports/2").status_code == 202
    assert (rendered, used()) == ([1, 2], 5)


def test_server_sent_events(app: Flask, extension: StiggGuard, used: Used) -> None:
    follow_recipe(
        "Server-sent events",
        app=app,
        guard=extension,
        request=request,
        Response=Response,
        stigg_guard=stigg_guard,
        customer_of=signed_in,
        messages=lambda: iter("abcd"),
    )
    with client_of(app).get("/events") as left:
        events: Iterator[Any] = left.iter_encoded()
        assert [next(events), next(events)] == [b"data: a\n\n", b"data: b\n\n"]
    assert used() == 4
    assert client_of(app).get("/events").text == "data: a\n\ndata: b\n\nevent: limit\ndata: no more\n\n"
    assert used() == 6


def test_smorest_keeps_problem_json(app: Flask) -> None:
    app.config.update(API_TITLE="Shop", API_VERSION="1", OPENAPI_VERSION="3.0.3")
    flask_smorest.Api(app)
    follow_recipe("flask-smorest and APIFlask", app=app, RequestDenied=RequestDenied)
    add_view(app, requires_feature("feature-analytics"))
    answers = [client_of(app).get(path) for path in ("/", "/nowhere")]
    assert [(answer.status_code, answer.mimetype) for answer in answers] == [(402, PROBLEM), (404, "application/json")]


def test_apiflask_keeps_problem_json(extension: StiggGuard, sidecar: Sidecar) -> None:
    app = apiflask.APIFlask("shop")
    app.config.update(
        STIGG_GUARD_SIDECAR=sidecar.address, STIGG_GUARD_CUSTOMER=signed_in, STIGG_GUARD_LEDGER="memory://"
    )
    extension.init_app(app)
    follow_recipe("flask-smorest and APIFlask", app=app, RequestDenied=RequestDenied)
    add_view(app, requires_feature("feature-analytics"))
    with guard_of(app):
        answers = [client_of(app).get("/"), client_of(app).get("/", headers=HTML), client_of(app).get("/nowhere")]
    assert [answer.mimetype for answer in answers] == [PROBLEM, "text/html", "application/json"]


def test_restx_keeps_problem_json(app: Flask) -> None:
    recipe = follow_recipe("Flask-RESTX", Api=Api, RequestDenied=RequestDenied)

    class Figures(Resource):
        @requires_feature("feature-analytics")
        def get(self) -> str:
            return "figures"

    api = recipe["GuardedApi"](app)
    api.add_resource(Figures, "/figures")
    answers = [client_of(app).get("/figures"), client_of(app).post("/figures")]
    assert [(answer.status_code, answer.mimetype) for answer in answers] == [(402, PROBLEM), (405, "application/json")]


def test_httpauth_comes_before_the_group(make_app: MakeApp, used: Used) -> None:
    extension = StiggGuard()
    app = make_app(extension, CUSTOMER=None)
    api, auth = Blueprint("api", __name__), HTTPTokenAuth()
    auth.verify_token({"a token": ESSENTIALS}.get)
    follow_recipe("Flask-HTTPAuth", guard=extension, api=api, auth=auth)
    api.add_url_rule("/templates", "templates", lambda: "templates")
    app.register_blueprint(api)
    client = app.test_client()
    statuses = [
        client.get("/templates", headers={"Authorization": f"Bearer {token}"}).status_code
        for token in ("a token", "another")
    ]
    assert statuses == [200, 401]
    with guard_of(app) as guard:
        assert (guard.flush(), guard.stats()["held"]) == (0, 0)
    assert used() == 4


class Visitor(UserMixin):
    id = "ann"
    account = SimpleNamespace(stigg_id=ESSENTIALS)


def test_who_signs_in_uses_what_the_view_consumes(
    app: Flask, extension: StiggGuard, used: Callable[[str], float]
) -> None:
    app.secret_key = "tests-only"
    LoginManager(app).user_loader(lambda _: Visitor())
    follow_recipe(
        "At sign-in",
        GUARDS,
        app=app,
        guard=extension,
        request=request,
        authenticated=lambda _, password: Visitor() if password == "secret" else None,
        render_template=lambda _: "sign in",
        login_user=login_user,
        redirect=redirect,
    )
    app.add_url_rule("/who", "who", lambda: current_user.get_id() or "")
    client = app.test_client()
    told = [client.post("/sign-in", data={"user": "ann", "password": one}).status_code for one in ("wrong", "secret")]
    assert (told, client.get("/who").text) == ([422, 302], "ann")
    assert used("feature-active-users") == 1
