"""Settles holds when work ends: in the user's transaction, if he has one open, or else in one of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple
from weakref import WeakValueDictionary

from django.db import InternalError
from django.db.backends.base.base import BaseDatabaseWrapper

from stigg_guard.amounts import quanta
from stigg_guard.django.ledger import holding, keys
from stigg_guard.django.ledger.database import Database
from stigg_guard.django.ledger.rows import text_of
from stigg_guard.django.ledger.step import Step
from stigg_guard.django.ledger.usages import standings
from stigg_guard.django.transactions import follow_transaction
from stigg_guard.errors import ClientClosed, LedgerUnavailable
from stigg_guard.ledger import Hold, Period, Use
from stigg_guard.ledger.accounting import UNTOLD, Pending, is_counted, stamped
from stigg_guard.ledger.entries import event_text, instant_text, period_text
from stigg_guard.runtime.log import logger

UNDONE_REMEMBERED = 1000
COMMITS_REMEMBERED_SECONDS = 3600.0  # far less than PostgreSQL does
_RECORD = """
INSERT INTO stigg_guard_ledger_entries (
    key, state, amount, is_set, used_at, first_at, period, event, dimensions, fresh,
    present, until, lasts, reason, attempts, ticket, before
) VALUES %(rows)s RETURNING txid_current()
"""


class SettlingLedger:
    """The part of a ledger in a database that settles holds, and records what was used."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._followed: WeakValueDictionary[str, _Followed] = WeakValueDictionary()  # by hold
        self._undone: OrderedDict[str, None] = OrderedDict()  # holds of transactions that were rolled back
        self.committed: Callable[[], None] = lambda: None
        """Called after the commit of a user's transaction with usage in it: there is something to send."""

    def commit(self, hold: Hold, uses: Sequence[Use], *, repeated: bool = False) -> Sequence[float]:
        if not repeated:
            self._undone.pop(hold.id, None)
        elif (followed := self._followed.get(hold.id)) is not None:
            followed.repeat()
        if hold.id in self._undone:  # though the server, which lost a connection, may not have rolled back yet
            return self._usages(uses)
        return self._settle(hold, uses, repeated=repeated)

    def record(self, use: Use) -> float:
        return self._settle(None, [use])[0]

    def release(self, hold: Hold) -> None:
        if not self._database.put_off(partial(self._give_back, hold)):
            self._database.step(partial(holding.release, hold=hold))
            self._leave(hold)

    def _follow(self, users: BaseDatabaseWrapper, hold: Hold | None, *, settles: bool = False) -> _Followed:
        """Follows the transaction that is open, be it that an exception from outside tears what is to end in it."""
        followed = _Followed(self, hold, settles=settles)
        follow_transaction(users, followed.end)
        if hold is not None:
            self._leave(hold)
            self._followed[hold.id] = followed
        return followed

    def _leave(self, hold: Hold) -> None:
        """The hold has ended, or another one follows its transaction."""
        followed = self._followed.pop(hold.id, None)
        if followed is not None:
            followed.hold = None

    def _settle(self, hold: Hold | None, uses: Sequence[Use], *, repeated: bool = False) -> list[float]:
        """Writes the uses in place of the hold; the usage of each key with them."""
        users = self._database.users_transaction()
        if users is None:
            return self._settle_apart(hold, uses, [], repeated=repeated)
        followed = self._follow(users, hold, settles=True)
        if hold is not None:
            followed.due = partial(self._settle_apart, hold, uses, [], repeated=True)
        try:
            if self._database.takes_nothing(users):
                return self._give_up(followed, uses)
            return self._settle_within(followed, uses, repeated)
        except LedgerUnavailable as error:
            error.repeat, error.repeatable = followed.repeat, COMMITS_REMEMBERED_SECONDS
            raise

    def _settle_within(self, followed: _Followed, uses: Sequence[Use], repeated: bool) -> list[float]:
        """As :meth:`_settle`, as a part of the user's transaction."""
        hold = followed.hold
        write = partial(_write, hold=hold, uses=uses, repeated=repeated, sees_all=False)
        try:
            written = self._database.step(write, with_data=True)
        except LedgerUnavailable as error:
            if isinstance(error.__cause__, InternalError):  # the server has given the transaction up
                return self._give_up(followed, uses)
            followed.due = partial(self._settle_unless_done, hold, uses, [])
            raise
        followed.due = None if written.is_ended or hold is None else partial(self._end_afterwards, hold)
        followed.lasts_on = followed.due is not None
        return written.usages

    def _lasting_on(self) -> list[Hold]:
        """The holds of work that has ended, in transactions that go on and did not see them."""
        return [one.hold for one in list(self._followed.values()) if one.hold is not None and one.lasts_on]

    def _give_up(self, followed: _Followed, uses: Sequence[Use]) -> list[float]:
        """The transaction that the uses belong to will be rolled back, and takes nothing any more."""
        followed.due = None
        if followed.hold is not None:
            self.release(followed.hold)
        return self._usages(uses)

    def _settle_apart(
        self, hold: Hold | None, uses: Sequence[Use], tried: list[int], *, repeated: bool = False
    ) -> list[float]:
        """As :meth:`_settle`, in a transaction of its own. ``tried`` are the transactions in which it may be done."""

        def write(step: Step) -> list[float]:
            written = _write(step, hold, uses, repeated=repeated, sees_all=True)
            tried.extend(written.transactions)
            return written.usages

        try:
            return self._database.step(write)
        except LedgerUnavailable as error:
            if tried:
                error.repeat = partial(self._settle_unless_done, hold, uses, tried)
                error.repeatable = COMMITS_REMEMBERED_SECONDS
            raise

    def _settle_unless_done(self, hold: Hold | None, uses: Sequence[Use], tried: list[int]) -> None:
        if not any(self._database.was_committed(transaction_id) for transaction_id in tried):
            self._settle_apart(hold, uses, tried)

    def _end_afterwards(self, hold: Hold) -> None:
        """Ends a hold that a transaction above READ COMMITTED did not see, which is newer than it."""
        try:
            self._database.step(partial(_write, hold=hold, uses=(), repeated=False, sees_all=True))
        except (LedgerUnavailable, ClientClosed) as error:
            logger.warning("a hold whose units are counted cannot be ended and is left to expire: %s", error)

    def _undo(self, hold: Hold, *, gives_back: bool) -> None:
        """The transaction was rolled back: what was used in it must not be committed by whoever was interrupted."""
        self._undone[hold.id] = None
        if len(self._undone) > UNDONE_REMEMBERED:
            self._undone.popitem(last=False)
        if gives_back:
            self._give_back(hold)

    def _give_back(self, hold: Hold) -> None:
        """As :meth:`release`, where no caller can get the failure."""
        try:
            self.release(hold)
        except (LedgerUnavailable, ClientClosed) as error:
            logger.warning("a hold cannot be given back and is left to expire: %s", error)

    def _usages(self, uses: Sequence[Use]) -> list[float]:
        """The usage of each use's key, with what is on its way."""
        keys = [text_of(use.key) for use in uses]
        _, found = self._database.step(partial(standings, keys=set(keys)))
        return [found[key].usage() for key in keys]


