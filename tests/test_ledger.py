"""The ledger: holds and unsent usage, with the same behaviour wherever they live."""

from __future__ import annotations

import ctypes
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from conftest import ManualClock, in_child
from django_databases import open_ledger
from redis_server import RedisServer
from stigg_guard.errors import ClientClosed, ConfigError, LedgerUnavailable
from stigg_guard.ledger import (
    Acknowledged,
    Batch,
    Claim,
    Entry,
    Event,
    Hold,
    Ledger,
    Refused,
    State,
    UsageKey,
    Use,
    ledger_from_url,
)

KEY = UsageKey("ann", "", "templates")
OTHER = UsageKey("ann", "site-01", "templates")
THIRD = UsageKey("ann", "site-02", "templates")
LEASE = 30.0
WAIT = 30.0
T = TypeVar("T")
NOTHING = {"held": 0, "unsent": 0, "sending": 0, "uncertain": 0, "dead": 0, "late": 0}
VERSION_1 = Path(__file__).parent / "data" / "ledger_1.sql"


def claim(
    amount: float = 1,
    limit: float | None = 10,
    known: float = 3,
    start: float = 0,
    ticket: int = 1,
    key: UsageKey = KEY,
    fetched: float = 0,
) -> Claim:
    return Claim(key, amount, limit, known, start, ticket, fetched)


def held(ledger: Ledger, *wishes: Claim, ttl: float = 60) -> Hold:
    answer = ledger.hold(wishes, ttl)
    assert isinstance(answer, Hold), answer
    return answer


def commit(ledger: Ledger, hold: Hold, amount: float | None = None) -> float:
    """Commits a hold of one claim, all of it or ``amount``; the usage of its key."""
    (wish,) = hold.claims
    (usage,) = ledger.commit(
        hold, [Use(wish.key, wish.amount if amount is None else amount, period_start=wish.period_start)]
    )
    return usage


def counted(ledger: Ledger, wish: Claim) -> float:
    """What counts against the limit, told by a claim that no limit has room for."""
    answer = ledger.hold([replace(wish, amount=1e9)], 60)
    assert isinstance(answer, Refused)
    return answer.counted


def taken(ledger: Ledger, size: int = 100) -> Batch:
    batch = ledger.take_batch(size, LEASE)
    assert batch is not None
    return batch


def said(batch: Batch) -> Batch:
    """The batch as it is sent, however often."""
    return Batch(batch.id, [replace(report, attempts=0) for report in batch.reports])


def amounts(batch: Batch) -> list[float]:
    return [report.amount for report in batch.reports]


def answers(batch: Batch, current: float | None, start: float = 0) -> list[Acknowledged]:
    return [Acknowledged(report, current, start) for report in batch.reports]


def login(number: int = 1) -> Event:
    return Event("login", f"login-{number}", {"user": "u-1", "seconds": 1.5, "first": True})


class Make(Protocol):
    def __call__(self, url: str, settle_grace: float = 0) -> Ledger: ...


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    redis_server.client.flushall()
    return f"{redis_server.url}?socket_timeout={WAIT}"  # a busy machine is no outage


@pytest.fixture
def memory_url() -> str:
    return "memory://"


@pytest.fixture
def django_sqlite_url(django_sqlite: str) -> str:
    return f"django://{django_sqlite}"


@pytest.fixture
def django_postgres_url(django_postgres: str) -> str:
    return f"django://{django_postgres}"


