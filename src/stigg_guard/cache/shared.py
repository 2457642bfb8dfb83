"""Snapshots that processes share, as a protocol: whose turn it is to fetch, who waits how long, what is invalidated."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from stigg_guard.cache.snapshots import Snapshot
from stigg_guard.entitlements import Customer

WAIT_PART = 0.5
"""Which part of the time that a fetch may take another process is waited for; then this one fetches, too."""


@dataclass(frozen=True, slots=True)
class AllOf:
    """All snapshots of a customer, those of its resources too; those of everybody when it is None."""

    customer: str | None


class Fetch(Enum):
    """Whose turn it is to fetch what several processes miss."""

    OURS = "ours"
    THEIRS = "theirs"
    DONE = "done"
    """Another process has just fetched it."""


class SharedSnapshots(Protocol):
    """Snapshots that all processes share. Nothing here raises: what is away finds nothing and keeps nothing.

    *Stamps* are instants of the one clock that these processes share; 0 stands for one that nobody knows.
    """

    def find(self, customer: Customer, *, to_use: bool = True) -> tuple[Snapshot | None, int]:
        """The newest snapshot that any process fetched, with the times of its fetch, and the present stamp.

        It is kept in mind that it was asked for, unless it is not ``to_use``.
        """
        ...

    def begin(self, customer: Customer, seen: int) -> Fetch:
        """Who is to fetch a customer of whom this process has seen the snapshot with this stamp, 0 for none.

        Who begins first; the others are told so until :meth:`store` or :meth:`give_up`, and at most for the part
        ``WAIT_PART`` of ``TIMEOUT``.
        """
        ...

    def give_up(self, customer: Customer) -> None:
        """Lets another process fetch it: this one could not."""
        ...

    def store(self, customer: Customer, snapshot: Snapshot) -> bool:
        """Keeps a snapshot unless there is news since its stamp; false when there is."""
        ...

    def invalidate(self, whose: Customer | AllOf) -> int:
        """Tells all processes that what was fetched before now is outdated; the present stamp."""
        ...

    def tell(self, whose: AllOf) -> bool:
        """Tells that these have changed; whether there is a cache service that will read them again, and then have what
        was fetched before now invalidated."""
        ...

    def close(self) -> None: ...


class _NotShared:
    """The processes share nothing."""

    def find(self, _customer: Customer, *, to_use: bool = True) -> tuple[None, int]:
        return None, 0

    def begin(self, _customer: Customer, _seen: int) -> Fetch:
        return Fetch.OURS

    def give_up(self, _customer: Customer) -> None:
        pass

    def store(self, _customer: Customer, _snapshot: Snapshot) -> bool:
        return True

    def invalidate(self, _whose: Customer | AllOf) -> int:
        return 0

    def tell(self, _whose: AllOf) -> bool:
        return False

    def close(self) -> None:
        pass


NOT_SHARED: SharedSnapshots = _NotShared()
