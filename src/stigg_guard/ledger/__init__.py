"""The ledger: holds on units that are being used, and usage that the sidecar has not acknowledged yet.

An entry is *held* while the work runs, *unsent* once it succeeded, *sending* while a report is under way, and gone
once the sidecar acknowledged it; a report that the sidecar refuses is *dead* and stays visible. What is held, unsent or
being sent counts against the limit, together with the last known usage of the key.

Snapshots and reports of a customer are ordered by *tickets*, numbers that only grow: a snapshot's figure is believed
only if its fetch began after the last report of that key began or ended. No clock takes part in that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote

from stigg_guard.clock import Clock
from stigg_guard.errors import ConfigError


@dataclass(frozen=True, slots=True)
class UsageKey:
    """Whose usage of what: ``resource_id`` is empty for the customer itself."""

    customer_id: str
    resource_id: str
    feature_id: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A wish to use ``amount`` units, with what the asker's snapshot says.

    ``limit`` is None when nothing limits the usage. ``period_start`` is the beginning of the usage period in seconds
    since the epoch, 0 without periods.
    """

    key: UsageKey
    amount: float
    limit: float | None
    known_usage: float
    period_start: float
    ticket: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Units taken off the limit until the hold is committed, released or expires. ``claim`` is what was asked."""

    id: int
    claim: Claim


@dataclass(frozen=True, slots=True)
class Refused:
    """There was not enough left: ``counted`` units are used, held or unsent."""

    counted: float


@dataclass(frozen=True, slots=True)
class Report:
    """One usage to report. ``used_at`` is the time of the use, in seconds since the epoch."""

    id: int
    key: UsageKey
    amount: float
    is_set: bool
    used_at: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Reports that are sent together; the same ``id`` means the same reports, so a repeated one can be told."""

    id: str
    reports: Sequence[Report]


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The sidecar's answer to one report. ``current_usage`` is None when it did not say."""

    report: Report
    current_usage: float | None
    period_start: float


class Ledger(Protocol):
    """Where holds and unsent usage live. Every method is one step: it happens wholly or not at all."""

    def ticket(self, customer_id: str) -> int:
        """A number higher than all that this customer had before."""
        ...

    def hold(self, claim: Claim, ttl: float) -> Hold | Refused:
        """Takes the claimed units for ``ttl`` seconds, if used + held + unsent + amount <= limit."""
        ...

    def commit(self, hold: Hold, amount: float) -> float:
        """Turns the hold into ``amount`` units of unsent usage; the key's usage with it. Expired holds count too."""
        ...

    def release(self, hold: Hold) -> None:
        """Gives the units back."""
        ...

    def record(self, key: UsageKey, amount: float, *, is_set: bool = False) -> None:
        """Takes usage that happened without a hold: a delta, or with ``is_set`` the new total."""
        ...

    def take_batch(self, size: int, lease: float) -> Batch | None:
        """The next reports to send, for ``lease`` seconds this caller's own; None when there is nothing to send.

        A key has one batch under way at a time. A batch whose lease ended comes again, unchanged.
        """
        ...

    def acknowledge(self, answers: Sequence[Acknowledged]) -> None:
        """Forgets the reports that the sidecar has counted, and notes the usage that it told."""
        ...

    def put_back(self, batch: Batch) -> None:
        """Makes the reports unsent again: they were certainly not counted."""
        ...

    def postpone(self, batch: Batch, seconds: float) -> None:
        """Lets the batch come again, unchanged, after this time: whether it was counted is unknown."""
        ...

    def split(self, batch: Batch) -> None:
        """Makes each report of the batch a batch of its own: certainly none of them was counted."""
        ...

    def bury(self, report: Report, reason: str) -> None:
        """Sets aside a report that the sidecar refuses; it is kept, and no longer counts."""
        ...

    def counts(self) -> Mapping[str, int]:
        """How many entries are held, unsent, sending and dead."""
        ...

    def close(self) -> None: ...


def ledger_from_url(url: str, clock: Clock) -> Ledger:
    """The ledger at a URL: ``memory://``, or ``sqlite:///path/to/file`` for all processes of a host.

    Raises:
        ConfigError: the URL names no ledger.
    """
    from stigg_guard.ledger.sqlite import SqliteLedger

    if url == "memory://":
        return SqliteLedger(None, clock)
    scheme, _, path = url.partition(":///")
    if scheme == "sqlite" and path and not set(path) & set("?#"):
        return SqliteLedger(unquote(path), clock)
    raise ConfigError("LEDGER: this URL, which may hold a password, names no ledger: write memory:// or sqlite:///path")
