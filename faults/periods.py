"""Usage periods that roll over late, plans that change, clocks that differ and jump: what is sold in each period.

Eight processes use units of one feature. The sidecar has true books: it books a report into the period of its time, or
of its arrival. A period may hold its limit and no more, but for what was sold after a change of plan that no process
was told yet: at most the rest of the plan before.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from threading import Event, Lock, Thread
from typing import Any

import grpc
from tests.redis_server import RedisServer
from tests.simulation.world import World

from faults.promise import Promise, Scale
from faults.workers import CONTEXT, PATIENCE, drain, make_guard, processes
from stigg_guard import FeatureDenied, SidecarError, clock
from stigg_guard.ledger import Period
from stigg_guard.wire import KEYS_HONOURED, METHODS, SERVICE
from stigg_guard.wire import sidecar_pb2 as wire

CUSTOMER, FEATURE = "customer", "feature-units"
PROCESSES = 8
SETTLE_GRACE = 1.0
LATE = 0.4  # how late a period may be rolled over
LAG = 0.4  # how old the figures of a check may be; together within the grace
CACHE_TTL = 0.5
LIMITS = (40, 60, 80)
LENGTHS = (3.0, 5.0, None)
CHANGE_EVERY = 8.0
SECOND = 1_000_000_000
WRONG_CLOCKS = 3600.0
SET_RIGHT = 3.0  # how many seconds before the end a clock that all share is right for good
WORLDS = 20
"""How many runs of the simulation each round of the scale adds."""
STEPS = 1_000


def periods(scale: Scale) -> Iterator[Promise]:
    """Each way to book, on a file and on Redis, for as many seconds as the scale has rounds; and the simulation."""
    yield _simulated(scale.rounds * WORLDS)
    for books in ("by time", "by arrival"):
        yield from _on(scale, f"sqlite, {books}", f"sqlite:///{scale.folder / f'periods-{books}.sqlite3'}", books, True)
        folder = scale.folder / f"periods-{books}"
        folder.mkdir()
        with RedisServer(folder) as server:
            yield from _on(scale, f"redis, {books}", server.url, books, False)


def _simulated(worlds: int) -> Promise:
    faults = Counter(World(random.randrange(2**32), shown="both").run(STEPS) for _ in range(worlds))
    whole = faults.pop(None, 0)
    return Promise(
        "simulation: nothing oversold, lost or counted twice; consume allows what check does",
        f"{whole} of {worlds} runs of {STEPS} steps; {dict(faults) or 'no fault'}",
        whole == worlds,
    )


def _on(scale: Scale, what: str, ledger: str, books: str, one_clock: bool) -> Iterator[Promise]:
    jumps: Any = CONTEXT.Array("d", PROCESSES)
    results: Any = CONTEXT.Queue()
    with _serving(books == "by time") as sidecar:
        until = time.monotonic() + scale.rounds
        with processes(PROCESSES, _use, sidecar.address, ledger, until, jumps, results):
            while (left := until - time.monotonic()) > 0:
                time.sleep(1.0)
                # Set right again while they run: who begins only afterwards cannot know that it was wrong.
                is_last = left < SET_RIGHT
                offset = random.choice([0.0, 0.0, 0.0 if is_last else random.uniform(-WRONG_CLOCKS, WRONG_CLOCKS)])
                for number in range(PROCESSES):
                    jumps[number] = offset if one_clock else random.uniform(-WRONG_CLOCKS, WRONG_CLOCKS)
            sold = sum(results.get(timeout=PATIENCE) for _ in range(PROCESSES))
        unsent = drain(sidecar.address, ledger)
        sidecar.come_to_rest()
        over = sidecar.oversold()
        booked = sum(life.booked for life in sidecar.lives.values())
        time.sleep(2 * SETTLE_GRACE + CACHE_TTL)
        free, taken = sidecar.free(), _all_that_is_free(sidecar.address, ledger)
    changes = f"{len(sidecar.lives)} periods, {sidecar.changes} plans"
    yield Promise(
        f"{what}: no period holds more than its limit", f"{over:g} too many; {sold:g} sold, {changes}", not over
    )
    open_states = {state: unsent[state] for state in ("unsent", "sending", "uncertain", "dead") if unsent[state]}
    yield Promise(
        f"{what}: the sidecar has what was sold, once",
        f"{booked:g} booked, {sold:g} sold; left {open_states or 'nothing'}",
        booked == sold and not open_states,
    )
    yield Promise(f"{what}: at rest exactly what is free can be used", f"{taken:g} of {free:g}", taken == free > 0)


@dataclass
class Life:
    """A period of a plan: what may be in it, and what is."""

    limit: float
    booked: float = 0.0
    excused: float = 0.0


@dataclass
class TrueSidecar:
    """The books of one feature, and a gRPC server that tells of them."""

    by_time: bool
    lives: dict[tuple[int, Period], Life] = field(default_factory=dict)
    changes: int = 0
    address: str = ""

    def __post_init__(self) -> None:
        self._lock = Lock()
        self._keys: dict[str, Any] = {}
        self._told: list[tuple[float, wire.MeteredEntitlement]] = []
        self._over = Event()
        self._plan, self._limit = 0, LIMITS[0]
        self._length: float | None = LENGTHS[0]
        self._anchor = time.time()
        self._enter(self._window(time.time()))
        self._rolls_at = self._ends() + random.uniform(0, LATE)
        self._changes_at = time.time() + CHANGE_EVERY

    def come_to_rest(self) -> None:
        """The customer gets a last plan, of which nothing is used; no period rolls over any more."""
        with self._lock:
            self._over.set()
            self._change(time.time())

    def free(self) -> float:
        life = self.lives[self._plan, self._period]
        return max(0.0, life.limit - life.booked)

    def oversold(self) -> float:
        return sum(max(0.0, life.booked - life.limit - life.excused) for life in self.lives.values())

    def live(self) -> None:
        """Lets time pass."""
        while not self._over.wait(0.02):
            with self._lock:
                now = time.time()
                if self._over.is_set():
                    return
                if now >= self._changes_at:
                    self._change(now)
                elif now >= self._rolls_at:
                    self._enter(self._window(now))
                    self._rolls_at = self._ends() + random.uniform(0, LATE)

    def state(self, _request: Any, _context: Any) -> wire.GetEntitlementsStateV2Response:
        with self._lock:
            oldest = time.time() - random.uniform(0, LAG)
            told = next((told for at, told in reversed(self._told) if at <= oldest), self._told[0][1])
        entitlement = wire.EntitlementV2(has_access=told.current_usage < told.usage_limit, metered=told)
        return wire.GetEntitlementsStateV2Response(entitlements=[entitlement])

    def report(self, request: Any, context: Any) -> wire.ReportUsageResponse:
        context.set_trailing_metadata((KEYS_HONOURED,))
        key = dict(context.invocation_metadata()).get("idempotency-key", "")
        with self._lock:
            if key not in self._keys:
                self._keys[key] = self._booked(request)
            return self._keys[key]  # type: ignore[no-any-return] # what was answered is kept untyped

    def _booked(self, request: Any) -> wire.ReportUsageResponse:
        at = min(request.timestamp.seconds + request.timestamp.nanos / SECOND, time.time())
        period = self._window(at) if self.by_time else self._period
        life = self.lives.setdefault((self._plan, period), Life(self._limit))
        life.booked += request.value
        self._say()
        told = self._told[-1][1]
        return wire.ReportUsageResponse(
            customer_id=CUSTOMER,
            feature_id=FEATURE,
            current_usage=told.current_usage,
            usage_period_start=_stamp(self._period.start),
            usage_period_end=_stamp(self._period.end),
        )

    def _change(self, now: float) -> None:
        rest = self.free()
        self._plan += 1
        self.changes += 1
        self._length, self._limit, self._anchor = random.choice(LENGTHS), random.choice(LIMITS), now
        self._enter(self._window(now), excused=rest)
        self._rolls_at = self._ends() + random.uniform(0, LATE)
        self._changes_at = now + CHANGE_EVERY

    def _enter(self, period: Period, excused: float = 0.0) -> None:
        self._period = period
        life = self.lives.setdefault((self._plan, period), Life(self._limit))
        life.excused += excused
        self._say()

    def _say(self) -> None:
        life = self.lives[self._plan, self._period]
        told = wire.MeteredEntitlement(
            feature=wire.EntitlementFeature(id=FEATURE),
            usage_limit=life.limit,
            current_usage=life.booked,
            usage_period_start=_stamp(self._period.start),
            usage_period_end=_stamp(self._period.end),
        )
        self._told.append((time.time(), told))

    def _window(self, at: float) -> Period:
        if self._length is None:
            return Period(round(self._anchor * SECOND), None)
        number = (at - self._anchor) // self._length
        start = self._anchor + number * self._length
        return Period(round(start * SECOND), round((start + self._length) * SECOND))

    def _ends(self) -> float:
        return float("inf") if self._period.end is None else self._period.end / SECOND


def _stamp(instant: int | None) -> Any:
    return None if instant is None else {"seconds": instant // SECOND, "nanos": instant % SECOND}


@contextmanager
def _serving(by_time: bool) -> Iterator[TrueSidecar]:
    sidecar = TrueSidecar(by_time)
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    answers = {"GetEntitlementsStateV2": sidecar.state, "ReportUsage": sidecar.report}
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=METHODS[name].request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        for name, answer in answers.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
    sidecar.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    living = Thread(target=sidecar.live, daemon=True)
    living.start()
    try:
        yield sidecar
    finally:
        sidecar._over.set()
        server.stop(None).wait()


def _settings() -> dict[str, Any]:
    return {"SETTLE_GRACE": SETTLE_GRACE, "CACHE_TTL": CACHE_TTL, "TIMEOUT": 5}


def _use(address: str, ledger: str, until: float, jumps: Any, results: Any, number: int) -> None:
    class HostsClock(datetime):
        """The clock of a host, which is wrong and jumps."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=jumps[number])

    clock.datetime = HostsClock  # type: ignore[attr-defined] # it stands in for the host's own
    sold = 0.0
    with make_guard(address, ledger, **_settings()) as guard:
        while time.monotonic() < until:
            amount = random.choice([1, 2, 0.5])
            try:
                with guard.consume(FEATURE, amount, customer=CUSTOMER):
                    time.sleep(random.random() * 0.02)
                sold += amount
            except FeatureDenied:
                time.sleep(0.02)
            except SidecarError:
                time.sleep(0.05)
    results.put(sold)
    results.close()
    results.join_thread()


def _all_that_is_free(address: str, ledger: str) -> float:
    taken = 0.0
    with make_guard(address, ledger, **_settings()) as guard:
        for amount in (10.0, 1.0, 0.5):
            while True:
                try:
                    with guard.consume(FEATURE, amount, customer=CUSTOMER):
                        pass
                except FeatureDenied:
                    break
                taken += amount
    return taken
