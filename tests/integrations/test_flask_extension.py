"""What the extension reads from a Flask app, and what it gives to it."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Request, g, render_template_string
from flask.templating import Environment
from jinja2 import DictLoader

import stigg_guard
from integrations.flask_shop import ESSENTIALS, GROWTH, TEMPLATES, add_view, client_of, guard_of, signed_in
from stigg_guard import ConfigError, Customer, SidecarUnavailable
from stigg_guard.flask import (
    FeatureDenied,
    StiggGuard,
    consumes_usage,
    feature_denied,
    requires_feature,
    usage_lost_contact,
    usage_reported,
)
from stigg_guard.flask import decorators as flask_decorators
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.testing import RealLedgerWarning, override_entitlements

MakeApp = Callable[..., Flask]


# Apps


def test_extension_serves_several_apps_with_their_own_settings(make_app: MakeApp) -> None:
    extension = StiggGuard()
    here, there = make_app(extension), make_app(extension, ENABLED=False)
    for app in (here, there):
        add_view(app, extension.requires_feature("feature-analytics"), extension.consumes_usage(1, TEMPLATES))
    assert client_of(here).get("/").status_code == 402
    assert client_of(there).get("/").status_code == 200
    assert guard_of(here) is not guard_of(there)


def test_guard_of_the_extension_is_the_current_apps(make_app: MakeApp) -> None:
    extension = StiggGuard()
    here, there = make_app(extension), make_app(extension)
    for app in (here, there):
        with app.app_context():
            assert extension.guard is guard_of(app)


def test_extension_keeps_no_app_alive(tmp_path: Path) -> None:
    extension = StiggGuard()
    app = Flask("shop", instance_path=str(tmp_path))
    extension.init_app(app)
    gone = weakref.ref(app)
    guard_of(app).close()
    del app
    gc.collect()
    assert gone() is None


def test_wrong_settings_are_refused_together_with_their_remedies() -> None:
    app = Flask("shop")
    app.config.update(STIGG_GUARD_CACHE_TLL=5, STIGG_GUARD_TIMEOUT="soon")
    with pytest.raises(ConfigError, match=r"CACHE_TLL: .*did you mean STIGG_GUARD_CACHE_TTL.*STIGG_GUARD_TIMEOUT"):
        StiggGuard(app)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"STIGG_GUARD_CUSTOMER": "no_such_module.find"}, "STIGG_GUARD_CUSTOMER.*no_such_module"),
        ({"STIGG_GUARD_CUSTOMER": "math.pi"}, "STIGG_GUARD_CUSTOMER: math.pi is not callable"),
        ({"STIGG_GUARD_ANONYMOUS": "login"}, "STIGG_GUARD_LOGIN_URL: .*give the address"),
        ({"STIGG_GUARD_RULES": [{"path": "shop"}]}, "STIGG_GUARD_RULES: rule 0"),
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


def test_app_has_the_command(app: Flask) -> None:
    assert "entitlements" in app.test_cli_runner().invoke(args=["stigg", "--help"]).output


def test_ledger_is_in_the_instance_folder(make_app: MakeApp) -> None:
    app = make_app(LEDGER=None)
    add_view(app, consumes_usage(1, TEMPLATES))
    client_of(app).get("/")
    assert [file.suffix for file in Path(app.instance_path).iterdir() if file.is_file()]


def test_folder_that_cannot_be_made_is_told_when_it_is_first_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    app = Flask("shop", instance_path=str(tmp_path / "file" / "instance"))
    StiggGuard(app)
    with pytest.raises(ConfigError, match=r"LEDGER: the folder"):
        guard_of(app).stats()


def test_import_and_init_app_start_no_thread_and_open_nothing() -> None:
    watched = """
