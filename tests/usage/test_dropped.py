"""What nobody has any more: guards, and work that was begun and never ended."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ManualClock
from faulty_sidecar import FaultySidecar
from stigg_guard import Config, Guard

PATIENCE = 20.0


def reporters() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stigg-guard-reporter"]


def open_files(ledger: Path) -> list[str]:
    """The descriptors of this process that lead to the ledger."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            continue
    return [file for file in found if file.startswith(str(ledger))]


def test_a_dropped_guard_reports_and_frees_its_thread_and_its_files(faulty: FaultySidecar, tmp_path: Path) -> None:
    before = reporters()
    ledger = tmp_path / "ledger.db"

    def work() -> None:
        guard = Guard(Config(sidecar=faulty.address, ledger=f"sqlite:///{ledger}", report="background"))
        with guard.consume("f", 3, customer="c"):
            pass

    work()
    gc.collect()
    (own,) = [thread for thread in reporters() if thread not in before]
    own.join(PATIENCE)
    gc.collect()
    assert not own.is_alive()
    assert open_files(ledger) == []
    assert faulty.used() == 3


def test_work_that_is_dropped_without_an_end_gives_back_what_it_held(
    faulty: FaultySidecar, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    with Guard(Config(sidecar=faulty.address, ledger="memory://"), clock=clock.clock) as guard:
        usage = guard.consume("f", 4, customer="c").__enter__()
        assert guard.stats()["held"] == 1
        del usage
        assert guard.flush() == 0
        assert guard.stats()["held"] == 0
    assert "work was dropped without an end, and what it held is given back: 4 of 'c f'" in caplog.text


def test_work_that_outlives_its_guard_is_reported(faulty: FaultySidecar, clock: ManualClock) -> None:
    def begin() -> Callable[[bool], None]:
        guard = Guard(Config(sidecar=faulty.address, ledger="memory://", report="inline"), clock=clock.clock)
        return guard.consume("f", 2, customer="c").__enter__().end

    end = begin()
    gc.collect()
    end(True)
    assert faulty.used() == 2
