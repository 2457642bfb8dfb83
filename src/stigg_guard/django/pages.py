"""The customer's plan for templates of Django and of Jinja. An error in it never ends the page."""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.template import Context, Engine, TemplateDoesNotExist, loader
from django.utils.safestring import SafeString, mark_safe

from stigg_guard.django import asynchronous
from stigg_guard.django.conf import DEFAULT, configured, get_guard
from stigg_guard.django.requests import displayed_plan
from stigg_guard.django.wording import WORDING
from stigg_guard.runtime.log import logger
from stigg_guard.web import denial, paywall
from stigg_guard.web.display import DisplayedPlan

_PLAN = "_stigg_guard_plan_"


def page_plan(request: Any, page: MutableMapping[str, Any], using: str = DEFAULT) -> DisplayedPlan:
    """The plan that a page shows, the same one for all of it.

    ``page`` is what the page knows by itself. Without a request, as in a mail or in Django's own ``500.html``, or where
    the settings are wrong, nothing is shown, and the log says so once.
    """
    if request is not None:
        try:
            return displayed_plan(request, using)
        except (ImproperlyConfigured, TypeError) as error:  # wrong settings, or what is no request or no name
            return _nothing(page, using, error)
    return _nothing(page, using, "it is rendered without a request")


def page_upgrade_url(feature: object, using: str = DEFAULT) -> str:
    """The configured address of the upgrade page; empty without one, and where the settings are wrong."""
    try:
        return denial.upgrade_url(get_guard(using).config, str(feature or "")) or ""
    except (ImproperlyConfigured, TypeError) as error:
        logger.warning("a page shows no upgrade address: %s", error)
        return ""


def has_feature(plan: object, feature: str) -> bool:
    """Whether the plan of a page, which may lack one, has the feature."""
    if isinstance(plan, DisplayedPlan):
        return plan.has(feature)
    logger.warning("a page shows no plan: has_feature is for request.stigg, which StiggGuardMiddleware gives requests")
    return False


def page_paywall(product: object, request: Any, using: str = DEFAULT) -> SafeString:
    """HTML of the plans on sale; empty where the settings are wrong. In an event loop it is a thread that asks."""
    try:
        paywalls = configured(using).paywalls
    except (ImproperlyConfigured, TypeError) as error:
        logger.warning("a page shows no plans: %s", error)
        return mark_safe("")
    ask = partial(paywalls.shown, str(product or ""), WORDING)
    shown = ask() if asynchronous.may_block() else asynchronous.beside_loop(ask)
    return rendered(paywall.TEMPLATE, {"paywall": shown}, request) if shown.plans else mark_safe("")


def rendered(name: str, context: dict[str, Any], request: Any) -> SafeString:
    """The project's own template, or else the built-in one, whose numbers are not localised for its markup's sake."""
    try:
        template = loader.get_template(name)
    except TemplateDoesNotExist:
        return Engine().from_string(denial.page_source(name)).render(Context(context, use_l10n=False))
    return mark_safe(template.render(context, request))  # noqa: S308 # engines escape


def _nothing(page: MutableMapping[str, Any], using: object, reason: object) -> DisplayedPlan:
    key = f"{_PLAN}{using}"
    if key not in page:
        logger.warning("a page shows no plan: %s", reason)
        page[key] = DisplayedPlan(None, lambda: None, WORDING)
    plan: DisplayedPlan = page[key]
    return plan
