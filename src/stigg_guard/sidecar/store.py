"""Stores the local sidecar's usage: one SQLite database, of which this process is the only user."""

from __future__ import annotations

import json
import sqlite3
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from stigg_guard.errors import ConfigError

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

ANSWERS_KEPT = 24 * 60 * 60.0
"""How long the answer to an idempotency key is repeated, in seconds."""


class CounterKey(NamedTuple):
    """The key of a usage counter; ``resource`` and ``period`` are empty where there is none."""

    customer: str
    resource: str
    feature: str
    period: str


DECIMALS = 9
"""Of sums of usage: those of binary fractions are not what a person reckons."""


class EventKey(NamedTuple):
    """What makes a raw event the same as another; ``resource`` is empty where there is none."""

    stamp: str
    customer: str
    resource: str
    name: str
    idempotency_key: str


class RecordKey(NamedTuple):
    """What a record is kept under: a kind, a customer, and a name where a customer has several of the kind."""

    kind: str
    customer: str
    name: str


class CreditEvent(NamedTuple):
    """What happened to credits: ``amount`` is in quanta, ``at`` an instant in ISO 8601; ``feature`` is empty unless its
    usage was paid."""

    customer: str
    resource: str
    currency: str
    type: str
    credit_grant: str
    feature: str
    amount: int
    at: str


class StoredResponse(NamedTuple):
    """The response kept under an idempotency key, and a digest of the request that it answered."""

    request: bytes
    response: bytes


