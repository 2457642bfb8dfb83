"""The embedded ledger: one SQLite database, in memory or in a file that all processes of a host share."""

from __future__ import annotations

import json
import logging
import os
import secrets
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from stigg_guard.clock import Clock
from stigg_guard.errors import ClientClosed, ConfigError, LedgerUnavailable
from stigg_guard.ledger.entries import Acknowledged, Batch, Claim, Entry, Event, Hold, Refused, State, UsageKey, Use

logger = logging.getLogger("stigg_guard")

SCHEMA_VERSION = 2
APPLICATION_ID = 0x53474C47  # marks the file as a ledger, so that no other program's database is taken for one
BUSY_SECONDS = 1.0
EXPIRED_HOLDS_KEPT_SECONDS = 86_400.0
EVENTS_PER_USAGE = 10  # the contract takes 1000 events or 100 usages at once

_SCHEMA = """
CREATE TABLE entry (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    customer TEXT NOT NULL, resource TEXT NOT NULL, feature TEXT NOT NULL,
    state TEXT NOT NULL,
    amount REAL NOT NULL,
    is_set INTEGER NOT NULL DEFAULT 0,
    used_at REAL NOT NULL,
    until REAL DEFAULT 0,               -- end of the lease, NULL while a person must decide
    batch TEXT,
    reason TEXT NOT NULL DEFAULT '',
    event TEXT,                         -- JSON: name, idempotency key, dimensions
    attempts INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE hold (
    customer TEXT NOT NULL, resource TEXT NOT NULL, feature TEXT NOT NULL,
    id TEXT NOT NULL, amount REAL NOT NULL, taken_at REAL NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (customer, resource, feature, id)
) WITHOUT ROWID;
CREATE TABLE usage (
    customer TEXT NOT NULL, resource TEXT NOT NULL, feature TEXT NOT NULL,
    used REAL NOT NULL, period_start REAL NOT NULL, ticket INTEGER NOT NULL,
    settled_at REAL NOT NULL DEFAULT 0, -- when the sidecar last acknowledged a report of the key
    PRIMARY KEY (customer, resource, feature)
) WITHOUT ROWID;
CREATE TABLE ticket (id INTEGER PRIMARY KEY CHECK (id = 1), last INTEGER NOT NULL);
INSERT INTO ticket VALUES (1, 0);
CREATE TABLE late (id INTEGER PRIMARY KEY CHECK (id = 1), holds INTEGER NOT NULL);
INSERT INTO late VALUES (1, 0)
"""
_INDEXES = """
CREATE INDEX entry_by_key ON entry (customer, resource, feature, state);
CREATE INDEX entry_by_state ON entry (state, id);
CREATE INDEX entry_by_batch ON entry (batch) WHERE batch IS NOT NULL
"""
_FROM_VERSION_1 = """
DROP INDEX entry_by_key; DROP INDEX entry_by_state; DROP INDEX entry_by_batch;
ALTER TABLE entry RENAME TO entry_1; ALTER TABLE usage RENAME TO usage_1; ALTER TABLE ticket RENAME TO ticket_1;
{schema};
INSERT INTO entry (id, customer, resource, feature, state, amount, is_set, used_at, until, batch, reason)
    SELECT id, customer, resource, feature, state, amount, is_set, used_at, until, batch, coalesce(reason, '')
    FROM entry_1 WHERE state <> 'held';
INSERT INTO usage SELECT *, 0 FROM usage_1;
UPDATE ticket SET last = (SELECT last FROM ticket_1);
DROP TABLE entry_1; DROP TABLE usage_1; DROP TABLE ticket_1
"""

