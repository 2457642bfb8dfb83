"""A transactional outbox in the site's own database: usage commits and rolls back with the data that it pays for."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from django.apps import apps
from django.db import connections

from stigg_guard.clock import Clock
from stigg_guard.django.ledger import holding, reporting, usages
from stigg_guard.django.ledger.address import address_of
from stigg_guard.django.ledger.database import Database
from stigg_guard.django.ledger.rows import text_of
from stigg_guard.django.ledger.settling import SettlingLedger
from stigg_guard.django.ledger.step import Step
from stigg_guard.errors import ConfigError
from stigg_guard.ledger import (
    Acknowledged,
    Batch,
    Claim,
    Entry,
    Hold,
    LimitExceeded,
    Once,
    Row,
    State,
    Ticket,
    UsageKey,
)
from stigg_guard.ledger.entries import held_claims

T = TypeVar("T")


def django_ledger_from_url(url: str, clock: Clock, *, settle_grace: float = 0.0) -> DjangoLedger:
    """The ledger at ``django://alias``, an alias of ``settings.DATABASES``. Connects to nothing before the first use.

    Raises:
        ConfigError: there is no such alias, it is no database for a ledger, or the ledger's app is not installed.
    """
    alias, via = address_of(url)
    for name in (alias, alias if via is None else via):
        if name not in connections:
            known = list(connections)
            raise ConfigError(f"LEDGER: there is no {name!r} in DATABASES; write django:// and one of {known}")
    if not apps.is_installed("stigg_guard.django.ledger"):
        raise ConfigError(
            f"LEDGER: {url} needs tables: put 'stigg_guard.django.ledger' into INSTALLED_APPS and run manage.py migrate"
        )
    return DjangoLedger(alias, clock, settle_grace=settle_grace, via=via)


class DjangoLedger(SettlingLedger):
    """A ledger in the database of an alias, exact among all processes that use it.

    Holds and reports are kept by transactions of the ledger's own. But within an atomic block of the user on this
    alias, :meth:`commit` and :meth:`record` are part of it: their usage is there when the block is committed, and never
    was when it is rolled back, be it by a savepoint; the hold is released then. What such a block cannot take though it
    goes on is written after its commit.

    On PostgreSQL a request that has used its connection waits with it for one of the ledger's own. Where a pooler has
    no more connections than there are requests, all would wait for each other: each step ends after ``STEP_SECONDS``.
    Give the pooler twice as many, or name in ``via`` an alias that leads to the same database past it. Set
    ``CONN_MAX_AGE`` of the alias of the ledger's own connections, or each step connects anew. Times are the server's.

    On SQLite, where a step waits for others as long as the alias's ``timeout`` says, give the alias ``"OPTIONS":
    {"transaction_mode": "IMMEDIATE"}`` (Django 5.1) if it has ``ATOMIC_REQUESTS``: a transaction that turns from
    reading to writing after another one wrote is refused at once. Times are the host's.

    Raises:
        ConfigError: the alias is neither PostgreSQL nor SQLite. On first use, when ``via`` leads to other tables.
    """

    def __init__(self, alias: str, clock: Clock, *, settle_grace: float = 0.0, via: str | None = None) -> None:
        super().__init__(Database(alias, clock, via=via))
        self._grace = _microseconds(settle_grace)

    def ticket(self, customer_id: str) -> Ticket:
        return self._database.step(usages.next_ticket)

    def hold(self, claims: Sequence[Claim], ttl: float, once: Once | None = None) -> Hold | LimitExceeded:
        taken = self._take(claims, _microseconds(ttl), once)
        users = self._database.users_transaction()
        if users is not None and isinstance(taken, Hold):
            self._follow(users, taken)
        return taken

    def renew(self, holds: Sequence[Hold], ttl: float) -> None:
        lasting = [*holds, *self._lasting_on()]
        if lasting:
            self._database.step(partial(holding.renew, holds=lasting, lasts=_microseconds(ttl)))

    def take_batch(self, size: int, lease: float) -> Batch | None:
        if self._database.sees_uncommitted():
            return None
        return self._alone(partial(reporting.take_batch, size=size, lasts=_microseconds(lease)))

    def acknowledge(self, answers: Sequence[Acknowledged]) -> None:
        self._alone(partial(reporting.acknowledge, answers=answers))

    def put_back(self, reports: Sequence[Entry], seconds: float = 0.0, reason: str = "") -> None:
        self._alone(partial(reporting.put_back, reports=reports, lasts=_microseconds(seconds), reason=reason))

    def postpone(self, batch: Batch, seconds: float) -> None:
        self._alone(partial(reporting.postpone, batch=batch, lasts=_microseconds(seconds)))

    def split(self, batch: Batch) -> None:
        self._alone(partial(reporting.split, batch=batch))

    def doubt(self, reports: Sequence[Entry], seconds: float | None, reason: str) -> None:
        lasts = None if seconds is None else _microseconds(seconds)
        self._alone(partial(reporting.doubt, reports=reports, lasts=lasts, reason=reason))

    def take_uncertain(self, size: int, lease: float) -> Sequence[Entry]:
        return self._alone(partial(reporting.take_uncertain, size=size, lasts=_microseconds(lease)))

    def bury(self, report: Entry, reason: str) -> None:
        self._alone(partial(reporting.bury, report=report, reason=reason))

    def known(self, key: UsageKey) -> Row | None:
        return self._database.step(partial(usages.known, key=text_of(key)))

    def outstanding(self, key: UsageKey) -> float:
        return self._database.step(partial(holding.outstanding, key=key))

    def entries(self, states: Sequence[State], limit: int) -> Sequence[Entry]:
        return self._alone(partial(reporting.entries, states=states, limit=limit))

    def retry(self, ids: Sequence[str]) -> int:
        return self._alone(partial(reporting.retry, ids=ids))

    def discard(self, ids: Sequence[str]) -> int:
        return self._alone(partial(reporting.discard, ids=ids))

    def counts(self) -> Mapping[str, int]:
        return self._alone(reporting.counts)

    def close(self) -> None:
        self._database.close()

    def _alone(self, work: Callable[[Step], T]) -> T:
        return self._database.step(work, alone=True)

    def _take(self, claims: Sequence[Claim], lasts: int, once: Once | None) -> Hold | LimitExceeded:
        """Takes the units in a step that has the limits of all keys to itself. Rows that are missing are made in a step
        before, so that nobody waits for a new row while he has a lock."""
        hold = Hold(secrets.token_hex(8), held_claims(claims), once)
        keys = {text_of(claim.key) for claim in claims}

        def take(step: Step) -> Hold | LimitExceeded | None:
            locked = usages.lock(step, keys)
            return (
                holding.take(step, locked, hold, claims, lasts, self._grace) if len(locked.rows) == len(keys) else None
            )

        while (taken := self._database.step(take)) is None:
            self._database.step(partial(usages.make, keys=keys))
        return taken


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
