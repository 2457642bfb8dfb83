"""Somebody with a browser who misses no fault of a page."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Request, Response

REFUSED = re.compile(r"Failed to load resource: the server responded with a status of (\d+)")

# A form field is named by its label, all else by what it says.
FOCUSED = """() => {
    const focused = document.activeElement;
    const style = getComputedStyle(focused);
    const text = focused.labels?.[0]?.innerText ?? focused.innerText;
    return [text.trim(), style.outlineStyle === "none" ? "none" : style.outlineWidth];
}"""


class Visitor:
    """One window on a site. ``page`` is where it is; ``expects`` names the faults that the test itself provokes."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._expected: set[str] = set()
        self._faults: set[str] = set()
        page.on("console", self._heard)
        page.on("response", self._answered)
        page.on("pageerror", lambda error: self._faults.add(str(error)))
        page.on("requestfailed", self._failed)

    def press(self, name: str) -> None:
        """Presses a button that leads to a page, and waits for that."""
        with self.page.expect_navigation():
            self.page.get_by_role("button", name=name).click()

    def submit(self, button: str, **fields: str) -> None:
        """Fills in the fields with these labels, and presses the button."""
        for label, text in fields.items():
            self.page.get_by_label(label).fill(text)
        self.press(button)

    def follow(self, name: str) -> None:
        """Follows a link to its page."""
        with self.page.expect_navigation():
            self.page.get_by_role("link", name=name).click()

    def tab(self) -> str:
        """The name of what Tab comes to, which must be seen to have the focus."""
        self.page.keyboard.press("Tab")
        name, outline = self.page.evaluate(FOCUSED)
        assert outline not in ("none", "0px"), f"nothing shows that {name} has the focus"
        return str(name)

    def expects(self, fault: str) -> None:
        """A fault that is to come: ``"402 /path"``, or another error's name and the path."""
        self._expected.add(fault)

    def check(self) -> None:
        """Fails if anything went wrong that was not expected, or something expected did not."""
        assert self._faults == self._expected, f"went wrong: {self._faults}; should have: {self._expected}"

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        refused = REFUSED.match(message.text)
        self._faults.add(_fault(refused[1], message.location["url"]) if refused else message.text)

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the browser itself does that, to go on or for a download
            self._faults.add(_fault(request.failure, request.url))

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self._faults.add(_fault(response.status, response.url))


def _fault(what: object, url: str) -> str:
    return f"{what} {urlsplit(url).path}"
