"""Exceptions from outside at any moment of a step: each costs one use at most, and leaves nothing behind."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from conftest import ManualClock
from ledger.steps import LEASE, WAIT, answers, claim, commit, held
from stigg_guard.ledger import Ledger, State, UsageKey, Use
from striker import Striker

pytestmark = pytest.mark.timeout(120, method="thread")  # the alarm is these tests' own

RUN_SECONDS = 1.0
LATEST = 4e-4  # about as long as two steps take


def moments() -> Iterator[float]:
    """When to strike, in seconds after the step began."""
    rng = random.Random(8)
    while True:
        yield rng.uniform(1e-6, LATEST)


@contextmanager
def other_thread() -> Iterator[Callable[[Callable[[], object]], object]]:
    with ThreadPoolExecutor(1) as pool:
        yield lambda step: pool.submit(step).result(WAIT)


def uses_one(ledger: Ledger, number: int) -> None:
    """Takes a unit of a feature of its own and uses it; every third use has no hold."""
    key = UsageKey("ann", "", f"f{number}")
    if number % 3:
        commit(ledger, held(ledger, claim(1, key=key)))
    else:
        ledger.record(Use(key, 1))


def reports_some(ledger: Ledger, arrived: list[str]) -> None:
    batch = ledger.take_batch(2, LEASE)
    if batch is not None:
        arrived += [report.key.feature_id for report in batch.reports]
        ledger.acknowledge(answers(batch, 1))


@pytest.mark.parametrize("url", ["memory_url", "file_url"], indirect=True)
def test_struck_steps_leave_no_lock_and_no_transaction_and_count_what_returned_once(
    ledger: Ledger, tmp_path: Path, url: str, striker: Striker
) -> None:
    returned: set[int] = set()
    tried, strike_after = 0, moments()
    ends = time.monotonic() + RUN_SECONDS
    with other_thread() as elsewhere, closing(sqlite3.connect(tmp_path / "ledger.db", timeout=0)) as another:
        while time.monotonic() < ends:
            if striker.returns(partial(uses_one, ledger, tried), next(strike_after)):
                returned.add(tried)
            elif url != "memory://":
                another.execute("BEGIN IMMEDIATE")
                another.rollback()
            tried += 1
        elsewhere(lambda: ledger.record(Use(UsageKey("ann", "", f"f{tried}"), 1)))
    uses = {int(entry.key.feature_id[1:]): entry.amount for entry in ledger.entries([State.UNSENT], 1_000_000)}
    assert striker.strikes > 0
    assert returned | {tried} <= uses.keys() <= set(range(tried + 1))
    assert set(uses.values()) == {1}
    assert ledger.outstanding(UsageKey("ann", "", f"f{tried}")) == 1


@pytest.mark.parametrize("url", ["memory_url", "file_url"], indirect=True)
def test_struck_reports_lose_nothing(ledger: Ledger, clock: ManualClock, striker: Striker) -> None:
    arrived: list[str] = []
    number, strike_after = 0, moments()
    ends = time.monotonic() + RUN_SECONDS
    while time.monotonic() < ends:
        ledger.record(Use(UsageKey("ann", "", f"f{number}"), 1))
        striker.returns(partial(reports_some, ledger, arrived), next(strike_after))
        number += 1
    clock.advance(LEASE)
    while ledger.counts()["unsent"] + ledger.counts()["sending"]:
        reports_some(ledger, arrived)
    assert striker.strikes > 0
    assert set(arrived) == {f"f{number}" for number in range(number)}
