"""The ledger: holds and unsent usage, in memory and in a file."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from conftest import ManualClock
from stigg_guard.errors import ClientClosed, ConfigError
from stigg_guard.ledger import Acknowledged, Batch, Claim, Hold, Ledger, Refused, UsageKey, ledger_from_url

KEY = UsageKey("ann", "", "templates")
OTHER = UsageKey("ann", "site-01", "templates")
LEASE = 30.0
WAIT = 30.0


def claim(amount: float = 1, limit: float | None = 10, known: float = 3, start: float = 0, ticket: int = 1) -> Claim:
    return Claim(KEY, amount, limit, known, start, ticket)


def held(ledger: Ledger, wish: Claim, ttl: float = 60) -> Hold:
    answer = ledger.hold(wish, ttl)
    assert isinstance(answer, Hold), answer
    return answer


def counted(ledger: Ledger, wish: Claim) -> float:
    """What counts against the limit, told by a claim that no limit has room for."""
    answer = ledger.hold(replace(wish, amount=1e9), 60)
    assert isinstance(answer, Refused)
    return answer.counted


def taken(ledger: Ledger, size: int = 100) -> Batch:
    batch = ledger.take_batch(size, LEASE)
    assert batch is not None
    return batch


def answers(batch: Batch, current: float | None, start: float = 0) -> list[Acknowledged]:
    return [Acknowledged(report, current, start) for report in batch.reports]


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def make_ledger(clock: ManualClock) -> Iterator[Callable[[str], Ledger]]:
    made: list[Ledger] = []

    def make(url: str) -> Ledger:
        made.append(ledger_from_url(url, clock.clock))
        return made[-1]

    yield make
    for ledger in made:
        ledger.close()


@pytest.fixture
def ledger(make_ledger: Callable[[str], Ledger], url: str) -> Ledger:
    return make_ledger(url)


class TestHold:
    def test_takes_units_until_the_limit_is_reached(self, ledger: Ledger) -> None:
        assert isinstance(ledger.hold(claim(4), 60), Hold)
        assert isinstance(ledger.hold(claim(3), 60), Hold)
        assert ledger.hold(claim(0.5), 60) == Refused(10)

    def test_of_nothing_fits_a_full_limit_and_not_one_that_is_passed(self, ledger: Ledger) -> None:
        assert isinstance(ledger.hold(claim(0, known=10), 60), Hold)
        assert ledger.hold(replace(claim(0, known=11), key=OTHER), 60) == Refused(11)

    def test_without_a_limit_always_succeeds(self, ledger: Ledger) -> None:
        assert isinstance(ledger.hold(claim(1e12, limit=None), 60), Hold)

    def test_leaves_nothing_behind_when_it_is_refused(self, ledger: Ledger) -> None:
        ledger.hold(claim(99), 60)
        assert ledger.counts() == {"held": 0, "unsent": 0, "sending": 0, "dead": 0}

    def test_keeps_keys_apart(self, ledger: Ledger) -> None:
        held(ledger, claim(7))
        assert isinstance(ledger.hold(replace(claim(7), key=OTHER), 60), Hold)

    def test_gives_the_units_back_on_release(self, ledger: Ledger) -> None:
        ledger.release(held(ledger, claim(7)))
        assert isinstance(ledger.hold(claim(7), 60), Hold)

    def test_counts_no_longer_when_it_expires(self, ledger: Ledger, clock: ManualClock) -> None:
        held(ledger, claim(7), ttl=60)
        clock.advance(59.5)
        assert counted(ledger, claim()) == 10
        assert ledger.counts()["held"] == 1
        clock.advance(0.5)
        assert counted(ledger, claim()) == 3
        assert ledger.counts()["held"] == 0

    def test_is_exact_among_threads(self, ledger: Ledger) -> None:
        def consume(_: int) -> bool:
            hold = ledger.hold(claim(1, limit=100), 60)
            if isinstance(hold, Hold):
                ledger.commit(hold, 1)
            return isinstance(hold, Hold)

        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(consume, range(160))) == 97
        assert ledger.counts()["unsent"] == 97


class TestCommit:
    def test_turns_the_hold_into_unsent_usage_that_still_counts(self, ledger: Ledger) -> None:
        assert ledger.commit(held(ledger, claim(2)), 2) == 5
        assert counted(ledger, claim()) == 5
        assert ledger.counts() == {"held": 0, "unsent": 1, "sending": 0, "dead": 0}

    @pytest.mark.parametrize("amount", [0.5, 2, 9])
    def test_reports_what_was_used_and_not_what_was_held(self, ledger: Ledger, amount: float) -> None:
        assert ledger.commit(held(ledger, claim(2)), amount) == 3 + amount
        assert [report.amount for report in taken(ledger).reports] == [amount]

    def test_of_nothing_reports_nothing(self, ledger: Ledger) -> None:
        assert ledger.commit(held(ledger, claim(2)), 0) == 3
        assert ledger.take_batch(100, LEASE) is None

    @pytest.mark.parametrize("late", [61, 90_000])
    def test_of_an_expired_hold_is_recorded(self, ledger: Ledger, clock: ManualClock, late: float) -> None:
        hold = held(ledger, claim(2), ttl=60)
        clock.advance(late)
        ledger.take_batch(100, LEASE)
        ledger.commit(hold, 2)
        assert counted(ledger, claim()) == 5
        assert [report.amount for report in taken(ledger).reports] == [2]

    def test_of_nothing_after_an_expired_hold_reports_nothing(self, ledger: Ledger, clock: ManualClock) -> None:
        hold = held(ledger, claim(2), ttl=60)
        clock.advance(90_000)
        ledger.take_batch(100, LEASE)
        ledger.commit(hold, 0)
        assert ledger.take_batch(100, LEASE) is None

    def test_tells_when_it_was_used(self, ledger: Ledger, clock: ManualClock) -> None:
        hold = held(ledger, claim(2))
        clock.advance(7)
        ledger.commit(hold, 2)
        assert taken(ledger).reports[0].used_at == clock.now().timestamp()


class TestRecord:
    def test_counts_at_once(self, ledger: Ledger) -> None:
        ledger.record(KEY, 4)
        assert counted(ledger, claim()) == 7

    def test_of_less_usage_frees_nothing_before_it_is_acknowledged(self, ledger: Ledger) -> None:
        held(ledger, claim(7))
        ledger.record(KEY, -5)
        assert counted(ledger, claim()) == 10

    def test_of_a_total_counts_at_once_when_it_is_more(self, ledger: Ledger) -> None:
        ledger.record(KEY, 10, is_set=True)
        assert ledger.hold(claim(1), 60) == Refused(10)
        assert taken(ledger).reports[0].is_set

    def test_of_a_lower_total_frees_nothing_before_it_is_acknowledged(self, ledger: Ledger) -> None:
        held(ledger, claim(7))
        ledger.record(KEY, 0, is_set=True)
        assert counted(ledger, claim()) == 10

    def test_of_a_total_is_known_when_the_sidecar_does_not_say(self, ledger: Ledger) -> None:
        ledger.record(KEY, 8, is_set=True)
        ledger.acknowledge(answers(taken(ledger), None))
        assert counted(ledger, claim(ticket=0)) == 8


class TestTickets:
    def test_grow(self, ledger: Ledger) -> None:
        assert ledger.ticket("ann") < ledger.ticket("bob") < ledger.ticket("ann")

    def test_newer_snapshot_is_believed(self, ledger: Ledger) -> None:
        ledger.release(held(ledger, claim(known=8, ticket=ledger.ticket("ann"))))
        assert counted(ledger, claim(known=2, ticket=ledger.ticket("ann"))) == 2

    @pytest.mark.parametrize("current", [5.0, None])
    def test_snapshot_from_before_an_acknowledgement_does_not_lower_the_usage(
        self, ledger: Ledger, current: float | None
    ) -> None:
        before = ledger.ticket("ann")
        ledger.commit(held(ledger, claim(2, ticket=before)), 2)
        ledger.acknowledge(answers(taken(ledger), current))
        assert counted(ledger, claim(known=3, ticket=before)) == 5

    def test_snapshot_from_after_the_acknowledgement_lowers_it(self, ledger: Ledger) -> None:
        ledger.commit(held(ledger, claim(2, ticket=ledger.ticket("ann"))), 2)
        ledger.acknowledge(answers(taken(ledger), 5))
        assert counted(ledger, claim(known=1, ticket=ledger.ticket("ann"))) == 1

    def test_snapshot_fetched_while_a_report_is_under_way_does_not_lower_it(self, ledger: Ledger) -> None:
        ledger.commit(held(ledger, claim(2, ticket=ledger.ticket("ann"))), 2)
        batch = taken(ledger)
        during = ledger.ticket("ann")
        assert counted(ledger, claim(known=0, ticket=during)) == 5
        ledger.acknowledge(answers(batch, 5))
        assert counted(ledger, claim(known=0, ticket=during)) == 5

    def test_snapshot_that_saw_a_recorded_report_under_way_does_not_lower_it_later(self, ledger: Ledger) -> None:
        ledger.record(KEY, 2)
        batch = taken(ledger)
        during = ledger.ticket("ann")
        ledger.acknowledge(answers(batch, 5))
        assert counted(ledger, claim(known=3, ticket=during)) == 5


class TestPeriods:
    def test_new_period_begins_with_the_snapshots_usage(self, ledger: Ledger, clock: ManualClock) -> None:
        start = clock.now().timestamp()
        ledger.commit(held(ledger, claim(7, start=start, ticket=5)), 7)
        clock.advance(3600)
        assert counted(ledger, claim(known=0, start=start + 3600, ticket=5)) == 0

    def test_usage_of_the_new_period_counts_in_it(self, ledger: Ledger, clock: ManualClock) -> None:
        start = clock.now().timestamp()
        hold = held(ledger, claim(2, start=start, known=9, limit=99))
        clock.advance(3600)
        ledger.commit(hold, 2)
        assert counted(ledger, claim(known=0, start=start + 3600, ticket=2)) == 2

    def test_snapshot_of_the_last_period_does_not_bring_its_usage_back(self, ledger: Ledger) -> None:
        held(ledger, claim(1, known=0, start=200, ticket=2))
        assert counted(ledger, claim(known=9, start=100, ticket=3)) == 1

    def test_late_answer_about_the_last_period_says_nothing_of_this_one(self, ledger: Ledger) -> None:
        ledger.commit(held(ledger, claim(2, start=100)), 2)
        batch = taken(ledger)
        ledger.release(held(ledger, claim(1, known=0, start=200, ticket=ledger.ticket("ann"))))
        ledger.acknowledge(answers(batch, 5, start=100))
        assert counted(ledger, claim(known=0, start=200, ticket=0)) == 0

    def test_answer_without_a_period_is_about_this_one(self, ledger: Ledger) -> None:
        ledger.commit(held(ledger, claim(2, start=100)), 2)
        ledger.acknowledge(answers(taken(ledger), 5, start=0))
        assert counted(ledger, claim(known=3, start=100, ticket=1)) == 5

    def test_answer_without_figures_about_earlier_usage_says_nothing_of_this_period(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        ledger.commit(held(ledger, claim(2)), 2)
        batch = taken(ledger)
        later = clock.now().timestamp() + 3600
        ledger.release(held(ledger, claim(known=0, start=later, ticket=ledger.ticket("ann"))))
        ledger.acknowledge(answers(batch, None))
        assert counted(ledger, claim(known=0, start=later, ticket=0)) == 0


class TestBatches:
    def test_have_the_reports_in_the_order_of_their_use(self, ledger: Ledger) -> None:
        first, second = held(ledger, claim(1)), held(ledger, claim(2))
        ledger.commit(second, 2)
        ledger.record(KEY, 5, is_set=True)
        ledger.commit(first, 1)
        assert [(report.amount, report.is_set) for report in taken(ledger).reports] == [(2, 0), (5, 1), (1, 0)]

    def test_say_whose_usage_it_is(self, ledger: Ledger) -> None:
        ledger.record(OTHER, 2.5)
        assert taken(ledger).reports[0].key == OTHER

    def test_are_no_larger_than_asked(self, ledger: Ledger) -> None:
        for number in range(5):
            ledger.record(UsageKey("ann", "", f"f{number}"), 1)
        assert [len(taken(ledger, 2).reports) for _ in range(3)] == [2, 2, 1]
        assert ledger.take_batch(2, LEASE) is None

    def test_of_one_key_follow_each_other(self, ledger: Ledger) -> None:
        for _ in range(3):
            ledger.record(KEY, 1)
        ledger.record(OTHER, 1)
        first = taken(ledger, 2)
        assert [report.key for report in taken(ledger).reports] == [OTHER]
        assert ledger.take_batch(100, LEASE) is None
        ledger.acknowledge(answers(first, 2))
        assert [report.key for report in taken(ledger).reports] == [KEY]

    def test_come_again_unchanged_when_the_lease_ends(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(KEY, 1)
        batch = taken(ledger)
        ledger.record(KEY, 2)
        clock.advance(LEASE - 0.5)
        assert ledger.take_batch(100, LEASE) is None
        clock.advance(0.5)
        assert taken(ledger) == batch
        assert ledger.take_batch(100, LEASE) is None

    def test_are_forgotten_when_acknowledged(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(KEY, 1)
        ledger.acknowledge(answers(taken(ledger), 4))
        clock.advance(LEASE)
        assert ledger.take_batch(100, LEASE) is None
        assert counted(ledger, claim(known=0, ticket=0)) == 4

    @pytest.mark.parametrize("current", [4.0, None])
    def test_are_learned_from_once_however_often_they_are_acknowledged(
        self, ledger: Ledger, clock: ManualClock, current: float | None
    ) -> None:
        ledger.record(KEY, 4)
        slow = taken(ledger)
        clock.advance(LEASE)
        ledger.acknowledge(answers(taken(ledger), 4))
        ledger.record(KEY, 3)
        ledger.acknowledge(answers(taken(ledger), 7))
        ledger.acknowledge(answers(slow, current))
        assert counted(ledger, claim(known=0, ticket=0)) == 7

    def test_are_unsent_again_when_put_back(self, ledger: Ledger) -> None:
        ledger.record(KEY, 1)
        batch = taken(ledger)
        ledger.put_back(batch)
        assert ledger.counts()["unsent"] == 1
        again = taken(ledger)
        assert again.reports == batch.reports
        assert again.id != batch.id

    def test_wait_unchanged_when_postponed(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(KEY, 1)
        batch = taken(ledger)
        ledger.postpone(batch, 5)
        assert ledger.take_batch(100, LEASE) is None
        clock.advance(5)
        assert taken(ledger) == batch

    def test_fall_apart_when_split_and_one_key_still_follows_itself(self, ledger: Ledger) -> None:
        for key, amount in ((KEY, 1), (KEY, 2), (OTHER, 3)):
            ledger.record(key, amount)
        ledger.split(taken(ledger))
        first, other = taken(ledger), taken(ledger)
        assert [report.amount for report in (*first.reports, *other.reports)] == [1, 3]
        assert ledger.take_batch(100, LEASE) is None
        ledger.acknowledge(answers(first, 1))
        assert [report.amount for report in taken(ledger).reports] == [2]

    def test_report_that_is_buried_is_kept_and_counts_no_more(self, ledger: Ledger) -> None:
        ledger.record(KEY, 1)
        ledger.bury(taken(ledger).reports[0], "feature_id: unknown")
        assert ledger.counts() == {"held": 0, "unsent": 0, "sending": 0, "dead": 1}
        assert counted(ledger, claim()) == 3
        assert ledger.take_batch(100, LEASE) is None

    def test_acknowledging_part_of_one_leaves_the_rest(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(KEY, 1)
        ledger.record(OTHER, 1)
        batch = taken(ledger)
        ledger.acknowledge(answers(batch, 4)[:1])
        clock.advance(LEASE)
        assert taken(ledger) == Batch(batch.id, batch.reports[1:])

    def test_each_goes_to_one_thread(self, ledger: Ledger) -> None:
        for number in range(64):
            ledger.record(UsageKey("ann", "", f"f{number}"), 1)
        with ThreadPoolExecutor(16) as pool:
            batches = list(pool.map(lambda _: taken(ledger, 4), range(16)))
        ids = [report.id for batch in batches for report in batch.reports]
        assert len(ids) == len(set(ids)) == 64


class TestClose:
    def test_refuses_what_comes_later(self, ledger: Ledger) -> None:
        ledger.record(KEY, 1)
        ledger.close()
        with pytest.raises(ClientClosed, match="make a new one"):
            ledger.record(KEY, 1)

    def test_twice_or_unused_is_harmless(self, ledger: Ledger) -> None:
        ledger.close()
        ledger.close()

    def test_leaves_the_file_to_the_next(self, make_ledger: Callable[[str], Ledger], file_url: str) -> None:
        first = make_ledger(file_url)
        held(first, claim(1))
        first.commit(held(first, claim(2)), 2)
        first.close()
        second = make_ledger(file_url)
        assert second.counts() == {"held": 1, "unsent": 1, "sending": 0, "dead": 0}
        assert counted(second, claim(known=0, ticket=0)) == 6
        assert second.ticket("ann") > 0


CONSUMES = """
import sys
from stigg_guard.clock import Clock
from stigg_guard.ledger import Claim, Hold, UsageKey, ledger_from_url

