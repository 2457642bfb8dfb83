"""Sends unsent usage from the ledger to the sidecar: in bulk, in the background, one report of a key at a time."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import random
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from math import inf
from time import monotonic
from typing import NamedTuple

from stigg_guard.client import Stigg
from stigg_guard.clock import Clock
from stigg_guard.config import Config, OnUncertain
from stigg_guard.errors import (
    InvalidRequest,
    LedgerUnavailable,
    NotSupported,
    SidecarError,
    SidecarUnavailable,
    StiggGuardError,
)
from stigg_guard.ledger import Acknowledged, Batch, Entry, Hold, Ledger, State, UsageKey, Use
from stigg_guard.messages import acknowledged, event_of, ids_of, request_of, usage_of
from stigg_guard.wire import sidecar_pb2 as wire

logger = logging.getLogger("stigg_guard")

BATCH_SIZE = 100  # the contract's limit for one bulk report
SEND_SECONDS = 5.0
LEASE_SECONDS = 30.0
RECHECK_SECONDS = 1.0
LINGER_SECONDS = 0.05  # what is used within it goes into one report
MAX_BACK_OFF = 10.0
EXIT_SECONDS = 2.0
MAX_STRANDED = 10_000


class Reporter:
    """Drains a ledger. ``acknowledged`` is called with every report that was counted and the usage it led to,
    ``lost_contact`` with the first failure after a success.

    Its thread starts with the first :meth:`watch` or :meth:`notify` of each process, and ends with it. It also renews
    the holds of work that takes long, decides what is uncertain, and looks after usage that the ledger could not take.
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
        self._stigg = stigg
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
        for use in uses if error.repeat is None else ():
            logger.error("the ledger cannot take usage of %s, so it is sent at once: %s", use.key, error)
            stranded = _Stranded(use, self._clock.now().timestamp())
            if not self._send_stranded(stranded):
                self._keep(stranded)
        if error.repeat is not None:
            logger.error("the ledger did not answer, and is asked again until it does: %s", error)
            deadline = self._clock.monotonic() + error.repeatable
            self._repeats.append(
                _Repeat(error.repeat, deadline, ", ".join(f"{use.amount:g} of {use.key}" for use in uses))
            )
            self.notify()

    def drain(self, timeout: float = inf) -> bool:
        """Sends what is unsent, now, in this thread; whether it came to the end of it.

        After ``timeout`` seconds no other batch is begun; one may take as long itself, and ``SEND_SECONDS`` at most.

        Raises:
            SidecarError: the sidecar did not take a batch; the batch stays in the ledger.
            LedgerUnavailable: what is unsent cannot be read.
        """
        deadline = self._clock.monotonic() + timeout
        while (batch := self._ledger.take_batch(BATCH_SIZE, LEASE_SECONDS)) is not None:
            self._send(batch, min(timeout, SEND_SECONDS))
            self._renew()
            if self._stop.is_set() or self._clock.monotonic() >= deadline:
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
        return {**self._counters, "stranded": len(self._stranded) + len(self._repeats)}

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
        self._rescuing = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._progress = threading.Condition()
        self._thread: threading.Thread | None = None
        self._holds: dict[str, Hold] = {}
        self._renewed_at = self._clock.monotonic()
        self._stranded: list[_Stranded] = []
        self._repeats: list[_Repeat] = []
        self._counters = {"acknowledged": 0, "refused": 0, "doubted": 0, "failures": 0}
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
            failures = self._counters["failures"]
            if failures:  # new usage does not hurry a sidecar that is down
                self._stop.wait(min(_back_off(failures), self._renewal))
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
            level = logging.DEBUG if self._counters["failures"] else logging.WARNING
            logger.log(level, "usage is not reported yet and stays in the ledger: %s", error)
            if not self._counters["failures"]:
                self._lost_contact(error)
            self._counters["failures"] += 1
        except Exception:
            logger.exception("reporting usage failed; it stays in the ledger")
            self._counters["failures"] += 1
        else:
            self._counters["failures"] = 0

    def _work(self, timeout: float = inf) -> None:
        self._retry_stranded()
        self._renew()
        self.drain(timeout)
        self._decide_uncertain()

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
            return 1 + len(self._stranded) + len(self._repeats)  # who cannot count must look again
        return counts["unsent"] + counts["sending"] + len(self._stranded) + len(self._repeats)

    def _at_exit(self) -> None:
        left = self.close()
        if left:
            logger.error("%d usage reports were not sent when the process ended", left)

    def _send(self, batch: Batch, timeout: float) -> None:
        try:
            if not self._may_send(batch):
                return
            answers = self._report(batch, timeout)
        except (InvalidRequest, NotSupported) as error:
            self._single_out(batch, error)
            return
        except SidecarError as error:
            if error.outcome_unknown or batch.reports[0].attempts > 1:
                self._ledger.postpone(batch, RECHECK_SECONDS)
            else:
                self._ledger.put_back(batch.reports)
            raise
        self._settle(answers)

    def _may_send(self, batch: Batch) -> bool:
        """Whether sending cannot count twice, or may. A batch that comes again was sent, and nobody knows the outcome.

        If it may not be sent, what becomes of it is decided here.
        """
        if batch.reports[0].attempts < 2 or all(self._may_repeat(report) for report in batch.reports):
            return True
        deltas = [report for report in batch.reports if not report.is_set]
        self._ledger.put_back([report for report in batch.reports if report.is_set])
        reason = "it was sent and not answered, so it may have been counted"
        self._counters["doubted"] += len(deltas)
        if self._config.on_uncertain is OnUncertain.DROP:
            self._ledger.doubt(deltas, None, reason)
            self._ledger.discard([report.id for report in deltas])
            logger.error("%d usage reports without an answer are dropped, as ON_UNCERTAIN says", len(deltas))
        else:
            self._ledger.doubt(deltas, self._config.settle_grace, reason)
        return False

    def _may_repeat(self, report: Entry) -> bool:
        if report.event or report.is_set or self._config.on_uncertain is OnUncertain.RESEND:
            return True
        stigg = self._stigg()
        if stigg.honours_keys is None:
            stigg.reload_entitlements(request_of(wire.ReloadEntitlementsRequest, report.key))
        return bool(stigg.honours_keys)

    def _report(self, batch: Batch, timeout: float) -> list[Acknowledged]:
        reports, stigg = batch.reports, self._stigg()
        if reports[0].event is not None:
            stigg.report_events(
                wire.ReportEventsRequest(events=[event_of(report) for report in reports]), timeout=timeout
            )
            return [Acknowledged(report, None, 0.0) for report in reports]
        if len(reports) == 1:
            answers = [stigg.report_usage(usage_of(reports[0]), idempotency_key=batch.id, timeout=timeout)]
        else:
            bulk = wire.ReportUsageBulkRequest(usages=[usage_of(report) for report in reports])
            answers = list(stigg.report_usage_bulk(bulk, idempotency_key=batch.id, timeout=timeout).usages)
        by_key = {(answer.customer_id, answer.resource_id, answer.feature_id): answer for answer in answers}
        return [acknowledged(report, by_key.get(ids_of(report.key))) for report in reports]

    def _settle(self, answers: Sequence[Acknowledged]) -> None:
        self._ledger.acknowledge(answers)
        self._counters["acknowledged"] += len(answers)
        for answer in answers:
            self._acknowledged(answer)

    def _single_out(self, batch: Batch, error: StiggGuardError) -> None:
        """Finds the report for which a batch is refused: each is sent alone, and what is refused alone is set aside."""
        if len(batch.reports) > 1:
            self._ledger.split(batch)
            return
        self._ledger.bury(batch.reports[0], str(error))
        self._counters["refused"] += 1
        logger.error("the sidecar refuses usage of %s, which is set aside: %s", batch.reports[0].key, error)

    def _decide_uncertain(self) -> None:
        """Reads the usage back: it shows whether the report was counted, unless somebody else reported too."""
        for report in self._ledger.take_uncertain(BATCH_SIZE, LEASE_SECONDS):
            known = self._ledger.known_usage(report.key)
            answer = self._read_back(report.key)
            if known is not None and answer.current_usage == known + report.amount:
                self._settle([acknowledged(report, answer)])
            elif known is not None and answer.current_usage == known:
                self._ledger.put_back([report])
            else:
                before = "unknown" if known is None else f"{known:g}"
                reason = f"nobody knows whether it was counted: usage was {before} and is {answer.current_usage:g} now"
                self._ledger.doubt([report], None, reason)
                logger.error("usage of %s waits for a decision (stigg-guard ledger list): %s", report.key, reason)

    def _read_back(self, key: UsageKey) -> wire.MeteredEntitlement:
        stigg = self._stigg()
        stigg.reload_entitlements(request_of(wire.ReloadEntitlementsRequest, key))
        request = request_of(wire.GetMeteredEntitlementRequest, key, feature_id=key.feature_id)
        answer = stigg.get_metered_entitlement(request)
        if answer.is_fallback:
            raise SidecarUnavailable("the usage cannot be read back: a fallback answered")
        return answer.entitlement

    def _send_stranded(self, stranded: _Stranded) -> bool:
        """Whether it is settled: sent, or refused for good."""
        entry, answer = stranded.entry(), None
        try:
            if entry.event is not None:
                self._stigg().report_events(wire.ReportEventsRequest(events=[event_of(entry)]))
            else:
                answer = self._stigg().report_usage(usage_of(entry), idempotency_key=stranded.key)
        except InvalidRequest as error:
            logger.error("the sidecar refuses usage of %s, and no ledger can keep it: %s", entry.key, error)
            self._counters["refused"] += 1
            return True
        except SidecarError as error:
            stranded.maybe_counted |= error.outcome_unknown
            return False
        self._counters["acknowledged"] += 1
        self._acknowledged(acknowledged(entry, answer))
        return True

    def _keep(self, stranded: _Stranded) -> None:
        what = stranded.use.key, stranded.use.amount
        if len(self._stranded) >= MAX_STRANDED:
            logger.critical("usage of %s is LOST: %g units that neither ledger nor sidecar takes", *what)
            return
        self._stranded.append(stranded)
        logger.critical("usage of %s is kept in memory only: %g units that neither ledger nor sidecar takes", *what)
        self.notify()

    def _retry_stranded(self) -> None:
        with self._rescuing:
            while self._repeats and self._is_repeated(self._repeats[0]):
                self._repeats.pop(0)
            while self._stranded and self._is_settled(self._stranded[0]):
                self._stranded.pop(0)

    def _is_repeated(self, step: _Repeat) -> bool:
        if self._clock.monotonic() >= step.deadline:
            logger.critical("%s may be counted or LOST: the ledger did not answer for too long", step.what)
            self._counters["doubted"] += 1
            return True
        try:
            step.repeat()
        except LedgerUnavailable:
            return False
        return True

    def _is_settled(self, stranded: _Stranded) -> bool:
        if not stranded.maybe_counted:
            with contextlib.suppress(LedgerUnavailable):
                self._ledger.record(stranded.use)
                return True
        elif not self._may_repeat(stranded.entry()):
            use = stranded.use
            logger.critical("%g units of %s may be counted or LOST, and are not sent again", use.amount, use.key)
            self._counters["doubted"] += 1
            return True
        return self._send_stranded(stranded)


class _Repeat(NamedTuple):
    """A step of the ledger that may have been made, and may be made again until ``deadline``."""

    repeat: Callable[[], object]
    deadline: float
    what: str


class _Stranded:
    """A use that the ledger could not take, with the key under which it is reported however often it is."""

    def __init__(self, use: Use, used_at: float) -> None:
        self.use = use
        self.key = secrets.token_hex(16)
        self.maybe_counted = False
        self._used_at = used_at

    def entry(self) -> Entry:
        use = self.use
        return Entry("", State.UNSENT, use.key, use.amount, use.is_set, self._used_at, use.event)


def _back_off(failures: int) -> float:
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
    return jitter * min(MAX_BACK_OFF, 0.25 * 2.0 ** min(failures, 10))
