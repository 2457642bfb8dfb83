"""The reporter between a real ledger and a real sidecar, with faults on the way between them."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from conftest import ManualClock
from stigg_guard import Config, FeatureDenied, GetMeteredEntitlementRequest, Guard, ReportUsageRequest, SidecarError
from stigg_guard.ledger import UsageKey, Use
from stigg_guard.sidecar.catalog import parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import KEYS_HONOURED, METHODS, SERVICE, TELLS_OF_KEYS

CATALOG = """
[features.f]
type = "metered"
meter = "fluctuating"
[features.g]
type = "metered"
meter = "fluctuating"
[plans.p.entitlements]
f = { limit = 100 }
g = { limit = 100 }
[customers.c]
plan = "p"
"""


class FaultySidecar:
    """A real gRPC server over a real engine. ``before`` and ``after`` run around each report, and may abort it."""

    def __init__(self, clock: ManualClock) -> None:
        self.engine = Engine(parse_catalog(CATALOG), Store(None), now=clock.now)
        self.before: Callable[[grpc.ServicerContext], None] = lambda _: None
        self.after: Callable[[grpc.ServicerContext], None] = lambda _: None
        self.asked: list[tuple[str, str | None]] = []
        self.without: set[str] = set()
        self.honours_keys = True  # the local sidecar does; Stigg's own does not
        self._server = grpc.server(ThreadPoolExecutor(4))
        handlers = {name: self._handler(name) for name in METHODS}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def used(self, feature: str = "f") -> float:
        request = GetMeteredEntitlementRequest(customer_id="c", feature_id=feature)
        answer: Any = self.engine.answer("GetMeteredEntitlement", request)
        return float(answer.entitlement.current_usage)

    def stop(self) -> None:
        self._server.stop(0).wait()

    def _handler(self, name: str) -> Any:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            if name in self.without:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")
            if self.honours_keys and name in TELLS_OF_KEYS:
                context.set_trailing_metadata((KEYS_HONOURED,))
            if not name.startswith("Report"):
                return self.engine.answer(name, request)
            key = dict(context.invocation_metadata()).get("idempotency-key")
            self.asked.append((name, key))
            self.before(context)
            answer = self.engine.answer(name, request, idempotency_key=key if self.honours_keys else None)
            self.after(context)
            return answer

        method = METHODS[name]
        return grpc.unary_unary_rpc_method_handler(handle, method.request.FromString, method.response.SerializeToString)


@pytest.fixture
def faulty(clock: ManualClock) -> Iterator[FaultySidecar]:
    server = FaultySidecar(clock)
    yield server
    server.stop()


@pytest.fixture
def guard(faulty: FaultySidecar, clock: ManualClock) -> Iterator[Guard]:
    with Guard(Config(sidecar=faulty.address), clock=clock.clock) as made:
        yield made


def attempt(guard: Guard) -> None:
    """One round of the reporter's work, in this thread and without a bound on its time."""
    with suppress(SidecarError):
        guard._book.reporter._work()


def abort(code: grpc.StatusCode) -> Callable[[grpc.ServicerContext], None]:
    return lambda context: context.abort(code, "on purpose")


def test_sends_many_uses_in_one_bulk(guard: Guard, faulty: FaultySidecar) -> None:
    release = threading.Event()
    faulty.before = lambda _: assert_true(release.wait(10))
    for feature in ("f", "g", "f", "g"):
        guard.report(feature, 1, customer="c")
    release.set()
    assert guard.flush() == 0
    assert (faulty.used("f"), faulty.used("g")) == (2, 2)
    assert len(faulty.asked) <= 3


def test_a_report_that_was_counted_but_not_answered_counts_once(
    guard: Guard, faulty: FaultySidecar, clock: ManualClock
) -> None:
    faulty.after = abort(grpc.StatusCode.INTERNAL)
    guard.report("f", 3, customer="c")
    attempt(guard)
    assert faulty.used() == 3
    faulty.after = lambda _: None
    clock.advance(60)
    assert guard.flush() == 0
    assert faulty.used() == 3
    assert len({key for _, key in faulty.asked}) == 1


def test_counts_against_the_limit_until_it_is_acknowledged(
    guard: Guard, faulty: FaultySidecar, clock: ManualClock
) -> None:
    faulty.after = abort(grpc.StatusCode.INTERNAL)
    with guard.consume("f", 60, customer="c"):
        pass
    attempt(guard)
    clock.advance(31)
    with pytest.raises(FeatureDenied), guard.consume("f", 60, customer="c"):
        pytest.fail("oversold")
    with guard.consume("f", 40, customer="c"):
        pass
    faulty.after = lambda _: None
    clock.advance(60)
    assert guard.flush() == 0
    assert faulty.used() == 100


