"""One ledger in many hands: reopened, shared by processes, forked, and met by finalizers in the middle of a step."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from multiprocessing import get_context
from types import FrameType

import pytest

from conftest import ManualClock, in_child
from django_databases import open_ledger
from ledger.steps import (
    KEY,
    LEASE,
    NOTHING,
    OTHER,
    THIRD,
    Make,
    amounts,
    claim,
    commit,
    counted,
    counts,
    held,
    said,
    taken,
)
from stigg_guard.clock import Clock
from stigg_guard.errors import ClientClosed, LedgerUnavailable
from stigg_guard.ledger import Ledger, SqliteLedger, State, Ticket, Use, sqlite_database


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
        known = first.known(KEY)
        first.close()
        second = make_ledger(url)
        assert second.counts() == {**NOTHING, "held": 1, "unsent": 1}
        assert counted(second, claim(used=0, ticket=Ticket(0, 0))) == 6
        assert second.known(KEY) == known
        assert second.ticket("ann").number > last.number

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
from stigg_guard.ledger import Claim, Hold, News, Period, UsageKey, Use, ledger_from_url

ledger = ledger_from_url(sys.argv[1], Clock())
print("ready", flush=True)
sys.stdin.readline()
key = UsageKey("ann", "", "templates")
sold = 0
for _ in range(100):
    hold = ledger.hold([Claim(key, 1, News(Period(), 0, 50_000_000, 1))], 60)
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


class ComesBy(list[Use]):
    """Uses in the middle of which something else happens: a finalizer runs once the first of them is read."""

    def __init__(self, uses: Sequence[Use], finalizer: Callable[[], object]) -> None:
        super().__init__(uses)
        self._finalizer: Callable[[], object] | None = finalizer

    def __iter__(self) -> Iterator[Use]:
        for use in super().__iter__():
            yield use
            finalizer, self._finalizer = self._finalizer, None
            if finalizer is not None:
                finalizer()


class TestFinalizer:
    """Something that is dropped in the middle of a step of its own thread."""

    def test_gives_back_its_hold_and_leaves_the_step_whole(self, ledger: Ledger) -> None:
        dropped, hold = held(ledger, claim(2, key=OTHER)), held(ledger, claim(3), claim(1, key=THIRD))
        uses = ComesBy([Use(KEY, 3), Use(THIRD, 1)], lambda: ledger.release(dropped))
        assert ledger.commit(hold, uses) == [6, 4]
        ledger.record(Use(KEY, 1))
        assert [counts(ledger, key) for key in (KEY, OTHER, THIRD)] == [7, 3, 4]
        assert ledger.counts()["held"] == 0

    def test_gives_back_its_hold_although_the_step_fails(self, ledger: Ledger) -> None:
        dropped, hold = held(ledger, claim(2, key=OTHER)), held(ledger, claim(3), claim(1, key=THIRD))

        def finalizer() -> None:
            ledger.release(dropped)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ledger.commit(hold, ComesBy([Use(KEY, 3), Use(THIRD, 1)], finalizer))
        ledger.record(Use(KEY, 1))
        assert [counts(ledger, key) for key in (KEY, OTHER, THIRD)] == [7, 3, 4]
        assert sorted(entry.amount for entry in ledger.entries([State.HELD], 10)) == [1, 3]

    @pytest.mark.parametrize("url", ["memory_url", "file_url"], indirect=True)
    def test_finds_the_ledger_busy_for_everything_else(self, ledger: Ledger) -> None:
        def record() -> None:
            with pytest.raises(LedgerUnavailable, match="in the middle of a step"):
                ledger.record(Use(OTHER, 1))

        hold = held(ledger, claim(3))
        assert ledger.commit(hold, ComesBy([Use(KEY, 3)], record)) == [6]
        assert [entry.key for entry in ledger.entries([State.UNSENT], 10)] == [KEY]


def fork_without_hooks() -> int:
    """Forks as a server written in C does: Python is not told."""
    return int(ctypes.PyDLL(None).fork())


Fork = Callable[[], int]
Steps = Callable[[str, Fork], None]


def alone(steps: Steps, url: str, fork: Fork) -> None:
    """Makes the steps in a process of one thread, as a server has when it forks without Python's hooks: what another
    thread is in the middle of is so for ever in the child, in Python's own locks too."""
    process = get_context("spawn").Process(target=steps, args=(url, fork))
    process.start()
    process.join(60)
    process.kill()
    process.join()
    assert process.exitcode == 0


