"""What a denied request is answered with."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import jinja2
import pytest
from django.template import Context, Engine
from django.test import override_settings
from django.utils import translation

from stigg_guard.config import STATUS_CODES, Config
from stigg_guard.denial import Denial, page_source, prefers_html, upgrade_url
from stigg_guard.entitlements import Customer, Entitlement, Kind, Reason
from stigg_guard.errors import (
    FeatureDenied,
    InvalidRequest,
    LedgerUnavailable,
    SidecarError,
    SidecarRefused,
    SidecarTimeout,
    SidecarUnavailable,
    SignInRequired,
)

CONFIG = Config(upgrade_url="/plans?feature={feature}")
FULL = Entitlement(
    feature_id="feature-templates",
    kind=Kind.METERED,
    has_access=False,
    reason=Reason.REQUESTED_USAGE_EXCEEDING_LIMIT,
    usage_limit=6,
    current_usage=3,
    requested_usage=10,
    units="template",
    units_plural="templates",
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


def denied(answer: Entitlement = FULL, config: Config = CONFIG, **changes: Any) -> Denial:
    return Denial.of(FeatureDenied(replace(answer, **changes), Customer("customer-demo-01")), config)


@pytest.mark.parametrize("reason", list(Reason), ids=str)
def test_what_money_can_change_is_402_and_the_rest_403(reason: Reason) -> None:
    for_sale = {
        Reason.NO_ACTIVE_SUBSCRIPTION,
        Reason.NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION,
        Reason.ENTITLEMENT_NOT_FOUND,
        Reason.REQUESTED_USAGE_EXCEEDING_LIMIT,
        Reason.INSUFFICIENT_CREDITS,
        Reason.BUDGET_EXCEEDED,
        Reason.REQUESTED_VALUES_MISMATCH,
    }
    denial = denied(reason=reason)
    assert denial.status == (402 if reason in for_sale else 403)
    assert (denial.upgrade_url is not None) is (reason in for_sale)
    assert denial.title
    assert denial.detail.endswith(".")
    assert denial.headers["Cache-Control"] == "no-store"


def test_denial_without_a_reason_is_answered_as_unknown() -> None:
    denial = denied(reason=None)
    assert denial.status == 403
    assert json.loads(denial.problem())["reason"] == "UNKNOWN"


def test_status_table_can_be_overridden_and_the_upgrade_stays() -> None:
    config = replace(CONFIG, status_codes={Reason.REQUESTED_USAGE_EXCEEDING_LIMIT: 429})
    denial = denied(config=config)
    assert denial.status == 429
    assert denial.upgrade_url == "/plans?feature=feature-templates"
    assert denied(config=config, reason=Reason.REVOKED).status == STATUS_CODES[Reason.REVOKED]


@pytest.mark.parametrize(
    "error", [SidecarUnavailable("down"), SidecarTimeout("slow"), SidecarRefused("key"), LedgerUnavailable("full")]
)
def test_outage_is_503_with_a_time_to_come_back(error: SidecarError | LedgerUnavailable) -> None:
    denial = Denial.of(error, CONFIG)
    assert denial.status == 503
    assert int(denial.headers["Retry-After"]) >= 1
    assert json.loads(denial.problem()).keys() == {"title", "status", "detail"}
    assert str(error) not in denial.problem()


def test_amount_that_is_none_is_400_and_names_the_fault() -> None:
    denial = Denial.of(InvalidRequest("value", "usage is not negative, and this is -1"), CONFIG)
    assert denial.status == 400
    assert denial.detail == "value: usage is not negative, and this is -1."


def test_nobody_who_is_signed_in_is_401_without_figures() -> None:
    denial = Denial.of(SignInRequired("no customer"), CONFIG)
    assert denial.status == 401
    assert json.loads(denial.problem()).keys() == {"title", "status", "detail"}


def test_problem_has_the_members_of_rfc_9457_and_the_figures() -> None:
    assert json.loads(denied().problem()) == {
        "title": "Your plan's limit is reached",
        "status": 402,
        "detail": "3 of 6 templates are used, and 10 more would be needed.",
        "feature": "feature-templates",
        "reason": "REQUESTED_USAGE_EXCEEDING_LIMIT",
        "limit": 6,
        "usage": 3,
        "requested": 10,
        "upgrade_url": "/plans?feature=feature-templates",
    }


def test_problem_without_a_limit_has_no_figures() -> None:
    answer = Entitlement(feature_id="f", has_access=False, reason=Reason.REVOKED)
    assert json.loads(denied(answer).problem()).keys() == {"title", "status", "detail", "feature", "reason"}


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"current_usage": 6, "requested_usage": None}, "6 of 6 templates are used."),
        ({"current_usage": 7, "requested_usage": 0}, "7 of 6 templates are used."),
        ({"usage_limit": 1_000_000, "current_usage": 999_999.5}, "999999.5 of 1000000 templates are used, and 10"),
        ({"units_plural": None}, "3 of 6 units are used"),
        ({"reason": Reason.INSUFFICIENT_CREDITS, "units_plural": "credits"}, "3 of 6 credits are used"),
        ({"reason": Reason.REVOKED}, "It concerns the feature feature-templates."),
    ],
)
def test_detail_tells_the_figures_in_the_features_units(changes: dict[str, Any], detail: str) -> None:
    assert denied(**changes).detail.startswith(detail)


@pytest.mark.parametrize(
    ("pattern", "feature", "url"),
    [
        (None, "f", None),
        ("/plans", "f", "/plans"),
        ("/plans/{feature}", "a/b", "/plans/a%2Fb"),
        (
            "/plans?f={feature}&again={feature}",
            "a&b=c d#é",
            "/plans?f=a%26b%3Dc%20d%23%C3%A9&again=a%26b%3Dc%20d%23%C3%A9",
        ),
        ("/plans?{other}&f={feature}", "{feature}", "/plans?{other}&f=%7Bfeature%7D"),
        ("/plans/{feature}", "", "/plans/"),
    ],
)
def test_upgrade_url_carries_the_quoted_feature(pattern: str | None, feature: str, url: str | None) -> None:
    assert upgrade_url(Config(upgrade_url=pattern), feature) == url


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("TEXT/HTML; Charset=utf-8", True),
        ("text/*", True),
        ("text/html;q=0.2, */*;q=0.1", True),
        ("application/json;q=0.5, text/html", True),
        ("application/json;q=0.9,text/html;level=1;q=0.95", True),
        ("*/*", False),
        ("", False),
        ("application/json", False),
        ("application/problem+json, text/html", False),
        ("application/*, text/html;q=0.9", False),
        ("application/json, text/html;q=0.9, */*;q=0.1", False),
        ("text/html;q=0", False),
        ("text/html;q=0, text/*", False),
        ("text/html;q=nan", False),
        ("text/html;q=", False),
        ("text/html;q=lots", False),
        ("text/plain", False),
        (";;,,;q=1,=", False),
        ("text/html\x00", False),
    ],
)
def test_page_goes_to_those_who_would_rather_have_one(accept: str, html: bool) -> None:
    assert prefers_html(accept) is html


class Page(HTMLParser):
    """What a rendered page has: its text, its links and its bars."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, dict[str, str | None]] = {}
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes[tag] = dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def jinja_page(denial: Denial) -> Page:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return Page(environment.from_string(page_source()).render(denial=denial))