@pytest.fixture(params=["memory_url", "file_url", "redis_url", "django_sqlite_url", "django_postgres_url"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def make_ledger(clock: ManualClock) -> Iterator[Make]:
    made: list[Ledger] = []

    def make(url: str, settle_grace: float = 0) -> Ledger:
        made.append(open_ledger(url, clock.clock, settle_grace=settle_grace))
        return made[-1]

    yield make
    for ledger in made:
        ledger.close()


@pytest.fixture
def ledger(make_ledger: Make, url: str) -> Ledger:
    return make_ledger(url)


class TestHold:
    def test_takes_units_until_the_limit_is_reached(self, ledger: Ledger) -> None:
        held(ledger, claim(4))
        held(ledger, claim(3))
        assert ledger.hold([claim(0.5)], 60) == Refused(claim(0.5), 10)

    def test_of_nothing_fits_a_full_limit_and_not_one_that_is_passed(self, ledger: Ledger) -> None:
        held(ledger, claim(0, known=10))
        over = claim(0, known=11, key=OTHER)
        assert ledger.hold([over], 60) == Refused(over, 11)

    def test_without_a_limit_always_succeeds(self, ledger: Ledger) -> None:
        held(ledger, claim(1e12, limit=None))

    def test_leaves_nothing_behind_when_it_is_refused(self, ledger: Ledger) -> None:
        ledger.hold([claim(99)], 60)
        assert ledger.counts() == NOTHING
        assert ledger.known_usage(KEY) is None

    def test_keeps_keys_apart(self, ledger: Ledger) -> None:
        held(ledger, claim(7))
        held(ledger, claim(7, key=OTHER))

    def test_gives_the_units_back_on_release(self, ledger: Ledger) -> None:
        ledger.release(held(ledger, claim(7)))
        held(ledger, claim(7))

    def test_counts_no_longer_when_it_expires(self, ledger: Ledger, clock: ManualClock) -> None:
        held(ledger, claim(7), ttl=60)
        clock.advance(59.5)
        assert counted(ledger, claim()) == 10
        assert ledger.counts()["held"] == 1
        clock.advance(0.5)
        assert counted(ledger, claim()) == 3
        assert ledger.counts()["held"] == 0
        assert ledger.entries([State.HELD], 10) == []

    def test_is_exact_among_threads(self, ledger: Ledger) -> None:
        def consume(_: int) -> bool:
            hold = ledger.hold([claim(1, limit=100)], 60)
            if isinstance(hold, Hold):
                commit(ledger, hold)
            return isinstance(hold, Hold)

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(consume, range(160))) == 97
        assert sum(entry.amount for entry in ledger.entries([State.UNSENT], 200)) == 97

    def test_of_several_keys_takes_them_all(self, ledger: Ledger) -> None:
        held(ledger, claim(4), claim(5, key=OTHER))
        assert counted(ledger, claim()) == 7
        assert counted(ledger, claim(key=OTHER)) == 8

    def test_of_several_keys_takes_none_when_one_does_not_fit(self, ledger: Ledger) -> None:
        too_much = claim(8, key=OTHER)
        assert ledger.hold([claim(4), too_much, claim(99, key=UsageKey("ann", "", "x"))], 60) == Refused(too_much, 3)
        assert ledger.counts() == NOTHING
        assert counted(ledger, claim()) == 3

    def test_that_is_refused_does_not_note_its_newer_snapshots(self, ledger: Ledger) -> None:
        held(ledger, claim(1, known=5, ticket=1))
        ledger.hold([claim(1, known=2, ticket=9), claim(99, key=OTHER)], 60)
        assert counted(ledger, claim(known=4, ticket=5)) == 5

    def test_of_one_key_twice_takes_both(self, ledger: Ledger) -> None:
        assert isinstance(ledger.hold([claim(4), claim(4)], 60), Refused)
        held(ledger, claim(4), claim(3))
        assert counted(ledger, claim()) == 10

    def test_of_several_keys_is_released_wholly(self, ledger: Ledger) -> None:
        ledger.release(held(ledger, claim(4), claim(5, key=OTHER)))
        assert ledger.counts() == NOTHING


class TestRenewal:
    def test_lets_a_hold_last_from_now_on(self, ledger: Ledger, clock: ManualClock) -> None:
        hold, other = held(ledger, claim(3), ttl=60), held(ledger, claim(4), ttl=60)
        clock.advance(50)
        ledger.renew([hold, other], 60)
        clock.advance(59.5)
        assert counted(ledger, claim()) == 10
        clock.advance(0.5)
        assert counted(ledger, claim()) == 3

    def test_of_an_expired_hold_takes_the_units_again(self, ledger: Ledger, clock: ManualClock) -> None:
        hold = held(ledger, claim(7))
        clock.advance(60)
        ledger.renew([hold], 60)
        assert counted(ledger, claim()) == 10
        commit(ledger, hold)
        assert ledger.counts() == {**NOTHING, "unsent": 1}

    def test_of_a_hold_that_ended_does_nothing(self, ledger: Ledger) -> None:
        released, committed = held(ledger, claim(1)), held(ledger, claim(2))
        ledger.release(released)
        commit(ledger, committed)
        ledger.renew([released, committed], 60)
        assert counted(ledger, claim()) == 5
        assert ledger.counts() == {**NOTHING, "unsent": 1}


class TestCommit:
    def test_turns_the_hold_into_unsent_usage_that_still_counts(self, ledger: Ledger) -> None:
        assert commit(ledger, held(ledger, claim(2))) == 5
        assert counted(ledger, claim()) == 5
        assert ledger.counts() == {**NOTHING, "unsent": 1}

    @pytest.mark.parametrize("amount", [0.5, 2, 9])
    def test_reports_what_was_used_and_not_what_was_held(self, ledger: Ledger, amount: float) -> None:
        assert commit(ledger, held(ledger, claim(2)), amount) == 3 + amount
        assert amounts(taken(ledger)) == [amount]

    def test_of_nothing_reports_nothing(self, ledger: Ledger) -> None:
        assert commit(ledger, held(ledger, claim(2)), 0) == 3
        assert ledger.take_batch(100, LEASE) is None
        assert ledger.counts() == NOTHING

    def test_records_each_key_and_tells_its_usage(self, ledger: Ledger) -> None:
        hold = held(ledger, claim(2), claim(5, known=1, key=OTHER))
        assert ledger.commit(hold, [Use(KEY, 2), Use(OTHER, 4)]) == [5, 5]
        assert [(report.key, report.amount) for report in taken(ledger).reports] == [(KEY, 2), (OTHER, 4)]

    def test_gives_back_the_keys_that_were_not_used(self, ledger: Ledger) -> None:
        ledger.commit(held(ledger, claim(2), claim(5, key=OTHER)), [Use(KEY, 2)])
        assert counted(ledger, claim(key=OTHER)) == 3

    @pytest.mark.parametrize("late", [60, 90_000])
    def test_of_an_expired_hold_is_recorded_and_counted_as_late(
        self, ledger: Ledger, clock: ManualClock, late: float
    ) -> None:
        hold = held(ledger, claim(2), claim(1, key=OTHER), ttl=60)
        clock.advance(late)
        ledger.take_batch(100, LEASE)
        ledger.commit(hold, [Use(KEY, 2), Use(OTHER, 1)])
        assert counted(ledger, claim()) == 5
        assert ledger.counts() == {**NOTHING, "unsent": 2, "late": 1}
        assert amounts(taken(ledger)) == [2, 1]

    def test_of_nothing_after_an_expired_hold_reports_nothing(self, ledger: Ledger, clock: ManualClock) -> None:
        hold = held(ledger, claim(2), ttl=60)
        clock.advance(90_000)
        ledger.take_batch(100, LEASE)
        commit(ledger, hold, 0)
        assert ledger.take_batch(100, LEASE) is None

    def test_tells_when_it_was_used(self, ledger: Ledger, clock: ManualClock) -> None:
        hold = held(ledger, claim(2))
        clock.advance(7.125)
        commit(ledger, hold)
        assert taken(ledger).reports[0].used_at == clock.now().timestamp()


class TestRecord:
    def test_counts_at_once(self, ledger: Ledger) -> None:
        held(ledger, claim(1))
        assert ledger.record(Use(KEY, 4)) == 7
        assert counted(ledger, claim()) == 8

    def test_of_a_key_that_nobody_asked_for_counts_with_the_snapshot_that_follows(self, ledger: Ledger) -> None:
        assert ledger.record(Use(KEY, 4)) == 4
        assert counted(ledger, claim()) == 7

    def test_of_less_usage_frees_nothing_before_it_is_acknowledged(self, ledger: Ledger) -> None:
        held(ledger, claim(7))
        assert ledger.record(Use(KEY, -2)) == 3
        assert counted(ledger, claim()) == 10
        ledger.acknowledge(answers(taken(ledger), 1))
        assert counted(ledger, claim()) == 8

    def test_of_a_total_counts_at_once_when_it_is_more(self, ledger: Ledger) -> None:
        held(ledger, claim(0))
        assert ledger.record(Use(KEY, 9, is_set=True)) == 9
        assert ledger.record(Use(KEY, 1)) == 10
        assert counted(ledger, claim()) == 10
        assert taken(ledger).reports[0].is_set

    def test_of_a_lower_total_frees_nothing_before_it_is_acknowledged(self, ledger: Ledger) -> None:
        held(ledger, claim(7))
        assert ledger.record(Use(KEY, 0, is_set=True)) == 3
        assert counted(ledger, claim()) == 10
        ledger.acknowledge(answers(taken(ledger), 0))
        assert counted(ledger, claim()) == 7

    def test_of_a_total_is_known_when_the_sidecar_does_not_say(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 8, is_set=True))
        ledger.acknowledge(answers(taken(ledger), None))
        assert counted(ledger, claim(ticket=0)) == 8

    def test_of_nothing_leaves_nothing_to_report(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 0))
        assert ledger.counts() == NOTHING


