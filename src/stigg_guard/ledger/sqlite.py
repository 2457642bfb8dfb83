"""The embedded ledger: one SQLite database, in memory or in a file that all processes of a host share."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager

from stigg_guard.clock import Clock
from stigg_guard.errors import ClientClosed, ConfigError
from stigg_guard.ledger import Acknowledged, Batch, Claim, Hold, Refused, Report, UsageKey

logger = logging.getLogger("stigg_guard")

SCHEMA_VERSION = 1
APPLICATION_ID = 0x53474C47  # marks the file as a ledger, so that no other program's database is taken for one
BUSY_SECONDS = 5.0
EXPIRED_HOLDS_KEPT_SECONDS = 86_400.0

_SCHEMA = f"""
CREATE TABLE entry (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    customer TEXT NOT NULL, resource TEXT NOT NULL, feature TEXT NOT NULL,
    state TEXT NOT NULL,               -- held | unsent | sending | dead
    amount REAL NOT NULL,
    is_set INTEGER NOT NULL DEFAULT 0, -- the amount is the new total, not a delta
    used_at REAL NOT NULL,
    until REAL NOT NULL DEFAULT 0,     -- end of the hold, or of the lease while sending
    batch TEXT, reason TEXT
) STRICT;
CREATE INDEX entry_by_key ON entry (customer, resource, feature, state);
CREATE INDEX entry_by_state ON entry (state, id);
CREATE INDEX entry_by_batch ON entry (batch) WHERE batch IS NOT NULL;
CREATE TABLE usage (
    customer TEXT NOT NULL, resource TEXT NOT NULL, feature TEXT NOT NULL,
    used REAL NOT NULL, period_start REAL NOT NULL, ticket INTEGER NOT NULL,
    PRIMARY KEY (customer, resource, feature)
) STRICT, WITHOUT ROWID;
CREATE TABLE ticket (id INTEGER PRIMARY KEY CHECK (id = 1), last INTEGER NOT NULL) STRICT;
INSERT INTO ticket VALUES (1, 0);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION}
"""

_NEXT_TICKET = "UPDATE ticket SET last = last + 1 RETURNING last"
_KEY = "customer = ? AND resource = ? AND feature = ?"
_SAME_KEY = "other.customer = one.customer AND other.resource = one.resource AND other.feature = one.feature"
_PENDING = f"""
SELECT coalesce(sum(CASE
    WHEN is_set THEN 0
    WHEN state = 'held' THEN CASE WHEN until > ?1 THEN amount ELSE 0 END
    WHEN used_at >= ?2 THEN max(amount, 0) ELSE 0 END), 0),
    coalesce(max(CASE WHEN is_set AND used_at >= ?2 THEN amount END), 0)
