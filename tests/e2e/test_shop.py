"""The Django example, clicked through."""

from __future__ import annotations

from playwright.sync_api import expect

from e2e.visitor import Visitor
from stigg_guard.sidecar.server import Sidecar


def test_templates_are_created_to_the_limit_and_again_after_the_upgrade(shop: Visitor) -> None:
    page = shop.page
    shop.press("Ada's studio")
    expect(page.get_by_role("progressbar", name="3 of 6 templates")).to_be_visible()
    for used in (4, 5, 6):
        shop.submit("Create template", Name=f"Poster {used}")
        expect(page.get_by_role("status")).to_have_text(f"Poster {used} is ready.")
        expect(page.get_by_role("progressbar", name=f"{used} of 6 templates")).to_be_visible()
    shop.expects("402 /templates/")
    shop.submit("Create template", Name="One too many")
    expect(page.get_by_role("heading", name="Your plan's limit is reached")).to_be_visible()
    shop.follow("See what Growth adds")
    shop.press("Upgrade to Growth")
    expect(page.get_by_role("progressbar", name="6 of 50 templates")).to_be_visible()
    shop.submit("Create template", Name="Now it fits")
    expect(page.get_by_role("progressbar", name="7 of 50 templates")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="Now it fits")).to_be_visible()


def test_a_deleted_template_gives_its_place_back(shop: Visitor) -> None:
    shop.press("Ada's studio")
    shop.press("Delete Jazz night")
    expect(shop.page.get_by_role("progressbar", name="2 of 6 templates")).to_be_visible()
    expect(shop.page.get_by_text("Jazz night")).to_have_count(0)


def test_a_form_with_a_mistake_says_so_and_counts_nothing(shop: Visitor) -> None:
    shop.press("Ada's studio")
    shop.page.locator("form.create").evaluate("form => form.noValidate = true")
    shop.expects("422 /templates/")
    shop.submit("Create template", Name=" ")
    expect(shop.page.get_by_role("alert")).to_have_text("This field is required.")
    expect(shop.page.get_by_role("progressbar", name="3 of 6 templates")).to_be_visible()


def test_a_feature_that_the_plan_lacks_leads_to_the_upgrade_and_opens_with_it(shop: Visitor) -> None:
    page = shop.page
    shop.press("Ada's studio")
    shop.expects("402 /analytics/")
    shop.follow("Analytics")
    expect(page.get_by_role("heading", name="Your plan does not include this feature")).to_be_visible()
    shop.follow("See what Growth adds")
    expect(page.get_by_text("what you were looking for: analytics")).to_be_visible()
    shop.press("Upgrade to Growth")
    shop.follow("Analytics")
    expect(page.get_by_role("heading", name="What you make")).to_be_visible()


def test_the_export_is_downloaded(shop: Visitor) -> None:
    shop.press("Ada's studio")
    with shop.page.expect_download() as download:
        shop.page.get_by_role("link", name="Export as CSV").click()
    assert "Gift voucher,cover" in download.value.path().read_text()


def test_suggested_names_are_api_calls_and_end_with_the_plan(shop: Visitor) -> None:
    page = shop.page
    shop.press("Linus")
    expect(page.get_by_role("progressbar", name="97 of 100 calls")).to_be_visible()
    for used in (98, 99, 100):
        page.get_by_label("Name").fill("")
        page.get_by_role("button", name="Suggest a name").click()
        expect(page.get_by_label("Name")).to_have_value("Summer poster")
        expect(page.get_by_role("progressbar", name=f"{used} of 100 calls")).to_be_visible()
    shop.expects("402 /suggestion/")
    page.get_by_role("button", name="Suggest a name").click()
    expect(page.get_by_role("status")).to_contain_text("Your plan's limit is reached. 100 of 100 calls are used")
    shop.follow("Get more with Growth")
    expect(page.get_by_role("heading", name="Room to grow")).to_be_visible()


