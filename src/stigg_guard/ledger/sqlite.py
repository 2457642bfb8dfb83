"""The embedded ledger: one SQLite database, in memory or in a file that all processes of a host share."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import quote

from stigg_guard.amounts import quanta, quanta_used, units
from stigg_guard.clock import Clock, microseconds
from stigg_guard.errors import ClientClosed, ConfigError, LedgerUnavailable
from stigg_guard.ledger.accounting import (
    BATCH_EVENTS_PER_USAGE,
    EXPIRED_HOLDS_KEPT,
    Pending,
    Period,
    Row,
    believed,
    counted,
    is_free,
    learned,
    may_add_up,
    sent_at,
    stamped,
    taken,
)
from stigg_guard.ledger.entries import (
    Acknowledged,
    Batch,
    Claim,
    Entry,
    Hold,
    Refused,
    State,
    Ticket,
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
from stigg_guard.ledger.files import is_default, make_file, make_folder, obstacle, share_companions
from stigg_guard.ledger.sqlite_schema import prepare
from stigg_guard.log import logger
from stigg_guard.urls import LedgerFile

BUSY_SECONDS = 5.0
LOOK_SECONDS = 1.0  # how often it is seen whether the file is still there
CLOCK_JUMP = 1_000_000  # microseconds by which the wall clock leaves the monotonic one at once, when it is set anew

T = TypeVar("T")

_KEY = "customer = ? AND resource = ? AND feature = ?"
_SAME_KEY = "other.customer = one.customer AND other.resource = one.resource AND other.feature = one.feature"
_WAITS = "state IN ('dead', 'uncertain')"
_DOUBTED = "state = 'uncertain'"
_ON_ITS_WAY = "state > 'dead'"  # sending, uncertain, unsent: one range of the index, where IN would search thrice
_NEXT_TICKET = "UPDATE numbers SET ticket = ticket + 1 RETURNING ticket"
_ROW = "period, used, allowed, seen, settled, settled_at, moved_at, added"
# What decides a claim: the units held, how far ahead one of their ends lies, whether there is more, the row.
_STANDING = f"""
SELECT held, ahead, EXISTS (SELECT 1 FROM entries WHERE {_KEY} AND {_ON_ITS_WAY}), {_ROW}
FROM (
    SELECT coalesce(sum(CASE WHEN until > ? THEN amount END), 0) AS held, max(until - lasts) AS ahead
    FROM holds WHERE {_KEY}
) LEFT JOIN usages ON {_KEY}
"""
_PENDING = f"""
SELECT sum(CASE WHEN is_set THEN 0 ELSE max(amount, 0) END), max(CASE WHEN is_set THEN amount END), period, max(used_at)
FROM entries WHERE {_KEY} AND {_ON_ITS_WAY} GROUP BY period, used_at < ?
"""
_NEWEST = f"""
SELECT id, amount, period, used_at, is_set, ticket, dimensions FROM entries
WHERE {_KEY} AND state = 'unsent' AND event = '' ORDER BY id DESC LIMIT 1
"""
_REPORT = (
    "id, state, customer, resource, feature, amount, is_set, used_at, event, reason, attempts, dimensions, period, "
    "first_at, ticket, before"
)
_HELD_REPORT = "id, 'held', customer, resource, feature, amount, 0, '', '', '', 0, '', period, taken_at, 0, ''"
_DUE_BATCH = f"""
SELECT batch FROM entries AS one WHERE state = 'sending' AND until <= :now AND NOT EXISTS (
    SELECT 1 FROM entries AS other WHERE {_SAME_KEY} AND other.state = 'sending' AND other.until > :now
        AND one.event = '' AND other.event = ''
) ORDER BY id LIMIT 1
"""
_NEXT_USAGES = f"""
SELECT {_REPORT} FROM entries AS one WHERE state = 'unsent' AND event = '' AND until <= ? AND NOT EXISTS (
    SELECT 1 FROM entries AS other WHERE {_SAME_KEY} AND other.event = '' AND (
        other.state = 'sending' OR other.state = 'unsent' AND other.id < one.id
        OR other.state = 'uncertain' AND other.until IS NOT NULL)
) ORDER BY id LIMIT ?
"""
_NEXT_EVENTS = f"""
SELECT {_REPORT} FROM entries WHERE state = 'unsent' AND event <> '' AND until <= ? ORDER BY id LIMIT ?
"""
_UNSENT = "state = 'unsent', batch = NULL, attempts = 0"

_Key = tuple[str, str, str]


class SqliteLedger:
    """A ledger in a SQLite file (WAL), or in this process's memory without a file.

    A file survives kill -9 with everything that was committed; ``synchronous=NORMAL`` may lose the last commits when
    the machine itself loses power. Thread-safe, safe between processes and across forks, and under exceptions that come
    from outside at any moment. The first use of each process opens it. A step waits ``BUSY_SECONDS`` for its turn in
    this process, and as long for other processes.

    Raises:
        ConfigError: on first use, when the file cannot be opened, is no ledger, or is of a newer version.
    """

    def __init__(self, file: LedgerFile | None, clock: Clock, *, settle_grace: float = 0.0) -> None:
        path = None if file is None else file.path
        if path is not None and not is_default(path) and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise ConfigError(f"LEDGER: there is no folder for {path}; make it, or name another file")
        self._given = file
        self._path = path
        self._now, self._monotonic = clock.now, clock.monotonic
        self._grace = _microseconds(settle_grace)
        self._closed = False
        self._pid = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._looked_at = 0.0
        self._is_stepping = False
        self._ahead = self._clock_ahead()
        self._dropped: deque[Hold] = deque()  # in the middle of a step: the next one that writes ends them first
        with _lock:
            _ledgers.add(self)
        if path is None:
            logger.info("the ledger is in memory: usage that was not reported yet is lost when this process ends")

    def ticket(self, customer_id: str) -> Ticket:
        return Ticket(self._read(_next_ticket), self._time())

    def hold(self, claims: Sequence[Claim], ttl: float) -> Hold | Refused:
        hold, now, lasts = Hold(secrets.token_hex(8), tuple(claims)), self._time(), _microseconds(ttl)
        return self._write(lambda db: self._take(db, hold, now, lasts))

    def renew(self, holds: Sequence[Hold], ttl: float) -> None:
        lasts = _microseconds(ttl)
        until = self._time() + lasts
        held = [(until, lasts, *_columns(claim.key), hold.id) for hold in holds for claim in hold.claims]
        self._write(lambda db: db.executemany(f"UPDATE holds SET until = ?, lasts = ? WHERE {_KEY} AND id = ?", held))

    def commit(self, hold: Hold, uses: Sequence[Use], *, repeated: bool = False) -> Sequence[float]:
        now = self._time()

        def step(db: sqlite3.Connection) -> list[float]:
            periods, is_late = _end(db, hold, now)
            if not periods and repeated:
                return [_usage(db, use.key) for use in uses]
            if is_late:
                db.execute("UPDATE numbers SET late = late + 1")
            return [_record(db, use, periods.get(_columns(use.key)), now) for use in uses]

        return self._write(step)

    def release(self, hold: Hold) -> None:
        if self._is_in_step():  # a finalizer came by in the middle of a step
            self._dropped.append(hold)
            return
        self._write(lambda db: _end(db, hold, self._time()))

    def record(self, use: Use) -> float:
        return self._write(lambda db: _record(db, use, None, self._time()))

    def take_batch(self, size: int, lease: float) -> Batch | None:
        now, lasts = self._time(), _microseconds(lease)

        def step(db: sqlite3.Connection) -> Batch | None:
            db.execute("DELETE FROM holds WHERE until < ?", (now - EXPIRED_HOLDS_KEPT,))
            _bring_back(db, now)
            due = db.execute(_DUE_BATCH, {"now": now}).fetchone()
            batch = due[0] if due else _new_batch(db, size, now)
            if batch is None:
                return None
            leased = (now + lasts, lasts, batch)
            db.execute("UPDATE entries SET until = ?, lasts = ?, attempts = attempts + 1 WHERE batch = ?", leased)
            rows = db.execute(f"SELECT {_REPORT} FROM entries WHERE batch = ? ORDER BY id", (batch,))
            return Batch(batch, [_entry(row) for row in rows])

        return self._write(step)

    def acknowledge(self, answers: Sequence[Acknowledged]) -> None:
        now = self._time()

        def step(db: sqlite3.Connection) -> None:
            ticket = _next_ticket(db)
            for answer in answers:
                told = None if answer.current_usage is None else quanta_used(answer.current_usage)
                _settle(db, answer.report.id, told, answer.period, ticket, now)

        self._write(step)

    def put_back(self, reports: Sequence[Entry], seconds: float = 0.0, reason: str = "") -> None:
        lasts = _microseconds(seconds)
        given = [(self._time() + lasts if lasts else 0, lasts, reason, report.id) for report in reports]
        statement = (
            f"UPDATE entries SET {_UNSENT}, until = ?, lasts = ?, reason = ? "
            "WHERE id = ? AND state IN ('sending', 'uncertain')"
        )
        self._write(lambda db: db.executemany(statement, given))

    def postpone(self, batch: Batch, seconds: float) -> None:
        lasts = _microseconds(seconds)
        given = (self._time() + lasts, lasts, batch.id)
        self._write(lambda db: db.execute("UPDATE entries SET until = ?, lasts = ? WHERE batch = ?", given))

    def split(self, batch: Batch) -> None:
        statement = "UPDATE entries SET batch = batch || '/' || id, until = 0, attempts = 0 WHERE batch = ?"
        self._write(lambda db: db.execute(statement, (batch.id,)))

    def doubt(self, reports: Sequence[Entry], seconds: float | None, reason: str) -> None:
        lasts = _microseconds(seconds or 0.0)
        until = None if seconds is None else self._time() + lasts
        given = [(until, lasts, reason, report.id) for report in reports]
        statement = (
            "UPDATE entries SET state = 'uncertain', batch = NULL, until = ?, lasts = ?, reason = ? "
            "WHERE id = ? AND state IN ('sending', 'uncertain')"
        )
        self._write(lambda db: db.executemany(statement, given))

    def take_uncertain(self, size: int, lease: float) -> Sequence[Entry]:
        now, lasts = self._time(), _microseconds(lease)

        def step(db: sqlite3.Connection) -> list[Entry]:
            _bring_back(db, now)
            due = f"SELECT {_REPORT} FROM entries WHERE state = 'uncertain' AND until <= ? ORDER BY id LIMIT ?"
            rows = db.execute(due, (now, size)).fetchall()
            leased = [(now + lasts, lasts, row[0]) for row in rows]
            db.executemany("UPDATE entries SET until = ?, lasts = ? WHERE id = ?", leased)
            return [_entry(row) for row in rows]

        return self._write(step)

    def bury(self, report: Entry, reason: str) -> None:
        statement = "UPDATE entries SET state = 'dead', batch = NULL, reason = ? WHERE id = ?"
        self._write(lambda db: db.execute(statement, (reason, report.id)))

    def known(self, key: UsageKey) -> Row | None:
        return self._read(lambda db: _row(db, _columns(key)))

    def outstanding(self, key: UsageKey) -> float:
        def step(db: sqlite3.Connection) -> int:
            columns, now = _columns(key), self._time()
            held, is_more, _ = _standing(db, columns, now)
            pending = _pending(db, columns, Period()) if is_more else ()
            return counted(Row(Period(), 0), held, pending)

        return units(self._write(step))

    def entries(self, states: Sequence[State], limit: int) -> Sequence[Entry]:
        marks = ", ".join("?" * len(states))
        statement = (
            f"SELECT * FROM (SELECT {_REPORT} FROM entries UNION ALL SELECT {_HELD_REPORT} FROM holds WHERE until > ?) "
            f"WHERE state IN ({marks}) ORDER BY first_at, id LIMIT ?"
        )
        given = (self._time(), *(state.value for state in states), limit)
        return self._read(lambda db: [_entry(row) for row in db.execute(statement, given)])

    def retry(self, ids: Sequence[str]) -> int:
        return self._write(lambda db: _change(db, f"UPDATE entries SET {_UNSENT}, reason = '', until = 0", ids))

    def discard(self, ids: Sequence[str]) -> int:
        now = self._time()

        def step(db: sqlite3.Connection) -> int:
            ticket = _next_ticket(db)
            dead = _change(db, "DELETE FROM entries", ids, "state = 'dead'")
            return dead + sum(_settle(db, entry, None, Period(), ticket, now, _DOUBTED) for entry in ids)

        return self._write(step)

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

    def close(self) -> None:
        with _lock:
            self._closed = True
            self._disconnect()

    def _take(self, db: sqlite3.Connection, hold: Hold, now: int, lasts: int) -> Hold | Refused:
        parts: dict[_Key, tuple[int, Row]] = {}
        refused = None
        for claim in hold.claims:
            key = _columns(claim.key)
            held, is_more, known = _standing(db, key, now)
            row, limit = believed(known, claim.news, now, self._grace)
            if row != known:
                _note(db, key, row)
            amount, before = quanta(claim.amount), parts.get(key, (0, row))[0]
            total = counted(row, held + before, _pending(db, key, row.period) if is_more else ())
            if refused is None and not is_free(total, amount, limit):
                refused = Refused(claim, units(total), units(max(limit or 0, 0)))
            parts[key] = amount + before, row
        if refused is not None:
            return refused
        rows = [
            (*key, hold.id, amount, period_text(row.period), now, now + lasts, lasts)
            for key, (amount, row) in parts.items()
        ]
        db.executemany("INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        return hold

    def _time(self) -> int:
        return microseconds(self._now())

    def _clock_ahead(self) -> int:
        """By how much the wall clock is ahead of the monotonic one, which runs on when the other is set anew."""
        return self._time() - _microseconds(self._monotonic())

    def _is_in_step(self) -> bool:
        """Whether this thread is in the middle of a step on this ledger. A mark that an interrupted step has left
        behind says nothing: the lock is free then."""
        return self._is_stepping and _lock._is_owned()  # type: ignore[attr-defined] # known to all locks, not to stubs

    def _read(self, step: Callable[[sqlite3.Connection], T]) -> T:
        """What one statement, or one that needs no transaction, says."""
        return self._with_connection(step)

    def _write(self, step: Callable[[sqlite3.Connection], T]) -> T:
        """What a transaction of its own answers; it is undone if it fails. It begins with the end of the holds that
        were dropped."""

        def transaction(db: sqlite3.Connection) -> T:
            try:
                db.execute("BEGIN IMMEDIATE")
                ahead = self._clock_ahead()
                if abs(ahead - self._ahead) >= CLOCK_JUMP:
                    _follow_clock(db, ahead, ahead - self._ahead)
                else:
                    ahead = self._ahead
                dropped = list(self._dropped)
                for hold in dropped:
                    _end(db, hold, self._time())
                answer = step(db)
                db.execute("COMMIT")
            finally:
                _undo(db)
            self._ahead = ahead
            for _ in dropped:
                self._dropped.popleft()
            return answer

        return self._with_connection(transaction)

    def _with_connection(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Gives the work the connection, one thread at a time.

        An exception from outside may end this anywhere. So the lock is taken by a statement that cannot be torn, and
        what is left of an interrupted step is undone by the next one.
        """
        where = self._path or "in memory"
        if self._is_in_step():
            raise LedgerUnavailable(f"the ledger {where} is in the middle of a step of this thread")
        asked_at = monotonic()
        try:
            with _lock:
                if monotonic() - asked_at > BUSY_SECONDS:
                    raise LedgerUnavailable(f"the ledger {where} is busy: its other threads took {BUSY_SECONDS:g} s")
                self._is_stepping = True
                try:
                    db = self._own_connection()
                    _undo(db)
                    return work(db)
                finally:
                    self._is_stepping = False
        except sqlite3.Error as error:
            raise LedgerUnavailable(f"the ledger {where} cannot be used: {error}") from error

    def _own_connection(self) -> sqlite3.Connection:
        if self._closed:
            raise ClientClosed("the guard or its ledger is closed; make a new one")
        if self._pid != os.getpid():  # forked by a server that calls no hooks of Python
            _forget_parent()
        now = monotonic()
        if self._connection is not None and now - self._looked_at > LOOK_SECONDS:
            self._looked_at = now
            if self._file != _file_of(self._path):
                where = self._path
                logger.critical("the ledger %r was removed or replaced while in use: what was in it is lost", where)
                self._disconnect()
        if self._connection is None:
            self._connection = _opened(self._given)
            self._file, self._looked_at = _file_of(self._path), now
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _before_fork(self) -> None:
        if self._path is not None:
            self._disconnect()

    def _forget_parent(self) -> None:
        self._pid = os.getpid()
        self._dropped.clear()
        self._disconnect()  # what a parent has in its memory is the parent's to report

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()


