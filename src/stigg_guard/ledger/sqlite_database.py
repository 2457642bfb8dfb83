"""One SQLite database of a process: in memory, or in a file that all processes of a host share."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from functools import partial
from time import monotonic, sleep
from typing import TypeVar
from urllib.parse import quote

from stigg_guard.clock import Clock, microseconds
from stigg_guard.errors import ClientClosed, ConfigError, LedgerUnavailable
from stigg_guard.ledger.entries import Hold
from stigg_guard.ledger.files import is_default, make_file, make_folder, obstacle, share_companions
from stigg_guard.ledger.sqlite_schema import prepare
from stigg_guard.ledger.sqlite_statements import end
from stigg_guard.runtime.forks import PerProcess, follow_forks
from stigg_guard.runtime.log import logger
from stigg_guard.settings.urls import LedgerFile

BUSY_SECONDS = 5.0
LOOK_SECONDS = 1.0  # how often it is seen whether the file is still there
SHORTEST_PAUSE, LONGEST_PAUSE = 0.00005, 0.002  # in seconds, between two looks whether another process is done
_IS_BUSY = "database is locked"  # SQLite's text for SQLITE_BUSY, whose number Python 3.10 does not tell
CLOCK_JUMP = 1_000_000  # microseconds by which the wall clock leaves the monotonic one at once, when it is set anew

T = TypeVar("T")


class SqliteDatabase:
    """A SQLite file (WAL), or this process's memory without a file, for one step at a time.

    A file survives kill -9 with everything that was committed; ``synchronous=NORMAL`` may lose the last commits when
    the machine itself loses power. Thread-safe, safe between processes and across forks, and under exceptions that come
    from outside at any moment. The first use of each process opens it. A step waits ``BUSY_SECONDS`` for its turn in
    this process, and as long for other processes.

    Raises:
        ConfigError: on first use, when the file cannot be opened, is no ledger, or is of a newer version.
    """

    def __init__(self, file: LedgerFile | None, clock: Clock) -> None:
        path = None if file is None else file.path
        if path is not None and not is_default(path) and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise ConfigError(f"LEDGER: there is no folder for {path}; make it, or name another file")
        self._given = file
        self._path = path
        self._now, self._monotonic = clock.now, clock.monotonic
        self._closed = False
        self._pid = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._looked_at = 0.0
        self._is_stepping = False
        # by how much the wall clock is ahead of the monotonic one, which runs on when the other is set anew
        self._ahead = self._time() - microseconds_of(self._monotonic())
        self._dropped: deque[Hold] = deque()  # in the middle of a step: the next one that writes ends them first
        with _lock.get():
            _databases.add(self)

    @property
    def is_in_memory(self) -> bool:
        """Whether what it keeps ends with the process."""
        return self._path is None

    def close(self) -> None:
        with _lock.get():
            self._closed = True
            self._disconnect()

    def _time(self) -> int:
        return microseconds(self._now())

    def _is_in_step(self) -> bool:
        """Whether this thread is in the middle of a step on this ledger. A mark that an interrupted step has left
        behind says nothing: the lock is free then."""
        return self._is_stepping and _lock.get()._is_owned()  # type: ignore[attr-defined] # known to all locks, not to stubs

    def _read(self, step: Callable[[sqlite3.Connection], T]) -> T:
        """What one statement, or one that needs no transaction, says."""
        return self._in_turn(step)

    def _write(self, step: Callable[[sqlite3.Connection, int], T]) -> T:
        """What a transaction of its own answers, which is given the time; it is undone if it fails."""
        return self._in_turn(partial(self._transaction, step))

    def _transaction(self, step: Callable[[sqlite3.Connection, int], T], db: sqlite3.Connection) -> T:
        """It begins with the end of the holds that were dropped."""
        try:
            db.execute("BEGIN IMMEDIATE")
            now = self._time()
            ahead, followed = now - microseconds_of(self._monotonic()), self._ahead
            if abs(ahead - followed) >= CLOCK_JUMP:
                _follow_clock(db, ahead, ahead - followed)
                followed = ahead
            dropped = list(self._dropped)
            for hold in dropped:
                end(db, hold, now)
            answer = step(db, now)
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
        self._ahead = followed
        for _ in dropped:
            self._dropped.popleft()
        return answer

    def _in_turn(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Gives the work the connection, one thread at a time.

        An exception from outside may end this anywhere. So the lock is taken by a statement that cannot be torn, and
        what is left of an interrupted step is undone by the next one.
        """
        where = self._path or "in memory"
        if self._is_in_step():
            raise LedgerUnavailable(f"the ledger {where} is in the middle of a step of this thread")
        asked_at = monotonic()
        try:
            with _lock.get():
                if monotonic() - asked_at > BUSY_SECONDS:
                    raise LedgerUnavailable(f"the ledger {where} is busy: its other threads took {BUSY_SECONDS:g} s")
                self._is_stepping = True
                try:
                    db = self._own_connection()
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    return _once_free(partial(work, db))
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
        self._dropped.clear()
        self._disconnect()  # what a parent has in its memory is the parent's to report
        self._pid = os.getpid()

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()


