"""Which connection a step of the ledger runs on: one of its own, or the one whose transaction it belongs to."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from typing import Any, TypeVar, cast

from django.db import Error, connections, router
from django.db.backends.base.base import BaseDatabaseWrapper

from stigg_guard.clock import Clock, microseconds, utc_now
from stigg_guard.django.ledger.apps import LedgerConfig
from stigg_guard.django.ledger.own import OwnConnections, code_of
from stigg_guard.django.ledger.place import Place, own_place, place_of, require_one_place
from stigg_guard.django.ledger.step import Step
from stigg_guard.errors import ClientClosed, ConfigError, LedgerUnavailable

PROVEN = ("postgresql", "sqlite")
_TURN = 0x53474C47  # "SGLG": the number of an advisory lock that nobody else is likely to take
_NO_TABLE = "42P01"
_SAVEPOINT = "SAVEPOINT stigg_guard"

T = TypeVar("T")


class Database:
    """The database of an alias, as the ledger uses it.

    On PostgreSQL a step runs on a connection of the ledger's own, to the alias ``via``: it is committed at once,
    also when the user's transaction is rolled back. SQLite has one writer, so that a second connection would only wait
    for the user's: there a step is part of the user's transaction if one is open. Time is the server's, unless there is
    none or the clock is not the usual one.

    Nothing that threads share is changed while a step lasts, so that an exception from outside costs no more than it.

    Raises:
        ConfigError: neither of these two serves the alias, or ``via`` is no other way to PostgreSQL.
    """

    def __init__(self, alias: str, clock: Clock, *, via: str | None = None) -> None:
        users = connections[alias]
        if users.vendor not in PROVEN:
            raise ConfigError(
                f"LEDGER: the database {alias!r} is {users.display_name}, and a ledger is proven on PostgreSQL and "
                "SQLite only; name an alias of one of them, or another ledger"
            )
        if via is not None and {users.vendor, connections[via].vendor} != {"postgresql"}:
            raise ConfigError(f"LEDGER: via={via} is a second way to PostgreSQL only; leave it away")
        self.alias = alias
        self._via = via or alias
        self._is_sqlite = users.vendor == "sqlite"
        self._host_time = clock.now if self._is_sqlite or clock.now is not utc_now else None
        self._own = OwnConnections(self._via)
        self._place: Place | None = None
        self._thread = _Thread()
        self._dropped: deque[Callable[[], object]] = deque()  # in the middle of a step: done at the end of one
        self._closed = False

    def step(self, work: Callable[[Step], T], *, with_data: bool = False, alone: bool = False) -> T:
        """What the work answers, in one transaction. ``with_data`` it is a part of the user's, if he has one open.

        Of the steps that are ``alone`` each waits for the one before: they change rows of many keys, in any order.

        Raises:
            LedgerUnavailable: it failed, and changed nothing.
            ConfigError: the two aliases lead to different tables.
        """
        if self._closed:
            raise ClientClosed("the guard or its ledger is closed; make a new one")
        self._thread.is_stepping = True
        try:
            return self._run(work, with_data=with_data, alone=alone)
        except Error as error:
            raise LedgerUnavailable(f"the ledger in the database {self.alias!r} {self._fault(error)}") from error
        finally:
            self._thread.is_stepping = False
            with suppress(IndexError):  # another thread may be faster
                while self._dropped:
                    self._dropped.popleft()()

    def put_off(self, work: Callable[[], object]) -> bool:
        """Whether this thread is in the middle of a step, and the work is done at the end of it: a finalizer came by,
        and the connection is busy. A mark that a torn step left behind puts it off until the end of the next one."""
        if self._thread.is_stepping:
            self._dropped.append(work)
        return self._thread.is_stepping

    def users_transaction(self) -> BaseDatabaseWrapper | None:
        """The user's connection if a block of his is open on it; the blocks around a test are not his."""
        users = connections[self.alias]
        return users if _blocks(users, of_tests=False) else None

    def takes_nothing(self, users: BaseDatabaseWrapper) -> bool:
        """Whether the user's transaction is lost, or will be rolled back; in SQLite the ledger goes along with it."""
        if users.connection is None:
            return True
        if self._is_sqlite:
            return users.commit_on_exit and not users.connection.in_transaction
        return users.needs_rollback

    def sees_uncommitted(self) -> bool:
        """Whether a step would see what the user may still roll back."""
        users = self.users_transaction()
        return users is not None and (self._is_sqlite or _blocks(users, of_tests=True))

    def was_committed(self, transaction_id: int) -> bool:
        """Returns whether a step was committed whose commit was not answered.

        Raises:
            LedgerUnavailable: the server cannot be asked, or does not know yet.
        """
        ((status,),) = self.step(lambda step: step.run("SELECT txid_status(%(id)s)", id=transaction_id))
        if status == "in progress":
            raise LedgerUnavailable(f"the ledger in the database {self.alias!r} has not ended a transaction yet")
        return bool(status == "committed")

    def close(self) -> None:
        self._closed = True
        self._own.close()

    def _run(self, work: Callable[[Step], T], *, with_data: bool, alone: bool) -> T:
        users = connections[self.alias]
        if self._is_sqlite:
            return self._run_in_sqlite(users, work)
        if _blocks(users, of_tests=True):  # what a test leaves behind is to be rolled back with it
            return self._run_within(users, work, schema="")
        if with_data and _blocks(users, of_tests=False):  # its search path may be another
            return self._run_within(users, work, schema=self._schema(users))
        if self._via != self.alias:
            self._schema(users)
        return self._run_apart(work, alone=alone)

    def _run_apart(self, work: Callable[[Step], T], *, alone: bool) -> T:
        def transaction(cursor: Any) -> T:
            step = self._step(cursor, schema="")
            if alone:
                step.run("SELECT pg_advisory_xact_lock(%(turn)s)", turn=_TURN)
            return work(step)

        return self._own.run(transaction)

    def _run_within(self, users: BaseDatabaseWrapper, work: Callable[[Step], T], *, schema: str | None) -> T:
        """In the transaction that is open, behind Django's back: what it notes of a savepoint could be torn."""
        with users.wrap_database_errors, closing(users.create_cursor()) as cursor:
            cursor.execute(_SAVEPOINT)
            try:
                answer = work(self._step(cursor, schema=schema))
            except BaseException:
                with suppress(cast(Any, users).Database.Error):
                    cursor.execute(f"ROLLBACK TO {_SAVEPOINT}")
                raise
            cursor.execute(f"RELEASE {_SAVEPOINT}")
            return answer

    def _run_in_sqlite(self, users: BaseDatabaseWrapper, work: Callable[[Step], T]) -> T:
        if users.connection is None:
            if cast(Any, users).is_in_memory_db():
                raise LedgerUnavailable(f"the database {self.alias!r} is in the memory of another thread")
            with closing(users):
                users.ensure_connection()
                return self._run_in_sqlite(users, work)
        if self._thread.begun is users.connection and not users.in_atomic_block:
            users.connection.rollback()  # what a torn step left behind
        if users.connection.in_transaction:
            return self._run_within(users, partial(_writing, work=work), schema=None)
        with users.wrap_database_errors, closing(users.create_cursor()) as cursor:
            self._thread.begun = users.connection
            try:
                cursor.execute("BEGIN IMMEDIATE")
                answer = work(self._step(cursor, schema=None))
                cursor.execute("COMMIT")
            finally:
                if users.connection.in_transaction:
                    cursor.execute("ROLLBACK")
                self._thread.begun = None
            return answer

    def _step(self, cursor: Any, *, schema: str | None) -> Step:
        return Step(cursor, now=self._host_time and microseconds(self._host_time()), schema=schema)

    def _schema(self, users: BaseDatabaseWrapper) -> str:
        """Where the tables are, which is the same by both ways."""
        if self._place is None:
            place = own_place(self._own)
            if self._via != self.alias:
                require_one_place(self.alias, self._users_place(users, place), self._via, place)
            if place is None:
                raise LedgerUnavailable(f"the ledger in the database {self.alias!r} {self._lack()}")
            self._place = place
        return self._place.schema

    def _users_place(self, users: BaseDatabaseWrapper, place: Place | None) -> Place | None:
        """By the user's way. For a transaction that is open there, there may be no second connection."""
        schema = "" if place is None else place.schema
        if users.in_atomic_block and users.connection is not None:
            return self._run_within(users, place_of, schema=schema)
        with closing(OwnConnections(self.alias)) as brief:
            return own_place(brief, schema)

    def _fault(self, error: Error) -> str:
        text = str(error).partition("\n")[0]
        is_missing = code_of(error) == _NO_TABLE or text.startswith("no such table")
        return self._lack() if is_missing else f"cannot be used: {text}"

    def _lack(self) -> str:
        migrate = f"run manage.py migrate --database={self.alias}"
        if router.allow_migrate(self.alias, LedgerConfig.label):
            return f"has no tables yet: {migrate}"
        allow = f"let allow_migrate({self.alias!r}, {LedgerConfig.label!r}) be true"
        return f"has no tables, since DATABASE_ROUTERS forbid them: {allow}, then {migrate}"


def _writing(step: Step, work: Callable[[Step], T]) -> T:
    """Writes before it reads: who writes first waits, who reads first fails if another one wrote in between."""
    step.run("DELETE FROM stigg_guard_ledger_tickets WHERE id = 0")
    return work(step)


class _Thread(threading.local):
    is_stepping = False
    begun: Any = None


def _blocks(connection: BaseDatabaseWrapper, *, of_tests: bool) -> bool:
    """Whether there are open atomic blocks that a test case made around its tests, or else others."""
    blocks: list[Any] = connection.atomic_blocks  # the stubs know nothing of the mark that tests leave on them
    return any(block._from_testcase is of_tests for block in blocks)
