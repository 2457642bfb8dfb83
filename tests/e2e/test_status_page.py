"""A walk over the status page of the local sidecar: it is live, and changes what it is told to change."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, expect

from e2e.test_pages import look_at
from e2e.visitor import Visitor
from stigg_guard import Customer, FeatureDenied, Guard
from stigg_guard.config import Config
from stigg_guard.sidecar.server import Sidecar

ADA = "customer-demo-01"
TEMPLATES = "feature-templates"


@pytest.fixture
def guard(sidecar: Sidecar) -> Guard:
    return Guard(Config(sidecar=sidecar.address, ledger="memory://", timeout=5))


def card(visitor: Visitor, customer: str) -> Locator:
    return visitor.page.locator("article", has=visitor.page.get_by_role("button", name=f"Change {customer}"))


def entry(visitor: Visitor, name: str) -> Locator:
    """The line of a feature in Ada's own part of her card."""
    return card(visitor, ADA).locator(".part").first.locator(".entry", has_text=name).first


def use_some(guard: Guard) -> None:
    """What an application does: it uses units, is denied, and looks around."""
    with guard.consume(TEMPLATES, 2, customer=ADA):
        pass
    guard.flush()
    guard.check("feature-analytics", customer=ADA)
    guard.check(TEMPLATES, customer=Customer(ADA, "site-01"))
    with pytest.raises(FeatureDenied), guard.consume(TEMPLATES, 2, customer=ADA):
        pass
    guard.check("feature-analytics", customer="customer-demo-04")


def test_the_page_is_live(status: Visitor, guard: Guard) -> None:
    expect(status.page.get_by_text("live", exact=True)).to_be_visible()
    expect(entry(status, "Templates")).to_contain_text("3 of 6")
    with guard:
        use_some(guard)
    expect(entry(status, "Templates")).to_contain_text("5 of 6")
    recent = status.page.locator("#recent")
    expect(recent.get_by_text("+2, now 5")).to_be_visible()
    expect(recent.get_by_text("NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION").first).to_be_visible()
    status.page.get_by_label("Show").select_option("reports")
    expect(recent.locator("li")).to_have_count(1)


def test_a_plan_usage_and_a_promotion_are_changed_and_guards_follow(status: Visitor, guard: Guard) -> None:
    page = status.page
    card(status, ADA).get_by_role("button", name="Change").click()
    page.get_by_label("Used in total").fill("6")
    page.get_by_role("button", name="Set usage").click()
    expect(page.get_by_role("alert")).to_have_text("Done.")
    expect(page.get_by_role("alert")).to_be_in_viewport()
    expect(entry(status, "Templates")).to_contain_text("REQUESTED_USAGE_EXCEEDING_LIMIT")
    assert not guard.check(TEMPLATES, customer=ADA)
    promotion = page.locator("#change-promotion")
    promotion.get_by_label("Gives").fill("9")
    promotion.get_by_label("Until").fill("2099-12-31T00:00")
    promotion.get_by_role("button", name="Grant").click()
    expect(entry(status, "Templates")).to_contain_text("6 of 9")
    expect(entry(status, "Templates")).to_contain_text("promotion until 2099")
    expect(page.get_by_role("alert")).to_be_in_viewport()
    promotion.get_by_role("button", name="Take back").click()
    expect(entry(status, "Templates")).to_contain_text("6 of 6")
    page.locator("#change-plan").get_by_role("combobox").select_option("growth")
    page.get_by_role("button", name="Change plan").click()
    expect(entry(status, "Templates")).to_contain_text("6 of 50")
    page.keyboard.press("Escape")
    guard.reload(ADA)
    assert guard.check("feature-analytics", customer=ADA)
    guard.close()


def test_a_wrong_change_says_why(status: Visitor) -> None:
    status.expects("400 /changes/usage")
    card(status, "customer-demo-04").get_by_role("button", name="Change").click()
    status.page.get_by_label("Used in total").fill("1")
    status.page.locator("#change-usage").evaluate("form => { form.value.value = 1; chosen.id = 'nobody'; }")
    status.page.get_by_role("button", name="Set usage").click()
    expect(status.page.get_by_role("alert")).to_contain_text("there is no 'nobody'")


def test_the_clock_is_advanced(status: Visitor) -> None:
    expect(entry(status, "API calls")).to_contain_text("420 of 1,000")
    status.page.get_by_role("button", name="31 days").click()
    expect(entry(status, "API calls")).to_contain_text("0 of 1,000")
    expect(status.page.get_by_text("(31 days ahead)")).to_be_visible()


def test_a_search_finds_a_customer(status: Visitor) -> None:
    expect(status.page.locator("#customers > article")).to_have_count(6)
    status.page.get_by_label("Search").fill("demo-03")
    expect(status.page.locator("#customers > article")).to_have_count(1)
    status.page.get_by_label("Search").fill("nowhere")
    expect(status.page.get_by_text("Nobody of that name.")).to_be_visible()


def test_without_the_token_it_only_shows_until_the_token_is_pasted(status: Visitor, sidecar: Sidecar) -> None:
    token = sidecar.page_url.partition("#")[2]
    status.page.evaluate("sessionStorage.clear()")
    status.page.goto("/")
    change = card(status, ADA).get_by_role("button", name="Change")
    expect(change).to_be_disabled()
    status.page.get_by_label("paste the token").fill(token)
    status.page.keyboard.press("Tab")
    expect(change).to_be_enabled()
    assert token not in status.page.url


def test_everything_is_reached_by_the_keyboard(status: Visitor) -> None:
    expect(card(status, ADA)).to_be_visible()
    assert status.tab() == "1 hour"
    assert [status.tab() for _ in range(3)] == ["1 day", "31 days", "Search"]
    assert status.tab() == "Change…"
    status.page.keyboard.press("Enter")
    expect(status.page.get_by_role("dialog")).to_be_visible()
    status.page.keyboard.press("Escape")
    expect(status.page.get_by_role("dialog")).to_be_hidden()


def test_the_page_is_accessible_and_fits_its_width(status: Visitor, guard: Guard, pytestconfig: pytest.Config) -> None:
    expect(card(status, ADA)).to_be_visible()
    with guard:
        use_some(guard)
    expect(entry(status, "Templates")).to_contain_text("5 of 6")
    folder = pytestconfig.getoption("--screenshots")
    look_at(status.page, "sidecar_status", folder)
    card(status, ADA).get_by_role("button", name="Change").click()
    look_at(status.page, "sidecar_change", folder)
