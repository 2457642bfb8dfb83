"""The template tags over a real sidecar."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from django.core.exceptions import ImproperlyConfigured
from django.template import Context, Engine, TemplateSyntaxError
from django.test import RequestFactory

from stigg_guard.sidecar.server import Sidecar

DEMO = "customer-demo-01"  # essentials: 3 of 6 templates used, no analytics
ENGINE = Engine(
    libraries={"stigg_guard": "stigg_guard.django.templatetags.stigg_guard"}, builtins=["django.templatetags.i18n"]
)


@pytest.fixture(autouse=True)
def site(sidecar: Sidecar, settings: Any) -> Any:
    """The settings of a site that asks the sidecar."""
    settings.STIGG_GUARD = {**settings.STIGG_GUARD, "SIDECAR": sidecar.address, "UPGRADE_URL": "/plans?a=1&b={feature}"}
    return settings


def rendered(source: str, customer: str | None = DEMO, **variables: object) -> str:
    """The template as the customer's page shows it."""
    signed_in = {"REMOTE_USER": customer} if customer else {}
    request = RequestFactory().get("/", **signed_in)
    template = ENGINE.from_string("{% load stigg_guard %}" + source)
    return template.render(Context({"request": request, **variables}))


def test_the_first_part_is_shown_for_a_feature_of_the_plan() -> None:
    assert rendered('{% feature "feature-exports" %}yes{% else %}no{% endfeature %}') == "yes"


def test_the_other_part_is_shown_for_a_feature_outside_the_plan() -> None:
    assert rendered('{% feature "feature-analytics" %}yes{% else %}no{% endfeature %}') == "no"


def test_without_another_part_nothing_is_shown() -> None:
    assert rendered('{% feature "feature-analytics" %}yes{% endfeature %}') == ""


def test_the_feature_may_be_a_variable() -> None:
    assert rendered("{% feature wanted %}yes{% endfeature %}", wanted="feature-exports") == "yes"


@pytest.mark.parametrize("tag", ["{% feature %}", '{% feature "a" "b" %}'])
def test_a_feature_tag_takes_one_id(tag: str) -> None:
    with pytest.raises(TemplateSyntaxError, match="one feature id"):
        rendered(tag + "{% endfeature %}")


def test_an_unclosed_feature_tag_is_a_syntax_error() -> None:
    with pytest.raises(TemplateSyntaxError, match="endfeature"):
        rendered('{% feature "feature-exports" %}yes')


def test_an_entitlement_has_its_figures() -> None:
    source = '{% entitlement "feature-templates" as e %}{{ e.current_usage }} {{ e.remaining }}'
    assert rendered(source) == "3.0 3.0"


@pytest.mark.parametrize(
    ("feature", "text"),
    [
        ("feature-templates", "3 of 6 templates"),
        ("feature-storage", "100 GB"),
        ("feature-analytics", "not included"),
        ("api-credits", "37,500 of 50,000 credits left"),
    ],
)
def test_usage_is_told_in_words(feature: str, text: str) -> None:
    assert rendered("{% usage feature %}", feature=feature) == text


def test_a_usage_bar_is_a_labelled_progress_element() -> None:
    expected = (
        '<progress class="stigg-guard-usage" value="0.5" aria-label="3 of 6 templates">3 of 6 templates</progress>'
    )
    assert rendered('{% usage_bar "feature-templates" %}') == expected


def test_a_usage_bar_is_not_localised(site: Any) -> None:
    site.LANGUAGE_CODE = "de"
    assert 'value="0.5"' in rendered('{% usage_bar "feature-templates" %}')


def test_what_has_no_limit_has_no_bar() -> None:
    assert rendered('{% usage_bar "feature-exports" %}') == ""


def test_plan_limits_are_a_table_of_the_plan() -> None:
    table = rendered("{% plan_limits %}")
    assert '<th scope="row">feature-templates</th><td>3 of 6 templates</td><td><progress' in table
    assert '<th scope="row">feature-regions</th><td>eu, us</td><td></td>' in table
    assert "feature-analytics" not in table


def test_a_customer_without_a_plan_has_no_table() -> None:
    assert rendered("{% plan_limits %}", "customer-demo-04") == ""


def test_the_upgrade_url_is_escaped() -> None:
    assert rendered('{% upgrade_url "<f>" %}') == "/plans?a=1&amp;b=%3Cf%3E"


def test_without_an_upgrade_page_the_url_is_empty(site: Any) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, "UPGRADE_URL": None}
    assert rendered("{% upgrade_url %}") == ""


EVERY_TAG = (
    '{% feature "feature-templates" %}yes{% else %}no{% endfeature %}|{% usage "feature-templates" %}'
    '|{% usage_bar "feature-templates" %}|{% plan_limits %}'
    '|{% entitlement "feature-templates" as e %}{% if e %}e{% endif %}'
)


def test_an_anonymous_visitor_is_denied_and_shown_nothing() -> None:
    assert rendered(EVERY_TAG, customer=None) == "no||||"


def test_an_outage_does_not_end_the_page(sidecar: Sidecar) -> None:
    sidecar.stop()
    assert rendered(EVERY_TAG) == "no||||"


def test_the_outage_policy_holds_for_tags_too(sidecar: Sidecar, site: Any) -> None:
    sidecar.stop()
    site.STIGG_GUARD = {**site.STIGG_GUARD, "ON_OUTAGE": "allow"}
    assert rendered('{% feature "feature-analytics" %}yes{% endfeature %}') == "yes"


def test_with_the_guard_disabled_every_feature_is_shown(site: Any) -> None:
    site.STIGG_GUARD = {"ENABLED": False}
    assert rendered('{% feature "feature-analytics" %}yes{% endfeature %}', customer=None) == "yes"


def test_all_tags_of_a_page_ask_the_sidecar_once(sidecar: Sidecar) -> None:
    rendered(EVERY_TAG + EVERY_TAG)
    metrics = requests.get(f"http://{sidecar.http_address}/metrics", timeout=5).text
    counts = [line.rpartition(" ") for line in metrics.splitlines() if line.startswith("sidecar_requests_total{")]
    asked = {labels: float(count) for labels, _, count in counts if float(count)}
    assert asked == {'sidecar_requests_total{code="OK",method="GetEntitlementsStateV2"}': 1}


def test_a_context_without_the_request_is_an_error_with_the_remedy() -> None:
    template = ENGINE.from_string('{% load stigg_guard %}{% usage "feature-templates" %}')
    with pytest.raises(ImproperlyConfigured, match="context_processors"):
        template.render(Context())
