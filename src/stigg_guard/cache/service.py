"""The cache service: keeps fresh what processes share in Redis, so that no view waits for a fetch."""

from __future__ import annotations

import random
import threading
from collections.abc import Collection, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from stigg_guard.cache.redis_snapshots import RedisSnapshots, news_in
from stigg_guard.cache.shared import AllOf
from stigg_guard.cache.snapshots import Snapshot
from stigg_guard.checks.lookup import Lookup
from stigg_guard.clock import Clock
from stigg_guard.config import Config
from stigg_guard.entitlements import Customer
from stigg_guard.errors import ConfigError, MissingExtra, SidecarError, StiggGuardError
from stigg_guard.ledger import Ledger, SqliteLedger, ledger_from_url
from stigg_guard.runtime.log import logger
from stigg_guard.settings.urls import REDIS

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, Histogram, generate_latest
except ModuleNotFoundError as error:
    raise MissingExtra("redis,prometheus", "The cache service") from error

PASS_SECONDS = 1.0
LIVE_SECONDS = 60.0
TAKE_SECONDS = 20.0
"""How long one change is waited for: less than the 30 seconds after which SQS gives a message to somebody else."""
CONTENT_TYPE = CONTENT_TYPE_LATEST
AT_ONCE = 8
"""How many fetches are under way at a time."""
BATCH = 64
"""After so many customers of a pass news of changes have their turn."""
EARLY = (0.5, 0.7)
"""At which part of its TTL, at random, a snapshot is renewed: those fetched together are not renewed together."""


@dataclass(slots=True)
class _Change:
    """What was told of some customers: read those whose snapshots are older than ``since``; then those that are older
    than ``outdate`` are to answer no more, which has happened already where it is 0. ``made`` are set after that."""

    since: int = 0
    outdate: int = 0
    made: list[threading.Event] = field(default_factory=list)


