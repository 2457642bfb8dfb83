"""``{% load stigg_guard %}``: what the customer of the page may use.

No tag ends a page: for an anonymous visitor, without a request, and when nothing answers or something is broken,
features are denied and usage is empty. ``using="name"`` names the configuration, where a project has several.
"""

from __future__ import annotations

from collections.abc import Sequence

from django import template
from django.template.base import FilterExpression, NodeList, Parser, Token, token_kwargs
from django.utils.safestring import SafeString, mark_safe

from stigg_guard.django import pages
from stigg_guard.django.conf import DEFAULT
from stigg_guard.django.wording import WORDING
from stigg_guard.entitlements import Entitlement
from stigg_guard.web import display
from stigg_guard.web.display import DisplayedPlan

register = template.Library()


@register.tag
def feature(parser: Parser, token: Token) -> FeatureNode:
    """``{% feature "id" %}…{% else %}…{% endfeature %}``: the first part if the customer may use the feature."""
    name, *arguments = token.split_contents()
    using = token_kwargs(arguments[1:], parser).pop("using", None)
    if len(arguments) != (1 if using is None else 2):
        raise template.TemplateSyntaxError(
            f"{{% {name} %}} takes one feature id, and may name a configuration: using=…"
        )
    allowed = parser.parse(("else", "endfeature"))
    denied = NodeList()
    if parser.next_token().contents == "else":
        denied = parser.parse(("endfeature",))
        parser.delete_first_token()
    return FeatureNode(parser.compile_filter(arguments[0]), using, allowed, denied)


class FeatureNode(template.Node):
    """One of two parts of a page, by an entitlement."""

    child_nodelists: Sequence[str] = ("allowed", "denied")

    def __init__(
        self, feature_id: FilterExpression, using: FilterExpression | None, allowed: NodeList, denied: NodeList
    ) -> None:
        self.feature_id = feature_id
        self.using = using
        self.allowed = allowed
        self.denied = denied

    def render(self, context: template.Context) -> SafeString:
        using = DEFAULT if self.using is None else self.using.resolve(context)
        allowed = _plan(context, using).has(self.feature_id.resolve(context))
        return (self.allowed if allowed else self.denied).render(context)


@register.simple_tag(takes_context=True)
def entitlement(context: template.Context, feature_id: str, using: str = DEFAULT) -> Entitlement | None:
    """``{% entitlement "id" as e %}``: the answer with its figures, or None."""
    return _plan(context, using).entitlement(feature_id)


@register.simple_tag(takes_context=True)
def usage(context: template.Context, feature_id: str, using: str = DEFAULT) -> str:
    """``{% usage "id" %}``: "3 of 6 templates"."""
    return _plan(context, using).usage(feature_id)


@register.simple_tag(takes_context=True)
def usage_bar(context: template.Context, feature_id: str, using: str = DEFAULT) -> SafeString:
    """``{% usage_bar "id" %}``: a ``<progress>``; empty where nothing is limited."""
    return mark_safe(_plan(context, using).usage_bar(feature_id))  # noqa: S308 # the plan's HTML is escaped


@register.simple_tag(takes_context=True)
def plan_limits(context: template.Context, using: str = DEFAULT) -> SafeString:
    """``{% plan_limits %}``: a table of all that the customer's plan has; empty without a plan."""
    return mark_safe(_plan(context, using).plan_limits())  # noqa: S308 # the plan's HTML is escaped


@register.simple_tag(takes_context=True)
def paywall(context: template.Context, product: str = "", using: str = DEFAULT) -> SafeString:
    """``{% paywall %}``: a table of the plans on sale; empty when Stigg's API does not answer."""
    return pages.page_paywall(product, context.get("request"), using)


@register.simple_tag
def upgrade_url(feature_id: str = "", using: str = DEFAULT) -> str:
    """``{% upgrade_url "id" %}``: the configured address of the upgrade page; empty without one."""
    return pages.page_upgrade_url(feature_id, using)


@register.filter
def has_feature(plan: object, feature_id: str) -> bool:
    """``{% if request.stigg|has_feature:"id" %}``: whether the customer may use the feature."""
    return pages.has_feature(plan, feature_id)


@register.filter
def usage_text(answer: object) -> str:
    """``{{ e|usage_text }}``: an entitlement in words; empty for anything else."""
    return display.usage_text(answer, WORDING) if isinstance(answer, Entitlement) else ""


def _plan(context: template.Context, using: str) -> DisplayedPlan:
    return pages.page_plan(context.get("request"), context.dicts[0], using)
