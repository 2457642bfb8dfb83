"""The tables of the embedded ledger, and how those of earlier versions become them."""

from __future__ import annotations

import sqlite3

from stigg_guard.amounts import MAX_AMOUNT, quanta
from stigg_guard.errors import ConfigError
from stigg_guard.ledger.entries import instant_text

SCHEMA_VERSION = 4
_LEASE = 30_000_000
_MOST = quanta(MAX_AMOUNT)
APPLICATION_ID = 0x53474C47  # marks the file as a ledger, so that no other program's database is taken for one

# Amounts are quanta; `used_at` and periods are text (see entries.py); all other times are microseconds.
_TABLES = """
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    customer TEXT NOT NULL, resource TEXT NOT NULL, feature TEXT NOT NULL,
    state TEXT NOT NULL,
    amount INTEGER NOT NULL,
    is_set INTEGER NOT NULL,
    used_at TEXT NOT NULL,
    first_at INTEGER NOT NULL,
    period TEXT NOT NULL,
    event TEXT NOT NULL DEFAULT '',
    dimensions TEXT NOT NULL DEFAULT '',
    until INTEGER DEFAULT 0,            -- the end of a lease or a wait of `lasts`, NULL while a person must decide
    lasts INTEGER NOT NULL DEFAULT 0,
    batch TEXT,
    reason TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0,
    ticket INTEGER NOT NULL DEFAULT 0,  -- of the first sending, with what was known before it
    before TEXT NOT NULL DEFAULT ''
);
CREATE TABLE holds (
    customer TEXT NOT NULL, resource TEXT NOT NULL, feature TEXT NOT NULL,
    id TEXT NOT NULL,
    amount INTEGER NOT NULL,
    period TEXT NOT NULL,
    taken_at INTEGER NOT NULL, until INTEGER NOT NULL, lasts INTEGER NOT NULL,
    PRIMARY KEY (customer, resource, feature, id)
) WITHOUT ROWID;
CREATE TABLE usages (
    customer TEXT NOT NULL, resource TEXT NOT NULL, feature TEXT NOT NULL,
    period TEXT NOT NULL,
    used INTEGER NOT NULL,
    allowed INTEGER,
    seen INTEGER NOT NULL, settled INTEGER NOT NULL,
    settled_at INTEGER, moved_at INTEGER,
    added INTEGER NOT NULL,
    PRIMARY KEY (customer, resource, feature)
) WITHOUT ROWID;
CREATE TABLE numbers (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    ticket INTEGER NOT NULL,
    late INTEGER NOT NULL,
    ahead INTEGER                       -- of the wall clock before the monotonic one, when the former was last set anew
);
INSERT INTO numbers VALUES (1, 0, 0, NULL);
CREATE INDEX entries_by_key ON entries (customer, resource, feature, state);
CREATE INDEX entries_by_state ON entries (state, id);
CREATE INDEX entries_by_batch ON entries (batch) WHERE batch IS NOT NULL;
CREATE INDEX entries_by_end ON entries (until) WHERE until > 0
"""
_KEYS = """
CREATE TABLE keys (
    digest TEXT PRIMARY KEY,
    hold TEXT NOT NULL,                 -- that its use is in, empty once that was counted
    until INTEGER NOT NULL,
    binding TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX keys_by_end ON keys (until)
"""

# A process of the version before may still have the file open. What it tries to write is refused with this reason, and
# its usage goes to the sidecar at once.
_RESTART = "this ledger was brought up to date by a newer version of stigg-guard: restart this process"
_OLD_TABLES = {
    "entry": "NULL AS id, NULL AS customer, NULL AS resource, NULL AS feature, NULL AS state, NULL AS amount, NULL AS "
    "is_set, NULL AS used_at, NULL AS until, NULL AS batch, NULL AS reason, NULL AS event, NULL AS attempts",
    "hold": "NULL AS customer, NULL AS resource, NULL AS feature, NULL AS id, NULL AS amount, NULL AS taken_at, "
    "NULL AS until",
    "usage": "NULL AS customer, NULL AS resource, NULL AS feature, NULL AS used, NULL AS period_start, "
    "NULL AS ticket, NULL AS settled_at",
    "ticket": "1 AS id, 0 AS last",
    "late": "1 AS id, 0 AS holds",
}


