"""Reports: which uses are one, in what order they are sent, and how a batch ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import ManualClock
from ledger.steps import (
    KEY,
    LEASE,
    NOTHING,
    OTHER,
    THIRD,
    amounts,
    answers,
    claim,
    commit,
    counts,
    held,
    instant,
    login,
    period,
    said,
    settle,
    taken,
    told,
    use_each,
    used,
)
from stigg_guard.clock import microseconds
from stigg_guard.ledger import Batch, CreditRate, Ledger, State, UsageKey, Use

RATE = CreditRate("credits", 2.5)
AGENT = {"agent": "a", "tokens": 2.5, "is_new": True}


def unsent(ledger: Ledger) -> list[float]:
    return [entry.amount for entry in ledger.entries([State.UNSENT], 10)]


class TestAddingUp:
    def test_makes_one_report_of_uses_of_one_key_with_the_time_of_the_later(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        commit(ledger, held(ledger, claim(2)))
        first_at = microseconds(clock.now())
        clock.advance(5)
        ledger.record(Use(KEY, 0.5))
        (report,) = taken(ledger).reports
        assert (report.amount, report.used_at, report.first_at) == (2.5, instant(clock), first_at)

    def test_adds_up_what_was_given_back(self, ledger: Ledger) -> None:
        use_each(ledger, [Use(KEY, -2), Use(KEY, -1)])
        assert amounts(taken(ledger)) == [-3]

    def test_adds_up_what_has_the_same_dimensions(self, ledger: Ledger) -> None:
        use_each(ledger, [Use(KEY, 1, dimensions=AGENT), Use(KEY, 2, dimensions=dict(reversed(AGENT.items())))])
        assert [(entry.amount, entry.dimensions) for entry in ledger.entries([State.UNSENT], 10)] == [(3, AGENT)]

    @pytest.mark.parametrize(("apart", "kept"), [(60, [3]), (60.000001, [1, 2])])
    def test_adds_up_what_is_a_minute_apart_at_most(
        self, ledger: Ledger, clock: ManualClock, apart: float, kept: list[float]
    ) -> None:
        ledger.record(Use(KEY, 1))
        clock.advance(apart)
        ledger.record(Use(KEY, 2))
        assert unsent(ledger) == kept

    @pytest.mark.parametrize(("back", "kept"), [(60, [3]), (61, [2, 1])])
    def test_clock_that_is_set_back_spoils_no_more_than_a_minute(
        self, ledger: Ledger, clock: ManualClock, back: float, kept: list[float]
    ) -> None:
        ledger.record(Use(KEY, 1))
        wrong = instant(clock)
        clock.advance(-back)
        ledger.record(Use(KEY, 2))
        entries = ledger.entries([State.UNSENT], 10)
        assert [entry.amount for entry in entries] == kept
        assert max(entry.used_at for entry in entries) == wrong

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
            [Use(KEY, 1), Use(KEY, 1, dimensions=AGENT)],
            [Use(KEY, 1, dimensions=AGENT), Use(KEY, 1, dimensions={**AGENT, "agent": "b"})],
            [Use(KEY, 1, dimensions=AGENT), Use(KEY, 1, dimensions=AGENT, rate=RATE)],
            [Use(KEY, 1, rate=RATE), Use(KEY, 1, rate=RATE._replace(rate=3.0))],
        ],
        ids=[
            *("keys", "less", "more", "total after", "total before", "totals", "total between"),
            *("events", "event", "use", "dimensions", "other dimensions", "rate", "other rate"),
        ],
    )
    def test_keeps_apart_what_is_not_the_same(self, ledger: Ledger, clock: ManualClock, uses: list[Use]) -> None:
        for use in uses:
            ledger.record(use)
            clock.advance(0.001)
        kept = ledger.entries([State.UNSENT], 10)
        assert [Use(one.key, one.amount, one.is_set, one.event, one.dimensions, one.rate) for one in kept] == uses

    def test_keeps_the_periods_apart(self, ledger: Ledger, clock: ManualClock) -> None:
        hold = held(ledger, claim(1, period=period(clock, -10, 60)))
        told(ledger, claim(period=period(clock, -10, 3600), ticket=ledger.ticket("ann")))
        ledger.record(Use(KEY, 2))
        commit(ledger, hold)
        assert unsent(ledger) == [2, 1]

    def test_keeps_apart_what_was_used_before_and_after_the_end_of_a_period(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        told(ledger, claim(period=period(clock, -10, 20)))
        ledger.record(Use(KEY, 1))
        clock.advance(20)
        ledger.record(Use(KEY, 2))
        assert unsent(ledger) == [1, 2]

    def test_leaves_a_report_alone_that_is_under_way(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 1))
        taken(ledger)
        ledger.record(Use(KEY, 2))
        assert [entry.amount for entry in ledger.entries([State.SENDING, State.UNSENT], 10)] == [1, 2]

    def test_leaves_a_report_alone_that_was_sent_and_put_back(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1))
        ledger.put_back(taken(ledger).reports)
        clock.advance(1)
        ledger.record(Use(KEY, 2))
        assert unsent(ledger) == [1, 2]

    def test_leaves_a_report_alone_that_a_person_sends_again(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1))
        (report,) = taken(ledger).reports
        ledger.bury(report, "feature_id: unknown")
        ledger.retry([report.id])
        clock.advance(1)
        ledger.record(Use(KEY, 2))
        assert unsent(ledger) == [1, 2]


class TestBatches:
    def test_have_the_reports_in_the_order_of_their_use(self, ledger: Ledger) -> None:
        first, second = held(ledger, claim(1)), held(ledger, claim(2, key=OTHER))
        commit(ledger, second)
        ledger.record(Use(THIRD, 5, is_set=True))
        commit(ledger, first)
        assert [(report.amount, report.is_set) for report in taken(ledger).reports] == [(2, 0), (5, 1), (1, 0)]

    def test_say_whose_usage_it_is(self, ledger: Ledger) -> None:
        ledger.record(Use(OTHER, 2.5, dimensions=AGENT))
        (report,) = taken(ledger).reports
        assert (report.key, report.state, report.attempts, report.dimensions) == (OTHER, State.SENDING, 1, AGENT)

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

    def test_are_no_larger_than_asked(self, ledger: Ledger) -> None:
        for number in range(5):
            ledger.record(Use(UsageKey("ann", "", f"f{number}"), 1))
        assert [len(taken(ledger, 2).reports) for _ in range(3)] == [2, 2, 1]
        assert ledger.take_batch(2, LEASE) is None

    def test_of_one_key_follow_each_other(self, ledger: Ledger) -> None:
        use_each(ledger, [Use(KEY, 1), Use(KEY, -2), Use(KEY, 3), Use(OTHER, 4)])
        first = taken(ledger)
        assert amounts(first) == [1, 4]
        assert ledger.take_batch(100, LEASE) is None
        ledger.acknowledge(answers(first, 1))
        second = taken(ledger)
        assert amounts(second) == [-2]
        ledger.acknowledge(answers(second, 0))
        assert amounts(taken(ledger)) == [3]

    def test_come_again_unchanged_when_the_lease_ends(self, ledger: Ledger, clock: ManualClock) -> None:
        use_each(ledger, [Use(KEY, 1), Use(OTHER, 1)])
        batch = taken(ledger)
        ledger.record(Use(KEY, 2))
        clock.advance(LEASE - 0.5)
        assert ledger.take_batch(100, LEASE) is None
        clock.advance(0.5)
        again = taken(ledger)
        assert said(again) == said(batch)
        assert [report.attempts for report in again.reports] == [2, 2]
        assert ledger.take_batch(100, LEASE) is None

    def test_have_a_lease_of_its_own_length_when_the_clock_is_set_back(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        ledger.record(Use(KEY, 1))
        batch = taken(ledger)
        clock.advance(-3600)
        assert ledger.take_batch(100, LEASE) is None
        clock.advance(LEASE - 0.5)
        assert ledger.take_batch(100, LEASE) is None
        clock.advance(0.5)
        assert said(taken(ledger)) == said(batch)

    def test_are_forgotten_when_acknowledged(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1))
        settle(ledger, 4)
        clock.advance(LEASE)
        assert ledger.take_batch(100, LEASE) is None
        assert counts(ledger) == 4

    @pytest.mark.parametrize("current", [4.0, None])
    def test_are_learned_from_once_however_often_they_are_acknowledged(
        self, ledger: Ledger, clock: ManualClock, current: float | None
    ) -> None:
        ledger.record(Use(KEY, 4))
        slow = taken(ledger)
        clock.advance(LEASE)
        settle(ledger, 4)
        ledger.record(Use(KEY, 3))
        settle(ledger, 7)
        ledger.acknowledge(answers(slow, current))
        assert used(ledger) == 7

    def test_acknowledging_part_of_one_leaves_the_rest(self, ledger: Ledger, clock: ManualClock) -> None:
        use_each(ledger, [Use(KEY, 1), Use(OTHER, 1)])
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


class TestPutBack:
    def test_makes_reports_unsent_again(self, ledger: Ledger) -> None:
        use_each(ledger, [Use(KEY, 1), Use(OTHER, 2)])
        batch = taken(ledger)
        ledger.put_back(batch.reports[:1])
        assert ledger.counts() == {**NOTHING, "unsent": 1, "sending": 1}
        again = taken(ledger)
        assert amounts(again) == [1]
        assert again.id != batch.id

    def test_begins_the_attempts_anew(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1))
        taken(ledger)
        clock.advance(LEASE)
        batch = taken(ledger)
        ledger.put_back(batch.reports)
        assert [report.attempts for report in (*batch.reports, *taken(ledger).reports)] == [2, 1]

    def test_lets_reports_wait_and_says_why(self, ledger: Ledger, clock: ManualClock) -> None:
        use_each(ledger, [Use(KEY, 1), Use(OTHER, 2)])
        ledger.put_back(taken(ledger).reports[:1], 5, "UNAVAILABLE: no answer")
        ledger.record(Use(KEY, 4))
        clock.advance(4.5)
        assert ledger.take_batch(100, LEASE) is None
        (first, _) = ledger.entries([State.UNSENT], 10)
        assert (first.amount, first.reason) == (1, "UNAVAILABLE: no answer")
        clock.advance(0.5)
        assert amounts(taken(ledger)) == [1]

    def test_lets_reports_wait_their_own_time_when_the_clock_is_set_back(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        ledger.record(Use(KEY, 1))
        ledger.put_back(taken(ledger).reports, 5)
        clock.advance(-3600)
        assert ledger.take_batch(100, LEASE) is None
        clock.advance(5)
        assert amounts(taken(ledger)) == [1]

    def test_keeps_what_was_noted_at_the_first_sending(self, ledger: Ledger) -> None:
        told(ledger, claim())
        ledger.record(Use(KEY, 1))
        (first,) = taken(ledger).reports
        ledger.put_back([first])
        (kept,) = ledger.entries([State.UNSENT], 10)
        assert (kept.ticket, kept.first_at, kept.period) == (first.ticket, first.first_at, first.period)

    def test_comes_too_late_for_what_was_acknowledged(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 1))
        batch = taken(ledger)
        ledger.acknowledge(answers(batch, 1))
        ledger.put_back(batch.reports)
        assert ledger.counts() == NOTHING


class TestPostponeAndSplit:
    def test_postponed_batch_waits_unchanged(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1))
        batch = taken(ledger)
        ledger.postpone(batch, 5)
        ledger.record(Use(KEY, 1))
        assert ledger.take_batch(100, LEASE) is None
        clock.advance(5)
        assert said(taken(ledger)) == said(batch)

    def test_split_batch_falls_apart(self, ledger: Ledger) -> None:
        use_each(ledger, [Use(KEY, 1), Use(KEY, -2), Use(OTHER, 3)])
        whole = taken(ledger)
        ledger.split(whole)
        first, other = taken(ledger), taken(ledger)
        assert amounts(first) + amounts(other) == [1, 3]
        assert [report.attempts for report in (*first.reports, *other.reports)] == [1, 1]
        assert len({whole.id, first.id, other.id}) == 3
        assert ledger.take_batch(100, LEASE) is None
        ledger.acknowledge(answers(first, 1))
        assert amounts(taken(ledger)) == [-2]


class TestTimeOfAClockThatWasWrong:
    """A report whose time lies ahead of the clock is sent with the time at which it is taken."""

    @pytest.fixture
    def ahead(self, ledger: Ledger, clock: ManualClock) -> Ledger:
        """A ledger with a use of an hour ahead."""
        clock.advance(3600)
        ledger.record(Use(KEY, 2))
        clock.advance(-3600)
        return ledger

    def test_is_corrected_when_the_report_is_taken(self, ahead: Ledger, clock: ManualClock) -> None:
        assert [report.used_at for report in taken(ahead).reports] == [instant(clock)]

    def test_is_the_same_when_the_report_comes_again(self, ahead: Ledger, clock: ManualClock) -> None:
        batch = taken(ahead)
        clock.advance(LEASE)
        assert said(taken(ahead)) == said(batch)

    def test_is_corrected_when_a_person_sends_the_report_again(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 2))
        (report,) = taken(ledger).reports
        ledger.bury(report, "timestamp: it lies in the future")
        clock.advance(-3600)
        ledger.retry([report.id])
        assert [again.used_at for again in taken(ledger).reports] == [instant(clock)]

    def test_is_not_before_the_period_of_the_use(self, ledger: Ledger, clock: ManualClock) -> None:
        told(ledger, claim(period=period(clock, -10, 7200)))
        begins = instant(clock, -10)
        ledger.record(Use(KEY, 2))
        clock.advance(-3600)
        assert [report.used_at for report in taken(ledger).reports] == [begins]

    def test_that_is_past_stays(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 2))
        then = instant(clock)
        clock.advance(3600)
        assert [report.used_at for report in taken(ledger).reports] == [then]


class TestEvents:
    def test_carry_their_name_key_and_dimensions(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 2, event=login()))
        (report,) = taken(ledger).reports
        assert (report.key, report.amount, report.event) == (KEY, 2, login())

    def test_count_like_other_usage(self, ledger: Ledger) -> None:
        ledger.commit(held(ledger, claim(2)), [Use(KEY, 2, event=login())])
        assert counts(ledger) == 5
        settle(ledger, None)
        assert counts(ledger) == 5

    def test_of_one_key_go_together(self, ledger: Ledger) -> None:
        use_each(ledger, [Use(KEY, 1, event=login(number)) for number in range(3)])
        assert [report.event for report in taken(ledger).reports] == [login(0), login(1), login(2)]

    def test_are_ten_times_as_many_in_a_batch_as_usages(self, ledger: Ledger) -> None:
        use_each(ledger, [Use(KEY, 1, event=login(number)) for number in range(22)])
        assert [len(taken(ledger, 2).reports) for _ in range(2)] == [20, 2]

    def test_and_usages_go_in_different_batches(self, ledger: Ledger) -> None:
        use_each(ledger, [Use(KEY, 1, event=login(1)), Use(OTHER, 2), Use(OTHER, 3, event=login(2))])
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
