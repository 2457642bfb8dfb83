"""Rows of the ledger as what it tells, and keys as what a row has of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote, unquote

from stigg_guard.amounts import units
from stigg_guard.ledger import Entry, State, UsageKey
from stigg_guard.ledger.entries import before_of, details_of, event_of, instant_of, period_of

REPORT = (
    "id, state, key, amount, is_set, used_at, event, reason, attempts, dimensions, period, first_at, ticket, before"
)
"""The columns of :func:`report_of`."""
HELD = "hold, 'held', key, amount, period, taken_at"
"""The columns of :func:`held_report_of`."""
_LONGEST_ID = 18  # in digits: what the database takes for a number


def text_of(key: UsageKey) -> str:
    """The key as one column."""
    ids = (key.customer_id, key.resource_id, key.feature_id)
    return "/".join(quote(part, safe="", errors="surrogatepass") for part in ids)


def key_of(text: str) -> UsageKey:
    return UsageKey(*(unquote(part, errors="surrogatepass") for part in text.split("/")))


def plain(reason: str) -> str:
    """A reason as a database can keep it."""
    return reason.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def numbers_of(ids: Iterable[str]) -> list[int]:
    """Those of the ids that an entry can have; what is held has an id of another kind."""
    return [int(one) for one in ids if one.isascii() and one.isdecimal() and len(one) <= _LONGEST_ID]


def report_of(row: Sequence[Any]) -> Entry:
    """What the ledger tells of an entry."""
    number, state, key, amount, is_set, used_at, event, reason, attempts, details, *more = row
    period, first_at, ticket, before = more
    dimensions, rate = details_of(details)
    return Entry(
        id=str(number),
        state=State(state),
        key=key_of(key),
        amount=units(amount),
        is_set=bool(is_set),
        used_at=instant_of(used_at),
        event=event_of(event),
        reason=reason,
        attempts=attempts,
        dimensions=dimensions,
        period=period_of(period),
        first_at=first_at,
        ticket=ticket,
        before=before_of(before),
        rate=rate,
    )


def held_report_of(row: Sequence[Any]) -> Entry:
    """What the ledger tells of a hold on a key."""
    hold, state, key, amount, period, taken_at = row
    told = hold, State(state), key_of(key), units(amount), False, taken_at * 1000
    return Entry(*told, period=period_of(period), first_at=taken_at)
