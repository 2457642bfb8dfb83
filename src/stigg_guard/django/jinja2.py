"""What Jinja templates of Django say of the plan of the page's customer, in the words of the template tags.

::

    TEMPLATES = [{
        "BACKEND": "django.template.backends.jinja2.Jinja2",
        "OPTIONS": {"extensions": ["stigg_guard.django.jinja2.StiggGuardExtension"]},
    }]

The functions take the request from the template's context: a template that imports one that uses them does so
``with context``. ``using`` names the configuration, where a project has several.
"""

from __future__ import annotations

from jinja2 import Environment, pass_context
from jinja2.ext import Extension
from jinja2.runtime import Context
from markupsafe import Markup

from stigg_guard.django.conf import DEFAULT
from stigg_guard.django.pages import page_paywall, page_plan, page_upgrade_url
from stigg_guard.entitlements import Entitlement
from stigg_guard.web.display import DisplayedPlan, Line


@pass_context
def has_feature(context: Context, feature: str, using: str = DEFAULT) -> bool:
    """Whether the customer may use the feature. As a test: ``{% if "id" is entitled %}``."""
    return _plan(context, using).has(feature)


@pass_context
def entitlement(context: Context, feature: str, using: str = DEFAULT) -> Entitlement | None:
    """The answer with its figures, which is false when access is denied; or None."""
    return _plan(context, using).entitlement(feature)


@pass_context
def usage(context: Context, feature: str, using: str = DEFAULT) -> str:
    """What the customer has of the feature, in words: "3 of 6 templates"."""
    return _plan(context, using).usage(feature)


@pass_context
def usage_bar(context: Context, feature: str, using: str = DEFAULT) -> Markup:
    """A ``<progress>`` that shows how much of the limit is used; empty where nothing is limited."""
    return Markup(_plan(context, using).usage_bar(feature))  # noqa: S704 # the plan's HTML is escaped


@pass_context
def plan_limits(context: Context, using: str = DEFAULT) -> Markup:
    """A table of all that the customer's plan has; empty without a plan."""
    return Markup(_plan(context, using).plan_limits())  # noqa: S704 # the plan's HTML is escaped


@pass_context
def plan_lines(context: Context, using: str = DEFAULT) -> list[Line]:
    """One :class:`~stigg_guard.web.display.Line` for each feature of the customer's plan, for a table of one's own."""
    return _plan(context, using).lines()


@pass_context
def paywall(context: Context, product: str = "", using: str = DEFAULT) -> Markup:
    """A table of the plans on sale, of a product where there are several; empty when Stigg's API does not answer."""
    return Markup(page_paywall(product, context.get("request"), using))  # noqa: S704 # templates escape


def upgrade_url(feature: str = "", using: str = DEFAULT) -> str:
    """The configured address of the upgrade page; empty without one."""
    return page_upgrade_url(feature, using)


class StiggGuardExtension(Extension):
    """Adds the functions above to an environment, and the test ``entitled``."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        functions = (has_feature, entitlement, usage, usage_bar, plan_limits, plan_lines, paywall, upgrade_url)
        environment.globals.update({function.__name__: function for function in functions})
        environment.tests["entitled"] = has_feature


def _plan(context: Context, using: str) -> DisplayedPlan:
    return page_plan(context.get("request"), context.parent, using)
