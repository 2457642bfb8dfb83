"""Callers' keys: of all uses with the same one, one counts."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from django.db import connections

from conftest import ManualClock
from ledger.steps import KEY, NOTHING, OTHER, Make, claim, commit, counts, held, taken
from redis_server import RedisServer
from stigg_guard.errors import KeyReused, KeyTaken, UsageInProgress, UsageRepeated
from stigg_guard.ledger import Claim, Hold, Ledger, LimitExceeded, Once, State, Use

ORDER = Once("ann", "order-42")
HOUR = 3_600.0
DAY = 24 * HOUR


def held_once(ledger: Ledger, *wishes: Claim, once: Once = ORDER, ttl: float = 60) -> Hold:
    answer = ledger.hold(wishes or [claim()], ttl, once)
    assert isinstance(answer, Hold), answer
    return answer


def test_use_that_is_held_is_in_progress(ledger: Ledger) -> None:
    held_once(ledger)
    with pytest.raises(UsageInProgress):
        ledger.hold([claim()], 60, ORDER)
    assert counts(ledger) == 4


def test_use_that_was_counted_is_a_repeat(ledger: Ledger) -> None:
    assert commit(ledger, held_once(ledger)) == 4
    with pytest.raises(UsageRepeated):
        ledger.hold([claim()], 60, ORDER)
    assert counts(ledger) == 4


def test_repeat_is_one_though_nothing_is_left(ledger: Ledger) -> None:
    commit(ledger, held_once(ledger, claim(7)))
    with pytest.raises(UsageRepeated):
        ledger.hold([claim(7)], 60, ORDER)
    assert isinstance(ledger.hold([claim(1)], 60), LimitExceeded)


def test_use_of_nothing_is_counted_too(ledger: Ledger) -> None:
    commit(ledger, held_once(ledger), amount=0)
    with pytest.raises(UsageRepeated):
        ledger.hold([claim()], 60, ORDER)


def test_use_that_failed_leaves_its_key_free(ledger: Ledger) -> None:
    ledger.release(held_once(ledger))
    assert commit(ledger, held_once(ledger)) == 4


def test_use_that_was_refused_leaves_its_key_free(ledger: Ledger) -> None:
    assert isinstance(ledger.hold([claim(99)], 60, ORDER), LimitExceeded)
    held_once(ledger)


def test_keys_are_apart(ledger: Ledger) -> None:
    held_once(ledger)
    held_once(ledger, once=Once("ann", "order-43"))
    held(ledger, claim())
    assert counts(ledger) == 6


def test_key_is_bound_to_its_use(ledger: Ledger) -> None:
    first = held_once(ledger, once=Once("ann", "order-42", "POST /orders"))
    for _ in range(2):
        with pytest.raises(KeyReused):
            ledger.hold([claim()], 60, Once("ann", "order-42", "POST /invoices"))
        ledger.commit(first, [Use(KEY, 1)])
    with pytest.raises(UsageRepeated):
        ledger.hold([claim()], 60, Once("ann", "order-42", "POST /orders"))


def test_use_of_a_process_that_was_killed_leaves_its_key_free_when_its_hold_ends(
    ledger: Ledger, clock: ManualClock
) -> None:
    held_once(ledger, ttl=60)
    clock.advance(59.5)
    with pytest.raises(UsageInProgress):
        ledger.hold([claim()], 60, ORDER)
    clock.advance(0.5)
    assert commit(ledger, held_once(ledger)) == 4


def test_key_is_held_for_as_long_as_its_hold_is_renewed(ledger: Ledger, clock: ManualClock) -> None:
    hold, other = held_once(ledger, ttl=60), held(ledger, claim())
    clock.advance(59)
    ledger.renew([hold, other], 60)
    clock.advance(59)
    with pytest.raises(UsageInProgress):
        ledger.hold([claim()], 60, ORDER)
    assert commit(ledger, hold) == 4


def test_key_counts_once_for_a_day(ledger: Ledger, clock: ManualClock) -> None:
    commit(ledger, held_once(ledger))
    clock.advance(DAY - 1)
    taken(ledger)
    with pytest.raises(UsageRepeated):
        ledger.hold([claim()], 60, ORDER)
    clock.advance(1)
    held_once(ledger)


def test_key_is_kept_for_as_long_as_it_says(ledger: Ledger, clock: ManualClock) -> None:
    short = Once("ann", "file", kept=round(HOUR * 1e6))
    commit(ledger, held_once(ledger, once=short))
    clock.advance(HOUR - 1)
    with pytest.raises(UsageRepeated):
        ledger.hold([claim()], 60, short)
    clock.advance(1)
    held_once(ledger, once=short)


def test_use_that_holds_nothing_counts_unless_another_was_counted(ledger: Ledger) -> None:
    first = held_once(ledger)
    for number, usages in enumerate([[4], []]):
        assert ledger.commit(Hold(f"unheld-{number}", (), ORDER), [Use(KEY, 1)]) == usages
    assert ledger.commit(first, [Use(KEY, 1)]) == []
    assert counts(ledger) == 4


def test_late_use_counts_if_no_other_was(ledger: Ledger, clock: ManualClock) -> None:
    first = held_once(ledger)
    clock.advance(61)
    assert commit(ledger, first) == 4
    with pytest.raises(UsageRepeated):
        ledger.hold([claim()], 60, ORDER)


def test_late_use_does_not_count_beside_another(ledger: Ledger, clock: ManualClock) -> None:
    first = held_once(ledger)
    clock.advance(61)
    commit(ledger, held_once(ledger))
    assert ledger.commit(first, [Use(KEY, 1)]) == []
    assert ledger.counts() == {**NOTHING, "unsent": 1, "late": 1}
    assert counts(ledger) == 4


def test_late_use_counts_in_place_of_one_that_goes_on(ledger: Ledger, clock: ManualClock) -> None:
    first = held_once(ledger)
    clock.advance(61)
    second = held_once(ledger)
    assert commit(ledger, first) == 4
    with pytest.raises(UsageRepeated):
        ledger.hold([claim()], 60, ORDER)
    ledger.renew([second], 60)
    assert ledger.commit(second, [Use(KEY, 1)]) == []
    assert ledger.counts()["held"] == 0
    assert counts(ledger) == 4


def test_late_failure_leaves_the_key_to_the_other(ledger: Ledger, clock: ManualClock) -> None:
    first = held_once(ledger)
    clock.advance(61)
    second = held_once(ledger)
    ledger.release(first)
    ledger.renew([first], 600)
    with pytest.raises(UsageInProgress):
        ledger.hold([claim()], 60, ORDER)
    assert commit(ledger, second) == 4


def test_commit_that_is_repeated_counts_once(ledger: Ledger) -> None:
    hold = held_once(ledger)
    for _ in range(3):
        ledger.commit(hold, [Use(KEY, 1)], repeated=True)
    assert counts(ledger) == 4


def test_repeated_use_that_holds_nothing_counts_once(ledger: Ledger) -> None:
    unheld = Hold("unheld", (), ORDER)
    for _ in range(2):
        assert ledger.commit(unheld, [Use(KEY, 1)], repeated=True) == [1]
    assert ledger.commit(Hold("another", (), ORDER), [Use(KEY, 1)], repeated=True) == [1]
    assert ledger.outstanding(KEY) == 1


def test_key_without_claims_holds_no_units(ledger: Ledger, clock: ManualClock) -> None:
    hold = held_once(ledger)
    ledger.release(hold)
    only = ledger.hold((), 60, ORDER)
    assert isinstance(only, Hold)
    assert ledger.counts() == NOTHING
    with pytest.raises(UsageInProgress):
        ledger.hold((), 60, ORDER)
    clock.advance(59)
    ledger.renew([only], 60)
    clock.advance(59)
    with pytest.raises(UsageInProgress):
        ledger.hold((), 60, ORDER)
    for _ in range(2):
        ledger.commit(only, [Use(KEY, 2)], repeated=True)
    assert counts(ledger) == 5
    with pytest.raises(UsageRepeated):
        ledger.hold((), 60, ORDER)


def test_key_without_claims_that_was_given_back_is_free(ledger: Ledger) -> None:
    for _ in range(2):
        only = ledger.hold((), 60, ORDER)
        assert isinstance(only, Hold)
        ledger.release(only)


def test_key_of_several_features_is_one(ledger: Ledger) -> None:
    hold = held_once(ledger, claim(1), claim(2, key=OTHER))
    with pytest.raises(UsageInProgress):
        ledger.hold([claim(1), claim(2, key=OTHER)], 60, ORDER)
    ledger.commit(hold, [Use(KEY, 1), Use(OTHER, 2)])
    assert (counts(ledger), counts(ledger, OTHER)) == (4, 5)


def test_another_process_knows_the_key(make_ledger: Make, url: str) -> None:
    first, second = make_ledger(url), make_ledger(url)
    if url == "memory://":
        pytest.skip("which is of one process")
    hold = held_once(first)
    with pytest.raises(UsageInProgress):
        second.hold([claim()], 60, ORDER)
    commit(second, hold)
    with pytest.raises(UsageRepeated):
        first.hold([claim()], 60, ORDER)


def test_old_keys_are_forgotten_with_old_holds(
    make_ledger: Make, file_url: str, django_sqlite_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    def kept() -> list[int]:
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as file, connections["sqlite"].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM stigg_guard_ledger_keys")
            return [file.execute("SELECT count(*) FROM keys").fetchone()[0], cursor.fetchone()[0]]

    ledgers = [make_ledger(file_url), make_ledger(django_sqlite_url)]
    for ledger in ledgers:
        commit(ledger, held_once(ledger))
    assert kept() == [1, 1]
    clock.advance(2 * DAY + 1)
    for ledger in ledgers:
        taken(ledger)
    assert kept() == [0, 0]


def test_redis_forgets_keys_by_itself(make_ledger: Make, redis_server: RedisServer, redis_url: str) -> None:
    ledger = make_ledger(redis_url)
    commit(ledger, held_once(ledger, once=Once("ann", "file", kept=round(HOUR * 1e6))))
    (name,) = redis_server.client.scan_iter("*:once:*")
    assert 0 < redis_server.client.pttl(name) <= HOUR * 1000


def test_of_many_at_once_one_counts(ledger: Ledger, make_ledger: Make, url: str) -> None:
    """Threads, each with every key."""
    ledgers = [ledger, *([ledger] * 3 if url == "memory://" else [make_ledger(url) for _ in range(3)])]
    together = threading.Barrier(len(ledgers))
    orders = [Once("ann", f"order-{number}") for number in range(20)]

    def use(ledger: Ledger) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        for once in orders:
            together.wait()
            try:
                ledger.commit(held_once(ledger, claim(limit=None), once=once), [Use(KEY, 1)])
            except KeyTaken as error:
                outcomes[type(error).__name__] += 1
            else:
                outcomes["counted"] += 1
        return outcomes

    with ThreadPoolExecutor(len(ledgers)) as pool:
        outcomes = sum(pool.map(use, ledgers), Counter[str]())
    assert outcomes["counted"] == len(orders)
    assert outcomes.total() == len(orders) * len(ledgers)
    assert sum(entry.amount for entry in ledger.entries([State.UNSENT], 100)) == len(orders)