def test_words_by_ai_empty_the_wallet_and_a_top_up_fills_it(shop: Visitor) -> None:
    page = shop.page
    shop.press("Linus")
    expect(page.get_by_role("progressbar", name="980 of 2,000 credits used")).to_be_visible()
    shop.press("Write Breakfast with AI")
    expect(page.get_by_role("status")).to_have_text("Breakfast has its words: 26 tokens.")
    expect(page.get_by_text("Bread from next door")).to_be_visible()
    expect(page.get_by_role("progressbar", name="1,032 of 2,000 credits used")).to_be_visible()
    shop.submit("Create template", Name="Lunch")
    shop.expects(f"402 {made_last(shop)}")
    shop.press("Write Lunch with AI")
    expect(page.get_by_role("heading", name="There are not enough credits left")).to_be_visible()
    expect(page.get_by_role("progressbar", name="1,032 of 2,000 credits used")).to_be_visible()
    shop.follow("Get more credits")
    shop.press("Add credits")
    expect(page.get_by_role("progressbar", name="1,032 of 12,000 credits used")).to_be_visible()
    shop.press("Write Lunch with AI")
    expect(page.get_by_role("progressbar", name="1,080 of 12,000 credits used")).to_be_visible()


def made_last(shop: Visitor) -> str:
    """The path of the first button that writes words."""
    button = shop.page.get_by_role("button", name="Write").first
    return str(button.evaluate("button => new URL(button.form.action).pathname"))


def test_a_visitor_without_a_plan_is_offered_one(shop: Visitor) -> None:
    shop.press("Edsger")
    expect(shop.page.get_by_text("You have no plan yet")).to_be_visible()
    shop.follow("See what Growth adds")
    shop.press("Upgrade to Growth")
    expect(shop.page.get_by_role("progressbar", name="0 of 50 templates")).to_be_visible()


def test_usage_of_an_outage_waits_where_staff_see_it(shop: Visitor, sidecar: Sidecar) -> None:
    page = shop.page
    shop.press("Ada's studio")
    sidecar.stop()
    shop.submit("Create template", Name="Made meanwhile")
    expect(page.get_by_role("status")).to_have_text("Made meanwhile is ready.")
    shop.press("Sign out")
    shop.press("Sign in as staff")
    shop.follow("Usage ledger")
    expect(page.get_by_role("row").filter(has_text="customer-demo-01")).to_contain_text("feature-templates")


def test_staff_look_up_what_a_customer_has(shop: Visitor) -> None:
    shop.press("Sign in as staff")
    shop.follow("Usage ledger")
    shop.follow("Entitlements of a customer")
    shop.submit("Look up", Customer="customer-demo-01")
    expect(shop.page.get_by_role("row").filter(has_text="feature-templates")).to_contain_text("3 of 6 templates")


def test_the_keyboard_alone_signs_in_and_creates_a_template(shop: Visitor) -> None:
    assert shop.tab() == "Skip to the content"
    assert shop.tab() == "Stencil"
    assert shop.tab().startswith("Ada's studio")
    shop.page.keyboard.press("Enter")
    expect(shop.page.get_by_role("heading", name="Your templates")).to_be_visible()
    assert [shop.tab() for _ in range(7)] == [
        "Skip to the content",
        "Stencil",
        "Templates",
        "Analytics",
        "Sign out",
        "Export as CSV",
        "Name",
    ]
    shop.page.keyboard.type("Typed")
    shop.page.keyboard.press("Enter")
    expect(shop.page.get_by_role("status")).to_have_text("Typed is ready.")


def test_the_debug_toolbar_shows_what_a_page_asked(debugged_shop: Visitor) -> None:
    page = debugged_shop.page
    debugged_shop.press("Ada's studio")
    debugged_shop.expects("402 /analytics/")
    debugged_shop.follow("Analytics")
    if page.locator("#djDebugToolbarHandle").is_visible():
        page.locator("#djShowToolBarButton").click()
    page.locator("#djDebug").get_by_role("link", name="Entitlements").click()
    panel = page.locator("#GuardPanel")
    expect(panel.get_by_role("cell", name="feature-analytics").first).to_be_visible()
    expect(panel.get_by_role("cell", name="NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION").first).to_be_visible()
