"""The rows of the embedded ledger: what each statement reads and writes, for steps within one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stigg_guard.amounts import quanta, units
from stigg_guard.ledger.accounting import (
    EXPIRED_HOLDS_KEPT,
    UNTOLD,
    Mark,
    Pending,
    Period,
    Row,
    cost,
    counted,
    is_counted,
    may_add_up,
    outstanding,
    priced,
    stamped,
)
from stigg_guard.ledger.entries import (
    Claim,
    Hold,
    Once,
    UsageKey,
    Use,
    event_text,
    instant_of,
    instant_text,
    period_of,
    period_text,
)

KEYS_FORGOTTEN_AT_ONCE = 10_000
KEY = "customer = ? AND resource = ? AND feature = ?"
SAME_KEY = "other.customer = one.customer AND other.resource = one.resource AND other.feature = one.feature"
_ON_ITS_WAY = "state > 'dead'"  # sending, uncertain, unsent: one range of the index, where IN would search thrice
_NEXT_TICKET = "UPDATE numbers SET ticket = ticket + 1 RETURNING ticket"
ROW = "period, used, allowed, seen, settled, settled_at, moved_at, added"
_OF_KEY = "customer = :customer AND resource = :resource AND feature = :feature"
_ROW_OF_KEY = f"SELECT 'row', {ROW} FROM usages WHERE {_OF_KEY}"
# What is on its way is added up where the accounting makes no difference: on either side of the start of the row's
# period, and of the one that it may come into by what is told.
_PENDING_OF_KEY = f"""
SELECT 'pending', period, sum(CASE WHEN is_set THEN 0 ELSE max(amount, 0) END), max(CASE WHEN is_set THEN amount END),
    max(used_at), NULL, NULL, NULL, NULL
FROM entries WHERE {_OF_KEY} AND {_ON_ITS_WAY} GROUP BY period, used_at < :start,
    used_at < (SELECT substr(period, 1, instr(period, '/') - 1) FROM usages WHERE {_OF_KEY})
"""
_HELD_OF_KEY = f"""
SELECT 'held', NULL, coalesce(sum(CASE WHEN until > :now THEN amount END), 0), max(until - lasts),
    NULL, NULL, NULL, NULL, NULL
FROM holds WHERE {_OF_KEY}
"""
_NEWEST_OF_KEY = f"""
SELECT * FROM (
    SELECT 'newest', period, id, amount, used_at, is_set, ticket, dimensions, NULL FROM entries
    WHERE {_OF_KEY} AND state = 'unsent' AND event = '' ORDER BY id DESC LIMIT 1
)
"""
# In one statement each: what decides a claim, and what a use is added to.
_STANDING = f"{_ROW_OF_KEY} UNION ALL {_HELD_OF_KEY} UNION ALL {_PENDING_OF_KEY}"
_USAGE = f"{_ROW_OF_KEY} UNION ALL {_NEWEST_OF_KEY} UNION ALL {_PENDING_OF_KEY}"
_SENDING = f"""
SELECT amount, period, used_at, is_set, ticket FROM entries WHERE {KEY} AND state = 'sending' AND attempts = 1
"""
TAKE = "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_END = f"DELETE FROM holds WHERE {KEY} AND id = ? RETURNING period, until"
_FORGET_KEYS = "DELETE FROM keys WHERE digest IN (SELECT digest FROM keys WHERE until < ? ORDER BY until LIMIT ?)"


def next_ticket(db: sqlite3.Connection) -> int:
    return int(db.execute(_NEXT_TICKET).fetchall()[0][0])


@dataclass(slots=True)
class Standing:
    """What counts of a key: its row, the units held and those on their way; and what is unsent last, with its id."""

    row: Row | None = None
    held: int = 0
    pending: list[Pending] = field(default_factory=list)
    newest: tuple[int, Pending] | None = None

    def usage(self) -> float:
        """The usage of the key with all that is on its way."""
        return units(counted(self.row or Row(UNTOLD, 0), 0, self.pending))


def standing(db: sqlite3.Connection, key: UsageKey, now: int, told: Period = UNTOLD) -> Standing:
    """What decides a claim, whose news are of the period ``told``."""
    ahead, found = _standing(db, _STANDING, key, told, now)
    if ahead is not None and ahead > now:
        db.execute(f"UPDATE holds SET until = ? + lasts WHERE {KEY} AND until > ? + lasts", (now, *key, now))
    return found


def _standing(
    db: sqlite3.Connection, statement: str, key: UsageKey, told: Period = UNTOLD, now: int = 0
) -> tuple[int | None, Standing]:
    customer, resource, feature = key
    start = "" if told.start is None else instant_text(told.start)
    given = {"customer": customer, "resource": resource, "feature": feature, "start": start, "now": now}
    ahead, found = None, Standing()
    for kind, text, first, second, third, *more in db.execute(statement, given):
        if kind == "held":
            found.held, ahead = first, second
            continue
        period = period_of(text)
        if kind == "row":
            found.row = Row(period, first, second, third, *more)
        elif kind == "pending":
            used_at = instant_of(third)
            found.pending.append(Pending(first, period, used_at))
            if second is not None:
                found.pending.append(Pending(second, period, used_at, is_set=True))
        else:
            is_set, ticket, dimensions, _ = more
            found.newest = first, Pending(second, period, instant_of(third), bool(is_set), ticket, dimensions)
    return ahead, found


def row_of_key(db: sqlite3.Connection, key: UsageKey) -> Row | None:
    found = db.execute(f"SELECT {ROW} FROM usages WHERE {KEY}", key).fetchone()
    return None if found is None else row_of(found)


def row_of(columns: Sequence[Any]) -> Row | None:
    """The row of a key; None for columns of which the join found none."""
    period, *others = columns
    return None if period is None else Row(period_of(period), *others)


def note(db: sqlite3.Connection, rows: Mapping[UsageKey, Row]) -> None:
    columns = [(*key, period_text(row.period), *row[1:]) for key, row in rows.items()]
    db.executemany("INSERT OR REPLACE INTO usages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", columns)


def spent(db: sqlite3.Connection, pays_for: Iterable[tuple[UsageKey, float]], now: int) -> int:
    """What is held and on its way of the keys that a wallet pays for, in its currency."""
    found = [(standing(db, key, now), rate) for key, rate in pays_for]
    return sum(cost(outstanding(one.held, one.pending), rate) for one, rate in found)


def sending_of(db: sqlite3.Connection, claim: Claim) -> Iterable[Pending]:
    """The reports of the claim's key, or of those that it pays for, that are under way for the first time: an
    acknowledgement is likely to come soon."""
    for key, rate in claim.pays_for:
        for report in _sending_of(db, key):
            yield priced(report, rate)
    yield from _sending_of(db, claim.key)


def _sending_of(db: sqlite3.Connection, key: UsageKey) -> Iterable[Pending]:
    for amount, period, used_at, is_set, ticket in db.execute(_SENDING, key).fetchall():
        yield Pending(amount, period_of(period), instant_of(used_at), bool(is_set), ticket)


def usage_of(db: sqlite3.Connection, key: UsageKey) -> float:
    """The usage of a key with all that is on its way."""
    return _standing(db, _USAGE, key)[1].usage()


class Ended(NamedTuple):
    """What was a hold: the periods of the parts that were still there, whether anything of it was, and whether it is
    late."""

    periods: dict[UsageKey, Period]
    was_here: bool
    is_late: bool


def end(db: sqlite3.Connection, hold: Hold, now: int) -> Ended:
    """Ends the hold, which leaves the caller's key free."""
    periods: dict[UsageKey, Period] = {}
    is_late = False
    for key in {claim.key for claim in hold.claims}:
        ended = db.execute(_END, (*key, hold.id)).fetchall()
        is_late = is_late or not ended or ended[0][1] <= now
        for period, _ in ended:
            periods[key] = period_of(period)
    had_key = hold.once is not None and _free(db, hold.once, hold.id)
    return Ended(periods, had_key or bool(periods), is_late)


