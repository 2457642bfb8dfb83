"""Holds of work that goes on last, whatever else the process is busy with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from threading import Event, Thread

import pytest

from conftest import ManualClock
from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger import Claim, Hold, LimitExceeded, News, Period, UsageKey
from stigg_guard.ledger.sqlite import SqliteLedger
from stigg_guard.usage.keeper import HoldKeeper

KEY = UsageKey("ann", "", "seats")
TTL = 60.0
WAIT = 30.0


class Owner:
    """Work that goes on."""


class WatchedLedger(SqliteLedger):
    """Tells of each renewal, and is out of order when it is told to be."""

    renewed: Event
    is_broken = False

    def renew(self, holds: object, ttl: float) -> None:
        try:
            if self.is_broken:
                raise LedgerUnavailable("the disk is full")
            super().renew(holds, ttl)  # type: ignore[arg-type] # whatever it was given
        finally:
            self.renewed.set()


@pytest.fixture
def ledger(clock: ManualClock) -> Iterator[WatchedLedger]:
    made = WatchedLedger(None, clock.clock)
    made.renewed = Event()
    yield made
    made.close()


def taken(ledger: SqliteLedger) -> Hold | LimitExceeded:
    return ledger.hold([Claim(KEY, 10, News(Period(), 0, 10_000_000, 1))], TTL)


def test_a_hold_lasts_as_long_as_its_work(ledger: WatchedLedger, clock: ManualClock) -> None:
    keeper, owner, hold = HoldKeeper(ledger, TTL), Owner(), taken(ledger)
    assert isinstance(hold, Hold)
    keeper.watch(hold, owner)
    for _ in range(3):
        clock.advance(TTL - 1)
        keeper._renew()
        assert isinstance(taken(ledger), LimitExceeded)
    keeper.unwatch(hold)
    clock.advance(TTL - 1)
    keeper._renew()
    clock.advance(2)
    assert isinstance(taken(ledger), Hold)
    keeper.leave()


def test_a_hold_of_dropped_work_is_given_back(ledger: WatchedLedger, caplog: pytest.LogCaptureFixture) -> None:
    keeper, owner, hold = HoldKeeper(ledger, TTL), Owner(), taken(ledger)
    assert isinstance(hold, Hold)
    keeper.watch(hold, owner)
    keeper.give_back_dropped()
    assert isinstance(taken(ledger), LimitExceeded)
    del owner
    keeper.give_back_dropped()
    assert isinstance(taken(ledger), Hold)
    assert "work was dropped without an end" in caplog.text
    keeper.leave()


def test_renewing_goes_on_in_a_thread_of_its_own_and_after_a_failure(
    ledger: WatchedLedger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "stigg_guard")
    keeper, owner, hold = HoldKeeper(ledger, 0.03), Owner(), taken(ledger)
    assert isinstance(hold, Hold)
    ledger.is_broken = True
    keeper.watch(hold, owner)
    assert ledger.renewed.wait(WAIT)
    ledger.is_broken = False
    ledger.renewed.clear()
    assert ledger.renewed.wait(WAIT)
    thread = keeper._thread
    assert thread is not None
    keeper.leave()
    thread.join(WAIT)
    assert not thread.is_alive()


def test_of_two_threads_after_an_interrupted_start_the_first_ends(ledger: WatchedLedger) -> None:
    keeper, owner, hold = HoldKeeper(ledger, 0.03), Owner(), taken(ledger)
    assert isinstance(hold, Hold)
    first, second = two_threads(keeper, hold, owner)
    first.join(WAIT)
    assert not first.is_alive()
    assert second.is_alive()
    keeper.leave()
    second.join(WAIT)
    assert not second.is_alive()


def test_all_threads_end_with_the_guard(ledger: WatchedLedger) -> None:
    keeper, owner, hold = HoldKeeper(ledger, 3600), Owner(), taken(ledger)
    assert isinstance(hold, Hold)
    threads = two_threads(keeper, hold, owner)
    keeper.leave()
    for thread in threads:
        thread.join(WAIT)
    assert [thread.is_alive() for thread in threads] == [False, False]


def two_threads(keeper: HoldKeeper, hold: Hold, owner: Owner) -> tuple[Thread, Thread]:
    """As an exception from outside leaves them: whoever came next did not see yet that the first one had started."""
    keeper.watch(hold, owner)
    first, keeper._thread = keeper._thread, None
    keeper.watch(hold, owner)
    second = keeper._thread
    assert first is not None
    assert isinstance(second, Thread)
    return first, second
