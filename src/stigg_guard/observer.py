"""What happens in a guard, for those who want to know: the seam that a framework's signals are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from stigg_guard.errors import FeatureDenied, StiggGuardError
from stigg_guard.ledger import Acknowledged
from stigg_guard.log import logger

T = TypeVar("T")


class Observer:
    """Told of denials and of reported usage; subclass it and give it to :class:`~stigg_guard.Guard`.

    The methods are called in the thread in which it happened, and do nothing here. What they raise is logged and
    changes nothing.
    """

    def denied(self, error: FeatureDenied) -> None:
        """A customer was denied a feature, in the thread of the request."""

    def reported(self, answer: Acknowledged) -> None:
        """The sidecar has counted a report: ``answer.report`` is what it was, ``answer.current_usage`` what it came to.

        Called in the thread that reports: with ``REPORT = "background"`` that is no thread of a request.
        """

    def lost_contact(self, error: StiggGuardError) -> None:
        """Usage cannot be reported any more and waits in the ledger; told once for each outage."""


def tell(told: Callable[[T], None], what: T) -> None:
    """Calls an observer's method; what it raises is logged."""
    try:
        told(what)
    except Exception:  # an observer's failure is its own, whatever it is: the request and the reports go on
        logger.exception("an observer of the guard failed")
