"""What the ledger believes: snapshots by their tickets, what acknowledgements teach, and periods as they are told."""

from __future__ import annotations

import pytest

from conftest import ManualClock
from ledger.steps import (
    FIRST,
    KEY,
    NO_PERIOD,
    NOTHING,
    OTHER,
    Make,
    answers,
    claim,
    commit,
    counted,
    counts,
    held,
    period,
    settle,
    taken,
    told,
    used,
)
from stigg_guard.amounts import quanta
from stigg_guard.clock import microseconds
from stigg_guard.ledger import Claim, Ledger, LimitExceeded, Period, Row, State, Ticket, Use
from stigg_guard.ledger.accounting import Before, was_counted

HOUR = 3600


class TestTickets:
    def test_grow(self, ledger: Ledger) -> None:
        ann, bob = [ledger.ticket("ann") for _ in range(3)], [ledger.ticket("bob") for _ in range(3)]
        for tickets in (ann, bob):
            assert 0 < tickets[0].number < tickets[1].number < tickets[2].number

    def test_tell_the_time_of_the_ledger(self, ledger: Ledger, clock: ManualClock) -> None:
        clock.advance(0.125)
        assert ledger.ticket("ann").at == microseconds(clock.now())

    def test_newer_snapshot_is_believed(self, ledger: Ledger) -> None:
        told(ledger, claim(used=8, ticket=ledger.ticket("ann")))
        assert counted(ledger, claim(used=2, ticket=ledger.ticket("ann"))) == 2

    def test_older_snapshot_is_not(self, ledger: Ledger) -> None:
        before = ledger.ticket("ann")
        told(ledger, claim(used=8, ticket=ledger.ticket("ann")))
        assert counted(ledger, claim(used=2, ticket=before)) == 8

    def test_snapshot_of_any_age_is_believed_of_a_key_that_nobody_asked_for(self, ledger: Ledger) -> None:
        assert counted(ledger, claim(used=8, ticket=Ticket(0, 0))) == 8

    @pytest.mark.parametrize("current", [5.0, None])
    def test_snapshot_from_before_an_acknowledgement_does_not_lower_the_usage(
        self, ledger: Ledger, current: float | None
    ) -> None:
        commit(ledger, held(ledger, claim(2)))
        before = ledger.ticket("ann")
        settle(ledger, current)
        assert counted(ledger, claim(used=3, ticket=before)) == 5

    def test_snapshot_from_after_the_acknowledgement_lowers_it(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2)))
        settle(ledger, 5)
        assert counted(ledger, claim(used=1, ticket=ledger.ticket("ann"))) == 1

    def test_snapshot_from_while_a_report_is_under_way_is_believed_and_the_report_counts_besides(
        self, ledger: Ledger
    ) -> None:
        commit(ledger, held(ledger, claim(2)))
        batch = taken(ledger)
        during = ledger.ticket("ann")
        assert counted(ledger, claim(used=1, ticket=during)) == 3
        ledger.acknowledge(answers(batch, 5))
        assert counted(ledger, claim(used=1, ticket=during)) == 5

    def test_answer_does_not_lower_what_a_snapshot_told_since_the_report_was_sent(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2)))
        batch = taken(ledger)
        told(ledger, claim(used=9, ticket=ledger.ticket("ann")))
        ledger.acknowledge(answers(batch, 5))
        assert used(ledger) == 9

    def test_snapshot_from_before_a_report_was_sent_does_not_lower_it_when_that_is_put_back(
        self, ledger: Ledger
    ) -> None:
        commit(ledger, held(ledger, claim(2)))
        before = ledger.ticket("ann")
        ledger.put_back(taken(ledger).reports)
        assert counted(ledger, claim(used=0, ticket=before)) == 5

    def test_snapshot_that_saw_a_recorded_report_under_way_does_not_lower_it_later(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 2))
        batch = taken(ledger)
        during = ledger.ticket("ann")
        ledger.acknowledge(answers(batch, 5))
        assert counted(ledger, claim(used=3, ticket=during)) == 5

    def test_units_that_a_snapshot_may_have_seen_under_way_are_perhaps_free_until_the_answer(
        self, ledger: Ledger
    ) -> None:
        told(ledger, claim(used=3))
        ledger.record(Use(KEY, 5))
        batch = taken(ledger)
        wish = claim(2, used=8, ticket=ledger.ticket("ann"))
        too_much = wish._replace(amount=2.5)
        assert ledger.hold([wish], 60) == LimitExceeded(wish, 13, 10, is_perhaps_free=True)
        assert ledger.hold([too_much], 60) == LimitExceeded(too_much, 13, 10)
        ledger.acknowledge(answers(batch, 8))
        assert ledger.hold([too_much], 60) == LimitExceeded(too_much, 8, 10)
        held(ledger, wish)

    def test_units_under_way_are_not_perhaps_free_after_a_snapshot_that_was_asked_before(self, ledger: Ledger) -> None:
        before = ledger.ticket("ann")
        ledger.record(Use(KEY, 5))
        taken(ledger)
        wish = claim(3, used=3, ticket=before)
        assert ledger.hold([wish], 60) == LimitExceeded(wish, 8, 10)

    def test_units_of_a_report_without_an_answer_are_not_perhaps_free(self, ledger: Ledger) -> None:
        told(ledger, claim(used=3))
        ledger.record(Use(KEY, 5))
        ledger.doubt(taken(ledger).reports, 60, "no answer")
        wish = claim(2, used=8, ticket=ledger.ticket("ann"))
        assert ledger.hold([wish], 60) == LimitExceeded(wish, 13, 10)

    def test_process_with_an_old_snapshot_is_refused_what_another_has_used(self, ledger: Ledger) -> None:
        mine, theirs = ledger.ticket("ann"), ledger.ticket("ann")
        commit(ledger, held(ledger, claim(10, used=0, ticket=mine)))
        settle(ledger, 10)
        assert ledger.counts() == NOTHING
        wish = claim(1, used=0, ticket=theirs)
        assert ledger.hold([wish], 60) == LimitExceeded(wish, 10, 10)


