"""Delivers reports, and notes the outcome of each: acknowledged, sent again, uncertain, or a dead letter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from stigg_guard.amounts import quanta_used
from stigg_guard.clock import Clock
from stigg_guard.config import Config, OnUncertain
from stigg_guard.errors import (
    InvalidRequest,
    NotSupported,
    SidecarError,
    SidecarUnauthenticated,
    SidecarUnavailable,
    StiggGuardError,
)
from stigg_guard.ledger import Acknowledged, Batch, Entry, Ledger, Period
from stigg_guard.ledger.accounting import was_counted
from stigg_guard.runtime.log import logger
from stigg_guard.usage.credits import paid
from stigg_guard.usage.messages import acknowledged
from stigg_guard.usage.sender import Sender

BATCH_SIZE = 100  # the contract's limit for one bulk report
LEASE_SECONDS = 30.0
RECHECK_SECONDS = 1.0
MAX_RESENDS = 5
CLOCK_SECONDS = 5.0
"""How long a report whose time is rejected waits: as long as a clock may take to be set right."""

ANSWERS_NOBODY = (SidecarUnavailable, SidecarUnauthenticated)
"""Errors that say nothing of one report: whoever asks, the sidecar takes no report, or not under this key."""

UNANSWERED = "it was sent and not answered, so it may have been counted"
REJECTED_TIME = "its time was rejected; it is sent again with a time that does not lie ahead of the clock"


class Delivery:
    """Sends the ledger's reports, notes the outcome of each, and decides those in doubt.

    ``acknowledged`` is called with every report that was counted and the usage it led to. ``counts`` are the reports
    ``acknowledged``, ``rejected`` and ``doubted`` here.
    """

    def __init__(
        self,
        ledger: Ledger,
        sender: Sender,
        config: Config,
        clock: Clock,
        acknowledged: Callable[[Acknowledged], None],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._ledger = ledger
        self._sender = sender
        self._config = config
        self._monotonic = clock.monotonic
        self._acknowledged = acknowledged
        self._size = BATCH_SIZE  # of the next batch
        self._has_answered = False  # since the last failure
        self._passed_over: Counter[str] = Counter()  # by batch: its failures since each of which others were answered

    def send_batch(self, timeout: float) -> tuple[Batch | None, SidecarError | None]:
        """Sends the next batch, waiting ``timeout`` seconds for its answer. None when there is nothing to send, and the
        error when the sidecar got it and did not tell the outcome; it comes again, and others are sent meanwhile.

        Whoever was paused between taking a batch and sending it for so long that somebody else may have it, sends
        nothing. After a batch without an answer single reports are sent first, and more with each answer: a report that
        is never answered does not keep others with it. What an exception from outside interrupts is due again at once.

        Raises:
            SidecarError: the sidecar does not answer, or takes nothing now; the batch stays in the ledger.
            LedgerUnavailable: the ledger cannot be read, or the outcome not be noted in it.
        """
        taken_at = self._monotonic()
        batch = self._ledger.take_batch(self._size, LEASE_SECONDS)
        if batch is None or self._monotonic() - taken_at + timeout > LEASE_SECONDS:
            return batch, None
        try:
            self._send(batch, timeout)
        except SidecarError as error:
            if isinstance(error, SidecarUnavailable) or not error.outcome_unknown:
                raise
            return batch, error
        except StiggGuardError:
            raise
        except BaseException:
            self._ledger.postpone(batch, 0)
            raise
        return batch, None

    def decide_uncertain(self) -> None:
        """Reconciles reports in doubt: the usage read back shows whether one was counted, unless others reported too.

        Each report is decided alone. One that cannot be decided is looked at again once, and then waits for a person.
        While the sidecar answers nobody, none loses its second look.

        Raises:
            SidecarError: the sidecar answers for none of them.
            LedgerUnavailable: the ledger can neither be read nor written.
        """
        taken_at = self._monotonic()
        unanswered: list[tuple[Entry, SidecarError]] = []
        reports = self._ledger.take_uncertain(BATCH_SIZE, LEASE_SECONDS)
        for report in reports:
            if self._monotonic() - taken_at + 2 * self._config.timeout > LEASE_SECONDS:
                return  # the others come again
            try:
                self._decide(report)
            except ANSWERS_NOBODY as error:
                unanswered.append((report, error))
            except (SidecarError, InvalidRequest) as error:
                self._look_again(report, f"the usage cannot be read back: {error}")
        if len(unanswered) == len(reports) > 0:
            self._ledger.doubt([report for report, _ in unanswered], RECHECK_SECONDS, reports[0].reason)
            raise unanswered[0][1]
        for report, fault in unanswered:
            self._look_again(report, f"the usage cannot be read back: {fault}")

    def _decide(self, report: Entry) -> None:
        answer = self._sender.read_back(report.key)
        if answer is None:
            self._look_again(report, "the sidecar tells no usage of this feature now")
            return
        told = acknowledged(report, answer)
        if answer.reset_period and told.period == Period():
            self._look_again(report, "the sidecar does not tell which period its figure is of")
            return
        row = self._ledger.known(report.key)
        usage = quanta_used(answer.current_usage)
        counted = was_counted(row, report.before, report.pending, usage, told.period)
        if counted:
            self._acknowledge([told])
        elif counted is not None:
            self._ledger.put_back([report])
            self._size = 1  # not with the one that kept it from being answered
        else:
            before = "unknown" if report.before is None else f"{report.before.used / 1e6:g}"
            self._look_again(report, f"the usage was {before} and is {answer.current_usage:g} now")

    def _look_again(self, report: Entry, finding: str) -> None:
        if report.reason == UNANSWERED:
            self._ledger.doubt([report], max(self._config.settle_grace, RECHECK_SECONDS), f"looked once: {finding}")
            return
        self._ledger.doubt([report], None, f"nobody knows whether it was counted: {finding}")
        logger.error("usage of %r waits for a decision (stigg-guard ledger list): %s", str(report.key), finding)

    def _send(self, batch: Batch, timeout: float) -> None:
        attempts = batch.reports[0].attempts
        came_again = attempts > 1  # it was sent, and nobody knows the outcome
        try:
            if came_again and not self._sender.may_repeat(batch.reports):
                self._doubt(batch.reports)
                return
            answers = self._sender.send(batch, timeout)
        except (InvalidRequest, NotSupported) as error:
            self._has_answered = True
            if came_again:  # it is turned away now, which does not say that it was when it was sent before
                self._doubt(batch.reports)
            else:
                self._single_out(batch, error)
            return
        except SidecarError as error:
            self._size = 1
            if not (error.outcome_unknown or came_again):
                self._ledger.put_back(batch.reports, self._wait_of(batch))
            elif self._is_left_out(batch, error) and attempts >= MAX_RESENDS:
                self._passed_over.pop(batch.id, None)
                self._doubt(batch.reports)  # it reaches the sidecar, and is not answered: each is decided alone
            else:
                self._ledger.postpone(batch, RECHECK_SECONDS)
            raise
        self._size = min(2 * self._size, BATCH_SIZE)
        self._has_answered = True
        self._passed_over.pop(batch.id, None)
        self._acknowledge(answers)

    def _is_left_out(self, batch: Batch, error: SidecarError) -> bool:
        """Notes that the batch failed. Whether the sidecar answers others: it did so between ``MAX_RESENDS`` failures
        of this one, or the error is none that whoever asks would get."""
        if self._has_answered:
            self._passed_over[batch.id] += 1
            self._has_answered = False
        return not isinstance(error, ANSWERS_NOBODY) or self._passed_over[batch.id] >= MAX_RESENDS

    def _wait_of(self, batch: Batch) -> float:
        """How long a batch that was turned away waits: others that wait, and may be taken, go before one alone."""
        return RECHECK_SECONDS if len(batch.reports) == 1 and self._ledger.counts()["unsent"] else 0.0

    def _acknowledge(self, answers: Sequence[Acknowledged]) -> None:
        answers = [replace(one, paid=paid(one.report)) if one.report.rate else one for one in answers]
        self._ledger.acknowledge(answers)
        self.counts["acknowledged"] += len(answers)
        for answer in answers:
            self._acknowledged(answer)

    def _doubt(self, reports: Sequence[Entry]) -> None:
        """Sends totals and events again; for other reports in doubt ``ON_UNCERTAIN`` decides."""
        self._ledger.put_back([report for report in reports if report.is_set or report.event])
        deltas = [report for report in reports if not (report.is_set or report.event)]
        self.counts["doubted"] += len(deltas)
        if self._config.on_uncertain is OnUncertain.DROP:
            self._ledger.doubt(deltas, None, UNANSWERED)
            self._ledger.discard([report.id for report in deltas])
            logger.error("%d usage reports without an answer are dropped, as ON_UNCERTAIN says", len(deltas))
        else:
            self._ledger.doubt(deltas, self._config.settle_grace, UNANSWERED)

    def _single_out(self, batch: Batch, error: StiggGuardError) -> None:
        """Finds the report for which a batch is rejected: each is sent alone, and is a dead letter if it is
        rejected alone. A time that is rejected may be that of a clock that was wrong, which has one more chance."""
        if len(batch.reports) > 1:
            self._ledger.split(batch)
            return
        (report,) = batch.reports
        if isinstance(error, InvalidRequest) and _names_time(error) and report.reason != REJECTED_TIME:
            self._ledger.put_back([report], CLOCK_SECONDS, REJECTED_TIME)
            logger.error("the time of usage of %r is rejected: is this host's clock right? %s", str(report.key), error)
            return
        self._ledger.bury(report, str(error))
        self.counts["rejected"] += 1
        logger.error("the sidecar rejects usage of %r, which is set aside: %s", str(report.key), error)


def _names_time(error: InvalidRequest) -> bool:
    return error.field.rpartition(".")[2] == "timestamp"
