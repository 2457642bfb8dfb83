"""Flask views that are guarded over a real sidecar, through Flask's own test client."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, Request, Response, abort, redirect, send_file, stream_with_context
from flask.testing import FlaskClient
from flask.views import MethodView

from conftest import full_disk
from stigg_guard import ConfigError, Customer, FeatureDenied, Guard, InvalidRequest, StiggGuardError
from stigg_guard.flask import StiggGuard, consumes_usage, releases_usage, requires_feature
from stigg_guard.sidecar.server import Sidecar

ESSENTIALS = "customer-demo-01"
TEMPLATES = "feature-templates"
ACTIVE = "feature-active-users"  # counted by events
NOBODY_LISTENS = "127.0.0.1:1"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}

MakeApp = Callable[..., Flask]


def signed_in(request: Request) -> str | None:
    """The customer that the test says is signed in."""
    return request.headers.get("X-Signed-In") or None


def client_of(app: Flask, customer: str = ESSENTIALS) -> FlaskClient:
    client = app.test_client()
    client.environ_base["HTTP_X_SIGNED_IN"] = customer
    return client


def guard_of(app: Flask) -> Guard:
    with app.app_context():
        return StiggGuard().guard


@pytest.fixture
def make_app(sidecar: Sidecar) -> Iterator[MakeApp]:
    apps: list[Flask] = []

    def make(extension: StiggGuard | None = None, **settings: Any) -> Flask:
        app = Flask("shop")
        app.config.update({"STIGG_GUARD_SIDECAR": sidecar.address, "STIGG_GUARD_CUSTOMER": signed_in})
        app.config.update({f"STIGG_GUARD_{name}": value for name, value in settings.items()})
        (extension or StiggGuard()).init_app(app)
        apps.append(app)
        return app

    yield make
    for app in apps:
        guard_of(app).close()


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app()


@pytest.fixture
def used(guard: Guard, app: Flask) -> Callable[..., float]:
    """How many templates the sidecar has counted, once the app has reported them."""

    def count(feature: str = TEMPLATES) -> float:
        assert guard_of(app).flush() == 0
        guard.reload(ESSENTIALS)
        return guard.check(feature, customer=ESSENTIALS).current_usage

    return count


def add_view(app: Flask, *guards: Callable[..., Any], answer: Any = "made") -> list[str]:
    """A view at ``/`` under the decorators, outermost first; each of its runs leaves a mark in the list."""
    runs: list[str] = []

    def view() -> Any:
        runs.append("run")
        return answer() if callable(answer) else answer

    for decorate in reversed(guards):
        view = decorate(view)
    app.add_url_rule("/", "view", view, methods=["GET", "POST"])
    return runs


# What a decorated view answers


def test_feature_of_the_plan_lets_the_view_run_once(app: Flask) -> None:
    runs = add_view(app, requires_feature("feature-exports"))
    assert client_of(app).get("/").text == "made"
    assert runs == ["run"]


def test_feature_outside_the_plan_is_answered_402_without_running_the_view(app: Flask) -> None:
    runs = add_view(app, requires_feature("feature-analytics"))
    response = client_of(app).get("/")
    assert response.status_code == 402
    assert response.content_type == "application/problem+json"
    assert response.get_json(force=True)["reason"] == "NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION"
    assert runs == []


def test_revoked_feature_is_answered_403(app: Flask) -> None:
    add_view(app, requires_feature("feature-custom-domain"))
    assert client_of(app, "customer-demo-06").get("/").status_code == 403


def test_browser_gets_the_denial_as_a_page_with_the_upgrade_link(make_app: MakeApp) -> None:
    app = make_app(UPGRADE_URL="/upgrade?for={feature}")
    add_view(app, requires_feature("feature-analytics"))
    response = client_of(app).get("/", headers=HTML)
    assert response.status_code == 402
    assert response.mimetype == "text/html"
    assert 'href="/upgrade?for=feature-analytics"' in response.text
    assert response.headers["Cache-Control"] == "no-store"
    assert "Accept" in response.vary


def test_denial_page_of_the_app_replaces_the_built_in_one(make_app: MakeApp, tmp_path: Any) -> None:
    (tmp_path / "stigg_guard").mkdir()
    (tmp_path / "stigg_guard" / "denied.html").write_text("Ours: {{ denial.entitlement.feature_id }}")
    app = make_app()
    app.template_folder = str(tmp_path)
    add_view(app, requires_feature("feature-analytics"))
    assert client_of(app).get("/", headers=HTML).text == "Ours: feature-analytics"


def test_text_from_the_catalog_is_escaped_in_the_denial_page(app: Flask) -> None:
    add_view(app, requires_feature("<script>"))
    response = client_of(app).get("/", headers=HTML)
    assert "&lt;script&gt;" in response.text
    assert "<script>" not in response.text


def test_anonymous_request_is_answered_401_and_asks_the_sidecar_nothing(make_app: MakeApp) -> None:
    app = make_app(SIDECAR=NOBODY_LISTENS)
    runs = add_view(app, requires_feature("feature-exports"), consumes_usage(1))
    assert client_of(app, "").get("/").status_code == 401
    assert "sign in" in client_of(app, "").get("/", headers=HTML).text
    assert runs == []


def test_outage_is_answered_503_with_a_time_to_retry_after(make_app: MakeApp, caplog: Any) -> None:
    app = make_app(SIDECAR=NOBODY_LISTENS)
    runs = add_view(app, requires_feature("feature-exports"))
    response = client_of(app).get("/")
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert runs == []
    assert "view was answered 503" in caplog.text


@pytest.mark.parametrize(("policy", "status"), [("allow", 200), ("deny", 403)])
def test_outage_policy_decides_when_there_is_no_data(make_app: MakeApp, policy: str, status: int) -> None:
    app = make_app(SIDECAR=NOBODY_LISTENS, ON_OUTAGE=policy)
    add_view(app, requires_feature("feature-exports"))
    assert client_of(app).get("/").status_code == status


def test_disabled_guard_lets_everything_pass_without_a_sidecar(make_app: MakeApp) -> None:
    app = make_app(SIDECAR=NOBODY_LISTENS, ENABLED=False)
    runs = add_view(app, requires_feature("feature-analytics"), consumes_usage(1_000))
    assert client_of(app).get("/").status_code == 200
    assert runs == ["run"]


def test_handler_of_the_app_answers_instead_also_when_registered_first(sidecar: Sidecar) -> None:
    app = Flask("shop")
    app.config.update({"STIGG_GUARD_SIDECAR": sidecar.address, "STIGG_GUARD_CUSTOMER": signed_in})
    app.register_error_handler(FeatureDenied, lambda error: (f"no {error.entitlement.feature_id}", 418))
    StiggGuard(app)
    add_view(app, requires_feature("feature-analytics"))
    assert client_of(app).get("/").text == "no feature-analytics"
    guard_of(app).close()


def test_resource_of_a_customer_is_guarded_by_its_own_subscription(make_app: MakeApp) -> None:
    app = make_app(CUSTOMER=lambda request: Customer(ESSENTIALS, resource="site-01"))
    add_view(app, requires_feature("feature-exports"))
    assert client_of(app).get("/").status_code == 200


# Usage


def test_success_is_reported(app: Flask, used: Callable[[], float]) -> None:
    add_view(app, requires_feature(TEMPLATES), consumes_usage(2))
    assert client_of(app).post("/").status_code == 200
    assert used() == 5


@pytest.mark.parametrize(
    ("answer", "status"), [("made", 200), ({"made": 1}, 200), (("made", 201), 201), (lambda: redirect("/new"), 302)]
)
def test_every_kind_of_successful_answer_counts(
    app: Flask, used: Callable[[], float], answer: Any, status: int
) -> None:
    runs = add_view(app, consumes_usage(1, TEMPLATES), answer=answer)
    assert client_of(app).post("/").status_code == status
    assert used() == 4
    assert runs == ["run"]


@pytest.mark.parametrize(
    ("answer", "status"),
    [(("bad", 400), 400), (lambda: Response(status=500), 500), (lambda: abort(409), 409), (lambda: 1 / 0, 500)],
)
def test_failure_is_not_reported_and_gives_the_units_back(
    app: Flask, used: Callable[[], float], answer: Any, status: int
) -> None:
    runs = add_view(app, consumes_usage(3, TEMPLATES), answer=answer)
    assert [client_of(app).post("/").status_code for _ in range(3)] == [status] * 3
    assert used() == 3
    assert runs == ["run"] * 3


def test_use_over_the_limit_is_denied_with_its_figures(app: Flask, used: Callable[[], float]) -> None:
    runs = add_view(app, consumes_usage(4, TEMPLATES))
    response = client_of(app).post("/")
    assert response.status_code == 402
    problem = response.get_json(force=True)
    assert (problem["limit"], problem["usage"], problem["requested"]) == (6, 3, 4)
    assert runs == []
    assert used() == 3


def test_concurrent_requests_use_no_more_than_the_limit(app: Flask, used: Callable[[], float]) -> None:
    add_view(app, consumes_usage(1, TEMPLATES))
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(client_of(app).post("/").status_code)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 3 + [402] * 5
    assert used() == 6


def test_number_of_units_may_come_from_the_request(app: Flask, used: Callable[[], float]) -> None:
    add_view(app, consumes_usage(lambda request: int(request.args["units"]), TEMPLATES))
    assert client_of(app).post("/?units=2").status_code == 200
    assert used() == 5


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "2", True, None])
def test_bad_number_of_units_is_answered_400_and_holds_nothing(app: Flask, used: Callable[[], float], bad: Any) -> None:
    runs = add_view(app, consumes_usage(lambda request: bad, TEMPLATES))
    response = client_of(app).post("/")
    assert response.status_code == 400
    assert response.content_type == "application/problem+json"
    assert runs == []
    assert used() == 3


def test_bad_constant_number_of_units_is_refused_at_decoration() -> None:
    with pytest.raises(InvalidRequest):
        consumes_usage(-1, TEMPLATES)


def test_method_view_is_guarded_by_its_decorators(app: Flask, used: Callable[[], float]) -> None:
    class Templates(MethodView):
        decorators = (consumes_usage(1, TEMPLATES), requires_feature("feature-exports"))

        def post(self) -> tuple[str, int]:
            return "made", 201

    app.add_url_rule("/templates", view_func=Templates.as_view("templates"))
    assert client_of(app).post("/templates").status_code == 201
    assert client_of(app, "customer-demo-03").post("/templates").status_code == 402
    assert used() == 4


def test_arguments_of_the_url_reach_the_view(app: Flask) -> None:
    @app.get("/<name>/<int:number>")
    @consumes_usage(1, TEMPLATES)
    def view(name: str, number: int) -> str:
        return f"{name} {number}"

    assert client_of(app).get("/template/7").text == "template 7"


def test_before_request_function_guards_a_whole_blueprint(app: Flask) -> None:
    blueprint = Blueprint("analytics", __name__)

    @blueprint.before_request
    @requires_feature("feature-analytics")
    def only_with_analytics() -> None:
        return None

    blueprint.add_url_rule("/analytics", "report", lambda: "report")
    app.register_blueprint(blueprint)
    assert client_of(app, ESSENTIALS).get("/analytics").status_code == 402
    assert client_of(app, "customer-demo-02").get("/analytics").text == "report"


def test_consumption_before_a_request_is_refused_with_the_remedy_and_holds_nothing(
    app: Flask, used: Callable[[], float]
) -> None:
    @app.before_request
    @consumes_usage(1, TEMPLATES)
    def counting() -> None:
        return None

    app.testing = True
    with pytest.raises(ConfigError, match="decorate the views"):
        client_of(app).get("/")
    assert used() == 3


def test_async_view_is_refused_at_decoration() -> None:
    async def view() -> str:
        return "made"

    with pytest.raises(ConfigError, match="async"):
        requires_feature("feature-exports")(view)


def test_units_are_given_back_after_success(app: Flask, used: Callable[[], float]) -> None:
    add_view(app, releases_usage(lambda request: int(request.args["n"]), TEMPLATES))
    assert client_of(app).post("/?n=2").status_code == 200
    assert used() == 1


def test_units_are_not_given_back_after_a_failure(app: Flask, used: Callable[[], float]) -> None:
    add_view(app, releases_usage(2, TEMPLATES), answer=("not now", 409))
    assert client_of(app).post("/").status_code == 409
    assert used() == 3


def test_usage_may_be_reported_as_events_with_dimensions(app: Flask, used: Callable[[str], float]) -> None:
    def dimensions(request: Request) -> dict[str, str]:
        return {"user_id": request.args["user"]}

    add_view(app, consumes_usage(1, ACTIVE, event="user_login", dimensions=dimensions))
    for user in ("ann", "bob", "ann"):
        assert client_of(app).post(f"/?user={user}").status_code == 200
    assert used(ACTIVE) == 2


# Streams


def letters() -> Response:
    return Response(stream_with_context(iter(["one ", "two"])))


def template_file() -> Response:
    return send_file(BytesIO(b"a template"), mimetype="text/plain")


@pytest.mark.parametrize(("answer", "body"), [(letters, "one two"), (template_file, "a template")])
def test_stream_is_counted_when_it_ends_and_held_until_then(
    app: Flask, used: Callable[[], float], answer: Any, body: str
) -> None:
    add_view(app, consumes_usage(2, TEMPLATES), answer=answer)
    response = client_of(app).get("/")
    assert (used(), guard_of(app).stats()["held"]) == (3, 1)
    assert response.text == body
    assert (used(), guard_of(app).stats()["held"]) == (5, 0)


@pytest.mark.parametrize("answer", [letters, template_file])
def test_stream_that_the_client_leaves_is_given_back(app: Flask, used: Callable[[], float], answer: Any) -> None:
    add_view(app, consumes_usage(2, TEMPLATES), answer=answer)
    client_of(app).get("/").close()
    assert (used(), guard_of(app).stats()["held"]) == (3, 0)


def test_stream_that_fails_is_given_back(app: Flask, used: Callable[[], float]) -> None:
    def parts() -> Iterator[str]:
        yield "one "
        raise OSError("out of paper")

    add_view(app, consumes_usage(2, TEMPLATES), answer=lambda: Response(parts()))
    with client_of(app).get("/") as response, pytest.raises(OSError, match="out of paper"):
        response.get_data()
    assert (used(), guard_of(app).stats()["held"]) == (3, 0)


def test_stream_of_failure_is_given_back_at_once(app: Flask) -> None:
    add_view(app, consumes_usage(2, TEMPLATES), answer=lambda: Response(iter(["no"]), status=500))
    assert client_of(app).get("/").status_code == 500
    assert guard_of(app).stats()["held"] == 0


def test_head_request_streams_nothing_and_is_given_back(app: Flask, used: Callable[[], float]) -> None:
    add_view(app, consumes_usage(2, TEMPLATES), answer=letters)
    client_of(app).head("/").close()
    assert (used(), guard_of(app).stats()["held"]) == (3, 0)


def test_units_of_a_stream_are_given_back_when_it_ends(app: Flask, used: Callable[[], float]) -> None:
    add_view(app, releases_usage(2, TEMPLATES), answer=letters)
    client_of(app).get("/").close()
    assert used() == 3
    assert client_of(app).get("/").text == "one two"
    assert used() == 1


# What is not the client's fault


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


def test_empty_customer_id_is_an_error_of_the_app(make_app: MakeApp) -> None:
    app = make_app(CUSTOMER=lambda request: "")
    add_view(app, requires_feature("feature-exports"))
    assert client_of(app).get("/").status_code == 500


def test_other_errors_of_the_library_stay_errors_of_the_app(app: Flask) -> None:
    def fail() -> None:
        raise StiggGuardError("a fault")

    add_view(app, answer=fail)
    app.testing = True
    with pytest.raises(StiggGuardError, match="a fault"):
        client_of(app).get("/")


def test_app_without_a_customer_loader_says_how_to_have_one(make_app: MakeApp) -> None:
    app = make_app(CUSTOMER=None)
    app.testing = True
    add_view(app, requires_feature("feature-exports"))
    with pytest.raises(ConfigError, match="customer_loader"):
        client_of(app).get("/")


def test_app_without_the_extension_says_how_to_have_it() -> None:
    app = Flask("shop")
    app.testing = True
    add_view(app, requires_feature("feature-exports"))
    with pytest.raises(ConfigError, match=r"'shop' has no guard.*init_app"):
        client_of(app).get("/")


# Setting up


def test_extension_serves_several_apps_with_their_own_settings(make_app: MakeApp) -> None:
    extension = StiggGuard()
    here, there = make_app(extension), make_app(extension, ENABLED=False)
    for app in (here, there):
        add_view(app, extension.requires_feature("feature-analytics"), extension.consumes_usage(1, TEMPLATES))
    assert client_of(here).get("/").status_code == 402
    assert client_of(there).get("/").status_code == 200
    assert guard_of(here) is not guard_of(there)


def test_customer_loader_serves_apps_without_the_setting(make_app: MakeApp) -> None:
    extension = StiggGuard()
    app = make_app(extension, CUSTOMER=None)

    @extension.customer_loader
    def load(request: Request) -> str:
        return "customer-demo-02"

    add_view(app, requires_feature("feature-analytics"))
    assert app.test_client().get("/").status_code == 200


def test_customer_setting_may_be_a_dotted_path(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shop_auth", sys.modules[__name__])
    app = make_app(CUSTOMER="shop_auth.signed_in")
    add_view(app, requires_feature("feature-exports"))
    assert client_of(app).get("/").status_code == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"STIGG_GUARD_CACHE_TLL": 5}, "did you mean STIGG_GUARD_CACHE_TTL"),
        ({"STIGG_GUARD_TIMEOUT": "soon"}, "STIGG_GUARD_TIMEOUT"),
        ({"STIGG_GUARD_CUSTOMER": "no_such_module.find"}, "STIGG_GUARD_CUSTOMER.*no_such_module"),
        ({"STIGG_GUARD_CUSTOMER": "math.pi"}, "STIGG_GUARD_CUSTOMER: math.pi is not callable"),
    ],
)
def test_wrong_setting_is_refused_by_init_app(settings: dict[str, Any], message: str) -> None:
    app = Flask("shop")
    app.config.update(settings)
    with pytest.raises(ConfigError, match=message):
        StiggGuard(app)


def test_second_init_app_is_refused(app: Flask) -> None:
    with pytest.raises(ConfigError, match="already"):
        StiggGuard(app)


def test_import_and_init_app_start_no_thread() -> None:
    script = (
        "import threading, flask, stigg_guard.flask\n"
        "stigg_guard.flask.StiggGuard(flask.Flask('shop'))\n"
        "print(threading.active_count())"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "1\n"


def test_import_without_flask_says_the_pip_line() -> None:
    script = "import sys; sys.modules['flask'] = None\nimport stigg_guard.flask"
    failed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "MissingExtra" in failed.stderr
    assert "pip install 'stigg-guard[flask]'" in failed.stderr


def test_failing_import_inside_flask_is_shown_as_it_is() -> None:
    script = "import sys; sys.modules['werkzeug'] = None\nimport stigg_guard.flask"
    failed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "MissingExtra" not in failed.stderr
    assert "werkzeug" in failed.stderr
