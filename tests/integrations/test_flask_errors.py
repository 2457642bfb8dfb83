"""What refused requests are answered with in Flask, by the built-in pages or by an app's own handlers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, abort
from jinja2 import DictLoader, StrictUndefined, TemplateNotFound
from werkzeug.exceptions import HTTPException

import stigg_guard
from conftest import full_disk
from integrations.flask_shop import ESSENTIALS, HTML, NOBODY_LISTENS, TEMPLATES, add_view, client_of, guard_of
from stigg_guard import InvalidRequest, SidecarError, SignInRequired, StiggGuardError
from stigg_guard.flask import FeatureDenied, RequestDenied, StiggGuard, consumes_usage, requires_feature
from stigg_guard.flask.errors import denying
from stigg_guard.wording import Wording

MakeApp = Callable[..., Flask]

ANALYTICS = requires_feature("feature-analytics")


# Built in


def test_browser_gets_the_denial_as_a_page_with_the_upgrade_link(make_app: MakeApp) -> None:
    app = make_app(UPGRADE_URL="/upgrade?for={feature}")
    add_view(app, ANALYTICS)
    response = client_of(app).get("/", headers=HTML)
    assert response.status_code == 402
    assert response.mimetype == "text/html"
    assert 'href="/upgrade?for=feature-analytics"' in response.text
    assert response.headers["Cache-Control"] == "no-store"
    assert {"Accept", "HX-Request"} <= set(response.vary)


def test_denial_page_of_the_app_replaces_the_built_in_one(make_app: MakeApp, tmp_path: Path) -> None:
    (tmp_path / "stigg_guard").mkdir()
    (tmp_path / "stigg_guard" / "denied.html").write_text("Ours: {{ denial.entitlement.feature_id }}")
    app = make_app()
    app.template_folder = str(tmp_path)
    add_view(app, ANALYTICS)
    assert client_of(app).get("/", headers=HTML).text == "Ours: feature-analytics"


def test_denial_page_of_a_blueprint_that_comes_later_replaces_the_built_in_one(app: Flask, tmp_path: Path) -> None:
    (tmp_path / "stigg_guard").mkdir()
    (tmp_path / "stigg_guard" / "denied.html").write_text("Theirs: {{ denial.entitlement.feature_id }}")
    app.register_blueprint(Blueprint("theme", __name__, template_folder=str(tmp_path)))
    add_view(app, ANALYTICS)
    assert client_of(app).get("/", headers=HTML).text == "Theirs: feature-analytics"


def test_denial_is_worded_as_the_extension_is_told(make_app: MakeApp) -> None:
    german = {"Your plan does not include this feature": "Ihr Tarif enthält diese Funktion nicht"}
    wording = Wording(translate=lambda text: german.get(text, text), language=lambda: "de")
    app = make_app(StiggGuard(wording=wording))
    add_view(app, ANALYTICS)
    page = client_of(app).get("/", headers=HTML).text
    assert '<html lang="de"' in page
    assert "Ihr Tarif enthält diese Funktion nicht" in page


def test_htmx_gets_a_fragment(app: Flask) -> None:
    add_view(app, ANALYTICS)
    response = client_of(app).get("/", headers={"HX-Request": "true"})
    assert response.status_code == 402
    assert "<html" not in response.text
    assert "feature-analytics" in response.text


def test_text_from_the_catalog_is_escaped_in_the_denial_page(app: Flask) -> None:
    add_view(app, requires_feature("<script>"))
    response = client_of(app).get("/", headers=HTML)
    assert "&lt;script&gt;" in response.text
    assert "<script>" not in response.text


def escape_nothing(app: Flask) -> None:
    app.select_jinja_autoescape = lambda _name: False  # type: ignore[method-assign] # as an app switches it off


def escape_nothing_by_option(app: Flask) -> None:
    app.jinja_options = {"autoescape": False}


def have_own_delimiters(app: Flask) -> None:
    app.jinja_options = {"variable_start_string": "[[", "variable_end_string": "]]", "block_start_string": "<%"}


def replace_the_loader(app: Flask) -> None:
    app.jinja_env.loader = DictLoader({})


def be_strict(app: Flask) -> None:
    app.jinja_env.undefined = StrictUndefined
    app.jinja_env.filters.clear()


@pytest.mark.parametrize("accept", [HTML, {"HX-Request": "true"}])
@pytest.mark.parametrize(
    "change", [escape_nothing, escape_nothing_by_option, have_own_delimiters, replace_the_loader, be_strict]
)
def test_nothing_that_the_app_does_to_its_templates_matters_to_the_built_in_page(
    app: Flask, change: Callable[[Flask], None], accept: dict[str, str]
) -> None:
    change(app)
    add_view(app, requires_feature("<script>alert(1)</script>"))
    page = client_of(app).get("/", headers=accept)
    assert page.status_code == 403
    assert "&lt;script&gt;alert(1)" in page.text
    assert "<script>" not in page.text


def test_fault_in_the_denial_page_of_the_app_is_told(make_app: MakeApp) -> None:
    app = make_app()
    app.testing = True
    app.jinja_loader = DictLoader({"stigg_guard/denied.html": "{% include 'no-such-part.html' %}"})
    add_view(app, ANALYTICS)
    with pytest.raises(TemplateNotFound, match=r"no-such-part\.html"):
        client_of(app).get("/", headers=HTML)


def test_login_page_leads_back_to_what_was_asked(make_app: MakeApp) -> None:
    app = make_app(ANONYMOUS="login", LOGIN_URL="/login")
    add_view(app, ANALYTICS)
    response = client_of(app, "").get("/?page=2", base_url="https://shop.example/eu", headers=HTML)
    assert (response.status_code, response.location) == (302, "/login?next=%2Feu%2F%3Fpage%3D2")


def test_outage_is_logged(make_app: MakeApp, caplog: Any) -> None:
    app = make_app(SIDECAR=NOBODY_LISTENS)
    add_view(app, ANALYTICS)
    assert client_of(app).get("/").status_code == 503
    assert "view was answered 503" in caplog.text


def test_ledger_that_cannot_be_written_is_answered_503(make_app: MakeApp, tmp_path: Path, caplog: Any) -> None:
    ledger = tmp_path / "full.sqlite3"
    app = make_app(LEDGER=f"sqlite:///{ledger}")
    runs = add_view(app, consumes_usage(1, TEMPLATES))
    guard_of(app).check(TEMPLATES, customer=ESSENTIALS)
    with full_disk(ledger):
        response = client_of(app).post("/")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert runs == []
    assert "view was answered 503" in caplog.text


def test_other_errors_of_the_library_stay_errors_of_the_app(app: Flask) -> None:
    def fail() -> None:
        raise StiggGuardError("a fault")

    add_view(app, answer=fail)
    app.testing = True
    with pytest.raises(StiggGuardError, match="a fault"):
        client_of(app).get("/")


def test_rate_limits_are_told_when_the_settings_say_so(make_app: MakeApp) -> None:
    app = make_app(RATE_LIMIT_HEADERS=True)
    add_view(app, consumes_usage(2, TEMPLATES))
    told = [client_of(app).post("/").headers["RateLimit"] for _ in range(2)]
    assert told == ['"feature-templates";r=1', '"feature-templates";r=1']


def test_rate_limits_are_not_told_otherwise(app: Flask) -> None:
    add_view(app, consumes_usage(2, TEMPLATES))
    assert "RateLimit" not in client_of(app).post("/").headers


# Handlers of the app


@pytest.mark.parametrize("handled", [402, FeatureDenied, RequestDenied, HTTPException, stigg_guard.FeatureDenied])
@pytest.mark.parametrize("when", ["before init_app", "after it"])
def test_handler_of_the_app_answers_instead(app: Flask, make_app: MakeApp, handled: Any, when: str) -> None:
    app.register_error_handler(handled, lambda error: (f"no {error.entitlement.feature_id}", 418))
    add_view(app, ANALYTICS)
    assert client_of(app).get("/").text == "no feature-analytics"


def test_handlers_of_a_status_get_the_refusals_of_that_status_only(app: Flask) -> None:
    for status in (400, 401, 402, 403):
        app.register_error_handler(status, lambda error: (f"ours: {error.code}", error.code))
    app.add_url_rule("/analytics", "analytics", ANALYTICS(lambda: "figures"))
    app.add_url_rule("/domain", "domain", requires_feature("feature-custom-domain")(lambda: "domain"))
    app.add_url_rule("/bad", "bad", consumes_usage(lambda _: -1, TEMPLATES)(lambda: "made"))
    customer = client_of(app, "customer-demo-06")
    assert [customer.get(path).text for path in ("/analytics", "/domain", "/bad")] == [
        "ours: 402",
        "ours: 403",
        "ours: 400",
    ]
    assert client_of(app, "").get("/domain").text == "ours: 401"


def test_handler_of_a_denial_gets_those_of_every_status(make_app: MakeApp) -> None:
    app = make_app(STATUS_CODES={"NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION": 420})
    app.register_error_handler(FeatureDenied, lambda error: (error.name, error.code))
    app.add_url_rule("/analytics", "analytics", ANALYTICS(lambda: "figures"))
    app.add_url_rule("/domain", "domain", requires_feature("feature-custom-domain")(lambda: "domain"))
    customer = client_of(app, "customer-demo-06")
    assert [customer.get(path).status_code for path in ("/analytics", "/domain")] == [420, 403]


def test_handler_of_a_blueprint_answers_for_its_views(app: Flask) -> None:
    blueprint = Blueprint("api", __name__)
    blueprint.register_error_handler(HTTPException, lambda error: ({"title": error.name}, error.code))
    blueprint.add_url_rule("/api", "view", ANALYTICS(lambda: "figures"))
    app.register_blueprint(blueprint)
    add_view(app, ANALYTICS)
    assert client_of(app).get("/api").get_json() == {"title": "Your plan does not include this feature"}
    assert client_of(app).get("/").mimetype == "application/problem+json"


def test_handler_may_build_on_the_built_in_answer(app: Flask) -> None:
    @app.errorhandler(HTTPException)
    def tell(error: HTTPException) -> Any:
        response = error.get_response()
        response.headers["X-Error"] = error.name
        return response

    add_view(app, ANALYTICS)
    response = client_of(app).get("/")
    assert (response.status_code, response.mimetype) == (402, "application/problem+json")
    assert response.headers["X-Error"] == "Your plan does not include this feature"


def test_handler_may_take_the_headers_of_the_built_in_answer(make_app: MakeApp) -> None:
    app = make_app(SIDECAR=NOBODY_LISTENS)
    app.register_error_handler(503, lambda error: ("closed", error.code, error.get_headers()))
    add_view(app, ANALYTICS)
    response = client_of(app).get("/")
    assert (response.text, response.headers["Retry-After"]) == ("closed", "1")


def test_handler_of_every_exception_leaves_denials_to_the_guard(app: Flask) -> None:
    app.register_error_handler(Exception, lambda error: ("broken", 500))
    add_view(app, ANALYTICS)
    assert client_of(app).get("/").status_code == 402


def only_http_errors(error: Exception) -> Any:
    """What many apps answer an errorhandler of all exceptions with."""
    return (f"refused: {error.code}", error.code) if isinstance(error, HTTPException) else ("broken", 500)


@pytest.mark.parametrize("where", ["on the view", "deep in it", "before it", "by its group"])
def test_handler_of_every_exception_in_a_blueprint_gets_denials_as_http_errors(app: Flask, where: str) -> None:
    blueprint = Blueprint("api", __name__)
    blueprint.register_error_handler(Exception, only_http_errors)

    def view() -> str:
        if where == "deep in it":
            guard_of(app).require("feature-analytics", customer=ESSENTIALS)
        return "figures"

    if where == "before it":
        blueprint.before_request(ANALYTICS(lambda: None))
    if where == "by its group":
        StiggGuard.protect(blueprint, "feature-analytics")
    blueprint.add_url_rule("/api", "view", ANALYTICS(view) if where == "on the view" else view)
    app.register_blueprint(blueprint)
    assert client_of(app).get("/api").text == "refused: 402"


@pytest.mark.parametrize("guard", [ANALYTICS, consumes_usage(4, TEMPLATES)])
def test_denial_leaves_the_guard_as_an_http_error(app: Flask, guard: Callable[..., Any]) -> None:
    def by_hand(view: Callable[[], Any]) -> Callable[[], Any]:
        def called() -> Any:
            try:
                return view()
            except Exception as error:
                return only_http_errors(error)

        return called

    add_view(app, by_hand, guard)
    assert client_of(app).get("/").text == "refused: 402"


@pytest.mark.parametrize(
    ("error", "guard", "settings"),
    [
        (SignInRequired, ANALYTICS, {"CUSTOMER": lambda _: None}),
        (InvalidRequest, consumes_usage(lambda _: -1, TEMPLATES), {}),
        (SidecarError, ANALYTICS, {"SIDECAR": NOBODY_LISTENS}),
        (stigg_guard.FeatureDenied, ANALYTICS, {}),
    ],
)
def test_handler_of_an_error_of_the_guard_goes_before_that_of_http_errors(
    make_app: MakeApp, error: type[StiggGuardError], guard: Callable[..., Any], settings: dict[str, Any]
) -> None:
    app = make_app(**settings)
    app.register_error_handler(HTTPException, lambda error: ("any", 418))
    app.register_error_handler(error, lambda error: (type(error.error).__name__, error.code))
    add_view(app, guard)
    response = client_of(app).get("/")
    assert response.status_code in (400, 401, 402, 503)
    assert issubclass(getattr(stigg_guard, response.text), error)


def test_guard_around_one_that_sends_to_the_login_page_counts_nothing(make_app: MakeApp) -> None:
    app = make_app(ANONYMOUS="login", LOGIN_URL="/login")

    def deep() -> None:
        raise SignInRequired("of another kind")

    add_view(app, consumes_usage(1, TEMPLATES), answer=requires_feature(TEMPLATES)(denying(deep)))
    assert client_of(app).get("/", headers=HTML).status_code == 302
    assert (guard_of(app).flush(), guard_of(app).stats()["held"]) == (0, 0)
    assert guard_of(app).reload(ESSENTIALS)
    assert guard_of(app).check(TEMPLATES, customer=ESSENTIALS).current_usage == 3


def test_denial_deep_in_a_view_is_answered_as_a_decorators_is(app: Flask) -> None:
    def deep() -> Any:
        with guard_of(app).consume(TEMPLATES, 9, customer=ESSENTIALS):
            raise AssertionError("it is denied")

    app.register_error_handler(402, lambda error: (f"{error.entitlement.requested_usage:g} are too many", 402))
    add_view(app, answer=deep)
    assert client_of(app).get("/").text == "9 are too many"


def test_denial_before_the_view_is_answered_as_a_decorators_is(app: Flask) -> None:
    app.before_request(lambda: guard_of(app).require("feature-analytics", customer=ESSENTIALS) and None)
    runs = add_view(app)
    assert client_of(app).get("/", headers=HTML).status_code == 402
    assert runs == []


def test_402_of_the_apps_own_is_known_too(app: Flask) -> None:
    app.register_error_handler(402, lambda error: ("pay first", 402))
    add_view(app, answer=lambda: abort(402))
    assert client_of(app).get("/").status_code == 402