class TestLimits:
    def test_newer_limit_holds_at_once(self, ledger: Ledger) -> None:
        held(ledger, claim(7, limit=10))
        held(ledger, claim(5, limit=20, ticket=ledger.ticket("ann")))
        lower = claim(1, limit=12, ticket=ledger.ticket("ann"))
        assert ledger.hold([lower], 60) == LimitExceeded(lower, 15, 12)

    def test_older_snapshot_is_decided_by_the_lower_of_both_limits(self, ledger: Ledger) -> None:
        before = ledger.ticket("ann")
        held(ledger, claim(7, limit=10, ticket=ledger.ticket("ann")))
        for limit, decides in ((99, 10), (None, 10), (5, 5)):
            wish = claim(1, limit=limit, ticket=before)
            assert ledger.hold([wish], 60) == LimitExceeded(wish, 10, decides)

    def test_limit_of_an_older_snapshot_is_not_noted(self, ledger: Ledger) -> None:
        before = ledger.ticket("ann")
        now = ledger.ticket("ann")
        told(ledger, claim(limit=10, ticket=now))
        told(ledger, claim(limit=1, ticket=before))
        held(ledger, claim(7, limit=10, ticket=now))

    def test_snapshot_that_lags_does_not_raise_a_limit_that_was_just_lowered(
        self, make_ledger: Make, url: str, clock: ManualClock
    ) -> None:
        ledger = make_ledger(url, settle_grace=10)
        told(ledger, claim(limit=20, ticket=ledger.ticket("ann")))
        told(ledger, claim(limit=12, ticket=ledger.ticket("ann")))
        clock.advance(9.5)
        lagging = claim(10, limit=20, ticket=ledger.ticket("ann"))
        assert ledger.hold([lagging], 60) == LimitExceeded(lagging, 3, 12)
        clock.advance(0.5)
        held(ledger, claim(10, limit=20, ticket=ledger.ticket("ann")))


