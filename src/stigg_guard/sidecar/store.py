"""The state of one sidecar: a SQLite database in a file or in memory, of which this process is the only user."""

from __future__ import annotations

import json
import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock

from stigg_guard.errors import ConfigError
from stigg_guard.sidecar.state import (
    ANSWERS_KEPT,
    CounterKey,
    CreditEvent,
    EventKey,
    RecordKey,
    State,
    StateUnavailable,
    StoredResponse,
    Transaction,
)

_APPLICATION_ID = 0x53544747
_VERSION = 3
_SCHEMA = f"""
CREATE TABLE usage (
    customer TEXT, resource TEXT, feature TEXT, period TEXT, amount REAL NOT NULL,
    PRIMARY KEY (customer, resource, feature, period)
) WITHOUT ROWID;
CREATE TABLE unique_values (
    customer TEXT, resource TEXT, feature TEXT, period TEXT, value TEXT,
    PRIMARY KEY (customer, resource, feature, period, value)
) WITHOUT ROWID;
CREATE TABLE events (
    stamp TEXT, customer TEXT, resource TEXT, name TEXT, idempotency_key TEXT,
    PRIMARY KEY (stamp, customer, resource, name, idempotency_key)
) WITHOUT ROWID;
CREATE TABLE answers (
    idempotency_key TEXT PRIMARY KEY, request BLOB NOT NULL, response BLOB NOT NULL, given_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX answers_given_at ON answers (given_at);
CREATE TABLE plans (
    customer TEXT, resource TEXT, plan TEXT,
    PRIMARY KEY (customer, resource)
) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION_ID};
"""
_SINCE_VERSION_1 = """
CREATE TABLE records (
    kind TEXT, customer TEXT, name TEXT, content TEXT NOT NULL,
    PRIMARY KEY (kind, customer, name)
) WITHOUT ROWID;
"""
_SINCE_VERSION_2 = f"""
CREATE TABLE credit_events (
    customer TEXT, resource TEXT, currency TEXT, type TEXT, credit_grant TEXT, feature TEXT, amount INTEGER, at TEXT
);
CREATE INDEX credit_events_of_customer ON credit_events (customer);
PRAGMA user_version = {_VERSION};
"""


class Store(State):
    """The state in a file, made if absent, or with ``None`` in memory.

    What a transaction committed survives the death of the process, but not always a power cut. A store that is dropped
    closes. Raises ``ConfigError`` for a file that cannot be used.
    """

    def __init__(self, path: str | Path | None) -> None:
        super().__init__()
        self._lock = Lock()
        self._path = path
        self._connection = _connect(path)
        weakref.finalize(self, self._connection.close).atexit = False  # a forked child leaves its parent's alone
        usage = self._connection.execute("SELECT customer, resource, feature, period, amount FROM usage")
        plans = self._connection.execute("SELECT customer, resource, plan FROM plans")
        records = self._connection.execute("SELECT kind, customer, name, content FROM records")
        self._learn(
            {CounterKey(*key): amount for *key, amount in usage},
            {(customer, resource): plan for customer, resource, plan in plans},
            {RecordKey(*key): json.loads(content) for *key, content in records},
        )

    def credit_events(self, customer: str) -> list[CreditEvent]:
        with self._lock:
            rows = self._connection.execute(
                "SELECT * FROM credit_events WHERE customer = ? ORDER BY rowid", (customer,)
            )
            return [CreditEvent(*row) for row in rows]

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        with self._lock:
            transaction = _Transaction(self, self._connection)
            yield transaction
            try:
                transaction.write()
            except sqlite3.OperationalError as error:
                raise StateUnavailable(f"the state file {self._path}: {error}") from error
            self._learn(transaction.usages, transaction.plans, transaction.kept)

    def close(self) -> None:
        with self._lock:
            self._connection.close()


class _Transaction(Transaction):
    def __init__(self, state: State, connection: sqlite3.Connection) -> None:
        super().__init__(state)
        self._connection = connection

    def write(self) -> None:
        """Write all that was gathered, at once."""
        many = self._connection.executemany
        usages = [(*key, amount) for key, amount in self.usages.items()]
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            many("INSERT OR REPLACE INTO usage VALUES (?, ?, ?, ?, ?)", usages)
            many("INSERT OR REPLACE INTO plans VALUES (?, ?, ?)", [(*key, plan) for key, plan in self.plans.items()])
            self._write_records()
            many("INSERT INTO credit_events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", self.credit_events)
            many("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?)", self.events)
            many(
                "INSERT OR IGNORE INTO unique_values VALUES (?, ?, ?, ?, ?)",
                [(*key, value) for key, value in self.values],
            )
            self._write_answers()
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _write_records(self) -> None:
        for key, content in self.kept.items():
            if content is None:
                self._connection.execute("DELETE FROM records WHERE (kind, customer, name) = (?, ?, ?)", key)
            else:
                row = (*key, json.dumps(content))
                self._connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", row)

    def _write_answers(self) -> None:
        """Older ones go."""
        for key, (answer, given_at) in self.answers.items():
            self._connection.execute("DELETE FROM answers WHERE given_at <= ?", (given_at - ANSWERS_KEPT,))
            self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (key, *answer, given_at))

    def _knows_event(self, key: EventKey) -> bool:
        return self._finds(
            "SELECT 1 FROM events WHERE (stamp, customer, resource, name, idempotency_key) = (?, ?, ?, ?, ?)", key
        )

    def _knows_value(self, key: CounterKey, value: str) -> bool:
        return self._finds(
            "SELECT 1 FROM unique_values WHERE (customer, resource, feature, period, value) = (?, ?, ?, ?, ?)",
            (*key, value),
        )

    def _stored_answer(self, idempotency_key: str) -> tuple[StoredResponse, float] | None:
        row = self._connection.execute(
            "SELECT request, response, given_at FROM answers WHERE idempotency_key = ?", (idempotency_key,)
        ).fetchone()
        return row and (StoredResponse(*row[:2]), row[2])

    def _finds(self, statement: str, row: tuple[str, ...]) -> bool:
        return self._connection.execute(statement, row).fetchone() is not None


def _connect(path: str | Path | None) -> sqlite3.Connection:
    with ExitStack() as on_failure:
        try:
            connection = sqlite3.connect(path or ":memory:", timeout=0, isolation_level=None, check_same_thread=False)
            on_failure.callback(connection.close)
            # Alone with its file, a process may trust the copy of the usage that it keeps in memory.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            _prepare(connection, path)
        except sqlite3.Error as error:
            remedy = (
                "end the other sidecar that uses it" if "locked" in str(error) else "name a file in a writable folder"
            )
            raise ConfigError(f"state file {path}: {error}; {remedy}") from None
        on_failure.pop_all()
    return connection


def _prepare(connection: sqlite3.Connection, path: str | Path | None) -> None:
    """Make the tables in a new database; refuse one that another program, or a newer version of this one, has made."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application_id != _APPLICATION_ID:
        raise ConfigError(f"state file {path}: is a database of another program; name another file")
    if version > _VERSION:
        raise ConfigError(
            f"state file {path}: was written by a newer stigg-guard (schema {version}, this one knows {_VERSION}); "
            "upgrade stigg-guard or name another file"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    added = (_SINCE_VERSION_1 if version < 2 else "") + (_SINCE_VERSION_2 if version < _VERSION else "")
    # The first write takes the lock, also in a file that has its tables: a second sidecar is refused at its start.
    connection.executescript(f"BEGIN IMMEDIATE; {'' if tables else _SCHEMA} {added} COMMIT;")