ledger = ledger_from_url(sys.argv[1], Clock())
print("ready", flush=True)
sys.stdin.readline()
wish = Claim(UsageKey("ann", "", "templates"), 1, 50, 0, 0, 1)
sold = 0
for _ in range(100):
    hold = ledger.hold(wish, 60)
    if isinstance(hold, Hold):
        ledger.commit(hold, 1)
        sold += 1
print(sold, flush=True)
sys.stdin.readline()  # then the process is killed
"""


class TestProcesses:
    def test_share_one_limit_and_lose_nothing_when_killed(
        self, make_ledger: Callable[[str], Ledger], file_url: str
    ) -> None:
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
        assert make_ledger(file_url).counts()["unsent"] == 50


def in_child(work: Callable[[], bool]) -> bool:
    """What ``work`` says in a forked child; a child that hangs is ended and says no."""
    pid = os.fork()
    if pid == 0:
        hung = threading.Timer(WAIT, os._exit, [2])
        hung.daemon = True
        hung.start()
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
class TestFork:
    def test_child_uses_the_file_while_threads_of_its_parent_do(
        self, make_ledger: Callable[[str], Ledger], file_url: str
    ) -> None:
        ledger = make_ledger(file_url)
        enough = threading.Event()

        def record() -> int:
            for done in count():
                if enough.is_set():
                    return done
                ledger.record(KEY, 1)
            return 0

        def records_one() -> bool:
            ledger.record(OTHER, 1)
            return True

        with ThreadPoolExecutor(3) as pool:
            working = [pool.submit(record) for _ in range(3)]
            children = [in_child(records_one) for _ in range(10)]
            enough.set()
        assert children == [True] * 10
        assert ledger.counts()["unsent"] == 10 + sum(one.result() for one in working)

    def test_child_goes_on_when_its_parent_has_closed_the_file(
        self, make_ledger: Callable[[str], Ledger], file_url: str
    ) -> None:
        ledger, again, closed = make_ledger(file_url), make_ledger(file_url), os.pipe()
        ledger.record(KEY, 1)
        pid = os.fork()
        if pid == 0:
            ledger.record(KEY, 2)
            os.read(closed[0], 1)
            ledger.record(KEY, 3)
            os._exit(0)
        ledger.close()
        os.write(closed[1], b".")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for end in closed:
            os.close(end)
        assert [report.amount for report in taken(again).reports] == [1, 2, 3]

    def test_child_shares_the_limit_of_the_file(self, make_ledger: Callable[[str], Ledger], file_url: str) -> None:
        ledger = make_ledger(file_url)
        ledger.commit(held(ledger, claim(2)), 2)
        assert in_child(lambda: ledger.commit(held(ledger, claim(3)), 3) == 8)
        assert counted(ledger, claim()) == 8

    def test_child_does_not_report_what_its_parent_has_in_memory(self, make_ledger: Callable[[str], Ledger]) -> None:
        ledger = make_ledger("memory://")
        ledger.record(KEY, 1)
        assert in_child(lambda: ledger.take_batch(100, LEASE) is None)
        assert ledger.counts()["unsent"] == 1


class TestHome:
    @pytest.mark.parametrize(
        "url",
        [
            *("", "memory", "memory:", "memory://x", "sqlite://", "sqlite:///", "sqlite://host/ledger.db", "ledger.db"),
            *("sqlite:///ledger.db?mode=ro", "sqlite:///a#b", "postgres:///x", "file:///x", "redis://[", ":///x"),
        ],
    )
    def test_url_of_no_ledger_is_refused_with_the_remedy(self, url: str, clock: ManualClock) -> None:
        with pytest.raises(ConfigError, match=r"LEDGER: .* write memory:// or sqlite:///path"):
            ledger_from_url(url, clock.clock)

    def test_password_in_a_url_is_not_repeated(self, clock: ManualClock) -> None:
        with pytest.raises(ConfigError) as caught:
            ledger_from_url("mysql://root:hunter2@db/x", clock.clock)
        assert "hunter2" not in str(caught.value)

    def test_path_is_relative_or_with_a_fourth_slash_absolute(
        self, make_ledger: Callable[[str], Ledger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for url in ("sqlite:///a%20b.db", f"sqlite:///{tmp_path}/c.db"):
            make_ledger(url).record(KEY, 1)
        assert (tmp_path / "a b.db").exists()
        assert (tmp_path / "c.db").exists()

    def test_nothing_is_opened_before_the_first_use(
        self, make_ledger: Callable[[str], Ledger], tmp_path: Path, file_url: str
    ) -> None:
        make_ledger(file_url)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one" * 100, None])
    def test_file_that_cannot_be_a_ledger_is_refused(
        self, make_ledger: Callable[[str], Ledger], tmp_path: Path, content: bytes | None
    ) -> None:
        path = tmp_path / "x.db"
        path.mkdir() if content is None else path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"LEDGER: the file .*x\.db cannot be used as a ledger"):
            make_ledger(f"sqlite:///{path}").counts()

    def test_database_of_another_program_is_refused_and_left_as_it_is(
        self, make_ledger: Callable[[str], Ledger], tmp_path: Path
    ) -> None:
        path = tmp_path / "shop.db"
        with sqlite3.connect(path) as shop:
            shop.execute("CREATE TABLE orders (id INTEGER)")
        shop.close()
        before = path.read_bytes()
        with pytest.raises(ConfigError, match="database of another program"):
            make_ledger(f"sqlite:///{path}").counts()
        assert path.read_bytes() == before

    def test_ledger_of_a_newer_version_is_refused_with_the_remedy(
        self, make_ledger: Callable[[str], Ledger], tmp_path: Path, file_url: str
    ) -> None:
        make_ledger(file_url).record(KEY, 1)
        with sqlite3.connect(tmp_path / "ledger.db") as database:
            database.execute("PRAGMA user_version = 2")
        database.close()
        with pytest.raises(ConfigError, match="newer version of stigg-guard; update this one"):
            make_ledger(file_url).counts()

    def test_step_that_fails_halfway_changes_nothing(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(KEY, 1)
        ledger.record(OTHER, 1)
        batch = taken(ledger)
        good, bad = answers(batch, 4)
        with pytest.raises(sqlite3.Error):
            ledger.acknowledge([good, replace(bad, current_usage="many")])  # type: ignore[arg-type]
        clock.advance(LEASE)
        assert taken(ledger) == batch
