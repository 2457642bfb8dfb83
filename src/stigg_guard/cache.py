"""Snapshots of customers' entitlements, kept for a while and fetched once, however many threads ask.

Readers take no lock: a snapshot is found in a plain dict and its deadline compared. ``cachetools`` bounds how many
there are and for how long; what falls out of its cache falls out of the dict.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from math import inf
from typing import Any, TypeVar

from cachetools import TTLCache

from stigg_guard.clock import Clock
from stigg_guard.entitlements import Customer, Entitlement, Kind, Reason, Source, entitlement_from_wire
from stigg_guard.errors import SidecarError, SidecarTimeout, SidecarUnavailable

T = TypeVar("T")

EXTRAS_KEPT = 1_000


class Snapshot:
    """All that is known of a customer since one fetch.

    ``messages`` are the wire's entitlements by feature id or currency id, read when they are first asked for;
    ``denial`` is the reason why the customer has none at all. ``ticket`` orders snapshots and reports of a customer: a
    later fetch has a higher one. ``period_ends`` are the ends of usage periods, in seconds since the epoch. ``source``
    marks the answers: ``CACHE``, or ``OFFLINE``.

    ``answers`` are what checks are answered from: with our own usage since the fetch. ``fetched`` are the same as they
    came. What was asked for alone, because the list lacks it, joins both, or ``missing`` when no such feature exists.
    ``fetched_at``, ``fresh_until`` and ``stale_until`` are on the monotonic clock.
    """

    __slots__ = (
        "answers",
        "denial",
        "fetched",
        "fetched_at",
        "fresh_until",
        "messages",
        "missing",
        "period_ends",
        "source",
        "stale_until",
        "ticket",
    )

    def __init__(
        self,
        messages: Mapping[str, Any],
        denial: Reason | None,
        ticket: int,
        *,
        period_ends: Sequence[float] = (),
        source: Source = Source.CACHE,
    ) -> None:
        self.messages = messages
        self.denial = denial
        self.ticket = ticket
        self.period_ends = period_ends
        self.source = source
        self.answers: dict[str, Entitlement] = {}
        self.fetched: dict[str, Entitlement] = {}
        self.missing: dict[str, Entitlement] = {}
        self.fetched_at = 0.0
        self.fresh_until = 0.0
        self.stale_until = 0.0

    def find(self, feature_id: str) -> Entitlement | None:
        """The answer for a feature or currency; None when the list lacks it and it was not asked for alone."""
        answer = self.answers.get(feature_id)
        if answer is None and feature_id in self.messages:
            answer = entitlement_from_wire(self.messages[feature_id], feature_id=feature_id, source=self.source)
            self.fetched.setdefault(feature_id, answer)
            answer = self.answers.setdefault(feature_id, answer)
        return answer


class SnapshotCache:
    """The snapshots of a process. ``fetch`` gets one from the sidecar and is never called with a lock held.

    ``ttl`` and ``stale_ttl`` are seconds, ``size`` a number of customers, ``patience`` how many seconds a thread waits
    for another one's fetch. After a failed fetch nobody asks for ``BACK_OFF`` seconds.
    """

    BACK_OFF = 0.5

    def __init__(
        self,
        fetch: Callable[[Customer], Snapshot],
        *,
        ttl: float,
        stale_ttl: float,
        size: int,
        patience: float,
        clock: Clock,
    ) -> None:
        self.snapshots: dict[Hashable, Snapshot] = {}
        self._fetch = fetch
        self._ttl = ttl
        self._stale_ttl = stale_ttl
        self._patience = patience
        self._clock = clock
        self._bound = _Bound(size, ttl + stale_ttl, clock.monotonic, self.snapshots)
        self._start_process()

    def get(self, customer: Customer, max_age: float = inf) -> tuple[Snapshot, Source]:
        """The customer's snapshot, and where it came from; one older than ``max_age`` seconds only if need be.

        Raises:
            SidecarError: it cannot be fetched, and there is none young enough to serve stale.
        """
        self._enter_process()
        key = cache_key(customer)
        snapshot = self.snapshots.get(key)
        now = self._clock.monotonic()
        fresh = snapshot is not None and now < snapshot.fresh_until
        if snapshot is not None and fresh and self.age(snapshot) <= max_age:
            return snapshot, Source.CACHE
        try:
            return self.once(key, lambda: self._fetched(customer)), Source.SIDECAR
        except SidecarError:
            if snapshot is not None and now < snapshot.stale_until:
                return snapshot, Source.CACHE if fresh else Source.STALE
            raise

    def age(self, snapshot: Snapshot) -> float:
        """How many seconds ago it was fetched."""
        return self._clock.monotonic() - snapshot.fetched_at

    def refresh(self, customer: Customer) -> Snapshot:
        """Fetches now, whatever is cached or under way."""
        self._enter_process()
        return self._fetched(customer)

    def correct(self, customer: Customer, feature_id: str, current_usage: float) -> None:
        """Lets later checks see usage that was counted after the fetch."""
        snapshot = self.snapshots.get(cache_key(customer))
        answer = snapshot.find(feature_id) if snapshot is not None else None
        if snapshot is not None and answer is not None and answer.kind is Kind.METERED:
            snapshot.answers[feature_id] = answer.with_usage(current_usage)

    def add(self, snapshot: Snapshot, answer: Entitlement) -> None:
        """Keeps the answer to a feature that the list lacks, as long as the snapshot lives, within a bound."""
        if len(snapshot.answers) + len(snapshot.missing) >= len(snapshot.messages) + EXTRAS_KEPT:
            return
        kept = replace(answer, source=snapshot.source)
        if answer.reason is Reason.FEATURE_NOT_FOUND:
            snapshot.missing[answer.feature_id] = kept
            return
        if answer.usage_period_end is not None:
            end = self._monotonic_at([answer.usage_period_end.timestamp()])
            snapshot.fresh_until = min(snapshot.fresh_until, end)
        snapshot.fetched.setdefault(answer.feature_id, kept)
        snapshot.answers.setdefault(answer.feature_id, kept)

    def once(self, key: Hashable, load: Callable[[], T]) -> T:
        """Runs ``load`` unless another thread already does so for this key, whose result is shared then.

        Raises:
            SidecarUnavailable: the last attempt failed a moment ago and this one was not made.
        """
        with self._lock:
            self._refuse_while_backing_off()
            flight: Future[Any] | None = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        result: T = self._lead(key, flight, load) if leads else self._follow(flight)
        return result

    def _enter_process(self) -> None:
        if self._pid != os.getpid():
            self._start_process()

    def _start_process(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Hashable, Future[Any]] = {}
        self._asleep_until = 0.0
        self._last_fault = ""
        for snapshot in list(self.snapshots.values()):
            snapshot.ticket = 0  # what a parent fetched is older than anything of this process
        self._pid = os.getpid()

    def _lead(self, key: Hashable, flight: Future[T], load: Callable[[], T]) -> T:
        try:
            result = load()
        except BaseException as error:
            if isinstance(error, SidecarError):
                self._last_fault = str(error)
                self._asleep_until = self._clock.monotonic() + self.BACK_OFF
            self._land(key)
            flight.set_exception(error)
            raise
        self._land(key)
        flight.set_result(result)
        return result

    def _follow(self, flight: Future[T]) -> T:
        try:
            return flight.result(self._patience)
        except FutureTimeout:
            raise SidecarTimeout(f"another thread's fetch took longer than {self._patience:g} s") from None

    def _land(self, key: Hashable) -> None:
        with self._lock:
            self._flights.pop(key, None)

    def _refuse_while_backing_off(self) -> None:
        left = self._asleep_until - self._clock.monotonic()
        if left > 0:
            raise SidecarUnavailable(f"the sidecar is not asked for another {left:.1f} s, since: {self._last_fault}")

    def _fetched(self, customer: Customer) -> Snapshot:
        snapshot = self._fetch(customer)
        now = self._clock.monotonic()
        snapshot.fresh_until = min(now + self._ttl, self._monotonic_at(snapshot.period_ends))
        snapshot.stale_until = now + self._ttl + self._stale_ttl
        snapshot.fetched_at = now
        key = cache_key(customer)
        with self._lock:
            known = self.snapshots.get(key)
            if known is None or known.ticket <= snapshot.ticket:
                self._bound[key] = snapshot
                self.snapshots[key] = snapshot
        return snapshot

    def _monotonic_at(self, instants: Iterable[float]) -> float:
        """The first of these instants that is still to come, on the monotonic clock."""
        now = self._clock.now().timestamp()
        left = min((instant - now for instant in instants if instant > now), default=float("inf"))
        return self._clock.monotonic() + left


class _Bound(TTLCache[Hashable, Snapshot]):
    """Bounds the dict that readers see: what expires or is evicted here leaves there too."""

    def __init__(self, size: int, ttl: float, timer: Callable[[], float], seen: dict[Hashable, Snapshot]) -> None:
        super().__init__(size, ttl, timer)
        self._seen = seen

    def expire(self, time: float | None = None) -> list[tuple[Hashable, Snapshot]]:
        expired = list(super().expire(time))
        for key, _ in expired:
            self._seen.pop(key, None)
        return expired

    def popitem(self) -> tuple[Hashable, Snapshot]:
        key, snapshot = super().popitem()
        self._seen.pop(key, None)
        return key, snapshot


def cache_key(customer: Customer) -> Hashable:
    """A plain id is its own key, so that a caller's string finds the snapshot without a conversion."""
    return customer.id if customer.resource is None else customer
