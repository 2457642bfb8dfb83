"""Steps with entries on their way to the sidecar: they are added up, sent in batches, acknowledged, and listed."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from stigg_guard.amounts import quanta, quanta_used
from stigg_guard.django.ledger import holding
from stigg_guard.django.ledger.rows import HELD, REPORT, held_report_of, numbers_of, plain, report_of, text_of
from stigg_guard.django.ledger.step import Step
from stigg_guard.django.ledger.usages import lock, make, next_ticket, note
from stigg_guard.ledger import Acknowledged, Batch, Entry, State
from stigg_guard.ledger.accounting import BATCH_EVENTS_PER_USAGE, UNTOLD, Pending, learned, may_add_up, sent_at, taken
from stigg_guard.ledger.entries import before_text, instant_of, instant_text, period_of

ADDED_UP_AT_ONCE = 5_000
_WAITS = "state IN ('dead', 'uncertain')"
_UNDER_WAY = "state IN ('sending', 'uncertain')"
_UNSENT = "state = 'unsent', batch = NULL, attempts = 0"
# Of each key those that are fresh, all that came after, and the one before.
_FRESH = """
SELECT entry.key, entry.id, amount, period, used_at, is_set, ticket, dimensions, present, fresh
FROM stigg_guard_ledger_entries AS entry JOIN (
    SELECT key, min(id) AS first, max(id) AS last FROM (
        SELECT key, id FROM stigg_guard_ledger_entries WHERE fresh ORDER BY id LIMIT %(most)s
    ) AS oldest GROUP BY key
) AS added ON added.key = entry.key
WHERE state = 'unsent' AND event = '' AND entry.id <= added.last AND entry.id >= coalesce((
    SELECT max(id) FROM stigg_guard_ledger_entries AS before
    WHERE before.key = added.key AND before.state = 'unsent' AND before.event = '' AND before.id < added.first
), added.first) ORDER BY entry.key, entry.id FOR UPDATE OF entry SKIP LOCKED
"""
_ADD_UP = """
UPDATE stigg_guard_ledger_entries SET amount = column2, used_at = column3, fresh = false
FROM (VALUES %(rows)s) AS sums WHERE id = column1
"""
_BRING_BACK = """
UPDATE stigg_guard_ledger_entries SET until = %(now)s + lasts
WHERE until > 0 AND until > %(now)s AND until > %(now)s + lasts
"""
_DUE_BATCH = """
SELECT batch FROM stigg_guard_ledger_entries AS one WHERE state = 'sending' AND until <= %(now)s AND NOT EXISTS (
    SELECT 1 FROM stigg_guard_ledger_entries AS other WHERE other.key = one.key AND other.state = 'sending'
        AND other.until > %(now)s AND one.event = '' AND other.event = ''
) ORDER BY id LIMIT 1
"""
_NEXT_USAGES = f"""
SELECT {REPORT} FROM stigg_guard_ledger_entries AS one
WHERE state = 'unsent' AND event = '' AND until <= %(now)s AND NOT EXISTS (
    SELECT 1 FROM stigg_guard_ledger_entries AS other WHERE other.key = one.key AND other.event = '' AND (
        other.state = 'sending' OR other.state = 'unsent' AND other.id < one.id
        OR other.state = 'uncertain' AND other.until IS NOT NULL)
) ORDER BY id LIMIT %(most)s
"""
_NEXT_EVENTS = f"""
SELECT {REPORT} FROM stigg_guard_ledger_entries
WHERE state = 'unsent' AND event <> '' AND until <= %(now)s ORDER BY id LIMIT %(most)s
"""
_KEYS_UNDER_WAY = f"SELECT DISTINCT key FROM stigg_guard_ledger_entries WHERE key IN (%(keys)s) AND {_UNDER_WAY}"
_SEND = """
UPDATE stigg_guard_ledger_entries
SET state = 'sending', batch = %(batch)s, ticket = %(ticket)s, used_at = column2, before = column3
FROM (VALUES %(rows)s) AS sent WHERE id = column1
"""
_COUNTS = """
SELECT state, count(*) FROM stigg_guard_ledger_entries GROUP BY state
UNION ALL SELECT 'held', count(*) FROM stigg_guard_ledger_holds WHERE until > %(now)s
UNION ALL SELECT 'waiting', count(*) FROM stigg_guard_ledger_entries WHERE state = 'uncertain' AND until IS NULL
UNION ALL SELECT 'late', count(*) FROM stigg_guard_ledger_late
"""


def add_up(step: Step) -> None:
    """Adds up unsent usage where that loses nothing. No use is added to another one's row when it is committed: that
    would make users' transactions wait for each other."""
    written: list[tuple[int, int, str]] = []
    added: list[int] = []
    for _, rows in groupby(step.run(_FRESH, most=ADDED_UP_AT_ONCE), key=itemgetter(0)):
        sums: list[_Sum] = []
        for row in rows:
            one = _Sum(*row[1:])
            if sums and may_add_up(sums[-1].pending, one.pending, period_of(one.present)):
                sums[-1] = sums[-1].with_added(one)
                added.append(one.number)
            else:
                sums.append(one)
        written += [(one.number, one.amount, one.used_at) for one in sums if one.is_changed]
    if written:
        step.run(_ADD_UP, rows=written)
    if added:
        step.run("DELETE FROM stigg_guard_ledger_entries WHERE id IN (%(added)s)", added=added)