_NEXT_TICKET = "UPDATE ticket SET last = last + 1 RETURNING last"
_KEY = "customer = ? AND resource = ? AND feature = ?"
_SAME_KEY = "other.customer = one.customer AND other.resource = one.resource AND other.feature = one.feature"
_KEY_COLUMNS = "customer, resource, feature"
_WAITS = "state IN ('dead', 'uncertain')"
_ON_ITS_WAY = "state > 'dead'"  # sending, uncertain, unsent: one range of the index, where IN would search thrice
_HELD = f"SELECT coalesce(sum(amount), 0) FROM hold WHERE {_KEY} AND until > ?"
_END_HOLD = f"DELETE FROM hold WHERE {_KEY} AND id = ?"
_PENDING = f"""
SELECT coalesce(sum(CASE WHEN is_set THEN 0 ELSE max(amount, 0) END), 0),
    coalesce(max(CASE WHEN is_set THEN amount END), 0)
FROM entry WHERE {_KEY} AND {_ON_ITS_WAY} AND used_at >= ?
"""
_ADD_TO_NEWEST = f"""
UPDATE entry SET amount = amount + ?1, used_at = ?2
WHERE id = (SELECT max(id) FROM entry WHERE {_KEY} AND state = 'unsent')
AND NOT is_set AND event IS NULL AND used_at >= ?6 AND (amount > 0) = (?1 > 0)
"""
_HELD_REPORT = "id, 'held' AS state, customer, resource, feature, amount, 0, taken_at, NULL, '', 0"
_REPORT = "id, state, customer, resource, feature, amount, is_set, used_at, event, reason, attempts"
_DUE_BATCH = f"""
SELECT batch FROM entry AS one WHERE state = 'sending' AND until <= ?1 AND NOT EXISTS (
    SELECT 1 FROM entry AS other WHERE {_SAME_KEY} AND other.state = 'sending' AND other.until > ?1
        AND one.event IS NULL AND other.event IS NULL
) ORDER BY id LIMIT 1
"""
_NEXT_USAGES = f"""
SELECT id FROM entry AS one WHERE state = 'unsent' AND event IS NULL AND NOT EXISTS (
    SELECT 1 FROM entry AS other WHERE {_SAME_KEY} AND other.event IS NULL AND (
        other.state = 'sending' OR other.state = 'unsent' AND other.id < one.id
        OR other.state = 'uncertain' AND other.until IS NOT NULL)
) ORDER BY id LIMIT ?
"""
_NEXT_EVENTS = "SELECT id FROM entry WHERE state = 'unsent' AND event IS NOT NULL ORDER BY id LIMIT ?"


