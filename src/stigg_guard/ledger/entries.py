"""The protocol of the ledger, an outbox: its entries, its steps, and how its values are written as text.

An entry is *held* while the work runs, *unsent* once it succeeded, *sending* while a report is under way, *uncertain*
when nobody knows whether a report was counted, and gone once it was counted. A report that the sidecar rejects is
*dead*, a dead letter, and stays visible. What is held, unsent, being sent or uncertain counts against the limit,
together with the last known usage of the key. ``accounting`` has the rules of that, one for all homes.

Users see amounts as floats; the homes store and add up whole quanta.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeAlias

from stigg_guard.amounts import quanta, units
from stigg_guard.errors import KeyReused, KeyTaken, UsageInProgress, UsageRepeated
from stigg_guard.ledger.accounting import KEYS_KEPT, UNTOLD, Before, KeyState, News, Pending, Period, Row

Dimensions: TypeAlias = Mapping[str, "str | float | bool"]
NO_DIMENSIONS: Dimensions = {}
_TAKEN: Mapping[KeyState, type[KeyTaken]] = {
    KeyState.HELD: UsageInProgress,
    KeyState.COUNTED: UsageRepeated,
    KeyState.BOUND: KeyReused,
}


class State(str, Enum):
    """Where an entry is on its way from a hold to the sidecar's books."""

    HELD = "held"
    UNSENT = "unsent"
    SENDING = "sending"
    UNCERTAIN = "uncertain"
    DEAD = "dead"


class UsageKey(NamedTuple):
    """Whose usage of what: ``resource_id`` is empty for the customer itself."""

    customer_id: str
    resource_id: str
    feature_id: str

    def __str__(self) -> str:
        owner = f"{self.customer_id}/{self.resource_id}" if self.resource_id else self.customer_id
        return f"{owner} {self.feature_id}"


class Ticket(NamedTuple):
    """The sequence number of a snapshot or a report, and when it was drawn: microseconds on the ledger's clock."""

    number: int
    at: int


class CreditRate(NamedTuple):
    """What a unit of a feature costs: ``rate`` units of the currency."""

    currency: str
    rate: float


class Claim(NamedTuple):
    """A wish to use ``amount`` units, with what the asker's snapshot says of the key, and the ``rate`` that a wallet
    pays at where one does.

    That of a wallet says which keys the wallet ``pays_for``, and how much of its currency a unit of each costs. What is
    held and on its way of those counts against its limit, and it is not held itself.
    """

    key: UsageKey
    amount: float
    news: News
    pays_for: tuple[tuple[UsageKey, float], ...] = ()
    rate: CreditRate | None = None


class Once(NamedTuple):
    """By what a use counts once: the ``digest`` of whose use of what it is and of the key that the caller gave it.
    ``binding`` is any text that is the same for the same use. Once counted, it is ``kept`` for so many microseconds."""

    customer_id: str
    digest: str
    binding: str = ""
    kept: int = KEYS_KEPT


class Hold(NamedTuple):
    """A reservation: units taken off the limits of one or more keys until it is committed, released or expires. With
    ``once`` it holds the caller's key as well, or nothing else."""

    id: str
    claims: tuple[Claim, ...]
    once: Once | None = None

    @property
    def sole_key(self) -> Once | None:
        """The caller's key where it holds no units: then its use counts unless another one with that key was counted,
        and it need not hold the key."""
        return None if self.claims else self.once


def held_claims(claims: Iterable[Claim]) -> tuple[Claim, ...]:
    """Those of the claims that are held: what a wallet pays is held by the claims that it pays for."""
    return tuple(claim for claim in claims if not claim.pays_for)


def require_free(state: KeyState) -> None:
    """Raises the error of a caller's key that is not free."""
    if state is not KeyState.FREE:
        raise _TAKEN[state]


@dataclass(frozen=True, slots=True)
class LimitExceeded:
    """The answer to a claim beyond its limit: ``counted`` of ``limit`` units are used, held or on their way.

    With ``is_perhaps_free`` a report under way may count twice among them, until it is acknowledged.
    """

    claim: Claim
    counted: float
    limit: float
    is_perhaps_free: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """The raw event that reports a use instead of a usage report. Key and time are made once, so it may be resent."""

    name: str
    idempotency_key: str
    dimensions: Dimensions


