"""Settles what the ledger has to report: what becomes of each report once it was sent, answered or not."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from stigg_guard.config import Config, OnUncertain
from stigg_guard.errors import InvalidRequest, NotSupported, SidecarError, StiggGuardError
from stigg_guard.ledger import Acknowledged, Batch, Entry, Ledger
from stigg_guard.messages import acknowledged
from stigg_guard.sender import Sender

logger = logging.getLogger("stigg_guard")

BATCH_SIZE = 100  # the contract's limit for one bulk report
LEASE_SECONDS = 30.0
RECHECK_SECONDS = 1.0


class Settlement:
    """Sends the ledger's reports, notes in it what came of them, and decides those whose outcome nobody knows.

    ``acknowledged`` is called with every report that was counted and the usage it led to. ``counts`` are the reports
    ``acknowledged``, ``refused`` and ``doubted`` here.
    """

    def __init__(
        self, ledger: Ledger, sender: Sender, config: Config, acknowledged: Callable[[Acknowledged], None]
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._ledger = ledger
        self._sender = sender
        self._config = config
        self._acknowledged = acknowledged

    def send_batch(self, timeout: float) -> Batch | None:
        """Sends the next batch, waiting ``timeout`` seconds for its answer; None when there is nothing to send.

        Raises:
            SidecarError: the sidecar did not take it; it stays in the ledger.
            LedgerUnavailable: the ledger cannot be read, or not be told what came of the batch.
        """
        batch = self._ledger.take_batch(BATCH_SIZE, LEASE_SECONDS)
        if batch is not None:
            self._send(batch, timeout)
        return batch

    def decide_uncertain(self) -> None:
        """Reads the usage back: it shows whether the report was counted, unless somebody else reported too.

        Raises:
            SidecarError: the usage cannot be read back now.
            LedgerUnavailable: the ledger can neither be read nor written.
        """
        for report in self._ledger.take_uncertain(BATCH_SIZE, LEASE_SECONDS):
            known = self._ledger.known_usage(report.key)
            answer = self._sender.read_back(report.key)
            if known is not None and answer.current_usage == known + report.amount:
                self._settle([acknowledged(report, answer)])
            elif known is not None and answer.current_usage == known:
                self._ledger.put_back([report])
            else:
                before = "unknown" if known is None else f"{known:g}"
                reason = f"nobody knows whether it was counted: usage was {before} and is {answer.current_usage:g} now"
                self._ledger.doubt([report], None, reason)
                logger.error("usage of %s waits for a decision (stigg-guard ledger list): %s", report.key, reason)

    def _send(self, batch: Batch, timeout: float) -> None:
        came_again = batch.reports[0].attempts > 1  # it was sent, and nobody knows the outcome
        try:
            if came_again and not all(map(self._sender.may_repeat, batch.reports)):
                self._doubt(batch.reports)
                return
            answers = self._sender.send(batch, timeout)
        except (InvalidRequest, NotSupported) as error:
            self._single_out(batch, error)
            return
        except SidecarError as error:
            if error.outcome_unknown or came_again:
                self._ledger.postpone(batch, RECHECK_SECONDS)
            else:
                self._ledger.put_back(batch.reports)
            raise
        self._settle(answers)

    def _settle(self, answers: Sequence[Acknowledged]) -> None:
        self._ledger.acknowledge(answers)
        self.counts["acknowledged"] += len(answers)
        for answer in answers:
            self._acknowledged(answer)

    def _doubt(self, reports: Sequence[Entry]) -> None:
        """Only totals are sent again; of the others ``ON_UNCERTAIN`` says what becomes."""
        self._ledger.put_back([report for report in reports if report.is_set])
        deltas = [report for report in reports if not report.is_set]
        self.counts["doubted"] += len(deltas)
        reason = "it was sent and not answered, so it may have been counted"
        if self._config.on_uncertain is OnUncertain.DROP:
            self._ledger.doubt(deltas, None, reason)
            self._ledger.discard([report.id for report in deltas])
            logger.error("%d usage reports without an answer are dropped, as ON_UNCERTAIN says", len(deltas))
        else:
            self._ledger.doubt(deltas, self._config.settle_grace, reason)

    def _single_out(self, batch: Batch, error: StiggGuardError) -> None:
        """Finds the report for which a batch is refused: each is sent alone, and what is refused alone is set aside."""
        if len(batch.reports) > 1:
            self._ledger.split(batch)
            return
        self._ledger.bury(batch.reports[0], str(error))
        self.counts["refused"] += 1
        logger.error("the sidecar refuses usage of %s, which is set aside: %s", batch.reports[0].key, error)
