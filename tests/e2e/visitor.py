"""Somebody with a browser who misses no fault of a page."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Response

REFUSED = re.compile(r"Failed to load resource: the server responded with a status of (\d+)")


class Visitor:
    """One window on a site. ``page`` is where it is; ``expects`` names the refusals that the test itself asks for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._expected: set[str] = set()
        self._faults: set[str] = set()
        page.on("console", self._heard)
        page.on("response", self._answered)
        page.on("pageerror", lambda error: self._faults.add(str(error)))
        page.on("requestfailed", lambda request: self._faults.add(f"{request.failure} {request.url}"))

    def expects(self, refusal: str) -> None:
        """An answer of 400 or more that is to come, as ``"402 /path"``."""
        self._expected.add(refusal)

    def check(self) -> None:
        """Fails if anything went wrong that was not expected, or an expected refusal did not come."""
        assert self._faults == self._expected

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        refused = REFUSED.match(message.text)
        self._faults.add(_refusal(int(refused[1]), message.location["url"]) if refused else message.text)

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self._faults.add(_refusal(response.status, response.url))


def _refusal(status: int, url: str) -> str:
    return f"{status} {urlsplit(url).path}"
