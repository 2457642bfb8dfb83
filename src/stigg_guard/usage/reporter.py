"""Drains the outbox in the background: one thread for each process, with exponential backoff and jitter."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic, sleep

from stigg_guard.client import Stigg
from stigg_guard.clock import Clock
from stigg_guard.config import Config
from stigg_guard.errors import LedgerUnavailable, SidecarError, SidecarUnavailable, StiggGuardError
from stigg_guard.ledger import Acknowledged, Entry, Ledger, SqliteLedger, State, Use
from stigg_guard.observer import Audience, Observer
from stigg_guard.runtime.log import logger
from stigg_guard.runtime.threads import start
from stigg_guard.usage.delivery import FAILURES_IN_A_ROW, RECHECK_SECONDS, Delivery
from stigg_guard.usage.keeper import HoldKeeper
from stigg_guard.usage.sender import Sender
from stigg_guard.usage.spill import StrandedUses

SEND_SECONDS = 5.0
LINGER_SECONDS = 0.05  # what is used within it goes into one report
IDLE_SECONDS = 2.0  # how soon what others left in the ledger, and what is due, is seen
MAX_BACK_OFF = 10.0
MAX_BACK_OFF_WHEN_REACHED = 2.0  # others may be answered
EXIT_SECONDS = 2.0
REPEAT_SECONDS = 60.0
CLOCKS_APART = 60e6  # microseconds; what is further ahead is of a clock that was wrong, and not new
FLUSH_PAUSES = (0.02, 0.5)


class Reporter:
    """Drains a ledger. ``acknowledged`` is called with every report that was counted and the usage it led to.
    It calls the ``audience`` for each batch, and for the first failure after a success.

    Its thread starts with the first :meth:`start` or :meth:`notify`, and ends with the process, or with :meth:`close`
    or :meth:`leave`. It also gives back what the ``keeper`` holds for work that was dropped. It is for one process: a
    forked child makes its own, since what its parent keeps in memory is the parent's.

    Threads that use units touch nothing here that an exception from outside could leave locked.
    """

    def __init__(
        self,
        ledger: Ledger,
        stigg: Callable[[], Stigg],
        config: Config,
        keeper: HoldKeeper,
        acknowledged: Callable[[Acknowledged], None],
        clock: Clock,
        audience: Audience | None = None,
    ) -> None:
        self._ledger = ledger
        self._audience = audience or Audience(clock)
        self._sender = Sender(stigg, config.on_uncertain, clock.now, self._audience)
        self._config = config
        self._keeper = keeper
        self._clock = clock
        self._acknowledged = acknowledged
        self._start_process()

    @property
    def is_over(self) -> bool:
        """Whether the background thread is over: the process ends, or the guard was closed."""
        return self._is_over

    def start(self) -> None:
        """Starts the thread: something may have to be reported or given back."""
        self._ensure_thread()

    def notify(self) -> None:
        """Wakes the thread: there is something to send. Returns at once."""
        self._ensure_thread()
        if self._wake.empty():
            self._wake.put(True)

    def rescue(self, uses: Sequence[Use], error: LedgerUnavailable) -> None:
        """Takes usage that the ledger could not: sends it now, or else keeps it in memory and goes on trying."""
        self._stranded.rescue(uses, error)
        if self._stranded:
            self.notify()

    def repeat(self, step: Callable[[], object], uses: Sequence[Use]) -> None:
        """Makes a step of the ledger that an exception from outside interrupted, and that may be made already."""
        self._stranded.repeat(step, REPEAT_SECONDS, uses)
        self.notify()

    def drain(self, timeout: float = inf, *, before: int | None = None) -> bool:
        """Sends what is unsent, now, in this thread; whether it came to the end of it.

        What is used meanwhile waits for the next time: under a steady load there would be no end, and a report of each
        use. ``before`` is an instant of the ledger's own clock in microseconds: what was used later is "meanwhile".
        After ``timeout`` seconds no other batch is begun; one may take as long itself, and ``SEND_SECONDS`` at most.

        Raises:
            SidecarError: the sidecar did not take a batch, which stays in the ledger. Unless it took none of several in
                a row, or cannot be reached, the others were sent.
            LedgerUnavailable: what is unsent cannot be read.
        """
        begun_at = self._clock.now().timestamp() * 1e6 if before is None else before
        started = self._clock.monotonic()
        deadline = started + timeout
        fault: SidecarError | None = None
        failed: list[str] = []  # in a row
        while True:
            batch, error = self._delivery.send_batch(min(timeout, SEND_SECONDS))
            fault = fault or error
            if batch is None:
                break
            if error is None:
                failed.clear()
            elif batch.reports[0].id in failed or len(failed) + 1 >= FAILURES_IN_A_ROW:
                raise error
            else:
                failed.append(batch.reports[0].id)
            latest = begun_at + (self._clock.monotonic() - started) * 1e6 + CLOCKS_APART
            all_is_new = all(begun_at < report.first_at < latest for report in batch.reports)
            if all_is_new or self._is_over or self._clock.monotonic() >= deadline:
                return False
        if fault is not None:
            raise fault
        return True

    def decide(self, timeout: float) -> None:
        """Decides what is uncertain and due, now, in this thread, within about ``timeout`` seconds.

        Raises:
            LedgerUnavailable: the ledger can neither be read nor written.
        """
        self._delivery.decide_uncertain(timeout)

    def flush(self, timeout: float) -> int:
        """Reports everything that is unsent and decides what is uncertain, within about ``timeout`` seconds; the number
        of reports left.

        Zero means that the sidecar acknowledged all of them. Those that wait for a person are not counted.
        """
        deadline, due = monotonic() + timeout, self._clock.monotonic() + timeout
        pause, longest = FLUSH_PAUSES
        before: int | None = None
        while (remaining := min(deadline - monotonic(), due - self._clock.monotonic())) > 0:
            before = before or self._ledger_time()
            came_to_the_end = self._try_work(remaining, before)
            if not self._left():
                return 0
            if came_to_the_end is False and not self._stranded and not self._is_older(before):
                break  # what is left came meanwhile
            sleep(max(0.0, min(pause, deadline - monotonic())))  # others are sending, or a decision is not due yet
            pause = min(2 * pause, longest)
        return self._left()

    def stats(self) -> Mapping[str, int]:
        """Counts what this process did since it started: reports ``acknowledged``, ``rejected``, ``doubted``,
        ``failures`` in a row, and uses ``stranded`` in its memory."""
        delivered, rescued = self._delivery.counts, self._stranded.counts
        return {
            **{outcome: delivered[outcome] + rescued[outcome] for outcome in ("acknowledged", "rejected", "doubted")},
            "failures": self._failures,
            "stranded": len(self._stranded),
        }

    def close(self, timeout: float = EXIT_SECONDS) -> int:
        """Flushes within ``timeout`` seconds and ends the thread; the number of reports left, which is told."""
        if self._pid != os.getpid() or self._thread is None:
            return 0
        deadline = monotonic() + timeout
        try:
            self.flush(timeout)
        finally:
            self._end_thread()
            left = self._left()
            self._tell_of_left(left)
            atexit.unregister(self.close)
        if self._thread is not threading.current_thread():
            self._thread.join(max(0.1, deadline - monotonic()))
        return left

    def _tell_of_left(self, left: int) -> None:
        in_memory = isinstance(self._ledger, SqliteLedger) and self._ledger.is_in_memory
        lost = left if in_memory else len(self._stranded)
        if lost:
            logger.error(
                "%d usage reports were not sent when the guard ended, and are LOST: they were in memory only", lost
            )
        if not self._can_count():
            logger.error("the ledger cannot be read as the guard ends: what is unsent stays in it")
        elif left > lost:
            logger.error("%d usage reports were not sent when the guard ended, and stay in the ledger", left - lost)

    def leave(self) -> None:
        """Lets the thread end, after a last attempt to report, when the guard was dropped. A finalizer may call it,
        anywhere."""
        self._is_left = True
        self._end_thread()

    def _end_thread(self) -> None:
        self._is_over = True
        self._wake.put(False)

    def _start_process(self) -> None:
        self._lock = threading.Lock()
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._is_over = self._is_left = False
        self._thread: threading.Thread | None = None
        self._failures = 0
        self._is_reached = False
        self._told_at = -inf
        self._contact = deque([True], maxlen=1)
        self._delivery = Delivery(self._ledger, self._sender, self._config, self._clock, self._acknowledged)
        self._stranded = StrandedUses(self._ledger, self._sender, self._clock, self._acknowledged)
        self._pid = os.getpid()

    def _ensure_thread(self) -> None:
        thread = self._thread
        if self._is_over or (thread is not None and thread.is_alive()):
            return
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                atexit.unregister(self.close)
                atexit.register(self.close)
                thread = threading.Thread(target=self._run, name="stigg-guard-reporter", daemon=True)
                self._thread = thread
                start(thread)

    def _run(self) -> None:
        pause = IDLE_SECONDS
        while not self._is_over:
            if self._waited(pause):
                sleep(LINGER_SECONDS)
                self._empty_wake()
            pause = 0.0 if self._is_over else self._turn()
            if self._thread is not threading.current_thread():
                return  # its start was interrupted from outside, and another one does its work
        if self._is_left:
            self._turn()
        atexit.unregister(self.close)

    def _waited(self, pause: float) -> bool:
        """Waits; whether it was for something to send. New usage does not hurry a sidecar that is down."""
        deadline = monotonic() + pause
        with contextlib.suppress(Empty):
            while not self._is_over and (remaining := deadline - monotonic()) > 0:
                if self._wake.get(timeout=remaining) and not self._failures:
                    return True
        return False

    def _empty_wake(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._wake.get_nowait()

    def _turn(self) -> float:
        """Does what is to be done; the seconds after which to look again."""
        came_to_the_end = self._try_work()
        if self._failures:
            longest = MAX_BACK_OFF_WHEN_REACHED if self._is_reached else MAX_BACK_OFF
            return min(_back_off(self._failures), longest)
        return IDLE_SECONDS if came_to_the_end else RECHECK_SECONDS

    def _try_work(self, timeout: float = inf, before: int | None = None) -> bool | None:
        """As :meth:`_work`; None if it failed, which others that work at the same time may overcome."""
        answered = self._answered()
        try:
            came_to_the_end = self._work(timeout, before)
        except StiggGuardError as error:
            return self._failed(error, answers=self._answered() > answered)
        except Exception:  # whatever it is, the thread goes on: nothing else reports
            logger.exception("reporting usage failed; it stays in the ledger")
            self._failures += 1
            return None
        if not self._failures or self._answered() > answered or not self._left():
            self._failures = 0
            self._contact.append(True)
        return came_to_the_end

    def _failed(self, error: StiggGuardError, *, answers: bool) -> bool | None:
        """Tells of a failure: of an outage once, and of reports that fail while the sidecar answers once a minute."""
        self._is_reached = isinstance(error, SidecarError) and (
            error.outcome_unknown or not isinstance(error, SidecarUnavailable)
        )
        is_new = not self._failures and not (self._is_reached and monotonic() - self._told_at < REPEAT_SECONDS)
        if is_new:
            self._told_at = monotonic()
        level = logging.WARNING if is_new else logging.DEBUG
        logger.log(level, "usage is not reported yet and stays in the ledger: %s", error)
        if answers:
            self._failures = 0
            return False
        if is_new:
            with contextlib.suppress(IndexError):
                self._contact.pop()  # of several threads that fail at once, one tells
                self._audience.tell(Observer.lost_contact, error)
        self._failures += 1
        return None

    def _answered(self) -> int:
        """How many reports the sidecar has answered: who finds all of them under way has not reached it."""
        return self._delivery.counts["acknowledged"] + self._delivery.counts["rejected"]

    def _work(self, timeout: float, before: int | None) -> bool:
        """Whether nothing is left to do at present; ``before`` as in :meth:`drain`."""
        self._stranded.retry()
        self._keeper.give_back_dropped()
        try:
            came_to_the_end = self.drain(timeout, before=before)
        except SidecarError as error:
            if error.outcome_unknown or not isinstance(error, SidecarUnavailable):
                self.decide(min(timeout, SEND_SECONDS))
            raise
        self.decide(min(timeout, SEND_SECONDS))
        return came_to_the_end and not self._stranded

    def _left(self) -> int:
        try:
            counts = self._ledger.counts()
        except StiggGuardError:
            return 1 + len(self._stranded)  # who cannot count must look again
        undecided = counts["uncertain"] - counts["waiting"]
        return counts["unsent"] + counts["sending"] + undecided + len(self._stranded)

    def _can_count(self) -> bool:
        try:
            self._ledger.counts()
        except StiggGuardError:
            return False
        return True

    def _oldest(self) -> Entry | None:
        """The report that waits longest to be sent or answered; None where there is none, or the ledger says none."""
        with contextlib.suppress(StiggGuardError):
            for entry in self._ledger.entries([State.UNSENT, State.SENDING], 1):
                return entry
        return None

    def _ledger_time(self) -> int | None:
        """The present on the ledger's own clock, which may be that of a server; None where nothing waits."""
        oldest = self._oldest()
        if oldest is not None:
            with contextlib.suppress(StiggGuardError):
                return self._ledger.ticket(oldest.key.customer_id).at
        return None

    def _is_older(self, before: int | None) -> bool:
        """Whether anything that waits was used before this instant of the ledger's clock."""
        oldest = self._oldest()
        return oldest is not None and before is not None and oldest.first_at <= before


def _back_off(failures: int) -> float:
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
    return jitter * min(MAX_BACK_OFF, 0.25 * 2.0 ** min(failures, 10))
