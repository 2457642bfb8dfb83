"""What a denied request is answered with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from typing import Any

import jinja2
import pytest
from django.template import Context, Engine
from django.test import override_settings
from django.utils import translation

from stigg_guard.config import STATUS_CODES, Config
from stigg_guard.entitlements import Customer, Entitlement, Kind, Reason
from stigg_guard.errors import (
    ApiRejected,
    FeatureDenied,
    InvalidRequest,
    KeyReused,
    KeyTaken,
    LedgerUnavailable,
    SidecarError,
    SidecarTimeout,
    SidecarUnauthenticated,
    SidecarUnavailable,
    SignInRequired,
    StiggGuardError,
    UsageInProgress,
    UsageRepeated,
)
from stigg_guard.web.denial import (
    DENIED_ERRORS,
    FRAGMENT_TEMPLATE,
    PROBLEM_TYPE,
    TEMPLATE,
    Denial,
    DenialResponse,
    is_answered,
    page_source,
    prefers_html,
    upgrade_url,
)
from stigg_guard.web.rate_limit import rate_limit_headers
from stigg_guard.wording import Text, Wording

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
NOW = datetime(2026, 8, 11, 12, tzinfo=timezone.utc)
MONTH = {
    "usage_period_start": datetime(2026, 8, 1, tzinfo=timezone.utc),
    "usage_period_end": datetime(2026, 9, 1, tzinfo=timezone.utc),
}
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
    assert denial.problem()["reason"] == "UNKNOWN"


def test_status_table_can_be_overridden_and_the_upgrade_stays() -> None:
    config = replace(CONFIG, status_codes={Reason.REQUESTED_USAGE_EXCEEDING_LIMIT: 429})
    denial = denied(config=config)
    assert denial.status == 429
    assert denial.upgrade_url == "/plans?feature=feature-templates"
    assert denied(config=config, reason=Reason.REVOKED).status == STATUS_CODES[Reason.REVOKED]


@pytest.mark.parametrize(
    "error",
    [SidecarUnavailable("down"), SidecarTimeout("slow"), SidecarUnauthenticated("key"), LedgerUnavailable("full")],
)
def test_outage_is_503_with_a_time_to_come_back(error: SidecarError | LedgerUnavailable) -> None:
    denial = Denial.of(error, CONFIG)
    assert denial.status == 503
    assert int(denial.headers["Retry-After"]) >= 1
    assert denial.problem().keys() == {"type", "title", "status", "detail"}
    assert str(error) not in json.dumps(denial.problem())


def test_amount_that_is_none_is_400_and_names_the_fault() -> None:
    denial = Denial.of(InvalidRequest("value", "usage is not negative, and this is -1"), CONFIG)
    assert denial.status == 400
    assert denial.detail == "What was asked for cannot be counted. Please check what you sent."
    assert denial.problem()["cause"] == "value: usage is not negative, and this is -1"


@pytest.mark.parametrize(
    ("error", "status", "title", "after"),
    [
        (UsageInProgress(), 409, "This request is under way", "1"),
        (UsageRepeated(), 409, "This request was done before", None),
        (KeyReused(), 422, "This request is not right", None),
    ],
)
def test_key_that_is_taken_is_a_conflict_or_a_mistake(
    error: KeyTaken, status: int, title: str, after: str | None
) -> None:
    denial = Denial.of(error, CONFIG)
    assert (denial.status, denial.title, denial.headers.get("Retry-After")) == (status, title, after)
    assert is_answered(error)
    assert denial.problem()["detail"].startswith(f"{title}. It")


def test_nobody_who_is_signed_in_is_401_without_figures() -> None:
    denial = Denial.of(SignInRequired("no customer"), CONFIG)
    assert denial.status == 401
    assert denial.problem().keys() == {"type", "title", "status", "detail"}


def test_problem_has_the_members_of_rfc_9457_and_the_figures() -> None:
    assert denied().problem() == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Your plan's limit is reached",
        "status": 402,
        "detail": "3 of 6 templates are used, and 10 more would be needed.",
        "violated-policies": ["feature-templates"],
        "feature": "feature-templates",
        "reason": "REQUESTED_USAGE_EXCEEDING_LIMIT",
        "limit": 6,
        "usage": 3,
        "remaining": 3,
        "requested": 10,
        "upgrade_url": "/plans?feature=feature-templates",
    }


@pytest.mark.parametrize(
    ("changes", "policies"),
    [
        ({"reason": Reason.INSUFFICIENT_CREDITS}, ["feature-templates"]),
        ({"reason": Reason.BUDGET_EXCEEDED, "usage_limit": None}, []),
        ({"has_soft_limit": True}, []),
        ({"feature_id": "größe"}, []),
    ],
)
def test_a_used_up_quota_names_the_policies_of_its_header(changes: dict[str, Any], policies: list[str]) -> None:
    problem = denied(**changes).problem()
    assert problem["type"].endswith("#quota-exceeded")
    assert problem["violated-policies"] == policies
    error = FeatureDenied(denied(**changes).entitlement, Customer("c"))
    told = rate_limit_headers([error], datetime.now(timezone.utc)).get("RateLimit-Policy", "")
    assert bool(told) == bool(policies)


def test_another_problem_says_what_its_status_says_and_more_in_the_detail() -> None:
    problem = denied(reason=Reason.REVOKED).problem()
    assert (problem["type"], problem["title"]) == ("about:blank", "Forbidden")
    assert problem["detail"] == "Access to this feature was taken away. It concerns the feature feature-templates."
    config = replace(CONFIG, status_codes={Reason.REVOKED: 499})
    assert denied(config=config, reason=Reason.REVOKED).problem()["title"] == "Denied"


def test_a_feature_is_called_by_its_name_for_people() -> None:
    config = replace(CONFIG, feature_names={"feature-templates": "Vorlagen"})
    denial = denied(config=config, reason=Reason.REVOKED)
    assert denial.detail == "It concerns the feature Vorlagen."
    assert ("Feature", "Vorlagen") in denial.facts
    assert denial.problem()["feature"] == "feature-templates"


def test_problem_tells_when_the_usage_starts_again() -> None:
    assert denied(**MONTH).problem()["resets_at"] == "2026-09-01T00:00:00+00:00"


def test_problem_without_a_limit_has_no_figures() -> None:
    answer = Entitlement(feature_id="f", has_access=False, reason=Reason.REVOKED)
    assert denied(answer).problem().keys() == {"type", "title", "status", "detail", "feature", "reason"}


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"current_usage": 6, "requested_usage": None}, "6 of 6 templates are used."),
        ({"current_usage": 7, "requested_usage": 0}, "7 of 6 templates are used."),
        ({"usage_limit": 1_000_000, "current_usage": 999_999.5}, "999,999.5 of 1,000,000 templates are used, and 10"),
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
        ("text/html;q=0.5, */*", False),
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
        self.source = source
        self.tags: list[str] = []
        self.attributes: dict[str, dict[str, str | None]] = {}
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes[tag] = dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def jinja_page(denial: Denial, template: str = TEMPLATE) -> Page:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return Page(environment.from_string(page_source(template)).render(denial=denial))


def django_page(denial: Denial, template: str = TEMPLATE) -> Page:
    # Figures of a page in German have a decimal comma, which an attribute of HTML must not have.
    with override_settings(USE_THOUSAND_SEPARATOR=True), translation.override("de"):
        return Page(Engine().from_string(page_source(template)).render(Context({"denial": denial})))


@pytest.fixture(params=[jinja_page, django_page], ids=["jinja", "django"])
def page(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("template", [TEMPLATE, FRAGMENT_TEMPLATE])
def test_page_and_fragment_show_the_denial_the_bar_the_facts_and_the_way_out(page: Any, template: str) -> None:
    shown = page(denied(usage_limit=1234.5, current_usage=617.25, **MONTH), template)
    assert "Your plan's limit is reached" in shown.text
    assert "617.25 of 1,234.5 templates are used" in shown.text
    assert shown.attributes["progress"]["value"] == "0.5"
    assert shown.attributes["a"]["href"] == "/plans?feature=feature-templates"
    for fact in ("feature-templates", "1,234.5 templates", "617.25 templates", "10 templates", "2026-09-01 00:00 UTC"):
        assert f">{fact}<" in shown.source


def test_page_is_in_the_readers_language(page: Any) -> None:
    denial = Denial.of(SidecarUnavailable("down"), CONFIG, Wording(translate=str.upper, language=lambda: "x-loud"))
    shown = page(denial)
    assert shown.attributes["html"]["lang"] == "x-loud"
    assert "PLEASE TRY AGAIN" in shown.text


def test_fragment_is_no_page(page: Any) -> None:
    assert not {"html", "head", "body", "style"} & set(page(denied(), FRAGMENT_TEMPLATE).tags)


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


@pytest.mark.parametrize("template", [TEMPLATE, FRAGMENT_TEMPLATE])
def test_page_needs_nothing_from_elsewhere(template: str) -> None:
    assert not re.search(r"(src|href)=.https?:|url\(|<script|{%\s*(load|extends|include)", page_source(template))


@pytest.mark.parametrize(
    ("error", "answered"),
    [
        (FeatureDenied(FULL, Customer("customer-demo-01")), True),
        (SidecarUnavailable("down"), True),
        (LedgerUnavailable("full"), True),
        (ApiRejected("no such plan"), True),
        (SignInRequired("nobody"), True),
        (InvalidRequest("value", "no number"), True),
        (InvalidRequest("resource_id", "empty"), True),
        (InvalidRequest("dimensions[model]", "no text"), True),
        (InvalidRequest("customer_id", "empty"), False),
        (InvalidRequest("event_name", "empty"), False),
        (StiggGuardError("other"), False),
        (ValueError("other"), False),
    ],
    ids=repr,
)
def test_client_is_told_of_what_it_can_do_something_about(error: Exception, answered: bool) -> None:
    assert is_answered(error) is answered
    assert isinstance(error, DENIED_ERRORS) or not answered


HTMX = {"HX-Request": "true", "Accept": "*/*"}
LOGIN = replace(CONFIG, anonymous="login", login_url="/login?theme=dark")
ANONYMOUS = Denial.of(SignInRequired("nobody"), LOGIN)


def answer(
    denial: Denial, headers: Mapping[str, str] | None = None, address: str = "/reports?page=2"
) -> DenialResponse:
    return denial.answer(headers or {}, address)


def test_browser_is_answered_with_the_page() -> None:
    page = answer(denied(), {"Accept": BROWSER})
    assert (page.status, page.template, page.content_type) == (402, TEMPLATE, "text/html; charset=utf-8")
    assert page.headers == {"Cache-Control": "no-store", "Vary": "Accept, HX-Request"}


@pytest.mark.parametrize("headers", [{}, {"Accept": "application/json"}, {"Accept": "*/*", "HX-Request": "false"}])
def test_everybody_else_is_answered_with_a_problem(headers: Mapping[str, str]) -> None:
    problem = answer(denied(), headers)
    assert (problem.status, problem.template, problem.content_type) == (402, None, PROBLEM_TYPE)
    assert json.loads(problem.body) == denied().problem()


def test_htmx_is_sent_to_the_upgrade_page() -> None:
    config = replace(CONFIG, upgrade_url="/pläne?x=1&f={feature}\r\nSet-Cookie: a=b")
    redirect = answer(denied(config=config), HTMX)
    assert (redirect.status, redirect.template, redirect.body) == (402, None, "")
    assert redirect.headers["HX-Redirect"] == ("/pl%C3%A4ne?x=1&f=feature-templates%0D%0ASet-Cookie:%20a=b")


@pytest.mark.parametrize(
    "denial",
    [denied(config=Config()), denied(reason=Reason.REVOKED), Denial.of(SidecarUnavailable("down"), CONFIG)],
    ids=["no-upgrade-page", "not-for-sale", "outage"],
)
def test_htmx_gets_a_fragment_when_there_is_nowhere_to_go(denial: Denial) -> None:
    fragment = answer(denial, HTMX)
    assert (fragment.status, fragment.template) == (denial.status, FRAGMENT_TEMPLATE)
    assert "HX-Redirect" not in fragment.headers


@pytest.mark.parametrize("header", ["HX-Boosted", "HX-History-Restore-Request"])
def test_htmx_gets_the_whole_page_where_it_shows_whole_pages(header: str) -> None:
    assert answer(denied(), {**HTMX, header: "true"}).template == TEMPLATE
    assert answer(ANONYMOUS, {**HTMX, header: "true"}).status == 302


@pytest.mark.parametrize("headers", [{}, {"Accept": BROWSER}, HTMX])
def test_outage_tells_everybody_when_to_come_back(headers: Mapping[str, str]) -> None:
    error = LedgerUnavailable("full")
    error.retry_after = 2.1
    assert answer(Denial.of(error, CONFIG), headers).headers["Retry-After"] == "3"


def test_browser_is_sent_to_sign_in_and_back() -> None:
    redirect = answer(ANONYMOUS, {"Accept": BROWSER})
    assert redirect.status == 302
    assert redirect.headers["Location"] == "/login?theme=dark&next=%2Freports%3Fpage%3D2"


def test_htmx_is_sent_to_sign_in_and_back_to_the_page_it_is_on() -> None:
    redirect = answer(ANONYMOUS, {**HTMX, "HX-Current-URL": "https://shop.example/reports?page=3#top"}, "/part")
    assert (redirect.status, redirect.template) == (401, None)
    assert redirect.headers["HX-Redirect"] == "/login?theme=dark&next=%2Freports%3Fpage%3D3"


def test_client_that_shows_no_pages_is_told_to_sign_in() -> None:
    problem = answer(ANONYMOUS)
    assert (problem.status, problem.content_type) == (401, PROBLEM_TYPE)


def test_nobody_is_sent_to_sign_in_unless_the_settings_say_so() -> None:
    denial = Denial.of(SignInRequired("nobody"), replace(LOGIN, anonymous="refuse"))
    assert answer(denial, {"Accept": BROWSER}).status == 401
    assert "HX-Redirect" not in answer(denial, HTMX).headers


@pytest.mark.parametrize(("found", "used"), [(None, "/sign-in"), ("/accounts/login/", "/accounts/login/")])
def test_login_page_is_that_of_the_settings_unless_the_framework_finds_it(found: str | None, used: str) -> None:
    config = replace(CONFIG, anonymous="login", login_url="/sign-in")
    denial = Denial.of(SignInRequired("nobody"), config, login_page=lambda: found)
    assert answer(denial, {"Accept": BROWSER}).headers["Location"] == f"{used}?next=%2Freports%3Fpage%3D2"


@pytest.mark.parametrize(
    ("address", "back"),
    [
        ("/a/b?c=d&e=f", "%2Fa%2Fb%3Fc%3Dd%26e%3Df"),
        ("//evil.example/x", "%2Fx"),
        ("///evil.example/x", "%2Fevil.example%2Fx"),
        ("/\\evil.example/x", "%2Fevil.example%2Fx"),
        ("/\t/evil.example/x", "%2Fx"),
        ("https://evil.example/x", "%2Fx"),
        ("javascript:alert(1)", "%2Falert%281%29"),
        ("http://[/x", "%2F"),
        ("", "%2F"),
    ],
)
def test_signing_in_leads_back_to_a_path_of_this_site_only(address: str, back: str) -> None:
    assert answer(ANONYMOUS, {"Accept": BROWSER}, address).headers["Location"] == f"/login?theme=dark&next={back}"


def test_figures_are_written_as_the_reader_writes_them() -> None:
    german = Wording(
        translate={text.value: text.value.replace(" of ", " von ") for text in Text}.__getitem__,
        number=lambda number: f"{number:g}".replace(".", ","),
        date=lambda instant: f"{instant:%d.%m.%Y}",
        language=lambda: "de",
    )
    error = FeatureDenied(replace(FULL, current_usage=2.5, **MONTH), Customer("customer-demo-01"))
    denial = Denial.of(error, CONFIG, german)
    assert denial.detail.startswith("2,5 von 6 templates are used")
    assert dict(denial.facts) == {
        "Feature": "feature-templates",
        "Limit": "6 templates",
        "Used": "2,5 templates",
        "Requested": "10 templates",
        "Resets on": "01.09.2026",
    }
    assert denial.used_fraction == "0.4167"
    assert denial.language == "de"


CALLS = Entitlement(
    feature_id="feature-api-calls",
    kind=Kind.METERED,
    has_access=True,
    usage_limit=1000,
    current_usage=990,
    requested_usage=4,
    **MONTH,
)


@dataclass(frozen=True)
class Units:
    """What a guard held, as far as it was not given back."""

    entitlements: Mapping[str, Entitlement]
    amounts: Mapping[str, float]


def held(answer: Entitlement, amount: float | None = None) -> Units:
    used = (answer.requested_usage or 0.0) if amount is None else amount
    return Units({answer.feature_id: answer}, {answer.feature_id: used})


def refused(answer: Entitlement) -> FeatureDenied:
    return FeatureDenied(replace(answer, has_access=False), Customer("customer-demo-01"))


def test_headers_tell_the_quota_its_window_what_remains_and_until_when() -> None:
    assert rate_limit_headers([held(CALLS)], NOW) == {
        "RateLimit-Policy": '"feature-api-calls";q=1000;w=2678400',
        "RateLimit": '"feature-api-calls";r=6;t=1771200',
    }


def test_headers_tell_of_each_feature_once() -> None:
    headers = rate_limit_headers([held(CALLS), refused(replace(FULL, usage_limit=6.9)), held(CALLS)], NOW)
    assert headers == {
        "RateLimit-Policy": '"feature-api-calls";q=1000;w=2678400, "feature-templates";q=6',
        "RateLimit": '"feature-api-calls";r=2;t=1771200, "feature-templates";r=3',
    }


@pytest.mark.parametrize(
    ("noted", "left"),
    [
        ([held(CALLS, 0)], 10),
        ([held(CALLS, 2.5)], 7),
        ([held(CALLS, 40)], 0),
        ([held(CALLS, 4), held(replace(CALLS, current_usage=994), 3)], 3),
        ([refused(CALLS)], 10),
        ([held(CALLS, 0), refused(replace(CALLS, current_usage=996))], 4),
    ],
)
def test_headers_tell_what_is_left_after_what_was_really_used(noted: list[Any], left: int) -> None:
    assert rate_limit_headers(noted, NOW)["RateLimit"] == f'"feature-api-calls";r={left};t=1771200'


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"usage_period_start": None}, ("q=1000", "r=6;t=1771200")),
        ({"usage_period_end": None}, ("q=1000", "r=6")),
        ({"usage_period_end": NOW - timedelta(seconds=5)}, ("q=1000;w=907195", "r=6;t=0")),
        ({"usage_period_end": NOW + timedelta(seconds=0.4)}, ("q=1000;w=907200", "r=6;t=1")),
        ({"current_usage": 999}, ("q=1000;w=2678400", "r=0;t=1771200")),
        ({"requested_usage": None}, ("q=1000;w=2678400", "r=10;t=1771200")),
        ({"usage_limit": 9e9, "current_usage": 0}, ("q=9000000000;w=2678400", "r=8999999996;t=1771200")),
    ],
)
def test_headers_have_integers_that_are_not_negative(changes: dict[str, Any], expected: tuple[str, str]) -> None:
    headers = rate_limit_headers([held(replace(CALLS, **changes))], NOW)
    assert (headers["RateLimit-Policy"], headers["RateLimit"]) == tuple(
        f'"feature-api-calls";{part}' for part in expected
    )


def test_headers_quote_the_feature() -> None:
    assert (
        rate_limit_headers([refused(replace(FULL, feature_id='a"b\\c'))], NOW)["RateLimit-Policy"] == '"a\\"b\\\\c";q=6'
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_id": "función"},
        {"feature_id": "a\r\nSet-Cookie: b"},
        {"is_unlimited": True},
        {"has_soft_limit": True},
        {"usage_limit": None},
    ],
)
def test_headers_leave_out_what_they_cannot_tell(changes: dict[str, Any]) -> None:
    assert rate_limit_headers([held(replace(CALLS, **changes))], NOW) == {}
