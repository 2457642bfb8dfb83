"""Thresholds: the process whose report brings usage to a part of its limit calls the observers, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from stigg_guard.amounts import quanta, quanta_used
from stigg_guard.entitlements import Customer, Entitlement
from stigg_guard.errors import StiggGuardError
from stigg_guard.ledger import Acknowledged
from stigg_guard.observer import Audience, Observer
from stigg_guard.runtime.log import logger

Decide: TypeAlias = Callable[[str, Customer], Entitlement]


def tell_of_thresholds(parts: Sequence[float], decide: Decide, audience: Audience, answer: Acknowledged) -> None:
    """Tells of each part of the limit that a report has brought the usage to; ``decide`` knows the limit.

    Of all the processes that report, one is answered with the usage that lies just beyond a threshold, so nothing needs
    to be remembered; and what falls below it, as in a new period, reaches it again. A report that sets the total does
    not tell what was used before, and is not judged.
    """
    report, current = answer.report, answer.current_usage
    if current is None or report.is_set or report.amount <= 0:
        return
    customer = Customer(report.key.customer_id, report.key.resource_id or None)
    try:
        entitlement = decide(report.key.feature_id, customer)
    except StiggGuardError as error:
        logger.debug("a threshold of %r is not judged: %s", str(report.key), error)
        return
    limit = entitlement.usage_limit
    if entitlement.is_unlimited or not limit:
        return
    after = quanta_used(current)
    before = after - quanta(report.amount)
    for part in parts:
        if before < part * quanta(limit) <= after:
            told = entitlement.with_usage(current)
            audience.tell(Observer.threshold_reached, customer, report.key.feature_id, part, told)
