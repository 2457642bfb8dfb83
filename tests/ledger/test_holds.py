"""Holds: units taken off a limit, committed, released or expired."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import ManualClock
from ledger.steps import (
    KEY,
    LEASE,
    NOTHING,
    OTHER,
    amounts,
    answers,
    claim,
    commit,
    counted,
    counts,
    held,
    instant,
    period,
    settle,
    taken,
    told,
    used,
)
from stigg_guard.amounts import MAX_AMOUNT, quanta
from stigg_guard.clock import microseconds
from stigg_guard.ledger import Hold, Ledger, LimitExceeded, Period, Row, State, Ticket, UsageKey, Use


class TestHold:
    def test_takes_units_until_the_limit_is_reached(self, ledger: Ledger) -> None:
        held(ledger, claim(4))
        held(ledger, claim(3))
        assert ledger.hold([claim(0.5)], 60) == LimitExceeded(claim(0.5), 10, 10)

    def test_of_nothing_fits_a_full_limit_and_not_one_that_is_passed(self, ledger: Ledger) -> None:
        held(ledger, claim(0, used=10))
        over = claim(0, used=11, key=OTHER)
        assert ledger.hold([over], 60) == LimitExceeded(over, 11, 10)

    def test_fits_no_limit_that_allows_nothing(self, ledger: Ledger) -> None:
        wish = claim(0, limit=-1, used=0)
        assert ledger.hold([wish], 60) == LimitExceeded(wish, 0, 0)

    def test_without_a_limit_always_succeeds(self, ledger: Ledger) -> None:
        held(ledger, claim(MAX_AMOUNT, limit=None))
        held(ledger, claim(MAX_AMOUNT, limit=None))

    def test_that_is_refused_leaves_nothing_but_its_news(self, ledger: Ledger) -> None:
        ledger.hold([claim(99)], 60)
        assert ledger.counts() == NOTHING
        assert ledger.known(KEY) == Row(Period(), quanta(3), quanta(10), seen=1)

    def test_that_is_refused_notes_the_news_of_all_its_claims(self, ledger: Ledger) -> None:
        held(ledger, claim(1, used=5))
        newer = Ticket(9, 0)
        ledger.hold([claim(99, used=2, ticket=newer), claim(1, used=4, ticket=newer, key=OTHER)], 60)
        assert (counts(ledger), counts(ledger, OTHER)) == (3, 4)

    def test_keeps_keys_apart(self, ledger: Ledger) -> None:
        held(ledger, claim(7))
        held(ledger, claim(7, key=OTHER))

    def test_gives_the_units_back_on_release(self, ledger: Ledger) -> None:
        ledger.release(held(ledger, claim(7)))
        held(ledger, claim(7))

    def test_counts_no_longer_when_it_expires(self, ledger: Ledger, clock: ManualClock) -> None:
        held(ledger, claim(7), ttl=60)
        clock.advance(59.5)
        assert counts(ledger) == 10
        assert ledger.counts()["held"] == 1
        clock.advance(0.5)
        assert counts(ledger) == 3
        assert ledger.counts()["held"] == 0
        assert ledger.entries([State.HELD], 10) == []

    def test_lasts_its_own_length_when_the_clock_is_set_back(self, ledger: Ledger, clock: ManualClock) -> None:
        held(ledger, claim(7), ttl=60)
        clock.advance(-3600)
        assert counts(ledger) == 10
        clock.advance(59.5)
        assert counts(ledger) == 10
        clock.advance(0.5)
        assert counts(ledger) == 3

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
        assert (counts(ledger), counts(ledger, OTHER)) == (7, 8)

    def test_of_several_keys_takes_none_when_one_does_not_fit(self, ledger: Ledger) -> None:
        too_much = claim(8, key=OTHER)
        wishes = [claim(4), too_much, claim(99, key=UsageKey("ann", "", "x"))]
        assert ledger.hold(wishes, 60) == LimitExceeded(too_much, 3, 10)
        assert ledger.counts() == NOTHING
        assert (counts(ledger), counts(ledger, OTHER)) == (3, 3)

    def test_of_one_key_twice_takes_both(self, ledger: Ledger) -> None:
        assert ledger.hold([claim(4), claim(4)], 60) == LimitExceeded(claim(4), 7, 10)
        held(ledger, claim(4), claim(3))
        assert counts(ledger) == 10

    def test_of_several_keys_is_released_wholly(self, ledger: Ledger) -> None:
        ledger.release(held(ledger, claim(4), claim(5, key=OTHER)))
        assert ledger.counts() == NOTHING

    def test_shows_when_it_was_taken_and_in_which_period(self, ledger: Ledger, clock: ManualClock) -> None:
        month = period(clock, -10, 3600)
        hold = held(ledger, claim(2, period=month))
        clock.advance(5)
        (entry,) = ledger.entries([State.HELD], 10)
        assert (entry.key, entry.amount, entry.period) == (KEY, 2, month)
        assert (entry.used_at, entry.first_at) == (instant(clock, -5), microseconds(clock.now()) - 5_000_000)
        ledger.release(hold)


class TestRenewal:
    def test_lets_a_hold_last_from_now_on(self, ledger: Ledger, clock: ManualClock) -> None:
        hold, other = held(ledger, claim(3), ttl=60), held(ledger, claim(4), ttl=60)
        clock.advance(50)
        ledger.renew([hold, other], 60)
        clock.advance(59.5)
        assert counts(ledger) == 10
        clock.advance(0.5)
        assert counts(ledger) == 3

    def test_of_an_expired_hold_takes_the_units_again(self, ledger: Ledger, clock: ManualClock) -> None:
        hold = held(ledger, claim(7))
        clock.advance(60)
        ledger.renew([hold], 60)
        assert counts(ledger) == 10
        commit(ledger, hold)
        assert ledger.counts() == {**NOTHING, "unsent": 1}

    def test_of_a_hold_that_ended_does_nothing(self, ledger: Ledger) -> None:
        released, committed = held(ledger, claim(1)), held(ledger, claim(2))
        ledger.release(released)
        commit(ledger, committed)
        ledger.renew([released, committed], 60)
        assert counts(ledger) == 5
        assert ledger.counts() == {**NOTHING, "unsent": 1}


class TestCommit:
    def test_turns_the_hold_into_unsent_usage_that_still_counts(self, ledger: Ledger) -> None:
        assert commit(ledger, held(ledger, claim(2))) == 5
        assert counts(ledger) == 5
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
        hold = held(ledger, claim(2), claim(5, used=1, key=OTHER))
        assert ledger.commit(hold, [Use(KEY, 2), Use(OTHER, 4)]) == [5, 5]
        assert [(report.key, report.amount) for report in taken(ledger).reports] == [(KEY, 2), (OTHER, 4)]

    def test_gives_back_the_keys_that_were_not_used(self, ledger: Ledger) -> None:
        ledger.commit(held(ledger, claim(2), claim(5, key=OTHER)), [Use(KEY, 2)])
        assert counts(ledger, OTHER) == 3

    @pytest.mark.parametrize("late", [60, 90_000])
    def test_of_an_expired_hold_is_recorded_and_counted_as_late(
        self, ledger: Ledger, clock: ManualClock, late: float
    ) -> None:
        hold = held(ledger, claim(2), claim(1, key=OTHER), ttl=60)
        clock.advance(late)
        ledger.take_batch(100, LEASE)
        ledger.commit(hold, [Use(KEY, 2), Use(OTHER, 1)])
        assert counts(ledger) == 5
        assert ledger.counts() == {**NOTHING, "unsent": 2, "late": 1}
        assert amounts(taken(ledger)) == [2, 1]

    def test_of_nothing_after_an_expired_hold_reports_nothing(self, ledger: Ledger, clock: ManualClock) -> None:
        hold = held(ledger, claim(2), ttl=60)
        clock.advance(90_000)
        ledger.take_batch(100, LEASE)
        commit(ledger, hold, 0)
        assert ledger.take_batch(100, LEASE) is None

    def test_that_may_be_repeated_is_made_once(self, ledger: Ledger) -> None:
        hold = held(ledger, claim(2), claim(1, key=OTHER))
        uses = [Use(KEY, 2), Use(OTHER, 1)]
        assert ledger.commit(hold, uses, repeated=True) == [5, 4]
        assert ledger.commit(hold, uses, repeated=True) == [5, 4]
        assert ledger.counts() == {**NOTHING, "unsent": 2}
        assert amounts(taken(ledger)) == [2, 1]

    def test_that_is_repeated_records_an_expired_hold_that_was_never_ended(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        hold = held(ledger, claim(2), ttl=60)
        clock.advance(60)
        assert ledger.commit(hold, [Use(KEY, 2)], repeated=True) == [5]
        assert ledger.counts() == {**NOTHING, "unsent": 1, "late": 1}

    def test_tells_when_it_was_used(self, ledger: Ledger, clock: ManualClock) -> None:
        hold = held(ledger, claim(2))
        clock.advance(7.125)
        commit(ledger, hold)
        (report,) = taken(ledger).reports
        assert (report.used_at, report.first_at) == (instant(clock), microseconds(clock.now()))

    def test_belongs_to_the_period_in_which_its_units_were_held(self, ledger: Ledger, clock: ManualClock) -> None:
        day, month = period(clock, -10, 3600), period(clock, -10, 86_400)
        hold = held(ledger, claim(2, period=day))
        told(ledger, claim(period=month, ticket=Ticket(2, 0)))
        commit(ledger, hold)
        ledger.record(Use(OTHER, 1))
        assert [report.period for report in taken(ledger).reports] == [day, Period()]

    def test_is_not_reported_before_the_period_in_which_its_units_were_held(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        """The sidecar of a period that began already has the better clock."""
        commit(ledger, held(ledger, claim(2, period=period(clock, 40, 3600))))
        (report,) = taken(ledger).reports
        assert report.used_at == instant(clock, 40)


class TestRecord:
    def test_counts_at_once(self, ledger: Ledger) -> None:
        held(ledger, claim(1))
        assert ledger.record(Use(KEY, 4)) == 7
        assert counts(ledger) == 8

    def test_of_a_key_that_nobody_asked_for_counts_with_the_snapshot_that_follows(self, ledger: Ledger) -> None:
        assert ledger.record(Use(KEY, 4)) == 4
        assert counted(ledger, claim()) == 7

    def test_of_less_usage_frees_nothing_before_it_is_acknowledged(self, ledger: Ledger) -> None:
        held(ledger, claim(7))
        assert ledger.record(Use(KEY, -2)) == 3
        assert counts(ledger) == 10
        settle(ledger, 1)
        assert counts(ledger) == 8

    @pytest.mark.parametrize(("given_back", "left"), [(2, 1), (4, 0)])
    def test_of_less_usage_is_taken_off_when_the_sidecar_does_not_say(
        self, ledger: Ledger, given_back: float, left: float
    ) -> None:
        told(ledger, claim())
        ledger.record(Use(KEY, -given_back))
        settle(ledger, None)
        assert used(ledger) == left

    def test_of_a_total_counts_at_once_when_it_is_more(self, ledger: Ledger) -> None:
        held(ledger, claim(0))
        assert ledger.record(Use(KEY, 9, is_set=True)) == 9
        assert ledger.record(Use(KEY, 1)) == 10
        assert counts(ledger) == 10
        assert taken(ledger).reports[0].is_set

    def test_of_a_lower_total_frees_nothing_before_it_is_acknowledged(self, ledger: Ledger) -> None:
        held(ledger, claim(7))
        assert ledger.record(Use(KEY, 0, is_set=True)) == 3
        assert counts(ledger) == 10
        settle(ledger, 0)
        assert counts(ledger) == 7

    def test_of_a_total_is_known_when_the_sidecar_does_not_say(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 8, is_set=True))
        settle(ledger, None)
        assert counts(ledger) == 8

    def test_of_nothing_leaves_nothing_to_report(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 0))
        assert ledger.counts() == NOTHING


class TestFractions:
    """Amounts add up as a person reckons."""

    def test_three_times_a_tenth_fit_three_tenths(self, ledger: Ledger) -> None:
        wish = claim(0.1, limit=0.3, used=0)
        for _ in range(3):
            commit(ledger, held(ledger, wish))
        assert ledger.hold([wish], 60) == LimitExceeded(wish, 0.3, 0.3)

    def test_ten_holds_of_a_tenth_use_up_one(self, ledger: Ledger) -> None:
        wish = claim(0.1, limit=1, used=0)
        for _ in range(10):
            held(ledger, wish)
        assert ledger.hold([claim(0.000001, limit=1, used=0)], 60) == LimitExceeded(
            claim(0.000001, limit=1, used=0), 1, 1
        )

    def test_many_reports_of_a_tenth_are_exact(self, ledger: Ledger) -> None:
        told(ledger, claim(used=0, limit=None))
        for number in range(1, 12):
            assert ledger.record(Use(KEY, 0.1)) == number / 10
            settle(ledger, None)
        assert used(ledger) == 1.1

    def test_many_uses_of_a_tenth_are_one_exact_report(self, ledger: Ledger) -> None:
        for _ in range(11):
            ledger.record(Use(KEY, 0.1))
        assert amounts(taken(ledger)) == [1.1]

    @pytest.mark.parametrize("amount", [0.1, 0.333333, 0.000001, 123_456_789.654321, MAX_AMOUNT, -0.7])
    def test_reports_carry_every_quantum(self, ledger: Ledger, amount: float) -> None:
        ledger.record(Use(KEY, amount))
        batch = taken(ledger)
        assert amounts(batch) == [amount]
        ledger.acknowledge(answers(batch, max(amount, 0)))
        assert used(ledger) == max(amount, 0)


class TestOutstanding:
    def test_is_all_that_is_held_or_on_its_way(self, ledger: Ledger, clock: ManualClock) -> None:
        assert ledger.outstanding(KEY) == 0
        held(ledger, claim(1, limit=None), ttl=60)
        ledger.record(Use(KEY, 2))
        ledger.doubt(taken(ledger).reports, None, "deadline passed")
        ledger.record(Use(KEY, 4))
        taken(ledger)
        ledger.record(Use(KEY, 8))
        ledger.record(Use(KEY, -5))
        assert (ledger.outstanding(KEY), ledger.outstanding(OTHER)) == (15, 0)
        clock.advance(60)
        assert ledger.outstanding(KEY) == 14

    def test_is_what_is_on_its_way_of_an_ended_period_too(self, ledger: Ledger, clock: ManualClock) -> None:
        commit(ledger, held(ledger, claim(2, period=period(clock, -3600, 10))))
        clock.advance(20)
        told(ledger, claim(used=0, period=period(clock, -10, 3600), ticket=ledger.ticket("ann")))
        assert (counts(ledger), ledger.outstanding(KEY)) == (0, 2)

    def test_is_nothing_once_it_is_settled_or_dead(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 2))
        settle(ledger, 2)
        ledger.record(Use(KEY, 3))
        ledger.bury(taken(ledger).reports[0], "feature_id: unknown")
        assert ledger.outstanding(KEY) == 0
