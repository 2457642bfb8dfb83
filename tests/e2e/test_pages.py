"""How each page looks: accessible and within its width, light and dark, on a desk and in a hand.

With ``--screenshots FOLDER`` the looks are saved for a person to judge.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.base import AxeResults
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, ViewportSize

from e2e.visitor import Visitor
from stigg_guard.sidecar.server import Sidecar

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
DEVICES: dict[str, ViewportSize] = {
    "desktop": {"width": 1280, "height": 800},
    "phone": {"width": 390, "height": 844},
}


def shop_sign_in(shop: Visitor) -> None:
    pass


def shop_plan(shop: Visitor) -> None:
    shop.press("Ada's studio")


def shop_mistake(shop: Visitor) -> None:
    shop.press("Ada's studio")
    shop.expects("422 /templates/")
    shop.page.locator("form.create").evaluate("form => form.noValidate = true")
    shop.press("Create template")


def shop_limit(shop: Visitor) -> None:
    shop.press("Ada's studio")
    shop.expects("402 /templates/")
    for name in ("Summer poster", "Annual report", "Lunch menu", "One too many"):
        shop.submit("Create template", Name=name)


def shop_full(shop: Visitor) -> None:
    shop_limit(shop)
    shop.page.goto("/")


def shop_denied(shop: Visitor) -> None:
    shop.press("Ada's studio")
    shop.expects("402 /analytics/")
    shop.follow("Analytics")


def shop_words(shop: Visitor) -> None:
    shop.press("Ada's studio")
    shop.press("Write Jazz night with AI")


def shop_credits_denied(shop: Visitor) -> None:
    shop.press("Linus")
    shop.press("Write Breakfast with AI")
    shop.submit("Create template", Name="Lunch")
    button = shop.page.get_by_role("button", name="Write Lunch with AI")
    shop.expects("402 " + button.evaluate("button => new URL(button.form.action).pathname"))
    shop.press("Write Lunch with AI")


def shop_top_up(shop: Visitor) -> None:
    shop.press("Ada's studio")
    shop.page.goto("/upgrade/?feature=feature-ai")


def shop_upgrade(shop: Visitor) -> None:
    shop.press("Ada's studio")
    shop.page.goto("/upgrade/?feature=feature-analytics")


def shop_analytics(shop: Visitor) -> None:
    shop.press("Grace & Co.")
    for name, kind in (("Summer", "poster"), ("Winter", "poster"), ("Lunch", "menu")):
        shop.page.get_by_label("Name").fill(name)
        shop.page.get_by_label("Kind").select_option(kind)
        shop.press("Create template")
    shop.follow("Analytics")


def shop_empty(shop: Visitor) -> None:
    shop.press("Edsger")


def shop_suggestion_denied(shop: Visitor) -> None:
    shop.press("Linus")
    shop.expects("402 /suggestion/")
    for _ in range(4):
        with shop.page.expect_response("**/suggestion/*"):
            shop.page.get_by_role("button", name="Suggest a name").click()
    shop.page.get_by_text("Your plan's limit is reached").wait_for()


def shop_entitlements(shop: Visitor) -> None:
    shop.press("Sign in as staff")
    shop.follow("Usage ledger")
    shop.follow("Entitlements of a customer")
    shop.submit("Look up", Customer="customer-demo-01")


def api_sign_in(api: Visitor) -> None:
    pass


def api_plan(api: Visitor) -> None:
    api.press("Ada's studio")


def api_limit(api: Visitor) -> None:
    api.press("Linus")
    api.expects("402 /templates")
    for title in ("Welcome", "Goodbye"):
        api.submit("Save template", Title=title)


def api_full(api: Visitor) -> None:
    api_limit(api)
    api.page.goto("/")


def api_denied(api: Visitor) -> None:
    api.press("Ada's studio")
    api.expects("402 /analytics/")
    api.follow("Analytics")


def api_draft(api: Visitor) -> None:
    api.press("Ada's studio")
    api.submit("Draft with AI", Title="A thank-you")


def api_credits_denied(api: Visitor) -> None:
    api.press("Linus")
    api.expects("402 /draft")
    for title in ("A thank-you", "One too many"):
        api.submit("Draft with AI", Title=title)


def api_upgrade(api: Visitor) -> None:
    api.press("Ada's studio")
    api.page.goto("/upgrade?feature=feature-templates")


def api_analytics(api: Visitor) -> None:
    api.press("Grace & Co.")
    api.submit("Save template", Title="Welcome")
    api.follow("Analytics")


def api_letters(api: Visitor) -> None:
    api.press("Ada's studio")
    api.submit("Save template", Title="Welcome")
    api.press("Write letters")


def api_letter_form(api: Visitor) -> None:
    api_letters(api)
    api.page.goto("/")


def api_empty(api: Visitor) -> None:
    api.press("Edsger")


WAYS_IN_SHOP = [
    shop_sign_in,
    shop_plan,
    shop_mistake,
    shop_limit,
    shop_full,
    shop_denied,
    shop_words,
    shop_credits_denied,
    shop_top_up,
    shop_upgrade,
    shop_analytics,
    shop_empty,
    shop_suggestion_denied,
    shop_entitlements,
]
WAYS_IN_API = [
    api_sign_in,
    api_plan,
    api_limit,
    api_full,
    api_denied,
    api_draft,
    api_credits_denied,
    api_upgrade,
    api_analytics,
    api_letters,
    api_letter_form,
    api_empty,
]


@pytest.mark.parametrize("way", WAYS_IN_SHOP)
def test_page_of_the_shop_is_accessible_and_fits_its_width(
    shop: Visitor, way: Callable[[Visitor], None], pytestconfig: pytest.Config
) -> None:
    way(shop)
    look_at(shop.page, way.__name__, pytestconfig.getoption("--screenshots"))


def test_ledger_with_entries_is_accessible_and_fits_its_width(
    shop: Visitor, sidecar: Sidecar, pytestconfig: pytest.Config
) -> None:
    shop.press("Ada's studio")
    sidecar.stop()
    shop.submit("Create template", Name="Summer poster")
    shop.press("Sign out")
    shop.press("Sign in as staff")
    shop.follow("Usage ledger")
    look_at(shop.page, "shop_ledger", pytestconfig.getoption("--screenshots"))


@pytest.mark.parametrize("way", WAYS_IN_API)
def test_page_of_the_api_is_accessible_and_fits_its_width(
    api: Visitor, way: Callable[[Visitor], None], pytestconfig: pytest.Config
) -> None:
    way(api)
    look_at(api.page, way.__name__, pytestconfig.getoption("--screenshots"))


def look_at(page: Page, name: str, folder: Path | None) -> None:
    """Judges the page on each device and in each scheme, and saves its picture in the folder, if there is one."""
    for (device, size), scheme in product(DEVICES.items(), SCHEMES):
        page.set_viewport_size(size)
        page.emulate_media(color_scheme=scheme)
        page.evaluate("document.getAnimations().forEach((fading) => fading.finish())")
        if folder is not None:
            page.screenshot(path=folder / f"{name}-{device}-{scheme}.png", full_page=True)
        faults = serious_faults(page)
        assert not faults, f"{device}, {scheme}: {faults}"
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], f"{device}, {scheme}"


def serious_faults(page: Page) -> str:
    """What axe has found that keeps somebody from using the page; empty if nothing."""
    found = Axe().run(page, options={"preload": False}).response["violations"]  # it would fetch stylesheets once more
    serious = [violation for violation in found if violation["impact"] in ("serious", "critical")]
    return AxeResults({"violations": serious}).generate_report() if serious else ""
