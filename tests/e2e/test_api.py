"""The Flask example's pages, clicked through."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from e2e.visitor import Visitor


def test_templates_are_saved_to_the_limit_and_again_after_the_upgrade(api: Visitor) -> None:
    page = api.page
    api.press("Linus")
    expect(page.get_by_role("progressbar", name="1 of 2 templates")).to_be_visible()
    api.submit("Save template", Title="Welcome")
    expect(page.get_by_role("status")).to_have_text("“Welcome” is saved.")
    expect(page.get_by_role("progressbar", name="2 of 2 templates")).to_be_visible()
    api.expects("402 /templates")
    api.submit("Save template", Title="One too many")
    expect(page.get_by_role("heading", name="Your plan's limit is reached")).to_be_visible()
    api.follow("See plans")
    api.press("Upgrade to Growth")
    api.submit("Save template", Title="Now it fits")
    expect(page.get_by_role("progressbar", name="3 of 50 templates")).to_be_visible()


def test_the_part_that_the_plan_lacks_opens_with_the_upgrade(api: Visitor) -> None:
    page = api.page
    api.press("Ada's studio")
    api.expects("402 /analytics/")
    api.follow("Analytics")
    expect(page.get_by_role("heading", name="Your plan does not include this feature")).to_be_visible()
    api.follow("See plans")
    api.press("Upgrade to Growth")
    api.follow("Analytics")
    expect(page.get_by_role("heading", name="Analytics")).to_be_visible()


def test_drafts_by_ai_empty_the_wallet_and_a_top_up_fills_it(api: Visitor) -> None:
    page = api.page
    api.press("Linus")
    expect(page.get_by_role("progressbar", name="980 of 2,000 credits used")).to_be_visible()
    api.submit("Draft with AI", Title="A thank-you")
    expect(page.get_by_role("status")).to_have_text("A draft is ready: 46 tokens.")
    expect(page.get_by_label("Text")).to_have_value(re.compile("this is about: A thank-you"))
    expect(page.get_by_role("progressbar", name="1,072 of 2,000 credits used")).to_be_visible()
    api.expects("402 /draft")
    api.submit("Draft with AI", Title="One too many")
    expect(page.get_by_role("heading", name="There are not enough credits left")).to_be_visible()
    expect(page.get_by_role("progressbar", name="1,072 of 2,000 credits used")).to_be_visible()
    api.follow("Get more credits")
    api.press("Add credits")
    expect(page.get_by_role("progressbar", name="1,072 of 12,000 credits used")).to_be_visible()
    api.submit("Draft with AI", Title="A thank-you")
    expect(page.get_by_role("progressbar", name="1,164 of 12,000 credits used")).to_be_visible()
    api.press("Save template")
    expect(page.get_by_role("status")).to_have_text("“A thank-you” is saved.")


def test_streamed_letters_are_counted_when_the_page_is_complete(api: Visitor) -> None:
    page = api.page
    api.press("Ada's studio")
    api.submit("Save template", Title="Welcome")
    page.get_by_label("Names").fill("Ada\nGrace\nLinus")
    api.press("Write letters")
    expect(page.get_by_role("listitem")).to_have_text(
        [f"Dear {name}, welcome aboard!" for name in ("Ada", "Grace", "Linus")]
    )
    api.follow("Back to your templates")
    expect(page.get_by_role("progressbar", name="423 of 1,000 calls")).to_be_visible()


def test_the_keyboard_alone_signs_in_and_saves_a_template(api: Visitor) -> None:
    assert [api.tab() for _ in range(2)] == ["Skip to the content", "Inkwell"]
    assert "Ada's studio" in api.tab()
    api.page.keyboard.press("Enter")
    expect(api.page.get_by_role("heading", name="Your templates")).to_be_visible()
    assert [api.tab() for _ in range(7)] == [
        "Skip to the content",
        "Inkwell",
        "Templates",
        "Analytics",
        "Plans",
        "Sign out",
        "Title",
    ]
    api.page.keyboard.type("Typed")
    assert [api.tab() for _ in range(2)] == ["Text", "Save template"]
    api.page.keyboard.press("Enter")
    expect(api.page.get_by_role("status")).to_have_text("“Typed” is saved.")
