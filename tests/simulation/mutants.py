"""The rules of the accounting, each replaced by a simpler one that fails: what the simulation must find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stigg_guard.ledger.accounting import (
    Before,
    News,
    Pending,
    Period,
    Row,
    believed,
    counts,
    learned,
    may_add_up,
    was_counted,
)


def _own_limit(row: Row | None, news: News, now: int, grace: int) -> tuple[Row, int | None]:
    return believed(row, news, now, grace)[0], news.limit


def _no_grace(row: Row | None, news: News, now: int, _grace: int) -> tuple[Row, int | None]:
    return believed(row, news, now, 0)


def _always_lowers(row: Row | None, news: News, now: int, grace: int) -> tuple[Row, int | None]:
    return believed(row and row._replace(settled=0, settled_at=None), news, now, grace)


def _moves_at_once(row: Row | None, news: News, now: int, grace: int) -> tuple[Row, int | None]:
    return believed(row and row._replace(moved_at=None), news, now, grace)


def _forgets_what_was_added(row: Row | None, news: News, now: int, grace: int) -> tuple[Row, int | None]:
    return believed(row and (row if row.period == news.period else row._replace(added=0)), news, now, grace)


def _latest_period_wins(row: Row | None, news: News, now: int, grace: int) -> tuple[Row, int | None]:
    if row is not None and (news.period.start or 0) < (row.period.start or 0):
        return row, row.limit
    return believed(row, news, now, grace)


def _answer_of_another_period_is_ignored(
    row: Row | None, pending: Pending, told: int | None, period: Period, ticket: int, now: int
) -> Row:
    if row is not None and told is not None and period != row.period:
        return row._replace(settled=ticket, settled_at=now)
    return learned(row, pending, told, period, ticket, now)


def _without_a_figure_nothing_is_added(
    row: Row | None, pending: Pending, told: int | None, period: Period, ticket: int, now: int
) -> Row:
    if row is not None and told is None:
        return row._replace(settled=ticket, settled_at=now)
    return learned(row, pending, told, period, ticket, now)


def _counts_by_period(pending: Pending, period: Period) -> bool:
    return counts(pending._replace(used_at=-1), period)


def _read_back_by_the_row(
    row: Row | None, before: Before | None, pending: Pending, told: int, period: Period
) -> bool | None:
    found = before and row and Before(row.period, row.used, row.moved_at)
    return was_counted(row and row._replace(settled=pending.ticket), found, pending, told, period)


def _adds_up_what_was_sent(first: Pending, second: Pending, present: Period) -> bool:
    return may_add_up(first._replace(used_at=second.used_at), second._replace(period=first.period), present)


MUTANTS: Mapping[str, tuple[str, Callable[..., Any]]] = {
    "an older snapshot decides by its own limit": ("believed", _own_limit),
    "there is no grace": ("believed", _no_grace),
    "every newer snapshot may lower": ("believed", _always_lowers),
    "another period moves the row at once": ("believed", _moves_at_once),
    "what was added is forgotten with the period": ("believed", _forgets_what_was_added),
    "the later period is the present one": ("believed", _latest_period_wins),
    "an answer of another period is ignored": ("learned", _answer_of_another_period_is_ignored),
    "an answer without a figure adds nothing": ("learned", _without_a_figure_nothing_is_added),
    "usage on its way counts by its period": ("counts", _counts_by_period),
    "the time of a use is what a clock says": ("stamped", lambda _period, read: read),
    "reading back compares with the row of now": ("was_counted", _read_back_by_the_row),
    "uses of different periods are one report": ("may_add_up", _adds_up_what_was_sent),
}
"""By what they say: the function of the accounting that is replaced, and by which."""