# SQLite's own notes about the locks of a process are copied by a fork, and wrong in the child. So nothing is open while
# a process forks, and one lock for all its ledgers makes the fork wait for every transaction. A child of a server that
# forks without Python's hooks first closes all that it inherited: beside it, even a new connection to the file would
# believe in locks that only the parent has, and lose its log when the parent closes.
_lock = PerProcess(threading.RLock)  # a finalizer may come by in the middle of a step on another ledger
_databases: weakref.WeakSet[SqliteDatabase] = weakref.WeakSet()


def _turn_to_fork() -> Generator[None]:
    """Has the lock while it is suspended, and only then, wherever an exception from outside strikes."""
    with _lock.get():
        yield


class _Fork(threading.local):
    """The fork that a thread makes, or made last."""

    turn: Generator[None] = _turn_to_fork()


_fork = _Fork()


def _before_fork() -> None:
    """Nothing keeps the process from forking: so an exception from outside, which Python only tells of here, does not
    keep this from its turn."""
    struck: BaseException | None = None
    while True:
        _fork.turn = _turn_to_fork()
        try:
            next(_fork.turn)
            break
        except BaseException as error:  # noqa: BLE001 - it is raised below
            _fork.turn.close()
            struck = error
    for database in _databases:
        database._before_fork()
    if struck is not None:
        raise struck


def _after_fork_in_parent() -> None:
    _fork.turn.close()


def _forget_parent() -> None:
    for database in _databases:
        database._forget_parent()


follow_forks(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_forget_parent)


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
        db = _once_free(partial(_prepared, place, file.path))
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
        db.execute("PRAGMA busy_timeout = 0")
        on_failure.pop_all()
        return db


def _file_of(path: str | None) -> tuple[int, int] | None:
    """Which file the path leads to at the moment; None for no file."""
    try:
        found = None if path is None else os.stat(path)
    except OSError:
        return None
    return found and (found.st_dev, found.st_ino)


def _once_free(work: Callable[[], T]) -> T:
    """What the work answers once no other process is in its way: until then it fails, and has done nothing. SQLite
    itself would look again after 1, 2, 5, 10 milliseconds and more, where a transaction takes a tenth of one; and not
    at all where two make a new file a log at the same time."""
    deadline, pause = monotonic() + BUSY_SECONDS, SHORTEST_PAUSE
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if str(error) != _IS_BUSY or monotonic() >= deadline:
                raise
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def microseconds_of(seconds: float) -> int:
    """Whole microseconds."""
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
    db.execute("UPDATE keys SET until = until + ?", (jump,))
    db.execute("UPDATE usages SET settled_at = settled_at + ?, moved_at = moved_at + ?", (jump, jump))