class Store:
    """Usage, deduplication, idempotent answers, and the plans and records of customers that were changed at run time,
    shared by all threads.

    ``path`` is a file, made if absent, or ``None`` for memory. What a transaction committed survives the death of the
    process, but not always a power cut. A store that is dropped closes. Raises ``ConfigError`` for a file that cannot
    be used.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._lock = Lock()
        self._connection = _connect(path)
        weakref.finalize(self, self._connection.close).atexit = False  # a forked child leaves its parent's alone
        self._usage: dict[CounterKey, float] = {
            CounterKey(*key): amount
            for *key, amount in self._connection.execute(
                "SELECT customer, resource, feature, period, amount FROM usage"
            )
        }
        self._records: dict[RecordKey, Mapping[str, Any]] = {
            RecordKey(*key): json.loads(content)
            for *key, content in self._connection.execute("SELECT kind, customer, name, content FROM records")
        }
        self._kept = {key[:2] for key in self._records}
        self._plans: dict[tuple[str, str], str | None] = {
            (customer, resource): plan
            for customer, resource, plan in self._connection.execute("SELECT customer, resource, plan FROM plans")
        }

    def usage(self, key: CounterKey) -> float:
        """The committed usage; 0 if nothing was ever counted."""
        return self._usage.get(key, 0.0)

    def plan(self, customer: str, resource: str, default: str | None) -> str | None:
        """The plan assigned at run time, or the default if there was no assignment; ``None`` is no plan."""
        return self._plans.get((customer, resource), default)

    def has_plan(self, customer: str, resource: str) -> bool:
        """Whether a plan was ever assigned at run time."""
        return (customer, resource) in self._plans

    def plans(self) -> dict[tuple[str, str], str | None]:
        """All assignments by customer and resource."""
        return dict(self._plans)

    def assign_plan(self, customer: str, resource: str, plan: str | None) -> None:
        """Remember a plan; ``None`` is the end of the subscription."""
        with self._lock:
            self._connection.execute("INSERT OR REPLACE INTO plans VALUES (?, ?, ?)", (customer, resource, plan))
            self._plans[customer, resource] = plan

    def record(self, key: RecordKey) -> Mapping[str, Any] | None:
        """What is kept under the key: a JSON object, which must not be changed."""
        return self._records.get(key)

    def has_records(self, kind: str, customer: str) -> bool:
        """Whether the customer has, or had, a record of the kind; fast, for the sake of checks."""
        return (kind, customer) in self._kept

    def records(self, kind: str, customer: str | None = None) -> dict[RecordKey, Mapping[str, Any]]:
        """All records of a kind, or those of one customer."""
        found = list(self._records.items())
        return {key: content for key, content in found if key.kind == kind and customer in (None, key.customer)}

    def keep(self, key: RecordKey, content: Mapping[str, Any] | None) -> None:
        """Keep a record, or with ``None`` forget it."""
        with self._lock:
            if content is None:
                self._connection.execute("DELETE FROM records WHERE (kind, customer, name) = (?, ?, ?)", key)
                self._records.pop(key, None)
            else:
                row = (*key, json.dumps(content))
                self._connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", row)
                self._records[key] = content
                self._kept.add(key[:2])

    def credit_events(self, customer: str) -> list[CreditEvent]:
        """What happened to the customer's credits, in that order."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT * FROM credit_events WHERE customer = ? ORDER BY rowid", (customer,)
            )
            return [CreditEvent(*row) for row in rows]

    def seed(self, amounts: dict[CounterKey, float]) -> None:
        """Set usage to begin with, for those customers' features of which nothing was ever written in any period."""
        with self.transaction() as transaction:
            written = {key[:3] for key in self._usage}
            for key, amount in amounts.items():
                if key[:3] not in written:
                    transaction.set_usage(key, amount)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """All that is written within happens at once, or not at all when the block raises. One runs at a time."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            transaction = Transaction(self._connection, self._usage, self._records)
            try:
                yield transaction
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            self._usage.update(transaction.written)
            self._records.update(transaction.kept)
            self._kept.update(key[:2] for key in transaction.kept)

    def close(self) -> None:
        """Close the database; a second time does nothing."""
        with self._lock:
            self._connection.close()


class Transaction:
    """One report's reading and writing; made by ``Store.transaction``."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        committed: dict[CounterKey, float],
        records: dict[RecordKey, Mapping[str, Any]],
    ) -> None:
        self._connection = connection
        self._committed = committed
        self._records = records
        self.written: dict[CounterKey, float] = {}
        self.kept: dict[RecordKey, Mapping[str, Any]] = {}

    def usage(self, key: CounterKey) -> float:
        """The usage with what this transaction has written."""
        amount = self.written.get(key)
        return self._committed.get(key, 0.0) if amount is None else amount

    def set_usage(self, key: CounterKey, amount: float) -> None:
        """Write usage, which others see once the transaction is committed; ten times 0.1 are 1."""
        amount = round(amount, DECIMALS)
        self._connection.execute("INSERT OR REPLACE INTO usage VALUES (?, ?, ?, ?, ?)", (*key, amount))
        self.written[key] = amount

    def records(self, kind: str, customer: str) -> dict[RecordKey, Mapping[str, Any]]:
        """The customer's records of a kind, with what this transaction has kept."""
        return {key: one for key, one in {**self._records, **self.kept}.items() if key[:2] == (kind, customer)}

    def keep(self, key: RecordKey, content: Mapping[str, Any]) -> None:
        """Keep a record."""
        self._connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", (*key, json.dumps(content)))
        self.kept[key] = content

    def note(self, event: CreditEvent) -> None:
        """Write down what happened to credits."""
        self._connection.execute("INSERT INTO credit_events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", event)

    def is_new_event(self, key: EventKey) -> bool:
        """Remember the event; false if it was known."""
        return self._inserted("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?)", key)

    def is_new_value(self, key: CounterKey, value: str) -> bool:
        """Remember a value of a dimension that is counted once; false if it was known."""
        return self._inserted("INSERT OR IGNORE INTO unique_values VALUES (?, ?, ?, ?, ?)", (*key, value))

    def answer(self, idempotency_key: str, now: float) -> StoredResponse | None:
        """The answer given under the key, unless it is too old. ``now`` is in seconds since 1970."""
        row = self._connection.execute(
            "SELECT request, response FROM answers WHERE idempotency_key = ? AND given_at > ?",
            (idempotency_key, now - ANSWERS_KEPT),
        ).fetchone()
        return row and StoredResponse(*row)

    def remember(self, idempotency_key: str, answer: StoredResponse, now: float) -> None:
        """Keep the answer for 24 hours; older ones go."""
        self._connection.execute("DELETE FROM answers WHERE given_at <= ?", (now - ANSWERS_KEPT,))
        self._connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", (idempotency_key, *answer, now))

    def _inserted(self, statement: str, row: tuple[str, ...]) -> bool:
        return self._connection.execute(statement, row).rowcount == 1


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