FROM entry WHERE {_KEY} AND state IN ('held', 'unsent', 'sending')
"""

_DUE_BATCH = f"""
SELECT batch FROM entry AS one WHERE state = 'sending' AND until <= ?1 AND NOT EXISTS (
    SELECT 1 FROM entry AS other WHERE {_SAME_KEY} AND other.state = 'sending' AND other.until > ?1
) ORDER BY id LIMIT 1
"""


class SqliteLedger:
    """A ledger in a SQLite file (WAL), or in this process's memory when ``path`` is None.

    A file survives kill -9 with everything that was committed; ``synchronous=NORMAL`` may lose the last commits when
    the machine itself loses power. Safe between threads, processes and across forks.

    The first use of each process opens it.

    Raises:
        ConfigError: on first use, when the file cannot be opened, is no ledger, or is of a newer version.
    """

    def __init__(self, path: str | None, clock: Clock) -> None:
        self._path = path
        self._now = clock.now
        self._closed = False
        self._connection: sqlite3.Connection | None = None
        with _lock:
            _ledgers.add(self)
        if path is None:
            logger.info("the ledger is in memory: usage that was not reported yet is lost when this process ends")

    def ticket(self, customer_id: str) -> int:
        with self._transaction() as db:
            return _next_ticket(db)

    def hold(self, claim: Claim, ttl: float) -> Hold | Refused:
        now = self._now().timestamp()
        key = _columns(claim.key)
        with self._transaction() as db:
            used, ticket = _believed(db, claim)
            pending, total = db.execute(_PENDING, (now, claim.period_start, *key)).fetchone()
            counted = max(used, total) + pending
            if claim.limit is not None and counted + claim.amount > claim.limit:
                return Refused(counted)
            _write_usage(db, claim.key, used, claim.period_start, ticket)
            row = db.execute(
                "INSERT INTO entry (customer, resource, feature, state, amount, used_at, until) "
                "VALUES (?, ?, ?, 'held', ?, ?, ?)",
                (*key, claim.amount, now, now + ttl),
            )
            assert row.lastrowid is not None
            return Hold(row.lastrowid, claim)

    def commit(self, hold: Hold, amount: float) -> float:
        now = self._now().timestamp()
        key = _columns(hold.claim.key)
        with self._transaction() as db:
            db.execute("DELETE FROM entry WHERE id = ? AND state = 'held'", (hold.id,))
            if amount:
                _insert_unsent(db, key, amount, is_set=False, now=now)
            used = db.execute(f"SELECT used FROM usage WHERE {_KEY}", key).fetchone()
            unsent = db.execute(
                "SELECT coalesce(sum(max(amount, 0)), 0) FROM entry "
                f"WHERE {_KEY} AND state IN ('unsent', 'sending') AND NOT is_set AND used_at >= ?",
                (*key, hold.claim.period_start),
            ).fetchone()
            return float((used[0] if used else 0.0) + unsent[0])

    def release(self, hold: Hold) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM entry WHERE id = ? AND state = 'held'", (hold.id,))

    def record(self, key: UsageKey, amount: float, *, is_set: bool = False) -> None:
        with self._transaction() as db:
            _insert_unsent(db, _columns(key), amount, is_set=is_set, now=self._now().timestamp())

    def take_batch(self, size: int, lease: float) -> Batch | None:
        now = self._now().timestamp()
        with self._transaction() as db:
            db.execute("DELETE FROM entry WHERE state = 'held' AND until < ?", (now - EXPIRED_HOLDS_KEPT_SECONDS,))
            row = db.execute(_DUE_BATCH, (now,)).fetchone()
            batch = row[0] if row else _mark_new_batch(db, size)
            if batch is None:
                return None
            db.execute("UPDATE entry SET until = ? WHERE batch = ?", (now + lease, batch))
            return Batch(batch, _reports_of(db, batch))

    def acknowledge(self, answers: Sequence[Acknowledged]) -> None:
        with self._transaction() as db:
            for answer in answers:
                if db.execute("DELETE FROM entry WHERE id = ?", (answer.report.id,)).rowcount:
                    _learn(db, answer)

    def put_back(self, batch: Batch) -> None:
        with self._transaction() as db:
            db.execute("UPDATE entry SET state = 'unsent', batch = NULL WHERE batch = ?", (batch.id,))

    def postpone(self, batch: Batch, seconds: float) -> None:
        with self._transaction() as db:
            until = self._now().timestamp() + seconds
            db.execute("UPDATE entry SET until = ? WHERE batch = ?", (until, batch.id))

    def split(self, batch: Batch) -> None:
        with self._transaction() as db:
            db.execute("UPDATE entry SET batch = batch || '/' || id, until = 0 WHERE batch = ?", (batch.id,))

    def bury(self, report: Report, reason: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE entry SET state = 'dead', batch = NULL, reason = ? WHERE id = ?", (reason, report.id))

    def counts(self) -> Mapping[str, int]:
        now = self._now().timestamp()
        with self._transaction() as db:
            rows = db.execute(
                "SELECT state, count(*) FROM entry WHERE state <> 'held' OR until > ? GROUP BY state", (now,)
            ).fetchall()
        return {"held": 0, "unsent": 0, "sending": 0, "dead": 0} | dict(rows)

    def close(self) -> None:
        with _lock:
            self._closed = True
            self._disconnect()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _lock:
            if self._closed:
                raise ClientClosed("the guard or its ledger is closed; make a new one")
            if self._connection is None:
                self._connection = _opened(self._path)
            db = self._connection
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _before_fork(self) -> None:
        if self._path is not None:
            self._disconnect()

    def _after_fork_in_child(self) -> None:
        self._disconnect()  # what a parent has in its memory is the parent's to report


# SQLite's own notes about the locks of a process are copied by a fork, and wrong in the child. So nothing is open while
# a process forks, and one lock for all its ledgers makes the fork wait for every transaction.
_lock = threading.Lock()
_ledgers: weakref.WeakSet[SqliteLedger] = weakref.WeakSet()


def _before_fork() -> None:
    _lock.acquire()
    for ledger in _ledgers:
        ledger._before_fork()


def _after_fork_in_child() -> None:
    for ledger in _ledgers:
        ledger._after_fork_in_child()
    _lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_lock.release, after_in_child=_after_fork_in_child)


def _opened(path: str | None) -> sqlite3.Connection:
    try:
        with ExitStack() as on_failure:
            db = sqlite3.connect(path or ":memory:", BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            on_failure.enter_context(closing(db))
            _prepare(db, path)
            on_failure.pop_all()
            return db
    except sqlite3.Error as error:
        raise ConfigError(f"LEDGER: the file {path} cannot be used as a ledger: {error}") from error


def _prepare(db: sqlite3.Connection, path: str | None) -> None:
    """Makes an empty database a ledger, and refuses every other one that is not."""
    db.execute("BEGIN IMMEDIATE")
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if tables and application != APPLICATION_ID:
        raise ConfigError(f"LEDGER: {path} is the database of another program; name a file of the ledger's own")
    if version > SCHEMA_VERSION:
        raise ConfigError(f"LEDGER: {path} was written by a newer version of stigg-guard; update this one")
    if not tables:
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
    db.execute("COMMIT")
    if path is not None:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")


def _columns(key: UsageKey) -> tuple[str, str, str]:
    return key.customer_id, key.resource_id, key.feature_id


def _next_ticket(db: sqlite3.Connection) -> int:
    return int(db.execute(_NEXT_TICKET).fetchone()[0])


def _insert_unsent(
    db: sqlite3.Connection, key: tuple[str, str, str], amount: float, *, is_set: bool, now: float
) -> None:
    db.execute(
        "INSERT INTO entry (customer, resource, feature, state, amount, is_set, used_at) "
        "VALUES (?, ?, ?, 'unsent', ?, ?, ?)",
        (*key, amount, is_set, now),
    )


def _believed(db: sqlite3.Connection, claim: Claim) -> tuple[float, int]:
    """The usage to count from, and the ticket it is as new as."""
    key = _columns(claim.key)
    row = db.execute(f"SELECT used, period_start, ticket FROM usage WHERE {_KEY}", key).fetchone()
    if row is None:
        return claim.known_usage, claim.ticket
    used, period_start, ticket = row
    if claim.period_start != period_start:
        newer = claim.period_start > period_start
        return (claim.known_usage, max(ticket, claim.ticket)) if newer else (used, ticket)
    if claim.ticket <= ticket:
        return used, ticket
    sending = db.execute(f"SELECT 1 FROM entry WHERE {_KEY} AND state = 'sending' LIMIT 1", key)
    return (used, ticket) if sending.fetchone() else (claim.known_usage, claim.ticket)


def _write_usage(db: sqlite3.Connection, key: UsageKey, used: float, period_start: float, ticket: int) -> None:
    db.execute(
        "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET used = excluded.used, "
        "period_start = max(period_start, excluded.period_start), ticket = excluded.ticket",
        (*_columns(key), used, period_start, ticket),
    )


def _mark_new_batch(db: sqlite3.Connection, size: int) -> str | None:
    """Marks the oldest unsent entries, leaving out keys that have a batch under way: their reports stay in order."""
    batch = uuid.uuid4().hex
    keys = db.execute(
        "UPDATE entry SET state = 'sending', batch = ? WHERE id IN (SELECT id FROM entry AS one WHERE state = 'unsent' "
        f"AND NOT EXISTS (SELECT 1 FROM entry AS other WHERE {_SAME_KEY} AND other.state = 'sending') "
        "ORDER BY id LIMIT ?) RETURNING customer, resource, feature",
        (batch, size),
    ).fetchall()
    if not keys:
        return None
    ticket = _next_ticket(db)
    db.executemany(f"UPDATE usage SET ticket = ? WHERE {_KEY}", [(ticket, *key) for key in set(keys)])
    return batch


def _reports_of(db: sqlite3.Connection, batch: str) -> list[Report]:
    rows = db.execute(
        "SELECT id, customer, resource, feature, amount, is_set, used_at FROM entry WHERE batch = ? ORDER BY id",
        (batch,),
    )
    return [
        Report(number, UsageKey(c, r, f), amount, bool(is_set), used_at)
        for number, c, r, f, amount, is_set, used_at in rows
    ]


def _learn(db: sqlite3.Connection, answer: Acknowledged) -> None:
    report = answer.report
    key = _columns(report.key)
    row = db.execute(f"SELECT used, period_start FROM usage WHERE {_KEY}", key).fetchone()
    used, period_start = row or (0.0, answer.period_start)
    if answer.current_usage is not None:
        if 0 < answer.period_start < period_start:
            return
        used = answer.current_usage
    elif report.used_at >= period_start:
        used = report.amount if report.is_set else used + report.amount
    _write_usage(db, report.key, used, answer.period_start, _next_ticket(db))