class TestCoalescing:
    def test_adds_up_what_is_unsent_for_one_key(self, ledger: Ledger, clock: ManualClock) -> None:
        commit(ledger, held(ledger, claim(2)))
        clock.advance(5)
        ledger.record(Use(KEY, 0.5))
        (report,) = taken(ledger).reports
        assert (report.amount, report.used_at) == (2.5, clock.now().timestamp())

    def test_adds_up_what_was_given_back(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, -2))
        ledger.record(Use(KEY, -1))
        assert amounts(taken(ledger)) == [-3]

    @pytest.mark.parametrize(
        "uses",
        [
            [Use(KEY, 3), Use(OTHER, 3)],
            [Use(KEY, 3), Use(KEY, -2)],
            [Use(KEY, -2), Use(KEY, 3)],
            [Use(KEY, 3), Use(KEY, 5, is_set=True)],
            [Use(KEY, 5, is_set=True), Use(KEY, 3)],
            [Use(KEY, 5, is_set=True), Use(KEY, 5, is_set=True)],
            [Use(KEY, 1), Use(KEY, 5, is_set=True), Use(KEY, 1)],
            [Use(KEY, 1, event=login(1)), Use(KEY, 1, event=login(2))],
            [Use(KEY, 1), Use(KEY, 1, event=login())],
            [Use(KEY, 1, event=login()), Use(KEY, 1)],
        ],
        ids=[
            "keys",
            "less",
            "more",
            "total after",
            "total before",
            "totals",
            "total between",
            "events",
            "event",
            "use",
        ],
    )
    def test_keeps_apart_what_is_not_the_same(self, ledger: Ledger, uses: list[Use]) -> None:
        for use in uses:
            ledger.record(use)
        kept = ledger.entries([State.UNSENT], 10)
        assert [(entry.key, entry.amount, entry.is_set, entry.event) for entry in kept] == [
            (use.key, use.amount, use.is_set, use.event) for use in uses
        ]

    def test_keeps_the_last_periods_usage_apart(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1, period_start=clock.now().timestamp() - 10))
        clock.advance(60)
        ledger.record(Use(KEY, 2, period_start=clock.now().timestamp() - 10))
        assert [entry.amount for entry in ledger.entries([State.UNSENT], 10)] == [1, 2]

    def test_leaves_a_report_alone_that_is_under_way(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 1))
        taken(ledger)
        ledger.record(Use(KEY, 2))
        assert [entry.amount for entry in ledger.entries([State.SENDING, State.UNSENT], 10)] == [1, 2]


class TestTickets:
    def test_grow(self, ledger: Ledger) -> None:
        ann, bob = [ledger.ticket("ann") for _ in range(3)], [ledger.ticket("bob") for _ in range(3)]
        for tickets in (ann, bob):
            assert 0 < tickets[0] < tickets[1] < tickets[2]

    def test_newer_snapshot_is_believed(self, ledger: Ledger) -> None:
        ledger.release(held(ledger, claim(known=8, ticket=ledger.ticket("ann"))))
        assert counted(ledger, claim(known=2, ticket=ledger.ticket("ann"))) == 2

    def test_older_snapshot_is_not(self, ledger: Ledger) -> None:
        before = ledger.ticket("ann")
        ledger.release(held(ledger, claim(known=8, ticket=ledger.ticket("ann"))))
        assert counted(ledger, claim(known=2, ticket=before)) == 8

    @pytest.mark.parametrize("current", [5.0, None])
    def test_snapshot_from_before_an_acknowledgement_does_not_lower_the_usage(
        self, ledger: Ledger, current: float | None
    ) -> None:
        before = ledger.ticket("ann")
        commit(ledger, held(ledger, claim(2, ticket=before)))
        ledger.acknowledge(answers(taken(ledger), current))
        assert counted(ledger, claim(known=3, ticket=before)) == 5

    def test_snapshot_from_after_the_acknowledgement_lowers_it(self, ledger: Ledger, clock: ManualClock) -> None:
        commit(ledger, held(ledger, claim(2, ticket=ledger.ticket("ann"))))
        ledger.acknowledge(answers(taken(ledger), 5))
        assert counted(ledger, claim(known=1, ticket=ledger.ticket("ann"), fetched=clock.now().timestamp())) == 1

    def test_snapshot_fetched_while_a_report_is_under_way_does_not_lower_it(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2, ticket=ledger.ticket("ann"))))
        batch = taken(ledger)
        during = ledger.ticket("ann")
        assert counted(ledger, claim(known=0, ticket=during)) == 5
        ledger.acknowledge(answers(batch, 5))
        assert counted(ledger, claim(known=0, ticket=during)) == 5

    def test_snapshot_fetched_before_the_report_began_does_not_lower_it_when_that_is_put_back(
        self, ledger: Ledger
    ) -> None:
        commit(ledger, held(ledger, claim(2, ticket=ledger.ticket("ann"))))
        before = ledger.ticket("ann")
        ledger.put_back(taken(ledger).reports)
        assert counted(ledger, claim(known=0, ticket=before)) == 5

    def test_snapshot_that_saw_a_recorded_report_under_way_does_not_lower_it_later(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 2))
        batch = taken(ledger)
        during = ledger.ticket("ann")
        ledger.acknowledge(answers(batch, 5))
        assert counted(ledger, claim(known=3, ticket=during)) == 5

    def test_process_with_an_old_snapshot_is_refused_what_another_has_used(self, ledger: Ledger) -> None:
        mine, theirs = ledger.ticket("ann"), ledger.ticket("ann")
        commit(ledger, held(ledger, claim(10, known=0, ticket=mine)))
        ledger.acknowledge(answers(taken(ledger), 10))
        assert ledger.counts() == NOTHING
        wish = claim(1, known=0, ticket=theirs)
        assert ledger.hold([wish], 60) == Refused(wish, 10)


class TestSettleGrace:
    GRACE = 10.0

    @pytest.fixture
    def settled(self, make_ledger: Make, url: str) -> Ledger:
        """A ledger in which 5 units were acknowledged just now."""
        ledger = make_ledger(url, settle_grace=self.GRACE)
        commit(ledger, held(ledger, claim(2)))
        ledger.acknowledge(answers(taken(ledger), 5))
        return ledger

    def newer(self, settled: Ledger, clock: ManualClock, known: float) -> Claim:
        return claim(known=known, ticket=settled.ticket("ann"), fetched=clock.now().timestamp())

    def test_newer_snapshot_within_it_does_not_lower_the_usage(self, settled: Ledger, clock: ManualClock) -> None:
        clock.advance(self.GRACE - 0.5)
        assert counted(settled, self.newer(settled, clock, known=3)) == 5

    def test_newer_snapshot_within_it_raises_the_usage(self, settled: Ledger, clock: ManualClock) -> None:
        assert counted(settled, self.newer(settled, clock, known=8)) == 8

    def test_snapshot_fetched_after_it_lowers_the_usage(self, settled: Ledger, clock: ManualClock) -> None:
        clock.advance(self.GRACE)
        assert counted(settled, self.newer(settled, clock, known=3)) == 3

    def test_time_of_the_fetch_counts_and_not_that_of_the_hold(self, settled: Ledger, clock: ManualClock) -> None:
        early = self.newer(settled, clock, known=3)
        clock.advance(self.GRACE)
        assert counted(settled, early) == 5

    def test_begins_again_with_each_acknowledgement(self, settled: Ledger, clock: ManualClock) -> None:
        clock.advance(self.GRACE)
        settled.record(Use(KEY, 1))
        settled.acknowledge(answers(taken(settled), 6))
        assert counted(settled, self.newer(settled, clock, known=3)) == 6

    def test_new_period_does_not_wait_for_it(self, settled: Ledger, clock: ManualClock) -> None:
        now = clock.now().timestamp()
        assert counted(settled, replace(self.newer(settled, clock, known=0), period_start=now)) == 0

    def test_lower_answer_to_a_report_does_not_wait_for_it(self, settled: Ledger) -> None:
        settled.record(Use(KEY, -4))
        settled.acknowledge(answers(taken(settled), 1))
        assert settled.known_usage(KEY) == 1


