"""Reports of which nobody knows whether they were counted, those that the sidecar refuses, and what a person does."""

from __future__ import annotations

from dataclasses import replace

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
    said,
    taken,
    told,
    use_each,
    used,
)
from stigg_guard.clock import microseconds
from stigg_guard.ledger import Acknowledged, Batch, Entry, Ledger, State, UsageKey, Use

UNKNOWN = "feature_id: unknown"


class TestDoubt:
    def test_keeps_the_report_counting(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2)))
        ledger.doubt(taken(ledger).reports, 10, "deadline passed")
        assert ledger.counts() == {**NOTHING, "uncertain": 1}
        assert counts(ledger) == 5

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

    def test_is_due_after_its_own_time_when_the_clock_is_set_back(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 2))
        ledger.doubt(taken(ledger).reports, 10, "deadline passed")
        clock.advance(-3600)
        assert ledger.take_uncertain(10, LEASE) == []
        clock.advance(10)
        assert [entry.amount for entry in ledger.take_uncertain(10, LEASE)] == [2]

    def test_is_decided_on_in_portions_oldest_first(self, ledger: Ledger) -> None:
        for number in range(3):
            ledger.record(Use(UsageKey("ann", "", f"f{number}"), number + 1))
        ledger.doubt(taken(ledger).reports, 0, "deadline passed")
        assert [[entry.amount for entry in ledger.take_uncertain(2, LEASE)] for _ in range(3)] == [[1, 2], [3], []]

    def test_holds_back_later_reports_of_the_key(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1))
        ledger.doubt(taken(ledger).reports, 10, "deadline passed")
        use_each(ledger, [Use(KEY, 2), Use(OTHER, 3)])
        assert amounts(taken(ledger)) == [3]
        clock.advance(10)
        assert ledger.take_batch(100, LEASE) is None
        ledger.acknowledge([Acknowledged(*ledger.take_uncertain(10, LEASE), 1)])
        assert amounts(taken(ledger)) == [2]

    def test_for_a_person_lets_later_reports_of_the_key_go_on(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 1))
        ledger.doubt(taken(ledger).reports, None, "deadline passed")
        ledger.record(Use(KEY, 2))
        assert amounts(taken(ledger)) == [2]
        clock.advance(1e6)
        assert ledger.take_uncertain(10, LEASE) == []

    def test_for_a_person_is_counted_as_waiting(self, ledger: Ledger) -> None:
        use_each(ledger, [Use(KEY, 1), Use(OTHER, 2)])
        soon, never = taken(ledger).reports
        ledger.doubt([soon], 10, "deadline passed")
        ledger.doubt([never], None, "deadline passed")
        assert ledger.counts() == {**NOTHING, "uncertain": 2, "waiting": 1}

    def test_may_be_cast_again(self, ledger: Ledger, clock: ManualClock) -> None:
        ledger.record(Use(KEY, 2))
        ledger.doubt(taken(ledger).reports, 0, "deadline passed")
        ledger.doubt(ledger.take_uncertain(10, LEASE), 50, "not to be seen yet")
        assert ledger.entries([State.UNCERTAIN], 10)[0].reason == "not to be seen yet"
        clock.advance(50)
        ledger.doubt(ledger.take_uncertain(10, LEASE), None, "never to be seen")
        clock.advance(LEASE)
        assert ledger.take_uncertain(10, LEASE) == []
        assert ledger.counts() == {**NOTHING, "uncertain": 1, "waiting": 1}

    def test_ends_with_an_acknowledgement(self, ledger: Ledger) -> None:
        commit(ledger, held(ledger, claim(2)))
        ledger.doubt(taken(ledger).reports, 0, "deadline passed")
        ledger.acknowledge([Acknowledged(*ledger.take_uncertain(10, LEASE), 5)])
        assert ledger.counts() == NOTHING
        assert counts(ledger) == 5

    def test_ends_when_the_report_is_put_back(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 2))
        ledger.doubt(taken(ledger).reports, 0, "deadline passed")
        ledger.put_back(ledger.take_uncertain(10, LEASE))
        (entry,) = ledger.entries([State.UNSENT], 10)
        assert (entry.amount, entry.reason) == (2, "")
        assert amounts(taken(ledger)) == [2]

    @pytest.mark.parametrize("seconds", [10, None])
    def test_does_not_keep_the_ledger_from_heeding_newer_snapshots(self, ledger: Ledger, seconds: float | None) -> None:
        commit(ledger, held(ledger, claim(2)))
        ledger.doubt(taken(ledger).reports, seconds, "deadline passed")
        assert counted(ledger, claim(used=9, ticket=ledger.ticket("ann"))) == 11
        assert counted(ledger, claim(used=1, ticket=ledger.ticket("ann"))) == 3

    def test_comes_too_late_for_what_was_acknowledged(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 2))
        batch = taken(ledger)
        ledger.acknowledge(answers(batch, 2))
        ledger.doubt(batch.reports, 10, "deadline passed")
        assert ledger.counts() == NOTHING

    def test_of_a_part_leaves_the_rest_of_the_batch(self, ledger: Ledger, clock: ManualClock) -> None:
        use_each(ledger, [Use(KEY, 1), Use(OTHER, 2)])
        batch = taken(ledger)
        ledger.doubt(batch.reports[:1], 10, "deadline passed")
        clock.advance(LEASE)
        assert said(taken(ledger)) == said(Batch(batch.id, batch.reports[1:]))