class _Sum(NamedTuple):
    """An unsent entry, or several. It ``is_changed`` if it was fresh or is a sum now."""

    number: int
    amount: int
    period: str
    used_at: str
    is_set: bool
    ticket: int
    dimensions: str
    present: str
    is_changed: bool

    @property
    def pending(self) -> Pending:
        used_at = instant_of(self.used_at)
        return Pending(self.amount, period_of(self.period), used_at, bool(self.is_set), self.ticket, self.dimensions)

    def with_added(self, other: _Sum) -> _Sum:
        latest = max(self.used_at, other.used_at)
        return self._replace(amount=self.amount + other.amount, used_at=latest, is_changed=True)


def take_batch(step: Step, size: int, lasts: int) -> Batch | None:
    now = step.now()
    holding.clear(step, now)
    add_up(step)
    step.run(_BRING_BACK, now=now)
    due = step.run(_DUE_BATCH, now=now)
    batch = due[0][0] if due else _new_batch(step, size, now)
    if batch is None:
        return None
    lease = "SET until = %(until)s, lasts = %(lasts)s, attempts = attempts + 1"
    leased = step.run(
        f"UPDATE stigg_guard_ledger_entries {lease} WHERE batch = %(batch)s RETURNING {REPORT}",
        until=now + lasts, lasts=lasts, batch=batch,
    )  # fmt: skip
    return Batch(batch, [report_of(row) for row in sorted(leased)])


def _new_batch(step: Step, size: int, now: int) -> str | None:
    """Marks what is to be sent next: the oldest usages, one of each key, or else the oldest events."""
    rows = step.run(_NEXT_USAGES, now=now, most=size)
    if not rows:
        rows = step.run(_NEXT_EVENTS, now=now, most=size * BATCH_EVENTS_PER_USAGE)
    if not rows:
        return None
    batch, (ticket, _) = secrets.token_hex(16), next_ticket(step)
    reports = [report_of(row) for row in rows]
    sent, befores = {}, {}
    keys = sorted({text_of(report.key) for report in reports})
    under_way = {key for (key,) in step.run(_KEYS_UNDER_WAY, keys=keys)}
    for key, row in lock(step, keys).rows.items():
        if row is not None:
            sent[key], before = taken(row, ticket, key not in under_way)
            befores[key] = before_text(before)
    note(step, sent)
    marked = [
        (
            *(int(report.id), instant_text(sent_at(report.period, report.used_at, now * 1000))),
            befores.get(text_of(report.key), ""),
        )
        for report in reports
    ]
    step.run(_SEND, batch=batch, ticket=ticket, rows=marked)
    return batch


def acknowledge(step: Step, answers: Sequence[Acknowledged]) -> None:
    gone = _forget(step, "true", (answer.report.id for answer in answers))
    _learn(step, [(gone.pop(answer.report.id), answer) for answer in answers if answer.report.id in gone])


def put_back(step: Step, reports: Iterable[Entry], lasts: int, reason: str) -> None:
    until = "%(now)s + %(lasts)s" if lasts else "0"
    change = f"{_UNSENT}, until = {until}, lasts = %(lasts)s, reason = %(reason)s"
    _change(step, change, _UNDER_WAY, (report.id for report in reports), lasts=lasts, reason=plain(reason))


def postpone(step: Step, batch: Batch, lasts: int) -> None:
    change = "until = %(now)s + %(lasts)s, lasts = %(lasts)s"
    step.run(f"UPDATE stigg_guard_ledger_entries SET {change} WHERE batch = %(batch)s", lasts=lasts, batch=batch.id)


def split(step: Step, batch: Batch) -> None:
    change = "batch = batch || '/' || id, until = 0, attempts = 0"
    step.run(f"UPDATE stigg_guard_ledger_entries SET {change} WHERE batch = %(batch)s", batch=batch.id)


