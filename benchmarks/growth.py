"""``python -m benchmarks.growth [axis...]``: how the cost of a check, a hold, a commit and a report grows with what
there is. See docs/performance.md."""

from __future__ import annotations

import gc
import random
import sqlite3
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, TypeAlias

from google.protobuf.message import Message

from benchmarks.plots import draw
from benchmarks.report import DOCS, duration, machine, publish, table
from stigg_guard import Clock, Config, Guard, Stigg
from stigg_guard.amounts import quanta
from stigg_guard.ledger import (
    Acknowledged,
    Batch,
    Claim,
    Event,
    Hold,
    Ledger,
    News,
    Period,
    UsageKey,
    Use,
    ledger_from_url,
)
from stigg_guard.ledger.accounting import BATCH_EVENTS_PER_USAGE
from stigg_guard.wire import sidecar_pb2 as wire

ROUNDS = 9
FLAT = 1.2
BATCH = 100
CHECKS = 200
FEW = 10
TURNS = 10
FEATURES = 5
CHECKS_TOGETHER, USES_TOGETHER = 64_000, 1_024  # of all workers
TTL = 3_600.0

Costs: TypeAlias = "Mapping[str, float]"
"""Seconds of one call, by what is called."""
Sample: TypeAlias = "Callable[[], Costs]"


@dataclass(frozen=True, slots=True)
class Axis:
    """What there is more and more of. ``open`` makes so much of it, and yields what measures the costs then; in
    ``reasons`` is why a cost grows."""

    text: str
    points: Sequence[int]
    open: Callable[[int], Any]
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Growth:
    """The costs of one thing at the points of an axis, in seconds, and how many times that at the first point each
    is: medians over the rounds, of costs that were measured in turns. No round had a smaller factor than ``least``."""

    costs: Sequence[float]
    factors: Sequence[float]
    least: Sequence[float]

    @property
    def factor(self) -> float:
        """The largest of the factors."""
        return max(self.factors)

    def verdict(self, reason: str) -> str:
        """Whether it is flat; the reason only where each round says that it is not."""
        if self.factor <= FLAT:
            return "yes"
        return reason if max(self.least) > FLAT else "too noisy"


class Plan:
    """Answers in this process: everybody has ``features`` metered features, with a limit that nobody reaches."""

    honours_keys = True

    def __init__(self, features: int) -> None:
        state = wire.GetEntitlementsStateV2Response()
        for feature in map(_feature, range(features)):
            entitlement = state.entitlements.add(has_access=True)
            entitlement.metered.feature.id = feature
            entitlement.metered.usage_limit = LIMIT
        self._state = state.SerializeToString()

    def answer(self, method: str, request: Any, **_: object) -> Message:
        """All entitlements, which is all that is asked for here."""
        assert method == "GetEntitlementsStateV2"
        return wire.GetEntitlementsStateV2Response.FromString(self._state)

    def close(self) -> None:
        """Nothing is open."""


LIMIT = 1e9
_CONFIG = Config(cache_ttl=TTL, cache_size=1_000_000, ledger="memory://")
NEWS = News(Period(), used=0, limit=quanta(LIMIT), ticket=1)


def main() -> None:
    """Measures the named axes, or all; prints what is found, and draws it."""
    parser = ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="axis", help=f"one of: {', '.join(AXES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how many (default: %(default)s)")
    parser.add_argument("--million", action="store_true", help="a backlog of a million, too")
    parser.add_argument("--publish", action="store_true", help="plots in docs/plots, the table in docs/performance.md")
    given = parser.parse_args()
    axes = {name: AXES[name] for name in given.names or AXES}
    if given.publish and given.names:
        parser.error("--publish is for all axes")
    print(machine(), f"medians of {given.rounds} rounds, all points of an axis in turns", "", sep="\n", flush=True)
    folder = DOCS / "plots" if given.publish else Path("build", "growth")
    folder.mkdir(parents=True, exist_ok=True)
    gc.disable()  # as timeit does
    found = {}
    for name, axis in axes.items():
        points = [*axis.points, 1_000_000] if given.million and name == "backlog" else axis.points
        found[name] = measure(axis, points, given.rounds)
        factors = {what: growth.factors for what, growth in found[name].items()}
        draw(folder / f"{name}.svg", axis.text, points, factors, FLAT)
        for what, growth in found[name].items():
            costs = ", ".join(f"{point:,}: {duration(cost)}" for point, cost in zip(points, growth.costs, strict=True))
            print(f"{axis.text}: {what} x {growth.factor:.2f} ({costs})", flush=True)
    if given.publish:
        publish("growth", f"`make bench-growth`: {machine()}:\n\n{_table(found)}")


