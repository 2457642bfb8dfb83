"""The template tags, the context processor and the Jinja functions over a real sidecar."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import pytest
import requests
from django.http import HttpRequest
from django.template import Context, Engine, RequestContext, TemplateSyntaxError
from django.template.backends.jinja2 import Jinja2
from django.test import RequestFactory
from django.utils import translation
from django.utils.timezone import override as override_timezone

from stigg_guard import Config, Customer, Entitlement, FeatureDenied, Reason
from stigg_guard.django.requests import displayed_plan
from stigg_guard.django.wording import WORDING
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.web.denial import Denial

DEMO = "customer-demo-01"  # essentials: 3 of 6 templates used, no analytics
PARTS = {
    "base.html": "[{% block body %}{% endblock %}]",
    "part.html": '{% load stigg_guard %}{% usage "feature-templates" %}',
}
ENGINE = Engine(
    libraries={"stigg_guard": "stigg_guard.django.templatetags.stigg_guard"},
    builtins=["django.templatetags.i18n"],
    loaders=[("django.template.loaders.locmem.Loader", PARTS)],
    context_processors=["stigg_guard.django.context_processors.stigg"],
)


@pytest.fixture(autouse=True)
def site(sidecar: Sidecar, settings: Any) -> Any:
    """The settings of a site that asks the sidecar."""
    settings.STIGG_GUARD = {
        **settings.STIGG_GUARD,
        "SIDECAR": sidecar.address,
        "TIMEOUT": 20,
        "UPGRADE_URL": "/plans?a=1&b={feature}",
    }
    return settings


def rendered(source: str, customer: str | None = DEMO, **variables: object) -> str:
    """The template as the customer's page shows it."""
    template = ENGINE.from_string("{% load stigg_guard %}" + source)
    return template.render(Context({"request": request_of(customer), **variables}))


def request_of(customer: str | None = DEMO) -> HttpRequest:
    """A request that comes from the customer."""
    signed_in = {"REMOTE_USER": customer} if customer else {}
    return RequestFactory().get("/", **signed_in)


def asked(sidecar: Sidecar) -> dict[str, int]:
    """How often each method of the sidecar was called."""
    metrics = requests.get(f"http://{sidecar.http_address}/metrics", timeout=5).text
    counts = [line.rpartition(" ") for line in metrics.splitlines() if line.startswith("sidecar_requests_total{")]
    named = ((labels.split('method="')[1].removesuffix('"}'), int(float(count))) for labels, _, count in counts)
    return {method: count for method, count in named if count}


def test_the_first_part_is_shown_for_a_feature_of_the_plan() -> None:
    assert rendered('{% feature "feature-exports" %}yes{% else %}no{% endfeature %}') == "yes"


def test_the_other_part_is_shown_for_a_feature_outside_the_plan() -> None:
    assert rendered('{% feature "feature-analytics" %}yes{% else %}no{% endfeature %}') == "no"


def test_without_another_part_nothing_is_shown() -> None:
    assert rendered('{% feature "feature-analytics" %}yes{% endfeature %}') == ""


def test_the_feature_may_be_a_variable() -> None:
    assert rendered("{% feature wanted %}yes{% endfeature %}", wanted="feature-exports") == "yes"


@pytest.mark.parametrize("tag", ["{% feature %}", '{% feature "a" "b" %}', '{% feature "a" use="b" %}'])
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
        ("api-credits", "12,500 of 50,000 credits used"),
    ],
)
def test_usage_is_told_in_words(feature: str, text: str) -> None:
    assert rendered("{% usage feature %}", feature=feature) == text


def test_a_usage_bar_is_a_labelled_progress_element() -> None:
    expected = (
        '<progress class="stigg-guard-usage" value="0.5" aria-label="3 of 6 templates">3 of 6 templates</progress>'
    )
    assert rendered('{% usage_bar "feature-templates" %}') == expected


@pytest.mark.parametrize(
    ("feature", "text"),
    [
        ("feature-templates", "3 von 6 templates"),
        ("api-credits", "12.500 von 50.000 credits verbraucht"),
        ("feature-analytics", "nicht enthalten"),
    ],
)
def test_a_german_reader_is_told_in_german(feature: str, text: str) -> None:
    with translation.override("de"):
        assert rendered("{% usage feature %}", feature=feature) == text
        assert rendered("{% entitlement feature as e %}{{ e|usage_text }}", feature=feature) == text


