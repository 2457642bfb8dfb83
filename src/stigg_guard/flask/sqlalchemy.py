"""Usage that follows the transactions of a SQLAlchemy session, such as ``db.session`` of Flask-SQLAlchemy."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

from flask import has_app_context

from stigg_guard.consumption import Confirm
from stigg_guard.errors import MissingExtra

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

    Successful work is certain at once where there is no transaction, and so also after a commit in the view, or where
    the transaction has written nothing, since nothing can be undone. Else it is certain when that is committed; it is
    given back when the transaction, or the savepoint that it happened in, is rolled back or closed. What the session
    has not flushed yet counts as written; what it executes does by the words of its SQL, see :func:`is_write`.
    """
    event.listen(Engine, "before_cursor_execute", _executed)
    event.listen(session, "after_begin", _begun)
    event.listen(session, "after_commit", _committed)
    event.listen(session, "after_transaction_end", _ended)

    def confirm(end: End) -> None:
        current = session() if has_app_context() and session.registry.has() else None
        transaction = current and (current.get_nested_transaction() or current.get_transaction())
        if current is None or transaction is None or not (_unit(current).wrote or _is_changed(current)):
            end(True)
        else:
            _unit(current).waiting.setdefault(transaction, []).append(end)

    return confirm


def is_write(sql: str) -> bool:
    """Whether SQL writes: literals, quoted names and comments aside, it has a word such as INSERT or CREATE."""
    return any(found["write"] for found in _WRITE.finditer(sql))


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


def _ended(session: Session, transaction: SessionTransaction) -> None:
    unit = _unit(session)
    if transaction.parent is None:
        del session.info[_UNIT]
    unit.leave(transaction)