class TestSettleGrace:
    GRACE = 10.0

    @pytest.fixture
    def settled(self, make_ledger: Make, url: str) -> Ledger:
        """A ledger in which 5 units were acknowledged just now."""
        ledger = make_ledger(url, settle_grace=self.GRACE)
        commit(ledger, held(ledger, claim(2, ticket=ledger.ticket("ann"))))
        settle(ledger, 5)
        return ledger

    def newer(self, settled: Ledger, used: float, period: Period = NO_PERIOD) -> Claim:
        return claim(used=used, period=period, ticket=settled.ticket("ann"))

    def test_newer_snapshot_within_it_does_not_lower_the_usage(self, settled: Ledger, clock: ManualClock) -> None:
        clock.advance(self.GRACE - 0.5)
        assert counted(settled, self.newer(settled, 3)) == 5

    def test_newer_snapshot_within_it_raises_the_usage(self, settled: Ledger) -> None:
        assert counted(settled, self.newer(settled, 8)) == 8

    def test_snapshot_fetched_after_it_lowers_the_usage(self, settled: Ledger, clock: ManualClock) -> None:
        clock.advance(self.GRACE)
        assert counted(settled, self.newer(settled, 3)) == 3

    def test_time_of_the_fetch_counts_and_not_that_of_the_hold(self, settled: Ledger, clock: ManualClock) -> None:
        early = self.newer(settled, 3)
        clock.advance(self.GRACE)
        assert counted(settled, early) == 5

    def test_begins_again_with_each_acknowledgement(self, settled: Ledger, clock: ManualClock) -> None:
        clock.advance(self.GRACE)
        settled.record(Use(KEY, 1))
        settle(settled, 6)
        assert counted(settled, self.newer(settled, 3)) == 6

    def test_does_not_last_longer_when_the_clock_is_set_back(self, settled: Ledger, clock: ManualClock) -> None:
        clock.advance(-HOUR)
        assert counted(settled, self.newer(settled, 3)) == 5
        clock.advance(self.GRACE)
        assert counted(settled, self.newer(settled, 3)) == 3

    def test_snapshot_from_ahead_of_the_clock_does_not_lower_the_usage(
        self, settled: Ledger, clock: ManualClock
    ) -> None:
        clock.advance(self.GRACE)
        ahead = settled.ticket("ann")
        clock.advance(-1)
        assert counted(settled, claim(used=3, ticket=ahead)) == 5

    def test_new_period_does_not_wait_for_it(self, settled: Ledger, clock: ManualClock) -> None:
        assert counted(settled, self.newer(settled, 0, period(clock, 0, HOUR))) == 0

    def test_what_the_sidecar_did_not_tell_goes_along_into_a_new_period_until_it_may_lower(
        self, settled: Ledger, clock: ManualClock
    ) -> None:
        settled.record(Use(KEY, 2))
        settle(settled, None)
        day = period(clock, 0, HOUR)
        assert counted(settled, self.newer(settled, 0, day)) == 2
        clock.advance(self.GRACE)
        assert counted(settled, self.newer(settled, 0, day)) == 0

    def test_lower_answer_to_a_report_does_not_wait_for_it(self, settled: Ledger) -> None:
        settled.record(Use(KEY, -4))
        settle(settled, 1)
        assert used(settled) == 1

    def test_other_period_within_it_after_a_move_raises_the_usage_and_lowers_the_limit_and_moves_nothing(
        self, settled: Ledger, clock: ManualClock
    ) -> None:
        old, new = Period(), period(clock, 0, HOUR)
        told(settled, claim(used=0, limit=20, period=new, ticket=settled.ticket("ann")))
        clock.advance(self.GRACE - 0.5)
        lagging = claim(20, used=6, limit=12, period=old, ticket=settled.ticket("ann"))
        assert settled.hold([lagging], 60) == LimitExceeded(lagging, 6, 12)
        row = settled.known(KEY)
        assert row is not None
        assert (row.period, row.used, row.limit, row.added) == (new, quanta(6), quanta(12), quanta(6))

    def test_other_period_after_it_moves_the_row_again(self, settled: Ledger, clock: ManualClock) -> None:
        told(settled, self.newer(settled, 0, period(clock, 0, HOUR)))
        clock.advance(self.GRACE)
        assert counted(settled, self.newer(settled, 6)) == 6