import sys, threading, flask
events = []
sys.addaudithook(lambda event, _: events.append(event))
import stigg_guard.flask
app = flask.Flask("shop")
stigg_guard.flask.StiggGuard(app)
started = {"socket.__new__", "socket.connect", "socket.bind", "sqlite3.connect", "subprocess.Popen", "os.fork"}
started |= {"os.mkdir", "tempfile.mkstemp"}
print(*started.intersection(events), *(thread.name for thread in threading.enumerate()), "jinja_env" in vars(app))
"""
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True)
    assert done.stdout == "MainThread False\n", done.stderr


def late_delimiters(app: Flask) -> str:
    app.jinja_options = {"variable_start_string": "[[", "variable_end_string": "]]"}
    return "[[ has_feature('feature-exports') ]] [[ 'feature-exports' is entitled ]]"


def late_loader(app: Flask) -> str:
    app.jinja_loader = DictLoader({"imported": "{% set answer = has_feature('feature-exports') %}"})
    return "{% from 'imported' import answer %}{{ answer }} {{ 'feature-exports' is entitled }}"


@pytest.mark.parametrize("change", [late_delimiters, late_loader])
def test_app_may_settle_its_templates_after_init_app(app: Flask, change: Callable[[Flask], str]) -> None:
    source = change(app)
    add_view(app, answer=lambda: render_template_string(source))
    assert client_of(app).get("/").text == "True True"


def test_app_may_have_made_its_templates_before_init_app(sidecar: Sidecar) -> None:
    app = Flask("shop")
    app.config.update(STIGG_GUARD_LEDGER="memory://", STIGG_GUARD_SIDECAR=sidecar.address)
    app.jinja_env.globals["shop"] = "ours"
    StiggGuard(app).customer_loader(lambda _: ESSENTIALS)
    add_view(app, answer=lambda: render_template_string("{{ shop }} {{ 'feature-exports' is entitled }}"))
    with guard_of(app):
        assert app.test_client().get("/").text == "ours True"


def test_environment_of_templates_may_have_a_class_of_its_own(make_app: MakeApp, sidecar: Sidecar) -> None:
    class Shouting(Flask):
        class jinja_environment(Environment):  # noqa: N801 # Flask's own name
            pass

    app = Shouting("shop")
    app.config.update(STIGG_GUARD_LEDGER="memory://")
    StiggGuard(app)
    assert isinstance(app.jinja_env, Shouting.jinja_environment)
    assert "usage_bar" in app.jinja_env.globals


# Tests of an app


@pytest.mark.filterwarnings("error:a test is about to use")
def test_tests_are_warned_before_the_ledger_of_the_settings_is_used(make_app: MakeApp, tmp_path: Path) -> None:
    app = make_app(LEDGER=None)
    app.testing = True
    runs = add_view(app, consumes_usage(1, TEMPLATES))
    with pytest.raises(RealLedgerWarning, match="override entitlements"):
        client_of(app).post("/")
    assert (runs, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.filterwarnings("error:a test is about to use")
def test_overridden_app_needs_no_folder_and_warns_nobody(make_app: MakeApp, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    app = Flask("shop", instance_path=str(tmp_path / "file" / "instance"))
    app.config.update(STIGG_GUARD_CUSTOMER=signed_in, TESTING=True)
    StiggGuard(app)
    add_view(app, consumes_usage(1, TEMPLATES))
    with override_entitlements({TEMPLATES: {"limit": 1}}):
        assert [client_of(app).post("/").status_code for _ in range(2)] == [200, 402]


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


# Customers


def test_customer_loader_serves_apps_without_the_setting(make_app: MakeApp) -> None:
    extension = StiggGuard()
    app = make_app(extension, CUSTOMER=None)

    @extension.customer_loader
    def load(request: Request) -> str:
        return GROWTH

    add_view(app, requires_feature("feature-analytics"))
    assert app.test_client().get("/").status_code == 200


def test_customer_setting_may_be_a_dotted_path(make_app: MakeApp) -> None:
    app = make_app(CUSTOMER=f"{signed_in.__module__}.signed_in")
    add_view(app, requires_feature("feature-exports"))
    assert client_of(app).get("/").status_code == 200


def test_customer_is_looked_up_once_for_all_of_a_request(make_app: MakeApp) -> None:
    lookups: list[str] = []

    def load(request: Request) -> str:
        lookups.append(request.path)
        return ESSENTIALS

    app = make_app(CUSTOMER=load)
    add_view(app, requires_feature("feature-exports"), consumes_usage(1, TEMPLATES), consumes_usage(1, TEMPLATES))
    assert app.test_client().get("/").status_code == 200
    assert lookups == ["/"]


def test_nobody_is_looked_up_once_too(make_app: MakeApp) -> None:
    lookups: list[str] = []
    app = make_app(CUSTOMER=lambda request: lookups.append(request.path))
    add_view(app, answer=lambda: render_template_string("{{ has_feature('a') }} {{ plan_limits() }}"))
    assert app.test_client().get("/").text == "False "
    assert lookups == ["/"]


def test_request_within_another_ones_context_has_its_own_customer(app: Flask) -> None:
    add_view(app, requires_feature("feature-analytics"))
    with app.app_context():
        assert client_of(app, GROWTH).get("/").status_code == 200
        assert client_of(app, ESSENTIALS).get("/").status_code == 402


def test_request_that_a_view_sends_to_the_app_changes_nothing_for_its_own(make_app: MakeApp) -> None:
    lookups: list[str] = []
    app = make_app(CUSTOMER=lambda request: lookups.append(request.path) or signed_in(request), RATE_LIMIT_HEADERS=True)
    app.add_url_rule("/inner", "inner", requires_feature("feature-analytics")(lambda: "figures"))

    def outer() -> list[str]:
        return [client_of(app, GROWTH).get("/inner").text, *g]

    add_view(app, consumes_usage(1, TEMPLATES), answer=outer)
    answer = client_of(app, ESSENTIALS).get("/")
    assert (answer.get_json(), lookups) == (["figures"], ["/", "/inner"])
    assert answer.headers["Cache-Control"] == "private"
    assert answer.headers["RateLimit"] == f'"{TEMPLATES}";r=2'


def test_resource_of_a_customer_is_guarded_by_its_own_subscription(make_app: MakeApp) -> None:
    app = make_app(CUSTOMER=lambda request: Customer(ESSENTIALS, resource="site-01"))
    add_view(app, requires_feature("feature-exports"))
    assert client_of(app).get("/").status_code == 200


def test_empty_customer_id_is_an_error_of_the_app(make_app: MakeApp) -> None:
    app = make_app(CUSTOMER=lambda request: "")
    add_view(app, requires_feature("feature-exports"))
    assert client_of(app).get("/").status_code == 500


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


# Signals


def test_denial_is_signalled_by_its_app(make_app: MakeApp) -> None:
    here, there = make_app(), make_app()
    told: list[Any] = []

    def receive(sender: Flask, error: FeatureDenied) -> None:
        told.append((sender, error.entitlement.feature_id, error.customer.id))

    for app in (here, there):
        add_view(app, requires_feature("feature-analytics"))
    with feature_denied.connected_to(receive, sender=here):
        for app in (here, there):
            assert client_of(app).get("/").status_code == 402
    assert told == [(here, "feature-analytics", ESSENTIALS)]


def test_reported_usage_is_signalled(make_app: MakeApp) -> None:
    app = make_app(REPORT="inline")
    add_view(app, consumes_usage(2, TEMPLATES))
    told: list[Any] = []

    def receive(sender: Flask, answer: Any) -> None:
        told.append((sender, answer.report.amount, answer.current_usage))

    with usage_reported.connected_to(receive, sender=app):
        client_of(app).get("/")
    assert told == [(app, 2, 5)]


def test_lost_contact_is_signalled(make_app: MakeApp) -> None:
    app = make_app(SIDECAR="127.0.0.1:1", ON_OUTAGE="allow")
    told: list[Any] = []

    def receive(sender: Flask, error: Exception) -> None:
        told.append((sender, type(error)))

    with usage_lost_contact.connected_to(receive, sender=app):
        guard_of(app).report(TEMPLATES, 1, customer=ESSENTIALS)
        guard_of(app).flush(0.1)
    assert told == [(app, SidecarUnavailable)]


def test_guard_that_outlives_its_app_signals_nothing(sidecar: Sidecar, tmp_path: Path) -> None:
    app = Flask("shop", instance_path=str(tmp_path))
    app.config["STIGG_GUARD_SIDECAR"] = sidecar.address
    StiggGuard(app)
    told: list[Any] = []

    def receive(sender: Flask, **_: Any) -> None:
        told.append(sender)

    with guard_of(app) as guard, feature_denied.connected_to(receive):
        del app
        gc.collect()
        with pytest.raises(stigg_guard.FeatureDenied):
            guard.require("feature-analytics", customer=ESSENTIALS)
    assert told == []


def test_async_receiver_without_asgiref_keeps_no_other_from_being_told(app: Flask, caplog: Any) -> None:
    told: list[str] = []

    def without_asgiref(_: Any) -> Any:
        raise RuntimeError("Install Flask with the 'async' extra")

    async def receive(sender: Flask, **_: Any) -> None: ...

    def listen(sender: Flask, **_: Any) -> None:
        told.append("told")

    app.async_to_sync = without_asgiref  # type: ignore[method-assign] # what Flask's own says without it
    add_view(app, requires_feature("feature-analytics"))
    with feature_denied.connected_to(receive), feature_denied.connected_to(listen):
        assert client_of(app).get("/").status_code == 402
    assert told == ["told"]
    assert "extra" in caplog.text


def test_receiver_that_raises_changes_nothing_for_the_request_and_the_others(app: Flask, caplog: Any) -> None:
    told: list[str] = []

    def fail(sender: Flask, **_: Any) -> None:
        raise RuntimeError("a receiver's fault")

    async def receive(sender: Flask, **_: Any) -> None:
        told.append("told")

    add_view(app, requires_feature("feature-analytics"))
    with feature_denied.connected_to(fail), feature_denied.connected_to(receive):
        assert client_of(app).get("/").status_code == 402
    assert told == ["told"]
    assert "a receiver's fault" in caplog.text


def test_has_every_guard_of_the_module() -> None:
    guards = [name for name in vars(flask_decorators) if name in stigg_guard.flask.__all__]
    assert len(guards) == 4
    assert [name for name in guards if getattr(StiggGuard, name) is not getattr(flask_decorators, name)] == []
