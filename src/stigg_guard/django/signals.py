"""Signals of what happens in the guards. Receivers that raise change nothing, and Django logs them.

``sender`` is always the class :class:`~stigg_guard.Guard`, and ``using`` the name of the configuration.
"""

from __future__ import annotations

from django.dispatch import Signal

from stigg_guard.entitlements import Customer, Entitlement
from stigg_guard.errors import FeatureDenied, StiggGuardError
from stigg_guard.guard import Guard
from stigg_guard.ledger import Acknowledged
from stigg_guard.observer import Observer

feature_denied = Signal()
"""A customer was denied a feature, in the thread of the request: ``customer`` (a ``Customer``), ``feature`` (its id)
and ``entitlement``, with reason and figures."""

usage_reported = Signal()
"""The sidecar has counted a report, mostly in a thread of no request: ``customer`` (a ``Customer``), ``feature`` (its
id), ``amount`` (units), ``is_set`` (whether that is the new total) and ``current_usage`` (None if it did not say)."""

usage_threshold_reached = Signal()
"""A report has brought usage to a part of its limit that ``THRESHOLDS`` names, mostly in a thread of no request; sent
once each time, over all processes: ``customer`` (a ``Customer``), ``feature`` (its id), ``part`` (such as 0.8) and
``entitlement``."""

usage_lost_contact = Signal()
"""Usage cannot be reported any more and waits in the ledger; sent once for each outage: ``error``."""


class SignalObserver(Observer):
    """Sends the signals of one configuration's guard."""

    def __init__(self, using: str) -> None:
        self._using = using

    def denied(self, error: FeatureDenied) -> None:
        feature_denied.send_robust(
            Guard,
            using=self._using,
            customer=error.customer,
            feature=error.entitlement.feature_id,
            entitlement=error.entitlement,
        )

    def reported(self, answer: Acknowledged) -> None:
        report, key = answer.report, answer.report.key
        usage_reported.send_robust(
            Guard,
            using=self._using,
            customer=Customer(key.customer_id, key.resource_id or None),
            feature=key.feature_id,
            amount=report.amount,
            is_set=report.is_set,
            current_usage=answer.current_usage,
        )

    def threshold_reached(self, customer: Customer, feature: str, part: float, entitlement: Entitlement) -> None:
        told = {"customer": customer, "feature": feature, "part": part, "entitlement": entitlement}
        usage_threshold_reached.send_robust(Guard, using=self._using, **told)

    def lost_contact(self, error: StiggGuardError) -> None:
        usage_lost_contact.send_robust(Guard, using=self._using, error=error)