def test_a_german_table_has_german_headings() -> None:
    with translation.override("de"):
        assert '<th scope="col">Funktion</th>' in rendered("{% plan_limits %}")


def test_a_denial_is_told_in_german_with_the_date_where_the_reader_is() -> None:
    answer = Entitlement(
        feature_id="feature-api-calls",
        has_access=False,
        reason=Reason.REQUESTED_USAGE_EXCEEDING_LIMIT,
        usage_limit=1000,
        current_usage=1000,
        usage_period_end=datetime(2026, 8, 31, 22, tzinfo=timezone.utc),
        units_plural="calls",
    )
    with translation.override("de"), override_timezone("Europe/Berlin"):
        denial = Denial.of(FeatureDenied(answer, Customer(DEMO)), Config(), WORDING)
    assert denial.title == "Die Grenze Ihres Tarifs ist erreicht"
    assert denial.detail == "1.000 von 1.000 calls sind verbraucht."
    assert dict(denial.facts)["Beginnt neu am"] == "1. September 2026 00:00"
    assert denial.language == "de"


def test_a_usage_bar_is_labelled_in_german_and_its_value_is_not_localised() -> None:
    with translation.override("de"):
        bar = rendered('{% usage_bar "feature-templates" %}')
    assert 'value="0.5" aria-label="3 von 6 templates"' in bar


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


def test_fifty_tags_of_a_page_cost_one_snapshot_and_those_of_the_next_page_nothing(sidecar: Sidecar) -> None:
    fifty = EVERY_TAG * 10
    assert rendered(fifty) == rendered(EVERY_TAG) * 10
    assert asked(sidecar) == {"GetEntitlementsStateV2": 1}


def test_a_feature_outside_the_plan_is_asked_for_once(sidecar: Sidecar) -> None:
    for _ in range(3):
        rendered('{% feature "feature-analytics" %}{% endfeature %}{% usage "feature-analytics" %}' * 5)
    assert asked(sidecar) == {"GetEntitlementsStateV2": 1, "GetEntitlementV2": 1}


def test_tags_work_in_included_templates_and_in_blocks() -> None:
    source = '{% extends "base.html" %}{% load stigg_guard %}{% block body %}{% include "part.html" %}{% endblock %}'
    assert ENGINE.from_string(source).render(Context({"request": request_of()})) == "[3 of 6 templates]"


def test_html_is_escaped_once_whether_or_not_the_template_escapes() -> None:
    source = '{% usage_bar "feature-templates" %}{% plan_limits %}'
    assert rendered("{% autoescape off %}" + source + "{% endautoescape %}") == rendered(source)


def test_a_filter_tells_whether_the_customer_has_the_feature() -> None:
    source = "{% if plan|has_feature:feature %}yes{% else %}no{% endif %}"
    plan = displayed_plan(request_of())
    assert rendered(source, plan=plan, feature="feature-exports") == "yes"
    assert rendered(source, plan=plan, feature="feature-analytics") == "no"