class SqliteLedger:
    """A ledger in a SQLite file (WAL), or in this process's memory when ``path`` is None.

    A file survives kill -9 with everything that was committed; ``synchronous=NORMAL`` may lose the last commits when
    the machine itself loses power. Safe between threads, processes and across forks. The first use of each process
    opens it.

    Raises:
        ConfigError: on first use, when the file cannot be opened, is no ledger, or is of a newer version.
    """

    def __init__(self, path: str | None, clock: Clock, *, settle_grace: float = 0.0) -> None:
        if path is not None and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise ConfigError(f"LEDGER: there is no folder for {path}; make it, or name another file")
        self._path = path
        self._now = clock.now
        self._grace = settle_grace
        self._closed = False
        self._pid = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._stepping: int | None = None  # the thread that makes a step
        self._dropped: deque[Hold] = deque()  # in the middle of a step: the next one that writes ends them first
        with _lock:
            _ledgers.add(self)
        if path is None:
            logger.info("the ledger is in memory: usage that was not reported yet is lost when this process ends")

    def ticket(self, customer_id: str) -> int:
        with self._connected() as db:
            return _next_ticket(db)

    def hold(self, claims: Sequence[Claim], ttl: float) -> Hold | Refused:
        now = self._time()
        hold = Hold(secrets.token_hex(8), tuple(claims))
        with self._connected(writing=True) as db:
            for claim in claims:
                refused = self._take(db, hold.id, claim, now, ttl)
                if refused is not None:
                    db.execute("ROLLBACK")
                    return refused
            return hold

    def renew(self, holds: Sequence[Hold], ttl: float) -> None:
        until = self._time() + ttl
        with self._connected(writing=True) as db:
            db.executemany(
                f"UPDATE hold SET until = ? WHERE {_KEY} AND id = ?",
                [(until, *_columns(claim.key), hold.id) for hold in holds for claim in hold.claims],
            )

    def commit(self, hold: Hold, uses: Sequence[Use]) -> Sequence[float]:
        now = self._time()
        with self._connected(writing=True) as db:
            if not _end(db, hold, now):
                db.execute("UPDATE late SET holds = holds + 1")
            return [_record(db, use, now) for use in uses]

    def release(self, hold: Hold) -> None:
        if self._stepping == threading.get_ident():  # a finalizer came by in the middle of a step
            self._dropped.append(hold)
            return
        with self._connected(writing=True) as db:
            _end(db, hold, self._time())

    def record(self, use: Use) -> float:
        with self._connected(writing=True) as db:
            return _record(db, use, self._time())

    def take_batch(self, size: int, lease: float) -> Batch | None:
        now = self._time()
        with self._connected(writing=True) as db:
            db.execute("DELETE FROM hold WHERE until < ?", (now - EXPIRED_HOLDS_KEPT_SECONDS,))
            row = db.execute(_DUE_BATCH, (now,)).fetchone()
            batch = row[0] if row else _new_batch(db, size)
            if batch is None:
                return None
            db.execute("UPDATE entry SET until = ?, attempts = attempts + 1 WHERE batch = ?", (now + lease, batch))
            rows = db.execute(f"SELECT {_REPORT} FROM entry WHERE batch = ? ORDER BY id", (batch,))
            return Batch(batch, [_entry(row) for row in rows])

    def acknowledge(self, answers: Sequence[Acknowledged]) -> None:
        now = self._time()
        with self._connected(writing=True) as db:
            ticket = _next_ticket(db)
            for answer in answers:
                if _forget(db, answer.report):
                    _learn(db, answer, ticket, now)

    def put_back(self, reports: Sequence[Entry]) -> None:
        with self._connected(writing=True) as db:
            db.executemany(
                "UPDATE entry SET state = 'unsent', batch = NULL, reason = '', attempts = 0 "
                "WHERE id = ? AND state IN ('sending', 'uncertain')",
                [(report.id,) for report in reports],
            )

    def postpone(self, batch: Batch, seconds: float) -> None:
        with self._connected(writing=True) as db:
            db.execute("UPDATE entry SET until = ? WHERE batch = ?", (self._time() + seconds, batch.id))

    def split(self, batch: Batch) -> None:
        with self._connected(writing=True) as db:
            db.execute(
                "UPDATE entry SET batch = batch || '/' || id, until = 0, attempts = 0 WHERE batch = ?", (batch.id,)
            )

    def doubt(self, reports: Sequence[Entry], seconds: float | None, reason: str) -> None:
        until = None if seconds is None else self._time() + seconds
        with self._connected(writing=True) as db:
            db.executemany(
                "UPDATE entry SET state = 'uncertain', batch = NULL, until = ?, reason = ? "
                "WHERE id = ? AND state IN ('sending', 'uncertain')",
                [(until, reason, report.id) for report in reports],
            )

    def take_uncertain(self, size: int, lease: float) -> Sequence[Entry]:
        now = self._time()
        with self._connected(writing=True) as db:
            rows = db.execute(
                f"SELECT {_REPORT} FROM entry WHERE state = 'uncertain' AND until <= ? ORDER BY id LIMIT ?", (now, size)
            ).fetchall()
            db.executemany("UPDATE entry SET until = ? WHERE id = ?", [(now + lease, row[0]) for row in rows])
            return [_entry(row) for row in rows]

    def bury(self, report: Entry, reason: str) -> None:
        with self._connected(writing=True) as db:
            db.execute("UPDATE entry SET state = 'dead', batch = NULL, reason = ? WHERE id = ?", (reason, report.id))

    def known_usage(self, key: UsageKey) -> float | None:
        with self._connected() as db:
            row = db.execute(f"SELECT used FROM usage WHERE {_KEY}", _columns(key)).fetchone()
            return row and float(row[0])

    def entries(self, states: Sequence[State], limit: int) -> Sequence[Entry]:
        marks = ", ".join("?" * len(states))
        with self._connected() as db:
            rows = db.execute(
                f"SELECT * FROM (SELECT {_REPORT} FROM entry UNION ALL SELECT {_HELD_REPORT} FROM hold "
                f"WHERE until > ?) WHERE state IN ({marks}) ORDER BY used_at, id LIMIT ?",
                (self._time(), *(state.value for state in states), limit),
            ).fetchall()
        return [_entry(row) for row in rows]

    def retry(self, ids: Sequence[str]) -> int:
        with self._connected(writing=True) as db:
            return _change(db, "UPDATE entry SET state = 'unsent', batch = NULL, reason = '', attempts = 0", ids)

    def discard(self, ids: Sequence[str]) -> int:
        """The sidecar may have counted what is discarded: no snapshot from before now may lower the usage."""
        now = self._time()
        with self._connected(writing=True) as db:
            ticket = _next_ticket(db)
            for entry in ids:
                for key in db.execute(f"SELECT {_KEY_COLUMNS} FROM entry WHERE id = ? AND {_WAITS}", (entry,)):
                    db.execute(f"UPDATE usage SET ticket = ?, settled_at = ? WHERE {_KEY}", (ticket, now, *key))
            return _change(db, "DELETE FROM entry", ids)

    def counts(self) -> Mapping[str, int]:
        with self._connected() as db:
            rows = db.execute("SELECT state, count(*) FROM entry GROUP BY state").fetchall()
            (held,) = db.execute("SELECT count(*) FROM hold WHERE until > ?", (self._time(),)).fetchone()
            (late,) = db.execute("SELECT holds FROM late").fetchone()
        return {**{state.value: 0 for state in State}, **dict(rows), "held": held, "late": late}

    def close(self) -> None:
        with _lock:
            self._closed = True
            self._disconnect()

    def _take(self, db: sqlite3.Connection, hold: str, claim: Claim, now: float, ttl: float) -> Refused | None:
        key = _columns(claim.key)
        used = self._believed(db, claim)
        (held,) = db.execute(_HELD, (*key, now)).fetchone()
        pending, total = db.execute(_PENDING, (*key, claim.period_start)).fetchone()
        counted = max(used, total) + held + pending
        if claim.limit is not None and counted + claim.amount > claim.limit:
            return Refused(claim, counted)
        db.execute(
            "INSERT INTO hold VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET amount = amount + excluded.amount",
            (*key, hold, claim.amount, now, now + ttl),
        )
        return None

    def _believed(self, db: sqlite3.Connection, claim: Claim) -> float:
        """The usage to count from: the ledger's own, or the snapshot's if that is newer, which is noted then."""
        key = _columns(claim.key)
        row = db.execute(f"SELECT used, period_start, ticket, settled_at FROM usage WHERE {_KEY}", key).fetchone()
        if row is None:
            db.execute(
                "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, 0)",
                (*key, claim.known_usage, claim.period_start, claim.ticket),
            )
            return claim.known_usage
        used, period_start, ticket, settled_at = row
        if claim.period_start == period_start:
            if claim.ticket <= ticket or _is_under_way(db, key):
                return float(used)
            if claim.known_usage < used and claim.fetched_at < settled_at + self._grace:
                return float(used)
        elif claim.period_start < period_start:
            return float(used)
        db.execute(
            f"UPDATE usage SET used = ?, period_start = ?, ticket = ? WHERE {_KEY}",
            (claim.known_usage, claim.period_start, max(ticket, claim.ticket), *key),
        )
        return claim.known_usage

    def _time(self) -> float:
        return self._now().timestamp()

    @contextmanager
    def _connected(self, *, writing: bool = False) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; ``writing`` in a transaction."""
        if self._stepping == threading.get_ident():
            raise LedgerUnavailable(f"the ledger {self._path or 'in memory'} is in the middle of a step of this thread")
        if not _lock.acquire(timeout=BUSY_SECONDS):
            raise LedgerUnavailable(f"the ledger {self._path or 'in memory'} is busy")
        try:
            self._stepping = threading.get_ident()
            db = self._own_connection()
            try:
                dropped = self._begin(db) if writing else 0
                yield db
                if db.in_transaction:
                    db.execute("COMMIT")
                    for _ in range(dropped):
                        self._dropped.popleft()
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise LedgerUnavailable(f"the ledger {self._path or 'in memory'} cannot be used: {error}") from error
        finally:
            self._stepping = None
            _lock.release()

    def _begin(self, db: sqlite3.Connection) -> int:
        """Begins a transaction with the end of the holds that were dropped; how many those were."""
        db.execute("BEGIN IMMEDIATE")
        dropped = list(self._dropped)
        for hold in dropped:
            _end(db, hold, self._time())
        return len(dropped)

    def _own_connection(self) -> sqlite3.Connection:
        if self._closed:
            raise ClientClosed("the guard or its ledger is closed; make a new one")
        if self._pid != os.getpid():  # forked by a server that calls no hooks of Python
            _forget_parent()
        if self._connection is not None and self._file != _file_of(self._path):
            logger.critical("the ledger %s was removed or replaced while in use: what was in it is lost", self._path)
            self._disconnect()
        if self._connection is None:
            self._connection = _opened(self._path)
            self._file = _file_of(self._path)
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


def _opened(path: str | None) -> sqlite3.Connection:
    with ExitStack() as on_failure:
        try:
            db = sqlite3.connect(path or ":memory:", BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            on_failure.enter_context(closing(db))
            db.execute("PRAGMA schema_version")  # fails unless it is a database
        except sqlite3.Error as error:
            if os.path.isdir(path or ""):
                raise ConfigError(f"LEDGER: {path} is a folder; name a file") from error
            raise  # damaged, read-only, busy or out of descriptors: nothing is wrong with the setting
        _prepare(db, path)
        on_failure.pop_all()
        return db


def _file_of(path: str | None) -> tuple[int, int] | None:
    """Which file the path leads to at the moment; None for no file."""
    try:
        found = None if path is None else os.stat(path)
    except OSError:
        return None
    return found and (found.st_dev, found.st_ino)


def _prepare(db: sqlite3.Connection, path: str | None) -> None:
    """Makes an empty database a ledger, brings an older one up to date, and refuses every other one."""
    db.execute("BEGIN IMMEDIATE")
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if tables and application != APPLICATION_ID:
        raise ConfigError(f"LEDGER: {path} is the database of another program; name a file of the ledger's own")
    if version > SCHEMA_VERSION:
        raise ConfigError(f"LEDGER: {path} was written by a newer version of stigg-guard; update this one")
    if version < SCHEMA_VERSION:
        tables_made = _FROM_VERSION_1.format(schema=_SCHEMA) if tables else _SCHEMA
        for statement in f"{tables_made}; {_INDEXES}".split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    db.execute("COMMIT")
    if path is not None:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")


def _columns(key: UsageKey) -> tuple[str, str, str]:
    return key.customer_id, key.resource_id, key.feature_id


def _next_ticket(db: sqlite3.Connection) -> int:
    return int(db.execute(_NEXT_TICKET).fetchall()[0][0])


def _change(db: sqlite3.Connection, statement: str, ids: Sequence[str]) -> int:
    return sum(db.execute(f"{statement} WHERE id = ? AND {_WAITS}", (entry,)).rowcount for entry in ids)


def _forget(db: sqlite3.Connection, report: Entry) -> bool:
    """Whether the report was still there. What was added since it was sent, by somebody who put it back, stays."""
    sent = (report.id, report.amount)
    if db.execute("DELETE FROM entry WHERE id = ? AND amount = ?", sent).rowcount:
        return True
    return bool(db.execute("UPDATE entry SET amount = amount - ?2 WHERE id = ?1", sent).rowcount)


def _end(db: sqlite3.Connection, hold: Hold, now: float) -> bool:
    """Ends the hold; whether all of it has lasted until now."""
    parts = [(*_columns(key), hold.id) for key in {claim.key for claim in hold.claims}]
    lasted = sum(db.execute(f"{_END_HOLD} AND until > ?", (*part, now)).rowcount for part in parts)
    if lasted < len(parts):
        db.executemany(_END_HOLD, parts)
    return lasted == len(parts)


def _is_under_way(db: sqlite3.Connection, key: tuple[str, str, str]) -> bool:
    found = db.execute(f"SELECT 1 FROM entry WHERE {_KEY} AND state IN ('sending', 'uncertain') LIMIT 1", key)
    return found.fetchone() is not None


def _record(db: sqlite3.Connection, use: Use, now: float) -> float:
    """Writes the use, added to what is unsent where that loses nothing; the key's usage with it."""
    key = _columns(use.key)
    row = db.execute(f"SELECT used, period_start FROM usage WHERE {_KEY}", key).fetchone()
    used, period_start = row or (0.0, use.period_start)
    if period_start < use.period_start:
        used, period_start = 0.0, use.period_start
        db.execute(f"UPDATE usage SET used = 0, period_start = ? WHERE {_KEY}", (period_start, *key))
    plain = not use.is_set and use.event is None
    added = plain and use.amount and db.execute(_ADD_TO_NEWEST, (use.amount, now, *key, use.period_start)).rowcount
    if not added and (use.amount or use.is_set):
        db.execute(
            "INSERT INTO entry (customer, resource, feature, state, amount, is_set, used_at, event) "
            "VALUES (?, ?, ?, 'unsent', ?, ?, ?, ?)",
            (*key, use.amount, use.is_set, now, _event_text(use.event)),
        )
    pending, total = db.execute(_PENDING, (*key, period_start)).fetchone()
    return float(max(used, total) + pending)


