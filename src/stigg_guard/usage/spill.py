"""A spill queue in memory for usage that the ledger could not take: sent at once, or kept until something takes it."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from stigg_guard.clock import Clock, microseconds
from stigg_guard.errors import InvalidRequest, LedgerUnavailable, SidecarError, StiggGuardError
from stigg_guard.ledger import Acknowledged, Batch, Entry, Ledger, State, Use
from stigg_guard.runtime.log import logger
from stigg_guard.usage.sender import Sender

MAX_STRANDED = 10_000

T = TypeVar("T")


class StrandedUses:
    """A spill queue: uses that neither ledger nor sidecar takes, and steps of the ledger that it did not answer.

    Its length is the number of both. ``acknowledged`` is called with every use that was counted and the usage it led
    to. ``counts`` are the uses ``acknowledged``, ``rejected`` and ``doubted`` here.
    """

    def __init__(
        self, ledger: Ledger, sender: Sender, clock: Clock, acknowledged: Callable[[Acknowledged], None]
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._ledger = ledger
        self._sender = sender
        self._clock = clock
        self._acknowledged = acknowledged
        self._kept: deque[_KeptUse] = deque()
        self._repeats: deque[_Repeat] = deque()
        self._retrying = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept) + len(self._repeats)

    def rescue(self, uses: Sequence[Use], error: LedgerUnavailable) -> None:
        """Takes usage that the ledger could not: sends it now, or else keeps it."""
        if error.repeat is not None:
            logger.error("the ledger did not answer, and is asked again until it does: %s", error)
            self.repeat(error.repeat, error.repeatable, uses)
            return
        for use in uses:
            logger.error("the ledger cannot take usage of %r, so it is sent at once: %s", str(use.key), error)
            kept = _KeptUse(use, microseconds(self._clock.now()) * 1000)
            if not self._is_sent(kept):
                self._keep(kept)

    def repeat(self, step: Callable[[], object], seconds: float, uses: Sequence[Use]) -> None:
        """Makes a step of the ledger that may have been made already, and may be made again for this time."""
        what = ", ".join(f"{use.amount:g} of {str(use.key)!r}" for use in uses)
        self._repeats.append(_Repeat(step, self._clock.monotonic() + seconds, what))

    def retry(self) -> None:
        """Offers all of it again, oldest first. Each is offered alone: one that is not taken stops no other."""
        with self._retrying:  # or two threads would send the same use; only those that report wait here
            self._offer_each(self._repeats, self._is_repeated)
            self._offer_each(self._kept, self._is_taken)

    def _offer_each(self, queue: deque[T], is_done: Callable[[T], bool]) -> None:
        for waiting in list(queue):
            if is_done(waiting):
                queue.remove(waiting)

    def _keep(self, kept: _KeptUse) -> None:
        what = str(kept.use.key), kept.use.amount
        if len(self._kept) >= MAX_STRANDED:
            logger.critical("usage of %r is LOST: %g units that neither ledger nor sidecar takes", *what)
            return
        self._kept.append(kept)
        logger.critical("usage of %r is kept in memory only: %g units that neither ledger nor sidecar takes", *what)

    def _is_repeated(self, step: _Repeat) -> bool:
        if self._clock.monotonic() >= step.deadline:
            logger.critical("usage may be counted or LOST, since the ledger did not answer for too long: %s", step.what)
            self.counts["doubted"] += 1
            return True
        try:
            step.repeat()
        except StiggGuardError:
            return False
        return True

    def _is_taken(self, kept: _KeptUse) -> bool:
        if not kept.maybe_counted:
            with contextlib.suppress(LedgerUnavailable):
                self._ledger.record(kept.use)
                return True
            return self._is_sent(kept)
        try:
            may_repeat = self._sender.may_repeat(kept.batch.reports)
        except SidecarError:  # nobody says yet whether it may
            return False
        if may_repeat:
            return self._is_sent(kept)
        use = kept.use
        logger.critical("%g units of %r may be counted or LOST, and are not sent again", use.amount, str(use.key))
        self.counts["doubted"] += 1
        return True

    def _is_sent(self, kept: _KeptUse) -> bool:
        """Sends the use; whether the sidecar counted it, or rejected it for good."""
        try:
            (answer,) = self._sender.send(kept.batch)
        except InvalidRequest as error:
            logger.error("the sidecar rejects usage of %r, and no ledger can keep it: %s", str(kept.use.key), error)
            self.counts["rejected"] += 1
            return True
        except SidecarError as error:
            kept.maybe_counted |= error.outcome_unknown
            return False
        self.counts["acknowledged"] += 1
        self._acknowledged(answer)
        return True


class _Repeat(NamedTuple):
    """A step of the ledger that may have been made, and may be made again until ``deadline``."""

    repeat: Callable[[], object]
    deadline: float
    what: str


class _KeptUse:
    """A use that the ledger could not take, as the batch that reports it: the same however often it is sent."""

    def __init__(self, use: Use, used_at: int) -> None:
        self.use = use
        report = Entry("", State.UNSENT, use.key, use.amount, use.is_set, used_at, use.event, dimensions=use.dimensions)
        self.batch = Batch(secrets.token_hex(16), (report,))
        self.maybe_counted = False
