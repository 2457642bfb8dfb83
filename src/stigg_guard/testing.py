"""Overrides entitlements in tests: customers have what the test says, and no sidecar runs.

::

    with override_entitlements({"feature-sso": True, "feature-templates": {"limit": 3}}) as stigg:
        create_template()
        assert stigg.usage("feature-templates") == 1

Named in ``pytest_plugins`` it is a plugin with the fixtures ``stigg`` and ``assert_usage_reported``. A conftest may
import from it first, so pytest must not want to rewrite its assertions: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import sys
import threading
import unittest
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import wraps
from inspect import getattr_static, isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from math import isclose
from types import FunctionType
from typing import Any, TypeVar, cast

from stigg_guard.amounts import Amount
from stigg_guard.client import Stigg
from stigg_guard.clock import Clock, utc_now
from stigg_guard.config import Config, ReportMode
from stigg_guard.entitlements import Customer
from stigg_guard.errors import ConfigError, FeatureDenied, RealLedgerWarning
from stigg_guard.guard import Workings, work_with
from stigg_guard.ledger import Acknowledged, Entry, ledger_from_url
from stigg_guard.lookup import Lookup
from stigg_guard.observer import Observer
from stigg_guard.sidecar.one_plan import Given, OnePlan, parse_plan
from stigg_guard.usage.holds import Holds
from stigg_guard.usage.messages import usage_of

__all__ = ["Override", "RealLedgerWarning", "Report", "StandIn", "override_entitlements"]

T = TypeVar("T", bound=Callable[..., Any])

FLUSH_SECONDS = 1.0
"""How long an assertion waits for work in another thread, such as a live server's, to end."""

_CONFIG = Config(report=ReportMode.INLINE, settle_grace=0.0)
_GIVEN = "_stigg_guard_entitlements"
_MARKS_OF_FIXTURES = ("_fixture_function_marker", "_pytestfixturefunction")  # of pytest 8.4, and of those before it


def override_entitlements(entitlements: Mapping[str, Any]) -> Override:
    """Overrides what every customer has, by feature id, for a block, a function or each test of a class.

    A value is what a catalog says of a plan's entitlement: ``True``; ``{"value": 100}``, or just the number;
    ``{"values": ["eu"]}``, or just the list; ``{"limit": 6}`` or ``{"unlimited": True}``, with ``reset``, ``soft`` and
    the ``usage`` that each customer has to begin with. ``False`` is a feature that the plan lacks, as are those that
    are not named. Currencies are not among them: nobody has credits.

    Meanwhile every guard of the process, in all threads, answers from this, whatever its configuration says, reports
    before it returns, and asks no sidecar; what its transactions and its observer decide, they do. Overrides within
    one another are merged, and the inner one wins; when that ends, usage and time are as they were before it.

    Raises:
        ConfigError: a value is wrong; the message names every one.
    """
    return Override(parse_plan(entitlements, source=override_entitlements.__name__))


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
        self._making = threading.Lock()
        self._begin_work()

    def set(self, entitlements: Mapping[str, Any]) -> None:
        """Changes what every customer has of these features; those not named stay as they are, with their usage.

        With ``usage`` each customer has used that much from now on.

        Raises:
            ConfigError: a value is wrong, or the override has ended.
        """
        given, innermost = parse_plan(entitlements, source=override_entitlements.__name__), self._innermost()
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
                observer = _Recorder(own.holds.observer, self._record)
                self._holds[own.holds] = Holds(
                    _CONFIG, self._lookup, self._ledger, self._clock, own.holds.confirm, observer
                )
            return Workings(self._lookup, self._ledger, self._holds[own.holds])

    def _begin_work(self) -> None:
        self._clock = Clock(now=self._time.now)
        self._ledger = ledger_from_url("memory://", self._clock)
        self._lookup = Lookup(_CONFIG, self._clock, self._ledger, Stigg(answers=self._plan))
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


