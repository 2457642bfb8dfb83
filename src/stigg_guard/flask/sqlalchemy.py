"""Usage that follows the transactions of a SQLAlchemy session, such as ``db.session`` of Flask-SQLAlchemy."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from flask import g, has_app_context

from stigg_guard.errors import MissingExtra
from stigg_guard.runtime.log import logger
from stigg_guard.usage.confirm import Confirm, ConfirmSince

try:
    from sqlalchemy import Connection, Engine, event
except ModuleNotFoundError as error:
    raise MissingExtra("sqlalchemy", "stigg_guard.flask.sqlalchemy") from error

from sqlalchemy.orm import Session, SessionTransaction, scoped_session

End: TypeAlias = Callable[[bool], None]

_UNIT = "stigg_guard.unit_of_work"
_WRITE = re.compile(
    r"""
    '[^']*' | "[^"]*" | `[^`]*` | --[^\n]* | /\*.*?\*/  # literals, names and comments, which say nothing
    | \bfor\s+(?:no\s+key\s+)?update\b               # locks what is read
    | (?<![\w.:@$])                                   # no part of a name, and no parameter
      (?P<write>insert|update|delete|merge|replace|create|alter|drop|truncate|call|do)
      \b(?!\s*\()                                     # no function, as replace(…) is
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


def follow(session: scoped_session[Any]) -> Confirm:
    """How usage waits for the transaction of the request's session: ``StiggGuard(confirm=follow(db.session))``.

    Work that was committed since its units were held is certain, whatever the session changes after that; where more
    was written by then, the log warns, since nothing tells which of it was the work. Work is certain at once, too,
    where there is no transaction, or where that has written nothing, since nothing can be undone. Else it is certain
    when the transaction is committed; it is given back when that, or the savepoint that it happened in, is rolled back
    or closed, and at the end of a stream that outlived it. What the session has not flushed yet counts as written; what
    it executes does by the words of its SQL, see :func:`is_write`.
    """
    event.listen(Engine, "before_cursor_execute", _executed)
    event.listen(session, "after_begin", _begun)
    event.listen(session, "after_commit", _committed)
    return _Following(session)


def is_write(sql: str) -> bool:
    """Whether SQL writes: literals, quoted names and comments aside, it has a word such as INSERT or CREATE."""
    return any(found["write"] for found in _WRITE.finditer(sql))


class _History:
    """How the transactions ended that wrote within one application context."""

    def __init__(self) -> None:
        self.commits = 0
        self.is_lost = False
        """Whether the last one ended without a commit."""


class _Following(ConfirmSince):
    """Confirms work by the transactions of a session."""

    def __init__(self, session: scoped_session[Any]) -> None:
        self._session = session
        self._histories: weakref.WeakKeyDictionary[Any, _History] = weakref.WeakKeyDictionary()
        event.listen(session, "after_transaction_end", self._ended)

    def begin(self) -> Confirm:
        history = self._history()
        return partial(self._confirm, history, history.commits)

    def _confirm(self, history: _History, commits: int, end: End) -> None:
        is_committed = history.commits > commits
        goes_on = self._history() is history
        current = self._session() if goes_on and self._session.registry.has() else None
        transaction = current and (current.get_nested_transaction() or current.get_transaction())
        if current is None or transaction is None:
            wrote = is_open = history.is_lost and not goes_on
        else:
            wrote = _unit(current).wrote
            is_open = wrote or _is_changed(current)
        if is_committed and wrote:
            logger.warning(
                "usage counts because its work was committed, but more was written after that and is not: commit "
                "once, after the last write"
            )
        if is_committed or not is_open:
            end(True)
        elif current is None or transaction is None:
            end(False)
        else:
            _unit(current).waiting.setdefault(transaction, []).append(end)

    def _history(self) -> _History:
        """Of the current application context; without one, what happens is nobody's."""
        if not has_app_context():
            return _History()
        return self._histories.setdefault(g._get_current_object(), _History())

    def _ended(self, session: Session, transaction: SessionTransaction) -> None:
        unit = _unit(session)
        if transaction.parent is None:
            del session.info[_UNIT]
            if unit.wrote:
                history = self._history()
                history.is_lost = unit.committed is not transaction
                history.commits += not history.is_lost
        unit.leave(transaction)


class _UnitOfWork:
    """What a transaction did, and what waits for its end."""

    def __init__(self) -> None:
        self.wrote = False
        self.committed: SessionTransaction | None = None
        self.waiting: dict[SessionTransaction, list[End]] = {}

    def leave(self, transaction: SessionTransaction) -> None:
        """A transaction or a savepoint has ended; what a savepoint kept waits for what it is a part of."""
        waiting = self.waiting.pop(transaction, [])
        committed = self.committed is transaction
        if committed and transaction.parent is not None:
            self.waiting.setdefault(transaction.parent, []).extend(waiting)
            return
        for end in waiting:
            end(committed)

    def __del__(self) -> None:
        """The session was dropped with its transaction open."""
        for waiting in self.waiting.values():
            for end in waiting:
                end(False)


def _unit(session: Session) -> _UnitOfWork:
    unit: _UnitOfWork = session.info.setdefault(_UNIT, _UnitOfWork())
    return unit


def _is_changed(session: Session) -> bool:
    """Whether something is to be flushed; an attribute that was set to its own value is not."""
    return bool(session.new or session.deleted) or any(map(session.is_modified, session.dirty))


def _begun(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    connection.info[_UNIT] = weakref.ref(_unit(session))  # the connection goes on in the pool


def _executed(connection: Connection, _cursor: object, sql: str, *_: object) -> None:
    found = connection.info.get(_UNIT)
    unit: _UnitOfWork | None = found and found()
    if unit is not None and not unit.wrote:
        unit.wrote = is_write(sql)


def _committed(session: Session) -> None:
    _unit(session).committed = session.get_nested_transaction() or session.get_transaction()
