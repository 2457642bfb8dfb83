"""Ledger files that earlier versions left behind, and processes of those versions that still have one open."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from conftest import ManualClock
from ledger.steps import KEY, LEASE, NOTHING, OTHER, SECOND, Make, amounts, claim, commit, counted, counts, held, taken
from stigg_guard.errors import ConfigError
from stigg_guard.ledger import Claim, Entry, Event, Hold, Ledger, News, Once, Period, State, Ticket, UsageKey, Use

DATA = Path(__file__).parents[1] / "data"


def left_behind(version: int, file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.executescript((DATA / f"ledger_{version}.sql").read_text())


class TestVersion1:
    """A ledger that version 0.1.0 left behind: a batch of two reports under way, one unsent, one dead."""

    @pytest.fixture
    def old(self, make_ledger: Make, tmp_path: Path, file_url: str) -> Ledger:
        left_behind(1, tmp_path / "ledger.db")
        return make_ledger(file_url)

    def test_keeps_its_reports(self, old: Ledger) -> None:
        assert old.counts() == {**NOTHING, "unsent": 1, "sending": 2, "dead": 1}
        assert old.entries(list(State), 9) == [
            Entry(str(number), state, key, amount, is_set, at * SECOND, reason=reason, first_at=at * 1_000_000)
            for number, state, key, amount, is_set, at, reason in [
                (2, State.SENDING, KEY, 2, False, 1001, ""),
                (3, State.SENDING, OTHER, 7, True, 1002, ""),
                (4, State.UNSENT, KEY, 0.5, False, 1003, ""),
                (5, State.DEAD, UsageKey("bob", "", "templates"), 5, False, 1004, "feature_id: unknown"),
            ]
        ]

    def test_keeps_the_batch_that_was_under_way(self, old: Ledger) -> None:
        batch = taken(old)
        assert (batch.id, amounts(batch)) == ("b", [2, 7])

    def test_keeps_the_tickets(self, old: Ledger) -> None:
        assert old.ticket("ann").number == 42

    def test_is_told_the_usage_anew_and_counts_what_is_on_its_way(self, old: Ledger) -> None:
        assert old.known(KEY) is None
        assert counted(old, claim(used=3, period=Period(2000 * SECOND))) == 5.5

    def test_is_brought_up_to_date_once(self, old: Ledger, make_ledger: Make, file_url: str) -> None:
        old.record(Use(KEY, 1))
        old.close()
        assert make_ledger(file_url).counts() == {**NOTHING, "unsent": 2, "sending": 2, "dead": 1}


BEGUN = 1_767_225_600.0
"""When the ledger of version 0.2.0 was begun; it was left after 21.25 seconds."""
UNDER_WAY = "65f4acf296c67bea2893fba182f51eac"
HELD, EXPIRED = "c9fb325b83b85abe", "3b61246003810a0a"
LOGIN = Event("login", "login-1", {"user": "u-1", "n": 1.5, "b": True})


def entry(number: int | str, state: State, key: UsageKey, amount: float, seconds: float, **more: object) -> Entry:
    """An entry of a use so many seconds after the ledger was begun."""
    first_at = round((BEGUN + seconds) * 1_000_000)
    fields = {"is_set": False, "first_at": first_at, "used_at": first_at * 1000, **more}
    return Entry(id=str(number), state=state, key=key, amount=amount, **fields)


ENTRIES = [
    entry(1, State.DEAD, UsageKey("ann", "", "dead"), 1, 0, reason="feature_id: unknown", attempts=1),
    entry(2, State.UNCERTAIN, UsageKey("ann", "", "waits"), 2.5, 1.25, reason="deadline passed", attempts=1),
    entry(3, State.UNCERTAIN, UsageKey("ann", "", "due"), 0.3, 2.5, reason="no answer", attempts=1),
    entry(4, State.SENDING, UsageKey("ann", "site-01", "sending"), 7, 5, is_set=True, attempts=1),
    entry(5, State.UNSENT, UsageKey("bob", "", "templates"), 4, 7.5, event=LOGIN),
    entry(6, State.UNSENT, UsageKey("bob", "", "templates"), -2, 8.75),
    entry(HELD, State.HELD, KEY, 2, 10),
    entry(HELD, State.HELD, OTHER, 1.5, 10),
    entry(7, State.UNSENT, UsageKey("bob", "", "late"), 6, 21.25),
]


def hold_of(hold_id: str, *claims: tuple[UsageKey, float]) -> Hold:
    """What a process of the version before had in its hands."""
    return Hold(hold_id, tuple(Claim(key, amount, News(Period(), 0, None)) for key, amount in claims))


class TestVersion2:
    """A ledger that version 0.2.0 left behind, with an entry in each state, an event, and a hold of two keys."""

    @pytest.fixture
    def old(self, make_ledger: Make, clock: ManualClock, tmp_path: Path, file_url: str) -> Ledger:
        clock.advance(BEGUN + 21.25 - clock.now().timestamp())
        left_behind(2, tmp_path / "ledger.db")
        return make_ledger(file_url)

    def test_keeps_every_entry(self, old: Ledger) -> None:
        assert old.entries(list(State), 99) == ENTRIES

    def test_keeps_how_many_there_are(self, old: Ledger) -> None:
        expected = {"held": 2, "unsent": 3, "sending": 1, "uncertain": 2, "waiting": 1, "dead": 1, "late": 1}
        assert old.counts() == expected

    def test_keeps_the_batch_that_was_under_way_until_its_lease_ends(self, old: Ledger, clock: ManualClock) -> None:
        usages, events = taken(old), taken(old)
        assert (amounts(usages), [report.event for report in events.reports]) == ([-2, 6], [LOGIN])
        clock.advance(14.5)
        assert old.take_batch(100, LEASE) is None
        clock.advance(0.5)
        again = taken(old)
        assert (again.id, amounts(again), [report.attempts for report in again.reports]) == (UNDER_WAY, [7], [2])

    def test_keeps_when_an_uncertain_report_is_due_and_which_waits_for_a_person(
        self, old: Ledger, clock: ManualClock
    ) -> None:
        clock.advance(2.25)
        assert old.take_uncertain(10, LEASE) == []
        clock.advance(0.25)
        assert [report.id for report in old.take_uncertain(10, LEASE)] == ["3"]

    def test_lets_a_hold_be_committed(self, old: Ledger) -> None:
        hold = hold_of(HELD, (KEY, 2), (OTHER, 1.5))
        assert counted(old, claim(used=3)) == 5
        assert old.commit(hold, [Use(KEY, 2), Use(OTHER, 1.5)]) == [5, 1.5]
        assert (old.counts()["held"], old.counts()["late"]) == (0, 1)

    def test_counts_a_hold_that_expired_as_late(self, old: Ledger) -> None:
        commit(old, hold_of(EXPIRED, (UsageKey("bob", "", "templates"), 3)))
        assert old.counts()["late"] == 2

    def test_keeps_the_tickets(self, old: Ledger) -> None:
        assert old.ticket("ann").number == 8

    def test_is_told_the_usage_anew_and_counts_what_is_on_its_way(self, old: Ledger) -> None:
        late = UsageKey("bob", "", "late")
        assert old.known(late) is None
        assert counted(old, claim(used=3, key=late, ticket=Ticket(7, 0))) == 9


@pytest.mark.parametrize("amount", [9_000_000_001, 2.0**53, -(2.0**53)])
def test_report_of_version_2_that_is_beyond_all_amounts_waits_for_a_person_and_stops_nothing(
    make_ledger: Make, tmp_path: Path, file_url: str, amount: float
) -> None:
    left_behind(2, tmp_path / "ledger.db")
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as database:
        for change in ("UPDATE entry SET amount = ? WHERE id IN (4, 7)", "UPDATE hold SET amount = ?"):
            database.execute(change, [amount])
    ledger = make_ledger(file_url)
    dead = {entry.id: entry.reason for entry in ledger.entries([State.DEAD], 10)}
    reason = f"{amount:.0f} units are more than 9000000000 at once: report them in parts, and discard this"
    assert dead == {"1": "feature_id: unknown", "4": reason, "7": reason}
    assert amounts(taken(ledger)) == [-2]


OLD_STEPS = {
    "ticket": "UPDATE ticket SET last = last + 1 RETURNING last",
    "first use": "INSERT INTO usage VALUES ('ann', '', 'new', 3, 0, 8, 0)",
    "hold": "INSERT INTO hold VALUES ('ann', '', 'templates', 'h', 1, 0, 60)",
    "late commit": "UPDATE late SET holds = holds + 1",
    "record": "INSERT INTO entry (customer, resource, feature, state, amount, is_set, used_at, event) "
    "VALUES ('ann', '', 'templates', 'unsent', 1, 0, 0, NULL)",
}
OLD_SEARCHES = {
    "usage": "SELECT used, period_start, ticket, settled_at FROM usage WHERE customer = 'ann'",
    "batch": "SELECT batch FROM entry AS one WHERE state = 'sending' AND until <= 1e12 ORDER BY id LIMIT 1",
    "unsent": "SELECT id FROM entry AS one WHERE state = 'unsent' AND event IS NULL ORDER BY id LIMIT 100",
    "hold": "DELETE FROM hold WHERE customer = 'ann' RETURNING until",
}


class TestProcessOfVersion2:
    """It has the file open while a process of this version brings that up to date."""

    @pytest.fixture
    def process(self, make_ledger: Make, tmp_path: Path, file_url: str) -> sqlite3.Connection:
        left_behind(2, tmp_path / "ledger.db")
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as old:
            for statement in OLD_SEARCHES.values():
                old.execute(f"EXPLAIN {statement}").fetchall()
            assert old.execute("SELECT count(*) FROM entry").fetchone() == (7,)
            make_ledger(file_url).counts()
            yield old

    @pytest.mark.parametrize("step", OLD_STEPS)
    def test_is_refused_what_it_writes_with_the_reason(self, process: sqlite3.Connection, step: str) -> None:
        with pytest.raises(sqlite3.IntegrityError, match="by a newer version of stigg-guard: restart this process"):
            process.execute(OLD_STEPS[step]).fetchall()

    @pytest.mark.parametrize("search", OLD_SEARCHES)
    def test_finds_nothing_to_do(self, process: sqlite3.Connection, search: str) -> None:
        assert process.execute(OLD_SEARCHES[search]).fetchall() == []

    def test_changes_nothing(self, process: sqlite3.Connection, make_ledger: Make, file_url: str) -> None:
        ledger = make_ledger(file_url)
        before = ledger.entries(list(State), 99)
        for statement in OLD_STEPS.values():
            with pytest.raises(sqlite3.IntegrityError):
                process.execute(statement).fetchall()
        assert ledger.entries(list(State), 99) == before
        assert ledger.ticket("ann").number == 8


def test_ledger_of_version_3_learns_of_keys_and_keeps_what_it_has(
    make_ledger: Make, tmp_path: Path, file_url: str
) -> None:
    before = make_ledger(file_url)
    commit(before, held(before, claim(2)))
    before.close()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database, database:
        database.executescript("DROP TABLE keys; PRAGMA user_version = 3")
    ledger, once = make_ledger(file_url), Once("ann", "order-42")
    for _ in range(2):
        hold = ledger.hold([claim()], 60, once)
        assert isinstance(hold, Hold)
        ledger.release(hold)
    assert counts(ledger) == 5


def test_ledger_of_a_newer_version_is_refused_with_the_remedy(make_ledger: Make, tmp_path: Path, file_url: str) -> None:
    make_ledger(file_url).record(Use(KEY, 1))
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        database.execute("PRAGMA user_version = 5")
    with pytest.raises(ConfigError, match="newer version of stigg-guard; update this one"):
        make_ledger(file_url).counts()