@pytest.mark.parametrize(
    "source", ['{% if plan|has_feature:"f" %}yes{% endif %}', '{% if 1|has_feature:"f" %}{% endif %}']
)
def test_a_filter_without_a_plan_shows_nothing_and_says_what_gives_one(
    source: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert rendered(source) == ""
    assert "has_feature is for request.stigg, which StiggGuardMiddleware gives requests" in caplog.text


def test_a_filter_tells_an_entitlement_in_words_and_nothing_of_none() -> None:
    source = '{% entitlement "feature-templates" as e %}{{ e|usage_text }}|{{ nothing|usage_text }}'
    assert rendered(source, nothing=None) == "3 of 6 templates|"


def test_a_tag_may_name_the_configuration(site: Any) -> None:
    site.STIGG_GUARD = {"default": {"CUSTOMER": lambda request: None}, "other": site.STIGG_GUARD}
    source = (
        '{% usage "feature-templates" using="other" %}{% feature "feature-exports" using=name %}, yes{% endfeature %}'
    )
    assert rendered(source, name="other") == "3 of 6 templates, yes"
    assert rendered('{% usage "feature-templates" %}') == ""


def test_the_context_processor_gives_the_plan_and_asks_nobody_before_it_is_used(sidecar: Sidecar) -> None:
    request = request_of()
    assert ENGINE.from_string("page").render(RequestContext(request)) == "page"
    assert asked(sidecar) == {}
    source = "{{ stigg.all|length }}"
    assert ENGINE.from_string(source).render(RequestContext(request)) == str(len(displayed_plan(request).all))
    assert asked(sidecar) == {"GetEntitlementsStateV2": 1}


JINJA = Jinja2(
    {
        "NAME": "jinja",
        "DIRS": [],
        "APP_DIRS": False,
        "OPTIONS": {"extensions": ["stigg_guard.django.jinja2.StiggGuardExtension"]},
    }
)


def jinja(source: str, customer: str | None = DEMO) -> str:
    """The Jinja template as the customer's page shows it."""
    return str(JINJA.from_string(source).render(request=request_of(customer)))


def of_broken_tenants(request: HttpRequest) -> str:
    raise RuntimeError("the tenants are away")


EVERY_FUNCTION = (
    "{{ has_feature('f') }}|{{ usage('f') }}|{{ usage_bar('f') }}|{{ plan_limits() }}"
    "|{% if entitlement('f') %}e{% endif %}"
)


@pytest.mark.parametrize(
    "wrong", [{"CUSTOMER": of_broken_tenants}, {"CUSTOMER": None}, {"CUSTOMR": "f"}, {"LEDGER": "django://nowhere"}]
)
def test_no_page_ends_in_a_broken_site_and_the_log_has_one_line(
    site: Any, caplog: pytest.LogCaptureFixture, wrong: Mapping[str, object]
) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, **wrong}
    assert rendered(EVERY_TAG * 2) == "no||||" * 2
    assert len(caplog.records) == 1
    assert jinja(EVERY_FUNCTION * 2) == "False||||" * 2
    assert len(caplog.records) == 2


def test_a_page_without_a_request_shows_nothing_and_the_log_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    source = "{% load stigg_guard %}" + EVERY_TAG + '|{% include "part.html" %}'
    assert ENGINE.from_string(source).render(Context()) == "no|||||"
    assert JINJA.from_string(EVERY_FUNCTION).render() == "False||||"
    assert caplog.messages == ["a page shows no plan: it is rendered without a request"] * 2


def test_what_is_no_request_ends_no_page() -> None:
    assert ENGINE.from_string("{% load stigg_guard %}" + EVERY_TAG).render(Context({"request": "no"})) == "no||||"


def test_a_mail_has_no_plan_but_the_address_of_the_upgrade(caplog: pytest.LogCaptureFixture) -> None:
    source = '{% load stigg_guard %}{% upgrade_url "f" %}{% feature "feature-exports" %}yes{% else %}no{% endfeature %}'
    assert ENGINE.from_string(source).render(Context()) == "/plans?a=1&amp;b=fno"
    assert len(caplog.messages) == 1


def test_no_page_ends_for_what_it_names() -> None:
    source = "{% usage nothing %}{% usage 1 %}{% usage many %}{% entitlement many as e %}{{ e|usage_text }}"
    source += "{{ nothing|usage_text }}{{ 1|usage_text }}{% usage 'f' using=many %}{% upgrade_url nothing using='us' %}"
    assert rendered(source, many=["feature-templates"]) == ""


def test_jinja_has_the_tags_as_functions(sidecar: Sidecar) -> None:
    assert jinja("{{ usage('feature-templates') }}, {{ entitlement('feature-templates').remaining }}") == (
        "3 of 6 templates, 3.0"
    )
    assert jinja("{{ usage_bar('feature-templates') }}") == rendered('{% usage_bar "feature-templates" %}')
    assert jinja("{{ plan_limits() }}") == rendered("{% plan_limits %}")
    assert jinja("{{ plan_lines()|length }}") == rendered("{{ plan.all|length }}", plan=displayed_plan(request_of()))
    assert jinja("{{ upgrade_url('<f>') }}") == "/plans?a=1&amp;b=%3Cf%3E"
    assert asked(sidecar) == {"GetEntitlementsStateV2": 1}


def test_jinja_tests_whether_the_customer_is_entitled() -> None:
    assert jinja("{{ has_feature('feature-exports') }} {{ 'feature-analytics' is entitled }}") == "True False"


def test_jinja_shows_an_anonymous_visitor_nothing() -> None:
    assert jinja("{{ has_feature('feature-exports') }}|{{ usage_bar('f') }}|{{ plan_limits() }}", None) == "False||"
