"""Usage that follows the transactions of a SQLAlchemy session, such as ``db.session`` of Flask-SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from flask import has_app_context

from stigg_guard.consumption import Confirm
from stigg_guard.errors import MissingExtra

try:
    from sqlalchemy import TextClause, event
except ModuleNotFoundError as error:
    raise MissingExtra("sqlalchemy", "stigg_guard.flask.sqlalchemy") from error

from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction, scoped_session

End: TypeAlias = Callable[[bool], None]

_UNIT = "stigg_guard.unit_of_work"


def follow(session: scoped_session[Any]) -> Confirm:
    """How usage waits for the transaction of the request's session: ``StiggGuard(confirm=follow(db.session))``.

    Outside of a transaction, and so also after a commit in the view, successful work is certain at once. Within one it
    is certain when that is committed; it is given back when the transaction, or the savepoint that it happened in, is
    rolled back or closed. A transaction that wrote nothing has nothing to undo, and its end is a success. Writes are
    what the session flushed or executed, but for SELECT; those on a bare connection are not seen.
    """
    event.listen(session, "do_orm_execute", _executed)
    event.listen(session, "after_commit", _committed)
    event.listen(session, "after_transaction_end", _ended)

    def confirm(end: End) -> None:
        current = session() if has_app_context() and session.registry.has() else None
        transaction = current and (current.get_nested_transaction() or current.get_transaction())
        if current is None or transaction is None:
            end(True)
            return
        unit = _unit(current)
        unit.wrote = unit.wrote or bool(current.new or current.dirty or current.deleted)
        unit.waiting.setdefault(transaction, []).append(end)

    return confirm


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
            end(committed or not self.wrote)

    def __del__(self) -> None:
        """The session was dropped with its transaction open."""
        for waiting in self.waiting.values():
            for end in waiting:
                end(False)


def _unit(session: Session) -> _UnitOfWork:
    unit: _UnitOfWork = session.info.setdefault(_UNIT, _UnitOfWork())
    return unit


def _executed(state: ORMExecuteState) -> None:
    if not (state.is_select or _is_select_text(state.statement)):
        _unit(state.session).wrote = True


def _is_select_text(statement: object) -> bool:
    return isinstance(statement, TextClause) and statement.text.lstrip().lower().startswith("select")


def _committed(session: Session) -> None:
    _unit(session).committed = session.get_nested_transaction() or session.get_transaction()


def _ended(session: Session, transaction: SessionTransaction) -> None:
    unit = _unit(session)
    if transaction.parent is None:
        del session.info[_UNIT]
    elif not transaction.nested:  # a part of the session's own: of a flush, or of a bulk operation, which has no event
        unit.wrote = True
    unit.leave(transaction)