def _new_batch(db: sqlite3.Connection, size: int) -> str | None:
    """Marks what is to be sent next: the oldest usages, one of each key, or else the oldest events."""
    batch = secrets.token_hex(16)
    mark = "UPDATE entry SET state = 'sending', batch = ? WHERE id IN ({}) RETURNING customer, resource, feature"
    keys = db.execute(mark.format(_NEXT_USAGES), (batch, size)).fetchall()
    if not keys:
        keys = db.execute(mark.format(_NEXT_EVENTS), (batch, size * EVENTS_PER_USAGE)).fetchall()
    if not keys:
        return None
    ticket = _next_ticket(db)
    db.executemany(f"UPDATE usage SET ticket = ? WHERE {_KEY}", [(ticket, *key) for key in set(keys)])
    return batch


def _learn(db: sqlite3.Connection, answer: Acknowledged, ticket: int, now: float) -> None:
    report = answer.report
    key = _columns(report.key)
    row = db.execute(f"SELECT used, period_start FROM usage WHERE {_KEY}", key).fetchone()
    if row is None and answer.current_usage is None and not report.is_set:
        return  # nothing is known of the usage before it; the next snapshot will tell
    used, period_start = row or (0.0, answer.period_start)
    if answer.current_usage is not None:
        if not 0 < answer.period_start < period_start:
            used = answer.current_usage
    elif report.used_at >= period_start:
        used = report.amount if report.is_set else used + report.amount
    db.execute(
        "INSERT OR REPLACE INTO usage VALUES (?, ?, ?, ?, ?, ?, ?)",
        (*key, used, max(period_start, answer.period_start), ticket, now),
    )


def _entry(row: Sequence[Any]) -> Entry:
    number, state, customer, resource, feature, amount, is_set, used_at, event, reason, attempts = row
    key = UsageKey(customer, resource, feature)
    what = Event(**json.loads(event)) if event else None
    return Entry(str(number), State(state), key, amount, bool(is_set), used_at, what, reason, attempts)


def _event_text(event: Event | None) -> str | None:
    if event is None:
        return None
    fields = {"name": event.name, "idempotency_key": event.idempotency_key, "dimensions": dict(event.dimensions)}
    return json.dumps(fields)
