"""Observes a guard: the callbacks that a framework's signals are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from stigg_guard.errors import FeatureDenied, StiggGuardError
from stigg_guard.ledger import Acknowledged
from stigg_guard.log import logger

T = TypeVar("T")


class Observer:
    """Callbacks for denials and reported usage; subclass it and give it to :class:`~stigg_guard.Guard`.

    The methods are called in the thread in which it happened, and do nothing here. What they raise is logged and
    changes nothing.
    """

    def denied(self, error: FeatureDenied) -> None:
        """Called when a customer is denied a feature, in the thread of the request."""

    def reported(self, answer: Acknowledged) -> None:
        """Called when the sidecar has counted ``answer.report``; ``answer.current_usage`` is the usage then.

        Called in the thread that reports: with ``REPORT = "background"`` that is no thread of a request.
        """

    def lost_contact(self, error: StiggGuardError) -> None:
        """Called once for each outage: usage cannot be reported any more and waits in the ledger."""


def tell(told: Callable[[T], None], what: T) -> None:
    """Calls an observer's method; what it raises is logged."""
    try:
        told(what)
    except Exception:  # an observer's failure is its own, whatever it is: the request and the reports go on
        logger.exception("an observer of the guard failed")
