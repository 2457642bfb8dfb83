"""Using units while the ledger is away, and while the sidecar is away too."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from conftest import ManualClock, full_disk
from stigg_guard import FeatureDenied, Guard, LedgerUnavailable, Reason
from usage.outage import MakeGuard, Outage, WatchedEngine, exit_status, levels, unlimited_disk, waiting


class TestWithoutLedger:
    """The disk is full: the ledger can be read, and takes nothing."""

    @pytest.fixture(autouse=True)
    def opened(self, request: pytest.FixtureRequest, make_guard: MakeGuard) -> None:
        make_guard().stats()

    def test_error_denies_nobody_and_runs_nothing(self, guard: Guard, ledger: Path) -> None:
        with full_disk(ledger), pytest.raises(LedgerUnavailable, match="ledger"), guard.consume("seats", customer="c"):
            pytest.fail("the block ran")
        with guard.consume("seats", 10, customer="c"):
            pass

    def test_deny_denies(self, make_guard: MakeGuard, ledger: Path) -> None:
        guard = make_guard(ON_OUTAGE="deny")
        with full_disk(ledger), pytest.raises(FeatureDenied) as denied, guard.consume("seats", customer="c"):
            pytest.fail("the block ran")
        assert denied.value.entitlement.reason is Reason.UNKNOWN
        assert denied.value.entitlement.is_fallback

    def test_allow_runs_the_block_and_sends_its_usage_at_once(
        self, make_guard: MakeGuard, ledger: Path, engine: WatchedEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        guard = make_guard(ON_OUTAGE="allow")
        with full_disk(ledger):
            with guard.consume({"seats": 2, "calls": 0}, customer="c") as usage:
                assert usage.entitlement.usage_limit == 10
            assert (engine.used("seats"), guard.stats()["stranded"]) == (2, 0)
        assert "used without a hold" in caplog.text
        assert "sent at once" in caplog.text
        assert guard.check("seats", customer="c").current_usage == 2

    def test_allow_writes_the_usage_once_the_ledger_is_back(
        self, make_guard: MakeGuard, ledger: Path, engine: WatchedEngine, outage: Outage
    ) -> None:
        guard = make_guard(ON_OUTAGE="allow")
        with full_disk(ledger):
            usage = guard.consume({"seats": 2, "calls": 1}, customer="c").__enter__()
        outage.begin()
        usage.end(succeeded=True)
        assert waiting(guard) == 2
        outage.end()
        assert guard.flush(timeout=10) == 0
        assert (engine.used("seats"), engine.used("calls")) == (2, 1)

    def test_allow_gives_nothing_back_after_a_failure(
        self, make_guard: MakeGuard, ledger: Path, engine: WatchedEngine
    ) -> None:
        guard = make_guard(ON_OUTAGE="allow")
        with full_disk(ledger), pytest.raises(ZeroDivisionError), guard.consume("seats", 2, customer="c"):
            _ = 1 / 0
        assert (guard.flush(), engine.used("seats")) == (0, 0)

    def test_a_commit_is_sent_at_once(
        self, guard: Guard, ledger: Path, engine: WatchedEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        usage = guard.consume("seats", 2, customer="c").__enter__()
        with full_disk(ledger):
            usage.end(succeeded=True)
            assert engine.used("seats") == 2
        assert "sent at once" in caplog.text
        assert guard.stats()["stranded"] == 0

    def test_an_event_is_sent_at_once(self, guard: Guard, ledger: Path, engine: WatchedEngine) -> None:
        usage = guard.consume("tokens", 5, customer="c", event="answered", dimensions={"tokens": 5}).__enter__()
        with full_disk(ledger):
            usage.end(succeeded=True)
            assert engine.used("tokens") == 5

    def test_a_report_is_sent_at_once(self, guard: Guard, ledger: Path, engine: WatchedEngine) -> None:
        with full_disk(ledger):
            guard.report("seats", 0, customer="c")
            guard.report("seats", 3, customer="c", set_total=True)
            assert engine.used("seats") == 3

    def test_a_report_that_the_sidecar_refuses_is_told(
        self, guard: Guard, ledger: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with full_disk(ledger):
            guard.report("unheard-of", 3, customer="c")
        assert "the sidecar rejects usage of 'c unheard-of'" in caplog.text
        assert (guard.stats()["stranded"], guard.stats()["rejected"]) == (0, 1)

    def test_a_failure_leaves_the_hold_to_expire(
        self, guard: Guard, ledger: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        usage = guard.consume("seats", 10, customer="c").__enter__()
        with full_disk(ledger):
            usage.cancel()
        assert "left to expire" in caplog.text
        with pytest.raises(FeatureDenied):
            guard.consume("seats", customer="c").__enter__()
        clock.advance(301)
        with guard.consume("seats", 10, customer="c"):
            pass


class TestWithoutLedgerAndSidecar:
    """What neither takes is kept in memory, loudly, until one of them does."""

    @pytest.fixture
    def keep(self, guard: Guard, ledger: Path, outage: Outage, caplog: pytest.LogCaptureFixture) -> Callable[[], None]:
        usage = guard.consume("seats", 2, customer="c").__enter__()

        def keep() -> None:
            outage.begin()
            usage.end(succeeded=True)
            assert guard.stats()["stranded"] == 1
            assert logging.CRITICAL in levels(caplog)
            assert "'c seats' is kept in memory only" in caplog.text
            assert guard.flush(timeout=0.1) >= 1

        return keep

    def test_is_sent_when_the_sidecar_is_back(
        self, guard: Guard, keep: Callable[[], None], outage: Outage, engine: WatchedEngine, ledger: Path
    ) -> None:
        with full_disk(ledger):
            keep()
            outage.end()
            guard.flush(timeout=10)
            assert guard.stats()["stranded"] == 0
        assert engine.used("seats") == 2

    def test_is_written_when_the_ledger_is_back(
        self, guard: Guard, keep: Callable[[], None], outage: Outage, engine: WatchedEngine, ledger: Path
    ) -> None:
        with full_disk(ledger):
            keep()
        assert guard.flush(timeout=0.1) == 1
        assert (guard.stats()["stranded"], waiting(guard)) == (0, 1)
        outage.end()
        assert guard.flush(timeout=10) == 0
        assert engine.used("seats") == 2

    def test_stays_with_the_process_that_keeps_it(self, guard: Guard, keep: Callable[[], None], ledger: Path) -> None:
        with full_disk(ledger):
            keep()

            def inherited() -> int:
                unlimited_disk()
                return guard.flush(timeout=0.1)

            assert exit_status(inherited) == 0
        assert guard.flush(timeout=0.1) == 1

    def test_is_kept_in_a_process_that_has_just_forked(self, guard: Guard, ledger: Path, outage: Outage) -> None:
        outage.begin()
        guard.stats()
        with closing(sqlite3.connect(ledger)) as damaged:
            damaged.execute("ALTER TABLE entries RENAME TO lost")

        def report() -> int:
            guard.report("seats", 1, customer="c")
            with closing(sqlite3.connect(ledger)) as mended:
                mended.execute("ALTER TABLE lost RENAME TO entries")
            return guard.stats()["stranded"] + waiting(guard)

        assert exit_status(report) == 1