# SQLite's own notes about the locks of a process are copied by a fork, and wrong in the child. So nothing is open while
# a process forks, and one lock for all its ledgers makes the fork wait for every transaction. A child of a server that
# forks without Python's hooks first closes all that it inherited: beside it, even a new connection to the file would
# believe in locks that only the parent has, and lose its log when the parent closes.
_lock = threading.RLock()  # a finalizer may come by in the middle of a step on another ledger
_ledgers: weakref.WeakSet[SqliteLedger] = weakref.WeakSet()


def _before_fork() -> None:
    _lock.acquire()
    for ledger in _ledgers:
        ledger._before_fork()


def _forget_parent() -> None:
    for ledger in _ledgers:
        ledger._forget_parent()


def _after_fork_in_child() -> None:
    _forget_parent()
    _lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_lock.release, after_in_child=_after_fork_in_child)


def _opened(file: LedgerFile | None) -> sqlite3.Connection:
    """A connection to the ledger, which is made if it is not there.

    Raises:
        ConfigError: it is a folder, or the database of another program.
        LedgerUnavailable: this process is kept out of it.
        sqlite3.Error: it is damaged, read-only or busy.
    """
    if file is None:
        return _prepared(":memory:", None)
    place = f"file:{quote(os.path.abspath(file.path))}?mode=rw"  # which never makes a file: that is for make_file
    try:
        if is_default(file.path):
            make_folder(os.path.dirname(os.path.abspath(file.path)))
        make_file(file)
        db = _prepared(place, file.path)
    except (OSError, sqlite3.Error) as error:
        if os.path.isdir(file.path):
            raise ConfigError(f"LEDGER: {file.path} is a folder; name a file") from error
        problem = obstacle(file.path)
        if problem is None and isinstance(error, sqlite3.Error):
            raise
        raise LedgerUnavailable(f"the ledger {file.path} cannot be used: {problem or error}") from error
    share_companions(file.path)
    return db