class Use(NamedTuple):
    """``amount`` units that were used, fewer given back when negative; the new total with ``is_set``.

    ``dimensions`` go with the usage report; those of an event are the event's own. ``rate`` is that of the claim.
    """

    key: UsageKey
    amount: float
    is_set: bool = False
    event: Event | None = None
    dimensions: Dimensions = NO_DIMENSIONS
    rate: CreditRate | None = None

    @property
    def details(self) -> str:
        """What is written of it beside its amount."""
        return details_text(self.dimensions, self.rate)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger.

    ``used_at`` is the time of the use as it is reported, in nanoseconds since the epoch; ``first_at`` that of the first
    use in it, in microseconds on the ledger's clock. ``period`` is the usage period in which its units were held.
    ``reason`` says why it is uncertain, dead or waits. ``attempts`` is how often it was sent since it was last known
    not to be counted: from the second on, nobody knows whether the one before was. ``ticket`` is that of the first
    sending since it was last known not to be counted, and ``before`` what was known of the usage then. ``rate`` is what
    its units were held at, where a wallet pays for them.
    """

    id: str
    state: State
    key: UsageKey
    amount: float
    is_set: bool
    used_at: int
    event: Event | None = None
    reason: str = ""
    attempts: int = 0
    dimensions: Dimensions = field(default_factory=dict)
    period: Period = UNTOLD
    first_at: int = 0
    ticket: int = 0
    before: Before | None = None
    rate: CreditRate | None = None

    @property
    def pending(self) -> Pending:
        """The entry as the accounting sees it."""
        details = details_text(self.dimensions, self.rate)
        return Pending(quanta(self.amount), self.period, self.used_at, self.is_set, self.ticket, details)


@dataclass(frozen=True, slots=True)
class Batch:
    """Reports that are sent together: usages of different keys, or events. The same ``id`` means the same reports."""

    id: str
    reports: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The sidecar's answer to one report. ``current_usage`` is None when it did not say. ``paid`` is the key of the
    wallet that paid for it, and how much."""

    report: Entry
    current_usage: float | None
    period: Period = UNTOLD
    paid: tuple[UsageKey, float] | None = None


class Ledger(Protocol):
    """An outbox of holds and unsent usage. Every method is one step: it happens wholly or not at all.

    Each may raise ``LedgerUnavailable`` when the step could not be made and nothing happened, and ``ClientClosed``
    after ``close``. Seconds are floats; each step has a deadline of its own.
    """

    def ticket(self, customer_id: str) -> Ticket:
        """Draws a sequence number, higher than all that this customer had before. Its time is the ledger's clock's."""
        ...

    def hold(self, claims: Sequence[Claim], ttl: float, once: Once | None = None) -> Hold | LimitExceeded:
        """Reserves the claimed units for ``ttl`` seconds, if used + held + on their way + amount <= limit for each key.

        All of them, or none: the first claim that does not fit is returned. What the claims' news tell is noted either
        way. ``once`` is held with them, if no other use has it; it may come without claims.

        Raises:
            UsageInProgress, UsageRepeated, KeyReused: a use with the same ``once`` is held, was counted a short time
                ago, or had another binding. Nothing is noted.
        """
        ...

    def renew(self, holds: Sequence[Hold], ttl: float) -> None:
        """Lets the holds last ``ttl`` seconds from now, those that expired and were not ended too. What another use
        holds by now stays with that."""
        ...

    def commit(self, hold: Hold, uses: Sequence[Use], *, repeated: bool = False) -> Sequence[float]:
        """Turns the hold into unsent usage; the usage of each key with it.

        A hold that expired is recorded all the same, and counted as late; but if another use with the same ``once`` was
        counted meanwhile, the hold is ended, and nothing is recorded or told. Uses of 0 units leave nothing to report.
        ``repeated`` says that this commit may have been made before: then it is made only if the hold is still there,
        or if no use with its ``sole_key`` was counted.
        """
        ...

    def release(self, hold: Hold) -> None:
        """Releases the hold: gives the units back."""
        ...

    def record(self, use: Use) -> float:
        """Takes usage that happened without a hold; the usage of the key with it."""
        ...

    def take_batch(self, size: int, lease: float) -> Batch | None:
        """Leases the next reports to send to this caller for ``lease`` seconds; None when there is nothing to send.

        Usages come one report of each key, the oldest first, and no key has two reports under way. Events come in
        batches of their own. A batch whose lease ended comes again, unchanged. Unsent usage of one key is added up
        where ``accounting.may_add_up`` allows it. A time of use that lies ahead of the clock is corrected.
        """
        ...

    def acknowledge(self, answers: Sequence[Acknowledged]) -> None:
        """Forgets the reports that the sidecar has counted, and notes the usage that it told."""
        ...

    def put_back(self, reports: Sequence[Entry], seconds: float = 0.0, reason: str = "") -> None:
        """Makes the reports unsent again: they were certainly not counted. Their attempts begin anew, after this
        time."""
        ...

    def postpone(self, batch: Batch, seconds: float) -> None:
        """Lets the batch come again, unchanged, after this time."""
        ...

    def split(self, batch: Batch) -> None:
        """Makes each report of the batch a batch of its own: certainly none was counted. Their attempts begin anew."""
        ...

    def doubt(self, reports: Sequence[Entry], seconds: float | None, reason: str) -> None:
        """Puts the reports in doubt. After ``seconds`` they are due for a decision; with None only for a person.

        Until they are due or decided, no other report of the key is sent; with None others go on.
        """
        ...

    def take_uncertain(self, size: int, lease: float) -> Sequence[Entry]:
        """Leases the reports in doubt that are due for a decision to this caller for ``lease`` seconds."""
        ...

    def bury(self, report: Entry, reason: str) -> None:
        """Makes a report that the sidecar rejects a dead letter: it is kept, and no longer counts."""
        ...

    def known(self, key: UsageKey) -> Row | None:
        """Returns what the ledger believes of a key; None if it never had the key."""
        ...

    def outstanding(self, key: UsageKey) -> float:
        """Sums the units of a key that are held, unsent, being sent or uncertain, whatever their period."""
        ...

    def entries(self, states: Sequence[State], limit: int) -> Sequence[Entry]:
        """Lists entries in these states, those whose first use is oldest first."""
        ...

    def retry(self, ids: Sequence[str]) -> int:
        """Makes dead letters and uncertain entries unsent again; how many there were."""
        ...

    def discard(self, ids: Sequence[str]) -> int:
        """Deletes dead letters and uncertain entries for good; how many there were."""
        ...

    def counts(self) -> Mapping[str, int]:
        """How many entries are in each state; under ``waiting`` how many uncertain ones wait for a person, and under
        ``late`` how many holds were committed after they expired."""
        ...

    def close(self) -> None: ...


