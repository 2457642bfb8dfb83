"""Delivers reports, and notes the outcome of each: acknowledged, sent again, uncertain, or a dead letter."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from stigg_guard.amounts import quanta_used
from stigg_guard.clock import Clock
from stigg_guard.config import Config, OnUncertain
from stigg_guard.errors import (
    InvalidRequest,
    NotSupported,
    SidecarError,
    SidecarTimeout,
    SidecarUnauthenticated,
    SidecarUnavailable,
    StiggGuardError,
)
from stigg_guard.ledger import Acknowledged, Batch, Entry, Ledger, Period
from stigg_guard.ledger.accounting import BATCH_EVENTS_PER_USAGE, was_counted
from stigg_guard.runtime.log import logger
from stigg_guard.usage.credits import paid
from stigg_guard.usage.messages import acknowledged
from stigg_guard.usage.sender import Sender

BATCH_SIZE = 100  # the contract's limit for one bulk report
LEASE_SECONDS = 30.0
RECHECK_SECONDS = 1.0
MAX_RESENDS = 5
FAILURES_IN_A_ROW = 4
"""After so many different batches the sidecar is taken to answer nobody."""
MAX_TRIES = 20  # of a batch, where no other is there to show whether the sidecar answers
CLOCK_SECONDS = 5.0
"""How long a report whose time is rejected waits: as long as a clock may take to be set right."""

LONGEST_WAITS = 8.0, 60.0
"""How many seconds a report waits that fails again and again: twice as long each time, up to the first; and twice as
long as all that fail took, so that half of the time is for others, up to the second."""

ANSWERS_NOBODY = (SidecarUnavailable, SidecarUnauthenticated, NotSupported)
"""Errors that say nothing of one report: whoever asks, the sidecar takes no report, or not under this key. Behind a
proxy without a route all calls are UNIMPLEMENTED."""

UNANSWERED = "it was sent and not answered, so it may have been counted"
ALONE = "it goes alone: a batch that it was in was not answered"
REJECTED_TIME = "its time was rejected; it is sent again with a time that does not lie ahead of the clock"


class _Failing(NamedTuple):
    """How often something failed, how many seconds it took the last time, and when that was."""

    tries: int
    took: float
    at: float


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
        self._failing: dict[str, _Failing] = {}  # what failed lately, by its first report
        self._has_answered = False

    def send_batch(self, timeout: float) -> tuple[Batch | None, SidecarError | None]:
        """Sends the next batch, waiting ``timeout`` seconds for its answer. None when there is nothing to send, and the
        error when the sidecar did not take it; it comes again, and others are sent meanwhile.

        Whoever was paused between taking a batch and sending it for so long that somebody else may have it, sends
        nothing. After a batch without an answer single reports are sent first, and more with each answer: a report that
        is never answered does not keep others with it. What an exception from outside interrupts is due again at once.

        Raises:
            SidecarUnavailable: the sidecar cannot be reached; the batch stays in the ledger.
            LedgerUnavailable: the ledger cannot be read, or the outcome not be noted in it.
        """
        taken_at, batch = self._monotonic(), None
        try:
            batch = self._ledger.take_batch(self._size, LEASE_SECONDS)
            if batch is None or self._monotonic() - taken_at + timeout > LEASE_SECONDS:
                return batch, None
            return batch, self._send(batch, timeout)
        except StiggGuardError:
            raise
        except BaseException:
            if batch is not None:
                self._ledger.postpone(batch, 0)
            raise

    def decide_uncertain(self, timeout: float = LEASE_SECONDS) -> None:
        """Reconciles reports in doubt: the usage read back shows whether one was counted, unless others reported too.

        Each report is decided alone. One that cannot be decided is looked at again once, and then waits for a person.
        While the sidecar answers nobody, none loses its second look. After ``timeout`` seconds none is begun.

        Raises:
            LedgerUnavailable: the ledger can neither be read nor written.
        """
        latest = self._monotonic() + min(timeout, LEASE_SECONDS - 2 * self._config.timeout)
        waiting = list(self._ledger.take_uncertain(BATCH_SIZE, LEASE_SECONDS))
        unanswered: list[tuple[Entry, SidecarError, float]] = []
        failed = 0  # in a row
        while waiting and failed < FAILURES_IN_A_ROW and self._monotonic() <= latest:
            report, began = waiting.pop(0), self._monotonic()
            try:
                self._decide(report)
                self._failing.pop(report.id, None)
                failed = 0
            except ANSWERS_NOBODY as error:
                unanswered.append((report, error, self._wait(report, self._monotonic() - began)))
                failed += 1
            except (SidecarError, InvalidRequest) as error:
                self._look_again(report, f"the usage cannot be read back: {error}")
                failed = 0
        for report in waiting:
            self._ledger.doubt([report], 0.0, report.reason)
        for report, fault, wait in unanswered:
            if failed == len(unanswered):
                self._ledger.doubt([report], wait, report.reason)
            else:
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
            self._ledger.put_back([report], reason=ALONE)
        else:
            before = "unknown" if report.before is None else f"{report.before.used / 1e6:g}"
            self._look_again(report, f"the usage was {before} and is {answer.current_usage:g} now")

    def _look_again(self, report: Entry, finding: str) -> None:
        if report.reason == UNANSWERED:
            self._ledger.doubt([report], max(self._config.settle_grace, RECHECK_SECONDS), f"looked once: {finding}")
            return
        self._ledger.doubt([report], None, f"nobody knows whether it was counted: {finding}")
        logger.error("usage of %r waits for a decision (stigg-guard ledger list): %s", str(report.key), finding)

    def _send(self, batch: Batch, timeout: float) -> SidecarError | None:
        came_again = batch.reports[0].attempts > 1  # it was sent, and nobody knows the outcome
        if not came_again and len(batch.reports) > 1 and any(report.reason == ALONE for report in batch.reports):
            self._ledger.split(batch)
            return None
        began = self._monotonic()
        try:
            if came_again and not self._sender.may_repeat(batch.reports):
                self._doubt(batch.reports)
                return None
        except SidecarError as error:
            self._ledger.postpone(batch, self._wait(batch.reports[0], self._monotonic() - began))
            return error
        try:
            answers = self._sender.send(batch, timeout)
        except InvalidRequest as error:
            if came_again:  # it is turned away now, which does not say that it was when it was sent before
                self._doubt(batch.reports)
            else:
                self._single_out(batch, error)
            return None
        except SidecarError as error:
            if isinstance(error, NotSupported) and len(batch.reports) > 1 and not came_again:
                self._ledger.split(batch)  # it may know no bulk
                return None
            self._size = 1
            self._keep(batch, error, came_again, self._monotonic() - began)
            if isinstance(error, SidecarUnavailable) and not error.outcome_unknown:
                raise
            return error
        self._size = min(2 * self._size, BATCH_SIZE)
        self._has_answered = True
        self._failing.pop(batch.reports[0].id, None)
        self._acknowledge(answers)
        return None

    def _keep(self, batch: Batch, error: SidecarError, came_again: bool, took: float) -> None:
        """Keeps a batch that the sidecar did not take in so many seconds, so that it keeps no other from being sent."""
        is_one = len(batch.reports) == 1
        wait = self._wait(batch.reports[0], took, grows=is_one)
        if not is_one and batch.reports[0].event is not None:
            self._take_apart(batch)
        elif not (error.outcome_unknown or came_again):
            others_wait = is_one and self._ledger.counts()["unsent"] > 0
            self._ledger.put_back(batch.reports, wait if others_wait else 0.0)
        elif is_one:
            self._ledger.postpone(batch, wait)
        elif self._answers_others(batch, error) and batch.reports[0].attempts >= MAX_RESENDS:
            self._doubt(batch.reports)  # one of them is not answered: each is decided alone
        else:
            self._ledger.postpone(batch, wait)

    def _answers_others(self, batch: Batch, error: SidecarError) -> bool:
        """Whether it is for this batch alone that the sidecar does not answer: it has answered others since the last
        failure of one, or answers a question after many tries."""
        has_answered, self._has_answered = self._has_answered, False
        if not isinstance(error, ANSWERS_NOBODY) or has_answered:
            return True
        if batch.reports[0].attempts < (MAX_RESENDS if isinstance(error, SidecarTimeout) else MAX_TRIES):
            return False
        try:
            self._sender.read_back(random.choice(batch.reports).key)  # noqa: S311 - any of them, and another next time
        except ANSWERS_NOBODY:
            return False
        except (SidecarError, InvalidRequest):
            return True
        return True

    def _take_apart(self, batch: Batch) -> None:
        """Events count once however often they are sent: fewer are sent at once, and then each alone."""
        if len(batch.reports) > BATCH_EVENTS_PER_USAGE:
            self._ledger.put_back(batch.reports)
        else:
            self._ledger.split(batch)

    def _wait(self, first: Entry, took: float, *, grows: bool = True) -> float:
        """How long a batch, by its first report, or a report in doubt waits that has failed once more, and took so many
        seconds for it: others go before it."""
        now, (longest, longest_of_all) = self._monotonic(), LONGEST_WAITS
        failing = {one: known for one, known in list(self._failing.items()) if now - known.at < 2 * longest_of_all}
        tries = failing[first.id].tries if first.id in failing else 0
        failing[first.id] = _Failing(tries + 1, took, now)
        self._failing = failing
        growing = min(RECHECK_SECONDS * 2.0 ** min(tries, 10), longest) if grows else RECHECK_SECONDS
        return max(growing, min(2 * sum(known.took for known in failing.values()), longest_of_all))

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

    def _single_out(self, batch: Batch, error: InvalidRequest) -> None:
        """Finds the report for which a batch is rejected: each is sent alone, and is a dead letter if it is
        rejected alone. A time that is rejected may be that of a clock that was wrong, which has one more chance."""
        if len(batch.reports) > 1:
            self._ledger.split(batch)
            return
        (report,) = batch.reports
        if _names_time(error) and report.reason != REJECTED_TIME:
            self._ledger.put_back([report], CLOCK_SECONDS, REJECTED_TIME)
            logger.error("the time of usage of %r is rejected: is this host's clock right? %s", str(report.key), error)
            return
        self._ledger.bury(report, str(error))
        self.counts["rejected"] += 1
        logger.error("the sidecar rejects usage of %r, which is set aside: %s", str(report.key), error)


def _names_time(error: InvalidRequest) -> bool:
    return error.field.rpartition(".")[2] == "timestamp"