class TestPeriods:
    """Two periods have no order, and no clock says which is the present one: the newest snapshot does."""

    @pytest.fixture
    def day(self, clock: ManualClock) -> Period:
        """It is over in an hour."""
        return period(clock, -23 * HOUR, HOUR)

    @pytest.fixture
    def next_day(self, clock: ManualClock) -> Period:
        return period(clock, HOUR, 25 * HOUR)

    @pytest.fixture
    def month(self, clock: ManualClock) -> Period:
        return period(clock, -100 * HOUR, 600 * HOUR)

    def newest(self, ledger: Ledger, period: Period, used: float = 0) -> Claim:
        return claim(used=used, period=period, ticket=ledger.ticket("ann"))

    def test_new_period_begins_with_the_snapshots_usage(self, ledger: Ledger, day: Period, next_day: Period) -> None:
        told(ledger, self.newest(ledger, day, used=9))
        assert counted(ledger, self.newest(ledger, next_day, used=1)) == 1

    def test_newer_snapshot_moves_to_any_other_period_and_back(
        self, ledger: Ledger, day: Period, next_day: Period, month: Period
    ) -> None:
        for number, one in enumerate([next_day, day, month, Period(), Period(day.start), Period(None, day.end), day]):
            assert counted(ledger, self.newest(ledger, one, used=number)) == number

    def test_periods_that_differ_by_a_nanosecond_are_two(self, ledger: Ledger, day: Period) -> None:
        assert day.end is not None
        told(ledger, self.newest(ledger, day, used=9))
        longer = Period(day.start, day.end + 1)
        assert counted(ledger, self.newest(ledger, longer, used=1)) == 1
        row = ledger.known(KEY)
        assert row is not None
        assert row.period == longer

    def test_older_snapshot_moves_nothing(self, ledger: Ledger, day: Period, next_day: Period) -> None:
        before = ledger.ticket("ann")
        told(ledger, self.newest(ledger, day, used=9))
        assert counted(ledger, claim(used=0, period=next_day, ticket=before)) == 9

    def test_is_not_over_before_the_sidecar_says_so(self, ledger: Ledger, clock: ManualClock, day: Period) -> None:
        told(ledger, self.newest(ledger, day, used=9))
        clock.advance(48 * HOUR)
        assert counted(ledger, self.newest(ledger, day, used=9)) == 9

    def test_usage_on_its_way_does_not_count_in_a_period_that_began_after_its_own_ended(
        self, ledger: Ledger, day: Period, next_day: Period
    ) -> None:
        commit(ledger, held(ledger, claim(2, period=day)))
        assert counts(ledger) == 5
        assert counted(ledger, self.newest(ledger, next_day)) == 0

    @pytest.mark.parametrize("change", ["day to month", "day to lifetime", "no end told", "no start told"])
    def test_usage_on_its_way_counts_unless_its_period_is_known_to_have_ended(
        self, ledger: Ledger, day: Period, next_day: Period, month: Period, change: str
    ) -> None:
        old, new = {
            "day to month": (day, month),
            "day to lifetime": (day, Period()),
            "no end told": (Period(day.start), next_day),
            "no start told": (day, Period(None, next_day.end)),
        }[change]
        commit(ledger, held(ledger, claim(2, period=old)))
        assert counted(ledger, self.newest(ledger, new)) == 2

    def test_usage_after_the_end_of_its_period_counts_in_the_next(
        self, ledger: Ledger, clock: ManualClock, day: Period, next_day: Period
    ) -> None:
        hold = held(ledger, claim(2, period=day, used=9, limit=99), ttl=2 * HOUR)
        clock.advance(HOUR)
        commit(ledger, hold)
        assert counted(ledger, self.newest(ledger, next_day)) == 2

    def test_usage_of_an_unknown_period_counts_in_any(self, ledger: Ledger, next_day: Period) -> None:
        ledger.record(Use(KEY, 2))
        assert counted(ledger, claim(used=0, period=next_day)) == 2

    def test_what_is_held_over_the_turn_counts_in_the_new_period(
        self, ledger: Ledger, day: Period, next_day: Period
    ) -> None:
        held(ledger, claim(2, period=day))
        assert counted(ledger, self.newest(ledger, next_day)) == 2

    def test_total_of_the_last_period_says_nothing_of_this_one(
        self, ledger: Ledger, day: Period, next_day: Period
    ) -> None:
        told(ledger, self.newest(ledger, day))
        ledger.record(Use(KEY, 9, is_set=True))
        assert counted(ledger, self.newest(ledger, next_day)) == 0

    def test_figure_of_another_period_says_nothing_of_this_one(
        self, ledger: Ledger, day: Period, next_day: Period
    ) -> None:
        commit(ledger, held(ledger, claim(2, period=day)))
        batch = taken(ledger)
        told(ledger, self.newest(ledger, next_day))
        ledger.acknowledge(answers(batch, 5, day))
        assert used(ledger) == 0

    def test_answer_about_a_new_period_does_not_begin_it_and_its_amount_is_added(
        self, ledger: Ledger, day: Period, next_day: Period
    ) -> None:
        commit(ledger, held(ledger, claim(2, period=day)))
        settle(ledger, 1, next_day)
        row = ledger.known(KEY)
        assert row is not None
        assert (row.period, row.used, row.added) == (day, quanta(5), quanta(2))
        assert counted(ledger, self.newest(ledger, next_day, used=1)) == 1

    def test_answer_without_a_period_adds_its_amount(self, ledger: Ledger, day: Period) -> None:
        commit(ledger, held(ledger, claim(2, period=day)))
        settle(ledger, 9)
        assert used(ledger) == 5

    @pytest.mark.parametrize("moves", [False, True])
    def test_answer_without_a_figure_adds_its_amount_whatever_period_is_present(
        self, ledger: Ledger, day: Period, next_day: Period, moves: bool
    ) -> None:
        commit(ledger, held(ledger, claim(2, period=day)))
        batch = taken(ledger)
        if moves:
            told(ledger, self.newest(ledger, next_day, used=3))
        ledger.acknowledge(answers(batch, None))
        assert (used(ledger), ledger.counts()) == (5, NOTHING)

    def test_figure_of_usage_that_lies_outside_of_the_period_told_does_not_lower_it(
        self, ledger: Ledger, clock: ManualClock, day: Period
    ) -> None:
        """It may count in a period that is not shown yet."""
        hold = held(ledger, claim(2, period=day), ttl=2 * HOUR)
        clock.advance(HOUR + 1)
        commit(ledger, hold)
        settle(ledger, 3, day)
        assert used(ledger) == 5

    def test_usages_of_two_periods_are_reported_as_what_they_are(
        self, ledger: Ledger, day: Period, month: Period
    ) -> None:
        told(ledger, self.newest(ledger, day))
        ledger.record(Use(KEY, 1))
        told(ledger, self.newest(ledger, month))
        ledger.record(Use(KEY, 2))
        kept = ledger.entries([State.UNSENT], 10)
        assert [(entry.amount, entry.period) for entry in kept] == [(1, day), (2, month)]


