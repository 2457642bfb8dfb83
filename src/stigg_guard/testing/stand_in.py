"""Stands in for Stigg in tests: a plan for everybody, a ledger in memory, a clock that travels, what was reported."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from math import isclose
from time import sleep
from typing import Any, cast

from google.protobuf.message import Message

from stigg_guard.amounts import Amount
from stigg_guard.channel.statuses import error_of
from stigg_guard.checks.lookup import Lookup
from stigg_guard.client import Stigg
from stigg_guard.clock import Clock, utc_now
from stigg_guard.config import Config, ReportMode
from stigg_guard.entitlements import Customer
from stigg_guard.errors import ConfigError, SidecarTimeout
from stigg_guard.ledger import Acknowledged, Entry, ledger_from_url
from stigg_guard.observer import Audience, Observer
from stigg_guard.sidecar.faults import Fault, Faults, Injected, parse_faults
from stigg_guard.sidecar.one_plan import Given, OnePlan, parse_plan
from stigg_guard.usage.holds import Holds
from stigg_guard.usage.messages import usage_of
from stigg_guard.workings import Workings, stand_ins

FLUSH_SECONDS = 1.0
"""How long an assertion waits for work in another thread, such as a live server's, to end."""

SOURCE = "override_entitlements"
"""What messages about a wrong value begin with."""

_CONFIG = Config(report=ReportMode.INLINE, settle_grace=0.0)


@dataclass(frozen=True, slots=True)
class Report:
    """Usage that the sidecar would have got: ``amount`` units more, fewer when negative, the new total with
    ``is_set``. ``event`` is the name of the raw event that told it, if that was one."""

    customer: Customer
    feature: str
    amount: float
    is_set: bool
    at: datetime
    event: str | None = None

    def __str__(self) -> str:
        event = f" as the event {self.event}" if self.event else ""
        return f"{'= ' if self.is_set else ''}{self.amount:.15g} of {self.feature} by {self.customer}{event}"


class StandIn:
    """Stands in for Stigg while entitlements are overridden. Made by :func:`override_entitlements`.

    What it changes, it changes in the innermost override that is active, until that ends. It is thread-safe.
    """

    def __init__(self, given: Mapping[str, Given], outer: StandIn | None) -> None:
        self._time: _Time = _Time(outer._time.shift if outer is not None else timedelta())
        self._reports: _Reports = outer._reports if outer is not None else _Reports()
        self._first_report = len(self._reports.made)
        self._plan: OnePlan = OnePlan(given, outer._plan if outer is not None else None, self._time.now)
        self._answers: _Answers = _Answers(self._plan, outer._answers.faults if outer is not None else {})
        self._making = threading.Lock()
        self._begin_work()

    def set(self, entitlements: Mapping[str, Any]) -> None:
        """Changes what every customer has of these features; those not named stay as they are, with their usage.

        With ``usage`` each customer has used that much from now on.

        Raises:
            ConfigError: a value is wrong, or the override has ended.
        """
        given, innermost = parse_plan(entitlements, source=SOURCE), self._innermost()
        innermost._plan.change(given)
        for who in innermost._plan.everybody:
            innermost._lookup.cache.forget(Customer(who.customer, who.resource or None))

    def now(self) -> datetime:
        """The present instant: the real one, until :meth:`travel`."""
        return self._innermost()._time.now()

    def travel(self, time: timedelta) -> None:
        """Goes forward in time, or back. What is held at the departure does not count at the arrival."""
        innermost = self._innermost()
        with innermost._making:
            innermost._end_work()
            innermost._time.shift += time
            innermost._begin_work()

    def travel_to(self, instant: datetime) -> None:
        """Goes to an instant, which is in UTC unless it says otherwise; time goes on from there."""
        aware = instant if instant.tzinfo is not None else instant.replace(tzinfo=timezone.utc)
        self.travel(aware - self.now())

    def fault(self, *faults: str) -> None:
        """Makes answers late, refused or lost from now on, as ``stigg-guard sidecar --fault`` does; none ends that.

        ``"ReportUsage:error=UNAVAILABLE"``, ``"latency=2"`` for all methods, ``"ReportUsage:drop=0.5"``. Nobody sleeps
        for an answer that is later than its deadline.

        Raises:
            ConfigError: one of them is none, or the override has ended.
        """
        innermost, parsed = self._innermost(), parse_faults(" ".join(faults))
        innermost._answers.faults = parsed

    @property
    def reported(self) -> Sequence[Report]:
        """Returns what was reported since this override began, in inner ones too."""
        _flush()
        return tuple(self._reports.made[self._first_report :])

    def usage(self, feature: str, customer: str | Customer | None = None) -> float:
        """Returns how much of the feature was reported in total, by one customer or by all."""
        _flush()
        return self._total(feature, customer)

    def assert_usage_reported(self, feature: str, amount: Amount, *, customer: str | Customer | None = None) -> None:
        """Fails unless this much of the feature was reported in total, by one customer or by all.

        Work of other threads that holds units, such as a live server's, has a second to end.
        """

        def is_reported() -> bool:
            return isclose(self._total(feature, customer), amount, abs_tol=1e-9)

        _flush()
        if not self._reports.wait_until(is_reported, FLUSH_SECONDS if _held() else 0.0):
            raise AssertionError(self._difference(feature, float(amount), customer))

    def _workings(self, own: Workings) -> Workings:
        """What a guard works with instead of its own; how it confirms and whom it tells stay its own."""
        with self._making:
            if own.holds not in self._holds:
                audience = Audience(self._clock, _Recorder(self._record), others=own.holds.audience)
                self._holds[own.holds] = Holds(
                    _CONFIG, self._lookup, self._ledger, self._clock, own.holds.confirm, audience
                )
            return Workings(self._lookup, self._ledger, self._holds[own.holds])

    def _begin_work(self) -> None:
        self._clock = Clock(now=self._time.now)
        self._ledger = ledger_from_url("memory://", self._clock)
        self._lookup = Lookup(_CONFIG, self._clock, self._ledger, Stigg(answers=self._answers))
        self._holds: dict[Holds, Holds] = {}
        # A test's transaction is rolled back after the test: the ledger is there as long as anybody holds units in it.
        weakref.finalize(self._lookup, self._ledger.close)

    def _end_work(self) -> None:
        for holds in list(self._holds.values()):
            holds.close()

    def _flush(self) -> None:
        for holds in list(self._holds.values()):
            holds.reporter.flush(FLUSH_SECONDS)

    def _innermost(self) -> StandIn:
        if self not in _standing:
            raise ConfigError("this override of entitlements has ended: use it within its block, function or test")
        return _standing[-1]

    def _record(self, entry: Entry) -> None:
        event = entry.event.name if entry.event is not None else None
        customer = Customer(entry.key.customer_id, entry.key.resource_id or None)
        at = datetime.fromtimestamp(entry.used_at / 1e9, timezone.utc)
        self._reports.add(Report(customer, entry.key.feature_id, entry.amount, entry.is_set, at, event))
        if event is not None:  # Stigg's meters make usage of events; here it is as much as was used
            self._plan.answer("ReportUsage", usage_of(entry))

    def _total(self, feature: str, customer: str | Customer | None) -> float:
        asked = None if customer is None else Customer.of(customer)
        totals: dict[Customer, float] = {}
        for report in self._reports.made[self._first_report :]:
            if report.feature == feature and asked in (None, report.customer):
                before = 0.0 if report.is_set else totals.get(report.customer, 0.0)
                totals[report.customer] = before + report.amount
        return sum(totals.values())

    def _difference(self, feature: str, expected: float, customer: str | Customer | None) -> str:
        whose = f" by {customer}" if customer is not None else ""
        was = self._total(feature, customer)
        lines = [f"expected {expected:.15g} of {feature} to be reported{whose}, and {was:.15g} was; all reports are:"]
        lines += [f"  {report}" for report in self.reported] or ["  (none)"]
        if _held():
            lines.append(
                f"{_held()} held: the work goes on, or its transaction is not committed "
                "(in Django's TestCase that is what captureOnCommitCallbacks(execute=True) is for; in Flask a session "
                "lasts as long as the application context, of the test too)"
            )
        return "\n".join(lines)