def prepare(db: sqlite3.Connection, path: str | None) -> None:
    """Makes an empty database a ledger, brings an older one up to date, and raises for every other one.

    Raises:
        ConfigError: it is the database of another program, or a ledger of a newer version.
    """
    db.execute("BEGIN IMMEDIATE")
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if tables and application != APPLICATION_ID:
        raise ConfigError(f"LEDGER: {path} is the database of another program; name a file of the ledger's own")
    if version > SCHEMA_VERSION:
        raise ConfigError(f"LEDGER: {path} was written by a newer version of stigg-guard; update this one")
    if version < 3:
        _run(db, _TABLES)
        if tables:
            _take_over(db, version)
    if version < SCHEMA_VERSION:
        _run(db, _KEYS)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    db.execute("COMMIT")
    if path is not None:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")


def _run(db: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";"):
        db.execute(statement)


def _take_over(db: sqlite3.Connection, version: int) -> None:
    """Takes over what versions 1 and 2 kept, but for the usage that was known: the next snapshot tells it anew, with
    its period and limit. What is on its way counts in any period until it is acknowledged. A report of more than
    ``MAX_AMOUNT`` units, which those versions took, waits dead for a person, who finds its amount in the reason."""
    later = "event, attempts" if version > 1 else "NULL, 0"
    entries = db.execute(
        "SELECT id, customer, resource, feature, state, amount, is_set, used_at, until, batch, coalesce(reason, ''), "
        f"{later} FROM entry WHERE state <> 'held'"
    ).fetchall()
    db.executemany(
        "INSERT INTO entries (id, customer, resource, feature, state, amount, is_set, used_at, first_at, period, "
        "until, lasts, batch, reason, event, attempts) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_entry(*row) for row in entries],
    )
    if version > 1:
        holds = db.execute("SELECT customer, resource, feature, id, amount, taken_at, until FROM hold").fetchall()
        db.executemany("INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [_hold(*row) for row in holds])
        db.execute("UPDATE numbers SET late = (SELECT holds FROM late)")
    db.execute("UPDATE numbers SET ticket = (SELECT last FROM ticket)")
    for (old,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        if old in _OLD_TABLES:
            db.execute(f"DROP TABLE {old}")
    for old, columns in _OLD_TABLES.items():
        rows = "" if columns.startswith("1 ") else " WHERE 0"
        db.execute(f"CREATE VIEW {old} AS SELECT {columns}{rows}")
        for change in ("INSERT", "UPDATE", "DELETE"):
            db.execute(
                f"CREATE TRIGGER {old}_{change} INSTEAD OF {change} ON {old} "
                f"BEGIN SELECT RAISE(ABORT, '{_RESTART}'); END"
            )


def _entry(
    number: int, customer: str, resource: str, feature: str, state: str, amount: float, is_set: int, used_at: float,
    until: float | None, batch: str | None, reason: str, event: str | None, attempts: int,
) -> tuple[object, ...]:  # fmt: skip
    first_at, ends = _microseconds(used_at), None if until is None else _microseconds(until)
    if abs(amount) > MAX_AMOUNT:
        state, batch = "dead", None
        reason = f"{amount:.0f} units are more than {MAX_AMOUNT:.0f} at once: report them in parts, and discard this"
    used = _quanta(amount), is_set, instant_text(first_at * 1000), first_at, ""
    lasts = _LEASE if ends else 0
    return number, customer, resource, feature, state, *used, ends, lasts, batch, reason, event or "", attempts


def _hold(
    customer: str, resource: str, feature: str, hold: str, amount: float, taken_at: float, until: float
) -> tuple[object, ...]:
    taken, ends = _microseconds(taken_at), _microseconds(until)
    return customer, resource, feature, hold, _quanta(amount), "", taken, ends, max(0, ends - taken)


def _quanta(amount: float) -> int:
    """The quanta of an amount, and no more than can be summed up."""
    return max(-_MOST, min(quanta(amount), _MOST))


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