def goes_on_when_its_parent_has_closed_the_file(url: str, fork: Fork) -> None:
    ledger, again = open_ledger(url, Clock()), open_ledger(url, Clock())
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
    assert amounts(taken(again)) == [6]


def shares_the_limit_of_the_file(url: str, fork: Fork) -> None:
    ledger = open_ledger(url, Clock())
    commit(ledger, held(ledger, claim(2)))
    assert in_child(lambda: commit(ledger, held(ledger, claim(3))) == 8, fork)
    assert counts(ledger) == 8


def leaves_what_its_parent_has_in_memory(url: str, fork: Fork) -> None:
    ledger = open_ledger(url, Clock())
    ledger.record(Use(KEY, 1))
    assert in_child(lambda: ledger.take_batch(100, LEASE) is None, fork)
    assert ledger.counts()["unsent"] == 1


def goes_on_when_a_signal_strikes_the_fork(url: str, fork: Fork) -> None:
    """It strikes while the fork waits for a step of another thread, which ends when the fork is made or waits again."""
    ledger, main = open_ledger(url, Clock()), threading.get_ident()
    assert isinstance(ledger, SqliteLedger)
    began, struck, forked = threading.Event(), threading.Event(), threading.Event()

    def strike(*_: object) -> None:
        if not struck.is_set():
            struck.set()
            raise KeyboardInterrupt

    def step(_: object) -> None:
        began.set()
        while not runs(main, sqlite_database._before_fork):
            pass
        while not struck.is_set():  # one that comes right before the wait does not interrupt it
            signal.pthread_kill(main, signal.SIGUSR1)
        while runs(main, strike) or not (forked.is_set() or runs(main, sqlite_database._before_fork)):
            pass

    def fork_and_tell() -> int:
        pid = fork()
        forked.set()
        return pid

    def records() -> bool:
        ledger.record(Use(KEY, 1))
        return True

    signal.signal(signal.SIGUSR1, strike)
    other = threading.Thread(target=ledger._read, args=(step,))
    other.start()
    assert began.wait(30)
    assert in_child(records, fork_and_tell)
    other.join()
    assert struck.is_set()
    ledger.record(Use(KEY, 2))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ledger.record, Use(KEY, 4)).result()
    assert amounts(taken(ledger)) == [7]


def runs(thread: int, function: Callable[..., object]) -> bool:
    """Whether the thread is in the middle of the function at the moment."""
    frame: FrameType | None = sys._current_frames()[thread]
    while frame is not None:
        if frame.f_code is function.__code__:
            return True
        frame = frame.f_back
    return False


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

    @pytest.mark.parametrize("steps", [goes_on_when_its_parent_has_closed_the_file, shares_the_limit_of_the_file])
    @pytest.mark.parametrize("fork", [os.fork, fork_without_hooks])
    def test_child(self, file_url: str, fork: Fork, steps: Steps) -> None:
        alone(steps, file_url, fork)

    def test_goes_on_when_a_signal_strikes_it(self, file_url: str) -> None:
        alone(goes_on_when_a_signal_strikes_the_fork, file_url, os.fork)

    @pytest.mark.parametrize("fork", [os.fork, fork_without_hooks])
    def test_child_does_not_report_what_its_parent_has_in_memory(self, fork: Fork) -> None:
        alone(leaves_what_its_parent_has_in_memory, "memory://", fork)
