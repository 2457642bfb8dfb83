"""The words and figures that pages show of an entitlement."""

from __future__ import annotations

from typing import Any

import pytest

from stigg_guard.display import line, usage_text
from stigg_guard.entitlements import Entitlement, Kind, Reason

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
        (templates(is_unlimited=True, current_usage=40), "unlimited templates"),
        (feature(Kind.METERED, usage_limit=6, current_usage=3), "3 of 6"),
        (feature(Kind.METERED, is_unlimited=True), "unlimited"),
        (
            feature(Kind.CREDIT, usage_limit=50000, current_usage=12500, units_plural="credits"),
            "37,500 of 50,000 credits left",
        ),
        (feature(Kind.CREDIT, usage_limit=100, current_usage=130, has_soft_limit=True), "0 of 100 left"),
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
