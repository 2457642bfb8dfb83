"""Which connection a step of the ledger runs on: one of its own, or the one whose transaction it belongs to."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast
from weakref import WeakSet

from django.core import mail
from django.db import Error, OperationalError, ProgrammingError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from stigg_guard.django.ledger.models import Ticket
from stigg_guard.errors import ClientClosed, ConfigError, LedgerUnavailable

BUSY_SECONDS = 5
PROVEN = ("postgresql", "sqlite")
# The rows that the ledger has locked are to be read as they are then.
_AS_OURS = f"SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{BUSY_SECONDS}s'"
_TURN = 0x53474C47  # "SGLG": the number of an advisory lock that nobody else is likely to take


class Database:
    """The database of an alias, as the ledger uses it.

    On PostgreSQL a step runs on a connection of the ledger's own, one for each thread: it is committed at once,
    whatever becomes of the user's transaction. Such a connection is checked before each use, and closed when
    ``CONN_MAX_AGE`` says so, or with its thread; a forked process makes new ones. SQLite has one writer, so that a
    second connection would only wait for the user's: there a step is part of the user's transaction if one is open.

    Raises:
        ConfigError: neither of these two serves the alias.
    """

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._thread = _Thread()
        self._opened: WeakSet[_Own] = WeakSet()
        self._closed = False
        if self._users.vendor not in PROVEN:
            raise ConfigError(
                f"LEDGER: the database {alias!r} is {self._users.display_name}, and a ledger is proven on PostgreSQL "
                "and SQLite only; name an alias of one of them, or another ledger"
            )

    @contextmanager
    def step(self, *, with_data: bool = False, alone: bool = False) -> Iterator[None]:
        """One transaction. ``with_data`` it is a part of the user's, if he has one open.

        Of the steps that are ``alone`` each waits for the one before: they change rows of many keys, in any order.

        Raises:
            LedgerUnavailable: it failed, and changed nothing.
        """
        if self._closed:
            raise ClientClosed("the guard or its ledger is closed; make a new one")
        put_off: list[Callable[[], None]] = []
        self._thread.put_off = put_off
        try:
            with self._joined() if self._joins(with_data) else self._apart():
                if alone and self._users.vendor == "postgresql":
                    with self._users.cursor() as cursor:
                        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_TURN])
                yield
        except Error as error:
            raise LedgerUnavailable(f"the ledger in the database {self.alias!r} {self._fault(error)}") from error
        finally:
            self._thread.put_off = None
            for work in put_off:
                work()

    def put_off(self, work: Callable[[], None]) -> bool:
        """Whether this thread is in the middle of a step, and does the work at the end of it: a finalizer came by, and
        the connection is busy."""
        if self._thread.put_off is None:
            return False
        self._thread.put_off.append(work)
        return True

    def users_transaction(self) -> BaseDatabaseWrapper | None:
        """The user's connection if a block of his is open on it; the blocks around a test are not his."""
        return self._users if _blocks(self._users, of_tests=False) else None

    def sees_uncommitted(self) -> bool:
        """Whether a step would see what the user may still roll back."""
        return self.users_transaction() is not None and self._joins(with_data=False)

    def transaction_ids(self) -> list[int]:
        """In a step: by what :meth:`was_committed` knows it; nothing where the outcome of a commit is always known."""
        if self._users.vendor == "sqlite":
            return []
        with self._users.cursor() as cursor:
            cursor.execute("SELECT txid_current()")
            return [int(cursor.fetchone()[0])]

    def was_committed(self, transaction_id: int) -> bool:
        """What became of a step whose commit was not answered.

        Raises:
            LedgerUnavailable: the server cannot be asked, or does not know yet.
        """
        with self.step(), self._users.cursor() as cursor:
            cursor.execute("SELECT txid_status(%s)", [transaction_id])
            (status,) = cursor.fetchone()
        if status == "in progress":
            raise LedgerUnavailable(f"the ledger in the database {self.alias!r} has not ended a transaction yet")
        return bool(status == "committed")

    def close(self) -> None:
        self._closed = True
        for own in list(self._opened):
            own.close()

    @property
    def _users(self) -> BaseDatabaseWrapper:
        return connections[self.alias]

    def _joins(self, with_data: bool) -> bool:
        users = self._users
        return (
            users.vendor == "sqlite"
            or _blocks(users, of_tests=True)  # what a test leaves behind is to be rolled back with it
            or (with_data and _blocks(users, of_tests=False))
        )

    @contextmanager
    def _joined(self) -> Iterator[None]:
        users = self._users
        if users.vendor != "sqlite":
            with transaction.atomic(using=self.alias):
                yield
            return
        if users.connection is None and cast(Any, users).is_in_memory_db():
            raise LedgerUnavailable(f"the database {self.alias!r} is in the memory of another thread")
        with users.temporary_connection() as cursor, _not_doomed(users), transaction.atomic(using=self.alias):
            # Whoever reads before he writes is refused if somebody wrote in between; whoever writes first, waits.
            cursor.execute("DELETE FROM stigg_guard_ledger_ticket WHERE id = 0")
            yield

    @contextmanager
    def _apart(self) -> Iterator[None]:
        users, own = self._users, self._own()
        connections[self.alias] = own.connection
        try:
            with transaction.atomic(using=self.alias), own.connection.cursor() as cursor:
                cursor.execute(_AS_OURS)
                yield
        finally:
            connections[self.alias] = users
            own.end_step(keep=not self._closed)

    def _own(self) -> _Own:
        own = self._thread.own
        if own is not None and own.is_inherited():
            _inherited.append(own)
        if own is None or own.is_inherited() or own.is_closed:
            own = self._thread.own = _Own(self._users)
            self._opened.add(own)
        return own

    def _fault(self, error: Error) -> str:
        if isinstance(error, (ProgrammingError, OperationalError)) and self._lacks_tables():
            return f"has no tables yet: run manage.py migrate --database={self.alias}"
        return f"cannot be used: {error}"

    def _lacks_tables(self) -> bool:
        with suppress(Error), self._users.temporary_connection() as cursor:
            return Ticket._meta.db_table not in self._users.introspection.table_names(cursor)
        return False


