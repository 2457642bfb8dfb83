"""Inkwell: letter templates by the web, letters by the API, both within what the customer's plan allows.

Run it beside a local sidecar, and ask what a customer may use::

    stigg-guard sidecar
    STIGG_GUARD_SIDECAR=localhost:8433 STIGG_SIDECAR_HTTP=localhost:8080 flask --app app:create_app run
    STIGG_GUARD_SIDECAR=localhost:8433 flask --app app:create_app stigg entitlements customer-demo-01
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from flask import (
    Blueprint,
    Flask,
    Request,
    Response,
    abort,
    current_app,
    flash,
    redirect,
    render_template,
    request,
    session,
    stream_template,
    url_for,
)
from flask.typing import ResponseReturnValue
from openfeature import api as openfeature
from openfeature.evaluation_context import EvaluationContext
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from werkzeug.exceptions import HTTPException
from writer import MAX_TOKENS, complete

from stigg_guard import ApiError, SidecarError
from stigg_guard.flask import RequestDenied, StiggGuard
from stigg_guard.metrics import GuardCollector
from stigg_guard.openfeature import StiggProvider

# The customers of the demonstration catalog. A real site has users, with passwords, who belong to customers.
CUSTOMERS = {
    "customer-demo-01": "Ada's studio",
    "customer-demo-02": "Grace & Co.",
    "customer-demo-03": "Linus, freelancer",
    "customer-demo-04": "Edsger, just looking",
}
MAX_NAME = 60
# A real site keeps hashes of random tokens in its database.
API_TOKENS = {
    "demo-token-ada": "customer-demo-01",
    "demo-token-grace": "customer-demo-02",
    "demo-token-linus": "customer-demo-03",
    "demo-token-edsger": "customer-demo-04",
}
FEATURES = {
    "feature-templates": "Templates",
    "feature-api-calls": "API calls",
    "api-credits": "API credits",
    "feature-ai": "Words by AI",
    "feature-seats": "Seats",
    "feature-active-users": "Active users",
    "feature-storage": "Storage",
    "feature-regions": "Regions",
    "feature-custom-domain": "Custom domain",
    "feature-exports": "Exports",
    "feature-analytics": "Analytics",
}
MAX_NAMES = 100
TOP_UP = 10_000  # credits
FLAGS = "inkwell"  # the domain of OpenFeature's client

guard = StiggGuard()
site = Blueprint("site", __name__)
analytics = Blueprint("analytics", __name__, url_prefix="/analytics")
api = Blueprint("api", __name__, url_prefix="/api")


def create_app(settings: Mapping[str, Any] | None = None) -> Flask:
    """The site; ``settings`` go before the environment's ``STIGG_GUARD_*``, and those before the defaults here."""
    data = Path(tempfile.gettempdir())
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=os.environ.get("SECRET_KEY", "for-the-demo-only"),
        SESSION_COOKIE_NAME="inkwell",
        SESSION_COOKIE_SAMESITE="Lax",
        DATABASE=os.environ.get("FLASK_API_DATABASE", str(data / "inkwell.sqlite3")),
        STIGG_GUARD_SIDECAR="127.0.0.1:8433",
        # The local sidecar answers Stigg's API too, so that the demonstration can sell plans. It takes any key.
        STIGG_GUARD_API_URL=f"http://{os.environ.get('STIGG_SIDECAR_HTTP', '127.0.0.1:8080')}",
        STIGG_GUARD_API_KEY="none-is-needed",
        STIGG_GUARD_CREDIT_RATES={"feature-ai": {"currency": "api-credits", "rate": 2}},  # what a token costs
        STIGG_GUARD_LEDGER=f"sqlite:///{data / 'inkwell-ledger.sqlite3'}",
        STIGG_GUARD_REPORT="inline",
        STIGG_GUARD_RATE_LIMIT_HEADERS=True,
        STIGG_GUARD_UPGRADE_URL="/upgrade?feature={feature}",
    )
    app.config.update({name: value for name, value in os.environ.items() if name.startswith("STIGG_GUARD_")})
    app.config.update(settings or {})
    guard.init_app(app)
    for blueprint in (site, analytics, api):
        app.register_blueprint(blueprint)
    app.register_error_handler(HTTPException, show_error)
    app.before_request(refuse_forged_forms)
    app.before_request(read_own_writes)
    app.after_request(add_security_headers)
    app.context_processor(lambda: {"titles": FEATURES, "customer_name": name_of(session.get("customer", ""))})
    app.jinja_env.globals["csrf_token"] = csrf_token
    with app.app_context():
        app.extensions["metrics"] = CollectorRegistry()
        app.extensions["metrics"].register(GuardCollector(guard.guard))
        openfeature.set_provider_and_wait(StiggProvider(guard.guard), FLAGS)
        execute("create table if not exists template (id integer primary key, customer text, title text, body text)")
        execute("create table if not exists account (customer text primary key, name text, token text)")
    return app