class TestPeriods:
    def test_new_period_begins_with_the_snapshots_usage(self, ledger: Ledger, clock: ManualClock) -> None:
        start = clock.now().timestamp()
        commit(ledger, held(ledger, claim(7, start=start, ticket=5)))
        clock.advance(3600)
        assert counted(ledger, claim(known=0, start=start + 3600, ticket=5)) == 0

    def test_usage_of_the_new_period_counts_in_it(self, ledger: Ledger, clock: ManualClock) -> None:
        start = clock.now().timestamp()
        hold = held(ledger, claim(2, start=start, known=9, limit=99))
        clock.advance(3600)
        commit(ledger, hold)
        assert counted(ledger, claim(known=0, start=start + 3600, ticket=2)) == 2

    def test_what_is_held_over_the_turn_counts_in_the_new_period(self, ledger: Ledger, clock: ManualClock) -> None:
        start = clock.now().timestamp()
        held(ledger, claim(2, start=start), ttl=7200)
        clock.advance(3600)
        assert counted(ledger, claim(known=0, start=start + 3600, ticket=2)) == 2

    def test_total_of_the_last_period_says_nothing_of_this_one(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 9, is_set=True))
        clock.advance(3600)
        assert counted(ledger, claim(known=0, start=clock.now().timestamp())) == 0

    def test_snapshot_of_the_last_period_does_not_bring_its_usage_back(self, ledger: Ledger) -> None:
        held(ledger, claim(1, known=0, start=200, ticket=2))
        assert counted(ledger, claim(known=9, start=100, ticket=3)) == 1

    def test_late_answer_about_the_last_period_says_nothing_of_this_one(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2, start=100)))
        batch = taken(ledger)
        ledger.release(held(ledger, claim(1, known=0, start=200, ticket=ledger.ticket("ann"))))
        ledger.acknowledge(answers(batch, 5, start=100))
        assert counted(ledger, claim(known=0, start=200, ticket=0)) == 0

    def test_answer_about_a_new_period_begins_it(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2, start=100)))
        ledger.acknowledge(answers(taken(ledger), 1, start=200))
        assert counted(ledger, claim(known=5, start=100, ticket=9)) == 1

    def test_answer_without_a_period_is_about_this_one(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2, start=100)))
        ledger.acknowledge(answers(taken(ledger), 5, start=0))
        assert counted(ledger, claim(known=3, start=100, ticket=1)) == 5

    def test_answer_without_figures_about_earlier_usage_says_nothing_of_this_period(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        commit(ledger, held(ledger, claim(2)))
        batch = taken(ledger)
        later = clock.now().timestamp() + 3600
        ledger.release(held(ledger, claim(known=0, start=later, ticket=ledger.ticket("ann"))))
        ledger.acknowledge(answers(batch, None))
        assert counted(ledger, claim(known=0, start=later, ticket=0)) == 0

    def test_newer_limit_holds_at_once(self, ledger: Ledger) -> None:
        held(ledger, claim(7, limit=10))
        held(ledger, claim(5, limit=20))
        assert isinstance(ledger.hold([claim(1, limit=12)], 60), Refused)


class TestBatches:
    def test_have_the_reports_in_the_order_of_their_use(self, ledger: Ledger) -> None:
        first, second = held(ledger, claim(1)), held(ledger, claim(2, key=OTHER))
        commit(ledger, second)
        ledger.record(Use(UsageKey("bob", "", "templates"), 5, is_set=True))
        commit(ledger, first)
        assert [(report.amount, report.is_set) for report in taken(ledger).reports] == [(2, 0), (5, 1), (1, 0)]

    def test_say_whose_usage_it_is(self, ledger: Ledger) -> None:
        ledger.record(Use(OTHER, 2.5))
        (report,) = taken(ledger).reports
        assert (report.key, report.state, report.attempts) == (OTHER, State.SENDING, 1)

    @pytest.mark.parametrize("odd", ["a:b", "a}b{", '"', "ü\n", "", " ", "a\x1fb", "%s", "ann"])
    def test_of_keys_that_look_alike_are_told_apart(self, ledger: Ledger, odd: str) -> None:
        keys = {
            UsageKey(*ids)
            for ids in [(odd, "", "x"), ("", odd, "x"), ("x", odd, ""), (odd + "x", "", ""), ("", "", odd)]
        }
        for number, key in enumerate(keys):
            ledger.record(Use(key, number + 1))
        reported: dict[UsageKey, float] = {}
        while (batch := ledger.take_batch(100, LEASE)) is not None:
            reported |= {report.key: report.amount for report in batch.reports}
        assert reported == {key: number + 1 for number, key in enumerate(keys)}

    @pytest.mark.parametrize("amount", [0.1, 1 / 3, 1e-300, 1e300, 2.0**53 + 2, -0.7])
    def test_carry_amounts_exactly(self, ledger: Ledger, amount: float) -> None:
        ledger.record(Use(KEY, amount))
        assert amounts(taken(ledger)) == [amount]

    def test_are_no_larger_than_asked(self, ledger: Ledger) -> None:
        for number in range(5):
            ledger.record(Use(UsageKey("ann", "", f"f{number}"), 1))
        assert [len(taken(ledger, 2).reports) for _ in range(3)] == [2, 2, 1]
        assert ledger.take_batch(2, LEASE) is None

    def test_of_one_key_follow_each_other(self, ledger: Ledger) -> None:
        for amount in (1, -2, 3):
            ledger.record(Use(KEY, amount))
        ledger.record(Use(OTHER, 4))
        first = taken(ledger)
        assert amounts(first) == [1, 4]
        assert ledger.take_batch(100, LEASE) is None
        ledger.acknowledge(answers(first, 1))
        second = taken(ledger)
        assert amounts(second) == [-2]
        ledger.acknowledge(answers(second, 0))
        assert amounts(taken(ledger)) == [3]

    def test_come_again_unchanged_when_the_lease_ends(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1))
        ledger.record(Use(OTHER, 1))
        batch = taken(ledger)
        ledger.record(Use(KEY, 2))
        clock.advance(LEASE - 0.5)
        assert ledger.take_batch(100, LEASE) is None
        clock.advance(0.5)
        again = taken(ledger)
        assert said(again) == said(batch)
        assert [report.attempts for report in again.reports] == [2, 2]
        assert ledger.take_batch(100, LEASE) is None

    def test_are_forgotten_when_acknowledged(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1))
        ledger.acknowledge(answers(taken(ledger), 4))
        clock.advance(LEASE)
        assert ledger.take_batch(100, LEASE) is None
        assert counted(ledger, claim(known=0, ticket=0)) == 4

    @pytest.mark.parametrize("current", [4.0, None])
    def test_are_learned_from_once_however_often_they_are_acknowledged(
        self, ledger: Ledger, clock: ManualClock, current: float | None
    ) -> None:
        ledger.record(Use(KEY, 4))
        slow = taken(ledger)
        clock.advance(LEASE)
        ledger.acknowledge(answers(taken(ledger), 4))
        ledger.record(Use(KEY, 3))
        ledger.acknowledge(answers(taken(ledger), 7))
        ledger.acknowledge(answers(slow, current))
        assert counted(ledger, claim(known=0, ticket=0)) == 7

    def test_are_unsent_again_when_put_back(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 1))
        ledger.record(Use(OTHER, 2))
        batch = taken(ledger)
        ledger.put_back(batch.reports[:1])
        assert ledger.counts() == {**NOTHING, "unsent": 1, "sending": 1}
        again = taken(ledger)
        assert amounts(again) == [1]
        assert again.id != batch.id

    def test_put_back_late_what_was_acknowledged_stays_settled(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 1))
        batch = taken(ledger)
        ledger.acknowledge(answers(batch, 1))
        ledger.put_back(batch.reports)
        assert ledger.counts() == NOTHING

    def test_wait_unchanged_when_postponed(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1))
        batch = taken(ledger)
        ledger.postpone(batch, 5)
        ledger.record(Use(KEY, 1))
        assert ledger.take_batch(100, LEASE) is None
        clock.advance(5)
        assert said(taken(ledger)) == said(batch)

    def test_fall_apart_when_split(self, ledger: Ledger) -> None:
        for key, amount in ((KEY, 1), (KEY, -2), (OTHER, 3)):
            ledger.record(Use(key, amount))
        whole = taken(ledger)
        ledger.split(whole)
        first, other = taken(ledger), taken(ledger)
        assert amounts(first) + amounts(other) == [1, 3]
        assert [report.attempts for report in (*first.reports, *other.reports)] == [1, 1]
        assert len({whole.id, first.id, other.id}) == 3
        assert ledger.take_batch(100, LEASE) is None
        ledger.acknowledge(answers(first, 1))
        assert amounts(taken(ledger)) == [-2]

    def test_acknowledging_part_of_one_leaves_the_rest(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1))
        ledger.record(Use(OTHER, 1))
        batch = taken(ledger)
        ledger.acknowledge(answers(batch, 4)[:1])
        clock.advance(LEASE)
        assert said(taken(ledger)) == said(Batch(batch.id, batch.reports[1:]))

    def test_each_goes_to_one_thread(self, ledger: Ledger) -> None:
        for number in range(64):
            ledger.record(Use(UsageKey("ann", "", f"f{number}"), 1))
        with ThreadPoolExecutor(16) as pool:
            batches = list(pool.map(lambda _: taken(ledger, 4), range(16)))
        ids = [report.id for batch in batches for report in batch.reports]
        assert len(ids) == len(set(ids)) == 64


