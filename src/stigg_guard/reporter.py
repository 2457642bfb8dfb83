"""Reports what was used, in the background: the one thread of a process that does it, from first use to exit."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from math import inf
from time import monotonic

from stigg_guard.client import Stigg
from stigg_guard.clock import Clock
from stigg_guard.config import Config
from stigg_guard.errors import LedgerUnavailable, SidecarError, StiggGuardError
from stigg_guard.ledger import Acknowledged, Hold, Ledger, Use
from stigg_guard.sender import Sender
from stigg_guard.settlement import RECHECK_SECONDS, Settlement
from stigg_guard.stranded import StrandedUses

logger = logging.getLogger("stigg_guard")

SEND_SECONDS = 5.0
LINGER_SECONDS = 0.05  # what is used within it goes into one report
MAX_BACK_OFF = 10.0
EXIT_SECONDS = 2.0


class Reporter:
    """Drains a ledger. ``acknowledged`` is called with every report that was counted and the usage it led to,
    ``lost_contact`` with the first failure after a success.

    Its thread starts with the first :meth:`watch` or :meth:`notify` of each process, and ends with it. It also renews
    the holds of work that takes long. A forked child starts afresh: what its parent watches and keeps in memory stays
    the parent's.
    """

    def __init__(
        self,
        ledger: Ledger,
        stigg: Callable[[], Stigg],
        config: Config,
        acknowledged: Callable[[Acknowledged], None],
        clock: Clock,
        lost_contact: Callable[[StiggGuardError], None] = lambda _: None,
    ) -> None:
        self._ledger = ledger
        self._sender = Sender(stigg, config.on_uncertain)
        self._config = config
        self._renewal = config.hold_ttl / 3
        self._clock = clock
        self._acknowledged = acknowledged
        self._lost_contact = lost_contact
        self._start_process()

    def watch(self, hold: Hold) -> None:
        """The hold is to last as long as its work does."""
        self._ensure_thread()
        self._holds[hold.id] = hold

    def unwatch(self, hold: Hold) -> None:
        """The work of the hold ended."""
        self._holds.pop(hold.id, None)

    def notify(self) -> None:
        """There is something to send. Returns at once."""
        self._ensure_thread()
        self._wake.set()

    def rescue(self, uses: Sequence[Use], error: LedgerUnavailable) -> None:
        """Takes usage that the ledger could not: sends it now, or else keeps it in memory and goes on trying."""
        self._ensure_thread()
        self._stranded.rescue(uses, error)
        if self._stranded:
            self._wake.set()

    def drain(self, timeout: float = inf) -> bool:
        """Sends what is unsent, now, in this thread; whether it came to the end of it.

        What is used meanwhile waits for the next time: under a steady load there would be no end, and a report of each
        use. After ``timeout`` seconds no other batch is begun; one may take as long itself, and ``SEND_SECONDS`` at
        most.

        Raises:
            SidecarError: the sidecar did not take a batch; the batch stays in the ledger.
            LedgerUnavailable: what is unsent cannot be read.
        """
        begun_at, deadline = self._clock.now().timestamp(), self._clock.monotonic() + timeout
        while (batch := self._settlement.send_batch(min(timeout, SEND_SECONDS))) is not None:
            self._renew()
            all_is_new = all(report.used_at > begun_at for report in batch.reports)
            if all_is_new or self._stop.is_set() or self._clock.monotonic() >= deadline:
                return False
        return True

    def flush(self, timeout: float) -> int:
        """Reports everything that is unsent, within about ``timeout`` seconds; the number of reports left.

        Zero means that the sidecar acknowledged all of them. Those that wait for a person are not counted.
        """
        self._enter_process()
        deadline = monotonic() + timeout
        if timeout > 0:
            with contextlib.suppress(SidecarError, LedgerUnavailable):
                self._work(timeout)
        with self._progress:
            self._progress.wait_for(lambda: not self._left(), deadline - monotonic() if self._thread else 0)
        return self._left()

    def stats(self) -> Mapping[str, int]:
        """What this process did since it started: reports ``acknowledged``, ``refused``, ``doubted``,
        ``failures`` in a row, and uses ``stranded`` in its memory."""
        self._enter_process()
        settled, rescued = self._settlement.counts, self._stranded.counts
        return {
            **{outcome: settled[outcome] + rescued[outcome] for outcome in ("acknowledged", "refused", "doubted")},
            "failures": self._failures,
            "stranded": len(self._stranded),
        }

    def close(self, timeout: float = EXIT_SECONDS) -> int:
        """Flushes within ``timeout`` seconds and ends the thread; the number of reports left."""
        atexit.unregister(self._at_exit)
        if self._pid != os.getpid() or self._thread is None:
            return 0
        deadline = monotonic() + timeout
        self.flush(timeout)
        self._stop.set()
        self._wake.set()
        self._thread.join(max(0.1, deadline - monotonic()))
        return self._left()

    def _start_process(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._progress = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failures = 0
        self._holds: dict[str, Hold] = {}
        self._renewed_at = self._clock.monotonic()
        self._settlement = Settlement(self._ledger, self._sender, self._config, self._acknowledged)
        self._stranded = StrandedUses(self._ledger, self._sender, self._clock, self._acknowledged)
        self._pid = os.getpid()

    def _enter_process(self) -> None:
        if self._pid != os.getpid():
            self._start_process()

    def _ensure_thread(self) -> None:
        self._enter_process()
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="stigg-guard-reporter", daemon=True)
                self._thread.start()
                atexit.register(self._at_exit)

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._failures:  # new usage does not hurry a sidecar that is down
                self._stop.wait(min(_back_off(self._failures), self._renewal))
            elif self._wake.wait(min(RECHECK_SECONDS, self._renewal) if self._left() else self._renewal):
                self._stop.wait(LINGER_SECONDS)
            self._wake.clear()
            self._try_work()
            with self._progress:
                self._progress.notify_all()

    def _try_work(self) -> None:
        try:
            self._work()
        except StiggGuardError as error:
            level = logging.DEBUG if self._failures else logging.WARNING
            logger.log(level, "usage is not reported yet and stays in the ledger: %s", error)
            if not self._failures:
                self._lost_contact(error)
            self._failures += 1
        except Exception:  # whatever it is, the thread goes on: nothing else reports
            logger.exception("reporting usage failed; it stays in the ledger")
            self._failures += 1
        else:
            self._failures = 0

    def _work(self, timeout: float = inf) -> None:
        self._stranded.retry()
        self._renew()
        self.drain(timeout)
        self._settlement.decide_uncertain()

    def _renew(self) -> None:
        """Lets open holds last, three times in the life of one."""
        now = self._clock.monotonic()
        if now - self._renewed_at < self._renewal:
            return
        holds = list(self._holds.values())
        if holds:
            self._ledger.renew(holds, self._config.hold_ttl)
        self._renewed_at = now

    def _left(self) -> int:
        try:
            counts = self._ledger.counts()
        except StiggGuardError:
            return 1 + len(self._stranded)  # who cannot count must look again
        return counts["unsent"] + counts["sending"] + len(self._stranded)

    def _at_exit(self) -> None:
        left = self.close()
        if left:
            logger.error("%d usage reports were not sent when the process ended", left)


def _back_off(failures: int) -> float:
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
    return jitter * min(MAX_BACK_OFF, 0.25 * 2.0 ** min(failures, 10))
