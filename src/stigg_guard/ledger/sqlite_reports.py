"""Reports on their way in the embedded ledger, in rows: leased in batches, acknowledged, discarded. A batch is a few
statements, however many reports are in it."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stigg_guard.amounts import quanta, quanta_used
from stigg_guard.ledger.accounting import (
    BATCH_EVENTS_PER_USAGE,
    UNTOLD,
    Before,
    Pending,
    Row,
    learned,
    sent_at,
    taken,
)
from stigg_guard.ledger.entries import (
    Acknowledged,
    Batch,
    Entry,
    State,
    UsageKey,
    before_text,
    instant_of,
    instant_text,
    period_of,
    stored_entry,
)
from stigg_guard.ledger.sqlite_statements import ROW, SAME_KEY, next_ticket, note, row_of, row_of_key

_WAITS = "state IN ('dead', 'uncertain')"
_DOUBTED = "state = 'uncertain'"
UNSENT = "state = 'unsent', batch = NULL, attempts = 0"
REPORT = (
    "id, state, customer, resource, feature, amount, is_set, used_at, event, reason, attempts, dimensions, period, "
    "first_at, ticket, before"
)
_COLUMNS = len(REPORT.split(", "))
_AT_ONCE = 500
HELD_REPORT = "id, 'held', customer, resource, feature, amount, 0, '', '', '', 0, '', period, taken_at, 0, ''"
_DUE_BATCH = f"""
SELECT batch FROM entries AS one WHERE state = 'sending' AND until <= :now AND NOT EXISTS (
    SELECT 1 FROM entries AS other WHERE {SAME_KEY} AND other.state = 'sending' AND other.until > :now
        AND one.event = '' AND other.event = ''
) ORDER BY id LIMIT 1
"""


def _of(table: str, columns: str) -> str:
    return ", ".join(f"{table}.{column}" for column in columns.split(", "))


# Reports, whether others of their key are under way, and the row of the key.
_WITH_ROW = f"""
SELECT {_of("one", REPORT)}, EXISTS (
    SELECT 1 FROM entries AS other WHERE {SAME_KEY} AND other.state IN ('sending', 'uncertain')
), {_of("usage", ROW)}
FROM entries AS one LEFT JOIN usages AS usage
    ON usage.customer = one.customer AND usage.resource = one.resource AND usage.feature = one.feature
"""
_NEXT_USAGES = f"""
{_WITH_ROW} WHERE one.state = 'unsent' AND event = '' AND until <= ? AND NOT EXISTS (
    SELECT 1 FROM entries AS other WHERE {SAME_KEY} AND other.event = '' AND (
        other.state = 'sending' OR other.state = 'unsent' AND other.id < one.id
        OR other.state = 'uncertain' AND other.until IS NOT NULL)
) ORDER BY id LIMIT ?
"""
_NEXT_EVENTS = f"""
{_WITH_ROW} WHERE one.state = 'unsent' AND event <> '' AND until <= ? ORDER BY id LIMIT ?
"""
_SEND = """
UPDATE entries SET state = 'sending', batch = ?, used_at = ?, ticket = ?, before = ?, until = ?, lasts = ?,
    attempts = attempts + 1