@guard.customer_loader
def load_customer(request: Request) -> str | None:
    """The API knows its customer by a token, the site by the signed session."""
    if request.blueprint == "api":
        token = request.authorization.token if request.authorization else None
        return customer_of_token(token or "")
    return signed_in()


def signed_in() -> str | None:
    customer: str | None = session.get("customer")
    return customer if customer is not None and name_of(customer) is not None else None


def name_of(customer: str) -> str | None:
    """What a customer is called, of the demonstration or signed up since; None for strangers."""
    rows = execute("select name from account where customer = ?", customer)
    return rows[0]["name"] if rows else CUSTOMERS.get(customer)


def customer_of_token(token: str) -> str | None:
    rows = execute("select customer from account where token = ?", token)
    return rows[0]["customer"] if rows else API_TOKENS.get(token)


def token_of(customer: str) -> str:
    rows = execute("select token from account where customer = ?", customer)
    return rows[0]["token"] if rows else next(token for token, owner in API_TOKENS.items() if owner == customer)


# The site


@site.get("/")
def home() -> str:
    customer = signed_in()
    if customer is None:
        return render_template("sign_in.html", customers=CUSTOMERS)
    return render_home(customer, **session.pop("draft", {}))


def render_home(customer: str, **form: str) -> str:
    return render_template("home.html", templates=templates_of(customer), token=token_of(customer), **form)


@site.post("/sign-in")
def sign_in() -> ResponseReturnValue:
    customer = request.form.get("customer", "")
    if customer not in CUSTOMERS:
        abort(400)
    session.clear()
    session["customer"] = customer
    return redirect(url_for("site.home"))


@site.post("/sign-up")
def sign_up() -> ResponseReturnValue:
    """Makes a customer on the free plan, at Stigg first."""
    name = request.form.get("name", "").strip()
    if not 0 < len(name) <= MAX_NAME:
        abort(400, f"A name has up to {MAX_NAME} letters.")
    customer = f"writer-{uuid.uuid4()}"
    try:
        guard.guard.api.provision_customer(
            {"customer_id": customer, "name": name, "subscription_params": {"plan_id": "free"}}
        )
    except ApiError:
        current_app.logger.exception("nobody could sign up")
        flash("You could not be signed up just now. Please try again in a moment.", "error")
        return render_template("sign_in.html", customers=CUSTOMERS), 502
    execute("insert into account values (?, ?, ?)", customer, name, secrets.token_urlsafe())
    session.clear()
    session["customer"] = customer
    plan_changed()
    flash("Welcome. Your free plan has room for two templates.")
    return redirect(url_for("site.home"))


@site.post("/sign-out")
def sign_out() -> ResponseReturnValue:
    session.clear()
    return redirect(url_for("site.home"))


@site.post("/templates")
@guard.requires_feature("feature-templates")
@guard.consumes_usage(1)
def create_template() -> ResponseReturnValue:
    customer = session["customer"]
    title, body = (request.form.get(field, "").strip() for field in ("title", "body"))
    if not 0 < len(title) <= 80 or not 0 < len(body) <= 2000:
        flash("A template has a title of up to 80 characters and a text of up to 2,000.", "error")
        return render_home(customer, title=title, body=body), 400  # not a success: nothing is counted
    execute("insert into template (customer, title, body) values (?, ?, ?)", customer, title, body)
    plan_changed()
    flash(f"“{title}” is saved.")
    return redirect(url_for("site.home"))


