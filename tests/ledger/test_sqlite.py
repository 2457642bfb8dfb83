"""What only the embedded ledger has: a file, with all that can befall one."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import ManualClock
from ledger.steps import KEY, LEASE, OTHER, WAIT, Make, answers, claim, commit, held, said, taken, told
from stigg_guard.errors import ConfigError, LedgerUnavailable
from stigg_guard.ledger import Acknowledged, Ledger, LimitExceeded, Use, ledger_from_url, sqlite_database
from stigg_guard.ledger.sqlite_reports import BRING_BACK

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

MAKE_LEDGERS_TOGETHER = """
import sys
from multiprocessing import get_context
from stigg_guard.clock import Clock
from stigg_guard.ledger import UsageKey, Use, ledger_from_url

context = get_context("fork")
together = context.Barrier(4)

def make():
    for number in range(150):
        together.wait(20)
        ledger = ledger_from_url(f"sqlite:///{sys.argv[1]}/{number}", Clock())
        ledger.record(Use(UsageKey("ann", "", "f"), 1))
        ledger.close()

makers = [context.Process(target=make) for _ in range(4)]
for maker in makers:
    maker.start()
for maker in makers:
    maker.join()
print([maker.exitcode for maker in makers])
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
            ledger.acknowledge([good, replace(bad, report=replace(bad.report, id=[]))])
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


class TestRemovedFile:
    def test_is_told_of_and_a_new_one_is_begun(
        self,
        make_ledger: Make,
        tmp_path: Path,
        file_url: str,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(sqlite_database, "LOOK_SECONDS", 0.0)
        one, other = make_ledger(file_url), make_ledger(file_url)
        held(one, claim(7))
        for file in tmp_path.glob("ledger.db*"):
            file.unlink()
        held(other, claim(7))
        assert isinstance(one.hold([claim(1)], 60), LimitExceeded)
        assert "was removed or replaced while in use" in caplog.text


@pytest.mark.parametrize("seconds", [3_600, 1, -1, -3_600])
@pytest.mark.parametrize("url", ["memory_url", "file_url"], indirect=True)
class TestWallClockThatIsSetAnew:
    """What lasts, lasts as long as it would have."""

    def test_a_hold_lasts_as_long_as_it_was_given(self, ledger: Ledger, clock: ManualClock, seconds: float) -> None:
        held(ledger, claim(7), ttl=60)
        clock.advance(20)
        clock.set_forward(seconds)
        assert isinstance(ledger.hold([claim(1)], 60), LimitExceeded)
        clock.advance(39)
        assert isinstance(ledger.hold([claim(1)], 60), LimitExceeded)
        clock.advance(2)
        assert held(ledger, claim(7))

    def test_who_is_late_is_still_late(self, ledger: Ledger, clock: ManualClock, seconds: float) -> None:
        hold = held(ledger, claim(7), ttl=60)
        clock.advance(61)
        clock.set_forward(seconds)
        commit(ledger, hold)
        assert ledger.counts()["late"] == 1

    def test_a_lease_lasts_as_long_as_it_was_given(self, ledger: Ledger, clock: ManualClock, seconds: float) -> None:
        ledger.record(Use(KEY, 1))
        batch = taken(ledger)
        clock.set_forward(seconds)
        assert ledger.take_batch(100, LEASE) is None
        clock.advance(LEASE + 1)
        assert taken(ledger).id == batch.id

    def test_the_grace_lasts_as_long_as_it_was_given(
        self, make_ledger: Make, url: str, clock: ManualClock, seconds: float
    ) -> None:
        ledger = make_ledger(url, settle_grace=15)
        told(ledger, claim(used=3))
        ledger.record(Use(KEY, 7))
        ledger.acknowledge([Acknowledged(taken(ledger).reports[0], 10)])
        clock.set_forward(seconds)
        assert isinstance(ledger.hold([claim(1, used=3, ticket=ledger.ticket("ann"))], 60), LimitExceeded)
        clock.advance(16)
        assert held(ledger, claim(1, used=3, ticket=ledger.ticket("ann")))

    def test_processes_that_all_see_it_move_nothing_twice(
        self, make_ledger: Make, file_url: str, clock: ManualClock, seconds: float, url: str
    ) -> None:
        one, another = make_ledger(file_url), make_ledger(file_url)
        held(one, claim(7), ttl=60)
        clock.set_forward(seconds)
        assert isinstance(another.hold([claim(1)], 60), LimitExceeded)
        one.record(Use(OTHER, 1))
        clock.advance(59)
        assert isinstance(one.hold([claim(1)], 60), LimitExceeded)
        clock.advance(2)
        assert held(another, claim(7))


def test_batch_does_not_look_through_all_that_waits(tmp_path: Path, clock: ManualClock) -> None:
    ledger_from_url(f"sqlite:///{tmp_path}/ledger", clock).record(Use(KEY, 1))
    with sqlite3.connect(tmp_path / "ledger") as db:
        plan = db.execute(f"EXPLAIN QUERY PLAN {BRING_BACK}", (1, 1, 1)).fetchall()
    db.close()
    assert [step for *_, step in plan] == ["SEARCH entries USING INDEX entries_by_end (until>?)"]


def test_processes_make_a_ledger_at_the_same_moment(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", MAKE_LEDGERS_TOGETHER, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert (told.stdout, told.stderr) == ("[0, 0, 0, 0]\n", "")
