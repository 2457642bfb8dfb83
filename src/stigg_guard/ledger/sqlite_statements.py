"""The rows of the embedded ledger: what each statement reads and writes, for steps within one transaction."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from stigg_guard.amounts import quanta, units
from stigg_guard.ledger.accounting import (
    BATCH_EVENTS_PER_USAGE,
    Pending,
    Period,
    Row,
    counted,
    learned,
    may_add_up,
    sent_at,
    stamped,
    taken,
)
from stigg_guard.ledger.entries import (
    Entry,
    Hold,
    State,
    UsageKey,
    Use,
    before_of,
    before_text,
    dimensions_of,
    dimensions_text,
    event_of,
    event_text,
    instant_of,
    instant_text,
    period_of,
    period_text,
)

KEY = "customer = ? AND resource = ? AND feature = ?"
_SAME_KEY = "other.customer = one.customer AND other.resource = one.resource AND other.feature = one.feature"
_WAITS = "state IN ('dead', 'uncertain')"
DOUBTED = "state = 'uncertain'"
_ON_ITS_WAY = "state > 'dead'"  # sending, uncertain, unsent: one range of the index, where IN would search thrice
_NEXT_TICKET = "UPDATE numbers SET ticket = ticket + 1 RETURNING ticket"
_ROW = "period, used, allowed, seen, settled, settled_at, moved_at, added"
# What decides a claim: the units held, how far ahead one of their ends lies, whether there is more, the row.
_STANDING = f"""
SELECT held, ahead, EXISTS (SELECT 1 FROM entries WHERE {KEY} AND {_ON_ITS_WAY}), {_ROW}
FROM (
    SELECT coalesce(sum(CASE WHEN until > ? THEN amount END), 0) AS held, max(until - lasts) AS ahead
    FROM holds WHERE {KEY}
) LEFT JOIN usages ON {KEY}
"""
_PENDING = f"""
SELECT sum(CASE WHEN is_set THEN 0 ELSE max(amount, 0) END), max(CASE WHEN is_set THEN amount END), period, max(used_at)
FROM entries WHERE {KEY} AND {_ON_ITS_WAY} GROUP BY period, used_at < ?
"""
_SENDING = f"""
SELECT amount, period, used_at, is_set, ticket FROM entries WHERE {KEY} AND state = 'sending' AND attempts = 1
"""
_NEWEST = f"""
SELECT id, amount, period, used_at, is_set, ticket, dimensions FROM entries
WHERE {KEY} AND state = 'unsent' AND event = '' ORDER BY id DESC LIMIT 1
"""
REPORT = (
    "id, state, customer, resource, feature, amount, is_set, used_at, event, reason, attempts, dimensions, period, "
    "first_at, ticket, before"
)
HELD_REPORT = "id, 'held', customer, resource, feature, amount, 0, '', '', '', 0, '', period, taken_at, 0, ''"
DUE_BATCH = f"""
SELECT batch FROM entries AS one WHERE state = 'sending' AND until <= :now AND NOT EXISTS (
    SELECT 1 FROM entries AS other WHERE {_SAME_KEY} AND other.state = 'sending' AND other.until > :now
        AND one.event = '' AND other.event = ''
) ORDER BY id LIMIT 1
"""
_NEXT_USAGES = f"""
SELECT {REPORT} FROM entries AS one WHERE state = 'unsent' AND event = '' AND until <= ? AND NOT EXISTS (
    SELECT 1 FROM entries AS other WHERE {_SAME_KEY} AND other.event = '' AND (
        other.state = 'sending' OR other.state = 'unsent' AND other.id < one.id
        OR other.state = 'uncertain' AND other.until IS NOT NULL)
) ORDER BY id LIMIT ?
"""
_NEXT_EVENTS = f"""
SELECT {REPORT} FROM entries WHERE state = 'unsent' AND event <> '' AND until <= ? ORDER BY id LIMIT ?
"""
UNSENT = "state = 'unsent', batch = NULL, attempts = 0"

Key = tuple[str, str, str]


def columns_of(key: UsageKey) -> Key:
    return key.customer_id, key.resource_id, key.feature_id


def next_ticket(db: sqlite3.Connection) -> int:
    return int(db.execute(_NEXT_TICKET).fetchall()[0][0])


def change(db: sqlite3.Connection, statement: str, ids: Sequence[str], where: str = _WAITS) -> int:
    return sum(db.execute(f"{statement} WHERE id = ? AND {where}", (entry,)).rowcount for entry in ids)


def standing(db: sqlite3.Connection, key: Key, now: int) -> tuple[int, bool, Row | None]:
    """The units of the key that are held, whether more are on their way, and its row."""
    held, ahead, is_more, *row = db.execute(_STANDING, (*key, now, *key, *key)).fetchone()
    if ahead is not None and ahead > now:
        db.execute(f"UPDATE holds SET until = ? + lasts WHERE {KEY} AND until > ? + lasts", (now, *key, now))
    return held, bool(is_more), _row_of(row)


def row_of_key(db: sqlite3.Connection, key: Key) -> Row | None:
    found = db.execute(f"SELECT {_ROW} FROM usages WHERE {KEY}", key).fetchone()
    return found and _row_of(found)


def _row_of(columns: Sequence[Any]) -> Row | None:
    period, *others = columns
    return None if period is None else Row(period_of(period), *others)


def note(db: sqlite3.Connection, key: Key, row: Row) -> None:
    period, *others = row
    columns = (*key, period_text(period), *others)
    db.execute("INSERT OR REPLACE INTO usages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", columns)


def pending_of(db: sqlite3.Connection, key: Key, period: Period) -> Iterable[Pending]:
    """What is on its way, added up where the accounting makes no difference."""
    start = "" if period.start is None else instant_text(period.start)
    for more, total, told, used_at in db.execute(_PENDING, (*key, start)):
        yield Pending(more, period_of(told), instant_of(used_at))
        if total is not None:
            yield Pending(total, period_of(told), instant_of(used_at), is_set=True)


def sending_of(db: sqlite3.Connection, key: Key) -> Iterable[Pending]:
    """The reports of the key that are under way for the first time: an acknowledgement is likely to come soon."""
    for amount, period, used_at, is_set, ticket in db.execute(_SENDING, key):
        yield Pending(amount, period_of(period), instant_of(used_at), bool(is_set), ticket)


def usage_of(db: sqlite3.Connection, key: UsageKey) -> float:
    """The usage of a key with all that is on its way."""
    columns = columns_of(key)
    row = row_of_key(db, columns) or Row(Period(), 0)
    return units(counted(row, 0, pending_of(db, columns, row.period)))


def end(db: sqlite3.Connection, hold: Hold, now: int) -> tuple[dict[Key, Period], bool]:
    """Ends the hold: the periods of the parts that were still there, and whether it is late."""
    keys = {columns_of(claim.key) for claim in hold.claims}
    statement = f"DELETE FROM holds WHERE {KEY} AND id = ? RETURNING period, until"
    ended = {key: row for key in keys for row in db.execute(statement, (*key, hold.id)).fetchall()}
    lasted = [key for key, (_, until) in ended.items() if until > now]
    return {key: period_of(period) for key, (period, _) in ended.items()}, len(lasted) < len(keys)


def record(db: sqlite3.Connection, use: Use, period: Period | None, now: int) -> float:
    """Writes the use, added to what is unsent where that loses nothing; the key's usage with it. Without the period of
    a hold it belongs to the present one."""
    key = columns_of(use.key)
    row = row_of_key(db, key) or Row(Period(), 0)
    if period is None:
        period = row.period
    if use.amount or use.is_set:
        dimensions, event = dimensions_text(use.dimensions), event_text(use.event)
        used_at = stamped(period, now * 1000)
        new = Pending(quanta(use.amount), period, used_at, use.is_set, dimensions=dimensions)
        if event or not _is_added_up(db, key, new, row.period):
            db.execute(
                "INSERT INTO entries (customer, resource, feature, state, amount, is_set, used_at, first_at, period, "
                "event, dimensions) VALUES (?, ?, ?, 'unsent', ?, ?, ?, ?, ?, ?, ?)",
                (*key, new.amount, use.is_set, instant_text(used_at), now, period_text(period), event, dimensions),
            )
    return units(counted(row, 0, pending_of(db, key, row.period)))


def _is_added_up(db: sqlite3.Connection, key: Key, new: Pending, present: Period) -> bool:
    newest = db.execute(_NEWEST, key).fetchone()
    if newest is None:
        return False
    number, amount, period, used_at, is_set, ticket, dimensions = newest
    old = Pending(amount, period_of(period), instant_of(used_at), bool(is_set), ticket, dimensions)
    if not may_add_up(old, new, present):
        return False
    latest = instant_text(max(old.used_at, new.used_at))
    db.execute("UPDATE entries SET amount = ?, used_at = ? WHERE id = ?", (amount + new.amount, latest, number))
    return True


def _is_alone(db: sqlite3.Connection, key: Key) -> bool:
    """Whether no report of the key is under way."""
    statement = f"SELECT EXISTS (SELECT 1 FROM entries WHERE {KEY} AND state IN ('sending', 'uncertain'))"
    return not db.execute(statement, key).fetchone()[0]


def bring_back(db: sqlite3.Connection, now: int) -> None:
    """Lets what was leased before the clock was set back end in its own time."""
    db.execute("UPDATE entries SET until = ? + lasts WHERE until > ? AND until > ? + lasts", (now, now, now))


def new_batch(db: sqlite3.Connection, size: int, now: int) -> str | None:
    """Marks what is to be sent next: the oldest usages, one of each key, or else the oldest events."""
    rows = db.execute(_NEXT_USAGES, (now, size)).fetchall()
    if not rows:
        rows = db.execute(_NEXT_EVENTS, (now, size * BATCH_EVENTS_PER_USAGE)).fetchall()
    if not rows:
        return None
    batch, ticket = secrets.token_hex(16), next_ticket(db)
    entries = [entry_of(row) for row in rows]
    befores: dict[Key, str] = {}
    for key in {columns_of(entry.key) for entry in entries}:
        row = row_of_key(db, key)
        if row is not None:
            row, before = taken(row, ticket, _is_alone(db, key))
            note(db, key, row)
            befores[key] = before_text(before)
    db.executemany(
        "UPDATE entries SET state = 'sending', batch = ?, used_at = ?, ticket = ?, before = ? WHERE id = ?",
        [
            (
                *(batch, instant_text(sent_at(entry.period, entry.used_at, now * 1000)), ticket),
                *(befores.get(columns_of(entry.key), ""), entry.id),
            )
            for entry in entries
        ],
    )
    return batch


def forget_counted(
    db: sqlite3.Connection, entry: str, told: int | None, period: Period, ticket: int, now: int, where: str = "true"
) -> bool:
    """Forgets an entry that was counted, or may have been, and notes what is known of it; False if it is gone."""
    fields = "customer, resource, feature, amount, period, used_at, is_set, ticket"
    gone = db.execute(f"DELETE FROM entries WHERE id = ? AND {where} RETURNING {fields}", (entry,)).fetchall()
    for customer, resource, feature, amount, held_in, used_at, is_set, first in gone:
        key = customer, resource, feature
        pending = Pending(amount, period_of(held_in), instant_of(used_at), bool(is_set), first)
        note(db, key, learned(row_of_key(db, key), pending, told, period, ticket, now))
    return bool(gone)


def entry_of(row: Sequence[Any]) -> Entry:
    number, state, customer, resource, feature, amount, is_set, used_at, event, reason, attempts, *more = row
    dimensions, period, first_at, ticket, before = more
    return Entry(
        id=str(number),
        state=State(state),
        key=UsageKey(customer, resource, feature),
        amount=units(amount),
        is_set=bool(is_set),
        used_at=instant_of(used_at) if used_at else first_at * 1000,
        event=event_of(event),
        reason=reason,
        attempts=attempts,
        dimensions=dimensions_of(dimensions),
        period=period_of(period),
        first_at=first_at,
        ticket=ticket,
        before=before_of(before),
    )
