"""When successful work counts: with the commit of the transaction that it was done in."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from stigg_guard.usage.confirm import Confirm
from stigg_guard.usage.streams import end_dropped


def confirm_on_commit(alias: str) -> Confirm:
    """Confirms work when the transaction that is open on the database of this alias is committed, or at once.

    A process that is killed between the commit and what follows it loses the usage, whose hold expires: only the ledger
    ``django://alias`` commits usage in the same transaction. Without Django's own transaction management, under
    ``"AUTOCOMMIT": False``, work is confirmed at once.
    """

    def confirm(end: Callable[[bool], None]) -> None:
        connection = connections[alias]
        if connection.in_atomic_block and connection.commit_on_exit:
            follow_transaction(connection, end)
        else:
            end(True)

    return confirm


def follow_transaction(connection: BaseDatabaseWrapper, end: Callable[[bool], None]) -> None:
    """Calls ``end`` once: with True when the transaction that is open on the connection is committed, before all
    callbacks of others, whichever of them fails; with False when it, or its savepoint, is undone."""
    # The stubs know neither of robust callbacks nor of the mark that test cases leave on their blocks.
    callbacks: list[Any] = connection.run_on_commit
    blocks: list[Any] = connection.atomic_blocks
    place = sum(_is_ours(callback) for _, callback, _ in callbacks)
    if any(block._from_testcase for block in blocks):
        place = len(callbacks)  # a test captures those that were added last, and commits nothing
    callbacks.insert(place, (set(connection.savepoint_ids), _Undecided(end).commit, True))


def _is_ours(callback: Callable[[], Any]) -> bool:
    return isinstance(getattr(callback, "__self__", None), _Undecided)


class _Undecided:
    """Work in a transaction. Django calls ``commit``, or drops this when the transaction or its savepoint is undone."""

    _end: Callable[[bool], None] | None = None

    def __init__(self, end: Callable[[bool], None]) -> None:
        self._pid = os.getpid()
        self._end = end  # last: what an exception from outside drops before was never in a transaction

    def commit(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            end(True)

    def __del__(self) -> None:
        end, self._end = self._end, None
        if end is not None and self._pid == os.getpid():  # a forked child drops what its parent may still commit
            end_dropped(lambda: end(False))