class TestEvents:
    def test_carry_their_name_key_and_dimensions(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 2, event=login()))
        (report,) = taken(ledger).reports
        assert (report.key, report.amount, report.event) == (KEY, 2, login())

    def test_count_like_other_usage(self, ledger: Ledger) -> None:
        ledger.commit(held(ledger, claim(2)), [Use(KEY, 2, event=login())])
        assert counted(ledger, claim()) == 5
        ledger.acknowledge(answers(taken(ledger), None))
        assert counted(ledger, claim()) == 5

    def test_of_one_key_go_together(self, ledger: Ledger) -> None:
        for number in range(3):
            ledger.record(Use(KEY, 1, event=login(number)))
        assert [report.event for report in taken(ledger).reports] == [login(0), login(1), login(2)]

    def test_and_usages_go_in_different_batches(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 1, event=login(1)))
        ledger.record(Use(OTHER, 2))
        ledger.record(Use(OTHER, 3, event=login(2)))
        kinds = [[report.event is None for report in taken(ledger).reports] for _ in range(2)]
        assert sorted(kinds) == [[False, False], [True]]

    def test_come_again_unchanged_when_the_lease_ends(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1, event=login()))
        batch = taken(ledger)
        clock.advance(LEASE)
        assert said(taken(ledger)) == said(batch)

    def test_do_not_wait_for_each_other(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 1, event=login(1)))
        taken(ledger)
        ledger.record(Use(KEY, 1, event=login(2)))
        assert [report.event for report in taken(ledger).reports] == [login(2)]


class TestDoubt:
    def test_keeps_the_report_counting(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2)))
        ledger.doubt(taken(ledger).reports, 10, "deadline passed")
        assert ledger.counts() == {**NOTHING, "uncertain": 1}
        assert counted(ledger, claim()) == 5

    def test_says_why(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 2))
        ledger.doubt(taken(ledger).reports, 10, "deadline passed")
        (entry,) = ledger.entries([State.UNCERTAIN], 10)
        assert (entry.key, entry.amount, entry.reason, entry.attempts) == (KEY, 2, "deadline passed", 1)

    def test_is_due_for_a_decision_after_its_time_and_for_one_caller(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 2))
        ledger.doubt(taken(ledger).reports, 10, "deadline passed")
        clock.advance(9.5)
        assert ledger.take_uncertain(10, LEASE) == []
        clock.advance(0.5)
        assert [entry.amount for entry in ledger.take_uncertain(10, LEASE)] == [2]
        assert ledger.take_uncertain(10, LEASE) == []
        clock.advance(LEASE)
        assert [entry.amount for entry in ledger.take_uncertain(10, LEASE)] == [2]

    def test_is_decided_on_in_portions_oldest_first(self, ledger: Ledger) -> None:
        for number in range(3):
            ledger.record(Use(UsageKey("ann", "", f"f{number}"), number + 1))
        ledger.doubt(taken(ledger).reports, 0, "deadline passed")
        assert [[entry.amount for entry in ledger.take_uncertain(2, LEASE)] for _ in range(3)] == [[1, 2], [3], []]

    def test_holds_back_later_reports_of_the_key(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1))
        ledger.doubt(taken(ledger).reports, 10, "deadline passed")
        ledger.record(Use(KEY, 2))
        ledger.record(Use(OTHER, 3))
        assert amounts(taken(ledger)) == [3]
        clock.advance(10)
        assert ledger.take_batch(100, LEASE) is None
        ledger.acknowledge([Acknowledged(*ledger.take_uncertain(10, LEASE), 1, 0)])
        assert amounts(taken(ledger)) == [2]

    def test_for_a_person_lets_later_reports_of_the_key_go_on(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1))
        ledger.doubt(taken(ledger).reports, None, "deadline passed")
        ledger.record(Use(KEY, 2))
        assert amounts(taken(ledger)) == [2]
        clock.advance(1e6)
        assert ledger.take_uncertain(10, LEASE) == []

    def test_may_be_cast_again(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 2))
        ledger.doubt(taken(ledger).reports, 0, "deadline passed")
        ledger.doubt(ledger.take_uncertain(10, LEASE), 50, "not to be seen yet")
        assert ledger.entries([State.UNCERTAIN], 10)[0].reason == "not to be seen yet"
        clock.advance(50)
        ledger.doubt(ledger.take_uncertain(10, LEASE), None, "never to be seen")
        clock.advance(LEASE)
        assert ledger.take_uncertain(10, LEASE) == []
        assert ledger.counts() == {**NOTHING, "uncertain": 1}

    def test_ends_with_an_acknowledgement(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2)))
        ledger.doubt(taken(ledger).reports, 0, "deadline passed")
        ledger.acknowledge([Acknowledged(*ledger.take_uncertain(10, LEASE), 5, 0)])
        assert ledger.counts() == NOTHING
        assert counted(ledger, claim()) == 5

    def test_ends_when_the_report_is_put_back(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 2))
        ledger.doubt(taken(ledger).reports, 0, "deadline passed")
        ledger.put_back(ledger.take_uncertain(10, LEASE))
        (entry,) = ledger.entries([State.UNSENT], 10)
        assert (entry.amount, entry.reason) == (2, "")
        assert amounts(taken(ledger)) == [2]

    @pytest.mark.parametrize("seconds", [10, None])
    def test_leaves_the_usage_alone_that_a_newer_snapshot_tells(self, ledger: Ledger, seconds: float | None) -> None:
        commit(ledger, held(ledger, claim(2)))
        ledger.doubt(taken(ledger).reports, seconds, "deadline passed")
        assert counted(ledger, claim(known=9, ticket=ledger.ticket("ann"))) == 5

    def test_comes_too_late_for_what_was_acknowledged(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 2))
        batch = taken(ledger)
        ledger.acknowledge(answers(batch, 2))
        ledger.doubt(batch.reports, 10, "deadline passed")
        assert ledger.counts() == NOTHING

    def test_of_a_part_leaves_the_rest_of_the_batch(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1))
        ledger.record(Use(OTHER, 2))
        batch = taken(ledger)
        ledger.doubt(batch.reports[:1], 10, "deadline passed")
        clock.advance(LEASE)
        assert said(taken(ledger)) == said(Batch(batch.id, batch.reports[1:]))


