"""Signals of what happens in a guard. The sender is the app.

Receivers may be ``async def``. What they raise is logged and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import ref

from blinker import NamedSignal, Namespace
from flask import Flask

from stigg_guard.entitlements import Customer, Entitlement
from stigg_guard.errors import FeatureDenied, StiggGuardError
from stigg_guard.ledger import Acknowledged
from stigg_guard.observer import Observer, tell

_signals = Namespace()

feature_denied = _signals.signal(
    "stigg-guard-feature-denied",
    doc="A customer was denied a feature: ``error`` is the FeatureDenied. Sent in the thread of the request.",
)
usage_reported = _signals.signal(
    "stigg-guard-usage-reported",
    doc="The sidecar has counted a report: ``answer.report`` is that, ``answer.current_usage`` the usage after it. "
    "Sent in the thread that reports, where no application context is.",
)
usage_threshold_reached = _signals.signal(
    "stigg-guard-usage-threshold-reached",
    doc="A report has brought usage to a part of its limit that ``STIGG_GUARD_THRESHOLDS`` names: ``customer``, "
    "``feature``, ``part`` and ``entitlement``. Sent once each time, over all processes, in the thread that reports.",
)
usage_lost_contact = _signals.signal(
    "stigg-guard-usage-lost-contact",
    doc="Usage cannot be reported any more and waits in the ledger: ``error`` says why. Sent once for each outage, "
    "in the thread that reports.",
)


class Signals(Observer):
    """Sends what a guard tells. The app is not kept alive by it."""

    def __init__(self, app: Flask) -> None:
        self._app = ref(app)

    def denied(self, error: FeatureDenied) -> None:
        self._send(feature_denied, error=error)

    def reported(self, answer: Acknowledged) -> None:
        self._send(usage_reported, answer=answer)

    def threshold_reached(self, customer: Customer, feature: str, part: float, entitlement: Entitlement) -> None:
        self._send(usage_threshold_reached, customer=customer, feature=feature, part=part, entitlement=entitlement)

    def lost_contact(self, error: StiggGuardError) -> None:
        self._send(usage_lost_contact, error=error)

    def _send(self, signal: NamedSignal, **what: Any) -> None:
        """One by one, so that a receiver that raises keeps no other from being told."""
        app = self._app()
        if app is None:
            return
        for receiver in signal.receivers_for(app):
            tell(partial(_call, app, receiver), what)


def _call(app: Flask, receiver: Callable[..., Any], what: Mapping[str, Any]) -> None:
    app.ensure_sync(receiver)(app, **what)
