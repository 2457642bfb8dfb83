"""The ledger in the site's own database: usage commits and rolls back with the data that it pays for."""

from __future__ import annotations

import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

from django.apps import apps
from django.db import InternalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet, TextField, Value
from django.db.models.functions import Cast, Concat
from django.db.transaction import TransactionManagementError

from stigg_guard.clock import Clock
from stigg_guard.django.ledger.database import Database
from stigg_guard.django.ledger.models import Entry, HeldUnits, LateCommit, Ticket, Usage
from stigg_guard.django.ledger.rows import entry_of, held_report_of, report_of, text_of
from stigg_guard.django.transactions import follow_transaction
from stigg_guard.errors import ClientClosed, ConfigError, LedgerUnavailable
from stigg_guard.ledger import Acknowledged, Batch, Claim, Hold, Refused, State, UsageKey, Use
from stigg_guard.ledger import Entry as Report

EVENTS_PER_USAGE, EXPIRED_HOLDS_KEPT_SECONDS = 10, 86400.0

logger = logging.getLogger("stigg_guard")

ADDED_UP_AT_ONCE = 1000
COMMITS_REMEMBERED_SECONDS = 3600.0  # far less than PostgreSQL does
_WAITS = Q(state__in=(State.DEAD.value, State.UNCERTAIN.value))
_UNDER_WAY = Q(state__in=(State.SENDING.value, State.UNCERTAIN.value))
_UNDONE = (InternalError, TransactionManagementError)  # what broken transactions say, the server's and Django's
_UNSENT = {"state": State.UNSENT.value, "batch": None, "reason": "", "attempts": 0}

# In one statement, so that a use which is committed meanwhile is seen as a hold or as an entry, and never as neither.
_COUNTED = """
SELECT (SELECT coalesce(sum(amount), 0) FROM stigg_guard_ledger_heldunits WHERE key = %(key)s AND counts),
    coalesce(sum(CASE WHEN used_at >= %(since)s AND NOT is_set AND amount > 0 THEN amount END), 0),
    coalesce(max(CASE WHEN used_at >= %(since)s AND is_set THEN amount END), 0),
    count(CASE WHEN state <> 'unsent' THEN 1 END)
FROM stigg_guard_ledger_entry WHERE key = %(key)s AND state IN ('unsent', 'sending', 'uncertain')
"""


def django_ledger_from_url(url: str, clock: Clock, *, settle_grace: float = 0.0) -> DjangoLedger:
    """The ledger at ``django://alias``, an alias of ``settings.DATABASES``. Connects to nothing before the first use.

    Raises:
        ConfigError: there is no such alias, it is no database for a ledger, or the ledger's app is not installed.
    """
    alias = url.removeprefix("django://")
    if alias not in connections:
        raise ConfigError(f"LEDGER: there is no {alias!r} in DATABASES; write django:// and one of {list(connections)}")
    if not apps.is_installed("stigg_guard.django.ledger"):
        raise ConfigError(
            f"LEDGER: {url} needs tables: put 'stigg_guard.django.ledger' into INSTALLED_APPS and run manage.py migrate"
        )
    return DjangoLedger(alias, clock, settle_grace=settle_grace)