def measure(axis: Axis, points: Sequence[int], rounds: int) -> Mapping[str, Growth]:
    """The growth of each cost along an axis. The points take turns, so that a drifting machine bends none of them."""
    with ExitStack() as open_:
        samples: list[Sample] = [open_.enter_context(axis.open(point)) for point in points]
        for sample in samples:
            sample()
        measured = [[sample() for sample in samples] for _ in range(rounds)]
    return {what: _growth([[costs[what] for costs in one] for one in measured]) for what in measured[0][0]}


def _growth(rounds: Sequence[Sequence[float]]) -> Growth:
    costs = list(zip(*rounds, strict=True))
    factors = list(zip(*([cost / one[0] for cost in one] for one in rounds), strict=True))
    return Growth([median(some) for some in costs], [median(some) for some in factors], [min(some) for some in factors])


def _table(found: Mapping[str, Mapping[str, Growth]]) -> str:
    def line(axis: Axis, what: str, growth: Growth) -> tuple[str, ...]:
        flat = growth.verdict(axis.reasons.get(what, "no reason known"))
        return f"{axis.text}, {axis.points[0]:,} to {axis.points[-1]:,}", what, f"{growth.factor:.2f}", flat

    lines = [line(AXES[name], what, growth) for name, costs in found.items() for what, growth in costs.items()]
    return table(("against", "cost of", "largest factor", f"flat within {FLAT:g}, or why not"), lines)


@contextmanager
def of_customers(customers: int) -> Iterator[Sample]:
    """So many customers are cached and known to the ledger."""
    with _world(FEATURES, customers) as (guard, ledger, _):
        keys = [UsageKey(_customer(number), "", _feature(0)) for number in range(customers)]
        _use_all(ledger, keys)
        _drain(ledger)
        yield partial(_sample, guard, ledger, keys)


@contextmanager
def of_features(features: int) -> Iterator[Sample]:
    """Customers who have so many features each, of which all are in use."""
    with _world(features, BATCH) as (guard, ledger, _):
        keys = [UsageKey(_customer(number), "", _feature(one)) for one in range(features) for number in range(BATCH)]
        _use_all(ledger, keys)
        _drain(ledger)
        yield partial(_sample, guard, ledger, keys)


@contextmanager
def of_backlog(entries: int) -> Iterator[Sample]:
    """So many reports wait to be sent, each of a customer of its own."""
    with _world(FEATURES, BATCH) as (guard, ledger, _):
        _use_all(ledger, [UsageKey(f"waiting-{number}", "", _feature(0)) for number in range(entries)])
        yield partial(_sample, guard, ledger, [UsageKey(_customer(number), "", _feature(0)) for number in range(BATCH)])


@contextmanager
def of_events(events: int) -> Iterator[Sample]:
    """So many raw events of one customer and feature wait to be sent."""
    key = UsageKey(_customer(0), "", _feature(0))
    with _world(FEATURES, 1) as (guard, ledger, file):
        if events:
            ledger.record(Use(key, 1.0, event=Event("used", "event", {})))
            _copy_entry(file, events - 1)
        yield partial(_sample, guard, ledger, [key], as_events=True)