@site.post("/draft")
@guard.requires_feature("feature-ai")
def draft_template() -> ResponseReturnValue:
    """Has the language model write the text of a template. Credits for all that it may use are held meanwhile, and
    those for what it has used are counted."""
    title = request.form.get("title", "").strip()
    if not 0 < len(title) <= 80:
        abort(400, "Give the template a title of up to 80 characters: the draft is about it.")
    with guard.guard.consume("feature-ai", MAX_TOKENS, customer=session["customer"]) as usage:
        completion = complete(title, MAX_TOKENS)
        usage.amount = completion.tokens
    session["draft"] = {"title": title, "body": completion.text}
    plan_changed()
    flash(f"A draft is ready: {completion.tokens} tokens.")
    return redirect(url_for("site.home"))


def names_of_form(request: Request) -> list[str]:
    """The names of the form's text field, one on each line."""
    names = [line.strip() for line in request.form.get("names", "").splitlines() if line.strip()]
    if not 0 < len(names) <= MAX_NAMES:
        abort(400, f"Write 1 to {MAX_NAMES} names, each on its own line.")
    return names


@site.post("/letters")
@guard.consumes_usage(lambda request: len(names_of_form(request)), "feature-api-calls")
def show_letters() -> ResponseReturnValue:
    """A page that is sent while it is written. Its letters are counted when the last one has left, and not if the
    reader goes away before."""
    template = template_of(session["customer"], request.form.get("template", type=int))
    letters = (template["body"].replace("{name}", name) for name in names_of_form(request))
    return Response(stream_template("letters.html", title=template["title"], letters=letters))


@site.get("/upgrade")
def upgrade() -> ResponseReturnValue:
    if signed_in() is None:
        return redirect(url_for("site.home"))
    return render_upgrade(FEATURES.get(request.args.get("feature", "")))


def render_upgrade(wanted: str | None = None) -> str:
    return render_template("upgrade.html", wanted=wanted, credits=TOP_UP)


@site.post("/upgrade")
def buy_upgrade() -> ResponseReturnValue:
    customer = signed_in()
    if customer is None:
        return redirect(url_for("site.home"))
    try:
        guard.guard.api.provision_subscription({"customer_id": customer, "plan_id": "growth"})
    except ApiError:
        current_app.logger.exception("the upgrade of %s failed", customer)
        flash("The upgrade did not work, and nothing was changed. Please try again in a moment.", "error")
        return render_upgrade(), 502
    plan_changed()
    flash("You are on Growth now. Enjoy the room.")
    return redirect(url_for("site.home"))


@site.post("/top-up")
def top_up() -> ResponseReturnValue:
    customer = signed_in()
    if customer is None:
        return redirect(url_for("site.home"))
    try:
        guard.guard.api.grant_credits(
            {
                "customer_id": customer,
                "currency_id": "api-credits",
                "amount": TOP_UP,
                "grant_type": "PAID",
                "display_name": "Top-up",
            }
        )
    except ApiError:
        current_app.logger.exception("the credits of %s were not added", customer)
        flash("The credits could not be added. Please try again in a moment.", "error")
        return render_upgrade(), 502
    plan_changed()
    flash(f"{TOP_UP:,} credits are yours.")
    return redirect(url_for("site.home"))


def plan_changed() -> None:
    """Another worker may answer the next requests, and may know the plan from before: see ``read_own_writes``."""
    session["read_through_until"] = time.time() + guard.guard.config.cache_ttl


def read_own_writes() -> None:
    customer = signed_in()
    if customer and request.endpoint != "static" and time.time() < session.get("read_through_until", 0):
        with suppress(SidecarError):  # in an outage, what is cached will do
            guard.guard.reload(customer)


# A part of the site that only some plans have

guard.protect(analytics, "feature-analytics")