class TestOperators:
    @pytest.fixture
    def entries(self, ledger: Ledger) -> dict[State, Entry]:
        """One entry in each state, in the order dead, uncertain, sending, unsent, held."""
        for number in range(3):
            ledger.record(Use(UsageKey("ann", "", f"f{number}"), number + 1))
        dead, uncertain, _ = taken(ledger).reports
        ledger.bury(dead, "feature_id: unknown")
        ledger.doubt([uncertain], None, "deadline passed")
        ledger.record(Use(KEY, 4))
        held(ledger, claim(5, key=OTHER))
        return {entry.state: entry for entry in ledger.entries(list(State), 10)}

    def test_buried_report_is_kept_with_its_reason_and_counts_no_more(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 1))
        ledger.bury(taken(ledger).reports[0], "feature_id: unknown")
        assert ledger.counts() == {**NOTHING, "dead": 1}
        assert counted(ledger, claim()) == 3
        assert ledger.take_batch(100, LEASE) is None
        (entry,) = ledger.entries([State.DEAD], 10)
        assert (entry.amount, entry.reason, entry.attempts) == (1, "feature_id: unknown", 1)

    def test_buried_report_does_not_hold_up_its_key(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 1))
        ledger.bury(taken(ledger).reports[0], "feature_id: unknown")
        ledger.record(Use(KEY, 2))
        assert amounts(taken(ledger)) == [2]

    def test_see_every_entry_and_its_state(self, ledger: Ledger, entries: dict[State, Entry]) -> None:
        assert {state: entry.amount for state, entry in entries.items()} == {
            State.DEAD: 1,
            State.UNCERTAIN: 2,
            State.SENDING: 3,
            State.UNSENT: 4,
            State.HELD: 5,
        }
        assert len({entry.id for entry in entries.values()}) == 5
        assert ledger.counts() == {**dict.fromkeys(NOTHING, 1), "late": 0}

    def test_see_the_oldest_first_of_the_states_they_ask_for(self, ledger: Ledger, clock: ManualClock) -> None:
        for number in range(5):
            ledger.record(Use(UsageKey("ann", "", f"f{number}"), number))
            clock.advance(1)
        ledger.bury(taken(ledger, 1).reports[0], "feature_id: unknown")
        assert [entry.amount for entry in ledger.entries([State.UNSENT], 2)] == [2, 3]
        assert [entry.amount for entry in ledger.entries([State.DEAD, State.UNSENT], 9)] == [1, 2, 3, 4]
        assert ledger.entries([State.UNCERTAIN], 9) == []

    def test_retry_what_is_dead_or_uncertain_and_nothing_else(
        self, ledger: Ledger, entries: dict[State, Entry]
    ) -> None:
        assert ledger.retry([entry.id for entry in entries.values()] + ["no-such-entry"]) == 2
        assert ledger.counts() == {**NOTHING, "held": 1, "sending": 1, "unsent": 3}
        retried = taken(ledger)
        assert [(report.amount, report.reason, report.attempts) for report in retried.reports] == [
            (1, "", 1),
            (2, "", 1),
            (4, "", 1),
        ]

    def test_discard_what_is_dead_or_uncertain_and_nothing_else(
        self, ledger: Ledger, entries: dict[State, Entry]
    ) -> None:
        assert ledger.discard([entry.id for entry in entries.values()] + ["no-such-entry"]) == 2
        assert ledger.counts() == {**NOTHING, "held": 1, "sending": 1, "unsent": 1}
        assert ledger.retry([entries[State.DEAD].id]) == 0

    def test_usage_is_known_once_the_sidecar_told_of_it(self, ledger: Ledger) -> None:
        assert ledger.known_usage(KEY) is None
        ledger.record(Use(KEY, 2))
        ledger.acknowledge(answers(taken(ledger), 5))
        assert ledger.known_usage(KEY) == 5
        assert ledger.known_usage(OTHER) is None

    def test_usage_that_is_not_acknowledged_is_not_known(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2)))
        assert ledger.known_usage(KEY) == 3


class TestClose:
    def test_refuses_what_comes_later(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 1))
        ledger.close()
        with pytest.raises(ClientClosed, match="make a new one"):
            ledger.record(Use(KEY, 1))

    def test_twice_or_unused_is_harmless(self, ledger: Ledger) -> None:
        ledger.close()
        ledger.close()


class TestReopening:
    @pytest.fixture(params=["file_url", "redis_url", "django_sqlite_url", "django_postgres_url"])
    def url(self, request: pytest.FixtureRequest) -> str:
        return str(request.getfixturevalue(request.param))

    def test_brings_everything_back(self, make_ledger: Make, url: str) -> None:
        first = make_ledger(url)
        held(first, claim(1))
        commit(first, held(first, claim(2)))
        last = first.ticket("ann")
        first.close()
        second = make_ledger(url)
        assert second.counts() == {**NOTHING, "held": 1, "unsent": 1}
        assert counted(second, claim(known=0, ticket=0)) == 6
        assert second.ticket("ann") > last

    def test_brings_back_what_a_process_that_died_was_sending(
        self, make_ledger: Make, url: str, clock: ManualClock
    ) -> None:
        first = make_ledger(url)
        first.record(Use(KEY, 1))
        batch = taken(first)
        second = make_ledger(url)
        assert second.take_batch(100, LEASE) is None
        clock.advance(LEASE)
        assert said(taken(second)) == said(batch)

    def test_lets_a_hold_be_committed_by_whoever_has_it(self, make_ledger: Make, url: str) -> None:
        hold = held(make_ledger(url), claim(2))
        assert commit(make_ledger(url), hold) == 5
        assert make_ledger(url).counts() == {**NOTHING, "unsent": 1}