def _prepared(name: str, path: str | None) -> sqlite3.Connection:
    with ExitStack() as on_failure:
        db = sqlite3.connect(name, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True)
        on_failure.enter_context(closing(db))
        db.execute("PRAGMA schema_version")  # fails unless it is a database
        prepare(db, path)
        on_failure.pop_all()
        return db


def _file_of(path: str | None) -> tuple[int, int] | None:
    """Which file the path leads to at the moment; None for no file."""
    try:
        found = None if path is None else os.stat(path)
    except OSError:
        return None
    return found and (found.st_dev, found.st_ino)


def _undo(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        db.execute("ROLLBACK")


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _follow_clock(db: sqlite3.Connection, ahead: int, jump: int) -> None:
    """Lets holds, leases and grace end when they would have, although the wall clock was set anew. Each process that
    ran meanwhile sees the jump; the first one writes."""
    (followed,) = db.execute("SELECT ahead FROM numbers").fetchone()
    if followed is not None and abs(ahead - followed) < CLOCK_JUMP:
        return
    db.execute("UPDATE numbers SET ahead = ?", (ahead,))
    db.execute("UPDATE holds SET until = until + ?", (jump,))
    db.execute("UPDATE entries SET until = until + ? WHERE until > 0", (jump,))
    db.execute("UPDATE usages SET settled_at = settled_at + ?, moved_at = moved_at + ?", (jump, jump))


def _columns(key: UsageKey) -> _Key:
    return key.customer_id, key.resource_id, key.feature_id


def _next_ticket(db: sqlite3.Connection) -> int:
    return int(db.execute(_NEXT_TICKET).fetchall()[0][0])


def _change(db: sqlite3.Connection, statement: str, ids: Sequence[str], where: str = _WAITS) -> int:
    return sum(db.execute(f"{statement} WHERE id = ? AND {where}", (entry,)).rowcount for entry in ids)


def _standing(db: sqlite3.Connection, key: _Key, now: int) -> tuple[int, bool, Row | None]:
    """The units of the key that are held, whether more are on their way, and its row."""
    held, ahead, is_more, *row = db.execute(_STANDING, (*key, now, *key, *key)).fetchone()
    if ahead is not None and ahead > now:
        db.execute(f"UPDATE holds SET until = ? + lasts WHERE {_KEY} AND until > ? + lasts", (now, *key, now))
    return held, bool(is_more), _row_of(row)


def _row(db: sqlite3.Connection, key: _Key) -> Row | None:
    found = db.execute(f"SELECT {_ROW} FROM usages WHERE {_KEY}", key).fetchone()
    return found and _row_of(found)


def _row_of(columns: Sequence[Any]) -> Row | None:
    period, *others = columns
    return None if period is None else Row(period_of(period), *others)


def _note(db: sqlite3.Connection, key: _Key, row: Row) -> None:
    period, *others = row
    columns = (*key, period_text(period), *others)
    db.execute("INSERT OR REPLACE INTO usages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", columns)


def _pending(db: sqlite3.Connection, key: _Key, period: Period) -> Iterable[Pending]:
    """What is on its way, added up where the accounting makes no difference."""
    start = "" if period.start is None else instant_text(period.start)
    for more, total, told, used_at in db.execute(_PENDING, (*key, start)):
        yield Pending(more, period_of(told), instant_of(used_at))
        if total is not None:
            yield Pending(total, period_of(told), instant_of(used_at), is_set=True)


def _usage(db: sqlite3.Connection, key: UsageKey) -> float:
    """The usage of a key with all that is on its way."""
    columns = _columns(key)
    row = _row(db, columns) or Row(Period(), 0)
    return units(counted(row, 0, _pending(db, columns, row.period)))


def _end(db: sqlite3.Connection, hold: Hold, now: int) -> tuple[dict[_Key, Period], bool]:
    """Ends the hold: the periods of the parts that were still there, and whether it is late."""
    keys = {_columns(claim.key) for claim in hold.claims}
    statement = f"DELETE FROM holds WHERE {_KEY} AND id = ? RETURNING period, until"
    ended = {key: row for key in keys for row in db.execute(statement, (*key, hold.id)).fetchall()}
    lasted = [key for key, (_, until) in ended.items() if until > now]
    return {key: period_of(period) for key, (period, _) in ended.items()}, len(lasted) < len(keys)


def _record(db: sqlite3.Connection, use: Use, period: Period | None, now: int) -> float:
    """Writes the use, added to what is unsent where that loses nothing; the key's usage with it. Without the period of
    a hold it belongs to the present one."""
    key = _columns(use.key)
    row = _row(db, key) or Row(Period(), 0)
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
    return units(counted(row, 0, _pending(db, key, row.period)))


def _is_added_up(db: sqlite3.Connection, key: _Key, new: Pending, present: Period) -> bool:
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


def _is_alone(db: sqlite3.Connection, key: _Key) -> bool:
    """Whether nothing of the key was sent that is not settled."""
    statement = f"SELECT EXISTS (SELECT 1 FROM entries WHERE {_KEY} AND state IN ('sending', 'uncertain'))"
    return not db.execute(statement, key).fetchone()[0]


def _bring_back(db: sqlite3.Connection, now: int) -> None:
    """Lets what was leased before the clock was set back end in its own time."""
    db.execute("UPDATE entries SET until = ? + lasts WHERE until > ? AND until > ? + lasts", (now, now, now))


def _new_batch(db: sqlite3.Connection, size: int, now: int) -> str | None:
    """Marks what is to be sent next: the oldest usages, one of each key, or else the oldest events."""
    rows = db.execute(_NEXT_USAGES, (now, size)).fetchall()
    if not rows:
        rows = db.execute(_NEXT_EVENTS, (now, size * BATCH_EVENTS_PER_USAGE)).fetchall()
    if not rows:
        return None
    batch, ticket = secrets.token_hex(16), _next_ticket(db)
    entries = [_entry(row) for row in rows]
    befores: dict[_Key, str] = {}
    for key in {_columns(entry.key) for entry in entries}:
        row = _row(db, key)
        if row is not None:
            row, before = taken(row, ticket, _is_alone(db, key))
            _note(db, key, row)
            befores[key] = before_text(before)
    db.executemany(
        "UPDATE entries SET state = 'sending', batch = ?, used_at = ?, ticket = ?, before = ? WHERE id = ?",
        [
            (
                *(batch, instant_text(sent_at(entry.period, entry.used_at, now * 1000)), ticket),
                *(befores.get(_columns(entry.key), ""), entry.id),
            )
            for entry in entries
        ],
    )
    return batch


def _settle(
    db: sqlite3.Connection, entry: str, told: int | None, period: Period, ticket: int, now: int, where: str = "true"
) -> bool:
    """Forgets an entry that was counted, or may have been, and notes what is known of it; False if it is gone."""
    fields = "customer, resource, feature, amount, period, used_at, is_set, ticket"
    gone = db.execute(f"DELETE FROM entries WHERE id = ? AND {where} RETURNING {fields}", (entry,)).fetchall()
    for customer, resource, feature, amount, held_in, used_at, is_set, first in gone:
        key = customer, resource, feature
        pending = Pending(amount, period_of(held_in), instant_of(used_at), bool(is_set), first)
        _note(db, key, learned(_row(db, key), pending, told, period, ticket, now))
    return bool(gone)


def _entry(row: Sequence[Any]) -> Entry:
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