class TestKnown:
    def test_nothing_is_known_of_a_key_that_nobody_asked_for(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 2))
        assert (ledger.known(KEY), ledger.known(OTHER)) == (None, None)

    def test_is_what_the_snapshot_told(self, ledger: Ledger, clock: ManualClock) -> None:
        month = period(clock, -HOUR, HOUR)
        told(ledger, claim(used=3.5, limit=None, period=month))
        assert ledger.known(KEY) == Row(month, quanta(3.5), None, seen=FIRST.number)

    def test_is_what_an_acknowledgement_told(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 2))
        settle(ledger, 5)
        row = ledger.known(KEY)
        assert row is not None
        assert row.settled > FIRST.number
        assert row._replace(settled=0) == Row(Period(), quanta(5), settled_at=microseconds(clock.now()))
        assert ledger.known(OTHER) is None

    def test_is_not_what_is_not_acknowledged(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2)))
        assert used(ledger) == 3

    def test_usage_that_is_no_number_allows_nothing(self, ledger: Ledger) -> None:
        told(ledger, claim(limit=1e9))
        ledger.record(Use(KEY, 2))
        settle(ledger, float("nan"))
        assert used(ledger) == 9e9
        assert isinstance(ledger.hold([claim(1, limit=1e9)], 60), LimitExceeded)


