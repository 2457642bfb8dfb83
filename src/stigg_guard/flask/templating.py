"""The signed-in customer's plan for templates.

During an outage, and with nobody signed in, they have nothing to say: false, empty. They find the customer by the
request and not by the template's context, so imported templates need no ``with context``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from flask import Flask, current_app, render_template
from jinja2 import Environment, FunctionLoader, TemplateNotFound
from markupsafe import Markup

from stigg_guard.entitlements import Entitlement
from stigg_guard.errors import ConfigError
from stigg_guard.flask import addresses
from stigg_guard.flask.current import app_guard
from stigg_guard.runtime.log import logger
from stigg_guard.web.denial import page_source
from stigg_guard.web.display import Line
from stigg_guard.web.paywall import TEMPLATE


def has_feature(feature: str) -> bool:
    """Whether the customer may use the feature. As a test: ``{% if "id" is entitled %}``."""
    return app_guard().displayed_plan().has(feature)


def entitlement(feature: str) -> Entitlement | None:
    """The customer's :class:`Entitlement` to the feature, which is false when access is denied."""
    return app_guard().displayed_plan().entitlement(feature)


def usage(feature: str) -> str:
    """What the customer has of the feature, in words: "3 of 6 templates"."""
    return app_guard().displayed_plan().usage(feature)


def usage_bar(feature: str) -> Markup:
    """A progress element that shows how much of the limit is used; empty where nothing is limited."""
    return Markup(app_guard().displayed_plan().usage_bar(feature))  # noqa: S704 # the plan's HTML is escaped


def plan_limits() -> Markup:
    """A table of all that the customer's plan has; empty without a plan."""
    return Markup(app_guard().displayed_plan().plan_limits())  # noqa: S704 # the plan's HTML is escaped


def plan_lines() -> list[Line]:
    """One :class:`~stigg_guard.web.display.Line` for each feature of the customer's plan, for a table of one's own."""
    return app_guard().displayed_plan().lines()


def paywall(product: str = "") -> Markup:
    """A table of the plans on sale, of a product where there are several; empty when Stigg's API does not answer."""
    this = app_guard()
    shown = this.paywalls.shown(product, this.wording)
    return Markup(rendered(TEMPLATE, paywall=shown) if shown.plans else "")  # noqa: S704 # templates escape


def upgrade_url(feature: str = "") -> str:
    """Where more of the feature can be bought; empty without ``STIGG_GUARD_UPGRADE_URL``, and where nothing tells its
    address: a wrong endpoint, or one outside of a request without ``SERVER_NAME``."""
    try:
        return addresses.upgrade_url(feature) or ""
    except (ConfigError, RuntimeError) as error:
        logger.warning("a template shows no address of the upgrade page: %s", error)
        return ""


TEMPLATE_GLOBALS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (has_feature, entitlement, usage, usage_bar, plan_limits, plan_lines, paywall, upgrade_url)
}
TEMPLATE_TESTS: Mapping[str, Callable[..., bool]] = {"entitled": has_feature}


def add_to_templates(app: Flask) -> None:
    """Gives the functions and tests to the app's templates. Their environment is made by the app, when it is needed."""
    if "jinja_env" in vars(app):
        _add(app.jinja_env)
        return

    class WithPlans(app.jinja_environment):  # type: ignore[name-defined,misc] # each app may have a class of its own
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            _add(self)

    app.jinja_environment = WithPlans


def rendered(name: str, **context: object) -> str:
    """The app's own template, or else the built-in one, to which nothing matters that the app does to its templates."""
    try:
        own = current_app.jinja_env.get_template(name)
    except TemplateNotFound as error:
        if error.name != name:
            raise
        return _built_in().get_template(name).render(context)
    return render_template(own, **context)


@cache
def _built_in() -> Environment:
    return Environment(loader=FunctionLoader(page_source), autoescape=True)


def _add(environment: Environment) -> None:
    environment.globals.update(TEMPLATE_GLOBALS)
    environment.tests.update(TEMPLATE_TESTS)