class DjangoLedger:
    """A ledger in the database of an alias, exact among all processes that use it.

    Holds and reports are kept by transactions of the ledger's own. But within an atomic block of the user on this
    alias, :meth:`commit` and :meth:`record` are part of it: their usage is there when the block is committed, and never
    was when it is rolled back, be it by a savepoint; the hold is released then. What such a block cannot take though it
    goes on is written after its commit.

    On PostgreSQL set ``CONN_MAX_AGE``, or each step connects anew. On SQLite give the alias ``"OPTIONS":
    {"transaction_mode": "IMMEDIATE"}`` (Django 5.1) if it has ``ATOMIC_REQUESTS``: a transaction that turns from
    reading to writing after another one wrote is refused at once. Holds and leases are timed by the hosts' clocks,
    which may differ by much less than ``HOLD_TTL``.

    Raises:
        ConfigError: the alias is neither PostgreSQL nor SQLite.
    """

    def __init__(self, alias: str, clock: Clock, *, settle_grace: float = 0.0) -> None:
        self._database = Database(alias)
        self._now = clock.now
        self._grace = settle_grace
        self.committed: Callable[[], None] = lambda: None
        """Called after the commit of a user's transaction with usage in it: there is something to send."""

    def ticket(self, customer_id: str) -> int:
        with self._database.step():
            return self._next_ticket()

    def hold(self, claims: Sequence[Claim], ttl: float) -> Hold | Refused:
        with self._locked({text_of(claim.key) for claim in claims}) as usages:
            return self._take(usages, claims, ttl)

    def renew(self, holds: Sequence[Hold], ttl: float) -> None:
        with self._database.step():
            free = self._free(hold__in=[hold.id for hold in holds])
            self._held.filter(pk__in=free).update(until=self._time() + ttl, counts=True)

    def commit(self, hold: Hold, uses: Sequence[Use]) -> Sequence[float]:
        return self._settle(hold, uses)

    def release(self, hold: Hold) -> None:
        if not self._database.put_off(partial(self._give_back, hold)):
            with self._database.step():
                self._held.filter(pk__in=self._free(hold=hold.id)).delete()

    def record(self, use: Use) -> float:
        return self._settle(None, [use])[0]

    def take_batch(self, size: int, lease: float) -> Batch | None:
        if self._database.sees_uncommitted():
            return None
        now = self._time()
        with self._database.step(alone=True):
            self._held.filter(pk__in=self._free(until__lt=now - EXPIRED_HOLDS_KEPT_SECONDS)).delete()
            batch = self._due_batch(now) or self._new_batch(size)
            if batch is None:
                return None
            reports = self._entries.filter(batch=batch)
            reports.update(until=now + lease, attempts=F("attempts") + 1)
            return Batch(batch, [report_of(entry) for entry in reports.order_by("id")])

    def acknowledge(self, answers: Sequence[Acknowledged]) -> None:
        now = self._time()
        with self._locked({text_of(answer.report.key) for answer in answers}, alone=True) as usages:
            ticket = self._next_ticket()
            for answer, entry in self._forgotten(answers):
                _learn(usages[entry.key], answer, entry.period_start, ticket, now)
            self._note(usages.values())

    def put_back(self, reports: Sequence[Report]) -> None:
        with self._database.step(alone=True):
            self._of(reports).filter(_UNDER_WAY).update(**_UNSENT)

    def postpone(self, batch: Batch, seconds: float) -> None:
        with self._database.step(alone=True):
            self._entries.filter(batch=batch.id).update(until=self._time() + seconds)

    def split(self, batch: Batch) -> None:
        part = Concat("batch", Value("/"), Cast("id", TextField()), output_field=TextField())
        with self._database.step(alone=True):
            self._entries.filter(batch=batch.id).update(batch=part, until=0, attempts=0)

    def doubt(self, reports: Sequence[Report], seconds: float | None, reason: str) -> None:
        until = None if seconds is None else self._time() + seconds
        with self._database.step(alone=True):
            self._of(reports).filter(_UNDER_WAY).update(
                state=State.UNCERTAIN.value, batch=None, until=until, reason=reason
            )

    def take_uncertain(self, size: int, lease: float) -> Sequence[Report]:
        now = self._time()
        with self._database.step(alone=True):
            due = self._entries.filter(state=State.UNCERTAIN.value, until__lte=now).order_by("id")[:size]
            reports = [report_of(entry) for entry in due]
            self._of(reports).update(until=now + lease)
            return reports

    def bury(self, report: Report, reason: str) -> None:
        with self._database.step(alone=True):
            self._of([report]).update(state=State.DEAD.value, batch=None, reason=reason)

    def known_usage(self, key: UsageKey) -> float | None:
        with self._database.step():
            used: float | None = self._known.filter(pk=text_of(key)).values_list("used", flat=True).first()
        return used

    def entries(self, states: Sequence[State], limit: int) -> Sequence[Report]:
        with self._database.step():
            wanted = self._entries.filter(state__in=[state.value for state in states])
            found = [report_of(entry) for entry in wanted.order_by("used_at", "id")[:limit]]
            if State.HELD in states:
                alive = self._held.filter(until__gt=self._time()).order_by("taken_at", "id")[:limit]
                found += [held_report_of(units) for units in alive]
        return sorted(found, key=lambda report: report.used_at)[:limit]

    def retry(self, ids: Sequence[str]) -> int:
        with self._database.step(alone=True):
            return self._waiting(ids).update(**_UNSENT)

    def discard(self, ids: Sequence[str]) -> int:
        """The sidecar may have counted what is discarded: no snapshot from before now may lower the usage."""
        with self._database.step(alone=True):
            waiting = self._waiting(ids)
            usages = self._lock(set(waiting.values_list("key", flat=True)))
            self._known.filter(pk__in=usages).update(ticket=self._next_ticket(), settled_at=self._time())
            return waiting.delete()[0]

    def counts(self) -> Mapping[str, int]:
        with self._database.step():
            states = self._entries.values_list("state").annotate(Count("id")).order_by()
            return {
                **{state.value: 0 for state in State},
                **dict(states),
                "held": self._held.filter(until__gt=self._time()).count(),
                "late": self._late.count(),
            }

    def close(self) -> None:
        self._database.close()

    @property
    def _alias(self) -> str:
        return self._database.alias

    @property
    def _entries(self) -> QuerySet[Entry]:
        return QuerySet(Entry, using=self._alias)

    @property
    def _held(self) -> QuerySet[HeldUnits]:
        return QuerySet(HeldUnits, using=self._alias)

    @property
    def _known(self) -> QuerySet[Usage]:
        return QuerySet(Usage, using=self._alias)

    @property
    def _late(self) -> QuerySet[LateCommit]:
        return QuerySet(LateCommit, using=self._alias)

    def _of(self, reports: Iterable[Report]) -> QuerySet[Entry]:
        entries: QuerySet[Entry] = self._entries.filter(pk__in=[int(report.id) for report in reports])
        return entries

    def _waiting(self, ids: Iterable[str]) -> QuerySet[Entry]:
        """Those of the entries that wait for a person; what is held has an id of another kind."""
        numbers = [int(number) for number in ids if number.isdecimal()]
        entries: QuerySet[Entry] = self._entries.filter(_WAITS, pk__in=numbers)
        return entries

    def _free(self, **which: Any) -> QuerySet[HeldUnits, int]:
        """Those of the held units that no user's transaction is about to use up: nobody waits for one of those."""
        free: QuerySet[HeldUnits] = self._held.filter(**which).select_for_update(skip_locked=True)
        return free.values_list("pk", flat=True)

    @contextmanager
    def _locked(self, keys: Set[str], *, alone: bool = False) -> Iterator[dict[str, Usage]]:
        """A step that has the limits of the keys to itself. Rows that are missing are made in a step before, so that
        nobody waits for a new row while he has a lock."""
        while True:
            with self._database.step(alone=alone):
                usages = self._lock(keys)
                if len(usages) == len(keys):
                    yield usages
                    return
            with self._database.step():
                self._known.bulk_create([Usage(key=key) for key in sorted(keys)], ignore_conflicts=True)

    def _lock(self, keys: Set[str]) -> dict[str, Usage]:
        """Locks the limits of the keys that were ever asked for, all in the same order."""
        rows = self._known.filter(pk__in=keys).order_by("key").select_for_update()
        return {usage.key: usage for usage in rows}

    def _note(self, usages: Iterable[Usage]) -> None:
        self._known.bulk_update(usages, ["used", "period_start", "ticket", "settled_at"])

    def _next_ticket(self) -> int:
        tickets: QuerySet[Ticket] = QuerySet(Ticket, using=self._alias)
        (ticket,) = tickets.bulk_create([Ticket()])
        return int(ticket.pk)

    def _take(self, usages: Mapping[str, Usage], claims: Sequence[Claim], ttl: float) -> Hold | Refused:
        now = self._time()
        self._held.filter(pk__in=self._free(key__in=usages, until__lte=now, counts=True)).update(counts=False)
        taken: defaultdict[str, float] = defaultdict(float)
        learned: list[Usage] = []
        for claim in claims:
            key = text_of(claim.key)
            counted = self._counted(key, claim.period_start)
            if _is_believed(claim, usages[key], self._grace, is_under_way=counted.under_way > 0):
                learned.append(_noted(claim, usages[key]))
            total = counted.with_usage(usages[key].used) + counted.held + taken[key]
            if claim.limit is not None and total + claim.amount > claim.limit:
                return Refused(claim, total)
            taken[key] += claim.amount
        hold = Hold(secrets.token_hex(8), tuple(claims))
        self._note(learned)
        self._held.bulk_create(
            [HeldUnits(hold=hold.id, key=key, amount=n, taken_at=now, until=now + ttl) for key, n in taken.items()]
        )
        return hold

    def _settle(self, hold: Hold | None, uses: Sequence[Use]) -> list[float]:
        """Writes the uses in place of the hold; the usage of each key with them."""
        users = self._database.users_transaction()
        if users is None:
            return self._settle_apart(hold, uses, [])
        try:
            with self._database.step(with_data=True):
                is_ended = self._is_ended(hold)
                usages = self._write(uses)
        except LedgerUnavailable as error:
            if isinstance(error.__cause__, _UNDONE):
                with suppress(LedgerUnavailable):
                    return self._give_up(hold, uses)
            self._settle_afterwards(users, hold, uses, error)
            raise
        follow_transaction(users, partial(self._follow, hold, is_ended))
        return usages

    def _follow(self, hold: Hold | None, is_ended: bool, is_committed: bool) -> None:
        """A transaction with usage in it has ended, and the hold with it if it ``is_ended``."""
        if not is_committed:
            self._give_back(hold)
            return
        if hold is not None and not is_ended:
            self._end_afterwards(hold)
        self.committed()

    def _end_afterwards(self, hold: Hold) -> None:
        try:
            with self._database.step():
                self._end(hold)
        except (LedgerUnavailable, ClientClosed) as error:
            logger.warning("a hold whose units are counted cannot be ended and is left to expire: %s", error)

    def _give_up(self, hold: Hold | None, uses: Sequence[Use]) -> list[float]:
        """The transaction that the uses belong to will be rolled back, and takes nothing any more."""
        if hold is not None:
            self.release(hold)
        with self._database.step():
            return self._usages_with(uses)

    def _give_back(self, hold: Hold | None) -> None:
        """As :meth:`release`, where nobody can be told of a failure."""
        try:
            if hold is not None:
                self.release(hold)
        except (LedgerUnavailable, ClientClosed) as error:
            logger.warning("a hold cannot be given back and is left to expire: %s", error)

    def _settle_afterwards(
        self, users: BaseDatabaseWrapper, hold: Hold | None, uses: Sequence[Use], error: LedgerUnavailable
    ) -> None:
        """Settles when the transaction that could not take the uses is committed after all, and never if it is not."""
        postponed = _Postponed(partial(self._settle_unless_done, hold, uses, []))

        def follow(is_committed: bool) -> None:
            postponed.decide(is_committed)
            if is_committed:
                self.committed()
            else:
                self._give_back(hold)

        follow_transaction(users, follow)
        error.repeat, error.repeatable = postponed.repeat, COMMITS_REMEMBERED_SECONDS

    def _settle_apart(self, hold: Hold | None, uses: Sequence[Use], tried: list[int]) -> list[float]:
        """As :meth:`_settle`, in a transaction of its own. ``tried`` are the transactions in which it may be done."""
        try:
            with self._database.step():
                if hold is not None:
                    self._end(hold)
                usages = self._write(uses)
                tried += self._database.transaction_ids()
        except LedgerUnavailable as error:
            if tried:
                error.repeat = lambda: self._settle_unless_done(hold, uses, tried)
                error.repeatable = COMMITS_REMEMBERED_SECONDS
            raise
        return usages

    def _settle_unless_done(self, hold: Hold | None, uses: Sequence[Use], tried: list[int]) -> None:
        if not any(self._database.was_committed(transaction_id) for transaction_id in tried):
            self._settle_apart(hold, uses, tried)

    def _write(self, uses: Sequence[Use]) -> list[float]:
        now = self._time()
        self._entries.bulk_create([entry_of(use, now) for use in uses if use.amount or use.is_set])
        return self._usages_with(uses)

    def _end(self, hold: Hold) -> None:
        """Ends the hold, late if it is not there any more."""
        if not self._is_ended(hold):
            self._late.bulk_create([LateCommit()])

    def _is_ended(self, hold: Hold | None) -> bool:
        """Ends the hold, unless nothing is to be seen of it: it is newer than a transaction above READ COMMITTED."""
        if hold is None:
            return True
        rows = self._held.filter(hold=hold.id)
        until = dict(rows.values_list("key", "until"))
        if not until:
            return not hold.claims
        rows.delete()
        if min(until.get(text_of(claim.key), 0.0) for claim in hold.claims) <= self._time():
            self._late.bulk_create([LateCommit()])
        return True

    def _usages_with(self, uses: Sequence[Use]) -> list[float]:
        """The usage of each use's key, with what is on its way."""
        rows = {usage.key: usage for usage in self._known.filter(pk__in=[text_of(use.key) for use in uses])}
        return [self._usage_with(use, rows.get(text_of(use.key))) for use in uses]

    def _usage_with(self, use: Use, row: Usage | None) -> float:
        used, period_start = (row.used, row.period_start) if row is not None else (None, use.period_start)
        if period_start < use.period_start:
            used, period_start = 0.0, use.period_start
        return self._counted(text_of(use.key), period_start).with_usage(used)

    def _counted(self, key: str, since: float) -> _Counted:
        with connections[self._alias].cursor() as cursor:
            cursor.execute(_COUNTED, {"key": key, "since": since})
            return _Counted(*cursor.fetchone())

    def _due_batch(self, now: float) -> str | None:
        """The batch whose lease ended, unless another report of one of its keys is under way."""
        others = self._entries.filter(key=OuterRef("key"), state=State.SENDING.value, until__gt=now, event=None)
        due = self._entries.filter(~(Q(event=None) & Exists(others)), state=State.SENDING.value, until__lte=now)
        batch: str | None = due.order_by("id").values_list("batch", flat=True).first()
        return batch

    def _new_batch(self, size: int) -> str | None:
        """Marks what is to be sent next: the oldest usages, one of each key, or else the oldest events."""
        entries = self._next_usages(size) or self._next_events(size)
        if not entries:
            return None
        batch = secrets.token_hex(16)
        self._entries.filter(pk__in=[entry.pk for entry in entries]).update(state=State.SENDING.value, batch=batch)
        usages = self._lock({entry.key for entry in entries})
        ticket = self._next_ticket()
        self._known.filter(pk__in=usages).update(ticket=ticket)
        QuerySet(Ticket, using=self._alias).filter(pk__lt=ticket).delete()
        return batch

    def _next_events(self, size: int) -> Sequence[Entry]:
        events = self._entries.filter(state=State.UNSENT.value).exclude(event=None)
        return list(events.order_by("id")[: size * EVENTS_PER_USAGE])

    def _next_usages(self, size: int) -> Sequence[Entry]:
        """The oldest unsent usage of each key, with those added to it that follow and are of its kind."""
        blocking = Q(state=State.SENDING.value) | Q(state=State.UNCERTAIN.value, until__isnull=False)
        others = self._entries.filter(blocking, key=OuterRef("key"), event=None)
        unsent = self._entries.filter(~Exists(others), state=State.UNSENT.value, event=None).order_by("id")
        runs: dict[str, list[Entry]] = {}
        ended: set[str] = set()
        for entry in unsent[:ADDED_UP_AT_ONCE]:
            run = runs.setdefault(entry.key, [])
            if not run or (entry.key not in ended and _may_add_up(run[0], entry)):
                run.append(entry)
            else:
                ended.add(entry.key)
        taken = list(runs.values())[:size]
        for first, *rest in taken:
            if rest:
                self._add(first, rest)
        return [run[0] for run in taken]

    def _add(self, first: Entry, rest: Sequence[Entry]) -> None:
        first.amount += sum(entry.amount for entry in rest)
        first.used_at = max(entry.used_at for entry in rest)
        self._entries.bulk_update([first], ["amount", "used_at"])
        self._entries.filter(pk__in=[entry.pk for entry in rest]).delete()

    def _forgotten(self, answers: Sequence[Acknowledged]) -> list[tuple[Acknowledged, Entry]]:
        """Forgets the reports, and tells those that were still there. What was added to one since it was sent, by
        somebody who put it back, stays."""
        there = self._of(answer.report for answer in answers).in_bulk()
        found = [(answer, there[number]) for answer in answers if (number := int(answer.report.id)) in there]
        for answer, entry in found:
            entry.amount -= answer.report.amount
        self._entries.bulk_update([entry for _, entry in found if entry.amount], ["amount"])
        self._entries.filter(pk__in=[entry.pk for _, entry in found if not entry.amount]).delete()
        return found

    def _time(self) -> float:
        return self._now().timestamp()


