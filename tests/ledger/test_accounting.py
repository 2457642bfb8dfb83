"""What the accounting promises, whatever the figures are."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stigg_guard.amounts import MAX_AMOUNT, fits, left, quanta, quanta_allowed, quanta_used, units
from stigg_guard.ledger.accounting import (
    ADDED_UP_WITHIN,
    UNTOLD,
    Before,
    News,
    Pending,
    Period,
    Row,
    believed,
    counted,
    counts,
    is_free,
    learned,
    may_add_up,
    sent_at,
    stamped,
    taken,
    was_counted,
)

GRACE = 15
MOST = quanta(MAX_AMOUNT)

instants = st.integers(0, 60)
amounts = st.integers(0, 12)
numbers = st.integers(0, 20)
periods = st.builds(Period, st.none() | st.sampled_from([0, 10, 20, 40]), st.none() | st.sampled_from([20, 30, 40, 60]))
whole_periods = st.sampled_from([Period(0, 20), Period(20, 40), Period(40, 60), Period(0, 60), UNTOLD])
limits = st.none() | st.integers(-1, 12)
reports = st.builds(Pending, st.integers(-6, 6), periods, instants, is_set=st.booleans(), ticket=numbers).filter(
    lambda report: not report.is_set or report.amount >= 0
)
rows = st.builds(
    Row,
    periods,
    amounts,
    limits,
    seen=numbers,
    settled=numbers,
    settled_at=st.none() | instants,
    moved_at=st.none() | instants,
    added=st.integers(0, 4),
)
news = st.builds(News, periods, amounts, limits, ticket=numbers, asked_at=instants)


def holds_for(*strategies: Any) -> Callable[[Any], Any]:
    """Tries a test with 60 examples, however slow the machine is."""
    bounded = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    return lambda test: bounded(given(*strategies)(test))


def total(row: Row | None, *on_its_way: Pending) -> int:
    return counted(row or Row(UNTOLD, 0), 0, on_its_way)


@holds_for(st.none() | rows, reports, numbers, instants)
def test_without_a_figure_an_entry_stays_in_the_sum(row: Row | None, report: Pending, ticket: int, now: int) -> None:
    report = report._replace(amount=abs(report.amount), is_set=False)
    assert total(learned(row, report, None, UNTOLD, ticket, now)) >= total(row) + report.amount
    if row is not None and counts(report, row.period):
        assert total(learned(row, report, None, UNTOLD, ticket, now)) == total(row, report)


@holds_for(rows, reports, amounts, periods, numbers, instants)
def test_an_answer_leaves_its_figure_or_the_amount(
    row: Row, report: Pending, told: int, period: Period, ticket: int, now: int
) -> None:
    after = learned(row, report, told, period, ticket, now)
    assert after.period == row.period
    assert after.limit == row.limit
    if period == row.period:
        assert after.used >= told
    elif counts(report, row.period) and report.amount > 0 and not report.is_set:
        assert after.used >= row.used + report.amount


@holds_for(rows, reports, amounts, numbers, instants)
def test_an_answer_that_others_overtook_lowers_nothing(
    row: Row, report: Pending, told: int, ticket: int, now: int
) -> None:
    report = report._replace(ticket=min(report.ticket, max(row.seen, row.settled) - 1))
    assert learned(row, report, told, row.period, ticket, now).used >= row.used


@holds_for(rows, reports, amounts | st.none(), periods, numbers, instants)
def test_what_is_given_back_lowers_only_its_own_period(
    row: Row, report: Pending, told: int | None, period: Period, ticket: int, now: int
) -> None:
    if period not in (row.period, UNTOLD):
        assert learned(row, report, told, period, ticket, now).used >= row.used


@holds_for(rows, news, instants)
def test_news_raise_at_once(row: Row, told: News, now: int) -> None:
    told = told._replace(period=row.period, ticket=row.seen + 1 + told.ticket)
    after, limit = believed(row, told, now, GRACE)
    assert after.used >= told.used
    assert limit is None or told.limit is None or limit <= told.limit
    assert told.limit is None or limit is not None


@holds_for(rows, news, instants)
def test_old_news_lower_nothing(row: Row, told: News, now: int) -> None:
    told = told._replace(ticket=min(told.ticket, max(row.seen, row.settled)))
    after, limit = believed(row, told, now, GRACE)
    if after.period == row.period:
        assert after.used >= row.used
    if told.ticket <= row.seen:
        assert after == row
        assert is_free(0, 5, limit) <= (is_free(0, 5, row.limit) and is_free(0, 5, told.limit))


@holds_for(rows, news, instants)
def test_the_same_news_again_change_nothing(row: Row, told: News, now: int) -> None:
    once, limit = believed(row, told, now, GRACE)
    assert believed(once, told, now, GRACE) == (once, limit if told.ticket <= row.seen else once.limit) or limit is None


@holds_for(rows, whole_periods, amounts, limits, instants)
def test_after_the_grace_a_newer_ticket_moves_the_row_in_either_direction(
    row: Row, period: Period, used: int, limit: int | None, wait: int
) -> None:
    asked_at = max(row.moved_at or 0, row.settled_at or 0) + GRACE
    told = News(period, used, limit, max(row.seen, row.settled) + 1, asked_at)
    after, decided_by = believed(row, told, asked_at + wait, GRACE)
    assert (after.period, after.used, after.limit, decided_by, after.added) == (period, used, limit, limit, 0)


@holds_for(rows, news, instants, st.integers(0, GRACE - 1))
def test_soon_after_a_move_another_period_only_makes_it_stricter(
    row: Row, told: News, moved_at: int, wait: int
) -> None:
    row = row._replace(moved_at=moved_at)
    told = told._replace(ticket=row.seen + 1 + told.ticket, asked_at=moved_at + wait)
    if told.period == row.period:
        return
    after, limit = believed(row, told, moved_at + GRACE, GRACE)
    assert after.period == row.period
    assert after.used >= max(row.used, told.used)
    assert is_free(0, 5, limit) <= (is_free(0, 5, row.limit) and is_free(0, 5, told.limit))


@holds_for(st.none() | rows, news, instants)
def test_a_limit_that_allows_nothing_allows_not_even_nothing(row: Row | None, told: News, now: int) -> None:
    after, limit = believed(row, told._replace(limit=-1), now, GRACE)
    assert limit == -1
    assert not is_free(after.used, 0, limit)


@holds_for(reports, periods)
def test_usage_counts_unless_the_sidecar_says_that_its_period_ended_before(report: Pending, period: Period) -> None:
    ended = report.period.end is not None and period.start is not None and report.period.end <= period.start
    assert counts(report, period) == (not ended or report.used_at >= (period.start or 0))


@holds_for(periods, instants, instants)
def test_a_time_of_use_is_not_before_its_period(period: Period, used_at: int, now: int) -> None:
    assert stamped(period, used_at) == max(used_at, period.start or used_at)
    assert (period.start or 0) <= sent_at(period, used_at, now) <= max(now, period.start or 0)


@holds_for(rows, reports, numbers, amounts, periods)
def test_reading_back_says_what_the_figures_say(
    row: Row, report: Pending, ticket: int, told: int, period: Period
) -> None:
    report = report._replace(ticket=ticket)
    after, before = taken(row, ticket, is_alone=True)
    found = was_counted(after, before, report, told, period)
    if row.added or period != row.period or report.is_set:
        assert found is None
    if found is not None:
        assert told == row.used + (report.amount if found else 0)


@holds_for(rows, reports, numbers, amounts)
def test_reading_back_shows_nothing_once_others_were_taken(row: Row, report: Pending, ticket: int, told: int) -> None:
    after, before = taken(row, ticket, is_alone=True)
    later, _ = taken(after, ticket + 1, is_alone=True)
    assert was_counted(later, before, report._replace(ticket=ticket), told, row.period) is None
    assert taken(row, ticket, is_alone=False)[1] is None


def test_news_from_before_an_acknowledgement_leave_its_figure_the_word_of_the_sidecar() -> None:
    row = learned(Row(UNTOLD, 0, seen=1), Pending(3, UNTOLD, 0, ticket=3), 3, UNTOLD, ticket=4, now=20)
    late = News(UNTOLD, 0, None, ticket=2, asked_at=10)
    after, _ = believed(row, late, 30, GRACE)
    assert (after.used, after.added) == (3, 0)
    assert taken(after, 5, is_alone=True)[1] == Before(UNTOLD, 3, None)
    unsure, _ = believed(row, late._replace(asked_at=25), 30, GRACE)
    assert (unsure.used, unsure.added) == (3, 3)


def test_reading_back_below_0_shows_nothing() -> None:
    row = Row(Period(0, 60), 2, settled=5)
    report = Pending(-3, Period(0, 60), 30, ticket=5)
    assert was_counted(row, Before(Period(0, 60), 2, None), report, 2, Period(0, 60)) is None
    assert was_counted(row, Before(Period(0, 60), 3, None), report, 3, Period(0, 60)) is False
    assert was_counted(row, Before(Period(0, 60), 3, None), report, 0, Period(0, 60)) is True


@holds_for(reports, reports, periods, st.integers(0, 2))
@example(Pending(1, Period(0, 20), 30), Pending(1, Period(0, 20), 50), Period(40, 60), 0)
def test_what_is_added_up_counts_as_before(first: Pending, second: Pending, present: Period, apart: int) -> None:
    second = second._replace(used_at=second.used_at + apart * ADDED_UP_WITHIN)
    if not may_add_up(first, second, present):
        return
    assert first.ticket == second.ticket == 0
    assert first.is_set is second.is_set is False
    assert abs(first.used_at - second.used_at) <= ADDED_UP_WITHIN
    latest = max(first.used_at, second.used_at)
    both = first._replace(amount=first.amount + second.amount, used_at=latest)
    row = Row(present, 0)
    assert counted(row, 0, [both]) == counted(row, 0, [first, second])
    assert first.period.holds(latest) == first.period.holds(first.used_at) == second.period.holds(second.used_at)


@holds_for(st.lists(st.integers(1, 10**6), min_size=1, max_size=50), st.sampled_from([1, 10, 1000, 10**6]))
def test_fractions_add_up(parts: list[int], fraction: int) -> None:
    told = [part / fraction for part in parts]
    sums = list(accumulate(quanta(part) for part in told))
    assert sums[-1] == sum(parts) * 1_000_000 // fraction
    assert fits(units(sums[-1] - quanta(told[-1])), told[-1], units(sums[-1]))
    assert left(units(sums[-1]), units(sums[-1])) == 0


@holds_for(st.integers(-(2**33), 2**33 - 1), st.integers(0, 999_999))
@example(4_496_400_372, 629_495)
@example(2**33 - 1, 999_999)
def test_every_quantum_is_exact(whole: int, parts: int) -> None:
    number = whole * 1_000_000 + parts
    assert quanta(units(number)) == number


@holds_for(st.floats(-MAX_AMOUNT, MAX_AMOUNT))
def test_what_is_counted_is_what_is_shown(amount: float) -> None:
    assert quanta(units(quanta(amount))) == quanta(amount)


@holds_for(st.floats())
def test_no_figure_of_the_sidecar_allows_what_it_does_not_mean(figure: float) -> None:
    assert 0 <= quanta_used(figure) <= MOST
    allowed = quanta_allowed(figure)
    assert allowed is None or -1 <= allowed <= MOST
    if figure != figure or figure < 0 or figure == float("inf"):
        assert allowed == -1