@analytics.get("/")
def show_analytics() -> str:
    templates = templates_of(session["customer"])
    words = [len(template["body"].split()) for template in templates]
    return render_template("analytics.html", count=len(templates), words=sum(words), longest=max(words, default=0))


# The API


@api.get("/templates")
@guard.consumes_usage(1, "feature-api-calls")
def list_templates() -> ResponseReturnValue:
    """Every request is one API call."""
    return [{"id": row["id"], "title": row["title"], "body": row["body"]} for row in templates_of(api_customer())]


def names(request: Request) -> list[str]:
    """The names of ``{"template": 1, "names": ["Ada", "Grace"]}``."""
    body = request.get_json()
    given = body.get("names") if isinstance(body, dict) else None
    if not isinstance(given, list) or not 0 < len(given) <= MAX_NAMES or not all(isinstance(n, str) for n in given):
        abort(400, f"send names, a list of 1 to {MAX_NAMES} strings")
    return given


@api.post("/letters")
@guard.consumes_usage(
    lambda request: len(names(request)),
    "feature-api-calls",
    actual=lambda answer: len(answer["letters"]),
)
def write_letters() -> ResponseReturnValue:
    """Every letter is one API call. A call for each name is held, and one for each letter is counted: a name that comes
    twice gets one letter."""
    template = template_of(api_customer(), request.get_json().get("template"))
    return {"letters": [template["body"].replace("{name}", name) for name in dict.fromkeys(names(request))]}


@api.get("/options")
@guard.requires_feature("feature-templates")
def options() -> ResponseReturnValue:
    """What the customer's editor offers, by flags of OpenFeature: code that knows nothing of this library."""
    flags, customer = openfeature.get_client(FLAGS), EvaluationContext(api_customer())
    return {
        "custom_domain": flags.get_boolean_value("feature-custom-domain", False, customer),
        "storage_gb": flags.get_integer_value("feature-storage", 0, customer),
        "regions": flags.get_string_value("feature-regions", "", customer).split(","),
    }


@site.get("/metrics")
def metrics() -> Response:
    """For Prometheus. A real site lets nobody else ask."""
    if request.remote_addr != "127.0.0.1":
        abort(404)
    return Response(generate_latest(current_app.extensions["metrics"]), content_type=CONTENT_TYPE_LATEST)


@api.errorhandler(HTTPException)
def as_problem(error: HTTPException) -> ResponseReturnValue:
    if isinstance(error, RequestDenied):
        return error.get_response()  # it has more to tell
    problem = {"title": error.name, "status": error.code, "detail": error.description}
    return problem, error.code or 500, {"Content-Type": "application/problem+json"}


def api_customer() -> str:
    customer = load_customer(request)
    assert customer is not None  # the guard has answered 401
    return customer


# Every request


def csrf_token() -> str:
    """A secret of the session, which the site's own forms send and a foreign page cannot know."""
    return str(session.setdefault("csrf_token", secrets.token_urlsafe()))


def refuse_forged_forms() -> None:
    """The API is exempt: it takes a token that no browser sends by itself."""
    if request.method != "POST" or request.blueprint == "api":
        return
    if not secrets.compare_digest(request.form.get("csrf_token", "").encode(), csrf_token().encode()):
        abort(400, "This form is too old. Go back, reload the page, and send it again.")


def show_error(error: HTTPException) -> ResponseReturnValue:
    if isinstance(error, RequestDenied):
        return error.get_response()  # templates/stigg_guard/denied.html
    return render_template("error.html", error=error), error.code or 500


def add_security_headers(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def templates_of(customer: str) -> list[sqlite3.Row]:
    return execute("select id, title, body from template where customer = ? order by id desc", customer)


def template_of(customer: str, number: object) -> sqlite3.Row:
    template = next((row for row in templates_of(customer) if row["id"] == number), None)
    if template is None:
        abort(404, "there is no such template")
    return template


def execute(statement: str, *values: object) -> list[sqlite3.Row]:
    """The rows of one statement, committed."""
    with closing(sqlite3.connect(current_app.config["DATABASE"])) as database, database:
        database.row_factory = sqlite3.Row
        return database.execute(statement, values).fetchall()