class CacheService:
    """Renews the snapshots of customers who are in use before they expire, and at once when they have changed.

    In use is who was asked for within ``keep`` seconds by any process that shares ``config.cache``; they are never
    fewer than two ``CACHE_TTL``. Several services share the work: each renews only what no other has.

    Raises:
        ConfigError: the configuration has no Redis in ``CACHE``, or no sidecar that all processes ask.
    """

    def __init__(self, config: Config, clock: Clock | None = None, *, keep: float) -> None:
        _require_shared(config)
        self._clock = clock or Clock()
        self._keep = max(keep, 2 * config.cache_ttl)
        # Only a ledger that is beside the cache orders snapshots across processes; one of our own does it here.
        url = config.ledger or ""
        shares_ledger = url.startswith(REDIS)
        self._config = config if shares_ledger else replace(config, ledger="memory://")
        self._ledger: Ledger = SqliteLedger(None, self._clock)
        if shares_ledger:
            self._ledger = ledger_from_url(url, self._clock, settle_grace=config.settle_grace)
        self._lookup = Lookup(self._config, self._clock, self._ledger, None)
        shared = self._lookup.cache.shared
        assert isinstance(shared, RedisSnapshots)  # it was asked for
        self._shared = shared
        self._due: dict[Customer, float] = {}
        self._told: dict[AllOf, _Change] = {}
        self._lock = threading.Lock()
        self._something = threading.Event()
        self._over = threading.Event()
        self._passed_at = self._clock.monotonic()
        self._is_failing = False
        self._failing: set[Customer] = set()
        self._has_read_all = False
        self.is_ready = False
        self.figures = Figures()

    @property
    def is_alive(self) -> bool:
        """Whether it has done something within a minute."""
        return self._clock.monotonic() - self._passed_at < LIVE_SECONDS

    def run(self) -> None:
        """Works until :meth:`stop`; what fails is tried again."""
        listener = self._shared.listen(self._heard)
        with ThreadPoolExecutor(AT_ONCE, "stigg-guard-renewals") as pool:
            while not self._over.is_set():
                self._something.clear()
                if not self._passes(pool):
                    self._something.wait(min(PASS_SECONDS, self._config.cache_ttl / 10))
        listener.over.set()
        self._lookup.close()
        self._ledger.close()

    def stop(self) -> None:
        """Lets :meth:`run` return, after what is under way."""
        self._over.set()
        self._something.set()

    def take(self, customers: Collection[str]) -> set[str]:
        """Does what news of a change to each of these customers wants, and returns those for whom it is done. It is
        waited for ``TAKE_SECONDS`` at most, and not for whom the sidecar fails while it answers for others. For any
        thread but that of :meth:`run`."""
        deadline = self._clock.monotonic() + TAKE_SECONDS
        made = {customer: self._told_of(customer, deadline) for customer in customers}
        while self._goes_on(deadline) and (awaited := self._awaited(made)):
            awaited[0].wait(PASS_SECONDS)
        return {customer for customer, one in made.items() if one.is_set()}

    def _awaited(self, made: Mapping[str, threading.Event]) -> list[threading.Event]:
        hopeless = set() if self._is_failing else self._failing_ids()
        return [one for customer, one in made.items() if not one.is_set() and customer not in hopeless]

    def _failing_ids(self) -> set[str]:
        return {customer.id for customer in list(self._failing)}  # other threads change it

    def _told_of(self, customer: str, deadline: float) -> threading.Event:
        """Notes a change of now, as soon as Redis tells the time."""
        made = threading.Event()
        while self._goes_on(deadline):
            _, stamp = self._shared.find(Customer(customer), to_use=False)
            if stamp:
                self._note_change(AllOf(customer), _Change(stamp, stamp, [made]))
                self._something.set()
                break
            self._over.wait(PASS_SECONDS)
        return made

    def _goes_on(self, deadline: float) -> bool:
        return not self._over.is_set() and self._clock.monotonic() < deadline

    def _passes(self, pool: Executor) -> bool:
        """Renews what is to be renewed first; whether there is more, and it is of use to go on at once."""
        self._passed_at = self._clock.monotonic()
        used = self._shared.in_use(self._keep)
        if used is None:
            self._set_ready(False)
            return False
        self.figures.customers.set(len(used))
        self._failing.intersection_update(used)
        self._take_news(pool, used)
        self._due = {customer: self._due.get(customer, 0.0) for customer in used}
        due = [customer for customer in used if self._due[customer] <= self._clock.monotonic()]
        due.sort(key=self._failing.__contains__)
        failed = self._renew(pool, due[:BATCH], _Change(), "age")
        self._set_ready(self._has_read_all and not self._is_failing)
        return len(due) > BATCH > len(failed)

    def _take_news(self, pool: Executor, used: Collection[Customer]) -> None:
        """Reads again who has changed, and only then invalidates what was fetched before."""
        with self._lock:
            told, self._told = self._told, {}
        failing = self._failing_ids()
        for whose in sorted(told, key=lambda whose: whose.customer in failing):
            if not self._follow(pool, used, whose, told[whose]):
                self._note_change(whose, told[whose])

    def _follow(self, pool: Executor, used: Collection[Customer], whose: AllOf, change: _Change) -> bool:
        members = [customer for customer in used if whose.customer in (None, customer.id)]
        failed = self._renew(pool, members, change, "change")
        if failed and (whose.customer is not None or len(failed) == len(members)):
            return False
        self._has_read_all |= whose.customer is None
        if failed:  # the others do not wait for them
            for customer in members:
                self._note_change(AllOf(customer.id), change)
            self._something.set()
            return True
        if change.outdate and not self._shared.outdate(whose, change.outdate):
            return False
        for made in change.made:
            made.set()
        return True

    def _renew(
        self, pool: Executor, customers: Collection[Customer], change: _Change, why: str
    ) -> Collection[Customer]:
        """Renews them; returns those that the sidecar did not answer for. Who failed before comes after all others: a
        failure stops all requests for a moment."""
        first = [customer for customer in customers if customer not in self._failing]
        again = [customer for customer in customers if customer in self._failing]
        failed: list[Customer] = []
        for some in (first, again):
            answered = list(pool.map(lambda customer: self._renewed(customer, change, why), some))
            failed += [customer for customer, is_answered in zip(some, answered, strict=True) if not is_answered]
        return failed

    def _renewed(self, customer: Customer, change: _Change, why: str) -> bool:
        """Renews one; false if the sidecar did not answer."""
        self._passed_at = start = self._clock.monotonic()
        outcome = "failed"
        try:
            snapshot, source = self._lookup.cache.renew(customer, change.since, self._config.cache_ttl * EARLY[0])
        except SidecarError as error:
            if error.code and customer not in self._failing:  # the same again says nothing of the others
                self._failing.add(customer)
                self._note(error)
            return False
        except StiggGuardError as error:
            self._note(error)
            return True
        else:
            outcome = source.value
            self._due[customer] = self._due_at(snapshot)
            self._failing.discard(customer)
            self._note(None)
            return True
        finally:
            self.figures.renewals.labels(why, outcome).observe(self._clock.monotonic() - start)

    def _due_at(self, snapshot: Snapshot) -> float:
        part = random.uniform(*EARLY)  # noqa: S311 - spreads load, guards nothing
        return min(snapshot.fetched_at + self._config.cache_ttl * part, snapshot.fresh_until)

    def _heard(self, channel: bytes, message: bytes | None) -> None:
        if message is None:  # whatever was said until now was missed
            if channel.decode() == self._shared.changed:
                self._shared.tell(AllOf(None))
            return
        news = news_in(channel, message)
        if news is not None:
            whose, stamp = news
            scope = whose if isinstance(whose, AllOf) else AllOf(whose.id)
            self._note_change(scope, _Change(stamp, stamp if channel.decode() == self._shared.changed else 0))
            self._something.set()

    def _note_change(self, whose: AllOf, change: _Change) -> None:
        with self._lock:
            known = self._told.setdefault(whose, _Change())
            known.since, known.outdate = max(known.since, change.since), max(known.outdate, change.outdate)
            known.made += change.made

    def _set_ready(self, is_ready: bool) -> None:
        self.is_ready = is_ready
        self.figures.ready.set(is_ready)

    def _note(self, fault: StiggGuardError | None) -> None:
        was_failing, self._is_failing = self._is_failing, fault is not None
        if fault is not None and not was_failing:
            logger.warning("the shared cache is not kept fresh: %s", fault)
        if fault is None and was_failing:
            logger.warning("the shared cache is kept fresh again")


class Figures:
    """The figures of a service for Prometheus, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.customers = Gauge("stigg_guard_cache_customers", "Customers who are in use.", registry=self.registry)
        self.ready = Gauge(
            "stigg_guard_cache_ready", "1 if Redis and the sidecar answered last.", registry=self.registry
        )
        self.renewals = Histogram(
            "stigg_guard_cache_renewal_seconds",
            "Renewals of snapshots: why, and where the new one came from.",
            ["why", "outcome"],
            registry=self.registry,
        )

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


def _require_shared(config: Config) -> None:
    if config.cache == "memory://":
        raise ConfigError("CACHE: name the Redis that the processes share, as redis://host:6379/0; see docs/sidecar.md")
    if not config.enabled:
        raise ConfigError("ENABLED: a guard that is disabled asks for nothing; set it to true")
    if config.sidecar in ("local", "offline"):
        raise ConfigError(f"SIDECAR: {config.sidecar!r} is of one process; name the host:port that all processes ask")
