"""When usage is certain: with the commit of the transaction that the work was done in."""

from __future__ import annotations

from collections.abc import Callable

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from stigg_guard.consumption import Confirm


def confirm_on_commit(alias: str) -> Confirm:
    """Confirms work when the transaction that is open on the database of this alias is committed, or at once.

    A process that is killed between the commit and what follows it loses the usage, whose hold expires: only the ledger
    ``django://alias`` commits usage in the same transaction. Without Django's own transaction management, under
    ``"AUTOCOMMIT": False``, work is confirmed at once.
    """

    def confirm(end: Callable[[bool], None]) -> None:
        connection = connections[alias]
        if connection.in_atomic_block:
            # Robust, so that the callbacks after it run whatever becomes of it.
            transaction.on_commit(_Undecided(connection, end).commit, using=alias, robust=True)
        else:
            end(True)

    return confirm


class _Undecided:
    """Work in a transaction. Django calls ``commit``, or drops this when the transaction or its savepoint is undone."""

    def __init__(self, connection: BaseDatabaseWrapper, end: Callable[[bool], None]) -> None:
        self._connection = connection
        self._end: Callable[[bool], None] | None = end

    def commit(self) -> None:
        self._decide(True)

    def __del__(self) -> None:
        # Django drops it after a commit, too, when a callback before it raised: outside of every transaction.
        self._decide(self._connection.autocommit)

    def _decide(self, certain: bool) -> None:
        end, self._end = self._end, None
        if end is not None:
            end(certain)