CONSUMES = """
import sys
from stigg_guard.clock import Clock
from stigg_guard.ledger import Claim, Hold, UsageKey, Use, ledger_from_url

ledger = ledger_from_url(sys.argv[1], Clock())
print("ready", flush=True)
sys.stdin.readline()
key = UsageKey("ann", "", "templates")
sold = 0
for _ in range(100):
    hold = ledger.hold([Claim(key, 1, 50, 0, 0, 1)], 60)
    if isinstance(hold, Hold):
        ledger.commit(hold, [Use(key, 1)])
        sold += 1
print(sold, flush=True)
sys.stdin.readline()  # then the process is killed
"""


class TestProcesses:
    def test_share_one_limit_and_lose_nothing_when_killed(self, make_ledger: Make, file_url: str) -> None:
        command = [sys.executable, "-c", CONSUMES, file_url]
        both = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            for _ in range(2)
        ]
        for process in both:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in both:
            assert process.stdin is not None
            process.stdin.write("\n")
        assert sum(int(process.stdout.readline()) for process in both if process.stdout) == 50
        for process in both:
            process.kill()
            process.communicate()
        assert [entry.amount for entry in make_ledger(file_url).entries([State.UNSENT], 10)] == [50]


class Interrupted(list[T]):
    """Given to a step, which reads it a second time when it has begun: then something comes by after the first item."""

    def __init__(self, items: Sequence[T], comes_by: Callable[[], object]) -> None:
        super().__init__(items)
        self._comes_by = comes_by
        self._read = 0

    def __iter__(self) -> Iterator[T]:
        self._read += 1
        for number, item in enumerate(super().__iter__()):
            if (self._read, number) == (2, 1):
                self._comes_by()
            yield item


class TestFinalizer:
    """Something that is dropped in the middle of a step of its own thread."""

    def test_gives_back_its_hold_and_leaves_the_step_whole(self, ledger: Ledger) -> None:
        dropped = held(ledger, claim(2, key=OTHER))
        wishes = [claim(3, limit=6), claim(1, key=THIRD)]
        assert isinstance(ledger.hold(Interrupted(wishes, lambda: ledger.release(dropped)), 60), Hold)
        assert [counted(ledger, claim(key=key)) for key in (KEY, OTHER, THIRD)] == [6, 3, 4]

    def test_gives_back_its_hold_although_the_step_is_refused(self, ledger: Ledger) -> None:
        dropped = held(ledger, claim(2, key=OTHER))
        wishes = [claim(3, limit=6), claim(1, limit=3, key=THIRD)]
        assert isinstance(ledger.hold(Interrupted(wishes, lambda: ledger.release(dropped)), 60), Refused)
        assert [counted(ledger, claim(key=key)) for key in (KEY, OTHER, THIRD)] == [3, 3, 3]
        ledger.record(Use(KEY, 1))
        assert ledger.counts()["held"] == 0

    @pytest.mark.parametrize("url", ["memory_url", "file_url"], indirect=True)
    def test_finds_the_ledger_busy_for_everything_else(self, ledger: Ledger) -> None:
        def record() -> None:
            with pytest.raises(LedgerUnavailable, match="in the middle of a step"):
                ledger.record(Use(OTHER, 1))

        ledger.hold(Interrupted([claim(1), claim(2)], record), 60)
        assert [counted(ledger, claim(key=key)) for key in (KEY, OTHER)] == [6, 3]


def fork_without_hooks() -> int:
    """Forks as a server written in C does: Python is not told."""
    return int(ctypes.PyDLL(None).fork())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
class TestFork:
    def test_child_uses_the_file_while_threads_of_its_parent_do(self, make_ledger: Make, file_url: str) -> None:
        ledger = make_ledger(file_url)
        enough = threading.Event()

        def record() -> int:
            for done in count():
                if enough.is_set():
                    return done
                ledger.record(Use(KEY, 1))
            return 0

        def records_one() -> bool:
            ledger.record(Use(OTHER, 1))
            return True

        with ThreadPoolExecutor(3) as pool:
            working = [pool.submit(record) for _ in range(3)]
            children = [in_child(records_one) for _ in range(10)]
            enough.set()
        assert children == [True] * 10
        recorded = {entry.key: entry.amount for entry in ledger.entries([State.UNSENT], 10)}
        assert recorded == {KEY: sum(one.result() for one in working), OTHER: 10}

    @pytest.mark.parametrize("fork", [os.fork, fork_without_hooks])
    def test_child_goes_on_when_its_parent_has_closed_the_file(
        self, make_ledger: Make, file_url: str, fork: Callable[[], int]
    ) -> None:
        ledger, again = make_ledger(file_url), make_ledger(file_url)
        ready, closed = os.pipe(), os.pipe()
        ledger.record(Use(KEY, 1))
        pid = fork()
        if pid == 0:
            ledger.record(Use(KEY, 2))
            os.write(ready[1], b".")
            os.read(closed[0], 1)
            ledger.record(Use(KEY, 3))
            os._exit(0)
        os.read(ready[0], 1)
        ledger.close()
        os.write(closed[1], b".")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for end in (*ready, *closed):
            os.close(end)
        assert amounts(taken(again)) == [6]

    @pytest.mark.parametrize("fork", [os.fork, fork_without_hooks])
    def test_child_shares_the_limit_of_the_file(
        self, make_ledger: Make, file_url: str, fork: Callable[[], int]
    ) -> None:
        ledger = make_ledger(file_url)
        commit(ledger, held(ledger, claim(2)))
        assert in_child(lambda: commit(ledger, held(ledger, claim(3))) == 8, fork)
        assert counted(ledger, claim()) == 8

    @pytest.mark.parametrize("fork", [os.fork, fork_without_hooks])
    def test_child_does_not_report_what_its_parent_has_in_memory(
        self, make_ledger: Make, fork: Callable[[], int]
    ) -> None:
        ledger = make_ledger("memory://")
        ledger.record(Use(KEY, 1))
        assert in_child(lambda: ledger.take_batch(100, LEASE) is None, fork)
        assert ledger.counts()["unsent"] == 1


RECORDS_ON_A_FULL_DISK = """
import resource, sys
from stigg_guard.clock import Clock
from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger import UsageKey, Use, ledger_from_url

ledger = ledger_from_url(sys.argv[1], Clock())
recorded = 0

def record():
    global recorded
    ledger.record(Use(UsageKey("ann", "", f"f{recorded}"), 1))
    recorded += 1

record()
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
try:
    while True:
        record()
except LedgerUnavailable as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
record()
print(recorded)
"""

RECORDS_IN_A_READ_ONLY_FILE = """
import os, sys
from stigg_guard.clock import Clock
from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger import UsageKey, Use, ledger_from_url

path = sys.argv[1]
url = f"sqlite:///{path}"
writable = ledger_from_url(url, Clock())
writable.record(Use(UsageKey("ann", "", "f"), 1))
writable.close()
os.chmod(path, 0o444)
if os.geteuid() == 0:
    os.seteuid(65534)  # nothing is read-only for root
try:
    ledger_from_url(url, Clock()).record(Use(UsageKey("ann", "", "f"), 1))
except LedgerUnavailable as error:
    print(error)
"""