def _free(db: sqlite3.Connection, once: Once, hold: str) -> bool:
    return db.execute("DELETE FROM keys WHERE digest = ? AND hold = ?", (once.digest, hold)).rowcount > 0


def mark_of(db: sqlite3.Connection, once: Once) -> Mark | None:
    """What is noted of a caller's key."""
    found = db.execute("SELECT hold, until, binding FROM keys WHERE digest = ?", (once.digest,)).fetchone()
    return found and Mark(*found)


def mark(db: sqlite3.Connection, once: Once, hold: str, ends: int) -> None:
    db.execute("INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?)", (once.digest, hold, ends, once.binding))


def count_once(db: sqlite3.Connection, once: Once, now: int) -> bool:
    """Notes that a use with the caller's key is counted; False if one was."""
    if is_counted(mark_of(db, once), now):
        return False
    mark(db, once, "", now + once.kept)
    return True


def forget_old(db: sqlite3.Connection, now: int) -> None:
    """Deletes the holds that are long expired, whose work will not end them, and marks of keys that are as old."""
    db.execute("DELETE FROM holds WHERE until < ?", (now - EXPIRED_HOLDS_KEPT,))
    db.execute(_FORGET_KEYS, (now - EXPIRED_HOLDS_KEPT, KEYS_FORGOTTEN_AT_ONCE))


def record(db: sqlite3.Connection, use: Use, period: Period | None, now: int) -> float:
    """Writes the use, added to what is unsent where that loses nothing; the key's usage with it. Without the period of
    a hold it belongs to the present one."""
    key = use.key
    _, found = _standing(db, _USAGE, key)
    present = UNTOLD if found.row is None else found.row.period
    if period is None:
        period = present
    if use.amount or use.is_set:
        details, event = use.details, event_text(use.event)
        new = Pending(quanta(use.amount), period, stamped(period, now * 1000), use.is_set, dimensions=details)
        if found.newest is not None and not event and may_add_up(found.newest[1], new, present):
            _add(db, *found.newest, new)
        else:
            db.execute(
                "INSERT INTO entries (customer, resource, feature, state, amount, is_set, used_at, first_at, period, "
                "event, dimensions) VALUES (?, ?, ?, 'unsent', ?, ?, ?, ?, ?, ?, ?)",
                (*key, new.amount, use.is_set, instant_text(new.used_at), now, period_text(period), event, details),
            )
        found.pending.append(new)
    return found.usage()


def _add(db: sqlite3.Connection, number: int, old: Pending, new: Pending) -> None:
    latest = instant_text(max(old.used_at, new.used_at))
    db.execute("UPDATE entries SET amount = ?, used_at = ? WHERE id = ?", (old.amount + new.amount, latest, number))
