"""What a ledger keeps and what it promises.

An entry is *held* while the work runs, *unsent* once it succeeded, *sending* while a report is under way, *uncertain*
when nobody knows whether a report was counted, and gone once it is settled; a report that the sidecar refuses is *dead*
and stays visible. What is held, unsent, being sent or uncertain counts against the limit, together with the last known
usage of the key.

Snapshots and reports of a customer are ordered by *tickets*, numbers that only grow: a snapshot's figure is believed
only if its fetch began after the last report of that key began or ended. No clock takes part in that. Only how long a
sidecar may lag behind its own acknowledgement is a matter of time: until ``settle_grace`` seconds after one, a newer
snapshot may raise the usage and not lower it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class State(str, Enum):
    """Where an entry is on its way from a hold to the sidecar's books."""

    HELD = "held"
    UNSENT = "unsent"
    SENDING = "sending"
    UNCERTAIN = "uncertain"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class UsageKey:
    """Whose usage of what: ``resource_id`` is empty for the customer itself."""

    customer_id: str
    resource_id: str
    feature_id: str

    def __str__(self) -> str:
        owner = f"{self.customer_id}/{self.resource_id}" if self.resource_id else self.customer_id
        return f"{owner} {self.feature_id}"


@dataclass(frozen=True, slots=True)
class Claim:
    """A wish to use ``amount`` units, with what the asker's snapshot says.

    ``limit`` is None when nothing limits the usage. ``period_start`` and ``period_end`` are those of the usage period,
    and ``fetched_at`` is the beginning of the snapshot's fetch, in seconds since the epoch; 0 where there is none.
    """

    key: UsageKey
    amount: float
    limit: float | None
    known_usage: float
    period_start: float
    ticket: int
    fetched_at: float = 0.0
    period_end: float = 0.0

    def period_at(self, instant: float) -> float:
        """The beginning of the usage period at an instant: a hold may outlast the period in which it was taken."""
        return self.period_end if 0 < self.period_end <= instant else self.period_start


@dataclass(frozen=True, slots=True)
class Hold:
    """Units taken off the limits of one or more keys until the hold is committed, released or expires."""

    id: str
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """There was not enough left for one of the claims: ``counted`` units are used, held or on their way."""

    claim: Claim
    counted: float


@dataclass(frozen=True, slots=True)
class Event:
    """The raw event that reports a use instead of a usage report. Key and time are made once, so it may be resent."""

    name: str
    idempotency_key: str
    dimensions: Mapping[str, str | float | bool]


@dataclass(frozen=True, slots=True)
class Use:
    """``amount`` units that were used, fewer given back when negative; the new total with ``is_set``.

    ``period_start`` is that of the usage period in which it happened, 0 when unknown.
    """

    key: UsageKey
    amount: float
    is_set: bool = False
    period_start: float = 0.0
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger. ``used_at`` is the time of the use, in seconds since the epoch.

    ``reason`` says why it is uncertain or dead. ``attempts`` is how often it was sent since it was last known not to be
    counted: from the second on, nobody knows what became of the one before.
    """

    id: str
    state: State
    key: UsageKey
    amount: float
    is_set: bool
    used_at: float
    event: Event | None = None
    reason: str = ""
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Reports that are sent together: usages of different keys, or events. The same ``id`` means the same reports."""

    id: str
    reports: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The sidecar's answer to one report. ``current_usage`` is None when it did not say."""

    report: Entry
    current_usage: float | None
    period_start: float


class Ledger(Protocol):
    """Where holds and unsent usage live. Every method is one step: it happens wholly or not at all.

    Each may raise ``LedgerUnavailable`` when the step could not be made and nothing happened, and ``ClientClosed``
    after ``close``.
    """

    def ticket(self, customer_id: str) -> int:
        """A number higher than all that this customer had before."""
        ...

    def hold(self, claims: Sequence[Claim], ttl: float) -> Hold | Refused:
        """Takes the claimed units for ``ttl`` seconds, if used + held + on their way + amount <= limit for each key.

        All of them, or none: the first claim that does not fit is told.
        """
        ...

    def renew(self, holds: Sequence[Hold], ttl: float) -> None:
        """Lets the holds last ``ttl`` seconds from now, those that expired and were not ended too."""
        ...

    def commit(self, hold: Hold, uses: Sequence[Use]) -> Sequence[float]:
        """Turns the hold into unsent usage; the usage of each key with it.

        A hold that expired is recorded all the same, and counted as late. Uses of 0 units leave nothing to report.
        """
        ...

    def release(self, hold: Hold) -> None:
        """Gives the units back."""
        ...

    def record(self, use: Use) -> float:
        """Takes usage that happened without a hold; the usage of the key with it."""
        ...

    def take_batch(self, size: int, lease: float) -> Batch | None:
        """The next reports to send, for ``lease`` seconds this caller's own; None when there is nothing to send.

        Usages come in the order of their use, one report of each key, and no key has two reports under way. Events
        come in batches of their own. A batch whose lease ended comes again, unchanged. What was unsent for one key and
        period may have been added up.
        """
        ...

    def acknowledge(self, answers: Sequence[Acknowledged]) -> None:
        """Forgets the reports that the sidecar has counted, and notes the usage that it told."""
        ...

    def put_back(self, reports: Sequence[Entry]) -> None:
        """Makes the reports unsent again: they were certainly not counted. Their attempts begin anew."""
        ...

    def postpone(self, batch: Batch, seconds: float) -> None:
        """Lets the batch come again, unchanged, after this time."""
        ...

    def split(self, batch: Batch) -> None:
        """Makes each report of the batch a batch of its own: certainly none was counted. Their attempts begin anew."""
        ...

    def doubt(self, reports: Sequence[Entry], seconds: float | None, reason: str) -> None:
        """Makes the reports uncertain. After ``seconds`` they are due for a decision; with None only for a person.

        Until they are due or decided, no other report of the key is sent; with None others go on.
        """
        ...

    def take_uncertain(self, size: int, lease: float) -> Sequence[Entry]:
        """Uncertain reports that are due for a decision, for ``lease`` seconds this caller's own."""
        ...

    def bury(self, report: Entry, reason: str) -> None:
        """Sets aside a report that the sidecar refuses; it is kept, and no longer counts."""
        ...

    def known_usage(self, key: UsageKey) -> float | None:
        """The usage that the sidecar last told of; None if it never did."""
        ...

    def entries(self, states: Sequence[State], limit: int) -> Sequence[Entry]:
        """Entries in these states, oldest first."""
        ...

    def retry(self, ids: Sequence[str]) -> int:
        """Makes dead and uncertain entries unsent again; how many there were."""
        ...

    def discard(self, ids: Sequence[str]) -> int:
        """Forgets dead and uncertain entries for good; how many there were."""
        ...

    def counts(self) -> Mapping[str, int]:
        """How many entries are in each state, and under ``late`` how many holds were committed after they expired."""
        ...

    def close(self) -> None: ...