def django_page(denial: Denial) -> Page:
    # Figures of a page in German have a decimal comma, which an attribute of HTML must not have.
    with override_settings(USE_THOUSAND_SEPARATOR=True), translation.override("de"):
        return Page(Engine().from_string(page_source()).render(Context({"denial": denial})))


@pytest.fixture(params=[jinja_page, django_page], ids=["jinja", "django"])
def page(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_page_shows_the_denial_the_bar_and_the_way_out(page: Any) -> None:
    shown = page(denied(usage_limit=1234.5, current_usage=1200.25))
    assert "Your plan's limit is reached" in shown.text
    assert "1200.25 of 1234.5 templates are used" in shown.text
    assert shown.attributes["progress"] | {"max": "1234.5", "value": "1200.25"} == shown.attributes["progress"]
    assert shown.attributes["a"]["href"] == "/plans?feature=feature-templates"


def test_page_of_an_outage_has_neither_bar_nor_link(page: Any) -> None:
    shown = page(Denial.of(SidecarUnavailable("down"), CONFIG))
    assert "Please try again" in shown.text
    assert not {"progress", "a"} & set(shown.tags)


def test_page_escapes_what_comes_from_outside(page: Any) -> None:
    evil = '"><script>alert(1)</script>'
    shown = page(denied(feature_id=evil, units_plural=evil, reason=Reason.NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION))
    assert "script" not in shown.tags
    assert "script" not in page(denied(units_plural=evil)).tags
    assert "script" not in page(denied(feature_id=evil, reason=Reason.REVOKED)).tags


def test_page_needs_nothing_from_elsewhere() -> None:
    assert not re.search(r"(src|href)=.https?:|url\(|<script|{%\s*(load|extends|include)", page_source())