class TestReadingBack:
    """What is noted with a report, so that the usage that is read back can show whether it was counted."""

    def test_decides_by_what_was_known_before_the_report_was_sent(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2)))
        ledger.doubt(taken(ledger).reports, 0, "deadline passed")
        (report,) = ledger.take_uncertain(10, 30)
        assert report.before == Before(Period(), quanta(3), None)
        row = ledger.known(KEY)
        decisions = {
            told: was_counted(row, report.before, report.pending, quanta(told), Period()) for told in (3, 5, 4, 0)
        }
        assert decisions == {3: False, 5: True, 4: None, 0: None}

    def test_notes_what_it_was_at_the_first_sending(self, ledger: Ledger, clock: ManualClock) -> None:
        commit(ledger, held(ledger, claim(2)))
        (first,) = taken(ledger).reports
        told(ledger, claim(used=9, ticket=ledger.ticket("ann")))
        clock.advance(30)
        (again,) = taken(ledger).reports
        assert (again.before, again.ticket) == (first.before, first.ticket)

    def test_shows_nothing_once_another_report_was_sent(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2)))
        (report,) = taken(ledger).reports
        ledger.doubt([report], None, "deadline passed")
        ledger.record(Use(KEY, 1))
        (other,) = taken(ledger).reports
        assert other.before is None
        assert was_counted(ledger.known(KEY), report.before, report.pending, quanta(5), Period()) is None

    def test_shows_nothing_once_the_row_moved(self, ledger: Ledger, clock: ManualClock) -> None:
        commit(ledger, held(ledger, claim(2)))
        (report,) = taken(ledger).reports
        for one in (period(clock, 0, HOUR), Period()):
            told(ledger, claim(used=3, period=one, ticket=ledger.ticket("ann")))
        assert was_counted(ledger.known(KEY), report.before, report.pending, quanta(5), Period()) is None

    def test_notes_nothing_where_the_figure_is_not_the_sidecars_own_word(self, ledger: Ledger) -> None:
        told(ledger, claim())
        ledger.record(Use(KEY, 1))
        settle(ledger, None)
        ledger.record(Use(KEY, 1))
        assert [report.before for report in taken(ledger).reports] == [None]

    def test_notes_nothing_of_a_key_that_nobody_asked_for(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 1))
        assert [(report.before, report.ticket > FIRST.number) for report in taken(ledger).reports] == [(None, True)]

    def test_is_unknown_before_the_first_sending(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2)))
        assert [(entry.before, entry.ticket) for entry in ledger.entries([State.UNSENT], 10)] == [(None, 0)]