@contextmanager
def _world(features: int, customers: int) -> Iterator[tuple[Guard, Ledger, Path]]:
    """A guard that knows the customers and what they have, a ledger, and its file. Nothing reports by itself."""
    with ExitStack() as open_:
        folder = open_.enter_context(TemporaryDirectory())
        ledger = open_.enter_context(closing(ledger_from_url(f"sqlite:///{folder}/ledger", Clock())))
        guard = open_.enter_context(Guard(_CONFIG, stigg=Stigg(answers=Plan(features))))
        for number in range(customers):
            for feature in range(features if customers <= BATCH else 1):
                guard.check(_feature(feature), customer=_customer(number))
        yield guard, ledger, Path(folder, "ledger")


def _sample(guard: Guard, ledger: Ledger, keys: Sequence[UsageKey], *, as_events: bool = False) -> Costs:
    """Medians over several turns."""
    turns = [_turn(guard, ledger, keys, as_events) for _ in range(1 if as_events else TURNS)]
    return {what: median(turn[what] for turn in turns) for what in turns[0]}


def _turn(guard: Guard, ledger: Ledger, keys: Sequence[UsageKey], as_events: bool) -> Costs:
    """Checks of any of the keys; and units of a few that are held, committed and reported: as much goes as has come."""
    asked = random.choices(keys, k=CHECKS)
    used = [keys[0]] * FEW if as_events else random.sample(keys, FEW)
    events = [Event("used", f"{random.random()}", {}) if as_events else None for _ in used]
    holds: list[Hold] = []

    def check() -> None:
        for key in asked:
            guard.check(key.feature_id, customer=key.customer_id)

    def hold() -> None:
        holds.extend(_held(ledger.hold([Claim(key, 1.0, NEWS)], TTL)) for key in used)

    def commit() -> None:
        for held, key, event in zip(holds, used, events, strict=True):
            ledger.commit(held, [Use(key, 1.0, event=event)])

    def drain() -> None:
        batch = ledger.take_batch(FEW // BATCH_EVENTS_PER_USAGE if as_events else FEW, TTL)
        assert batch is not None
        assert len(batch.reports) == FEW
        _acknowledge(ledger, batch)

    costs = {"check": _time(check) / CHECKS, "hold": _time(hold) / FEW, "commit": _time(commit) / FEW}
    return {**costs, "drain": _time(drain) / FEW}


@contextmanager
def of_threads(threads: int) -> Iterator[Sample]:
    """So many threads at once, with one guard and one ledger; each has customers of its own."""
    with _world(FEATURES, threads) as (guard, ledger, _), ThreadPoolExecutor(threads) as pool:

        def together(work: Work) -> None:
            for done in [pool.submit(work, guard, ledger, number, threads) for number in range(threads)]:
                done.result()

        yield partial(_together, together)


@contextmanager
def of_processes(processes: int) -> Iterator[Sample]:
    """So many processes at once, which share a ledger; each has a guard of its own."""
    with TemporaryDirectory() as folder, ExitStack() as open_:
        pipes = [open_.enter_context(_process(folder, number, processes)) for number in range(processes)]

        def together(work: Work) -> None:
            for pipe in pipes:
                pipe.send(work)
            for pipe in pipes:
                pipe.recv()

        yield partial(_together, together)


Work: TypeAlias = "Callable[[Guard, Ledger, int, int], object]"
"""The part of one worker of several, by its number and how many they are."""


def _together(together: Callable[[Work], None]) -> Costs:
    """Seconds from one call to the next, when all workers call at once."""
    costs = {"check": _time(lambda: together(_check_part)) / CHECKS_TOGETHER}
    costs["hold and commit"] = _time(lambda: together(_use_part)) / USES_TOGETHER
    return {**costs, "drain": _time(lambda: together(_drain_part)) / USES_TOGETHER}


def _check_part(guard: Guard, _ledger: Ledger, number: int, workers: int) -> None:
    customer, feature = _customer(number), _feature(0)
    for _ in range(CHECKS_TOGETHER // workers):
        guard.check(feature, customer=customer)


def _use_part(_guard: Guard, ledger: Ledger, number: int, workers: int) -> None:
    for one in range(USES_TOGETHER // workers):
        key = UsageKey(f"{_customer(number)}-{one}", "", _feature(0))
        ledger.commit(_held(ledger.hold([Claim(key, 1.0, NEWS)], TTL)), [Use(key, 1.0)])


def _drain_part(_guard: Guard, ledger: Ledger, _number: int, _workers: int) -> None:
    _drain(ledger)


@contextmanager
def _process(folder: str, number: int, processes: int) -> Iterator[Connection]:
    """A process that does the work that it is sent, and answers when it is done."""
    spawn = get_context("spawn")
    ours, its = spawn.Pipe()
    process = spawn.Process(target=_work, args=(folder, number, processes, its), daemon=True)
    process.start()
    ours.recv()
    try:
        yield ours
    finally:
        ours.send(None)
        process.join()


def _work(folder: str, number: int, processes: int, pipe: Connection) -> None:
    with ExitStack() as open_:
        ledger = open_.enter_context(closing(ledger_from_url(f"sqlite:///{folder}/ledger", Clock())))
        guard = open_.enter_context(Guard(_CONFIG, stigg=Stigg(answers=Plan(FEATURES))))
        pipe.send("ready")
        while (work := pipe.recv()) is not None:
            work(guard, ledger, number, processes)
            pipe.send("done")


def _use_all(ledger: Ledger, keys: Sequence[UsageKey]) -> None:
    """A unit of each key, many in one step."""
    for at in range(0, len(keys), 1_000):
        some = keys[at : at + 1_000]
        ledger.commit(_held(ledger.hold([Claim(key, 1.0, NEWS) for key in some], TTL)), [Use(key, 1.0) for key in some])


def _copy_entry(file: Path, copies: int) -> None:
    """Copies the only entry of a ledger so often; writing each as a use would take minutes."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        columns = ", ".join(name for _, name, *_ in db.execute("PRAGMA table_info(entries)") if name != "id")
        numbers = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)"
        db.execute(f"INSERT INTO entries ({columns}) {numbers} SELECT {columns} FROM entries, numbers", (copies,))


def _drain(ledger: Ledger) -> None:
    while (batch := ledger.take_batch(BATCH, TTL)) is not None:
        _acknowledge(ledger, batch)


def _acknowledge(ledger: Ledger, batch: Batch) -> None:
    ledger.acknowledge([Acknowledged(report, None) for report in batch.reports])


def _held(hold: object) -> Hold:
    assert isinstance(hold, Hold)
    return hold


def _time(work: Callable[[], object]) -> float:
    begun = perf_counter()
    work()
    return perf_counter() - begun


def _customer(number: int) -> str:
    return f"customer-{number}"


def _feature(number: int) -> str:
    return f"feature-{number}"


_COLD = "it is asked for among so many that the processor's caches miss"
_DEEP = "the trees of what waits are deeper, and their pages fall out of the caches"
_TURNS = "one step at a time writes into a file, and who waits looks again every 50 us or so"
_SUMMED = "each step adds up what is on its way of the key, one by one"
_PASSED = "usages are sent before events, and all that waits is looked through for one"

AXES: Mapping[str, Axis] = {
    "customers": Axis(
        "customers cached", (10, 100, 1_000, 10_000, 100_000), of_customers, {"check": _COLD, "drain": _DEEP}
    ),
    "features": Axis("features a customer", (1, 5, 50, 500), of_features, {"check": _COLD, "drain": _DEEP}),
    "backlog": Axis("reports that wait", (0, 1_000, 10_000, 100_000), of_backlog, {"hold": _DEEP, "drain": _DEEP}),
    "events": Axis(
        "events of one key that wait",
        (0, 1_000, 10_000, 100_000),
        of_events,
        {"hold": _SUMMED, "commit": _SUMMED, "drain": _PASSED},
    ),
    "threads": Axis(
        "threads",
        (1, 2, 4, 8, 16, 32, 64),
        of_threads,
        {"check": "threads take turns in the interpreter", "hold and commit": _TURNS, "drain": _TURNS},
    ),
    "processes": Axis(
        "processes",
        (1, 2, 4, 8),
        of_processes,
        {"check": "there are more of them than cores", "hold and commit": _TURNS, "drain": _TURNS},
    ),
}


if __name__ == "__main__":
    main()
