"""What views return passes through their guards as it is, with real extensions above and below them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from itertools import permutations
from typing import Any

import apiflask
import flask_smorest
import marshmallow
import pytest
from apifairy import APIFairy, response
from flask import Blueprint, Flask, Response, abort, redirect, request
from flask.views import MethodView
from flask_login import LoginManager, UserMixin, login_required
from flask_marshmallow import Marshmallow, schema
from flask_restx import Api, Resource, fields, marshal_with
from flask_socketio import SocketIO
from werkzeug.datastructures import Headers
from werkzeug.exceptions import Conflict, HTTPException, NotFound

from integrations.flask_shop import ESSENTIALS, TEMPLATES, add_view, client_of, guard_of, signed_in
from stigg_guard import FeatureDenied
from stigg_guard.flask import StiggGuard, consumes_usage, releases_usage, requires_feature
from stigg_guard.sidecar.server import Sidecar

MakeApp = Callable[..., Flask]
Used = Callable[[], float]
Decorate = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass
class Template:
    """A row of a database, of which a schema shows the title and nothing else."""

    title: str = "poster"
    author: str = "SECRET"


class TitleSchema(marshmallow.Schema):
    title = marshmallow.fields.String()


GUARDS = [requires_feature(TEMPLATES), consumes_usage(0.5, TEMPLATES), releases_usage(0, TEMPLATES)]


def every_order(*decorators: Decorate) -> list[list[Decorate]]:
    """The decorators with a guard that consumes, the outermost first, in each order."""
    return [list(order) for order in permutations([*decorators, consumes_usage(1, TEMPLATES)])]


def decorated(view: Callable[..., Any], decorators: list[Decorate]) -> Callable[..., Any]:
    for decorate in reversed(decorators):
        view = decorate(view)
    return view


# Each kind of value


def one_letter() -> Iterator[str]:
    yield "letter"


VALUES = [
    "text",
    b"bytes",
    {"title": "poster"},
    ["poster"],
    Template(),
    [Template(), Template()],
    None,
    ("text", 201),
    ("text", "201 CREATED"),
    ({"title": "poster"}, {"X-Made": "1"}),
    (Template(), 201, Headers({"X-Made": "1"})),
    (None, 204),
    Response("made", 202),
    (Response("made"), 202),
    redirect("/elsewhere"),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_view_returns_what_it_returned_through_guards_in_any_order(app: Flask, used: Used, value: Any) -> None:
    for order in permutations(GUARDS):
        with app.test_request_context(headers={"X-Signed-In": ESSENTIALS}):
            assert decorated(lambda: value, list(order))() is value
    assert used() == 6


FAILURES = [
    ("sold out", 409),
    ("sold out", "409 CONFLICT"),
    (Template(), 404, {"X-Why": "none"}),
    (Response("sold out", 409), {"X-Why": "none"}),
    (Response("made"), 409),
    Response("sold out", 503),
    Response(status=304),
    Conflict(),
    (NotFound(), {"X-Why": "none"}),
]


@pytest.mark.parametrize("value", FAILURES, ids=repr)
def test_failure_is_read_from_what_the_view_returned(app: Flask, used: Used, value: Any) -> None:
    view = consumes_usage(1, TEMPLATES)(lambda: value)
    with app.test_request_context(headers={"X-Signed-In": ESSENTIALS}):
        assert view() is value
    assert (used(), guard_of(app).stats()["held"]) == (3, 0)


@pytest.mark.parametrize("error", [NotFound(), Response("moved", 302), Response("none", 404)], ids=repr)
def test_exception_that_answers_is_raised_through_the_guards_as_it_is(app: Flask, error: Any) -> None:
    raised: list[HTTPException] = []

    def view() -> None:
        try:
            abort(error) if isinstance(error, Response) else abort(404)
        except HTTPException as answer:
            raised.append(answer)
            raise

    guarded = decorated(view, GUARDS)
    with app.test_request_context(headers={"X-Signed-In": ESSENTIALS}), pytest.raises(HTTPException) as caught:
        guarded()
    assert caught.value is raised[0]
    assert caught.value.__context__ is None


def test_generator_stays_a_generator_which_counts_at_its_end(app: Flask, used: Used) -> None:
    sent: list[Any] = []

    def talk() -> Any:
        sent.append((yield "first"))
        return "last"

    view = consumes_usage(1, TEMPLATES)(talk)
    with app.test_request_context(headers={"X-Signed-In": ESSENTIALS}):
        talking = view()
    assert isinstance(talking, type(talk()))
    assert (next(talking), guard_of(app).stats()["held"]) == ("first", 1)
    with pytest.raises(StopIteration, match="last"):
        talking.send("answer")
    assert (sent, used()) == (["answer"], 4)


@pytest.mark.parametrize(
    "leave",
    [
        lambda talking: talking.close(),
        lambda talking: (next(talking), talking.close()),
        lambda talking: (next(talking), talking.throw(OSError("out of paper"))),
    ],
)
def test_generator_that_is_left_gives_its_units_back(app: Flask, used: Used, leave: Callable[[Any], Any]) -> None:
    with app.test_request_context(headers={"X-Signed-In": ESSENTIALS}):
        talking = consumes_usage(1, TEMPLATES)(one_letter)()
    with suppress(OSError):
        leave(talking)
    del talking
    assert (used(), guard_of(app).stats()["held"]) == (3, 0)


@pytest.mark.parametrize("stream", [one_letter, lambda: (one_letter(), 201), lambda: (map(str, "ab"), {"X-Made": "1"})])
def test_stream_in_each_form_is_held_until_its_end(app: Flask, used: Used, stream: Callable[[], Any]) -> None:
    add_view(app, consumes_usage(1, TEMPLATES), answer=stream)
    with client_of(app).post("/") as streamed:
        assert guard_of(app).stats()["held"] == 1
        assert streamed.text in ("letter", "ab")
    assert used() == 4


# Flask-RESTX


@pytest.mark.parametrize("decorators", every_order(marshal_with({"title": fields.String})))
@pytest.mark.parametrize(
    ("value", "status", "shown"), [(Template(), 200, "poster"), ((Template(), 201), 201, "poster")]
)
def test_restx_marshals_what_a_guarded_method_returns(
    app: Flask, used: Used, decorators: list[Decorate], value: Any, status: int, shown: str
) -> None:
    class Templates(Resource):
        post = decorated(lambda self: value, decorators)

    Api(app).add_resource(Templates, "/templates")
    answer = client_of(app).post("/templates")
    assert (answer.status_code, answer.get_json()) == (status, {"title": shown})
    assert used() == 4


@pytest.mark.parametrize(("value", "counted"), [((None, 204), 4), (("gone", 410), 3)])
def test_restx_is_told_of_a_status_without_a_body(app: Flask, used: Used, value: Any, counted: float) -> None:
    class Templates(Resource):
        @consumes_usage(1, TEMPLATES)
        def delete(self) -> Any:
            return value

    Api(app).add_resource(Templates, "/templates")
    assert client_of(app).delete("/templates").status_code == value[1]
    assert used() == counted


# flask-smorest


@pytest.mark.parametrize("class_based", [True, False])
@pytest.mark.parametrize(("value", "status"), [(Template(), 200), ((Template(), 202), 202)])
@pytest.mark.parametrize("guarded_first", [True, False])
def test_smorest_dumps_what_a_guarded_view_returns(
    app: Flask, used: Used, class_based: bool, value: Any, status: int, guarded_first: bool
) -> None:
    app.config.update(API_TITLE="Shop", API_VERSION="1", OPENAPI_VERSION="3.0.3")
    shop = flask_smorest.Blueprint("shop", __name__)
    order: list[Decorate] = [shop.response(200, TitleSchema), consumes_usage(1, TEMPLATES)]
    order = order[::-1] if guarded_first else order
    if class_based:

        class Templates(MethodView):
            post = decorated(lambda self: value, order)

        shop.route("/templates")(Templates)
    else:
        shop.route("/templates", methods=["POST"])(decorated(lambda: value, order))
    flask_smorest.Api(app).register_blueprint(shop)
    answer = client_of(app).post("/templates")
    assert (answer.status_code, answer.get_json()) == (status, {"title": "poster"})
    assert used() == 4


def test_smorest_makes_an_answer_of_nothing(app: Flask, used: Used) -> None:
    app.config.update(API_TITLE="Shop", API_VERSION="1", OPENAPI_VERSION="3.0.3")
    shop = flask_smorest.Blueprint("shop", __name__)

    @shop.route("/templates", methods=["DELETE"])
    @shop.response(204)
    @consumes_usage(1, TEMPLATES)
    def delete() -> None:
        return None

    flask_smorest.Api(app).register_blueprint(shop)
    assert client_of(app).delete("/templates").status_code == 204
    assert used() == 4


def test_smorest_abort_gives_the_units_back(app: Flask, used: Used) -> None:
    app.config.update(API_TITLE="Shop", API_VERSION="1", OPENAPI_VERSION="3.0.3")
    flask_smorest.Api(app)
    add_view(app, consumes_usage(1, TEMPLATES), answer=lambda: flask_smorest.abort(409, message="sold out"))
    answer = client_of(app).post("/")
    assert (answer.status_code, answer.get_json()["message"]) == (409, "sold out")
    assert used() == 3


# APIFlask


class In(apiflask.Schema):
    copies = apiflask.fields.Integer(load_default=1)


class Out(apiflask.Schema):
    title = apiflask.fields.String()


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("status", [200, 201])
def test_apiflask_dumps_what_a_guarded_view_returns(sidecar: Sidecar, place: int, status: int) -> None:
    app = apiflask.APIFlask("shop")
    app.config.update(
        STIGG_GUARD_SIDECAR=sidecar.address, STIGG_GUARD_CUSTOMER=signed_in, STIGG_GUARD_LEDGER="memory://"
    )
    StiggGuard(app)
    order: list[Decorate] = [app.input(In), app.output(Out, status_code=status)]
    order.insert(place, consumes_usage(lambda request: request.get_json()["copies"], TEMPLATES))
    app.post("/templates")(decorated(lambda json_data: Template(), order))
    with guard_of(app) as guard:
        answer = client_of(app).post("/templates", json={"copies": 2})
        assert (answer.status_code, answer.get_json()) == (status, {"title": "poster"})
        assert guard.flush() == 0
        guard.reload(ESSENTIALS)
        assert guard.check(TEMPLATES, customer=ESSENTIALS).current_usage == 5


# APIFairy


class FairySchema(schema.Schema):
    title = marshmallow.fields.String()


@pytest.mark.parametrize("decorators", every_order(response(FairySchema, 201)))
def test_apifairy_dumps_what_a_guarded_view_returns(app: Flask, used: Used, decorators: list[Decorate]) -> None:
    Marshmallow(app)
    APIFairy(app)
    shop = Blueprint("shop", __name__)
    shop.post("/templates")(decorated(lambda: Template(), decorators))
    app.register_blueprint(shop)
    answer = client_of(app).post("/templates")
    assert (answer.status_code, answer.get_json()) == (201, {"title": "poster"})
    assert used() == 4


# Flask-SocketIO


def test_socketio_handler_acknowledges_what_it_returns(app: Flask, used: Used) -> None:
    sockets = SocketIO(app, async_mode="threading")

    @sockets.on("make")
    @consumes_usage(1, TEMPLATES)
    def make(title: str) -> dict[str, str]:
        return {"made": title}

    @sockets.on("tell")
    @consumes_usage(1, TEMPLATES)
    def tell(_title: str) -> None:
        sockets.emit("told")

    client = sockets.test_client(app, headers={"X-Signed-In": ESSENTIALS})
    assert client.emit("make", "poster", callback=True) == {"made": "poster"}
    client.emit("tell", "poster")
    assert [event["name"] for event in client.get_received()] == ["told"]
    assert used() == 5
    client.disconnect()


def test_socketio_handler_that_is_denied_does_not_run(app: Flask) -> None:
    sockets = SocketIO(app, async_mode="threading")
    runs: list[str] = []
    denied: list[str] = []

    @sockets.on("make")
    @consumes_usage(9, TEMPLATES)
    def make() -> None:
        runs.append("run")

    @sockets.on_error()
    def tell(error: Exception) -> None:
        assert isinstance(error, FeatureDenied)
        denied.append(error.entitlement.feature_id)

    client = sockets.test_client(app, headers={"X-Signed-In": ESSENTIALS})
    client.emit("make")
    assert (runs, denied) == ([], [TEMPLATES])
    client.disconnect()


# Flask-Login


@pytest.mark.parametrize("login_view", ["sign_in", "/sign-in", "https://sso.example/sign-in"])
@pytest.mark.parametrize("below", [True, False])
def test_redirect_to_the_login_page_is_no_use(make_app: MakeApp, login_view: str, below: bool, guard: Any) -> None:
    app = make_app(ANONYMOUS=f"customer:{ESSENTIALS}")
    app.secret_key = "a test"
    login = LoginManager(app)
    login.login_view = login_view
    login.request_loader(lambda request: UserMixin() if signed_in(request) else None)
    app.add_url_rule("/sign-in", "sign_in", lambda: "sign in")
    guards: list[Decorate] = [consumes_usage(1, TEMPLATES), login_required]
    runs = add_view(app, *(guards if below else guards[::-1]))
    assert client_of(app, "").post("/").location.partition("?")[0].endswith("/sign-in")
    assert client_of(app).post("/").status_code == 200
    assert (runs, guard_of(app).flush(), guard_of(app).stats()["held"]) == (["run"], 0, 0)
    guard.reload(ESSENTIALS)
    assert guard.check(TEMPLATES, customer=ESSENTIALS).current_usage == 4


@pytest.mark.parametrize(
    "answer",
    [
        lambda: redirect("/login?next=/"),
        ("", 302, {"Location": "/login"}),
        ("", 303, [("Location", "/login")]),
        lambda: abort(redirect("/login")),
    ],
)
def test_redirect_to_our_own_login_page_is_no_use_in_any_form(make_app: MakeApp, guard: Any, answer: Any) -> None:
    app = make_app(LOGIN_URL="/login")
    add_view(app, consumes_usage(1, TEMPLATES), answer=answer)
    assert client_of(app).post("/").location.startswith("/login")
    assert (guard_of(app).flush(), guard_of(app).stats()["held"]) == (0, 0)
    guard.reload(ESSENTIALS)
    assert guard.check(TEMPLATES, customer=ESSENTIALS).current_usage == 3


@pytest.mark.parametrize("manager", [LoginManager(), object()])
def test_login_page_that_is_not_there_breaks_no_redirect(make_app: MakeApp, manager: Any) -> None:
    app = make_app(LOGIN_URL="no.such")
    app.login_manager = manager  # type: ignore[attr-defined] # as Flask-Login does
    if isinstance(manager, LoginManager):
        manager.login_view, manager.blueprint_login_views = "nor.this", {"shop": "nor.that"}
    add_view(app, consumes_usage(1, TEMPLATES), answer=lambda: redirect("/elsewhere"))
    assert client_of(app).post("/").location == "/elsewhere"
    assert guard_of(app).check(TEMPLATES, customer=ESSENTIALS).current_usage == 4


def test_decorator_above_may_replace_the_response(app: Flask, used: Used) -> None:
    def shouting(view: Callable[[], str]) -> Callable[[], str]:
        @wraps(view)
        def shout() -> str:
            return view().upper() + request.path

        return shout

    add_view(app, shouting, consumes_usage(1, TEMPLATES))
    assert client_of(app).post("/").text == "MADE/"
    assert used() == 4
