"""Recipes of the manuals, run as they stand there with the real packages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from stigg_guard import Guard

DOCS = Path(__file__).parents[1] / "docs"
CUSTOMER = "customer-demo-01"


def block_of(page: str, name: str) -> str:
    """The Python block of a page that has the name."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if name in block)
    return str(found)


class Kept(Transport):
    """Keeps the events that would go to Sentry."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.events: list[Any] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        event = envelope.get_event()
        if event is not None:
            self.events.append(event)


@pytest.fixture
def sentry() -> Iterator[Kept]:
    kept = Kept()
    with sentry_sdk.isolation_scope():
        sentry_sdk.init("https://key@sentry.invalid/1", transport=kept, default_integrations=False)
        yield kept
        sentry_sdk.init()


def test_sentry_learns_of_denials_before_a_failure_and_of_lost_contact(
    sentry: Kept, make_guard: Callable[..., Guard]
) -> None:
    guard, lost = make_guard(), make_guard(SIDECAR="127.0.0.1:1", LEDGER="memory://", REPORT="inline")
    for one in (guard, lost):
        exec(block_of("observability", "SentryObserver"), {"guard": one})
    with pytest.raises(Exception, match="may not use") as denied:
        guard.require("feature-analytics", customer=CUSTOMER)
    sentry_sdk.capture_exception(denied.value)
    lost.report("feature-templates", 1, customer=CUSTOMER)
    lost.flush(0.1)
    failure, message = sentry.events
    (crumb,) = failure["breadcrumbs"]["values"]
    assert (crumb["category"], crumb["message"]) == ("stigg_guard", "denied feature-analytics")
    assert crumb["data"] == {"reason": "NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION", "customer": CUSTOMER}
    assert (message["level"], message["message"].startswith("usage cannot be reported")) == ("warning", True)
