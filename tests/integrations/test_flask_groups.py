"""Groups of views and rules hold whatever calls the views, and whatever replaces them after the guard."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, g, redirect, request
from flask_debugtoolbar import DebugToolbarExtension
from flask_restx import Api, Resource
from werkzeug.routing import Map, Rule

from integrations.flask_shop import ESSENTIALS, TEMPLATES, client_of, guard_of
from stigg_guard.flask import exempt, protect

MakeApp = Callable[..., Flask]

ANALYTICS = "feature-analytics"  # the customer has none


class Shop:
    """An app whose view ``/paid`` is in a protected blueprint, and whose view ``/ruled`` meets a rule."""

    def __init__(self, make_app: MakeApp, feature: str, n: float | None = None, **settings: Any) -> None:
        rule = {"path": "/ruled", "feature": feature, **({} if n is None else {"consume": n})}
        self.app = make_app(RULES=[rule], **settings)
        self.runs: list[str] = []
        self.paid = Blueprint("paid", __name__)
        self.paid.add_url_rule("/paid", "view", self.view)
        protect(self.paid, feature, n)
        self.app.register_blueprint(self.paid)
        self.app.add_url_rule("/ruled", "ruled", self.view)

    def view(self) -> Any:
        self.runs.append(request.path)
        return "<body>secret</body>"

    def ask(self) -> list[tuple[int, bool]]:
        answers = [client_of(self.app).get(path) for path in ("/paid", "/ruled")]
        return [(answer.status_code, "secret" in answer.text) for answer in answers]

    def counted(self, guard: Any) -> tuple[float, int]:
        """What was used beyond the three of the catalog, and how many holds are open."""
        assert guard_of(self.app).flush() == 0
        guard.reload(ESSENTIALS)
        used = guard.check(TEMPLATES, customer=ESSENTIALS).current_usage
        return used - 3, guard_of(self.app).stats()["held"]


def dispatching_anew(shop: Shop) -> None:
    def dispatch() -> Any:
        view = shop.app.view_functions[request.endpoint or ""]
        return shop.app.ensure_sync(view)(**(request.view_args or {}))

    shop.app.dispatch_request = dispatch  # type: ignore[method-assign] # what is tested


def dispatching_views_that_were_found_before(shop: Shop) -> None:
    views = dict(shop.app.view_functions)
    shop.app.dispatch_request = lambda: views[request.endpoint or ""]()  # type: ignore[method-assign] # what is tested


def dispatching_by_a_handler_of_its_own(shop: Shop) -> None:
    shop.app.dispatch_request = shop.view  # type: ignore[method-assign] # what is tested


def debugging(shop: Shop) -> None:
    shop.app.debug = True
    shop.app.config.update(SECRET_KEY="a test", DEBUG_TB_INTERCEPT_REDIRECTS=False)
    DebugToolbarExtension(shop.app)


def replacing_views(shop: Shop) -> None:
    for endpoint in ("paid.view", "ruled"):
        shop.app.view_functions[endpoint] = shop.view


def replacing_views_before_each_request(shop: Shop) -> None:
    shop.app.before_request(lambda: replacing_views(shop))
    shop.app.before_request_funcs["paid"].append(lambda: replacing_views(shop))


def replacing_the_map_of_urls(shop: Shop) -> None:
    shop.app.url_map = Map([Rule("/paid", endpoint="paid.view"), Rule("/ruled", endpoint="ruled")])


def matching_again(shop: Shop) -> None:
    """As where the language is taken from the path before the view is looked up."""

    def match(_endpoint: str | None, _arguments: dict[str, Any] | None) -> None:
        adapter = shop.app.create_url_adapter(request)
        assert adapter is not None
        request.url_rule, request.view_args = adapter.match(return_rule=True)

    shop.app.url_value_preprocessor(match)


def adding_functions_later(shop: Shop) -> None:
    """Adds functions that run later than those that the guard has added at the first request."""
    client_of(shop.app).get("/paid")
    shop.app.before_request_funcs["paid"].append(lambda: None)


CHANGES = [
    lambda _: None,
    dispatching_anew,
    dispatching_views_that_were_found_before,
    dispatching_by_a_handler_of_its_own,
    debugging,
    replacing_views,
    replacing_views_before_each_request,
    replacing_the_map_of_urls,
    matching_again,
    adding_functions_later,
]


@pytest.mark.parametrize("change", CHANGES)
def test_denied_view_never_runs(make_app: MakeApp, change: Callable[[Shop], None]) -> None:
    shop = Shop(make_app, ANALYTICS)
    change(shop)
    for _ in range(2):
        assert shop.ask() == [(402, False)] * 2
    assert shop.runs == []


@pytest.mark.parametrize("change", CHANGES[:-1])
def test_view_of_a_group_counts_once(make_app: MakeApp, change: Callable[[Shop], None], guard: Any) -> None:
    shop = Shop(make_app, TEMPLATES, 0.5)
    change(shop)
    for _ in range(2):
        assert shop.ask() == [(200, True)] * 2
    assert shop.runs == ["/paid", "/ruled"] * 2
    assert shop.counted(guard) == (2, 0)


@pytest.mark.parametrize("change", [dispatching_by_a_handler_of_its_own, dispatching_views_that_were_found_before])
def test_stream_of_a_view_that_was_called_by_other_means_is_held_until_its_end(
    make_app: MakeApp, change: Callable[[Shop], None], guard: Any
) -> None:
    shop = Shop(make_app, TEMPLATES, 1)
    shop.view = lambda: Response(iter(["se", "cret"]))  # type: ignore[method-assign] # what is tested
    shop.app.view_functions["paid.view"] = shop.view
    change(shop)
    with client_of(shop.app).get("/paid") as streamed:
        assert guard_of(shop.app).stats()["held"] == 1
        assert streamed.text == "secret"
    assert shop.counted(guard) == (1, 0)


@pytest.mark.parametrize("change", [dispatching_anew, dispatching_views_that_were_found_before, debugging])
def test_failing_view_gives_back(make_app: MakeApp, change: Callable[[Shop], None], guard: Any) -> None:
    def fail() -> Any:
        raise RuntimeError("out of paper")

    shop = Shop(make_app, TEMPLATES, 1)
    shop.app.config["PROPAGATE_EXCEPTIONS"] = False
    for endpoint in ("paid.view", "ruled"):
        shop.app.view_functions[endpoint] = fail
    change(shop)
    assert shop.ask() == [(500, False)] * 2
    assert shop.counted(guard) == (0, 0)


def test_error_that_the_app_answers_with_success_gives_back(make_app: MakeApp, guard: Any) -> None:
    def fail() -> Any:
        raise LookupError("sold out")

    shop = Shop(make_app, TEMPLATES, 1)
    shop.app.view_functions["paid.view"] = fail
    shop.app.register_error_handler(LookupError, lambda error: redirect("/"))
    assert client_of(shop.app).get("/paid").status_code == 302
    assert shop.counted(guard) == (0, 0)


def test_second_group_that_is_denied_gives_the_first_ones_units_back(make_app: MakeApp, guard: Any) -> None:
    shop = Shop(make_app, TEMPLATES, 1, RATE_LIMIT_HEADERS=True)
    protect(shop.app, TEMPLATES, 3)
    answer = client_of(shop.app).get("/paid")
    assert (answer.status_code, shop.runs) == (402, [])
    assert answer.headers["RateLimit"] == f'"{TEMPLATES}";r=0'
    assert shop.counted(guard) == (0, 0)


def test_functions_before_the_view_all_run_before_the_groups_begin(make_app: MakeApp) -> None:
    order: list[str] = []
    shop = Shop(make_app, ANALYTICS, CUSTOMER=lambda _: order.append("customer") or ESSENTIALS)
    inner, outer = Blueprint("inner", __name__), Blueprint("outer", __name__)
    for blueprint in (inner, outer):
        blueprint.add_url_rule(f"/{blueprint.name}", "view", shop.view)
    inner.before_request(lambda: order.append("inner"))
    outer.before_request(lambda: order.append("outer"))
    outer.register_blueprint(inner)
    protect(shop.app, ANALYTICS)
    shop.app.register_blueprint(outer)
    shop.app.before_request(lambda: order.append("app"))
    for path, expected in [
        ("/ruled", ["app", "customer"]),
        ("/outer", ["app", "outer", "customer"]),
        ("/inner", ["app", "outer", "inner", "customer"]),
    ] * 2:
        order.clear()
        assert client_of(shop.app).get(path).status_code == 402
        assert order == expected


def test_asking_only_for_what_is_before_the_view_leaves_nothing_held(make_app: MakeApp, guard: Any) -> None:
    shop = Shop(make_app, TEMPLATES, 1)
    with shop.app.test_request_context("/paid", headers={"X-Signed-In": ESSENTIALS}):
        assert shop.app.preprocess_request() is None
        assert guard_of(shop.app).stats()["held"] == 1
    assert (shop.runs, shop.counted(guard)) == ([], (0, 0))


def test_view_that_is_called_by_a_view_is_not_guarded_again(make_app: MakeApp, guard: Any) -> None:
    shop = Shop(make_app, TEMPLATES, 1)
    shop.app.view_functions["paid.view"] = lambda: shop.app.view_functions["ruled"]()
    for _ in range(2):
        client_of(shop.app).get("/ruled")
    assert "secret" in client_of(shop.app).get("/paid").text
    assert shop.counted(guard) == (3, 0)


def test_view_keeps_its_name_and_its_marks(make_app: MakeApp) -> None:
    shop = Shop(make_app, TEMPLATES)
    shop.app.view_functions["paid.view"] = marked = SimpleNamespace(view=lambda: "marked").view
    marked.limit = "10 a day"
    client_of(shop.app).get("/paid")
    in_force = shop.app.view_functions["paid.view"]
    assert (in_force.__name__, in_force.limit, in_force.__wrapped__) == (marked.__name__, "10 a day", marked)


def test_address_without_a_view_is_an_error_of_the_app(make_app: MakeApp) -> None:
    shop = Shop(make_app, ANALYTICS)
    shop.app.url_map.add(Rule("/ruled/later", endpoint="none"))
    assert client_of(shop.app).get("/ruled/later").status_code == 500


def test_exempt_view_that_comes_later_is_left_alone(make_app: MakeApp) -> None:
    shop = Shop(make_app, ANALYTICS)
    for endpoint in ("paid.view", "ruled"):
        shop.app.view_functions[endpoint] = exempt(shop.view)
    for _ in range(2):
        assert shop.ask() == [(200, True)] * 2


def test_resource_of_restx_is_guarded_by_its_blueprint(make_app: MakeApp, guard: Any) -> None:
    shop = Shop(make_app, TEMPLATES, 1)
    api = Blueprint("api", __name__)
    protect(api, TEMPLATES, 1)

    class Templates(Resource):
        def post(self) -> Any:
            g.made = "poster"
            return {"title": g.made}, 201

    Api(api).add_resource(Templates, "/templates")
    shop.app.register_blueprint(api)
    answer = client_of(shop.app).post("/templates")
    assert (answer.status_code, answer.get_json()) == (201, {"title": "poster"})
    assert shop.counted(guard) == (1, 0)