class Override:
    """An override that is still to begin: a context manager, and a decorator of functions and of test classes.

    A class is a ``unittest.TestCase``, all of whose tests run within it, ``setUp`` and ``tearDown`` included, or a
    plain one, of whose methods those named ``test…`` do.
    """

    def __init__(self, given: Mapping[str, Given]) -> None:
        self._given = given
        self._entered: list[AbstractContextManager[StandIn]] = []

    def __enter__(self) -> StandIn:
        self._entered.append(_standing_in(self._given))
        return self._entered[-1].__enter__()

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)

    def __call__(self, decorated: T) -> T:
        """The function or the class, to run within the override.

        Raises:
            ConfigError: it is a generator function, whose body runs when the call is over, or a class without tests.
        """
        if isinstance(decorated, type):
            _decorate_class(decorated, self._given)
            return decorated
        return _within(lambda *_: _standing_in(self._given), decorated)


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

    def __init__(self, observer: Observer, record: Callable[[Entry], None]) -> None:
        self._observer = observer
        self._record = record

    def denied(self, error: FeatureDenied) -> None:
        self._observer.denied(error)

    def reported(self, answer: Acknowledged) -> None:
        self._record(answer.report)
        self._observer.reported(answer)


_standing: list[StandIn] = []
_beginning = threading.Lock()


@contextmanager
def _standing_in(given: Mapping[str, Given]) -> Iterator[StandIn]:
    with _beginning:
        stand_in = StandIn(given, _standing[-1] if _standing else None)
        _standing.append(stand_in)
        work_with(stand_in._workings)
    try:
        yield stand_in
    finally:
        with _beginning:
            _standing.remove(stand_in)
            work_with(_standing[-1]._workings if _standing else None)
        stand_in._end_work()


def _flush() -> None:
    for stand_in in _standing:
        stand_in._flush()


def _held() -> int:
    return sum(stand_in._ledger.counts()["held"] for stand_in in _standing)


def _within(begin: Callable[..., AbstractContextManager[StandIn]], function: T) -> T:
    """The function, within what ``begin`` makes of a call's arguments."""
    if any(hasattr(function, mark) for mark in _MARKS_OF_FIXTURES):
        raise ConfigError(
            f"override_entitlements stands above the fixture {function.__name__} and would hide it: put "
            "'with override_entitlements(…):' into it"
        )
    if isgeneratorfunction(function) or isasyncgenfunction(function):
        raise ConfigError(
            f"{function.__qualname__} is a generator, which runs after its call: put "
            "'with override_entitlements(…):' into it"
        )

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        with begin(*args):
            return function(*args, **kwargs)

    @wraps(function)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        with begin(*args):
            return await function(*args, **kwargs)

    return cast(T, awaited if iscoroutinefunction(function) else called)


def _decorate_class(decorated: type, given: Mapping[str, Given]) -> None:
    """Puts the class's tests within the override: those of the classes it derives from too, on top of their own."""
    setattr(decorated, _GIVEN, {**getattr(decorated, _GIVEN, {}), **given})
    names = ("run", "debug") if issubclass(decorated, unittest.TestCase) else _test_methods(decorated)
    if not names:
        raise ConfigError(f"{decorated.__name__} has no test methods: decorate the class that has them")
    for name in names:
        method = getattr_static(decorated, name)
        function = getattr(method, "__func__", method)
        if isinstance(method, staticmethod):  # it is not told of which class it is the test
            own = getattr(function, "__wrapped__", function) if hasattr(function, _GIVEN) else function
            setattr(decorated, name, staticmethod(_marked(_within(lambda *_: _standing_in(_given(decorated)), own))))
        elif not hasattr(function, _GIVEN):
            within = _marked(_within(lambda test, *_: _standing_in(_given(test)), function))
            setattr(decorated, name, within if method is function else classmethod(within))


def _given(test: Any) -> Mapping[str, Given]:
    """What the class of a test, or the class itself, is decorated with."""
    given: Mapping[str, Given] = getattr(test, _GIVEN)
    return given


def _marked(within: T) -> T:
    """The test, which is not decorated again where it is inherited."""
    setattr(within, _GIVEN, True)
    return within


def _test_methods(decorated: type) -> Sequence[str]:
    names = [name for name in dir(decorated) if name.startswith("test")]
    kinds = (FunctionType, staticmethod, classmethod)
    return [name for name in names if isinstance(getattr_static(decorated, name), kinds)]


if "pytest" in sys.modules:  # who runs tests by other means needs no pytest
    import pytest

    @pytest.fixture
    def stigg() -> Iterator[StandIn]:
        """An override of all entitlements, in which customers have nothing but what the test gives them."""
        with override_entitlements({}) as stand_in:
            yield stand_in

    @pytest.fixture
    def assert_usage_reported(stigg: StandIn) -> Callable[..., None]:
        """``assert_usage_reported("feature-id", 2, customer="customer-id")``"""
        return stigg.assert_usage_reported