class TestUncertainReports:
    """Against a sidecar that, like Stigg's own, knows no idempotency key."""

    @pytest.fixture(params=["counted", "lost"])
    def faulty(self, request: pytest.FixtureRequest, faulty: FaultySidecar) -> FaultySidecar:
        """A sidecar that does not answer a report, which it has counted, or has not."""
        faulty.honours_keys = False
        fault = abort(grpc.StatusCode.INTERNAL)
        if request.param == "counted":
            faulty.after = fault
        else:
            faulty.before = fault
        return faulty

    @pytest.fixture
    def make(self, faulty: FaultySidecar, clock: ManualClock) -> Iterator[Callable[..., Guard]]:
        """Makes a guard and lets it report 3 units, whose outcome stays unknown."""
        made: list[Guard] = []

        def make(**settings: str) -> Guard:
            guard = Guard(Config.from_mapping({"SIDECAR": faulty.address, **settings}), clock=clock.clock)
            made.append(guard)
            with guard.consume("f", 3, customer="c"):
                pass
            attempt(guard)
            faulty.before = faulty.after = lambda _: None
            return guard

        yield make
        for guard in made:
            guard.close()

    def settled(self, guard: Guard, clock: ManualClock) -> None:
        for _ in range(3):
            clock.advance(60)
            attempt(guard)

    def test_are_reconciled_by_reading_the_usage_back(
        self, make: Callable[..., Guard], faulty: FaultySidecar, clock: ManualClock
    ) -> None:
        guard = make()
        self.settled(guard, clock)
        assert faulty.used() == 3
        assert (guard.stats()["uncertain"], guard.stats()["unsent"], guard.stats()["sending"]) == (0, 0, 0)

    def test_stay_visible_when_the_figures_do_not_tell(
        self, make: Callable[..., Guard], faulty: FaultySidecar, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        guard = make()
        other = ReportUsageRequest(customer_id="c", feature_id="f", value=10)
        faulty.engine.answer("ReportUsage", other)
        self.settled(guard, clock)
        assert guard.ledger.counts()["uncertain"] == 1
        assert "waits for a decision" in caplog.text
        before = faulty.used()
        with guard.consume("f", 1, customer="c"):
            pass
        assert guard.flush() == 0
        assert faulty.used() == before + 1

    def test_are_sent_again_if_told_so(
        self, make: Callable[..., Guard], faulty: FaultySidecar, clock: ManualClock
    ) -> None:
        counted = faulty.used
        guard = make(ON_UNCERTAIN="resend")
        before = counted()
        self.settled(guard, clock)
        assert counted() == before + 3

    def test_are_dropped_if_told_so(
        self, make: Callable[..., Guard], faulty: FaultySidecar, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        guard = make(ON_UNCERTAIN="drop")
        before = faulty.used()
        self.settled(guard, clock)
        assert faulty.used() == before
        assert guard.ledger.counts()["uncertain"] == 0
        assert "are dropped" in caplog.text


def test_a_report_that_was_certainly_not_counted_is_sent_again(guard: Guard, faulty: FaultySidecar) -> None:
    faulty.before = abort(grpc.StatusCode.RESOURCE_EXHAUSTED)
    guard.report("f", 3, customer="c")
    attempt(guard)
    assert guard.stats()["unsent"] == 1
    faulty.before = lambda _: None
    assert guard.flush() == 0
    assert faulty.used() == 3


def test_sends_one_by_one_to_a_sidecar_that_knows_no_bulk(guard: Guard, faulty: FaultySidecar) -> None:
    faulty.without = {"ReportUsageBulk"}
    ledger = guard.ledger
    for feature in ("f", "g"):
        ledger.record(Use(UsageKey("c", "", feature), 2))
    assert guard.flush() == 0
    assert (faulty.used("f"), faulty.used("g")) == (2, 2)
    assert {name for name, _ in faulty.asked} == {"ReportUsage"}


def test_says_once_that_usage_waits_and_goes_on_by_itself(
    guard: Guard, faulty: FaultySidecar, caplog: pytest.LogCaptureFixture
) -> None:
    tried, back = threading.Semaphore(0), threading.Event()

    def down(context: grpc.ServicerContext) -> None:
        tried.release()
        if not back.is_set():
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "not now")

    faulty.before = down
    with caplog.at_level(logging.WARNING, "stigg_guard"):
        guard.report("f", 1, customer="c")
        for _ in range(2):
            assert tried.acquire(timeout=10)
        back.set()
        assert tried.acquire(timeout=10)
        assert guard.flush(timeout=10) == 0
    assert len([record for record in caplog.records if "stays in the ledger" in record.message]) == 1
    assert faulty.used() == 1


def test_inline_reporting_that_fails_leaves_the_work_done_and_the_usage_in_the_ledger(
    faulty: FaultySidecar, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.before = abort(grpc.StatusCode.RESOURCE_EXHAUSTED)
    config = Config.from_mapping({"SIDECAR": faulty.address, "REPORT": "inline"})
    with Guard(config, clock=clock.clock) as guard:
        with guard.consume("f", 2, customer="c"):
            pass
        assert "stays in the ledger" in caplog.text
        faulty.before = lambda _: None
        assert guard.flush(timeout=10) == 0
    assert faulty.used() == 2


def test_what_is_unsent_at_exit_is_sent_before_the_process_ends(faulty: FaultySidecar) -> None:
    program = (
        "import sys; from stigg_guard import Config, Guard\n"
        "guard = Guard(Config(sidecar=sys.argv[1]))\n"
        "guard.report('f', 4, customer='c')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, faulty.address], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert faulty.used() == 4


def test_what_cannot_be_sent_at_exit_is_told() -> None:
    program = (
        "from stigg_guard import Config, Guard\n"
        "guard = Guard(Config(sidecar='127.0.0.1:1'))\n"
        "guard.report('f', 4, customer='c')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "1 usage reports were not sent when the process ended" in done.stderr


def test_a_greenlet_waits_without_stopping_the_others(faulty: FaultySidecar) -> None:
    program = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import sys, gevent; from stigg_guard import Config, Guard\n"
        "guard = Guard(Config(sidecar=sys.argv[1]))\n"
        "ran = []\n"
        "def other():\n"
        "    while not ran.append(1): gevent.sleep(0)\n"
        "gevent.spawn(other)\n"
        "jobs = [gevent.spawn(guard.check, 'f', customer='c') for _ in range(5)]\n"
        "gevent.joinall(jobs, timeout=20, raise_error=True)\n"
        "with guard.consume('f', 2, customer='c'): pass\n"
        "left = guard.flush(timeout=20)\n"
        "print(all(job.value for job in jobs), len(ran) > 10, left)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, faulty.address], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "True True 0\n", done.stderr
    assert faulty.used() == 2


@contextmanager
def damaged(ledger: Path) -> Iterator[None]:
    """While it lasts, the ledger's file lacks a table."""
    with closing(sqlite3.connect(ledger)) as file:
        file.execute("ALTER TABLE entry RENAME TO lost")
        yield
        file.execute("ALTER TABLE lost RENAME TO entry")


def no_fault(_context: grpc.ServicerContext) -> None:
    """Lets the report through."""


def assert_true(value: bool) -> None:
    assert value


class TestWithoutLedger:
    """Usage that a damaged ledger does not take, and whose report is not answered either."""

    @pytest.fixture
    def ledger(self, tmp_path: Path) -> Path:
        return tmp_path / "ledger.sqlite3"

    @pytest.fixture
    def make(self, faulty: FaultySidecar, clock: ManualClock, ledger: Path) -> Iterator[Callable[..., Guard]]:
        """Makes a guard and lets it report 3 units, which are counted; it is not told so."""
        made: list[Guard] = []

        def make(**settings: str) -> Guard:
            given = {"SIDECAR": faulty.address, "LEDGER": f"sqlite:///{ledger}", **settings}
            guard = Guard(Config.from_mapping(given), clock=clock.clock)
            made.append(guard)
            faults = iter([abort(grpc.StatusCode.INTERNAL)])
            faulty.after = lambda context: next(faults, no_fault)(context)
            guard.reload("c")
            with damaged(ledger):
                guard.report("f", 3, customer="c")
            return guard

        yield make
        for guard in made:
            guard.close()

    def test_counts_once_where_keys_are_honoured(self, make: Callable[..., Guard], faulty: FaultySidecar) -> None:
        guard = make()
        assert guard.flush(timeout=10) == 0
        assert (faulty.used(), guard.stats()["stranded"]) == (3, 0)
        assert len({key for _, key in faulty.asked}) == 1

    def test_is_not_sent_again_where_they_are_not(
        self, make: Callable[..., Guard], faulty: FaultySidecar, caplog: pytest.LogCaptureFixture
    ) -> None:
        faulty.honours_keys = False
        guard = make()
        assert guard.flush(timeout=10) == 0
        assert (faulty.used(), guard.stats()["doubted"]) == (3, 1)
        assert "3 units of c f may be counted or LOST" in caplog.text

    def test_is_sent_again_where_they_are_not_if_told_so(
        self, make: Callable[..., Guard], faulty: FaultySidecar
    ) -> None:
        faulty.honours_keys = False
        guard = make(ON_UNCERTAIN="resend")
        assert guard.flush(timeout=10) == 0
        assert faulty.used() == 6


def test_a_flush_without_time_sends_nothing_and_says_what_is_left(guard: Guard, faulty: FaultySidecar) -> None:
    guard.ledger.record(Use(UsageKey("c", "", "f"), 2))
    assert guard.flush(timeout=0) == 1
    assert guard.stats()["dead"] == 0
    assert guard.flush() == 0
    assert faulty.used() == 2


def test_no_batch_is_begun_after_the_time_is_up(guard: Guard, faulty: FaultySidecar, clock: ManualClock) -> None:
    faulty.after = lambda _: clock.advance(10)
    for total in (1, 2, 3):
        guard.ledger.record(Use(UsageKey("c", "", "f"), total, is_set=True))
    assert guard.flush(timeout=5) == 2
    assert guard.flush(timeout=60) == 0
    assert faulty.used() == 3