class _Answers:
    """Answers as a plan does, with faults by method."""

    def __init__(self, plan: OnePlan, faults: Mapping[str, Fault]) -> None:
        self._plan = plan
        self.faults = faults

    @property
    def honours_keys(self) -> bool:
        return self._plan.honours_keys

    def answer(
        self, method: str, request: Message, *, timeout: float | None = None, idempotency_key: str | None = None
    ) -> Message:
        is_report = method.startswith("Report")

        def wait(seconds: float) -> None:
            if timeout is not None and seconds >= timeout:
                message = f"{method}: a fault on purpose is later than the deadline of {timeout:g} s"
                raise SidecarTimeout(message, code="DEADLINE_EXCEEDED", outcome_unknown=is_report)
            sleep(seconds)

        answer = Faults(self.faults, wait).wrap(method, self._plan.answer)
        try:
            return cast(Message, answer(method, request, timeout=timeout, idempotency_key=idempotency_key))
        except Injected as fault:
            raise error_of(fault, method, is_report=is_report, sent=True) from None

    def close(self) -> None:
        self._plan.close()


class _Time:
    """The real time, shifted."""

    def __init__(self, shift: timedelta) -> None:
        self.shift = shift

    def now(self) -> datetime:
        return utc_now() + self.shift


class _Reports:
    """What was reported, in the order of the answers."""

    def __init__(self) -> None:
        self.made: list[Report] = []
        self._one_more = threading.Condition()

    def add(self, report: Report) -> None:
        with self._one_more:
            self.made.append(report)
            self._one_more.notify_all()

    def wait_until(self, is_so: Callable[[], bool], seconds: float) -> bool:
        """Whether it is so, which further reports may bring about in this time."""
        with self._one_more:
            return self._one_more.wait_for(is_so, seconds)


class _Recorder(Observer):
    """Notes what is reported before the guard's own observer is told."""

    def __init__(self, record: Callable[[Entry], None]) -> None:
        self._record = record

    def reported(self, answer: Acknowledged) -> None:
        self._record(answer.report)


_standing: list[StandIn] = []
_beginning = threading.Lock()


@contextmanager
def standing_in(given: Mapping[str, Given]) -> Iterator[StandIn]:
    """Lets guards work with a stand-in, in which everybody has what is given, within the one that is active."""
    with _beginning:
        stand_in = StandIn(given, _standing[-1] if _standing else None)
        _standing.append(stand_in)
        stand_ins.append(stand_in._workings)
    try:
        yield stand_in
    finally:
        with _beginning:
            _standing.remove(stand_in)
            stand_ins.remove(stand_in._workings)
        stand_in._end_work()


def _flush() -> None:
    for stand_in in _standing:
        stand_in._flush()


def _held() -> int:
    return sum(stand_in._ledger.counts()["held"] for stand_in in _standing)
