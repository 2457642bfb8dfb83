"""The words and figures that pages show of an entitlement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import requests

from stigg_guard import Guard
from stigg_guard.entitlements import Entitlement, Kind, Reason
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.web.display import DisplayedPlan, line, usage_text
from stigg_guard.wording import Wording

TEMPLATES: dict[str, Any] = {
    "feature_id": "feature-templates",
    "kind": Kind.METERED,
    "units": "template",
    "units_plural": "templates",
}
EXCEEDED = Reason.REQUESTED_USAGE_EXCEEDING_LIMIT


def templates(*, has_access: bool = True, **fields: Any) -> Entitlement:
    return Entitlement(has_access=has_access, **TEMPLATES, **fields)


def feature(kind: Kind | None = None, *, has_access: bool = True, **fields: Any) -> Entitlement:
    return Entitlement(feature_id="f", kind=kind, has_access=has_access, **fields)


@pytest.mark.parametrize(
    ("entitlement", "text"),
    [
        (templates(usage_limit=6, current_usage=3), "3 of 6 templates"),
        (templates(usage_limit=1, current_usage=0), "0 of 1 template"),
        (templates(usage_limit=1234567.5, current_usage=0.25), "0.25 of 1,234,567.5 templates"),
        (templates(usage_limit=6, current_usage=6, has_access=False, reason=EXCEEDED), "6 of 6 templates"),
        (templates(usage_limit=6, current_usage=9, has_soft_limit=True), "9 of 6 templates"),
        (templates(current_usage=1), "1 template used"),
        (templates(current_usage=1, has_access=False, reason=Reason.INSUFFICIENT_CREDITS), "1 template used"),
        (templates(is_unlimited=True, current_usage=40), "unlimited templates"),
        (feature(Kind.METERED, usage_limit=6, current_usage=3), "3 of 6"),
        (feature(Kind.METERED, is_unlimited=True), "unlimited"),
        (
            feature(Kind.CREDIT, usage_limit=50000, current_usage=12500, units_plural="credits"),
            "12,500 of 50,000 credits used",
        ),
        (feature(Kind.CREDIT, usage_limit=100, current_usage=130, has_soft_limit=True), "130 of 100 used"),
        (feature(Kind.NUMERIC, value=100), "100"),
        (feature(Kind.NUMERIC, value=100, units="GB", units_plural="GB"), "100 GB"),
        (feature(Kind.NUMERIC), "included"),
        (feature(Kind.ENUM, enum_values=("eu", "us")), "eu, us"),
        (feature(Kind.ENUM), "included"),
        (feature(Kind.BOOLEAN), "included"),
        (feature(is_fallback=True), "included"),
        (feature(has_access=False, reason=Reason.NO_ACTIVE_SUBSCRIPTION), "not included"),
        (templates(usage_limit=6, has_access=False, reason=Reason.REVOKED), "not included"),
    ],
)
def test_text_says_what_the_customer_has(entitlement: Entitlement, text: str) -> None:
    assert usage_text(entitlement) == text


@pytest.mark.parametrize(
    ("limit", "usage", "fraction"), [(6, 3, 0.5), (6, 9, 1.0), (6, -1, 0.0), (0, 0, 1.0), (None, 3, None)]
)
def test_fraction_is_the_used_part_of_the_limit(limit: float | None, usage: float, fraction: float | None) -> None:
    assert line(templates(usage_limit=limit, current_usage=usage)).fraction == fraction


def test_line_carries_the_figures_of_the_entitlement() -> None:
    row = line(templates(usage_limit=6, current_usage=3))
    assert (row.feature_id, row.text, row.limit, row.usage) == ("feature-templates", "3 of 6 templates", 6, 3)
    assert row.has_access
    assert row.kind is Kind.METERED


def test_unlimited_usage_has_neither_limit_nor_fraction() -> None:
    row = line(templates(usage_limit=6, current_usage=3, is_unlimited=True))
    assert (row.limit, row.fraction, row.usage) == (None, None, 3)


def test_words_are_the_readers() -> None:
    loud = Wording(translate=lambda text: text.replace(" of ", " VON "), number=lambda number: f"{number:g}!")
    assert usage_text(templates(usage_limit=6, current_usage=3), loud) == "3! VON 6! templates"
    assert line(templates(usage_limit=6, current_usage=3), loud).text == "3! VON 6! templates"


def test_bar_and_text_of_credits_tell_the_same() -> None:
    row = line(feature(Kind.CREDIT, usage_limit=100, current_usage=25, units_plural="credits"))
    assert row.text == "25 of 100 credits used"
    assert 'value="0.25"' in row.bar


def test_bar_is_a_labelled_progress_element_and_escaped() -> None:
    row = line(feature(Kind.METERED, usage_limit=8, current_usage=1, units_plural='"<b>'))
    label = "1 of 8 &quot;&lt;b&gt;"
    assert row.bar == f'<progress class="stigg-guard-usage" value="0.125" aria-label="{label}">{label}</progress>'


def test_what_has_no_limit_has_no_bar() -> None:
    assert line(feature(Kind.BOOLEAN)).bar == ""


ESSENTIALS = "customer-demo-01"


def essentials() -> str:
    return ESSENTIALS


@pytest.fixture
def plan(guard: Guard) -> DisplayedPlan:
    return DisplayedPlan(guard, essentials)


def test_plan_knows_what_the_customer_has(plan: DisplayedPlan) -> None:
    assert plan.has("feature-exports")
    assert not plan.has("feature-analytics")
    assert "feature-templates" in plan.all
    assert "feature-analytics" not in plan.all


def test_reached_limit_is_the_plans_answer(guard: Guard, plan: DisplayedPlan) -> None:
    guard.report("feature-templates", 3, customer=ESSENTIALS)
    guard.flush()
    assert plan.entitlement("feature-templates") is plan.all["feature-templates"]
    assert not plan.has("feature-templates")


def test_feature_of_the_plan_is_said_in_words_and_as_a_bar(plan: DisplayedPlan) -> None:
    assert plan.usage("feature-templates") == "3 of 6 templates"
    assert 'value="0.5"' in plan.usage_bar("feature-templates")


def test_limits_are_a_table_in_the_readers_words(guard: Guard) -> None:
    shouted = Wording(translate=lambda text: text if "{" in text else f"<{text}>")
    table = DisplayedPlan(guard, essentials, shouted).plan_limits()
    assert "<caption>&lt;Your plan&gt;</caption>" in table
    assert '<th scope="col">&lt;Feature&gt;</th>' in table
    assert '<th scope="row">feature-templates</th><td>3 of 6 templates</td><td><progress' in table
    assert '<th scope="row">feature-regions</th><td>eu, us</td><td></td>' in table


def test_nobody_has_a_plan(guard: Guard) -> None:
    nobody = DisplayedPlan(guard, lambda: None)
    assert (nobody.has("feature-exports"), nobody.entitlement("feature-exports"), nobody.lines()) == (False, None, [])
    assert (nobody.usage("feature-exports"), nobody.usage_bar("feature-exports"), nobody.plan_limits()) == ("", "", "")


@pytest.mark.parametrize("found", ["", 42])
def test_who_is_no_customer_has_no_plan_and_the_log_tells_once(
    guard: Guard, caplog: pytest.LogCaptureFixture, found: Any
) -> None:
    plan = DisplayedPlan(guard, lambda: found)
    assert (plan.has("feature-exports"), plan.has("feature-templates"), plan.lines()) == (False, False, [])
    (message,) = caplog.messages
    assert message.endswith(f"customer_id: an id is text that is not empty, not {found!r}")


def test_outage_hides_the_plan_and_leaves_fallbacks(make_guard: Callable[..., Guard], sidecar: Sidecar) -> None:
    guard = make_guard(FALLBACKS={"feature-exports": {"hasAccess": True}})
    sidecar.stop()
    plan = DisplayedPlan(guard, essentials)
    assert plan.lines() == []
    assert plan.has("feature-exports")
    assert plan.entitlement("feature-templates") is None


def asked(sidecar: Sidecar) -> dict[str, float]:
    """How often each method of the sidecar was called."""
    metrics = requests.get(f"http://{sidecar.http_address}/metrics", timeout=5).text
    counts = [entry.rpartition(" ") for entry in metrics.splitlines() if entry.startswith("sidecar_requests_total{")]
    return {labels.split('method="')[1].removesuffix('"}'): float(count) for labels, _, count in counts}


def test_denied_feature_is_shown_from_the_cache_for_as_long_as_that_is_fresh(
    guard: Guard, sidecar: Sidecar, clock: Any
) -> None:
    for _ in range(3):
        assert not DisplayedPlan(guard, essentials).has("feature-analytics")
        clock.advance(9)
    assert {method: count for method, count in asked(sidecar).items() if count} == {
        "GetEntitlementsStateV2": 1,
        "GetEntitlementV2": 1,
    }