class _Counted(NamedTuple):
    """What counts against a limit beside the known usage, and how many reports are under way."""

    held: float
    more: float
    total: float
    under_way: int

    def with_usage(self, used: float | None) -> float:
        return max(used or 0.0, self.total) + self.more


class _Postponed:
    """A settlement that waits for the end of a user's transaction; ``settle`` does nothing where it is done."""

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle
        self._is_due: bool | None = None  # nobody knows while the transaction is open

    def decide(self, is_committed: bool) -> None:
        """The transaction has ended."""
        is_due = is_committed
        if is_committed:
            try:
                self._settle()
                is_due = False
            except LedgerUnavailable as error:
                logger.warning("usage that was committed is not in the ledger yet: %s", error)
        self._is_due = is_due

    def repeat(self) -> None:
        """For a thread that knows nothing of the transaction."""
        if self._is_due is None:
            raise LedgerUnavailable("the transaction that the usage belongs to has not ended yet")
        if self._is_due:
            self._settle()


def _is_believed(claim: Claim, usage: Usage, grace: float, *, is_under_way: bool) -> bool:
    """Whether the claim's snapshot is newer than what is known of the usage."""
    if usage.used is None or claim.period_start > usage.period_start:
        return True
    if claim.period_start < usage.period_start or claim.ticket <= usage.ticket or is_under_way:
        return False
    return claim.known_usage >= usage.used or claim.fetched_at >= usage.settled_at + grace


def _noted(claim: Claim, usage: Usage) -> Usage:
    usage.used = claim.known_usage
    usage.period_start = claim.period_start
    usage.ticket = max(usage.ticket, claim.ticket)
    return usage


def _learn(usage: Usage, answer: Acknowledged, period_start: float, ticket: int, now: float) -> None:
    """Notes what the answer to a report says of the usage. ``period_start`` is that of the report."""
    report = answer.report
    if usage.used is None and answer.current_usage is None and not report.is_set:
        return  # nothing is known of the usage before it; the next snapshot will tell
    if usage.period_start < period_start:
        usage.used, usage.period_start = 0.0, period_start
    if answer.current_usage is not None:
        if not 0 < answer.period_start < usage.period_start:
            usage.used = answer.current_usage
    elif report.used_at >= usage.period_start:
        usage.used = report.amount if report.is_set else (usage.used or 0.0) + report.amount
    usage.period_start = max(usage.period_start, answer.period_start)
    usage.ticket = ticket
    usage.settled_at = now


def _may_add_up(first: Entry, other: Entry) -> bool:
    if first.is_set or other.is_set or first.period_start != other.period_start:
        return False
    return (first.amount > 0) == (other.amount > 0)
