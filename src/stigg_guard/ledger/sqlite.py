"""The embedded ledger, an outbox in SQLite: in memory, or in a file that all processes of a host share."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from functools import partial

from stigg_guard.amounts import quanta, units
from stigg_guard.clock import Clock
from stigg_guard.ledger.accounting import (
    Row,
    believed,
    counted,
    is_counted,
    is_free,
    is_perhaps_free,
    key_state,
    outstanding,
)
from stigg_guard.ledger.entries import (
    Acknowledged,
    Batch,
    Claim,
    Entry,
    Hold,
    LimitExceeded,
    Once,
    State,
    Ticket,
    UsageKey,
    Use,
    held_claims,
    period_text,
    require_free,
)
from stigg_guard.ledger.sqlite_database import SqliteDatabase, microseconds_of
from stigg_guard.ledger.sqlite_reports import (
    HELD_REPORT,
    REPORT,
    UNSENT,
    acknowledge,
    bring_back,
    change,
    discard,
    due_batch,
    entry_of,
    new_batch,
)
from stigg_guard.ledger.sqlite_statements import (
    KEY,
    TAKE,
    count_once,
    end,
    forget_old,
    mark,
    mark_of,
    next_ticket,
    note,
    record,
    row_of_key,
    sending_of,
    spent,
    standing,
    usage_of,
)
from stigg_guard.settings.urls import LedgerFile


class SqliteLedger(SqliteDatabase):
    """A ledger in a SQLite file, or in this process's memory without a file: each step is one transaction."""

    def __init__(self, file: LedgerFile | None, clock: Clock, *, settle_grace: float = 0.0) -> None:
        super().__init__(file, clock)
        self._grace = microseconds_of(settle_grace)

    def ticket(self, customer_id: str) -> Ticket:
        return Ticket(self._read(next_ticket), self._time())

    def hold(self, claims: Sequence[Claim], ttl: float, once: Once | None = None) -> Hold | LimitExceeded:
        return self._write(partial(self._take, claims, microseconds_of(ttl), once))

    def renew(self, holds: Sequence[Hold], ttl: float) -> None:
        lasts = microseconds_of(ttl)
        held = [(*claim.key, hold.id) for hold in holds for claim in hold.claims]
        keys = [(hold.once.digest, hold.id) for hold in holds if hold.once is not None]

        def step(db: sqlite3.Connection, now: int) -> None:
            given = [(now + lasts, lasts, *part) for part in held]
            db.executemany(f"UPDATE holds SET until = ?, lasts = ? WHERE {KEY} AND id = ?", given)
            marked = [(now + lasts, *key) for key in keys]
            db.executemany("UPDATE keys SET until = ? WHERE digest = ? AND hold = ?", marked)

        if holds:
            self._write(step)

    def commit(self, hold: Hold, uses: Sequence[Use], *, repeated: bool = False) -> Sequence[float]:
        def step(db: sqlite3.Connection, now: int) -> list[float]:
            periods, was_here, is_late = end(db, hold, now)
            key = hold.sole_key
            if repeated and not was_here and (key is None or is_counted(mark_of(db, key), now)):
                return [usage_of(db, use.key) for use in uses]
            if is_late:
                db.execute("UPDATE numbers SET late = late + 1")
            if hold.once is not None and not count_once(db, hold.once, now):
                return []
            return [record(db, use, periods.get(use.key), now) for use in uses]

        return self._write(step)

    def release(self, hold: Hold) -> None:
        if self._is_in_step():  # a finalizer came by in the middle of a step
            self._dropped.append(hold)
            return
        self._write(lambda db, now: end(db, hold, now))

    def record(self, use: Use) -> float:
        return self._write(lambda db, now: record(db, use, None, now))

    def take_batch(self, size: int, lease: float) -> Batch | None:
        lasts = microseconds_of(lease)

        def step(db: sqlite3.Connection, now: int) -> Batch | None:
            forget_old(db, now)
            bring_back(db, now)
            return due_batch(db, lasts, now) or new_batch(db, size, lasts, now)

        return self._write(step)

    def acknowledge(self, answers: Sequence[Acknowledged]) -> None:
        self._write(lambda db, now: acknowledge(db, answers, now))

    def put_back(self, reports: Sequence[Entry], seconds: float = 0.0, reason: str = "") -> None:
        lasts = microseconds_of(seconds)
        statement = (
            f"UPDATE entries SET {UNSENT}, until = ?, lasts = ?, reason = ? "
            "WHERE id = ? AND state IN ('sending', 'uncertain')"
        )

        def step(db: sqlite3.Connection, now: int) -> None:
            until = now + lasts if lasts else 0
            db.executemany(statement, [(until, lasts, reason, report.id) for report in reports])

        self._write(step)

    def postpone(self, batch: Batch, seconds: float) -> None:
        lasts = microseconds_of(seconds)
        statement = "UPDATE entries SET until = ?, lasts = ? WHERE batch = ?"
        self._write(lambda db, now: db.execute(statement, (now + lasts, lasts, batch.id)))

    def split(self, batch: Batch) -> None:
        statement = "UPDATE entries SET batch = batch || '/' || id, until = 0, attempts = 0 WHERE batch = ?"
        self._write(lambda db, _: db.execute(statement, (batch.id,)))

    def doubt(self, reports: Sequence[Entry], seconds: float | None, reason: str) -> None:
        lasts = microseconds_of(seconds or 0.0)
        statement = (
            "UPDATE entries SET state = 'uncertain', batch = NULL, until = ?, lasts = ?, reason = ? "
            "WHERE id = ? AND state IN ('sending', 'uncertain')"
        )

        def step(db: sqlite3.Connection, now: int) -> None:
            until = None if seconds is None else now + lasts
            db.executemany(statement, [(until, lasts, reason, report.id) for report in reports])

        self._write(step)

    def take_uncertain(self, size: int, lease: float) -> Sequence[Entry]:
        lasts = microseconds_of(lease)

        def step(db: sqlite3.Connection, now: int) -> list[Entry]:
            bring_back(db, now)
            due = f"SELECT {REPORT} FROM entries WHERE state = 'uncertain' AND until <= ? ORDER BY id LIMIT ?"
            rows = db.execute(due, (now, size)).fetchall()
            leased = [(now + lasts, lasts, row[0]) for row in rows]
            db.executemany("UPDATE entries SET until = ?, lasts = ? WHERE id = ?", leased)
            return [entry_of(row) for row in rows]

        return self._write(step)

    def bury(self, report: Entry, reason: str) -> None:
        statement = "UPDATE entries SET state = 'dead', batch = NULL, reason = ? WHERE id = ?"
        self._write(lambda db, _: db.execute(statement, (reason, report.id)))

    def known(self, key: UsageKey) -> Row | None:
        return self._read(lambda db: row_of_key(db, key))

    def outstanding(self, key: UsageKey) -> float:
        def step(db: sqlite3.Connection, now: int) -> int:
            found = standing(db, key, now)
            return outstanding(found.held, found.pending)

        return units(self._write(step))

    def entries(self, states: Sequence[State], limit: int) -> Sequence[Entry]:
        marks = ", ".join("?" * len(states))
        statement = (
            f"SELECT * FROM (SELECT {REPORT} FROM entries UNION ALL SELECT {HELD_REPORT} FROM holds WHERE until > ?) "
            f"WHERE state IN ({marks}) ORDER BY first_at, id LIMIT ?"
        )
        given = (self._time(), *(state.value for state in states), limit)
        return self._read(lambda db: [entry_of(row) for row in db.execute(statement, given)])

    def retry(self, ids: Sequence[str]) -> int:
        return self._write(lambda db, _: change(db, f"UPDATE entries SET {UNSENT}, reason = '', until = 0", ids))

    def discard(self, ids: Sequence[str]) -> int:
        return self._write(lambda db, now: discard(db, ids, now))

    def counts(self) -> Mapping[str, int]:
        now = self._time()

        def step(db: sqlite3.Connection) -> dict[str, int]:
            states = db.execute("SELECT state, count(*) FROM entries GROUP BY state").fetchall()
            (held,) = db.execute("SELECT count(*) FROM holds WHERE until > ?", (now,)).fetchone()
            waiting = "SELECT count(*) FROM entries WHERE state = 'uncertain' AND until IS NULL"
            (for_a_person,) = db.execute(waiting).fetchone()
            (late,) = db.execute("SELECT late FROM numbers").fetchone()
            others = {"held": held, "waiting": for_a_person, "late": late}
            return {**{state.value: 0 for state in State}, **dict(states), **others}

        return self._read(step)

    def _take(
        self, claims: Sequence[Claim], lasts: int, once: Once | None, db: sqlite3.Connection, now: int
    ) -> Hold | LimitExceeded:
        if once is not None:
            require_free(key_state(mark_of(db, once), once.binding, now))
        parts: dict[UsageKey, tuple[int, str]] = {}
        exceeded = None
        for claim in claims:
            key, amount = claim.key, quanta(claim.amount)
            found = standing(db, key, now, claim.news.period)
            row, limit = believed(found.row, claim.news, now, self._grace)
            if row is not found.row:
                note(db, {key: row})
            before = parts[key][0] if key in parts else 0
            total = counted(row, found.held + before, found.pending) + spent(db, claim.pays_for, now)
            if exceeded is None and not is_free(total, amount, limit):
                perhaps = is_perhaps_free(row, total, amount, limit, sending_of(db, claim))
                exceeded = LimitExceeded(claim, units(total), units(max(limit or 0, 0)), perhaps)
            parts[key] = amount + before, period_text(row.period)
        if exceeded is not None:
            return exceeded
        hold = Hold(secrets.token_hex(8), held_claims(claims), once)
        for key in {claim.key for claim in hold.claims}:
            amount, period = parts[key]
            db.execute(TAKE, (*key, hold.id, amount, period, now, now + lasts, lasts))
        if once is not None:
            mark(db, once, hold.id, now + lasts)
        return hold
