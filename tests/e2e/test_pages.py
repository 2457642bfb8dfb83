"""How each page looks: accessible and within its width, light and dark, on a desk and in a hand.

With ``--screenshots FOLDER`` the looks are saved for a person to judge.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.base import AxeResults
from axe_playwright_python.sync_playwright import Axe
from e2e.visitor import Visitor
from playwright.sync_api import Page

SCHEMES = ("light", "dark")
DEVICES = {"desktop": (1280, 800), "phone": (390, 844)}


def sign_in(visitor: Visitor, name: str) -> None:
    visitor.page.get_by_role("button", name=name).click()


def shop_sign_in(shop: Visitor) -> None:
    pass


def shop_plan(shop: Visitor) -> None:
    sign_in(shop, "Ada's studio")


def shop_mistake(shop: Visitor) -> None:
    sign_in(shop, "Ada's studio")
    shop.expects("422 /templates/")
    shop.page.locator("form.create").evaluate("form => form.noValidate = true")
    shop.page.get_by_role("button", name="Create template").click()


def shop_limit(shop: Visitor) -> None:
    sign_in(shop, "Ada's studio")
    shop.expects("402 /templates/")
    for name in ("Summer poster", "Annual report", "Lunch menu", "One too many"):
        shop.page.get_by_label("Name").fill(name)
        shop.page.get_by_role("button", name="Create template").click()


def shop_full(shop: Visitor) -> None:
    shop_limit(shop)
    shop.page.goto("/")


def shop_denied(shop: Visitor) -> None:
    sign_in(shop, "Ada's studio")
    shop.expects("402 /analytics/")
    shop.page.get_by_role("link", name="Analytics").click()


def shop_upgrade(shop: Visitor) -> None:
    sign_in(shop, "Ada's studio")
    shop.page.goto("/upgrade/?feature=feature-analytics")


def shop_analytics(shop: Visitor) -> None:
    sign_in(shop, "Grace & Co.")
    for name, kind in (("Summer", "poster"), ("Winter", "poster"), ("Lunch", "menu")):
        shop.page.get_by_label("Name").fill(name)
        shop.page.get_by_label("Kind").select_option(kind)
        shop.page.get_by_role("button", name="Create template").click()
    shop.page.get_by_role("link", name="Analytics").click()


def shop_empty(shop: Visitor) -> None:
    sign_in(shop, "Edsger")


def api_sign_in(api: Visitor) -> None:
    pass


def api_plan(api: Visitor) -> None:
    sign_in(api, "Ada's studio")


def api_limit(api: Visitor) -> None:
    sign_in(api, "Linus")
    api.expects("402 /templates")
    for title in ("Welcome", "Goodbye"):
        api.page.get_by_label("Title").fill(title)
        api.page.get_by_role("button", name="Save template").click()


def api_full(api: Visitor) -> None:
    api_limit(api)
    api.page.goto("/")


def api_denied(api: Visitor) -> None:
    sign_in(api, "Ada's studio")
    api.expects("402 /analytics/")
    api.page.get_by_role("link", name="Analytics").click()


def api_upgrade(api: Visitor) -> None:
    sign_in(api, "Ada's studio")
    api.page.goto("/upgrade?feature=feature-templates")


def api_analytics(api: Visitor) -> None:
    sign_in(api, "Grace & Co.")
    api.page.get_by_label("Title").fill("Welcome")
    api.page.get_by_role("button", name="Save template").click()
    api.page.get_by_role("link", name="Analytics").click()


def api_empty(api: Visitor) -> None:
    sign_in(api, "Edsger")


WAYS: dict[str, list[Callable[[Visitor], None]]] = {
    "shop": [
        shop_sign_in, shop_plan, shop_mistake, shop_limit, shop_full, shop_denied, shop_upgrade, shop_analytics,
        shop_empty,
    ],
    "api": [api_sign_in, api_plan, api_limit, api_full, api_denied, api_upgrade, api_analytics, api_empty],
}


@pytest.mark.parametrize(("site", "way"), [(site, way) for site, ways in WAYS.items() for way in ways])
def test_page_is_accessible_and_fits_its_width(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config, site: str, way: Callable[[Visitor], None]
) -> None:
    visitor: Visitor = request.getfixturevalue(site)
    way(visitor)
    folder: Path | None = pytestconfig.getoption("--screenshots")
    for device, (width, height) in DEVICES.items():
        visitor.page.set_viewport_size({"width": width, "height": height})
        for scheme in SCHEMES:
            visitor.page.emulate_media(color_scheme=scheme)
            if folder is not None:
                visitor.page.screenshot(path=folder / f"{way.__name__}-{device}-{scheme}.png", full_page=True)
            assert serious_faults(visitor.page) == "", f"{device}, {scheme}"
            assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width, f"{device}, {scheme}"


def serious_faults(page: Page) -> str:
    """What axe has found that keeps somebody from using the page; empty if nothing."""
    found = Axe().run(page).response["violations"]
    serious = [violation for violation in found if violation["impact"] in ("serious", "critical")]
    return AxeResults({"violations": serious}).generate_report() if serious else ""