class _Own:
    """A connection of the ledger's own to the database of a user's one."""

    def __init__(self, users: BaseDatabaseWrapper) -> None:
        given = users.settings_dict
        # A pool may have no second connection for a thread that waits with its first.
        options = {name: value for name, value in given["OPTIONS"].items() if name != "pool"}
        settings = {**given, "OPTIONS": options, "AUTOCOMMIT": True, "CONN_HEALTH_CHECKS": True}
        self.connection = type(users)(settings, users.alias)
        self.is_closed = False
        self._pid = os.getpid()

    def is_inherited(self) -> bool:
        return self._pid != os.getpid()

    def end_step(self, *, keep: bool) -> None:
        if keep and not _is_test_run():
            self.connection.close_if_unusable_or_obsolete()
        else:
            self.close()

    def close(self) -> None:
        """From any thread; a step that is under way fails."""
        self.is_closed = True
        connection = self.connection.connection
        if connection is not None and not self.is_inherited():
            connection.close()

    __del__ = close


_inherited: list[_Own] = []  # a connection is the parent's: to close it, or to let go of it, would end it there


class _Thread(threading.local):
    own: _Own | None = None
    put_off: list[Callable[[], None]] | None = None


def _blocks(connection: BaseDatabaseWrapper, *, of_tests: bool) -> bool:
    """Whether there are open atomic blocks that a test case made around its tests, or else others."""
    blocks: list[Any] = connection.atomic_blocks  # the stubs know nothing of the mark that tests leave on them
    return any(block._from_testcase is of_tests for block in blocks)


@contextmanager
def _not_doomed(users: BaseDatabaseWrapper) -> Iterator[None]:
    """Lets a step run in a transaction that will be rolled back, and be rolled back with it."""
    doomed, users.needs_rollback = users.needs_rollback, False
    try:
        yield
    finally:
        users.needs_rollback = users.needs_rollback or doomed


def _is_test_run() -> bool:
    """A test run drops its database at the end, and cannot while anybody is connected."""
    return hasattr(mail, "outbox")
