"""What templates can say of the signed-in customer's plan.

During an outage, and with nobody signed in, they have nothing to say: false, empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup

from stigg_guard import denial, display
from stigg_guard.display import Line
from stigg_guard.entitlements import Entitlement
from stigg_guard.flask.current import app_guard

_BAR = Markup('<progress class="stigg-guard-usage" value="{:.4g}" aria-label="{}">{}</progress>')


def has_feature(feature: str) -> bool:
    """Whether the customer may use the feature."""
    return bool(entitlement(feature))


def entitlement(feature: str) -> Entitlement | None:
    """The customer's :class:`Entitlement` to the feature, which is false when access is denied."""
    return app_guard().displayed_plan().entitlement(feature)


def usage(feature: str) -> str:
    """What the customer has of the feature, in words: "3 of 6 templates"."""
    answer = entitlement(feature)
    return "" if answer is None else display.usage_text(answer)


def usage_bar(feature: str) -> Markup:
    """A progress element that shows how much of the limit is used; empty where nothing is limited."""
    answer = entitlement(feature)
    line = display.line(answer) if answer is not None else None
    if line is None or line.fraction is None:
        return Markup()
    return _BAR.format(line.fraction, line.text, line.text)


def plan_limits() -> list[Line]:
    """One :class:`~stigg_guard.display.Line` for each feature of the customer's plan."""
    return app_guard().displayed_plan().lines()


def upgrade_url(feature: str) -> str:
    """Where more of the feature can be bought; empty without ``STIGG_GUARD_UPGRADE_URL``."""
    return denial.upgrade_url(app_guard().guard.config, feature) or ""


TEMPLATE_GLOBALS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function for function in (has_feature, entitlement, usage, usage_bar, plan_limits, upgrade_url)
}