_WIDTH = 22
_OFFSET: int = 10 ** (_WIDTH - 1)


def instant_text(instant: int) -> str:
    """Nanoseconds since the epoch as text of one width, in which what is earlier comes first."""
    return f"{_OFFSET + instant:0{_WIDTH}d}"


def instant_of(text: str) -> int:
    return int(text) - _OFFSET


@lru_cache(maxsize=1024)
def period_text(period: Period) -> str:
    """A period as text: its start, a slash, its end; nothing for an end that was not told."""
    return "/".join("" if end is None else instant_text(end) for end in period)


@lru_cache(maxsize=1024)
def period_of(text: str) -> Period:
    start, _, end = text.partition("/")
    return Period(instant_of(start) if start else None, instant_of(end) if end else None)


def before_text(before: Before | None) -> str:
    """What was known before a report: usage, when the row moved, period; empty for nothing."""
    if before is None:
        return ""
    moved = "" if before.moved_at is None else before.moved_at
    return f"{before.used} {moved} {period_text(before.period)}"


def before_of(text: str) -> Before | None:
    if not text:
        return None
    used, moved, period = text.split(" ")
    return Before(period_of(period), int(used), int(moved) if moved else None)


def event_text(event: Event | None) -> str:
    """An event as JSON; empty for none."""
    if event is None:
        return ""
    fields = {"name": event.name, "idempotency_key": event.idempotency_key, "dimensions": dict(event.dimensions)}
    return json.dumps(fields)


def event_of(text: str | None) -> Event | None:
    return Event(**json.loads(text)) if text else None


_RATE = ""  # the one name that no dimension has


def details_text(dimensions: Dimensions, rate: CreditRate | None) -> str:
    """Dimensions and the rate as JSON, the same text for the same ones; empty for none."""
    if rate is None:
        return json.dumps(dict(dimensions), sort_keys=True) if dimensions else ""
    return json.dumps({**dimensions, _RATE: rate}, sort_keys=True)


def details_of(text: str) -> tuple[Dimensions, CreditRate | None]:
    found = json.loads(text) if text else {}
    rate = found.pop(_RATE, None)
    return found, rate and CreditRate(*rate)


def stored_entry(number: str, state: str, key: UsageKey, stored: Sequence[Any]) -> Entry:
    """An entry from what a home keeps of it: amount, is_set, used_at, event, reason, attempts, details, period,
    first_at, ticket and before."""
    amount, is_set, used_at, event, reason, attempts, details, period, first_at, ticket, before = stored
    dimensions, rate = details_of(details)
    return Entry(
        id=number,
        state=State(state),
        key=key,
        amount=units(amount),
        is_set=bool(is_set),
        used_at=instant_of(used_at) if used_at else first_at * 1000,
        event=event_of(event),
        reason=reason,
        attempts=attempts,
        dimensions=dimensions,
        period=period_of(period),
        first_at=first_at,
        ticket=ticket,
        before=before_of(before),
        rate=rate,
    )
