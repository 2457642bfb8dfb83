"""Sends unsent usage from the ledger to the sidecar: in bulk, in the background, one batch of a key at a time."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import random
import threading
from collections.abc import Callable
from datetime import datetime, timezone

from stigg_guard.client import Stigg
from stigg_guard.errors import InvalidRequest, NotSupported, SidecarError, StiggGuardError
from stigg_guard.ledger import Acknowledged, Batch, Ledger, Report
from stigg_guard.wire import sidecar_pb2 as wire

logger = logging.getLogger("stigg_guard")

BATCH_SIZE = 100  # the contract's limit for one bulk report
LEASE_SECONDS = 30.0
RECHECK_SECONDS = 1.0
MAX_BACK_OFF = 10.0
EXIT_SECONDS = 2.0


class Reporter:
    """Drains a ledger. ``acknowledged`` is called with every report that was counted and the usage it led to.

    The thread starts with the first :meth:`notify` of each process and ends with it.
    """

    def __init__(
        self, ledger: Ledger, stigg: Callable[[], Stigg], acknowledged: Callable[[Acknowledged], None]
    ) -> None:
        self._ledger = ledger
        self._stigg = stigg
        self._acknowledged = acknowledged
        self._start_process()

    def notify(self) -> None:
        """There is something to send. Returns at once."""
        if self._thread is None or self._pid != os.getpid():
            self._start_thread()
        self._wake.set()

    def drain(self, timeout: float | None = None) -> int:
        """Sends what is unsent, now, in this thread; the number of reports that were acknowledged.

        Raises:
            SidecarError: the sidecar did not take a batch; the batch stays in the ledger.
        """
        sent = 0
        while (batch := self._ledger.take_batch(BATCH_SIZE, LEASE_SECONDS)) is not None:
            sent += self._send(batch, timeout)
        return sent

    def flush(self, timeout: float) -> int:
        """Reports everything that is unsent, within about ``timeout`` seconds; the number of reports left.

        Zero means that the sidecar acknowledged all of them.
        """
        with contextlib.suppress(SidecarError):
            self.drain(timeout)
        with self._progress:
            self._progress.wait_for(lambda: not self._left(), timeout if self._thread else 0)
        return self._left()

    def close(self, timeout: float = EXIT_SECONDS) -> int:
        """Flushes within ``timeout`` seconds and ends the thread; the number of reports left."""
        atexit.unregister(self._at_exit)
        if self._pid != os.getpid():
            return 0
        self.flush(timeout)
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
        return self._left()

    def _start_process(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._progress = threading.Condition()
        self._thread: threading.Thread | None = None

    def _start_thread(self) -> None:
        if self._pid != os.getpid():
            self._start_process()
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="stigg-guard-reporter", daemon=True)
                self._thread.start()
                atexit.register(self._at_exit)

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            if failures:
                self._stop.wait(_back_off(failures))  # new usage does not hurry a sidecar that is down
            else:
                self._wake.wait(RECHECK_SECONDS if self._left() else None)
            self._wake.clear()
            failures = 0 if self._drained(first_failure=not failures) else failures + 1
            with self._progress:
                self._progress.notify_all()

    def _drained(self, *, first_failure: bool) -> bool:
        try:
            self.drain()
        except StiggGuardError as error:
            level = logging.WARNING if first_failure else logging.DEBUG
            logger.log(level, "usage is not reported yet and stays in the ledger: %s", error)
            return False
        except Exception:
            logger.exception("reporting usage failed; it stays in the ledger")
            return False
        return True

    def _left(self) -> int:
        counts = self._ledger.counts()
        return counts["unsent"] + counts["sending"]

    def _at_exit(self) -> None:
        left = self.close()
        if left:
            logger.error("%d usage reports were not sent when the process ended", left)

    def _send(self, batch: Batch, timeout: float | None) -> int:
        try:
            answers = self._report(batch, timeout)
        except (InvalidRequest, NotSupported) as error:
            self._single_out(batch, error)
            return 0
        except SidecarError as error:
            if error.outcome_unknown:
                self._ledger.postpone(batch, RECHECK_SECONDS)
            else:
                self._ledger.put_back(batch)
            raise
        self._ledger.acknowledge(answers)
        for answer in answers:
            self._acknowledged(answer)
        return len(answers)

    def _report(self, batch: Batch, timeout: float | None) -> list[Acknowledged]:
        usages = [_usage(report) for report in batch.reports]
        stigg = self._stigg()
        if len(usages) == 1:
            responses = [stigg.report_usage(usages[0], idempotency_key=batch.id, timeout=timeout)]
        else:
            bulk = wire.ReportUsageBulkRequest(usages=usages)
            responses = list(stigg.report_usage_bulk(bulk, idempotency_key=batch.id, timeout=timeout).usages)
        return [_acknowledged(report, response) for report, response in zip(batch.reports, responses, strict=True)]

    def _single_out(self, batch: Batch, error: StiggGuardError) -> None:
        """Finds the report for which a batch is refused: each is sent alone, and what is refused alone is set aside."""
        if len(batch.reports) > 1:
            self._ledger.split(batch)
            return
        self._ledger.bury(batch.reports[0], str(error))
        logger.error("the sidecar refuses a usage report, which is set aside: %s", error)


def _back_off(failures: int) -> float:
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
    return jitter * min(MAX_BACK_OFF, 0.25 * 2.0**failures)


def _usage(report: Report) -> wire.ReportUsageRequest:
    behavior = wire.UsageUpdateBehavior.USAGE_UPDATE_BEHAVIOR_DELTA
    if report.is_set:
        behavior = wire.UsageUpdateBehavior.USAGE_UPDATE_BEHAVIOR_SET
    return wire.ReportUsageRequest(
        customer_id=report.key.customer_id,
        resource_id=report.key.resource_id or None,
        feature_id=report.key.feature_id,
        value=report.amount,
        update_behavior=behavior,
        timestamp=datetime.fromtimestamp(report.used_at, timezone.utc),
    )


def _acknowledged(report: Report, usage: wire.ReportUsageResponse) -> Acknowledged:
    start = usage.usage_period_start.ToDatetime(timezone.utc).timestamp() if usage.HasField("usage_period_start") else 0
    return Acknowledged(report, usage.current_usage if usage.HasField("current_usage") else None, float(start))
