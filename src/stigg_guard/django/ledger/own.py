"""Connections of the ledger's own to PostgreSQL: its books are kept also when users' transactions are rolled back."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from django.core import mail
from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from stigg_guard.django.ledger.deadlines import cut, cut_at
from stigg_guard.errors import LedgerUnavailable

STEP_SECONDS = 5
_LOCK_SECONDS = 4
# The rows that the ledger has locked are to be read as they are then. A process that is stopped amid a step must not
# keep its locks.
_BEGIN = f"""
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '{_LOCK_SECONDS}s';
SET LOCAL statement_timeout = '{_LOCK_SECONDS}s';
SET LOCAL idle_in_transaction_session_timeout = '{STEP_SECONDS}s'
"""
_WAITED = ("55P03", "57014")  # for a lock, for a statement

T = TypeVar("T")


class OwnConnections:
    """Connections to the database of an alias, as many as there are steps at the same time.

    Each step has one alone, for ``STEP_SECONDS``. One that ends well is kept for as long as ``CONN_MAX_AGE`` of the
    alias says. After anything else, be it an exception from outside, the connection is closed, and the server undoes
    what was begun on it. A forked process makes connections of its own.
    """

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._idle: deque[_Own] = deque()
        self._all: WeakValueDictionary[int, _Own] = WeakValueDictionary()
        self._closed = False

    def run(self, work: Callable[[Any], T]) -> T:
        """What the work answers that is given a cursor, in a transaction of its own.

        Raises:
            LedgerUnavailable: the database kept it waiting for too long.
            django.db.Error: anything else that the database says.
        """
        begun_at = monotonic()
        deadline = begun_at + STEP_SECONDS
        try:
            own = self._begun(deadline)
            answer = own.finish(work, deadline)
        except Error as error:
            self._close_idle()  # what broke one connection has broken the others
            if monotonic() >= deadline or code_of(error) in _WAITED:
                waited = monotonic() - begun_at
                raise LedgerUnavailable(f"the ledger waited {waited:.1f} s for the database {self.alias!r}") from error
            raise
        self._keep(own)
        return answer

    def close(self) -> None:
        """From any thread; steps that are under way fail."""
        self._closed = True
        self._close_idle()
        for found in self._all.valuerefs():
            own = found()
            if own is not None:
                own.hang_up()

    def _begun(self, deadline: float) -> _Own:
        """A connection with a new transaction. One that was lost while it was idle is made anew."""
        own = self._popped()
        if own is not None:
            try:
                own.begin(deadline)
            except Error:
                if monotonic() >= deadline:
                    raise
                self._close_idle()
            else:
                return own
        own = _Own(_copy_of(connections[self.alias]))
        self._all[id(own)] = own
        own.begin(deadline)
        return own

    def _popped(self) -> _Own | None:
        with suppress(IndexError):
            while True:
                own = self._idle.pop()
                if not own.is_inherited():
                    return own
                _inherited.append(own)
        return None

    def _keep(self, own: _Own) -> None:
        self._idle.append(own)
        with suppress(IndexError):
            while self._closed or self._idle[0].is_old():
                self._idle.popleft().close()

    def _close_idle(self) -> None:
        while (own := self._popped()) is not None:
            own.close()


_inherited: list[_Own] = []  # a connection is the parent's: to close it, or to let go of it, would end it there


class _Own:
    """A connection, not connected yet. It is closed when anything on it fails."""

    _pid = 0  # of nobody, until it is made whole

    def __init__(self, database: BaseDatabaseWrapper) -> None:
        self._database = database
        self._socket: socket.socket | None = None
        self._made_at = monotonic()
        self._pid = os.getpid()

    def begin(self, deadline: float) -> None:
        """Begins a transaction; connects before if need be."""
        self._run(lambda cursor: cursor.execute(_BEGIN), deadline)

    def finish(self, work: Callable[[Any], T], deadline: float) -> T:
        """Does the work in the transaction, and commits it."""

        def commit(cursor: Any) -> T:
            answer = work(cursor)
            cursor.execute("COMMIT")
            return answer

        return self._run(commit, deadline)

    def is_inherited(self) -> bool:
        return self._pid != os.getpid()

    def is_old(self) -> bool:
        """A test run drops its database at the end, and cannot while anybody is connected."""
        is_test_run, max_age = hasattr(mail, "outbox"), self._database.settings_dict["CONN_MAX_AGE"]
        return is_test_run or (max_age is not None and monotonic() >= self._made_at + max_age)

    def hang_up(self) -> None:
        """From any thread: whoever uses the connection fails."""
        if self._socket is not None:
            cut(self._socket)

    def close(self) -> None:
        if self.is_inherited():
            return
        if self._database.connection is not None:
            self._database.connection.close()
        if self._socket is not None:
            self._socket.close()

    __del__ = close

    def _run(self, work: Callable[[Any], T], deadline: float) -> T:
        try:
            connected = self._socket or self._connected(deadline)
            with cut_at(deadline, connected), self._database.cursor() as cursor:
                return work(cursor)
        except BaseException:
            self.close()
            raise

    def _connected(self, deadline: float) -> socket.socket:
        """Connects as Django does, with an end to its waiting, and without Django's signals."""
        database = self._database
        with database.wrap_database_errors:
            connection = database.connection = database.get_new_connection(database.get_connection_params())
            self._socket = socket.socket(fileno=os.dup(connection.fileno()))
            with cut_at(deadline, self._socket):
                database.set_autocommit(True)
                database.init_connection_state()
        return self._socket


def _copy_of(users: BaseDatabaseWrapper) -> BaseDatabaseWrapper:
    """A way to the same database, for any thread, that waits no longer than a step lasts."""
    given = users.settings_dict
    # A pool may have no second connection for a thread that waits with its first.
    options = {name: value for name, value in given["OPTIONS"].items() if name != "pool"}
    options["connect_timeout"] = min(int(options.get("connect_timeout") or STEP_SECONDS), STEP_SECONDS)
    copied = type(users)({**given, "OPTIONS": options}, users.alias)
    copied.inc_thread_sharing()
    return copied


def code_of(error: Error) -> str | None:
    """What the server calls the error, as psycopg or psycopg2 tells it."""
    cause = error.__cause__
    code: str | None = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return code