class _Followed:
    """A hold that goes with a user's transaction: it was taken in it, or it also ``settles`` in it. ``due`` is what is
    left to do once that is committed. One that ``lasts_on`` is renewed until then."""

    def __init__(self, ledger: SettlingLedger, hold: Hold | None, *, settles: bool) -> None:
        self.hold = hold
        self.due: Callable[[], object] | None = None
        self.lasts_on = False
        self._settles = settles
        self._ledger = ledger
        self._is_over = False

    def end(self, is_committed: bool) -> None:
        """The transaction has ended, and all that is in it."""
        self.lasts_on = False
        if is_committed:
            self._try_what_is_due()
        else:
            self.due = None
            if self.hold is not None:
                self._ledger._undo(self.hold, gives_back=self._settles)
        self._is_over = True
        if is_committed and self._settles:
            self._ledger.committed()

    def repeat(self) -> None:
        """For a thread that knows nothing of the transaction: does what is due, if anything is."""
        if not self._is_over:
            raise LedgerUnavailable("the transaction that the usage belongs to has not ended yet")
        if self.due is not None:
            self.due()
            self.due = None

    def _try_what_is_due(self) -> None:
        try:
            if self.due is not None:
                self.due()
            self.due = None
        except (LedgerUnavailable, ClientClosed) as error:
            logger.warning("usage that was committed is not in the ledger yet: %s", error)


class _Written(NamedTuple):
    """What a step wrote: the usage of each key, whether the hold was seen or need not be, and in which transaction."""

    usages: list[float]
    is_ended: bool
    transactions: list[int]


def _write(step: Step, hold: Hold | None, uses: Sequence[Use], *, repeated: bool, sees_all: bool) -> _Written:
    """Writes the uses in place of the hold. One that is not there was late, if the step ``sees_all``."""
    parts = {} if hold is None else holding.end(step, hold)
    held = set() if hold is None else {text_of(claim.key) for claim in hold.claims}
    once = None if hold is None else hold.once
    mark = None if once is None else keys.mark_of(step, once)
    has_key = hold is not None and mark is not None and mark.hold == hold.id
    is_ended = bool(parts) or has_key or hold is None
    now, found = standings(step, held.union(text_of(use.key) for use in uses))
    is_open = hold is not None and hold.sole_key is not None and not is_counted(mark, now)
    if repeated and not is_ended and not is_open:
        return _Written([found[text_of(use.key)].usage() for use in uses], True, [])
    if (is_ended or sees_all) and any(key not in parts or parts[key].until <= now for key in held):
        step.run("INSERT INTO stigg_guard_ledger_late DEFAULT VALUES")
    if once is not None and (mark or is_ended or sees_all or not held) and not keys.count(step, once, now):
        return _Written([], True, [])
    usages, rows = [], []
    for use in uses:
        key = text_of(use.key)
        standing = found[key]
        present = UNTOLD if standing.row is None else standing.row.period
        period = parts[key].period if key in parts else present
        if use.amount or use.is_set:
            one = Pending(quanta(use.amount), period, stamped(period, now * 1000), use.is_set)
            standing.pending.append(one)
            rows.append(_columns(key, use, one, now, present))
        usages.append(standing.usage())
    transactions = {number for (number,) in step.run(_RECORD, rows=rows)} if rows else ()
    return _Written(usages, is_ended, [number for number in transactions if number])


def _columns(key: str, use: Use, one: Pending, now: int, present: Period) -> tuple[object, ...]:
    event, details = event_text(use.event), use.details
    told = key, "unsent", one.amount, one.is_set, instant_text(one.used_at), now, period_text(one.period)
    return *told, event, details, not event, period_text(present), 0, 0, "", 0, 0, ""
