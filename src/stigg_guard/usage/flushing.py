"""Sends what was just used before the caller goes on, where the background thread may have no time for it."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic, sleep

from stigg_guard.config import Config, ReportMode
from stigg_guard.errors import ClientClosed, LedgerUnavailable, SidecarError
from stigg_guard.ledger import Entry, Ledger, State
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
        self._in_vain: dict[str, frozenset[tuple[str, State]]] = {}  # by customer: what was waited for, and in vain

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
            except ClientClosed:
                raise
            except Exception:  # whatever it is, the work was done, and its usage is in the ledger
                logger.exception("reporting usage failed; it stays in the ledger")
        self._reporter.notify()

    def _drained(self, customer_id: str, at_once: bool) -> bool:
        """Whether all is sent. What is used while others send a report of the same key goes in the next one, and may
        be theirs to send: that is waited for, as long as a check may take, and once: who was to send it may be dead."""
        used_at, deadline = self._ledger.ticket(customer_id).at, monotonic() + self._config.timeout
        is_done, pause = self._reporter.drain(SEND_SECONDS, before=used_at if at_once else None), _FIRST_PAUSE
        if not customer_id:
            return is_done
        if at_once:  # nobody else may live long enough
            self._reporter.decide(SEND_SECONDS)
        waiting = self._waiting(customer_id, used_at)
        while self._is_awaited(waiting) and monotonic() < deadline:
            sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._reporter.decide(SEND_SECONDS)
            is_done = self._reporter.drain(SEND_SECONDS, before=used_at)
            waiting = self._waiting(customer_id, used_at)
        if waiting:
            self._in_vain[customer_id] = frozenset((entry.id, entry.state) for entry in waiting)
        else:
            self._in_vain.pop(customer_id, None)
        return is_done and not waiting

    def _waiting(self, customer_id: str, used_at: int) -> list[Entry]:
        """Usage of the customer of that time or before that is to be sent or acknowledged."""
        oldest = self._ledger.entries([State.UNSENT, State.SENDING], _LOOKED_AT)
        return [entry for entry in oldest if entry.key.customer_id == customer_id and entry.first_at <= used_at]

    def _is_awaited(self, waiting: Sequence[Entry]) -> bool:
        """Whether any of it may be sent soon: not what was waited for in vain, nor what waits behind that."""
        in_vain = {
            entry.key
            for entry in waiting
            if (entry.id, entry.state) in self._in_vain.get(entry.key.customer_id, frozenset())
        }
        return any(entry.key not in in_vain for entry in waiting)
