"""The thread that reports, between a real ledger and a real sidecar: when it works, waits, gives up and ends."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from conftest import ManualClock
from faulty_sidecar import FaultySidecar, abort, no_fault
from stigg_guard import ClientClosed, Clock, Config, FeatureDenied, Guard, LedgerUnavailable
from stigg_guard.ledger import Batch, Claim, Hold, LimitExceeded, UsageKey, Use
from stigg_guard.ledger.sqlite import SqliteLedger
from stigg_guard.settings.urls import LedgerFile
from stigg_guard.usage import flushing


@pytest.fixture
def guard(faulty: FaultySidecar, clock: ManualClock) -> Iterator[Guard]:
    with Guard(Config(sidecar=faulty.address), clock=clock.clock) as made:
        yield made


def test_sends_many_uses_in_one_bulk(guard: Guard, faulty: FaultySidecar) -> None:
    release = threading.Event()

    def wait(_context: grpc.ServicerContext) -> None:
        assert release.wait(10)

    faulty.before = wait
    for feature in ("f", "g", "f", "g"):
        guard.report(feature, 1, customer="c")
    release.set()
    assert guard.flush() == 0
    assert (faulty.used("f"), faulty.used("g")) == (2, 2)
    assert len(faulty.asked) <= 3


def test_counts_against_the_limit_until_it_is_acknowledged(
    guard: Guard, faulty: FaultySidecar, clock: ManualClock
) -> None:
    sent = threading.Event()

    def lose(context: grpc.ServicerContext) -> None:
        sent.set()
        context.abort(grpc.StatusCode.INTERNAL, "on purpose")

    faulty.after = lose
    with guard.consume("f", 60, customer="c"):
        pass
    assert sent.wait(10)
    clock.advance(31)
    with pytest.raises(FeatureDenied), guard.consume("f", 60, customer="c"):
        pytest.fail("oversold")
    faulty.after = no_fault
    clock.advance(60)
    assert guard.flush() == 0
    with guard.consume("f", 40, customer="c"):
        pass
    assert guard.flush() == 0
    assert faulty.used() == 100


@pytest.mark.parametrize("mode", ["inline", "auto"])
def test_a_use_during_the_report_of_another_process_is_reported_before_it_returns(
    faulty: FaultySidecar, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flushing, "may_end_at_once", lambda: True)
    first_came, go_on, committed = threading.Event(), threading.Event(), threading.Event()

    def wait(_context: grpc.ServicerContext) -> None:
        first_came.set()
        assert go_on.wait(10)

    given = {"SIDECAR": faulty.address, "LEDGER": f"sqlite:///{tmp_path / 'ledger'}", "REPORT": mode, "TIMEOUT": 10}
    with Guard(Config.from_mapping(given)) as one, Guard(Config.from_mapping(given)) as other:
        faulty.before = wait
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(one.report, "f", 1, customer="c")
            assert first_came.wait(10)
            take_batch = other.ledger.take_batch

            def taken(size: int, lease: float) -> Batch | None:
                committed.set()
                return take_batch(size, lease)

            monkeypatch.setattr(other.ledger, "take_batch", taken)
            second = threads.submit(other.report, "f", 2, customer="c")
            assert committed.wait(10)
            go_on.set()
            second.result(10)
            assert faulty.used() == 3
            first.result(10)
        assert one.flush() == other.flush() == 0
    assert faulty.used() == 3


def test_what_a_dead_process_was_to_send_is_waited_for_once(
    faulty: FaultySidecar, tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    nap = flushing.sleep

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        nap(seconds)

    monkeypatch.setattr(flushing, "sleep", sleep)
    ledger = f"sqlite:///{tmp_path / 'ledger'}"
    given = {"SIDECAR": faulty.address, "LEDGER": ledger, "REPORT": "inline", "TIMEOUT": 0.2}
    with Guard(Config.from_mapping(given), clock=clock.clock) as guard:
        guard.ledger.record(Use(UsageKey("c", "", "f"), 1))
        assert guard.ledger.take_batch(100, 30)
        waited = []
        for _ in range(3):
            guard.report("f", 2, customer="c")
            waited.append(len(naps))
        assert waited[0] > 0
        assert waited == [waited[0]] * 3
        guard.report("g", 4, customer="c")
        assert faulty.used("g") == 4
        clock.advance(31)
        guard.report("f", 8, customer="c")
        assert faulty.used("f") == 1 + 3 * 2 + 8
        assert guard.flush() == 0


class HeldAnswer:
    """The sidecar counts a report of 60 units of 100, and a snapshot shows it before the report is answered."""

    def __init__(self, faulty: FaultySidecar, guard: Guard) -> None:
        self._counted, self._answer = threading.Event(), threading.Event()
        faulty.after = self._wait
        with guard.consume("f", 60, customer="c"):
            pass
        assert self._counted.wait(10)
        assert guard.reload("c")

    def _wait(self, _context: grpc.ServicerContext) -> None:
        self._counted.set()
        assert self._answer.wait(10)

    def answer(self) -> None:
        self._answer.set()


def test_units_that_a_snapshot_saw_before_their_report_was_answered_deny_nothing_that_is_free(
    guard: Guard, faulty: FaultySidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, hold, tried = HeldAnswer(faulty, guard), guard.ledger.hold, []

    def answered_after_the_first_try(claims: Sequence[Claim], ttl: float, once: None) -> Hold | LimitExceeded:
        tried.append(hold(claims, ttl, once))
        report.answer()
        return tried[-1]

    monkeypatch.setattr(guard.ledger, "hold", answered_after_the_first_try)
    with guard.consume("f", 40, customer="c"):
        pass
    assert isinstance(tried[0], LimitExceeded)
    assert guard.flush() == 0
    assert faulty.used() == 100


def test_a_denial_waits_for_the_answer_to_a_report_no_longer_than_a_check(faulty: FaultySidecar) -> None:
    with Guard(Config(sidecar=faulty.address, timeout=0.2)) as guard:
        report = HeldAnswer(faulty, guard)
        with pytest.raises(FeatureDenied) as denied, guard.consume("f", 40, customer="c"):
            pytest.fail("nobody knows yet")
        report.answer()
        assert denied.value.entitlement.current_usage == 120
        assert guard.flush() == 0


def test_says_once_that_usage_waits_and_goes_on_by_itself(
    guard: Guard, faulty: FaultySidecar, caplog: pytest.LogCaptureFixture
) -> None:
    tried, back = threading.Semaphore(0), threading.Event()

    def down(context: grpc.ServicerContext) -> None:
        tried.release()
        if not back.is_set():
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "not now")

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
    faulty.before = abort(grpc.StatusCode.PERMISSION_DENIED)
    config = Config.from_mapping({"SIDECAR": faulty.address, "REPORT": "inline"})
    with Guard(config, clock=clock.clock) as guard:
        with guard.consume("f", 2, customer="c"):
            pass
        assert "stays in the ledger" in caplog.text
        faulty.before = no_fault
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


class StruckLedger(SqliteLedger):
    """Ctrl-C comes once, while the main thread counts what is left."""

    is_struck = False

    def counts(self) -> Mapping[str, int]:
        if threading.current_thread() is threading.main_thread() and not self.is_struck:
            self.is_struck = True
            raise KeyboardInterrupt
        return super().counts()


@pytest.mark.parametrize(
    ("file", "told"), [(None, "are LOST: they were in memory only"), ("ledger.db", "stay in the ledger")]
)
def test_close_that_is_struck_closes_everything_and_tells_what_is_left(
    file: str | None, told: str, faulty: FaultySidecar, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.before = abort(grpc.StatusCode.UNAVAILABLE)
    ledger = StruckLedger(None if file is None else LedgerFile(str(tmp_path / file)), Clock())
    guard = Guard(Config(sidecar=faulty.address), ledger=ledger)
    guard.report("f", 4, customer="c")
    reporter = guard._own.holds.reporter
    with pytest.raises(KeyboardInterrupt):
        guard.close()
    assert f"1 usage reports were not sent when the guard ended, and {told}" in caplog.text
    assert reporter.is_over
    with pytest.raises(ClientClosed):
        ledger.counts()
    with pytest.raises(ClientClosed):
        guard.check("g", customer="c")
    guard.close()


def test_what_cannot_be_sent_at_exit_is_told() -> None:
    program = (
        "from stigg_guard import Config, Guard\n"
        "guard = Guard(Config(sidecar='127.0.0.1:1'))\n"
        "guard.report('f', 4, customer='c')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "1 usage reports were not sent when the guard ended, and stay in the ledger" in done.stderr


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


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"])
def test_a_report_that_always_fails_keeps_no_other_from_being_flushed(
    guard: Guard, faulty: FaultySidecar, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    faulty.before = faulty.abort_for("g", grpc.StatusCode[code])
    guard.ledger.record(Use(UsageKey("c", "", "g"), 1))
    assert guard.flush(timeout=0.2) == 1
    for used in range(1, 4):
        guard.ledger.record(Use(UsageKey("c", "", "f"), 1))
        assert guard.flush(timeout=1) == 1
        assert faulty.used("f") == used
    assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) == 1
    assert guard.stats()["dead"] == guard.stats()["uncertain"] == 0


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


def test_what_is_used_during_a_flush_waits_for_the_next(
    guard: Guard, faulty: FaultySidecar, clock: ManualClock
) -> None:
    def use_more(_context: grpc.ServicerContext) -> None:
        clock.advance(0.1)
        guard.ledger.record(Use(UsageKey("c", "", "f"), 1))

    faulty.before = use_more
    guard.ledger.record(Use(UsageKey("c", "", "f"), 1))
    assert guard.flush() == 1
    assert len(faulty.asked) == 2
    faulty.before = no_fault
    assert guard.flush() == 0
    assert faulty.used() == 3


def test_of_two_threads_after_an_interrupted_start_the_first_ends(guard: Guard, faulty: FaultySidecar) -> None:
    reporter = guard._own.holds.reporter
    reporter.start()
    first, reporter._thread = reporter._thread, None
    guard.report("f", 1, customer="c")
    second = reporter._thread
    assert first is not None
    assert isinstance(second, threading.Thread)
    first.join(30)
    assert not first.is_alive()
    assert second.is_alive()
    assert guard.flush() == 0
    assert faulty.used() == 1


def test_flush_goes_on_after_a_failure_that_another_thread_has_overcome(
    faulty: FaultySidecar, clock: ManualClock
) -> None:
    class BusyOnce(SqliteLedger):
        """Fails once, and another thread reports with success before anybody looks."""

        is_busy = True

        def take_batch(self, size: int, lease: float) -> Batch | None:
            if self.is_busy:
                raise LedgerUnavailable("it did not answer")
            return super().take_batch(size, lease)

        def counts(self) -> Mapping[str, int]:
            if self.is_busy:
                self.is_busy = False
                guard._own.holds.reporter._failures = 0
            return super().counts()

    ledger = BusyOnce(None, clock.clock)
    with Guard(Config(sidecar=faulty.address), ledger=ledger, clock=clock.clock) as guard:
        ledger.record(Use(UsageKey("c", "", "f"), 1))
        assert guard.flush() == 0
        assert faulty.used() == 1


def test_flush_goes_on_after_usage_of_a_clock_that_was_ahead(faulty: FaultySidecar, clock: ManualClock) -> None:
    ledger = SqliteLedger(None, clock.clock)
    with Guard(Config(sidecar=faulty.address), ledger=ledger, clock=clock.clock) as guard:
        clock.advance(200)
        ledger.record(Use(UsageKey("c", "", "f"), 1))
        clock.advance(-200)
        ledger.record(Use(UsageKey("c", "", "f"), 2, dimensions={"kept": "apart"}))
        assert guard.flush() == 0
        assert faulty.used() == 3


def test_flush_reports_all_where_the_ledgers_clock_is_ahead(faulty: FaultySidecar, clock: ManualClock) -> None:
    ahead = ManualClock()
    ahead.advance(10)
    ledger = SqliteLedger(None, ahead.clock)
    with Guard(Config(sidecar=faulty.address), ledger=ledger, clock=clock.clock) as guard:
        for total in (1, 2, 3):
            ledger.record(Use(UsageKey("c", "", "f"), total, is_set=True))
        assert guard.flush() == 0
        assert faulty.used() == 3


def test_flush_waits_for_what_was_used_before_it_behind_the_report_of_another_process(
    faulty: FaultySidecar, clock: ManualClock
) -> None:
    ledger = SqliteLedger(None, clock.clock)
    with Guard(Config(sidecar=faulty.address), ledger=ledger, clock=clock.clock) as guard:
        ledger.record(Use(UsageKey("c", "", "f"), 1))
        of_another_process = ledger.take_batch(1, 30)
        assert of_another_process is not None
        ledger.record(Use(UsageKey("c", "", "f"), 2))
        ledger.record(Use(UsageKey("c", "", "g"), 1))

        def use_more(_context: grpc.ServicerContext) -> None:
            faulty.before = acknowledge
            clock.advance(0.1)
            ledger.record(Use(UsageKey("c", "", "g"), 1))

        def acknowledge(_context: grpc.ServicerContext) -> None:
            faulty.before = no_fault
            ledger.put_back(of_another_process.reports)

        faulty.before = use_more
        assert guard.flush() == 0
        assert (faulty.used("f"), faulty.used("g")) == (3, 2)
