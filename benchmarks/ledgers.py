"""``python -m benchmarks.ledgers``: how many uses a second each home of a ledger carries, and what they cost it.

A use is a hold and its commit, of one customer of many. What the servers' processes spend on it in CPU time says what
they would carry by themselves, whoever asks them: ``full at`` is where the busiest has a core of its own busy all the
time. A Redis works on one core, PostgreSQL on several. The cluster has three masters, with ``cluster-wait`` a replica
of each, which each step waits for.
"""

from __future__ import annotations

import os
import random
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from django.core.management import call_command
from django.db import connection
from faults.django_ledger import set_up
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer, redis_nodes

from stigg_guard import Clock
from stigg_guard.ledger import Claim, Hold, Ledger, News, Period, UsageKey, Use, ledger_from_url

CUSTOMERS = 200
UNLIMITED = News(Period(), used=0, limit=None, ticket=1)
PROCESSES = (1, 8)
TICKS = os.sysconf("SC_CLK_TCK")
ROW = "{:<14} {:>12} {:>14} {:>16} {:>16}"
CONTEXT = get_context("spawn")


@dataclass(frozen=True, slots=True)
class Home:
    """A ledger's URL, the ids of the processes that serve it, and the database where it is Django's."""

    url: str
    servers: Sequence[int] = ()
    database: Mapping[str, Any] | None = None


@contextmanager
def _sqlite(folder: Path) -> Iterator[Home]:
    yield Home(f"sqlite:///{folder}/ledger")


@contextmanager
def _redis(folder: Path) -> Iterator[Home]:
    with RedisServer(folder) as server:
        yield Home(f"{server.url}?socket_timeout=30", [server.pid])


@contextmanager
def _cluster(folder: Path) -> Iterator[Home]:
    with redis_nodes(folder, durable=True) as nodes:
        yield Home(f"{nodes.url}?socket_timeout=30", [node.pid for node in nodes.nodes])


@contextmanager
def _waiting_cluster(folder: Path) -> Iterator[Home]:
    with redis_nodes(folder, replicas=3, durable=True) as nodes:
        yield Home(f"{nodes.url}?socket_timeout=30&wait=1", [node.pid for node in nodes.nodes[:3]])


@contextmanager
def _postgres(_folder: Path) -> Iterator[Home]:
    with PostgresServer(durable=True) as server:
        database = {**server.database("site"), "CONN_MAX_AGE": None}
        set_up(database)
        call_command("migrate", verbosity=0)
        connection.close()
        yield Home("django://default", [server.pid], database)


HOMES: Mapping[str, Callable[[Path], Any]] = {
    "sqlite": _sqlite,
    "redis": _redis,
    "cluster": _cluster,
    "cluster-wait": _waiting_cluster,
    "postgresql": _postgres,
}


def main() -> None:
    """Prints a row for each home."""
    parser = ArgumentParser(prog="python -m benchmarks.ledgers", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="home", help=f"one of: {', '.join(HOMES)} (default: all)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each is used (default: %(default)s)")
    options = parser.parse_args()
    names, seconds = options.names or list(HOMES), options.seconds
    if unknown := set(names) - HOMES.keys():
        parser.error(f"there is no home {', '.join(sorted(unknown))}; choose from {', '.join(HOMES)}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; uses a second, and CPU time of the servers\n")
    of = [f"{count} process{'es' if count > 1 else ''}" for count in PROCESSES]
    print(ROW.format("home", *of, "server, per use", "full at"))
    for name in names:
        with TemporaryDirectory() as folder, HOMES[name](Path(folder)) as home:
            print(_row(name, home, seconds), flush=True)


def _row(name: str, home: Home, seconds: float) -> str:
    rates = [_used(home, count, seconds)[0] / seconds for count in PROCESSES[:-1]]
    uses, spent = _used(home, PROCESSES[-1], seconds)
    rates.append(uses / seconds)
    cost = f"{sum(spent) / uses * 1e6:.0f} us" if spent else "-"
    full = f"{uses / max(spent):,.0f}/s" if spent else "-"
    return ROW.format(name, *(f"{rate:,.0f}/s" for rate in rates), cost, full)


def _used(home: Home, processes: int, seconds: float) -> tuple[int, list[float]]:
    """How often processes together used units within these seconds, and the CPU seconds of each server meanwhile."""
    together, results = CONTEXT.Barrier(processes + 1), CONTEXT.Queue()
    arguments = home.url, home.database, seconds, together, results
    workers = [CONTEXT.Process(target=_work, args=arguments, daemon=True) for _ in range(processes)]
    for worker in workers:
        worker.start()
    together.wait()
    before = [_cpu_seconds(server) for server in home.servers]
    uses = sum(results.get() for _ in workers)
    spent = [_cpu_seconds(server) - begun for server, begun in zip(home.servers, before, strict=True)]
    together.wait()  # until then all that serves them is there
    for worker in workers:
        worker.join()
    return uses, spent


def _work(url: str, database: Mapping[str, Any] | None, seconds: float, together: Any, results: Any) -> None:
    keys = [UsageKey(f"customer-{number}", "", "feature") for number in range(CUSTOMERS)]
    with closing(_ledger(url, database)) as ledger:
        for key in keys:
            _use(ledger, key)
        together.wait()
        uses, deadline = 0, time.monotonic() + seconds
        while time.monotonic() < deadline:
            _use(ledger, random.choice(keys))
            uses += 1
        results.put(uses)
        together.wait()


def _use(ledger: Ledger, key: UsageKey) -> None:
    hold = ledger.hold([Claim(key, 1.0, UNLIMITED)], 60)
    assert isinstance(hold, Hold)
    ledger.commit(hold, [Use(key, 1.0)])


def _ledger(url: str, database: Mapping[str, Any] | None) -> Ledger:
    if database is None:
        return ledger_from_url(url, Clock())
    set_up(database)
    from stigg_guard.django.ledger.ledger import django_ledger_from_url  # Django must be set up before

    return django_ledger_from_url(url, Clock())


def _cpu_seconds(server: int) -> float:
    """What a process and its children have spent, those that are gone among them."""
    children = [int(child) for child in Path(f"/proc/{server}/task/{server}/children").read_text().split()]
    own = [int(ticks) for ticks in _stat(server)[11:15]]
    return (sum(own) + sum(int(ticks) for child in children for ticks in _stat(child)[11:13])) / TICKS


def _stat(process: int) -> list[str]:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


if __name__ == "__main__":
    main()
