"""The TTL cache of customers' entitlements: single flight for threads that miss at once, stale if error.

Readers take no lock: a snapshot is found in a plain dict and its deadline compared. ``cachetools`` bounds how many
there are and for how long; what falls out of its cache falls out of the dict.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import partial
from math import inf
from time import monotonic, sleep
from typing import TypeVar

from cachetools import TTLCache

from stigg_guard.amounts import quanta_used, units
from stigg_guard.cache.backoff import Backoff
from stigg_guard.cache.shared import NOT_SHARED, WAIT_PART, AllOf, Fetch, SharedSnapshots
from stigg_guard.cache.single_flight import SingleFlight
from stigg_guard.cache.snapshots import NO_TICKET, Snapshot
from stigg_guard.clock import Clock
from stigg_guard.entitlements import Customer, Entitlement, Kind, Reason, Source, changed
from stigg_guard.errors import SidecarError
from stigg_guard.runtime.forks import PerProcess

T = TypeVar("T")

EXTRAS_KEPT = 1_000
FETCH_PAUSES = (0.002, 0.05)
"""The first and the longest pause, in seconds, before it is looked again whether another process has fetched."""


class SnapshotCache:
    """A thread-safe TTL cache of snapshots, with single flight and stale if error.

    ``fetch`` gets a snapshot from the sidecar. It is never called with a lock held. Before that, the cache looks in
    what is ``shared`` with other processes; what one of them is fetching, the others wait for.

    ``ttl`` and ``stale_ttl`` are seconds, ``size`` a number of customers, ``patience`` how many seconds a thread waits
    for another one's fetch. ``backoff`` is what each request for snapshots goes through. By up to the part ``spread``
    of its TTL a snapshot is refreshed earlier, at random.
    """

    def __init__(
        self,
        fetch: Callable[[Customer], Snapshot],
        *,
        ttl: float,
        stale_ttl: float,
        size: int,
        patience: float,
        clock: Clock,
        spread: float = 0.0,
        shared: SharedSnapshots = NOT_SHARED,
    ) -> None:
        self.snapshots: dict[Hashable, Snapshot] = {}
        self._fetch = fetch
        self._ttl = ttl
        self._stale_ttl = stale_ttl
        self._patience = patience
        self._spread = spread
        self._clock = clock
        self.shared = shared
        self._new_bound = partial(_Bound, size, ttl + stale_ttl, clock.monotonic, self.snapshots)
        self._bound = self._new_bound()
        self._loading = PerProcess(partial(_Loading, patience, clock.monotonic, self.snapshots))

    @property
    def backoff(self) -> Backoff:
        """What each request of this process for snapshots goes through."""
        return self._loading.get().backoff

    def get(self, customer: Customer, max_age: float = inf) -> tuple[Snapshot, Source]:
        """Returns the customer's snapshot and its source; one older than ``max_age`` seconds only if need be (stale).

        Raises:
            SidecarError: it cannot be fetched, and there is none young enough to serve stale.
        """
        loading = self._loading.get()
        key = cache_key(customer)
        snapshot = self.snapshots.get(key)
        if snapshot is not None and self._serves(snapshot, max_age):
            return snapshot, Source.CACHE
        load = partial(self._loaded, customer, max_age)
        try:
            return load() if self.shared is NOT_SHARED else loading.loads.load((key, max_age), load)
        except SidecarError:
            snapshot = self.snapshots.get(key)
            if snapshot is not None and self._clock.monotonic() < snapshot.stale_until:
                return snapshot, Source.CACHE if self._serves(snapshot) else Source.STALE
            raise

    def age(self, snapshot: Snapshot) -> float:
        """How many seconds ago it was fetched."""
        return self._clock.monotonic() - snapshot.fetched_at

    def refresh(self, customer: Customer) -> Snapshot:
        """Fetches now, whatever is cached or under way."""
        return self._fetched(customer, self.shared.invalidate(customer))

    def renew(self, customer: Customer, since: int, max_age: float) -> tuple[Snapshot, Source]:
        """What is shared if it was fetched at the stamp ``since`` or later and is no older than ``max_age`` seconds;
        else it is fetched, for all processes. That is no use of it."""
        copy, stamp = self.shared.find(customer, to_use=False)
        if copy is not None:
            self._keep(customer, copy)
            if copy.stamp >= since and self._serves(copy, max_age):
                return copy, Source.CACHE
        return self.backoff.ask(lambda: self._fetched(customer, stamp)), Source.SIDECAR

    def forget(self, whose: Customer | AllOf) -> None:
        """Invalidates what was fetched before now, in all processes. It answers only where nothing newer can be had."""
        stamp, loading = self.shared.invalidate(whose), self._loading.get()
        with loading.lock:
            loading.forgotten += 1
        self.expire(whose, stamp or inf)

    def expire(self, whose: Customer | AllOf, stamp: float) -> None:
        """Invalidates what was fetched before the stamp. It answers only where nothing newer can be had."""
        for customer in self.known(whose) if isinstance(whose, AllOf) else [whose]:
            snapshot = self.snapshots.get(cache_key(customer))
            if snapshot is not None and snapshot.stamp < stamp:
                snapshot.fresh_until = 0.0

    def known(self, whose: AllOf) -> list[Customer]:
        """The customers and resources among these whose snapshots this process has."""
        customers = (key if isinstance(key, Customer) else Customer(str(key)) for key in list(self.snapshots))
        return [customer for customer in customers if whose.customer in (None, customer.id)]

    def close(self) -> None:
        """Leaves what is shared."""
        self.shared.close()

    def correct(self, customer: Customer, feature_id: str, current_usage: float, *, lower: bool = True) -> None:
        """Lets later checks see usage that was counted after the fetch; less than they see already if ``lower``."""
        snapshot = self.snapshots.get(cache_key(customer))
        answer = snapshot.find(feature_id) if snapshot is not None else None
        if snapshot is None or answer is None or answer.kind is not Kind.METERED:
            return
        if lower or current_usage > answer.current_usage:
            snapshot.fetched.setdefault(feature_id, answer)
            snapshot.answers[feature_id] = answer.with_usage(current_usage)

    def spend(self, customer: Customer, currency: str, amount: float) -> None:
        """Lets pages see what was paid from a wallet after the fetch; holds go by the fetch and by the ledger."""
        snapshot = self.snapshots.get(cache_key(customer))
        wallet = snapshot.find(currency) if snapshot is not None else None
        if snapshot is not None and wallet is not None and wallet.kind is Kind.CREDIT:
            used = units(quanta_used(wallet.current_usage) + quanta_used(amount))
            snapshot.fetched.setdefault(currency, wallet)
            snapshot.answers[currency] = wallet.with_usage(used)

    def add(self, snapshot: Snapshot, answer: Entitlement) -> None:
        """Keeps the answer to a feature that the list lacks, as long as the snapshot lives, within a bound."""
        if len(snapshot.answers) + len(snapshot.missing) >= len(snapshot.messages) + EXTRAS_KEPT:
            return
        kept = changed(answer, source=snapshot.source)
        if answer.reason is Reason.FEATURE_NOT_FOUND:
            snapshot.missing[answer.feature_id] = kept
            return
        if answer.usage_period_end is not None:
            end = self._first_after(self._clock.now().timestamp(), [answer.usage_period_end.timestamp()])
            snapshot.fresh_until = min(snapshot.fresh_until, end)
        snapshot.answers.setdefault(answer.feature_id, kept)

    def once(self, key: Hashable, ask: Callable[[], T]) -> T:
        """Asks the sidecar in single flight: threads that ask for the same key at once share one answer.

        Raises:
            SidecarUnavailable: the last attempt failed a moment ago and this one was not made.
        """
        return self._loading.get().flights.load(key, lambda: self.backoff.ask(ask))

    def _serves(self, snapshot: Snapshot, max_age: float = inf) -> bool:
        return self._clock.monotonic() < snapshot.fresh_until and self.age(snapshot) <= max_age

    def _loaded(self, customer: Customer, max_age: float) -> tuple[Snapshot, Source]:
        served, seen, stamp = self._found(customer, max_age)
        if served is not None:
            return served, Source.CACHE
        if self._turn(customer, seen) is Fetch.DONE:
            served, _, stamp = self._found(customer, max_age)
            if served is not None:
                return served, Source.CACHE
        try:
            return self.once(cache_key(customer), lambda: self._fetched(customer, stamp)), Source.SIDECAR
        except BaseException:
            self.shared.give_up(customer)
            raise

    def _found(self, customer: Customer, max_age: float) -> tuple[Snapshot | None, int, int]:
        """What is shared, if it serves; the stamp of what was found, and the present one."""
        copy, stamp = self.shared.find(customer)
        if copy is None:
            return None, 0, stamp
        known = self.snapshots.get(cache_key(customer))
        if known is None or known.fetched_at < copy.fetched_at:
            self._keep(customer, copy)
            if self._serves(copy, max_age):
                return copy, copy.stamp, stamp
        return None, copy.stamp, stamp

    def _turn(self, customer: Customer, seen: int) -> Fetch:
        """Waits while another process fetches, unless nothing is asked at present anyway."""
        deadline, (pause, longest) = monotonic() + WAIT_PART * self._patience, FETCH_PAUSES
        while not self.backoff.is_asleep:
            turn = self.shared.begin(customer, seen)
            if turn is not Fetch.THEIRS or monotonic() >= deadline:
                return turn
            sleep(pause)
            pause = min(2 * pause, longest)
        return Fetch.THEIRS

    def _fetched(self, customer: Customer, stamp: int) -> Snapshot:
        loading = self._loading.get()
        begun_at, forgotten = self._clock.now().timestamp(), loading.forgotten
        snapshot = self._fetch(customer)
        snapshot.begun_at = begun_at
        snapshot.fetched_at = self._clock.monotonic()
        snapshot.stamp = stamp
        self._keep(customer, snapshot)
        # Kept first: an invalidation that comes in between finds it either here or among what is shared.
        if not self.shared.store(customer, snapshot) or forgotten != loading.forgotten:
            snapshot.fresh_until = 0.0
        return snapshot

    def _keep(self, customer: Customer, snapshot: Snapshot) -> None:
        period_end = self._first_after(snapshot.begun_at, snapshot.period_ends)
        early = self._spread * random.random()  # noqa: S311 - spreads load, guards nothing
        snapshot.fresh_until = min(snapshot.fetched_at + self._ttl * (1 - early), period_end)
        snapshot.stale_until = snapshot.fetched_at + self._ttl + self._stale_ttl
        key = cache_key(customer)
        with self._loading.get().lock:
            known = self.snapshots.get(key)
            if known is None or known.ticket.number <= snapshot.ticket.number:
                self.snapshots[key] = snapshot
                self._bind(key, snapshot)

    def _bind(self, key: Hashable, snapshot: Snapshot) -> None:
        try:
            self._bound[key] = snapshot
        except KeyError:  # an exception from outside has torn it: what it bounds begins anew
            self.snapshots.clear()
            self._bound = self._new_bound()
            self._bound[key] = self.snapshots[key] = snapshot

    def _first_after(self, start: float, instants: Iterable[float]) -> float:
        """The first of these instants after ``start``, on the monotonic clock; some may have passed since then."""
        first = min((instant for instant in instants if instant > start), default=inf)
        return self._clock.monotonic() + first - self._clock.now().timestamp()


class _Loading:
    """What loads snapshots in one process; those that its parent fetched are older than anything of its own."""

    def __init__(self, patience: float, monotonic: Callable[[], float], inherited: Mapping[Hashable, Snapshot]) -> None:
        self.lock = threading.Lock()
        self.flights = SingleFlight(patience)
        self.loads = SingleFlight((1 + WAIT_PART) * patience)
        self.backoff = Backoff(monotonic)
        self.forgotten = 0
        for snapshot in list(inherited.values()):
            snapshot.ticket = NO_TICKET


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