WHERE id = ?
"""


def change(db: sqlite3.Connection, statement: str, ids: Sequence[str], where: str = _WAITS) -> int:
    return sum(db.execute(f"{statement} WHERE id = ? AND {where}", (entry,)).rowcount for entry in ids)


# That it is above 0 is what the index of leases asks for: without it all that waits would be looked through.
BRING_BACK = "UPDATE entries SET until = ? + lasts WHERE until > 0 AND until > ? AND until > ? + lasts"


def bring_back(db: sqlite3.Connection, now: int) -> None:
    """Lets what was leased before the clock was set back end in its own time."""
    db.execute(BRING_BACK, (now, now, now))


def due_batch(db: sqlite3.Connection, lasts: int, now: int) -> Batch | None:
    """Leases a batch whose lease has ended, or that was put off until now."""
    due = db.execute(_DUE_BATCH, {"now": now}).fetchone()
    if due is None:
        return None
    db.execute(
        "UPDATE entries SET until = ?, lasts = ?, attempts = attempts + 1 WHERE batch = ?", (now + lasts, lasts, *due)
    )
    rows = db.execute(f"SELECT {REPORT} FROM entries WHERE batch = ? ORDER BY id", due)
    return Batch(due[0], [entry_of(row) for row in rows])


def new_batch(db: sqlite3.Connection, size: int, lasts: int, now: int) -> Batch | None:
    """Leases what is to be sent next: the oldest usages, one of each key, or else the oldest events."""
    found = db.execute(_NEXT_USAGES, (now, size)).fetchall()
    if not found:
        found = db.execute(_NEXT_EVENTS, (now, size * BATCH_EVENTS_PER_USAGE)).fetchall()
    if not found:
        return None
    batch, ticket = secrets.token_hex(16), next_ticket(db)
    rows: dict[UsageKey, Row] = {}
    befores: dict[UsageKey, Before | None] = {}
    entries = []
    for columns in found:
        entry, is_alone, row = entry_of(columns[:_COLUMNS]), not columns[_COLUMNS], row_of(columns[_COLUMNS + 1 :])
        if row is not None and entry.key not in rows:
            rows[entry.key], befores[entry.key] = taken(row, ticket, is_alone)
        entries.append(
            replace(
                entry,
                state=State.SENDING,
                used_at=sent_at(entry.period, entry.used_at, now * 1000),
                attempts=entry.attempts + 1,
                ticket=ticket,
                before=befores.get(entry.key),
            )
        )
    note(db, rows)
    db.executemany(
        _SEND,
        [
            (batch, instant_text(one.used_at), ticket, before_text(one.before), now + lasts, lasts, one.id)
            for one in entries
        ],
    )
    return Batch(batch, entries)


def acknowledge(db: sqlite3.Connection, answers: Sequence[Acknowledged], now: int) -> None:
    """Forgets the entries that were counted, and notes what the answers say, in their order."""
    found = _gone(db, [answer.report.id for answer in answers])
    ticket, rows = next_ticket(db), {key: row for key, _, row in found.values()}
    for answer in answers:
        if answer.report.id not in found:  # forgotten before
            continue
        key, pending, _ = found.pop(answer.report.id)
        told = None if answer.current_usage is None else quanta_used(answer.current_usage)
        rows[key] = learned(rows[key], pending, told, answer.period, ticket, now)
        if answer.paid is not None:  # the wallet's next snapshot tells its usage
            wallet, paid = answer.paid
            row = rows[wallet] if wallet in rows else row_of_key(db, wallet)
            rows[wallet] = learned(row, pending._replace(amount=quanta(paid), is_set=False), None, UNTOLD, ticket, now)
    note(db, {key: row for key, row in rows.items() if row is not None})


def discard(db: sqlite3.Connection, ids: Sequence[str], now: int) -> int:
    """Deletes dead letters, and entries that may have been counted, which then count; how many there were."""
    dead = change(db, "DELETE FROM entries", ids, "state = 'dead'")
    found = _gone(db, ids, _DOUBTED)
    ticket, rows = next_ticket(db), {key: row for key, _, row in found.values()}
    for key, pending, _ in found.values():
        rows[key] = learned(rows[key], pending, None, UNTOLD, ticket, now)
    note(db, {key: row for key, row in rows.items() if row is not None})
    return dead + len(found)


def _gone(
    db: sqlite3.Connection, ids: Sequence[str], where: str = "true"
) -> dict[str, tuple[UsageKey, Pending, Row | None]]:
    """Deletes entries; of each that was there, by its id, the key, what the accounting sees of it, and the row."""
    found = {}
    for first in range(0, len(ids), _AT_ONCE):
        some = ids[first : first + _AT_ONCE]
        chosen = f"id IN ({', '.join('?' * len(some))}) AND {where}"
        for columns in db.execute(f"{_WITH_ROW} WHERE {chosen}", some):
            number, _, *key, amount, is_set, used_at, _, _, _, _, period, _, ticket, _ = columns[:_COLUMNS]
            pending = Pending(amount, period_of(period), instant_of(used_at), bool(is_set), ticket)
            found[str(number)] = UsageKey(*key), pending, row_of(columns[_COLUMNS + 1 :])
        db.execute(f"DELETE FROM entries WHERE {chosen}", some)
    return found


def entry_of(row: Sequence[Any]) -> Entry:
    number, state, customer, resource, feature, *stored = row
    return stored_entry(str(number), state, UsageKey(customer, resource, feature), stored)
