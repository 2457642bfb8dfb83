"""Guards of Flask's own kinds of views; what is the same in every framework is in the table of guard cases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    redirect,
    render_template_string,
    request,
    send_file,
    stream_with_context,
)
from flask.views import MethodView, View
from flask_caching import Cache
from flask_cors import cross_origin
from werkzeug.exceptions import HTTPException

from integrations.flask_shop import ESSENTIALS, GROWTH, TEMPLATES, add_view, client_of, guard_of
from stigg_guard import ConfigError, InvalidRequest
from stigg_guard.flask import StiggGuard, consumes_usage, exempt, protect, releases_usage, requires_feature

MakeApp = Callable[..., Flask]
Used = Callable[[], float]


class Found(HTTPException):
    code = 302


# Views


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("made", 200),
        ({"made": 1}, 200),
        (("made", 201), 201),
        (lambda: iter(["made"]), 200),
        (lambda: send_file(BytesIO(b"made"), mimetype="text/plain"), 200),
        (lambda: abort(redirect("/new")), 302),
        (lambda: abort(Response("made", 202)), 202),
    ],
)
def test_every_kind_of_successful_answer_counts(app: Flask, used: Used, answer: Any, status: int) -> None:
    runs = add_view(app, consumes_usage(1, TEMPLATES), answer=answer)
    response = client_of(app).post("/", buffered=True)
    assert response.status_code == status
    assert used() == 4
    assert runs == ["run"]


@pytest.mark.parametrize("answer", [lambda: abort(Response(status=304)), lambda: abort(409), lambda: abort(503)])
def test_no_kind_of_abort_that_fails_counts(app: Flask, used: Used, answer: Any) -> None:
    add_view(app, consumes_usage(1, TEMPLATES), answer=answer)
    assert client_of(app).post("/").status_code >= 304
    assert (used(), guard_of(app).stats()["held"]) == (3, 0)


def test_exception_of_success_is_answered_by_the_apps_handler(app: Flask, used: Used) -> None:
    def elsewhere() -> None:
        raise Found

    app.register_error_handler(Found, lambda error: redirect("/handled"))
    add_view(app, consumes_usage(1, TEMPLATES), answer=elsewhere)
    assert client_of(app).post("/").location == "/handled"
    assert used() == 4


def test_before_request_function_that_consumes_is_refused_with_the_remedy_and_holds_nothing(
    app: Flask, used: Used
) -> None:
    @app.before_request
    @consumes_usage(1, TEMPLATES)
    def counting() -> None:
        return None

    app.testing = True
    with pytest.raises(ConfigError, match="protect the blueprint"):
        client_of(app).get("/")
    assert (used(), guard_of(app).stats()["held"]) == (3, 0)


@pytest.mark.parametrize("guard", [requires_feature, consumes_usage])
def test_decorator_without_its_parentheses_is_refused_with_the_remedy(guard: Callable[..., Any]) -> None:
    def view() -> str:
        return "made"

    with pytest.raises(ConfigError, match=f"view .*write @{guard.__name__}.* with parentheses"):
        guard(view)


PREFLIGHTS: dict[str, tuple[dict[str, Any], int, list[str]]] = {
    "that Flask answers": ({}, 200, []),
    "that Flask is told to answer": ({"methods": ["GET", "OPTIONS"], "provide_automatic_options": True}, 200, []),
    "of a route that names it": ({"methods": ["GET", "OPTIONS"]}, 402, []),
    "that no one answers": ({"methods": ["GET"], "provide_automatic_options": False}, 405, []),
}
WAYS: dict[str, Callable[[Flask], Any]] = {
    "a decorator": lambda _: requires_feature("feature-analytics"),
    "a decorator that consumes": lambda _: consumes_usage(4, TEMPLATES),
    "a group": lambda app: protect(app, "feature-analytics"),
    "a group that consumes": lambda app: protect(app, TEMPLATES, 4),
}


@pytest.mark.parametrize(("route", "status", "runs"), PREFLIGHTS.values(), ids=PREFLIGHTS)
@pytest.mark.parametrize("guard", WAYS.values(), ids=WAYS)
def test_options_is_guarded_unless_flask_answers_it(
    app: Flask, guard: Callable[[Flask], Any], route: dict[str, Any], status: int, runs: list[str]
) -> None:
    ran: list[str] = []
    view = (guard(app) or (lambda view: view))(lambda: ran.append("run") or "made")
    app.add_url_rule("/", "view", view, **route)
    assert client_of(app).options("/").status_code == status
    assert ran == runs


@pytest.mark.parametrize(("methods", "status"), [(["GET"], 200), (["GET", "OPTIONS"], 402)])
def test_options_under_a_rule_is_guarded_unless_flask_answers_it(
    make_app: MakeApp, methods: list[str], status: int
) -> None:
    app = make_app(RULES=[{"path": "/", "feature": "feature-analytics"}])
    app.add_url_rule("/", "view", lambda: "made", methods=methods)
    assert client_of(app).options("/").status_code == status


def test_options_that_a_class_answers_itself_is_guarded(app: Flask) -> None:
    class Templates(MethodView):
        decorators = (requires_feature("feature-analytics"),)

        def options(self) -> str:
            return "made"

    app.add_url_rule("/", view_func=Templates.as_view("templates"))
    assert client_of(app).options("/").status_code == 402


def test_preflight_is_answered_by_cross_origin_above_the_guards(app: Flask) -> None:
    view = cross_origin()(requires_feature("feature-analytics")(lambda: "made"))
    app.add_url_rule("/", "view", view)
    asked = {"Origin": "https://other.example", "Access-Control-Request-Method": "GET"}
    assert client_of(app).options("/", headers=asked).headers["Access-Control-Allow-Origin"] == asked["Origin"]
    assert client_of(app).get("/", headers=asked).status_code == 402


def test_concurrent_requests_use_no_more_than_the_limit(app: Flask, used: Used) -> None:
    add_view(app, consumes_usage(1, TEMPLATES))
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(client_of(app).post("/").status_code)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 3 + [402] * 5
    assert used() == 6


@pytest.mark.parametrize("anew", [True, False])
def test_class_based_view_is_guarded_by_its_decorators(app: Flask, used: Used, anew: bool) -> None:
    class Templates(View):
        init_every_request = anew
        methods = ("POST",)
        decorators = (consumes_usage(lambda request, n: n, TEMPLATES), requires_feature("feature-exports"))

        def dispatch_request(self, n: int) -> tuple[str, int]:
            return f"made {n}", 201

    app.add_url_rule("/templates/<int:n>", view_func=Templates.as_view("templates"))
    for _ in range(2):
        assert client_of(app).post("/templates/1").status_code == 201
    assert client_of(app, "customer-demo-03").post("/templates/1").status_code == 402
    assert used() == 5


def test_method_of_a_class_based_view_is_guarded_alone(app: Flask, used: Used) -> None:
    class Templates(MethodView):
        def get(self, name: str) -> str:
            return name

        @consumes_usage(1, TEMPLATES)
        async def post(self, name: str) -> str:
            return f"made {name}"

    app.add_url_rule("/<name>", view_func=Templates.as_view("templates"))
    assert client_of(app, "").get("/poster").text == "poster"
    assert client_of(app).post("/poster").text == "made poster"
    assert used() == 4


def test_async_view_may_have_its_route_above_and_synchronous_decorators_between(app: Flask, used: Used) -> None:
    @app.post("/<name>")
    @requires_feature(TEMPLATES)
    @consumes_usage(1)
    async def view(name: str) -> str:
        return f"made {name}"

    assert client_of(app).post("/poster").text == "made poster"
    assert used() == 4


def test_client_that_goes_away_in_mid_stream_ends_the_views_generator(app: Flask, used: Used) -> None:
    ended: list[str] = []

    def letters() -> Iterator[str]:
        try:
            yield "one "
            yield "two"
        finally:
            ended.append(request.path)

    add_view(app, consumes_usage(2, TEMPLATES), answer=lambda: Response(stream_with_context(letters())))
    client_of(app).get("/").close()
    assert ended == ["/"]
    assert (used(), guard_of(app).stats()["held"]) == (3, 0)


def test_head_request_streams_nothing_and_is_given_back_at_once(app: Flask, used: Used) -> None:
    add_view(app, consumes_usage(2, TEMPLATES), answer=lambda: Response(iter(["made"])))
    client_of(app).head("/")
    assert (used(), guard_of(app).stats()["held"]) == (3, 0)


def test_units_are_given_back_as_the_view_says(app: Flask, used: Used) -> None:
    release = releases_usage(3, TEMPLATES, actual=lambda answer: len(answer["removed"]))
    add_view(app, release, answer=lambda: {"removed": ["poster"]})
    assert client_of(app).post("/").get_json() == {"removed": ["poster"]}
    assert used() == 2


def test_bad_constant_number_of_units_is_refused_at_decoration() -> None:
    with pytest.raises(InvalidRequest):
        consumes_usage(-1, TEMPLATES)


@pytest.mark.parametrize("guard", [requires_feature, lambda feature, **options: consumes_usage(1, feature, **options)])
def test_methods_that_are_no_list_are_refused_at_decoration(guard: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="methods"):
        guard(TEMPLATES, methods="POST")


def test_body_that_is_no_json_is_answered_by_flask_and_holds_nothing(app: Flask, used: Used) -> None:
    runs = add_view(app, consumes_usage(lambda request: len(request.get_json()), TEMPLATES))
    assert client_of(app).post("/", data="{", content_type="application/json").status_code == 400
    assert client_of(app).post("/", data="text").status_code == 415
    assert runs == []
    assert used() == 3


# Caches that customers share


@pytest.mark.parametrize(
    "guard", [requires_feature("feature-exports"), consumes_usage(1, TEMPLATES), releases_usage(1, TEMPLATES)]
)
@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("made", "private"),
        (("made", 201), "private"),
        (("sold out", 409), "private"),
        (lambda: abort(404), "private"),
        (lambda: redirect("/new"), "private"),
        (("made", {"Cache-Control": "public, max-age=60"}), "public, max-age=60"),
        (lambda: Response("made", headers={"Cache-Control": "no-store"}), "no-store"),
    ],
)
def test_response_of_a_guarded_view_is_for_no_shared_cache_unless_the_view_says_so(
    app: Flask, guard: Any, answer: Any, kept: str
) -> None:
    add_view(app, guard, answer=answer)
    assert client_of(app).get("/").headers["Cache-Control"] == kept


@pytest.mark.parametrize("kept", ["private", None])
def test_response_of_a_group_or_a_rule_is_for_no_shared_cache_and_no_other(make_app: MakeApp, kept: Any) -> None:
    app = make_app(RULES=[{"path": "/", "feature": "feature-exports"}] if kept else [])
    add_view(app, answer=lambda: render_template_string("{{ usage('feature-templates') }}"))
    assert client_of(app).get("/").headers.get("Cache-Control") == kept


def test_cache_below_a_guard_gives_nobody_what_his_plan_lacks(app: Flask) -> None:
    cache = Cache(app, config={"CACHE_TYPE": "SimpleCache"})
    runs = add_view(app, requires_feature("feature-analytics"), cache.cached())
    statuses = [client_of(app, customer).get("/").status_code for customer in (GROWTH, GROWTH, ESSENTIALS)]
    assert (statuses, runs) == ([200, 200, 402], ["run"])


# Groups


def test_blueprint_is_guarded_with_the_blueprints_in_it_and_no_others(app: Flask) -> None:
    outer, inner, other = (Blueprint(name, __name__) for name in ("outer", "inner", "other"))
    protect(outer, "feature-analytics")
    for blueprint in (outer, inner, other):
        blueprint.add_url_rule(f"/{blueprint.name}", "view", lambda: "figures")
    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    app.register_blueprint(other)
    client = client_of(app)
    assert [client.get(f"/{name}").status_code for name in ("outer", "inner", "other")] == [402, 402, 200]
    assert client_of(app, GROWTH).get("/inner").text == "figures"


def test_blueprint_may_be_protected_and_registered_before_init_app(make_app: MakeApp) -> None:
    blueprint = Blueprint("analytics", __name__)
    StiggGuard.protect(blueprint, "feature-analytics")
    blueprint.add_url_rule("/analytics", "view", lambda: "figures")
    here, there = make_app(), make_app(ENABLED=False)
    for app in (here, there):
        app.register_blueprint(blueprint)
    assert client_of(here).get("/analytics").status_code == 402
    assert client_of(there).get("/analytics").status_code == 200


@pytest.mark.parametrize("n", [None, 1])
def test_group_of_an_app_without_the_extension_runs_no_view(n: int | None) -> None:
    app = Flask("shop")
    app.testing = True
    protect(app, "feature-analytics", n)
    runs = add_view(app)
    with pytest.raises(ConfigError, match=r"'shop' has no guard.*init_app"):
        app.test_client().get("/")
    assert runs == []


def test_app_is_guarded_but_for_addresses_that_are_not_there(app: Flask, used: Used) -> None:
    protect(app, TEMPLATES, 1)
    add_view(app)
    app.add_url_rule("/folder/", "folder", lambda: "folder")
    client = client_of(app)
    assert [client.get(path).status_code for path in ("/", "/nowhere", "/folder")] == [200, 404, 308]
    assert client.put("/").status_code == 405
    assert used() == 4


def test_class_based_view_may_be_exempt(app: Flask) -> None:
    class Login(MethodView):
        decorators = (exempt,)

        def get(self) -> str:
            return "sign in"

    protect(app, "feature-analytics")
    app.add_url_rule("/login", view_func=Login.as_view("login"))
    assert client_of(app, "").get("/login").text == "sign in"


def test_exempt_view_is_guarded_where_it_is_used_without_that(app: Flask) -> None:
    def view() -> str:
        return "figures"

    protect(app, "feature-analytics")
    app.add_url_rule("/free", "free", exempt(view))
    app.add_url_rule("/paid", "paid", view)
    assert [client_of(app).get(path).status_code for path in ("/free", "/paid")] == [200, 402]


@pytest.mark.parametrize("answer", [lambda: redirect("/login"), lambda: "closed today", lambda: abort(403)])
def test_what_another_function_answers_before_the_view_is_never_counted(
    make_app: MakeApp, answer: Callable[[], Any]
) -> None:
    app = make_app(RULES=[{"path": "/", "feature": TEMPLATES, "consume": 1}])
    protect(app, TEMPLATES, 1)
    app.before_request(answer)
    runs = add_view(app)
    client_of(app).post("/")
    assert runs == []
    assert (guard_of(app).flush(), guard_of(app).stats()["held"]) == (0, 0)
    assert guard_of(app).check(TEMPLATES, customer=ESSENTIALS).current_usage == 3


def test_before_request_function_may_be_guarded_itself(app: Flask) -> None:
    blueprint = Blueprint("analytics", __name__)

    @blueprint.before_request
    @requires_feature("feature-analytics")
    def only_with_analytics() -> None:
        return None

    blueprint.add_url_rule("/analytics", "report", lambda: "report")
    app.register_blueprint(blueprint)
    assert client_of(app, ESSENTIALS).get("/analytics").status_code == 402
    assert client_of(app, GROWTH).get("/analytics").text == "report"


def test_app_of_a_class_that_dispatches_itself_is_guarded(make_app: MakeApp, sidecar: Any, tmp_path: Any) -> None:
    class Shouting(Flask):
        def dispatch_request(self) -> Any:
            return str(super().dispatch_request()).upper()

    app = Shouting("shop", instance_path=str(tmp_path))
    app.config.update(STIGG_GUARD_SIDECAR=sidecar.address, STIGG_GUARD_CUSTOMER=lambda _: GROWTH)
    StiggGuard(app)
    protect(app, "feature-analytics")
    add_view(app)
    assert app.test_client().get("/").text == "MADE"
    guard_of(app).close()


@pytest.mark.parametrize("n", [None, 1])
def test_group_without_a_feature_is_refused(app: Flask, n: int | None) -> None:
    with pytest.raises(InvalidRequest):
        protect(app, "", n)