def output_of(program: str, argument: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, argument], capture_output=True, text=True, check=True, timeout=WAIT
    )
    return done.stdout.splitlines()


class TestOutage:
    def test_full_disk_is_told_of_and_loses_nothing(self, make_ledger: Make, file_url: str) -> None:
        told, recorded = output_of(RECORDS_ON_A_FULL_DISK, file_url)
        assert "ledger.db cannot be used" in told
        assert make_ledger(file_url).counts()["unsent"] == int(recorded)

    def test_file_that_is_read_only_is_told_of(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o777)
            (told,) = output_of(RECORDS_IN_A_READ_ONLY_FILE, f"{folder}/ledger.db")
        assert "ledger.db cannot be used" in told

    def test_step_that_fails_halfway_changes_nothing(
        self, make_ledger: Make, file_url: str, clock: ManualClock
    ) -> None:
        ledger = make_ledger(file_url)
        ledger.record(Use(KEY, 1))
        ledger.record(Use(OTHER, 1))
        batch = taken(ledger)
        good, bad = answers(batch, 4)
        with pytest.raises(LedgerUnavailable):
            ledger.acknowledge([good, replace(bad, current_usage=[])])
        clock.advance(LEASE)
        assert said(taken(ledger)) == said(batch)


class TestHome:
    @pytest.mark.parametrize(
        "url",
        [
            *("", "memory", "memory:", "memory://x", "sqlite://", "sqlite:///", "sqlite://host/ledger.db", "ledger.db"),
            *("sqlite:///ledger.db?mode=ro", "sqlite:///a#b", "postgres:///x", "file:///x", "sqlite://[", ":///x"),
        ],
    )
    def test_url_of_no_ledger_is_refused_with_the_remedy(self, url: str, clock: ManualClock) -> None:
        with pytest.raises(ConfigError, match=r"LEDGER: .*memory://.* sqlite:///path"):
            ledger_from_url(url, clock.clock)

    def test_password_in_a_url_is_not_repeated(self, clock: ManualClock) -> None:
        with pytest.raises(ConfigError) as caught:
            ledger_from_url("mysql://root:hunter2@db/x", clock.clock)
        assert "hunter2" not in str(caught.value)

    def test_path_is_relative_or_with_a_fourth_slash_absolute(
        self, make_ledger: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for url in ("sqlite:///a%20b.db", f"sqlite:///{tmp_path}/c.db"):
            make_ledger(url).record(Use(KEY, 1))
        assert (tmp_path / "a b.db").exists()
        assert (tmp_path / "c.db").exists()

    def test_nothing_is_opened_before_the_first_use(self, make_ledger: Make, tmp_path: Path, file_url: str) -> None:
        make_ledger(file_url)
        assert list(tmp_path.iterdir()) == []

    def test_memory_says_that_it_forgets(self, make_ledger: Make, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", "stigg_guard"):
            make_ledger("memory://")
        assert "lost when this process ends" in caplog.text

    def test_folder_is_refused(self, make_ledger: Make, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=rf"LEDGER: {tmp_path} is a folder; name a file"):
            make_ledger(f"sqlite:///{tmp_path}").counts()

    def test_damaged_file_is_unavailable_until_it_is_put_right(self, make_ledger: Make, tmp_path: Path) -> None:
        damaged = tmp_path / "ledger.db"
        damaged.write_bytes(b"long enough to be read as one" * 100)
        ledger = make_ledger(f"sqlite:///{damaged}")
        with pytest.raises(LedgerUnavailable, match="not a database"):
            ledger.counts()
        damaged.unlink()
        assert ledger.counts()["held"] == 0

    def test_file_in_a_missing_folder_is_refused_with_the_remedy(self, clock: ManualClock, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"no folder for .*ledger\.db; make it, or name another file"):
            ledger_from_url(f"sqlite:///{tmp_path}/missing/ledger.db", clock.clock)

    def test_database_of_another_program_is_refused_and_left_as_it_is(self, make_ledger: Make, tmp_path: Path) -> None:
        path = tmp_path / "shop.db"
        with sqlite3.connect(path) as shop:
            shop.execute("CREATE TABLE orders (id INTEGER)")
        shop.close()
        before = path.read_bytes()
        with pytest.raises(ConfigError, match="database of another program"):
            make_ledger(f"sqlite:///{path}").counts()
        assert path.read_bytes() == before

    def test_ledger_of_a_newer_version_is_refused_with_the_remedy(
        self, make_ledger: Make, tmp_path: Path, file_url: str
    ) -> None:
        make_ledger(file_url).record(Use(KEY, 1))
        with sqlite3.connect(tmp_path / "ledger.db") as database:
            database.execute("PRAGMA user_version = 3")
        database.close()
        with pytest.raises(ConfigError, match="newer version of stigg-guard; update this one"):
            make_ledger(file_url).counts()


class TestRemovedFile:
    def test_is_told_of_and_a_new_one_is_begun(
        self, make_ledger: Callable[[str], Ledger], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = f"sqlite:///{tmp_path}/ledger.db"
        one, other = make_ledger(url), make_ledger(url)
        held(one, claim(7))
        for file in tmp_path.glob("ledger.db*"):
            file.unlink()
        held(other, claim(7))
        assert isinstance(one.hold([claim(1)], 60), Refused)
        assert "was removed or replaced while in use" in caplog.text


class TestVersion1:
    """A ledger that version 0.1.0 left behind: a batch of two reports under way, one unsent, one dead."""

    @pytest.fixture
    def old(self, make_ledger: Make, tmp_path: Path, file_url: str) -> Ledger:
        database = sqlite3.connect(tmp_path / "ledger.db")
        database.executescript(VERSION_1.read_text())
        database.close()
        return make_ledger(file_url)

    def test_keeps_its_reports(self, old: Ledger) -> None:
        assert old.counts() == {**NOTHING, "unsent": 1, "sending": 2, "dead": 1}
        assert [
            (entry.key, entry.state, entry.amount, entry.is_set, entry.used_at) for entry in old.entries(list(State), 9)
        ] == [
            (KEY, State.SENDING, 2, False, 1001),
            (OTHER, State.SENDING, 7, True, 1002),
            (KEY, State.UNSENT, 0.5, False, 1003),
            (UsageKey("bob", "", "templates"), State.DEAD, 5, False, 1004),
        ]

    def test_keeps_the_batch_that_was_under_way(self, old: Ledger) -> None:
        batch = taken(old)
        assert (batch.id, amounts(batch)) == ("b", [2, 7])

    def test_keeps_why_a_report_is_dead(self, old: Ledger) -> None:
        assert [entry.reason for entry in old.entries([State.DEAD], 9)] == ["feature_id: unknown"]

    def test_keeps_the_usage_and_the_tickets(self, old: Ledger) -> None:
        assert old.known_usage(KEY) == 3
        assert counted(old, claim(known=0, ticket=40)) == 5.5
        assert old.ticket("ann") == 42

    def test_is_brought_up_to_date_once(self, old: Ledger, make_ledger: Make, file_url: str) -> None:
        old.record(Use(KEY, 1))
        old.close()
        assert make_ledger(file_url).counts() == {**NOTHING, "unsent": 1, "sending": 2, "dead": 1}
