"""Sends what was just used before the caller goes on, where the background thread may have no time for it."""

from __future__ import annotations

from time import monotonic, sleep

from stigg_guard.config import Config, ReportMode
from stigg_guard.errors import LedgerUnavailable, SidecarError
from stigg_guard.ledger import Ledger, State
from stigg_guard.runtime.log import logger
from stigg_guard.usage.processes import may_end_at_once
from stigg_guard.usage.reporter import SEND_SECONDS, Reporter

_LOOKED_AT = 100  # how many of the oldest entries
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05  # in seconds, between two looks at what others send


class Flusher:
    """Sends unsent usage when ``REPORT`` says: now, or soon by the reporter's thread."""

    def __init__(self, config: Config, ledger: Ledger, reporter: Reporter) -> None:
        self._config = config
        self._ledger = ledger
        self._reporter = reporter

    def send(self, customer_id: str = "") -> None:
        """Sends what is unsent as ``REPORT`` says, with what this process has just used of the customer; what fails
        stays in the ledger."""
        at_once = self._reporter.is_over or (self._config.report is ReportMode.AUTO and may_end_at_once())
        if at_once or self._config.report is ReportMode.INLINE:
            try:
                if self._drained(customer_id, at_once):
                    return
            except (SidecarError, LedgerUnavailable) as error:
                logger.warning("usage is not reported yet and stays in the ledger: %s", error)
        self._reporter.notify()

    def _drained(self, customer_id: str, at_once: bool) -> bool:
        """Whether all is sent. What is used while others send a report of the same key goes in the next one, and may
        be theirs to send: that is waited for, as long as a check may take."""
        used_at, deadline = self._ledger.ticket(customer_id).at, monotonic() + self._config.timeout
        is_done, pause = self._reporter.drain(SEND_SECONDS, before=used_at if at_once else None), _FIRST_PAUSE
        while customer_id and self._waits(customer_id, used_at) and monotonic() < deadline:
            sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            is_done = self._reporter.drain(SEND_SECONDS, before=used_at)
        return is_done

    def _waits(self, customer_id: str, used_at: int) -> bool:
        """Whether usage of the customer of that time is not acknowledged yet."""
        oldest = self._ledger.entries([State.UNSENT, State.SENDING], _LOOKED_AT)
        return any(entry.key.customer_id == customer_id and entry.first_at <= used_at for entry in oldest)
