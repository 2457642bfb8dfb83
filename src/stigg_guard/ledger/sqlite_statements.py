"""The rows of the embedded ledger: what each statement reads and writes, for steps within one transaction."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stigg_guard.amounts import quanta, units
from stigg_guard.ledger.accounting import (
    BATCH_EVENTS_PER_USAGE,
    EXPIRED_HOLDS_KEPT,
    UNTOLD,
    Mark,
    Pending,
    Period,
    Row,
    cost,
    counted,
    is_counted,
    learned,
    may_add_up,
    outstanding,
    priced,
    sent_at,
    stamped,
    taken,
)
from stigg_guard.ledger.entries import (
    Claim,
    Entry,
    Hold,
    Once,
    UsageKey,
    Use,
    before_text,
    event_text,
    instant_of,
    instant_text,
    period_of,
    period_text,
    stored_entry,
)

KEYS_FORGOTTEN_AT_ONCE = 10_000
KEY = "customer = ? AND resource = ? AND feature = ?"
_SAME_KEY = "other.customer = one.customer AND other.resource = one.resource AND other.feature = one.feature"
_WAITS = "state IN ('dead', 'uncertain')"
DOUBTED = "state = 'uncertain'"
_ON_ITS_WAY = "state > 'dead'"  # sending, uncertain, unsent: one range of the index, where IN would search thrice
_NEXT_TICKET = "UPDATE numbers SET ticket = ticket + 1 RETURNING ticket"
_ROW = "period, used, allowed, seen, settled, settled_at, moved_at, added"
_OF_KEY = "customer = :customer AND resource = :resource AND feature = :feature"
_ROW_OF_KEY = f"SELECT 'row', {_ROW} FROM usages WHERE {_OF_KEY}"
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

TAKE = "INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_END = f"DELETE FROM holds WHERE {KEY} AND id = ? RETURNING period, until"
_FORGET_KEYS = "DELETE FROM keys WHERE digest IN (SELECT digest FROM keys WHERE until < ? ORDER BY until LIMIT ?)"


def next_ticket(db: sqlite3.Connection) -> int:
    return int(db.execute(_NEXT_TICKET).fetchall()[0][0])


def change(db: sqlite3.Connection, statement: str, ids: Sequence[str], where: str = _WAITS) -> int:
    return sum(db.execute(f"{statement} WHERE id = ? AND {where}", (entry,)).rowcount for entry in ids)


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
    found = db.execute(f"SELECT {_ROW} FROM usages WHERE {KEY}", key).fetchone()
    if found is None:
        return None
    period, *others = found
    return Row(period_of(period), *others)


def note(db: sqlite3.Connection, key: UsageKey, row: Row) -> None:
    period, *others = row
    columns = (*key, period_text(period), *others)
    db.execute("INSERT OR REPLACE INTO usages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", columns)


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


def _is_alone(db: sqlite3.Connection, key: UsageKey) -> bool:
    """Whether no report of the key is under way."""
    statement = f"SELECT EXISTS (SELECT 1 FROM entries WHERE {KEY} AND state IN ('sending', 'uncertain'))"
    return not db.execute(statement, key).fetchone()[0]


# That it is above 0 is what the index of leases asks for: without it all that waits would be looked through.
BRING_BACK = "UPDATE entries SET until = ? + lasts WHERE until > 0 AND until > ? AND until > ? + lasts"


def bring_back(db: sqlite3.Connection, now: int) -> None:
    """Lets what was leased before the clock was set back end in its own time."""
    db.execute(BRING_BACK, (now, now, now))


def new_batch(db: sqlite3.Connection, size: int, now: int) -> str | None:
    """Marks what is to be sent next: the oldest usages, one of each key, or else the oldest events."""
    rows = db.execute(_NEXT_USAGES, (now, size)).fetchall()
    if not rows:
        rows = db.execute(_NEXT_EVENTS, (now, size * BATCH_EVENTS_PER_USAGE)).fetchall()
    if not rows:
        return None
    batch, ticket = secrets.token_hex(16), next_ticket(db)
    entries = [entry_of(row) for row in rows]
    befores: dict[UsageKey, str] = {}
    for key in {entry.key for entry in entries}:
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
                *(befores.get(entry.key, ""), entry.id),
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
        key = UsageKey(customer, resource, feature)
        pending = Pending(amount, period_of(held_in), instant_of(used_at), bool(is_set), first)
        note(db, key, learned(row_of_key(db, key), pending, told, period, ticket, now))
    return bool(gone)


def pay(db: sqlite3.Connection, paid: tuple[UsageKey, float], report: Pending, ticket: int, now: int) -> None:
    """Notes what a wallet has paid for a report that was counted; the next snapshot tells its usage."""
    wallet, price = paid
    payment = report._replace(amount=quanta(price), is_set=False)
    note(db, wallet, learned(row_of_key(db, wallet), payment, None, UNTOLD, ticket, now))


def entry_of(row: Sequence[Any]) -> Entry:
    number, state, customer, resource, feature, *stored = row
    return stored_entry(str(number), state, UsageKey(customer, resource, feature), stored)