def doubt(step: Step, reports: Iterable[Entry], lasts: int | None, reason: str) -> None:
    until = "NULL" if lasts is None else "%(now)s + %(lasts)s"
    change = f"state = 'uncertain', batch = NULL, until = {until}, lasts = %(lasts)s, reason = %(reason)s"
    _change(step, change, _UNDER_WAY, (report.id for report in reports), lasts=lasts or 0, reason=plain(reason))


def take_uncertain(step: Step, size: int, lasts: int) -> Sequence[Entry]:
    now = step.now()
    step.run(_BRING_BACK, now=now)
    due = "state = 'uncertain' AND until <= %(now)s ORDER BY id LIMIT %(size)s"
    rows = step.run(f"SELECT {REPORT} FROM stigg_guard_ledger_entries WHERE {due}", now=now, size=size)
    reports = [report_of(row) for row in rows]
    change = "until = %(now)s + %(lasts)s, lasts = %(lasts)s"
    _change(step, change, "state = 'uncertain'", (report.id for report in reports), now=now, lasts=lasts)
    return reports


def bury(step: Step, report: Entry, reason: str) -> None:
    change = "state = 'dead', batch = NULL, reason = %(reason)s"
    _change(step, change, "true", [report.id], reason=plain(reason))


def entries(step: Step, states: Sequence[State], limit: int) -> Sequence[Entry]:
    add_up(step)
    values = [state.value for state in states]
    wanted = "WHERE state IN (%(states)s) ORDER BY first_at, id LIMIT %(limit)s"
    statement = f"SELECT {REPORT} FROM stigg_guard_ledger_entries {wanted}"
    found = [report_of(row) for row in step.run(statement, states=values, limit=limit)]
    if State.HELD in states:
        alive = "WHERE until > %(now)s ORDER BY taken_at, id LIMIT %(limit)s"
        found += map(held_report_of, step.run(f"SELECT {HELD} FROM stigg_guard_ledger_holds {alive}", limit=limit))
    return sorted(found, key=lambda report: report.first_at)[:limit]


def retry(step: Step, ids: Iterable[str]) -> int:
    return _change(step, f"{_UNSENT}, reason = '', until = 0", _WAITS, ids)


def discard(step: Step, ids: Sequence[str]) -> int:
    dead, doubted = _forget(step, "state = 'dead'", ids), _forget(step, "state = 'uncertain'", ids)
    _learn(step, [(doubted[one], None) for one in dict.fromkeys(ids) if one in doubted])
    return len(dead) + len(doubted)


def counts(step: Step) -> Mapping[str, int]:
    add_up(step)
    nothing = {state.value: 0 for state in State} | {"waiting": 0}
    return nothing | {name: int(number) for name, number in step.run(_COUNTS)}


def _change(step: Step, change: str, which: str, ids: Iterable[str], **given: Any) -> int:
    """Changes those of the entries that it is for; how many there were."""
    statement = f"UPDATE stigg_guard_ledger_entries SET {change} WHERE id IN (%(numbers)s) AND {which} RETURNING id"
    return len(step.run(statement, numbers=numbers_of(ids), **given))


def _forget(step: Step, which: str, ids: Iterable[str]) -> dict[str, tuple[str, Pending]]:
    """Deletes those of the entries that it is for; the key and what was on its way of each, by its id."""
    statement = (
        f"DELETE FROM stigg_guard_ledger_entries WHERE id IN (%(numbers)s) AND {which} "
        "RETURNING id, key, amount, period, used_at, is_set, ticket"
    )
    return {
        str(number): (key, Pending(amount, period_of(period), instant_of(used_at), bool(is_set), ticket))
        for number, key, amount, period, used_at, is_set, ticket in step.run(statement, numbers=numbers_of(ids))
    }


def _learn(step: Step, counted: Sequence[tuple[tuple[str, Pending], Acknowledged | None]]) -> None:
    """Notes what is known of reports that were counted, or may have been, with the answer to each."""
    keys = {key for (key, _), _ in counted}
    if not keys:
        return
    keys |= {text_of(answer.paid[0]) for _, answer in counted if answer is not None and answer.paid is not None}
    make(step, keys)
    now, rows = lock(step, keys)
    ticket = next_ticket(step).number
    for (key, pending), answer in counted:
        told, period = (None, UNTOLD) if answer is None else (answer.current_usage, answer.period)
        used = None if told is None else quanta_used(told)
        rows[key] = learned(rows[key], pending, used, period, ticket, now)
        if answer is not None and answer.paid is not None:
            wallet, price = text_of(answer.paid[0]), quanta(answer.paid[1])
            payment = pending._replace(amount=price, is_set=False)
            rows[wallet] = learned(rows[wallet], payment, None, UNTOLD, ticket, now)
    note(step, rows)