class TestBuriedReport:
    def test_is_kept_with_its_reason_and_counts_no_more(self, ledger: Ledger) -> None:
        told(ledger, claim())
        ledger.record(Use(KEY, 1))
        ledger.bury(taken(ledger).reports[0], UNKNOWN)
        assert ledger.counts() == {**NOTHING, "dead": 1}
        assert counts(ledger) == 3
        assert ledger.take_batch(100, LEASE) is None
        (entry,) = ledger.entries([State.DEAD], 10)
        assert (entry.amount, entry.reason, entry.attempts) == (1, UNKNOWN, 1)

    def test_does_not_hold_up_its_key(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 1))
        ledger.bury(taken(ledger).reports[0], UNKNOWN)
        ledger.record(Use(KEY, 2))
        assert amounts(taken(ledger)) == [2]


class TestPerson:
    @pytest.fixture
    def entries(self, ledger: Ledger) -> dict[State, Entry]:
        """One entry in each state, in the order dead, uncertain, sending, unsent, held."""
        for number in range(3):
            ledger.record(Use(UsageKey("ann", "", f"f{number}"), number + 1))
        dead, uncertain, _ = taken(ledger).reports
        ledger.bury(dead, UNKNOWN)
        ledger.doubt([uncertain], None, "deadline passed")
        ledger.record(Use(KEY, 4))
        held(ledger, claim(5, key=OTHER))
        return {entry.state: entry for entry in ledger.entries(list(State), 10)}

    def test_sees_every_entry_and_its_state(self, ledger: Ledger, entries: dict[State, Entry]) -> None:
        assert {state: entry.amount for state, entry in entries.items()} == {
            State.DEAD: 1,
            State.UNCERTAIN: 2,
            State.SENDING: 3,
            State.UNSENT: 4,
            State.HELD: 5,
        }
        assert len({entry.id for entry in entries.values()}) == 5
        assert ledger.counts() == {**dict.fromkeys(NOTHING, 1), "late": 0}

    def test_sees_the_oldest_first_of_the_states_asked_for(self, ledger: Ledger, clock: ManualClock) -> None:
        for number in range(5):
            ledger.record(Use(UsageKey("ann", "", f"f{number}"), number))
            clock.advance(1)
        ledger.bury(taken(ledger, 1).reports[0], UNKNOWN)
        assert [entry.amount for entry in ledger.entries([State.UNSENT], 2)] == [2, 3]
        assert [entry.amount for entry in ledger.entries([State.DEAD, State.UNSENT], 9)] == [1, 2, 3, 4]
        assert ledger.entries([State.UNCERTAIN], 9) == []

    def test_sees_when_the_first_use_in_an_entry_was(self, ledger: Ledger, clock: ManualClock) -> None:
        begun = microseconds(clock.now())
        ledger.record(Use(KEY, 1))
        clock.advance(30)
        ledger.record(Use(OTHER, 2))
        clock.advance(30)
        ledger.record(Use(KEY, 4))
        assert [(entry.amount, entry.first_at - begun) for entry in ledger.entries([State.UNSENT], 9)] == [
            (5, 0),
            (2, 30_000_000),
        ]

    def test_sends_again_what_is_dead_or_uncertain_and_nothing_else(
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

    def test_discards_what_is_dead_or_uncertain_and_nothing_else(
        self, ledger: Ledger, entries: dict[State, Entry]
    ) -> None:
        assert ledger.discard([entry.id for entry in entries.values()] + ["no-such-entry"]) == 2
        assert ledger.counts() == {**NOTHING, "held": 1, "sending": 1, "unsent": 1}
        assert ledger.retry([entries[State.DEAD].id]) == 0

    def test_discards_a_dead_report_without_a_trace(self, ledger: Ledger) -> None:
        told(ledger, claim())
        ledger.record(Use(KEY, 2))
        (report,) = taken(ledger).reports
        ledger.bury(report, UNKNOWN)
        assert ledger.discard([report.id]) == 1
        assert (used(ledger), counts(ledger)) == (3, 3)

    def test_discards_an_uncertain_report_that_may_have_been_counted_as_used(self, ledger: Ledger) -> None:
        before = ledger.ticket("ann")
        commit(ledger, held(ledger, claim(2)))
        (report,) = taken(ledger).reports
        ledger.doubt([report], None, "deadline passed")
        assert ledger.discard([report.id]) == 1
        assert (used(ledger), counted(ledger, claim(used=3, ticket=before))) == (5, 5)
        assert counted(ledger, claim(used=3, ticket=ledger.ticket("ann"))) == 3

    def test_sends_an_uncertain_report_again_as_what_it_was_with_a_ticket_of_its_own(self, ledger: Ledger) -> None:
        ledger.record(Use(KEY, 2))
        (report,) = taken(ledger).reports
        ledger.doubt([report], None, "deadline passed")
        ledger.retry([report.id])
        (again,) = taken(ledger).reports
        assert again.ticket > report.ticket
        assert replace(again, ticket=report.ticket) == report
