"""What is known of the usage of keys, and what counts beside it: units that are held, and those on their way."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from stigg_guard.amounts import units
from stigg_guard.django.ledger.step import Step
from stigg_guard.ledger import Row, Ticket
from stigg_guard.ledger.accounting import UNTOLD, Pending, counted, outstanding
from stigg_guard.ledger.entries import instant_of, period_of, period_text

TICKETS_KEPT = 1000
_ROW = "period, used, allowed, seen, settled, settled_at, moved_at, added"
# Time is read when all the locks are taken: whoever had them before may have written what is later than the wait began.
_LOCKED = f"""
WITH locked AS (
    SELECT key, {_ROW} FROM stigg_guard_ledger_usages WHERE key IN (%(keys)s) ORDER BY key FOR UPDATE
)
SELECT %(now)s, locked.* FROM locked
"""
_NOTE = f"""
INSERT INTO stigg_guard_ledger_usages (key, {_ROW}) VALUES %(rows)s ON CONFLICT (key) DO UPDATE SET
    period = excluded.period, used = excluded.used, allowed = excluded.allowed, seen = excluded.seen,
    settled = excluded.settled, settled_at = excluded.settled_at, moved_at = excluded.moved_at, added = excluded.added
"""
_MAKE = """
INSERT INTO stigg_guard_ledger_usages (key, used, seen, settled, added) VALUES %(rows)s ON CONFLICT (key) DO NOTHING
"""
# In one statement, so that a use which is committed meanwhile is seen as a hold or as an entry, and never as neither.
# What is on its way is added up where the accounting makes no difference: on either side of the start of the period.
_STANDING = """
SELECT 'pending', entry.key, entry.period, max(entry.used_at),
    CAST(sum(CASE WHEN NOT is_set AND amount > 0 THEN amount ELSE 0 END) AS bigint),
    max(CASE WHEN is_set THEN amount END), CAST(NULL AS bigint)
FROM stigg_guard_ledger_entries AS entry LEFT JOIN stigg_guard_ledger_usages AS usage ON usage.key = entry.key
WHERE entry.key IN (%(keys)s) AND state IN ('sending', 'uncertain', 'unsent')
GROUP BY entry.key, entry.period,
    CASE WHEN substr(usage.period, 1, 1) <> '/' AND entry.used_at < substr(usage.period, 1, 22) THEN 1 ELSE 0 END
UNION ALL
SELECT 'held', key, NULL, NULL, CAST(sum(CASE WHEN counts OR until > %(now)s THEN amount ELSE 0 END) AS bigint),
    min(CASE WHEN counts THEN until END), max(until - lasts)
FROM stigg_guard_ledger_holds WHERE key IN (%(keys)s) GROUP BY key
UNION ALL
SELECT 'row', key, period, NULL, used, NULL, NULL
FROM stigg_guard_ledger_usages WHERE key IN (%(keys)s) AND period IS NOT NULL
UNION ALL
SELECT 'now', NULL, NULL, NULL, %(now)s, NULL, NULL
"""
_SENDING = """
SELECT amount, period, used_at, is_set, ticket FROM stigg_guard_ledger_entries
WHERE key = %(key)s AND state = 'sending' AND attempts = 1
"""


class Locked(NamedTuple):
    """The rows of keys, locked, and the time then; None for a key of which nothing is known."""

    now: int
    rows: dict[str, Row | None]


@dataclass(slots=True)
class Standing:
    """What counts of one key. ``row`` has but period and usage. ``ends`` is when the first hold that counts ends, and
    none was given its time later than ``ahead``."""

    row: Row | None = None
    pending: list[Pending] = field(default_factory=list)
    held: int = 0
    ends: int | None = None
    ahead: int | None = None

    def outstanding(self) -> int:
        """What is held and on its way, whatever its period."""
        return outstanding(self.held, self.pending)

    def usage(self) -> float:
        """The usage with all that is on its way."""
        return units(counted(self.row or Row(UNTOLD, 0), 0, self.pending))


def lock(step: Step, keys: Collection[str]) -> Locked:
    """Locks the rows of the keys that were ever asked for, all in the same order."""
    now, rows = 0 if keys else step.now(), {}
    for at, key, *columns in step.run(_LOCKED, keys=sorted(keys)):
        now, rows[key] = max(now, at), _row_of(*columns)
    return Locked(now, rows)


def make(step: Step, keys: Collection[str]) -> None:
    """Makes rows of which nothing is known, where there are none."""
    step.run(_MAKE, rows=[(key, 0, 0, 0, 0) for key in sorted(keys)])


def note(step: Step, rows: Mapping[str, Row | None]) -> None:
    written = [(key, period_text(row.period), *row[1:]) for key, row in sorted(rows.items()) if row is not None]
    if written:
        step.run(_NOTE, rows=written)


def known(step: Step, key: str) -> Row | None:
    found = step.run(f"SELECT {_ROW} FROM stigg_guard_ledger_usages WHERE key = %(key)s", key=key)
    return _row_of(*found[0]) if found else None


def standings(step: Step, keys: Collection[str], **now: int) -> tuple[int, dict[str, Standing]]:
    """The present time, and what counts of each key."""
    found = {key: Standing() for key in keys}
    at = 0
    for kind, key, period, used_at, amount, more, ahead in step.run(_STANDING, keys=sorted(keys), **now):
        if kind == "now":
            at = amount
            continue
        standing = found[key]
        if kind == "row":
            standing.row = Row(period_of(period), amount)
        elif kind == "held":
            standing.held, standing.ends, standing.ahead = amount, more, ahead
        else:
            told, latest = period_of(period), instant_of(used_at)
            standing.pending.append(Pending(amount, told, latest))
            if more is not None:
                standing.pending.append(Pending(more, told, latest, is_set=True))
    return at, found


def sending(step: Step, key: str) -> list[Pending]:
    """The reports of the key that are under way for the first time: an acknowledgement is likely to come soon."""
    return [
        Pending(amount, period_of(period), instant_of(used_at), is_set, ticket)
        for amount, period, used_at, is_set, ticket in step.run(_SENDING, key=key)
    ]


def next_ticket(step: Step) -> Ticket:
    """A number higher than all that were drawn before, and the present time."""
    drawn = "INSERT INTO stigg_guard_ledger_tickets DEFAULT VALUES RETURNING id, %(now)s"
    ticket = Ticket(*step.run(drawn)[0])
    if ticket.number % TICKETS_KEPT == 0:
        step.run("DELETE FROM stigg_guard_ledger_tickets WHERE id < %(ticket)s", ticket=ticket.number)
    return ticket


def _row_of(period: str | None, *columns: int) -> Row | None:
    return None if period is None else Row(period_of(period), *columns)
