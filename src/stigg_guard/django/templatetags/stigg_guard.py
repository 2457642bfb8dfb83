"""``{% load stigg_guard %}``: what the customer of the page may use.

No tag ends a page: for an anonymous visitor, and when the sidecar cannot be asked and nothing else answers, features
are denied and usage is empty.
"""

from __future__ import annotations

from collections.abc import Sequence

from django import template
from django.core.exceptions import ImproperlyConfigured
from django.template.base import FilterExpression, NodeList, Parser, Token
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from stigg_guard import denial, display
from stigg_guard.display import DisplayedPlan
from stigg_guard.django.conf import displayed_plan, get_guard
from stigg_guard.entitlements import Entitlement

register = template.Library()


@register.tag
def feature(parser: Parser, token: Token) -> FeatureNode:
    """``{% feature "id" %}…{% else %}…{% endfeature %}``: the first part if the customer may use the feature."""
    name, *arguments = token.split_contents()
    if len(arguments) != 1:
        raise template.TemplateSyntaxError(f"{{% {name} %}} takes one feature id, not {len(arguments)} arguments")
    allowed = parser.parse(("else", "endfeature"))
    denied = NodeList()
    if parser.next_token().contents == "else":
        denied = parser.parse(("endfeature",))
        parser.delete_first_token()
    return FeatureNode(parser.compile_filter(arguments[0]), allowed, denied)


class FeatureNode(template.Node):
    """One of two parts of a page, by an entitlement."""

    child_nodelists: Sequence[str] = ("allowed", "denied")

    def __init__(self, feature_id: FilterExpression, allowed: NodeList, denied: NodeList) -> None:
        self.feature_id = feature_id
        self.allowed = allowed
        self.denied = denied

    def render(self, context: template.Context) -> SafeString:
        answer = entitlement(context, self.feature_id.resolve(context))
        return (self.allowed if answer else self.denied).render(context)


@register.simple_tag(takes_context=True)
def entitlement(context: template.Context, feature_id: str) -> Entitlement | None:
    """``{% entitlement "id" as e %}``: the answer with its figures, or None."""
    return _plan(context).entitlement(feature_id)


@register.simple_tag(takes_context=True)
def usage(context: template.Context, feature_id: str) -> str:
    """``{% usage "id" %}``: "3 of 6 templates"."""
    answer = entitlement(context, feature_id)
    return display.usage_text(answer) if answer is not None else ""


@register.simple_tag(takes_context=True)
def usage_bar(context: template.Context, feature_id: str) -> str:
    """``{% usage_bar "id" %}``: a ``<progress>``; empty where nothing is limited."""
    answer = entitlement(context, feature_id)
    return _bar(display.line(answer)) if answer is not None else ""


@register.simple_tag(takes_context=True)
def plan_limits(context: template.Context) -> str:
    """``{% plan_limits %}``: a table of all that the customer's plan has; empty without a plan."""
    rows = [(line.feature_id, line.text, _bar(line)) for line in _plan(context).lines()]
    if not rows:
        return ""
    return format_html(
        '<table class="stigg-guard-plan"><thead><tr><th scope="col">Feature</th><th scope="col">Included</th>'
        '<th scope="col">Used</th></tr></thead><tbody>{}</tbody></table>',
        format_html_join("", '<tr><th scope="row">{}</th><td>{}</td><td>{}</td></tr>', rows),
    )


@register.simple_tag
def upgrade_url(feature_id: str = "") -> str:
    """``{% upgrade_url "id" %}``: the configured address of the upgrade page; empty without one."""
    return denial.upgrade_url(get_guard().config, feature_id) or ""


def _bar(line: display.Line) -> str:
    if line.fraction is None:
        return ""
    bar = '<progress class="stigg-guard-usage" value="{}" aria-label="{}">{}</progress>'
    return format_html(bar, f"{line.fraction:.4g}", line.text, line.text)


def _plan(context: template.Context) -> DisplayedPlan:
    request = context.get("request")
    if request is None:
        raise ImproperlyConfigured(
            "the stigg_guard tags need the request: put 'django.template.context_processors.request' into the "
            "context_processors of TEMPLATES, and render with the request"
        )
    return displayed_plan(request)
